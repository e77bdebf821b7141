"""Runs in MLflow: connecting, things made once, a run's lifecycle with the right end.

What is logged by step while a model trains goes through recorder.py.
"""

import atexit
import logging
import os
import re
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import click
import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking.context import registry as context_registry

from trainer.config import Config, flatten
from trainer.errors import InputError
from trainer.liveness import alive
from trainer.spool import FINAL, reachable

T = TypeVar("T")
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
IDEMPOTENCY_KEY = "idempotency_key"  # tag by which `once` finds what it made, of a run or a version

# Tag on the base model's run and version, on a fine-tuned one's, and on a run that evaluates a version made elsewhere.
ROLE = "role"
BASE, CANDIDATE, EVALUATION = "base", "candidate", "evaluation"


class Terminated(KeyboardInterrupt):
    """SIGTERM, treated as Ctrl-C is: the run ends as KILLED."""


def say(line: str) -> None:
    """Print a line of progress at once, also where the output is piped."""
    print(line, flush=True)


def page_of(config: Config, run: MlflowRun) -> str:
    """Where a person opens a run in the MLflow UI."""
    address = (config.tracking.public_url or config.tracking.uri).rstrip("/")
    return f"{address}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


class ServerAway(click.ClickException):
    """The tracking server did not come back in time."""

    exit_code = 1


def connect(uri: str) -> MlflowClient:
    """A client of the tracking server. Raises InputError, within seconds, where none answers."""
    if not re.match(r"(https?|file|sqlite|postgresql\+psycopg2)://?", uri):
        raise InputError(f"tracking.uri is '{uri}'. Expected a URL such as http://127.0.0.1:5000.")
    if reason := reachable(uri):
        raise InputError(
            f"No tracking server at {uri} ({reason}). Start it with `make start-mlflow`, or name another with "
            "tracking.uri=… or MLFLOW_TRACKING_URI."
        )
    mlflow.set_tracking_uri(uri)
    # At exit MLflow ends a run that is still active as FINISHED. `run` ends ours, as they deserve.
    atexit.unregister(mlflow.tracking.fluent._safe_end_run)
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
def _no_retries() -> Iterator[None]:
    """Have MLflow's client try each request once."""
    before = os.environ.get(RETRIES)
    os.environ[RETRIES] = "0"
    try:
        yield
    finally:
        os.environ.pop(RETRIES)
        if before is not None:
            os.environ[RETRIES] = before


def once(look: Callable[[], T | None], create: Callable[[], T], tries: int = 6) -> T:
    """Create what must not be there twice. After each failure it looks whether only the reply was lost.

    MLflow's own retries would send the request again without looking, so they are off while it creates.
    """
    found = look()
    for attempt in range(tries):
        if found is not None:
            return found
        try:
            with _no_retries():
                return create()
        except Exception as error:
            final = isinstance(error, MlflowException) and error.error_code in FINAL
            if final or attempt == tries - 1:
                raise
        time.sleep(2**attempt / 4)
        found = look()
    raise AssertionError("unreachable")


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
    with alive(client, run_id, root):
        active = mlflow.start_run(run_id=run_id)
        with _ending(client, run_id):
            yield active


def _create_run(client: MlflowClient, experiment_id: str, name: str | None, tags: dict[str, str]) -> str:
    key = uuid.uuid4().hex
    tags = {**context_registry.resolve_tags(), **tags, IDEMPOTENCY_KEY: key}

    def look() -> MlflowRun | None:
        return next(iter(client.search_runs([experiment_id], f"tags.{IDEMPOTENCY_KEY} = '{key}'")), None)

    return str(once(look, lambda: client.create_run(experiment_id, tags=tags, run_name=name)).info.run_id)


@contextmanager
def _ending(client: MlflowClient, run_id: str) -> Iterator[None]:
    """End the active run with the status that it deserves."""
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        reason = (str(error) or "Ctrl-C") if interrupted else f"{type(error).__name__}: {error}"
        with deferred_interrupts(), _no_retries(), suppress(Exception):  # the error that brought us here goes out
            if away := reachable(client.tracking_uri):
                say(f"The tracking server is away ({away}): the run stays RUNNING until the next trainer sees it.")
            elif mlflow.active_run() is not None:
                client.set_tag(run_id, "ended_because", reason[:5000])
                mlflow.end_run("KILLED" if interrupted else "FAILED")
        raise
    if mlflow.active_run() is not None:
        mlflow.end_run("FINISHED")


def log_config(config: Config) -> None:
    """The whole resolved configuration as params of the active run."""
    mlflow.log_params({key: str(value) for key, value in flatten(config).items()})
