"""Promoters that are killed, that stall, and that come twenty at once, on a real PostgreSQL."""

import itertools
import os
import random
import signal
import time
from collections.abc import Callable

import pytest
from mlflow import MlflowClient

from contract.names import STAGES
from infra.gate_demo import register, table
from services.tracking.readiness import wait_until
from tests.support.doses import KILL_EVERY, PROMOTERS
from tests.support.promoters import assert_settled, assert_sound, mark_validated, start
from tests.support.proxy import proxy
from tests.support.tracking import Stack

pytestmark = pytest.mark.faults

READS = ("/search", "/get", "/list")  # ends of paths that a POST changes nothing by
LEASE_S = 9.0  # short, and long enough for a busy machine
FORCE = ("--force", "--reason", "t")


def is_write(method: str, path: str) -> bool:
    return method != "GET" and not path.partition("?")[0].endswith(READS)


def model_with(client: MlflowClient, experiment: str, versions: int) -> str:
    """A registered model with so many versions, each truly better than the one before; the first is in production."""
    model = f"{experiment}_model"
    for number in range(versions):
        mark_validated(client, register(client, model, table(-0.2 * number, 0.9, seed=number, examples=120)))
    return model


def run(stack: Stack, *arguments: str, expected: int = 0) -> str:
    promoter = start(stack.url, *arguments)
    assert promoter.end() == expected, promoter.output
    return promoter.output


def aliases(client: MlflowClient, model: str) -> dict[str, str]:
    return {alias: str(number) for alias, number in client.get_registered_model(model).aliases.items()}


def end_leases(client: MlflowClient, model: str) -> None:
    """As if the time of a lease had passed; that it passes by itself is another test's matter."""
    experiment = client.get_experiment_by_name("promotions")
    assert experiment is not None
    for run in client.search_runs(
        [experiment.experiment_id], f"tags.model = '{model}' and attributes.status = 'RUNNING'"
    ):
        client.set_tag(run.info.run_id, "lease_until", "0")


def kill_at_each_write(
    stack: Stack, command: tuple[str, ...], before: Callable[[], None], after: dict[str, str], ok: tuple[int, ...]
) -> int:
    """kill -9 a promoter once its n-th write is done, for n = 1, 2, … to its end (or every so many of them, another set
    each time); then the same command once more.

    before: makes the same state each time. after: the aliases at the end. ok: exit codes of the second. Returns how
    many writes there were.
    """
    client, model = stack.client, f"{command[2]}_model"
    for n in itertools.count(random.randint(1, KILL_EVERY), KILL_EVERY):
        before()
        was = aliases(client, model)
        done: list[str] = []
        process: list[int] = []

        def keep(
            method: str, path: str, body: bytes, n: int = n, done: list[str] = done, process: list[int] = process
        ) -> bool:
            if is_write(method, path):
                done.append(f"{method} {path}")
                if len(done) == n:
                    os.kill(process[0], signal.SIGKILL)
            return True

        with proxy(stack.url, keep) as url:
            promoter = start(url, *command)
            assert promoter.process.pid is not None
            process.append(promoter.process.pid)
            code = promoter.end()
        if code >= 0:
            assert code in ok, f"{code}\n{promoter.output}"
            return len(done)
        assert code == -signal.SIGKILL, f"at write {n} ({done}): {code}\n{promoter.output}"
        assert_sound(client, model)
        found = aliases(client, model)
        assert found.get("production") in (was.get("production"), after.get("production")), done
        end_leases(client, model)
        end_leases(client, f"{model}: trial")
        again = start(stack.url, *command)
        code = again.end()
        assert code in ok, f"after {done}: {code}\n{again.output}"
        assert aliases(client, model) == after, f"after {done}\n{again.output}"
        assert_settled(client, model)
    raise AssertionError("unreachable")


