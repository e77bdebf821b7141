"""Serve the version in production with `mlflow models serve`: `python -m serving`.

curl http://127.0.0.1:8000/invocations -H 'Content-Type: application/json' \\
     -d '{"inputs": ["def add(a, b):\\n"], "params": {"max_new_tokens": 32}}'
"""

import hashlib
import os
import shutil
import signal
import socket
import sys
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from serving.settings import ServingSettings
from serving.waiting import FAILING, WAITING, WaitingRoom

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

POLL_S = 5.0  # how often to ask for the alias while there is none
LONGEST_PAUSE_S = 60.0  # between attempts to get what cannot be got


class InputError(click.ClickException):
    """Bad input; the command exits with 2."""

    exit_code = 2


class NotYet(InputError):
    """No version has the alias, but one may get it."""


class Unreachable(InputError):
    """No tracking server says which version to serve."""


class Unavailable(click.ClickException):
    """The version to serve cannot be got from the tracking server; the command exits with 1."""


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--model-name", "serving_model", help="Registered model.  [$SERVING_MODEL]")
@click.option(
    "--alias", "serving_alias", help="Which version: the one with this alias.  [$SERVING_ALIAS or production]"
)
@click.option("--host", "serving_host", help="Interface to listen on.  [$SERVING_HOST or 127.0.0.1]")
@click.option("--port", "serving_port", type=click.IntRange(1, 65535), help="Port.  [$SERVING_PORT or 8000]")
@click.option(
    "--wait",
    "serving_wait",
    is_flag=True,
    default=None,
    help="Where no version has the alias yet, wait for one and answer 503 until then.  [$SERVING_WAIT]",
)
def main(**given: Any) -> None:
    """Serve the model version in production. Settings come from the environment: infra/env/dev.env explains them."""
    try:
        settings = ServingSettings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{str(first['loc'][0]).upper()} is {first['input']!r}: {first['msg']}.") from error
    check_port_is_free(settings.serving_host, settings.serving_port)
    version, folder = wait_for_model(settings) if settings.serving_wait else prepare(settings)
    click.echo(
        f"Serving {settings.serving_model} version {version} ({settings.serving_alias}) at "
        f"http://{settings.serving_host}:{settings.serving_port}/invocations"
    )
    serve(settings, folder)


def check_port_is_free(host: str, port: int) -> None:
    """Raise InputError where something listens already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InputError(
                f"Cannot listen on {host}:{port}: {error.strerror}. Stop what runs there (`make down` if it is "
                "Ratchet's), or set SERVING_PORT to a free port."
            ) from error


def prepare(settings: ServingSettings) -> tuple[str, Path]:
    """The number of the version that the alias names, and its files. Raises what `resolve` and `fetch` raise."""
    version = resolve(settings)
    return str(version.version), fetch(settings, version)


def wait_for_model(settings: ServingSettings) -> tuple[str, Path]:
    """What `prepare` returns, as soon as it can; until then the port answers 503 and says what is awaited."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # nothing is going on that has to be ended
    pause = POLL_S
    with WaitingRoom(settings.serving_host, settings.serving_port) as room:
        while True:
            try:
                return prepare(settings)
            except NotYet as reason:
                room.say(WAITING, reason.message)
                pause = POLL_S
            except (Unreachable, Unavailable) as reason:
                room.say(FAILING, reason.message)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            time.sleep(pause)


def resolve(settings: ServingSettings) -> "ModelVersion":
    """The version that the alias names. Raises NotYet where there is none, Unreachable where nobody can say."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    name, alias = settings.serving_model, settings.serving_alias
    try:
        return MlflowClient(settings.mlflow_tracking_uri).get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise NotYet(
                f"No version of '{name}' has the alias '{alias}'. Put one there first: "
                "promoter promote --stage Production --version N"
            ) from error
        raise Unreachable(
            f"No answer from the tracking server at {settings.mlflow_tracking_uri}: {error}. Start it with "
            "`make start-mlflow` (in the stack: `docker compose up -d tracking`), or set MLFLOW_TRACKING_URI."
        ) from error


def fetch(settings: ServingSettings, version: "ModelVersion") -> Path:
    """The version's files on this machine, fetched once; those of other versions are deleted.

    Raises Unavailable where they cannot be fetched, InputError where they cannot be written.
    """
    import mlflow
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    # The number alone would do for one database only: another one's version 1 is another model.
    identity = hashlib.sha256(f"{version.source} {version.creation_timestamp}".encode()).hexdigest()[:12]
    folder = settings.models / version.name / f"{version.version}-{identity}"
    mlflow.set_tracking_uri(settings.mlflow_tracking_uri)
    try:
        if not folder.is_dir():
            click.echo(f"Fetching {version.name} version {version.version} …")
            if not sys.stderr.isatty():
                os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
            folder.parent.mkdir(parents=True, exist_ok=True)
            for left in folder.parent.glob("fetching-*"):  # by a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            # Fetched aside and renamed, so that no one ever loads half a model.
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetching-") as aside:
                uri = f"models:/{version.name}/{version.version}"
                Path(mlflow.artifacts.download_artifacts(uri, dst_path=aside)).rename(folder)
        for other in folder.parent.iterdir():
            if other != folder:
                shutil.rmtree(other, ignore_errors=True)
    except (MlflowException, RequestException) as error:
        raise Unavailable(f"{version.name} version {version.version} cannot be fetched: {error}") from error
    except OSError as error:
        raise InputError(f"RATCHET_HOME: {settings.models} cannot hold a model: {error}.") from error
    return folder


def serve(settings: ServingSettings, folder: Path) -> None:
    """Become `mlflow models serve` for exactly these files: the alias may move, a running server's model does not."""
    os.environ |= {
        "MLFLOW_TRACKING_URI": settings.mlflow_tracking_uri,
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        # `mlflow models serve` starts `uvicorn` by name: the one of this Python, also where no venv is active.
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]),
    }
    arguments = [
        *(sys.executable, "-m", "mlflow", "models", "serve"),
        *("--model-uri", str(folder)),
        *("--env-manager", "local"),
        *("--host", settings.serving_host),
        *("--port", str(settings.serving_port)),
        *("--timeout", str(settings.serving_timeout_s)),
    ]
    sys.stdout.flush()
    os.execv(sys.executable, arguments)


if __name__ == "__main__":
    main(prog_name="python -m serving")
