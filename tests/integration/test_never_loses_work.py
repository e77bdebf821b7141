"""Killed, stopped, cut off from its server: the same command goes on, and what comes out is the same."""

import hashlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from mlflow.entities import Run

from services.tracking.readiness import wait_until
from tests.integration.conftest import Stack
from tests.integration.test_when_things_go_wrong import wait_for_line

pytestmark = pytest.mark.integration
STEPS = 60


def settings(tiny, experiment: str, *more: str) -> list[str]:
    return [
        *(f"model.name={tiny.folder}", "data.source=package:asyncio", "data.max_eval_examples=2"),
        *("trainer.max_length=400", "eval.max_new_tokens=2", f"tracking.experiment_name={experiment}"),
        *("trainer.batch_size=4", f"trainer.max_steps={STEPS}", "trainer.logging_steps=3", "checkpoint.save_steps=4"),
        *("tracking.system_metrics_interval_s=0.5", *more),
    ]


def finish(stack: Stack, *arguments: str, **env: str) -> str:
    job = stack.popen("trainer", *arguments, **env)
    output, _ = job.communicate(timeout=300)
    assert job.returncode == 0, output
    return output


def candidate(stack: Stack, experiment: str) -> Run:
    """The one run that fine-tuned."""
    found = stack.client.get_experiment_by_name(experiment)
    assert found is not None
    [run] = stack.client.search_runs([found.experiment_id], "tags.role = 'candidate'")
    return run


def losses(stack: Stack, run: Run, key: str = "train/loss") -> list[tuple[int, float]]:
    """(step, value), in the order in which they were logged; MLflow gives equal times in any order."""
    history = stack.client.get_metric_history(run.info.run_id, key)
    return [(item.step, item.value) for item in sorted(history, key=lambda item: (item.timestamp, item.step))]


def weights(stack: Stack, run: Run, tmp_path: Path) -> str:
    """Digest of the adapter that a run logged."""
    path = stack.client.download_artifacts(run.info.run_id, "adapter/adapter_model.safetensors", str(tmp_path))
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


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
    finish(stack, *settings(tiny, "other_seed", "seed=43"))
    assert losses(stack, candidate(stack, "other_seed")) != uninterrupted[0]


def test_killed_ten_times_at_random_steps_it_ends_as_if_nothing_had_happened(
    stack: Stack, tiny, uninterrupted, tmp_path
) -> None:
    chance = random.Random(time.time_ns())  # another set of moments each time; the output shows which
    command = settings(tiny, "killed")
    killed_at: list[int] = []
    for _ in range(10):
        job = stack.popen("trainer", *command)
        target = min(STEPS - 2, max([0, *killed_at]) + chance.randint(1, 8))
        assert wait_until(lambda: steps_in_spool(stack) >= target, 90, lambda: job.poll() is None), job.communicate()  # noqa: B023
        time.sleep(chance.uniform(0, 0.2))  # any moment between two steps, in a checkpoint, in a request
        job.kill()
        output, _ = job.communicate(timeout=30)
        killed_at.append(steps_in_spool(stack))
        print(f"killed at step {killed_at[-1]}")
        if killed_at[-1] >= STEPS:
            break
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