def put(client: MlflowClient, model: str, wanted: dict[str, str]) -> None:
    """Aliases and stages of versions 1 and 2 as they are wanted, without a promoter, which would take seconds."""
    if "frozen" in client.get_registered_model(model).tags:
        client.delete_registered_model_tag(model, "frozen")
    for alias in aliases(client, model).keys() - wanted.keys():
        client.delete_registered_model_alias(model, alias)
    for alias, number in wanted.items():
        client.set_registered_model_alias(model, alias, number)
    for number in ("1", "2"):
        stage = next((STAGES[alias] for alias in STAGES if wanted.get(alias) == number), None)
        if stage is not None:
            client.set_model_version_tag(model, number, "stage", stage)
        elif "stage" in tags(client, model, number):
            client.delete_model_version_tag(model, number, "stage")


@pytest.mark.parametrize(
    ("command", "before", "after", "writes", "ok"),
    [
        (
            ("promote", "--version", "2", "--stage", "Production"),
            {"production": "1", "staging": "2"},
            {"production": "2", "previous": "1"},
            15,
            (0,),
        ),
        (("auto-promote",), {"production": "1"}, {"production": "1", "staging": "2"}, 12, (0,)),
        # Once it is complete, there is nothing left to roll back to.
        (("rollback",), {"production": "2", "previous": "1"}, {"production": "1"}, 10, (0, 2)),
        (("archive", "--version", "2"), {"production": "1", "staging": "2"}, {"production": "1"}, 8, (0,)),
        (("gate", "--version", "2"), {"production": "1", "staging": "2"}, {"production": "1", "staging": "2"}, 8, (0,)),
        (("freeze", "--reason", "t"), {"production": "1"}, {"production": "1"}, 6, (0,)),
    ],
)
def test_killed_at_each_write(
    on_postgres: Stack,
    command: tuple[str, ...],
    before: dict[str, str],
    after: dict[str, str],
    writes: int,
    ok: tuple[int, ...],
) -> None:
    experiment = f"killed_{command[0].replace('-', '_')}"
    client, model = on_postgres.client, model_with(on_postgres.client, experiment, 2)
    run(on_postgres, "promote", "--experiment-name", experiment, "--version", "1", "--stage", "Production", *FORCE)
    if "2" in before.values():
        run(on_postgres, "promote", "--experiment-name", experiment, "--version", "2", "--stage", "Staging", *FORCE)
    given = (command[0], "--experiment-name", experiment, *command[1:])
    assert kill_at_each_write(on_postgres, given, lambda: put(client, model, before), after, ok) >= writes


@pytest.mark.parametrize(
    ("command", "after", "writes", "ok"),
    [
        # Its budget is spent at once: it begins, and ends inconclusive.
        (("trial", "--version", "2", "--policy"), {"production": "1", "staging": "2"}, 20, (1,)),
        (("trial", "stop", "--reason", "t"), {"production": "1", "staging": "2"}, 12, (0, 2)),
        (("trial", "promote", "--reason", "t"), {"production": "2", "previous": "1"}, 18, (0, 2)),
    ],
    ids=["begin", "stop", "promote"],
)
def test_a_trial_killed_at_each_write(
    on_postgres: Stack, command: tuple[str, ...], after: dict[str, str], writes: int, ok: tuple[int, ...], tmp_path
) -> None:
    experiment = f"killed_trial_{command[1].strip('-')}"
    client, model = on_postgres.client, model_with(on_postgres.client, experiment, 2)
    policy = tmp_path / "trial.yaml"
    policy.write_text("{look_s: 0.5, steps: [{share: 0.5, requests: 1}], budget: {days: 1.0e-9}}")
    run(on_postgres, "promote", "--experiment-name", experiment, "--version", "1", "--stage", "Production", *FORCE)
    run(on_postgres, "promote", "--experiment-name", experiment, "--version", "2", "--stage", "Staging", *FORCE)
    before = {"production": "1", "staging": "2"}
    given: tuple[str, ...] = (command[0], "--experiment-name", experiment, *command[1:])
    if given[-1] == "--policy":
        given = (*given, str(policy))
        assert kill_at_each_write(on_postgres, given, lambda: put(client, model, before), after, ok) >= writes
    else:
        policy.write_text("{look_s: 0.5}")
        begun = start(on_postgres.url, "trial", "--experiment-name", experiment, "--policy", str(policy))
        assert wait_until(lambda: "challenger" in aliases(client, model), 60, begun.process.is_alive), begun.output
        time.sleep(1)
        os.kill(begun.process.pid or 0, signal.SIGKILL)
        begun.process.join()
        end_leases(client, model)
        end_leases(client, f"{model}: trial")
        run(on_postgres, "history", "--experiment-name", experiment)
        id = client.get_registered_model(model).tags["trial"]
        client.set_terminated(id, "FINISHED")
        kept = {name: tags(client, model, "2")[name] for name in ("trial", "trial_share")}

        def on_trial() -> None:
            put(client, model, before | {"challenger": "2"})
            client.set_registered_model_tag(model, "trial", id)
            for name, value in kept.items():
                client.set_model_version_tag(model, "2", name, value)

        assert kill_at_each_write(on_postgres, given, on_trial, after, ok) >= writes
    assert not {"trial", "trial_share"} & tags(client, model, "2").keys()
    assert "trial" not in client.get_registered_model(model).tags


