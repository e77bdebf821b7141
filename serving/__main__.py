"""Serve the version in production, and follow it: `python -m serving`.

curl http://127.0.0.1:8000/v1/completions -H 'Content-Type: application/json' \\
     -d '{"prompt": "def add(a, b):\\n", "max_tokens": 32}'
"""

import errno
import logging
import os
import sys
from typing import Any

import click
from pydantic import ValidationError

from contract import logs
from contract.errors import InputError
from contract.files import why_not_free
from contract.tracking import check_url
from serving.settings import ServingSettings
from serving.supervisor.supervisor import Supervisor

log = logging.getLogger(__name__)


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
    """Serve the model version in production, and the next one as soon as it is there. Ends at SIGTERM, after it has
    answered what it had begun. Settings come from the environment: docs/serving.md explains them."""
    try:
        settings = ServingSettings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{str(first['loc'][0]).upper()} is {first['input']!r}: {first['msg']}.") from error
    check_url(settings.mlflow_tracking_uri, "MLFLOW_TRACKING_URI")
    if not settings.mlflow_tracking_uri.startswith("http"):
        raise InputError(
            f"MLFLOW_TRACKING_URI is '{settings.mlflow_tracking_uri}'. Expected a server's, such as http://127.0.0.1:5000."
        )
    check_home(settings)
    check_port_is_free(settings.serving_host, settings.serving_port)
    logs.set_up("serving")
    if settings.serving_tokens_file is not None and not settings.serving_tokens_file.is_file():
        log.warning(
            "SERVING_TOKENS_FILE is %s, where there is no file: nobody may ask until one is made there by "
            "`python -m serving.gateway.tokens add NAME --file %s`",
            settings.serving_tokens_file,
            settings.serving_tokens_file,
        )
    sys.exit(Supervisor(settings).run())


def check_home(settings: ServingSettings) -> None:
    """Raise InputError where no version could be kept."""
    try:
        settings.models.mkdir(parents=True, exist_ok=True)
        if not os.access(settings.models, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        home = settings.ratchet_home.absolute()
        raise InputError(f"RATCHET_HOME is {home}, where nothing can be written: {error.strerror}.") from error


def check_port_is_free(host: str, port: int) -> None:
    """Raise InputError where something listens already."""
    if why := why_not_free(host, port):
        raise InputError(
            f"Cannot listen on {host}:{port}: {why}. Stop what runs there (`make down` if it is Ratchet's), or set "
            "SERVING_PORT to a free port."
        )


if __name__ == "__main__":
    main(prog_name="python -m serving")
