"""Runs in MLflow: connecting, things made once, a run's lifecycle with the right end.

What is logged by step while a model trains goes through recorder.py.
"""

import atexit
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking.context import registry as context_registry

from contract import names, tracking
from contract.errors import InputError
from contract.redaction import redact
from contract.tracking import create_once, why_unreachable, without_retries
from trainer.config import Config, flatten
from trainer.training.liveness import alive


class Terminated(KeyboardInterrupt):
    """SIGTERM, treated as Ctrl-C is: the run ends as KILLED."""


def say(line: str) -> None:
    """Print a line of progress at once, also where the output is piped."""
    print(line, flush=True)


def page_of(config: Config, run: MlflowRun) -> str:
    """Where a person opens a run in the MLflow UI."""
    address = (config.tracking.public_url or config.tracking.uri).rstrip("/")
    return f"{address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def connect(uri: str) -> MlflowClient:
    """A client of the tracking server. Raises InputError for what is not a URL, Unreachable where no server answers."""
    client = tracking.connect(uri, "tracking.uri", "tracking.uri=…")
    # At exit MLflow ends a run that is still active as FINISHED. `run` ends ours, as they deserve.
    atexit.unregister(mlflow.tracking.fluent._safe_end_run)
    return client


def check_experiment(client: MlflowClient, name: str) -> None:
    """Raise InputError for an experiment that has been deleted: nothing can be logged to it."""
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == LifecycleStage.DELETED:
        raise InputError(
            f"tracking.experiment_name is '{name}', which has been deleted. Name another, or restore it: "
            f"mlflow experiments restore --experiment-id {found.experiment_id}"
        )


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
def stop_file(path: Path) -> Iterator[list[int]]:
    """Answer Ctrl-C or SIGTERM with a file at `path`, by which training knows to end; a second one interrupts.

    Gives the signals that came.
    """
    came: list[int] = []

    def ask(number: int, frame: object) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt
        path.touch()
        print("\nSaving a checkpoint; once more to end at once.", file=sys.stderr, flush=True)

    with _handling(ask, signal.SIGINT, signal.SIGTERM):
        yield came


@contextmanager
def run(
    client: MlflowClient,
    experiment_id: str,
    name: str | None,
    tags: dict[str, str],
    root: Path,
    resume: str | None = None,
) -> Iterator[MlflowRun]:
    """An MLflow run that ends as FINISHED, FAILED or KILLED, with the reason in the tag `ended_because`.

    It is a new one, or goes on with the one whose id is `resume`. A run that was ended inside (with its registration,
    say) stays as it is. In `root`, the folder of checkpoints, others see that it has a trainer.
    """
    run_id = resume or _create_run(client, experiment_id, name, tags)
    if resume:
        with suppress(MlflowException):  # a run that was left RUNNING has no such tag
            client.delete_tag(run_id, "ended_because")
    began = False
    try:
        with alive(client, run_id, root):
            active = mlflow.start_run(run_id=run_id)
            began = True
            with _ending(client, run_id):
                yield active
    finally:
        if not began:
            with suppress(MlflowException):
                client.set_terminated(run_id, "FAILED")


def _create_run(client: MlflowClient, experiment_id: str, name: str | None, tags: dict[str, str]) -> str:
    key = uuid.uuid4().hex
    tags = {**context_registry.resolve_tags(), **tags, names.IDEMPOTENCY_KEY: key}

    def look() -> MlflowRun | None:
        return next(iter(client.search_runs([experiment_id], f"tags.{names.IDEMPOTENCY_KEY} = '{key}'")), None)

    return str(create_once(look, lambda: client.create_run(experiment_id, tags=tags, run_name=name)).info.run_id)


@contextmanager
def _ending(client: MlflowClient, run_id: str) -> Iterator[None]:
    """End the active run with the status that it deserves."""
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        reason = (str(error) or "Ctrl-C") if interrupted else f"{type(error).__name__}: {error}"
        with deferred_interrupts(), without_retries(), suppress(Exception):  # the error that brought us here goes out
            if away := why_unreachable(client.tracking_uri):
                say(f"The tracking server is away ({away}): the run stays RUNNING until the next trainer sees it.")
            elif mlflow.active_run() is not None:
                client.set_tag(run_id, "ended_because", redact(reason)[:5000])
                mlflow.end_run("KILLED" if interrupted else "FAILED")
        raise
    if mlflow.active_run() is not None:
        mlflow.end_run("FINISHED")


def log_config(config: Config) -> None:
    """The whole resolved configuration as params of the active run, without credentials."""
    mlflow.log_params({key: redact(str(value)) for key, value in flatten(config).items()})