def tags(client: MlflowClient, model: str, number: str) -> dict[str, str]:
    return dict(client.get_model_version(model, number).tags)


def moves(client: MlflowClient, model: str) -> list[tuple[str, str]]:
    """(version, the one that it replaced) of each promotion to Production, in order."""
    experiment = client.get_experiment_by_name("promotions")
    assert experiment is not None
    found = client.search_runs(
        [experiment.experiment_id],
        f"tags.model = '{model}' and tags.outcome = 'promoted' and attributes.status = 'FINISHED'",
        order_by=["attributes.end_time ASC"],
    )
    return [(run.data.tags["version"], run.data.tags["replaces"]) for run in found]


@pytest.mark.parametrize("path", ["/runs/log-batch", "/model-versions/set-tag", "/model-versions/update", "/alias"])
def test_killed_and_then_another_command(on_postgres: Stack, path: str) -> None:
    """What the dead one has written on its version is taken back, or finished where its alias has moved."""
    client, experiment = on_postgres.client, f"then_another{path.replace('/', '_').replace('-', '_')}"
    model, name = model_with(client, experiment, 3), ("--experiment-name", experiment)
    run(on_postgres, "promote", *name, "--version", "1", "--stage", "Production", *FORCE)
    run(on_postgres, "promote", *name, "--version", "2", "--stage", "Staging", *FORCE)
    staged = tags(client, model, "2")
    kill_after(on_postgres, path, "promote", *name, "--version", "2", "--stage", "Production", *FORCE)
    run(on_postgres, "promote", *name, "--version", "3", "--stage", "Production", *FORCE)
    assert_settled(client, model)
    if path == "/alias":
        assert aliases(client, model) == {"production": "3", "previous": "2"}
        assert tags(client, model, "2")["promotion_run_id"] != staged["promotion_run_id"]
    else:
        assert aliases(client, model) == {"production": "3", "previous": "1", "staging": "2"}
        assert tags(client, model, "2") == staged
        assert staged["promotion_run_id"] in str(client.get_model_version(model, "2").description)


def test_an_archival_of_a_version_that_is_deleted_since_blocks_nobody(on_postgres: Stack) -> None:
    client = on_postgres.client
    model, name = model_with(client, "gone", 2), ("--experiment-name", "gone")
    run(on_postgres, "promote", *name, "--version", "1", "--stage", "Production", *FORCE)
    kill_after(on_postgres, "/runs/log-batch", "archive", *name, "--version", "2")
    client.delete_model_version(model, "2")
    assert "Nothing to do" in run(on_postgres, "auto-promote", *name)
    assert_settled(client, model)


def test_a_story_too_long_for_postgresql_is_cut(on_postgres: Stack) -> None:
    client = on_postgres.client
    model, name = model_with(client, "long", 1), ("--experiment-name", "long")
    client.update_model_version(model, "1", "word " * 990)
    run(on_postgres, "promote", *name, "--version", "1", "--stage", "Production", "--force", "--reason", "why " * 3000)
    assert_settled(client, model)


