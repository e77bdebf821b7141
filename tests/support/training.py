"""Tiny training jobs as processes, and what came of them."""

import hashlib
import subprocess
import threading
from pathlib import Path

import pytest
from mlflow.entities import Run

from tests.support.doses import STEPS
from tests.support.tracking import Stack


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


def wait_for_line(process: "subprocess.Popen[str]", text: str) -> str:
    """Read a process's output up to a line with a text; fails where it ends without one."""
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    seen = ""
    assert process.stdout is not None
    for line in process.stdout:
        seen += line
        if text in line:
            watchdog.cancel()
            return seen
    pytest.fail(f"ended without {text!r}:\n{seen}")
