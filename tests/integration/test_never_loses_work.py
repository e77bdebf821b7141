"""Killed, stopped, cut off from its server: the same command goes on, and what comes out is the same."""

import json
import random
import signal
import time

import pytest

from services.tracking.readiness import wait_until
from tests.support.doses import FULL, KILLS, SIGNALS, STEPS, TRAINING_OUTAGE_S
from tests.support.tracking import Stack, make_stack, server
from tests.support.training import candidate, finish, losses, settings, wait_for_line, weights

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("no_unfinished_jobs")]


@pytest.fixture(scope="module")
def uninterrupted(stack: Stack, tiny, tmp_path_factory) -> tuple[list[tuple[int, float]], str]:
    """(losses, weights) of a run that nothing disturbed."""
    finish(stack, *settings(tiny, "uninterrupted"))
    run = candidate(stack, "uninterrupted")
    return losses(stack, run), weights(stack, run, tmp_path_factory.mktemp("adapter"))


def steps_in_spool(stack: Stack) -> int:
    """The last step that the one unfinished job has written down."""
    for path in stack.home.glob("checkpoints/jobs/*/spool/metrics.jsonl"):
        lines = path.read_bytes().splitlines()
        return max((item[3] for line in lines for item in json.loads(line) if item[0] == "train/loss"), default=0)
    return 0


def test_a_seed_reproduces_a_run_bit_for_bit(stack: Stack, tiny, uninterrupted, tmp_path) -> None:
    finish(stack, *settings(tiny, "again"))
    run = candidate(stack, "again")
    assert losses(stack, run) == uninterrupted[0]
    assert weights(stack, run, tmp_path) == uninterrupted[1]
    if FULL:
        finish(stack, *settings(tiny, "other_seed", "seed=43"))
        assert losses(stack, candidate(stack, "other_seed")) != uninterrupted[0]


def test_killed_at_random_steps_it_ends_as_if_nothing_had_happened(stack: Stack, tiny, uninterrupted, tmp_path) -> None:
    chance = random.Random(time.time_ns())  # another set of moments each time; the output shows which
    command = settings(tiny, "killed")
    killed_at: list[int] = []
    for _ in range(KILLS):
        job = stack.popen("trainer", *command)
        target = max([0, *killed_at]) + chance.randint(1, 4)
        assert wait_until(lambda: steps_in_spool(stack) >= target, 180, lambda: job.poll() is None), job.communicate()  # noqa: B023
        time.sleep(chance.uniform(0, 0.2))  # any moment between two steps, in a checkpoint, in a request
        job.kill()
        output, _ = job.communicate(timeout=30)
        killed_at.append(steps_in_spool(stack))
        print(f"killed at step {killed_at[-1]}")
    assert killed_at[-1] < STEPS
    output = finish(stack, *command)
    assert "marked KILLED" in output
    assert "Going on" in output
    run = candidate(stack, "killed")
    assert run.info.status == "FINISHED"
    assert int(run.data.tags["resumes"]) == len(killed_at)
    assert losses(stack, run) == uninterrupted[0]  # no gap, no step twice, in order
    assert [step for step, _ in losses(stack, run)] == list(range(1, STEPS + 1))
    system = [step for step, _ in losses(stack, run, "system/cpu_utilization_percentage")]
    assert system == list(range(len(system)))
    assert weights(stack, run, tmp_path) == uninterrupted[1]
    for name in ("killed_model", "killed_pytorch_model"):
        versions = stack.client.search_model_versions(f"name = '{name}'")
        assert sorted(version.tags["role"] for version in versions) == ["base", "candidate"]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_ctrl_c_and_sigterm_save_first(stack: Stack, tiny, uninterrupted, tmp_path, number: int, code: int) -> None:
    command = settings(tiny, f"stopped_{number}", "checkpoint.save_steps=1000")
    job = stack.popen("trainer", *command)
    assert wait_until(lambda: steps_in_spool(stack) >= 6, 90, lambda: job.poll() is None), job.communicate()
    job.send_signal(number)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == code
    assert "Saving a checkpoint" in output
    stopped = candidate(stack, f"stopped_{number}")
    assert stopped.info.status == "KILLED"
    last = losses(stack, stopped)[-1][0]
    assert f"Going on from step {last}\n" in finish(stack, *command)
    run = candidate(stack, f"stopped_{number}")
    assert "ended_because" not in run.data.tags
    assert losses(stack, run) == uninterrupted[0]
    assert weights(stack, run, tmp_path) == uninterrupted[1]


