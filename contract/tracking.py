"""The tracking server: connecting to it, and creating what must not be there twice."""

import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import click

from contract.errors import InputError, RatchetError, Unreachable, shortened
from contract.redaction import redact

if TYPE_CHECKING:
    import pandas as pd
    from mlflow import MlflowClient

T = TypeVar("T")
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
# MLflow's error codes of what no second try will change: what is asked for is gone, or the server will not have it.
FINAL = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "PERMISSION_DENIED")


def connect(uri: str, setting: str, how_else: str) -> "MlflowClient":
    """A client of the tracking server, which becomes MLflow's own in this process too.

    `setting`: where the URI was given, for messages; `how_else`: how to name another one. Raises InputError for what is
    not a URL, and Unreachable, within seconds, where no server answers.
    """
    check_url(uri, setting)
    if reason := why_unreachable(uri):
        raise Unreachable(
            f"No tracking server at {redact(uri)} ({reason}). Start it with `make start-mlflow`, or name another with "
            f"{how_else} or MLFLOW_TRACKING_URI."
        )
    import mlflow

    mlflow.set_tracking_uri(uri)
    # What MLflow says beside the point: links after each run, progress bars of copies, missing Hub pages.
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    client = mlflow.MlflowClient()
    if uri.startswith("http"):
        check_login(client, uri)
        say_when_waiting()
    return client


def check_url(uri: str, setting: str) -> None:
    """Raise InputError for what is no URL that MLflow's client takes. `setting`: where it was given."""
    try:
        parts = urlsplit(uri)
        parts.port  # noqa: B018 (raises)
        known = re.match(r"(https?://[^/]|(file|sqlite|postgresql\+psycopg2)://?)", uri)
    except ValueError:
        known = None
    if not known:
        raise InputError(f"{setting} is '{redact(uri)}'. Expected a URL such as http://127.0.0.1:5000.")
    if uri.startswith("sqlite"):
        check_sqlite(uri, setting)


def check_sqlite(uri: str, setting: str) -> None:
    """Raise InputError for a SQLite file that cannot be made: MLflow would try for minutes."""
    folder = Path(re.sub(r"^sqlite:/{0,3}", "", uri).partition("?")[0]).absolute().parent
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"{setting} is '{uri}', a file in '{folder}', where nothing can be written.") from error


def check_login(client: "MlflowClient", uri: str) -> None:
    """Raise InputError if the server is not MLflow's, or refuses this user."""
    from mlflow.exceptions import MlflowException

    try:
        with without_retries():
            client.search_experiments(max_results=1)
    except MlflowException as error:
        status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
        said = str(error.message)
        if status == 401 or "error code 401" in said:
            raise InputError(
                f"{redact(uri)} asks for a login, or does not know this one. Expected MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or both in ~/.mlflow/credentials."
            ) from error
        if error.error_code in ("ENDPOINT_NOT_FOUND", "RESOURCE_DOES_NOT_EXIST") or "error code 404" in said:
            raise InputError(
                f"{redact(uri)} is no MLflow tracking server: {shortened(said, 200)} Expected the URL of one, such as "
                "http://127.0.0.1:5000."
            ) from error
        # What else is wrong, whoever asks for more will be told.


def why_unreachable(uri: str) -> str:
    """Why the tracking server does not answer, in words; empty where it does, or where the URI names no server."""
    import requests

    if not uri.startswith("http"):
        return ""
    try:
        answer = requests.get(f"{uri.rstrip('/')}/health", timeout=5)
    except requests.RequestException as error:
        return type(error).__name__
    return "" if answer.ok else f"it answers {answer.status_code} to /health"


def as_ours(error: Exception, left: str) -> RatchetError | None:
    """An error of MLflow's, or of the way to it, as one of ours; None for any other.

    `left`: what has become of the work, for the message. MLflow's own INVALID_PARAMETER_VALUE, which its client and our
    PyFunc raise before anything is sent, is bad input; all else is trouble with the tracking server.
    """
    from mlflow.exceptions import MlflowException, RestException
    from requests import RequestException

    if not isinstance(error, (MlflowException, RequestException)):
        return None
    why = str(getattr(error, "message", None) or error)
    if getattr(error, "error_code", "") == "INVALID_PARAMETER_VALUE" and not isinstance(error, RestException):
        return InputError(why)
    return Unreachable(f"The tracking server did not do its work: {why.rstrip('.')}. {left}")


class _Waiting(logging.Handler):
    """Says, every ten seconds at most, that a request is sent again: MLflow's client waits for minutes in silence."""

    EVERY_S = 10.0

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self._said = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        retry = record.args[-1] if isinstance(record.args, tuple) and record.args else None
        history = getattr(retry, "history", ())
        if not history or time.monotonic() < self._said + self.EVERY_S:
            return
        self._said = time.monotonic()
        last = history[-1]
        why = f"answers {last.status}" if last.status else f"does not answer ({type(last.error).__name__})"
        click.echo(f"The tracking server {why}: asking it again …", err=True)


def say_when_waiting() -> None:
    """Have this process say when it waits for the tracking server."""
    logger = logging.getLogger("urllib3.util.retry")
    if not any(isinstance(handler, _Waiting) for handler in logger.handlers):
        logger.addHandler(_Waiting())
        logger.setLevel(logging.DEBUG)
        logger.propagate = False


@contextmanager
def without_retries() -> Iterator[None]:
    """Have MLflow's client try each request once."""
    before = os.environ.get(RETRIES)
    os.environ[RETRIES] = "0"
    try:
        yield
    finally:
        os.environ.pop(RETRIES)
        if before is not None:
            os.environ[RETRIES] = before


def create_once(look: Callable[[], T | None], create: Callable[[], T], tries: int = 6) -> T:
    """Create what must not be there twice. After each failure it looks whether only the reply was lost.

    MLflow's own retries would send the request again without looking, so they are off while it creates.
    """
    from mlflow.exceptions import MlflowException

    found = look()
    for attempt in range(tries):
        if found is not None:
            return found
        try:
            with without_retries():
                return create()
        except Exception as error:
            final = isinstance(error, MlflowException) and error.error_code in FINAL
            if final or attempt == tries - 1:
                raise
        time.sleep(2**attempt / 4)
        found = look()
    raise AssertionError("unreachable")


def read_table(client: "MlflowClient", run_id: str, path: str) -> "pd.DataFrame":
    """A table among a run's artifacts. Raises MlflowException, OSError; ValueError for what is not a table."""
    import pandas as pd

    with tempfile.TemporaryDirectory() as folder:
        return pd.read_parquet(client.download_artifacts(run_id, path, folder))
