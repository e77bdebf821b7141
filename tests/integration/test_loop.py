"""The loop on a real registry: a round by itself, one that is killed and goes on, and what holds it back."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from contract.names import ROUNDS, STAGING
from services.tracking.readiness import wait_until
from tests.support.doses import FULL
from tests.support.git import git, repository_of
from tests.support.tracking import Stack, make_stack, server

pytestmark = pytest.mark.integration
MODEL = "loop_steps_model"
CODE = Path(asyncio.__file__).parent


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return repository_of(tmp_path_factory.mktemp("repository"), CODE)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = make_stack(tmp_path_factory.mktemp("tracking"))
    stack.env["PROMOTER_LEASE_S"] = "8"
    with server(stack) as process:
        stack.env["SERVER_PID"] = str(process.pid)
        yield stack


@contextmanager
def absent(stack: Stack) -> Iterator[None]:
    """While the tracking server stands still, and answers nothing."""
    served = psutil.Process(int(stack.env["SERVER_PID"]))
    family = [served, *served.children(recursive=True)]
    for process in family:
        process.suspend()
    try:
        yield
    finally:
        for process in family:
            process.resume()


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, repository: Path, tiny: Any) -> Path:
    path = Path(tmp_path_factory.mktemp("loop")) / "loop.yaml"
    overrides = [
        *(f"model.name={tiny.folder}", "trainer.max_steps=4", "trainer.max_length=600", "trainer.lr=3e-3"),
        *("eval.max_new_tokens=4", "eval.max_generated=0", "data.max_eval_examples=48"),
    ]
    training = {"overrides": overrides, "budget": {"rounds": 9, "disk_gb": 0.5}}
    values = {
        "model": MODEL,
        "data": {"sources": [f"git:{repository}"]},
        "triggers": {"commits": 2, "functions": None, "drift": False},
        "training": training,
        "cooldown_hours": 0,
    }
    path.write_text(yaml.safe_dump(values))
    return path


def command(config: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "services.loop", "--config", str(config), "--once", *arguments]


def look(stack: Stack, config: Path, *arguments: str) -> str:
    done = subprocess.run(
        command(config, *arguments), env=stack.env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stderr)
    return done.stdout


def promoter(stack: Stack, *arguments: str) -> str:
    result = stack.promoter("loop", *arguments, "--model-name", MODEL)
    assert result.exit_code == 0, result.output
    return result.output


def rounds(stack: Stack) -> list[Any]:
    experiment = stack.client.get_experiment_by_name(ROUNDS)
    if experiment is None:
        return []
    return list(stack.client.search_runs([experiment.experiment_id], "tags.round = 'true'"))


def runs(pattern: str, of: int | None = None) -> bool:
    """Whether there is a process with such a command line; the child of one, or any."""
    parent = ["--parent", str(of)] if of is not None else []
    return bool(subprocess.run(["pgrep", *parent, "--full", pattern], capture_output=True, check=False).stdout)


def trains(repository: Path) -> bool:
    return runs(f"{repository}.*run_name=round-")


def test_the_first_round_trains_and_stops_before_users_see_it(own: Stack, config: Path) -> None:
    assert "A round would begin: no version is in production" in look(own, config, "--dry-run")
    assert rounds(own) == []
    assert "waits for approval" in look(own, config)
    [one] = rounds(own)
    assert (one.info.status, one.data.tags["end"], one.data.tags["candidate"]) == (
        "FINISHED",
        "waits for approval",
        "2",
    )
    assert own.client.get_model_version_by_alias(MODEL, STAGING).version == "2"
    assert float(one.data.tags["trained_s"]) > 1
    assert "waits for approval" in promoter(own, "status")


def test_commits_begin_the_next_one_unless_they_say_no(own: Stack, config: Path, repository: Path) -> None:
    assert "No round: nothing has happened" in look(own, config)
    for number, message in enumerate(("two", "three [skip train]", "four")):
        (repository / "app" / f"new{number}.py").write_text(f"def new(values):\n    return values[{number}]\n")
        git(repository, "add", ".")
        git(repository, "commit", "--quiet", "-m", message)
        expected = (
            "A round would begin: 2 commits"
            if number == 2
            else f"No round: nothing has happened that begins a round: {number or 1} of 2"
        )
        assert expected in look(own, config, "--dry-run")


def test_a_frozen_loop_begins_nothing(own: Stack, config: Path) -> None:
    promoter(own, "freeze", "--by", "ada", "--reason", "a release")
    assert "No round: the loop is frozen: a release (ada)" in look(own, config)
    promoter(own, "resume")
    assert len(rounds(own)) == 1


def test_a_loop_that_is_killed_at_each_step_goes_on_behind_the_last_whole_one(
    own: Stack, config: Path, repository: Path
) -> None:
    """And takes its job with it. While it trains, the tracking server is away for longer than its lease, too."""
    steps = (f"{repository}.*run_name=round-", f"promote --model-name {MODEL}", f"validate --model-name {MODEL}")
    for step in (steps[0], *(steps if FULL else steps[:1])):
        away = step == steps[0] and not own.client.search_model_versions(f"name = '{MODEL}' AND tags.away = 'true'")
        loop = subprocess.Popen(command(config), env=own.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert wait_until(lambda step=step: runs(step), 120, lambda: True), step
        if away:
            own.client.set_model_version_tag(MODEL, "2", "away", "true")
            time.sleep(4)
            with absent(own):
                time.sleep(20)
            assert loop.wait(120) == 4  # the lease has run out
        loop.kill()
        loop.wait()
        assert wait_until(lambda step=step: not runs(step), 60, lambda: True), step
        assert [one.info.status for one in rounds(own)].count("RUNNING") == 1, step
    output = look(own, config)
    assert "Going on with round" in output
    assert "waits for approval" in output
    assert [one.data.tags["candidate"] for one in rounds(own)] == ["3", "2"]
    assert len(own.client.search_model_versions(f"name = '{MODEL}'")) == 3  # the base model, and one of each round
    assert float(rounds(own)[0].data.tags["trained_s"]) > 60  # that a killed one had set aside
    assert "No round: nothing has happened" in look(own, config)


def test_a_worker_trains_for_a_loop_that_runs_elsewhere(own: Stack, config: Path, repository: Path) -> None:
    """The first worker is killed in the middle of the training, and the next one goes on with it."""

    def worker() -> "subprocess.Popen[str]":
        return subprocess.Popen([sys.executable, "-m", "services.loop.worker"], env=own.env, text=True)

    promoter(own, "run-now", "--by", "ada", "--reason", "to see it")
    first = worker()
    loop = subprocess.Popen(command(config, "--elsewhere"), env=own.env, stdout=subprocess.PIPE, text=True)
    assert wait_until(lambda: trains(repository), 120, lambda: True)
    time.sleep(8)
    first.kill()
    first.wait()
    second = worker()
    try:
        output, _ = loop.communicate(timeout=300)
    finally:
        second.terminate()
        assert second.wait(60) == 143
    assert "waits for approval" in output
    newest = rounds(own)[0].data.tags
    assert (newest["candidate"], newest["trigger"]) == ("4", "asked for: to see it (ada)")
    assert len(own.client.search_model_versions(f"name = '{MODEL}'")) == 4


def test_the_budget_holds_a_round_back_that_somebody_asks_for(own: Stack, config: Path, tmp_path: Path) -> None:
    values = yaml.safe_load(config.read_text())
    values["training"]["budget"]["rounds"] = 3
    path = tmp_path / "loop.yaml"
    path.write_text(yaml.safe_dump(values))
    promoter(own, "run-now", "--by", "ada", "--reason", "to see it")
    assert "No round: the budget is spent: 3 of 3 rounds in seven days" in look(own, path)
    assert "A round would begin: asked for: to see it (ada)" in look(own, config, "--dry-run")


def test_of_two_loops_on_one_server_one_works(own: Stack, config: Path) -> None:
    """A round is asked for; the other one waits for a minute, and gives up or finds nothing left to do."""
    before = len(rounds(own))
    loops = [subprocess.Popen(command(config), env=own.env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    most = 0
    while any(one.poll() is None for one in loops):
        train = [runs("run_name=round-", of=one.pid) for one in loops]
        most = max(most, sum(train))
        time.sleep(0.5)
    said = [one.communicate()[0] for one in loops]
    assert len(rounds(own)) == before + 1, said
    assert most == 1
    assert sorted(one.returncode for one in loops) in ([0, 0], [0, 4])
    assert sum("A round begins: asked for" in one for one in said) == 1