def test_another_machine_goes_on_from_the_copy_in_the_artifact_store(
    stack: Stack, tiny, uninterrupted, tmp_path
) -> None:
    command = settings(tiny, "moved", "checkpoint.to_tracking=true")
    job = stack.popen("trainer", *command, CHECKPOINTS_DIR=str(tmp_path / "here"))
    wait_for_line(job, "Fine-tuning")

    def stored() -> bool:
        path = stack.home / "artifacts"
        return any(path.glob("**/checkpoints/checkpoint-*/complete.json"))

    assert wait_until(stored, 90, lambda: job.poll() is None), job.communicate()
    job.terminate()
    job.communicate(timeout=60)
    output = finish(stack, *command, CHECKPOINTS_DIR=str(tmp_path / "there"))
    assert "Fetching checkpoint" in output
    assert "Going on from step" in output
    run = candidate(stack, "moved")
    assert losses(stack, run) == uninterrupted[0]
    assert weights(stack, run, tmp_path) == uninterrupted[1]
    assert "checkpoints" not in [item.path for item in stack.client.list_artifacts(run.info.run_id)]
    assert not list((tmp_path / "there" / "jobs").glob("*/checkpoints"))  # nothing takes up room when all is done


def test_the_same_job_twice_at_once_is_refused_and_a_new_run_is_made_where_wanted(stack: Stack, tiny) -> None:
    command = settings(tiny, "twice", "trainer.max_steps=100000")
    job = stack.popen("trainer", *command)
    try:
        wait_for_line(job, "  step ")
        second = stack.popen("trainer", *command)
        output, _ = second.communicate(timeout=60)
        assert second.returncode == 2
        assert "This job is being trained already" in output
        elsewhere = stack.popen("trainer", *command, CHECKPOINTS_DIR=str(stack.home / "elsewhere"))
        output, _ = elsewhere.communicate(timeout=60)
        assert elsewhere.returncode == 2
        assert "is this very job, and a trainer on" in output
    finally:
        job.kill()
        job.communicate(timeout=30)
    short = settings(tiny, "twice", "trainer.max_steps=3")  # another job
    output = finish(stack, *short)
    assert "was left RUNNING by a trainer that died: marked KILLED" in output
    finish(stack, *short)  # the earlier one is finished: nothing to go on with
    found = stack.client.get_experiment_by_name("twice")
    assert found is not None
    runs = stack.client.search_runs([found.experiment_id], "tags.role = 'candidate'")
    assert sorted(run.info.status for run in runs) == ["FINISHED", "FINISHED", "KILLED"]
    assert any("died" in run.data.tags.get("ended_because", "") for run in runs)


def test_training_goes_on_without_the_tracking_server(tiny, tmp_path_factory) -> None:
    stack = make_stack(tmp_path_factory.mktemp("outage"))
    command = settings(tiny, "outage", "trainer.max_steps=100000")
    with server(stack):
        # One retry: a request on its way as the server ends would else be MLflow's to repeat for longer than this.
        job = stack.popen("trainer", *command, MLFLOW_HTTP_REQUEST_MAX_RETRIES="1")
        assert wait_until(lambda: steps_in_spool(stack) >= 6, 90, lambda: job.poll() is None), job.communicate()
    before = steps_in_spool(stack)
    time.sleep(TRAINING_OUTAGE_S)  # this is what is tested: so long without it
    after = steps_in_spool(stack)
    assert after > before + 5
    assert job.poll() is None
    with server(stack):
        run = candidate(stack, "outage")
        arrived = lambda: (losses(stack, run) or [(0, 0.0)])[-1][0] >= after  # noqa: E731
        assert wait_until(arrived, 120, lambda: job.poll() is None), job.communicate()
        job.send_signal(signal.SIGINT)
        output, _ = job.communicate(timeout=120)
        assert "No metric gets through to the tracking server" in output
        assert "The tracking server is back after" in output
        seen = [step for step, _ in losses(stack, run)]
        assert seen == list(range(1, len(seen) + 1))  # once each, in order
        assert len(seen) >= after
        assert stack.client.get_run(run.info.run_id).info.status == "KILLED"


def test_a_server_that_is_away_at_the_end_is_waited_for(tiny, tmp_path_factory) -> None:
    stack = make_stack(tmp_path_factory.mktemp("late"))
    command = settings(tiny, "late")
    with server(stack):
        job = stack.popen("trainer", *command, "tracking.patience_s=2")
        assert wait_until(lambda: steps_in_spool(stack) >= 3, 90, lambda: job.poll() is None), job.communicate()
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 3
    assert "did not come back within 2 s" in output
    with server(stack):
        output = finish(stack, *command)
        assert candidate(stack, "late").info.status == "FINISHED"
        assert [step for step, _ in losses(stack, candidate(stack, "late"))] == list(range(1, STEPS + 1))


def test_ctrl_c_without_the_tracking_server_saves_and_ends(tiny, tmp_path_factory, uninterrupted) -> None:
    stack = make_stack(tmp_path_factory.mktemp("away"))
    command = settings(tiny, "away")
    with server(stack):
        job = stack.popen("trainer", *command)
        assert wait_until(lambda: steps_in_spool(stack) >= 6, 90, lambda: job.poll() is None), job.communicate()
    job.send_signal(signal.SIGINT)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 130, output
    assert "The tracking server is away" in output
    with server(stack):
        assert "Going on from step" in finish(stack, *command)
        assert losses(stack, candidate(stack, "away")) == uninterrupted[0]
