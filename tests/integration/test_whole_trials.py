"""Whole trials: sixteen clients whose user likes one version more, less, or as much as the other; and its page."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import yaml

from contract.files import free_port
from contract.names import CHALLENGER_ALIAS, PRODUCTION, PROMOTIONS, STAGE, STAGING, TRIAL
from tests.support import doses
from tests.support.serving import PROMPT, Serving, register_variants, serving_process
from tests.support.tracking import Stack, make_stack, server

pytestmark = pytest.mark.integration
MODEL = "whole"
POLICY: dict[str, Any] = {
    "steps": [{"share": 0.2, "requests": 60}, {"share": 0.5, "requests": 100}],
    "margins": {"acceptance": 0.0, "persistence": 0.9, "errors": 0.2, "empty": 0.2, "slow": 0.5, "left": 0.3},
    "settle_s": 2,
    "persistence_after_s": 30,
    "look_s": 0.5,
    "lease_s": 60,
}


@pytest.fixture(scope="module")
def own(tmp_path_factory, tiny) -> Iterator[Stack]:
    """A tracking server of its own, with four versions, the first in production."""
    folder = tmp_path_factory.mktemp("versions")
    stack = make_stack(tmp_path_factory.mktemp("tracking"))
    with server(stack):
        register_variants(stack, MODEL, tiny.folder, folder, 4)
        stack.client.set_model_version_tag(MODEL, "1", STAGE, "Production")
        yield stack


@pytest.fixture(scope="module")
def service(own: Stack, tmp_path_factory) -> Iterator[Serving]:
    with serving_process(own, MODEL, tmp_path_factory.mktemp("serving")) as service:
        service.wait_for_version("1")
        yield service


@dataclass
class People:
    """Sixteen clients; whoever looks at a completion accepts it as often as its version deserves."""

    service: Serving
    likes: dict[str, float]  # by version
    a_second: float = 12.0
    others: tuple[Serving, ...] = ()  # whom to ask when it does not answer, as a balancer does
    statuses: list[int] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def at_work(self) -> Iterator["People"]:
        threads = [threading.Thread(target=self._work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _work(self, number: int) -> None:
        dice, session = random.Random(number), requests.Session()
        while not self._stop.is_set():
            asked = {"prompt": PROMPT, "max_tokens": 3, "temperature": 0.5, "path": "a.py"}
            answer = self._ask(session, asked)
            self.statuses.append(answer.status_code)
            if answer.ok:
                version, id = answer.headers["X-Model-Version"], answer.json()["id"]
                self.versions.append(version)
                if dice.random() < self.likes[version]:
                    taken = {"type": "select", "completion_id": id, "elapsed": 900}
                    with suppress(requests.ConnectionError):
                        session.post(f"{answer.url.removesuffix('/completions')}/events", json=taken, timeout=60)
            time.sleep(dice.uniform(0.5, 1.5) * 16 / self.a_second)

    def _ask(self, session: requests.Session, asked: dict[str, Any]) -> requests.Response:
        """Of the first that answers."""
        for service in (self.service, *self.others):
            with suppress(requests.ConnectionError):
                answer = session.post(f"{service.url}/v1/completions", json=asked, timeout=60)
                if answer.status_code != 503 or not self.others:
                    return answer
        lost = requests.Response()
        lost.status_code = 503
        return lost


def promoter(stack: Stack, *arguments: str, timeout_s: float = 200) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "promoter", *arguments, "--model-name", MODEL]
    return subprocess.run(command, env=stack.env, capture_output=True, text=True, timeout=timeout_s, check=False)


def stage(stack: Stack, number: str) -> None:
    """As if the gate had let it there."""
    stack.client.set_registered_model_alias(MODEL, STAGING, number)
    stack.client.set_model_version_tag(MODEL, number, STAGE, "Staging")


def gateway_of(supervisor: psutil.Process) -> psutil.Process:
    for child in supervisor.children():
        with suppress(psutil.ZombieProcess):
            if "gunicorn" in " ".join(child.cmdline()):
                return child
    raise AssertionError("there is no gateway")


def record(stack: Stack, outcome: str) -> Any:
    experiment = stack.client.get_experiment_by_name(PROMOTIONS)
    found = stack.client.search_runs(
        [experiment.experiment_id], f"tags.outcome = '{outcome}' and tags.model = '{MODEL}'"
    )
    return found[0]


@doses.full
def test_killed_promoters_and_two_minutes_without_tracking_change_nothing(tiny, tmp_path: Path) -> None:
    (tmp_path / "tracking").mkdir()
    stack, policy = make_stack(tmp_path / "tracking"), tmp_path / "trial.yaml"
    margins = POLICY["margins"] | {"acceptance": 0.05}
    steps = [{"share": 0.2, "requests": 60}, {"share": 0.5, "requests": 60, "hours": 1}]
    budget = {"requests": 20_000}
    policy.write_text(yaml.safe_dump(POLICY | {"margins": margins, "steps": steps, "budget": budget, "lease_s": 300}))
    command = [sys.executable, "-m", "promoter", "trial", "--model-name", MODEL, "--version", "2"]
    command += ["--policy", str(policy)]
    with ExitStack() as rest:
        with server(stack):
            register_variants(stack, MODEL, tiny.folder, tmp_path, 2)
            stage(stack, "2")
            service = rest.enter_context(serving_process(stack, MODEL, tmp_path / "serving"))
            service.wait_for_version("1")
            people = rest.enter_context(People(service, {"1": 0.5, "2": 0.5}, 6.0).at_work())

            def share() -> float:
                return float((service.status()["challenger"] or {}).get("share", 0))

            for expected in (0.2, 0.5):  # killed in each step
                promoting = subprocess.Popen(command, env=stack.env)
                service.wait_for(lambda expected=expected: share() == expected, "the step is taken", 150)
                promoting.kill()
                promoting.wait()
            with (tmp_path / "promoter.log").open("w") as log:
                promoting = subprocess.Popen(command, env=stack.env, stdout=log, stderr=log)
            time.sleep(45)  # until the lease of the dead one has run out, and it looks
        time.sleep(120)
        said = (tmp_path / "promoter.log").read_text()
        assert promoting.poll() is None, said
        assert share() == 0.5
        with server(stack):
            people.likes["2"] = 0.0  # from now on it is bad
            assert promoting.wait(400) == 1
            assert record(stack, "trial rolled back").data.tags["version"] == "2"
            service.wait_for(lambda: share() == 0, "nothing is on trial")
        said = (tmp_path / "promoter.log").read_text()
        assert "The tracking server does not do its work, and is asked again" in said
        assert "rolled back" in said
    assert set(people.statuses) == {200}


@doses.full
def test_parts_killed_in_each_step_lose_no_request(tiny, tmp_path: Path) -> None:
    """Promoter, challenger, gateway workers and supervisor, in the shadow and in both steps; two replicas."""
    (tmp_path / "tracking").mkdir()
    stack, policy, port = make_stack(tmp_path / "tracking"), tmp_path / "trial.yaml", str(free_port())
    steps = [{"share": 0.2, "requests": 400}, {"share": 0.5, "requests": 700}]
    shadow = {"share": 0.9, "copies": 60}
    margins = POLICY["margins"] | {"errors": 0.3, "acceptance": 0.05}
    budget = {"requests": 20_000}
    policy.write_text(yaml.safe_dump(POLICY | {"shadow": shadow, "steps": steps, "budget": budget, "margins": margins}))
    command = [sys.executable, "-m", "promoter", "trial", "--model-name", MODEL, "--version", "2"]
    command += ["--policy", str(policy)]
    with ExitStack() as rest:
        rest.enter_context(server(stack))
        register_variants(stack, MODEL, tiny.folder, tmp_path, 2)
        stage(stack, "2")
        other = rest.enter_context(serving_process(stack, MODEL, tmp_path / "other"))

        def start() -> Serving:
            return rest.enter_context(serving_process(stack, MODEL, tmp_path / "serving", SERVING_PORT=port))

        service = start()
        for replica in (service, other):
            replica.wait_for_version("1")
        people = rest.enter_context(People(service, {"1": 0.1, "2": 0.9}, 8.0, (other,)).at_work())

        def is_at(share: float, shadow: bool) -> bool:
            found = service.status()["challenger"] or {}
            return bool(found.get("live")) and (found["share"], found["shadow"]) == (share, shadow)

        for share, shadow_too in ((0.9, True), (0.2, False), (0.5, False)):
            promoting = subprocess.Popen(command, env=stack.env)
            service.wait_for(lambda: is_at(share, shadow_too), f"it is at {share}", 300)  # noqa: B023
            promoting.kill()
            promoting.wait()
            killed = service.status()["challenger"]["live"]["pid"]
            os.killpg(killed, signal.SIGKILL)
            service.wait_for(
                lambda: is_at(share, shadow_too) and service.status()["challenger"]["live"]["pid"] != killed,  # noqa: B023
                "the challenger is back",
                120,
            )
            supervisor = psutil.Process(service.process.pid)
            for worker in gateway_of(supervisor).children():
                worker.kill()
            children = supervisor.children(recursive=True)
            service.process.kill()
            service.process.wait()
            assert psutil.wait_procs(children, 30)[1] == []
            service = start()
            service.wait_for_version("1")
        done = promoter(stack, "trial", "--version", "2", "--policy", str(policy), timeout_s=400)
        assert done.returncode == 0, done.stdout + done.stderr
        service.wait_for_version("2")
    assert set(people.statuses) == {200}
    assert len(people.statuses) > 500


@pytest.mark.parametrize(
    ("challenger", "incumbent", "likes", "outcome", "exit_code"),
    [
        ("2", "1", {"1": 0.7, "2": 0.1}, "trial rolled back", 1),
        ("3", "1", {"1": 0.4, "3": 0.4}, "inconclusive", 1),
        ("4", "1", {"1": 0.1, "4": 0.8}, "promoted", 0),
    ],
    ids=["less", "as much", "more"],
)
def test_users_decide(
    challenger: str,
    incumbent: str,
    likes: dict[str, float],
    outcome: str,
    exit_code: int,
    own: Stack,
    service: Serving,
    tmp_path: Path,
) -> None:
    stage(own, challenger)
    policy = tmp_path / "trial.yaml"
    budget = {"requests": 260 if outcome == "inconclusive" else 1500, "days": 1}
    # On a busy machine nothing is left for a shadow, and it takes its time.
    shadow = {"share": 0.9, "copies": 5} if outcome == "promoted" and doses.FULL else None
    policy.write_text(yaml.safe_dump(POLICY | {"budget": budget, "shadow": shadow}))
    with People(service, likes).at_work() as people:
        done = promoter(own, "trial", "--version", challenger, "--policy", str(policy), "--by", "ada")
    assert done.returncode == exit_code, done.stdout + done.stderr
    assert f"Version {challenger} of {MODEL} → Production instead of version {incumbent}: {outcome}." in done.stdout
    assert set(people.statuses) == {200}
    assert set(people.versions) == {challenger, incumbent}
    aliases = own.client.get_registered_model(MODEL).aliases
    assert (str(aliases[PRODUCTION]), CHALLENGER_ALIAS in aliases) == (
        challenger if exit_code == 0 else incumbent,
        False,
    )
    assert TRIAL not in own.client.get_registered_model(MODEL).tags
    assert not {"trial", "trial_share"} & own.client.get_model_version(MODEL, challenger).tags.keys()
    run = record(own, outcome)
    assert (run.info.status, run.data.tags["action"], run.data.tags["version"]) == ("FINISHED", "trial", challenger)
    page = Path(own.client.download_artifacts(run.info.run_id, "decision.html", str(tmp_path))).read_text()
    assert "<polygon" in page
    figures = json.loads(
        Path(own.client.download_artifacts(run.info.run_id, "decision.json", str(tmp_path))).read_text()
    )
    assert figures["requests"]["challenger"] > 10
    began = own.client.get_run(run.data.tags["trial_run"])
    assert began.data.tags["outcome"] == "on trial"
    assert "trial/acceptance/low" in began.data.metrics
    service.wait_for(lambda: service.status()["challenger"] is None, "nothing is on trial")
    service.wait_for_version(challenger if exit_code == 0 else incumbent)