def kill_after(stack: Stack, path: str, *command: str) -> None:
    """kill -9 a promoter once its first request to a path is done; its lease is over too."""
    killed: list[str] = []

    def keep(method: str, called: str, body: bytes) -> bool:
        if called.endswith(path) and method != "GET" and not killed:
            killed.append(called)
            os.kill(promoter.process.pid or 0, signal.SIGKILL)
        return True

    with proxy(stack.url, keep) as url:
        promoter = start(url, *command)
        assert promoter.end() == -signal.SIGKILL, promoter.output
    end_leases(stack.client, f"{command[2]}_model")


def test_many_at_once_over_the_same_version(on_postgres: Stack) -> None:
    client = on_postgres.client
    model = model_with(client, "same", 2)
    name = ("--experiment-name", "same")
    run(on_postgres, "promote", *name, "--version", "1", "--stage", "Production", *FORCE)
    promoters = [start(on_postgres.url, "auto-promote", *name, "--stage", "Production") for _ in range(PROMOTERS)]
    codes = [promoter.end(300) for promoter in promoters]
    outputs = [promoter.output for promoter in promoters]
    assert set(codes) <= {0, 4}, list(zip(codes, outputs, strict=True))
    assert 0 in codes, outputs
    assert sum("Version 2 of same_model → Production" in output for output in outputs) == 1
    assert all("Somebody else is promoting" in output for code, output in zip(codes, outputs, strict=True) if code == 4)
    assert aliases(client, model) == {"production": "2", "previous": "1"}
    assert moves(client, model) == [("1", "nothing"), ("2", "1")]
    assert_settled(client, model)


@pytest.mark.parametrize("wait_s", ["0", "600"])
def test_many_at_once_over_different_versions(on_postgres: Stack, wait_s: str) -> None:
    """Each promotion replaces what the one before it put there: they happened one after another, or not at all."""
    client = on_postgres.client
    experiment = f"different_{wait_s}"
    model = model_with(client, experiment, PROMOTERS)
    name = ("--experiment-name", experiment, "--wait", wait_s)
    promoters = [
        start(on_postgres.url, "promote", *name, "--version", str(number), "--stage", "Production", *FORCE)
        for number in range(1, PROMOTERS + 1)
    ]
    codes = [promoter.end(600) for promoter in promoters]
    outputs = [promoter.output for promoter in promoters]
    assert set(codes) <= ({0, 4} if wait_s == "0" else {0}), list(zip(codes, outputs, strict=True))
    done = moves(client, model)
    assert len(done) == codes.count(0) > 0
    assert {version for version, _ in done} == {str(n) for n, code in enumerate(codes, 1) if code == 0}
    assert [replaced for _, replaced in done] == ["nothing", *(version for version, _ in done[:-1])]
    assert aliases(client, model)["production"] == done[-1][0]
    assert_settled(client, model)


def test_a_dead_promoter_is_named_and_does_not_block_for_ever(on_postgres: Stack) -> None:
    client = on_postgres.client
    model = model_with(client, "dead", 2)
    name = ("--experiment-name", "dead")
    with proxy(on_postgres.url, lambda method, path, body: not stop(method, path)) as url:
        first = start(
            url, "promote", *name, "--version", "1", "--stage", "Production", "--by", "ada", *FORCE, lease_s=12
        )
        stopped: list[int] = []

        def stop(method: str, path: str) -> bool:
            if path.endswith("/model-versions/set-tag") and not stopped:
                stopped.append(1)
                os.kill(first.process.pid or 0, signal.SIGKILL)
            return False

        assert first.end() == -signal.SIGKILL
    busy = run(on_postgres, "promote", *name, "--version", "2", "--stage", "Production", *FORCE, expected=4)
    assert "Somebody else is promoting dead_model: ada@" in busy
    assert "the lease ends in" in busy
    assert "production" not in aliases(client, model)
    run(on_postgres, "promote", *name, "--version", "2", "--stage", "Production", "--wait", "60", *FORCE)
    assert aliases(client, model) == {"production": "2"}
    assert "stage" not in tags(client, model, "1")  # taken back
    assert_settled(client, model)


