"""Serve the version in production with `mlflow models serve`: `python -m serving`.

curl http://127.0.0.1:8000/invocations -H 'Content-Type: application/json' \\
     -d '{"inputs": ["def add(a, b):\\n"], "params": {"max_new_tokens": 32}}'
"""

import os
import socket
import sys
import sysconfig
from typing import Any

import click
from pydantic import ValidationError

from serving.settings import ServingSettings


class InputError(click.ClickException):
    """Bad input; the command exits with 2."""

    exit_code = 2


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--model-name", "serving_model", help="Registered model.  [$SERVING_MODEL]")
@click.option(
    "--alias", "serving_alias", help="Which version: the one with this alias.  [$SERVING_ALIAS or production]"
)
@click.option("--host", "serving_host", help="Interface to listen on.  [$SERVING_HOST or 127.0.0.1]")
@click.option("--port", "serving_port", type=click.IntRange(1, 65535), help="Port.  [$SERVING_PORT or 8000]")
def main(**given: Any) -> None:
    """Serve the model version in production. Settings come from the environment: infra/env/dev.env explains them."""
    try:
        settings = ServingSettings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{str(first['loc'][0]).upper()} is {first['input']!r}: {first['msg']}.") from error
    check_port_is_free(settings.serving_host, settings.serving_port)
    version = resolve(settings)
    click.echo(
        f"Serving {settings.serving_model} version {version} ({settings.serving_alias}) at "
        f"http://{settings.serving_host}:{settings.serving_port}/invocations"
    )
    serve(settings, version)


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


def resolve(settings: ServingSettings) -> str:
    """The number of the version that the alias names. Raises InputError where there is none."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    name, alias = settings.serving_model, settings.serving_alias
    try:
        version = MlflowClient(settings.mlflow_tracking_uri).get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise InputError(
                f"No version of '{name}' has the alias '{alias}'. Put one there first: "
                "promoter promote --stage Production --version N"
            ) from error
        raise InputError(
            f"No tracking server at {settings.mlflow_tracking_uri}. Start it with `make start-mlflow`, or set "
            "MLFLOW_TRACKING_URI."
        ) from error
    return str(version.version)


def serve(settings: ServingSettings, version: str) -> None:
    """Become `mlflow models serve` for exactly this version: the alias may move, a running server's model does not."""
    os.environ |= {
        "MLFLOW_TRACKING_URI": settings.mlflow_tracking_uri,
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        # `mlflow models serve` starts `uvicorn` by name: the one of this Python, also where no venv is active.
        "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]),
    }
    arguments = [
        *(sys.executable, "-m", "mlflow", "models", "serve"),
        *("--model-uri", f"models:/{settings.serving_model}/{version}"),
        *("--env-manager", "local"),
        *("--host", settings.serving_host),
        *("--port", str(settings.serving_port)),
        *("--timeout", str(settings.serving_timeout_s)),
    ]
    sys.stdout.flush()
    os.execv(sys.executable, arguments)


if __name__ == "__main__":
    main(prog_name="python -m serving")
