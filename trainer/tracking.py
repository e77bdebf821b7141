"""Runs in MLflow: connecting, a run's lifecycle with the right end, and metrics by step.

Our own callback instead of transformers': that one ends a run as FINISHED after an exception and leaves
it RUNNING after SIGTERM.
"""

import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.entities import Run as MlflowRun
from transformers import TrainerCallback

from trainer.config import Config, flatten
from trainer.errors import InputError

# Tag on the base model's run and version, on a fine-tuned one's, and on a run that evaluates a version made elsewhere.
ROLE = "role"
BASE, CANDIDATE, EVALUATION = "base", "candidate", "evaluation"


class Terminated(KeyboardInterrupt):
    """SIGTERM, treated as Ctrl-C is: the run ends as KILLED."""


def connect(uri: str) -> MlflowClient:
    """A client of the tracking server. Raises InputError, within seconds, where none answers."""
    if not re.match(r"(https?|file|sqlite|postgresql\+psycopg2)://?", uri):
        raise InputError(f"tracking.uri is '{uri}'. Expected a URL such as http://127.0.0.1:5000.")
    if uri.startswith("http"):
        try:
            answer = requests.get(f"{uri.rstrip('/')}/health", timeout=5)
            reason = "" if answer.ok else f"it answers {answer.status_code} to /health"
        except requests.RequestException as error:
            reason = type(error).__name__
        if reason:
            raise InputError(
                f"No tracking server at {uri} ({reason}). Start it with `make start-mlflow`, or name another with "
                "tracking.uri=… or MLFLOW_TRACKING_URI."
            )
    mlflow.set_tracking_uri(uri)
    # What MLflow says beside the point: links after each run, progress bars of copies, missing Hub pages.
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    return MlflowClient()


@contextmanager
def terminated_as_interrupt() -> Iterator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise Terminated("SIGTERM")

    with _handling(interrupt, signal.SIGTERM):
        yield


@contextmanager
def deferred_interrupts() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back while something happens that must be whole; they take effect afterwards."""
    pending: list[int] = []
    with _handling(lambda number, frame: pending.append(number), signal.SIGINT, signal.SIGTERM):
        yield
    for number in pending[:1]:
        signal.raise_signal(number)


@contextmanager
def _handling(handler: Callable[[int, Any], Any], *numbers: signal.Signals) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


@contextmanager
def run(client: MlflowClient, name: str | None, tags: dict[str, str]) -> Iterator[MlflowRun]:
    """An MLflow run that ends as FINISHED, FAILED or KILLED, with the reason in the tag `ended_because`.

    A run that was ended inside (with its registration, say) stays as it is.
    """
    active = mlflow.start_run(run_name=name, tags=tags)
    run_id = active.info.run_id
    try:
        yield active
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        reason = (str(error) or "Ctrl-C") if interrupted else f"{type(error).__name__}: {error}"
        with deferred_interrupts():
            if mlflow.active_run() is not None:
                client.set_tag(run_id, "ended_because", reason[:5000])
                mlflow.end_run("KILLED" if interrupted else "FAILED")
        raise
    if mlflow.active_run() is not None:
        mlflow.end_run("FINISHED")


def log_config(config: Config) -> None:
    """The whole resolved configuration as params of the active run."""
    mlflow.log_params({key: str(value) for key, value in flatten(config).items()})


class MlflowCallback(TrainerCallback):  # type: ignore[misc]
    """Logs loss, learning rate, gradient norm, tokens and tokens/s by step to the active run.

    Without a terminal it prints a plain line every so many seconds instead of a progress bar.
    """

    def __init__(self, client: MlflowClient, run_id: str, line_every_s: float = 5.0) -> None:
        self.client = client
        self.run_id = run_id
        self.line_every_s = line_every_s
        self.losses: list[tuple[int, float]] = []  # (step, training loss)
        self.plain = not sys.stderr.isatty()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = self.last_line = self.last_time = time.monotonic()
        self.last_tokens = 0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        now = time.monotonic()
        tokens = int(state.num_input_tokens_seen)
        values = {
            "train/loss": float(logs["loss"]),
            "train/learning_rate": float(logs["learning_rate"]),
            "train/grad_norm": float(logs.get("grad_norm", 0.0)),
            "train/epoch": float(state.epoch or 0.0),
            "train/tokens": float(tokens),
            "train/tokens_per_second": (tokens - self.last_tokens) / max(now - self.last_time, 1e-9),
        }
        self.last_tokens, self.last_time = tokens, now
        self.losses.append((state.global_step, values["train/loss"]))
        at = int(time.time() * 1000)
        metrics = [Metric(key, value, at, state.global_step) for key, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)
        if self.plain and now - self.last_line >= self.line_every_s:
            self.last_line = now
            self._print_line(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.plain and self.losses:
            self._print_line(state)

    def _print_line(self, state: Any) -> None:
        seconds = time.monotonic() - self.started
        print(
            f"  step {state.global_step}/{state.max_steps}  loss {self.losses[-1][1]:.3f}  "
            f"{state.num_input_tokens_seen / seconds:.0f} tokens/s  {seconds:.0f} s",
            flush=True,
        )