@pytest.mark.parametrize("meanwhile", [True, False])
def test_a_promoter_that_slept_longer_than_its_lease_moves_nothing(on_postgres: Stack, meanwhile: bool) -> None:
    """As on a laptop that was shut in the middle: another has promoted since, and the sleeper must not undo that."""
    client = on_postgres.client
    experiment = f"slept_{meanwhile}"
    model = model_with(client, experiment, 3)
    name = ("--experiment-name", experiment)
    run(on_postgres, "promote", *name, "--version", "1", "--stage", "Production", *FORCE)
    asleep: list[bool] = []

    def keep(method: str, path: str, body: bytes) -> bool:
        if path.endswith("/model-versions/set-tag") and not asleep:
            os.kill(sleeper.process.pid or 0, signal.SIGSTOP)
            asleep.append(True)
        return True

    with proxy(on_postgres.url, keep) as url:
        sleeper = start(url, "promote", *name, "--version", "2", "--stage", "Production", *FORCE, lease_s=LEASE_S)
        assert wait_until(lambda: bool(asleep), 60, lambda: True)
        if meanwhile:
            run(on_postgres, "promote", *name, "--version", "3", "--stage", "Production", "--wait", "60", *FORCE)
        else:
            time.sleep(LEASE_S)
        os.kill(sleeper.process.pid or 0, signal.SIGCONT)
        assert sleeper.end() == 4, sleeper.output
    assert "lease" in sleeper.output
    if not meanwhile:  # nobody has taken its place; it does not take it again by itself either
        assert aliases(client, model) == {"production": "1"}
        end_leases(client, model)
        run(on_postgres, "promote", *name, "--version", "3", "--stage", "Production", *FORCE)
    assert aliases(client, model) == {"production": "3", "previous": "1"}
    assert_settled(client, model)


def test_a_lost_reply_makes_no_second_claim(on_postgres: Stack) -> None:
    client = on_postgres.client
    model = model_with(client, "forgotten", 1)
    lost: list[str] = []

    def keep(method: str, path: str, body: bytes) -> bool:
        if path.endswith("/runs/create") and not lost:
            lost.append(path)
            return False
        return True

    with proxy(on_postgres.url, keep) as url:
        name = ("--experiment-name", "forgotten")
        promoter = start(url, "promote", *name, "--version", "1", "--stage", "Production", *FORCE)
        assert promoter.end() == 0, promoter.output
    assert lost
    assert_settled(client, model)


def test_a_server_that_fails_half_way_is_exit_code_3_and_the_same_command_goes_on(on_postgres: Stack) -> None:
    client = on_postgres.client
    model = model_with(client, "half_way", 2)
    name = ("--experiment-name", "half_way")
    run(on_postgres, "promote", *name, "--version", "1", "--stage", "Production", *FORCE)
    command = ("promote", *name, "--version", "2", "--stage", "Production")
    broken: list[bool] = []

    def keep(method: str, path: str, body: bytes) -> bool:
        if path.endswith("/model-versions/set-tag"):
            broken.append(True)
        return not broken  # from here on every reply is lost

    with proxy(on_postgres.url, keep) as url:
        promoter = start(url, *command, lease_s=LEASE_S)
        assert promoter.end() == 3, promoter.output
    assert "did not do its work" in promoter.output
    assert "Traceback" not in promoter.output
    assert aliases(client, model) == {"production": "1"}
    run(on_postgres, *command, "--wait", "30")
    assert aliases(client, model) == {"production": "2", "previous": "1"}
    assert_settled(client, model)


def test_a_rollback_takes_seconds(on_postgres: Stack) -> None:
    model = model_with(on_postgres.client, "seconds", 2)
    name = ("--experiment-name", "seconds")
    for number in ("1", "2"):
        run(on_postgres, "promote", *name, "--version", number, "--stage", "Production", *FORCE)
    began = time.monotonic()
    output = run(on_postgres, "rollback", *name, "--reason", "it writes nonsense")
    print(f"rolled back in {time.monotonic() - began:.1f} s")
    assert "Version 1 of seconds_model → Production instead of version 2: rolled back. it writes nonsense." in output
    assert aliases(on_postgres.client, model) == {"production": "1"}
    assert_settled(on_postgres.client, model)
