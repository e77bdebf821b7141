"""Keep PGPASSFILE fresh: the file in which libpq finds the database's password whenever it opens a connection.

python -m services.tracking.database_password     # write it, and again whenever it is due, until it is stopped

DATABASE_AUTH=iam: a token of AWS's, signed here with the instance's role. RDS takes it for 15 minutes; connections that
are open live on. DATABASE_AUTH=password: the secret file postgres_password, looked at every second, so that a password
is changed by writing that file. Either way the file's time says when there was a password last: the container's health
check looks at it. MLflow knows nothing of all this: its pools open a connection, and libpq reads the file.
"""

import os
import signal
import threading
from pathlib import Path
from typing import Literal

import click
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings

from contract.errors import InputError
from services.settings import FROM_ENVIRONMENT_AND_SECRETS, read

VALID_S = 15 * 60  # an IAM token's life
LOOK_S = 1.0  # between two looks at the secret file
RETRY_S = 2.0


class PasswordSettings(BaseSettings):
    """Environment variables (in any case), or files of these names in /run/secrets: see infra/env/prod.env."""

    model_config = FROM_ENVIRONMENT_AND_SECRETS

    database_auth: Literal["iam", "password"]
    database_host: str
    database_port: int = Field(default=5432, ge=1, le=65535)
    database_user: str
    pgpassfile: Path
    aws_region: str = ""
    database_token_refresh_s: float = Field(default=600, gt=0, le=VALID_S - 120)
    postgres_password: SecretStr = SecretStr("")


@click.command(context_settings={"max_content_width": 110})
def main() -> None:
    """Keep the file that PGPASSFILE names fresh. Settings come from the environment."""
    settings = read(PasswordSettings)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    keep_fresh(settings, stop)


def keep_fresh(settings: PasswordSettings, stop: threading.Event) -> None:
    """Write the file until `stop` is set. What was written stays where a new password cannot be had; that is said."""
    written = ""
    while not stop.is_set():
        wait = settings.database_token_refresh_s if settings.database_auth == "iam" else LOOK_S
        try:
            password = current(read(PasswordSettings))  # read anew: the secret file may have changed
            if password != written:
                write(settings, password)
                click.echo(f"Wrote {settings.pgpassfile} for {settings.database_user}@{settings.database_host}")
                written = password
            settings.pgpassfile.touch()
        except InputError as error:
            click.echo(f"{error.message} Trying again in {RETRY_S:g} s.", err=True)
            wait = RETRY_S
        except OSError as error:
            click.echo(f"PGPASSFILE is {settings.pgpassfile}, which cannot be written: {error.strerror}.", err=True)
            wait = RETRY_S
        stop.wait(wait)


def current(settings: PasswordSettings) -> str:
    """A new IAM token, or the password that the secret file holds now. Raises InputError where there is none."""
    if settings.database_auth == "password":
        if password := settings.postgres_password.get_secret_value().strip():
            return password
        raise InputError(
            "DATABASE_AUTH is 'password', and the secret postgres_password is empty. Write the database's password "
            "into the file that POSTGRES_PASSWORD_FILE names."
        )
    import boto3
    from botocore.exceptions import BotoCoreError

    if not settings.aws_region:
        raise InputError("DATABASE_AUTH is 'iam', and AWS_REGION is not set. Expected the database's region.")
    try:
        token: str = boto3.client("rds", region_name=settings.aws_region).generate_db_auth_token(
            DBHostname=settings.database_host, Port=settings.database_port, DBUsername=settings.database_user
        )
    except BotoCoreError as error:
        raise InputError(
            f"No IAM token for the database: {error} Expected the instance's role, by IMDSv2: it needs a role, and a "
            "hop limit of 2 for containers."
        ) from error
    return token


def write(settings: PasswordSettings, password: str) -> None:
    """Write the file aside and rename it: libpq reads the old one or the new one. Mode 0600, or libpq ignores it."""
    escaped = password.replace("\\", r"\\").replace(":", r"\:")
    line = f"{settings.database_host}:{settings.database_port}:*:{settings.database_user}:{escaped}\n"
    aside = settings.pgpassfile.with_name(f"{settings.pgpassfile.name}.new")
    aside.unlink(missing_ok=True)
    with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(line)
    aside.replace(settings.pgpassfile)


if __name__ == "__main__":
    main(prog_name="python -m services.tracking.database_password")
