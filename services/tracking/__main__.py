"""The MLflow tracking server on SQLite and files, or on what the environment names.

python -m services.tracking --setup-only   # folders, env file, migrated database; then exit
python -m services.tracking                # the same, then serve
python -m services.tracking --no-setup     # serve what another has set up, as the container does
"""

import json
import logging
import os
import shlex
import sys
from pathlib import Path
from urllib.parse import urlsplit

import click
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from contract import logs
from contract.errors import InputError, RatchetError, disk_full
from contract.files import why_not_free, write_whole
from contract.tracking import check_sqlite
from services.settings import read
from services.tracking import access, connections
from services.tracking.migrate import migrate
from services.tracking.settings import TrackingSettings

log = logging.getLogger(__name__)
PRIVATE = 0o077  # umask: database and artifacts are their owner's alone
ARTIFACT_SCHEMES = frozenset(
    {
        "",
        "file",
        "s3",
        "gs",
        "wasb",
        "wasbs",
        "abfs",
        "abfss",
        "adl",
        "hdfs",
        "viewfs",
        "dbfs",
        "r2",
        "b2",
        "oss",
        "sftp",
    }
)
ENV_TEMPLATE = Path(__file__).parents[2] / "infra" / "env" / "dev.env"


@click.command(context_settings={"max_content_width": 110})
@click.option("--setup-only", is_flag=True, help="Create folders, env file and migrated database, then exit.")
@click.option("--no-setup", is_flag=True, help="Serve at once: folders and database are set up already.")
@click.option("--host", help="Interface to listen on.  [$TRACKING_HOST or 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to listen on.  [$TRACKING_PORT or 5000]")
def main(setup_only: bool, no_setup: bool, host: str | None, port: int | None) -> None:
    """Run the MLflow tracking server. Settings come from the environment: infra/env/dev.env explains them."""
    if setup_only and no_setup:
        raise InputError("--setup-only and --no-setup exclude each other. Give one of them.")
    settings = read(TrackingSettings, tracking_host=host, tracking_port=port)
    check_home(settings)
    if not setup_only:
        logs.set_up("tracking")
        logging.getLogger("alembic").setLevel(logging.WARNING)
    # A migration needs no password; who sets a server up on this machine would start it next.
    check(settings, whole=not (setup_only and settings.mlflow_backend_store_uri))
    if not setup_only:
        check_port_is_free(settings.tracking_host, settings.tracking_port)
    if not no_setup:
        set_up(settings)
    if setup_only:
        click.echo(f"Ready: {_database(settings)}")
        return
    log.info("MLflow tracking server: http://%s:%s", settings.tracking_host, settings.tracking_port)
    serve(settings)


def check_home(settings: TrackingSettings) -> None:
    """Raise InputError for a folder whose name a URI of SQLite cannot hold: the database would be another file."""
    if not settings.mlflow_backend_store_uri and (odd := [char for char in "?%" if char in str(settings.home)]):
        raise InputError(
            f"RATCHET_HOME is '{settings.home}'. Expected a path without {' and '.join(odd)}, which the database's URI "
            "cannot hold: name another folder."
        )


def check(settings: TrackingSettings, whole: bool = True) -> None:
    """Raise InputError for settings that do not go together; those not `whole` may lack the secrets of a login."""
    if settings.tracking_auth:
        for name, what in (
            ("mlflow_admin_password", "the password of the user `admin`, 12 characters or more"),
            ("mlflow_secret_key", "a random text, the same for all servers, by which forms are signed"),
        ):
            given = getattr(settings, name).get_secret_value()
            if name == "mlflow_admin_password" and 0 < len(given) < 12:
                raise InputError(f"MLFLOW_ADMIN_PASSWORD has {len(given)} characters. Expected 12 or more.")
            if not given and whole:
                raise InputError(
                    f"TRACKING_AUTH is on and {name.upper()} is not set. Expected {what}, in the environment or in "
                    f"the file /run/secrets/{name}."
                )
        access.roles(settings.tracking_roles)
    elif settings.tracking_roles:
        raise InputError(
            f"TRACKING_ROLES is '{settings.tracking_roles}' and TRACKING_AUTH is off. Expected both, or neither."
        )
    check_stores(settings)
    connections.pool(settings)


def check_stores(settings: TrackingSettings) -> None:
    """Raise InputError for a database or an artifact store that nothing could be kept in."""
    destination = settings.artifacts_destination
    if (scheme := urlsplit(destination).scheme) not in ARTIFACT_SCHEMES:
        raise InputError(
            f"MLFLOW_ARTIFACTS_DESTINATION is '{destination}', of the scheme '{scheme}'. Expected "
            f"{', '.join(sorted(filter(None, ARTIFACT_SCHEMES)))}, or a folder."
        )
    try:
        url = make_url(_backend_store_uri(settings))
    except ArgumentError:
        return  # `migrate` says what is wrong with it
    if url.get_backend_name() != "sqlite":
        return
    if url.database in (None, "", ":memory:"):
        raise InputError(
            "MLFLOW_BACKEND_STORE_URI names a SQLite database in memory: nothing would remain. Name a file."
        )
    if settings.mlflow_backend_store_uri:  # the embedded default's folder is made
        check_sqlite(settings.mlflow_backend_store_uri, "MLFLOW_BACKEND_STORE_URI")


def check_port_is_free(host: str, port: int) -> None:
    """Raise InputError where something listens already."""
    if why := why_not_free(host, port):
        if "Name or service" in why or "nodename" in why or "Cannot assign" in why:
            raise InputError(f"TRACKING_HOST is '{host}', which is no address of this machine: {why}.")
        raise InputError(
            f"Cannot listen on {host}:{port}: {why}. Stop what runs there (`make down` if it is Ratchet's), or set "
            "TRACKING_PORT to a free port."
        )


def set_up(settings: TrackingSettings) -> None:
    """Create what is missing of folders, env file and tables. Safe to repeat; keeps what is there."""
    before = os.umask(PRIVATE)
    try:
        _set_up(settings)
    finally:
        os.umask(before)


def _set_up(settings: TrackingSettings) -> None:
    try:
        if not settings.mlflow_backend_store_uri:  # the embedded default
            settings.home.mkdir(parents=True, exist_ok=True)
            env_file = settings.home / "dev.env"
            if not env_file.exists() or not env_file.stat().st_size:
                write_whole(env_file, ENV_TEMPLATE.read_text(encoding="utf-8"))
        if not settings.mlflow_artifacts_destination:
            (settings.home / "artifacts").mkdir(parents=True, exist_ok=True)
            for path in (settings.home / "artifacts", *settings.home.glob("mlflow.db*")):  # of an earlier release
                path.chmod(path.stat().st_mode & 0o700)
    except OSError as error:
        if full := disk_full(error, "Nothing was set up.", [settings.home]):
            raise full from error
        raise InputError(f"RATCHET_HOME is {settings.home}, where nothing can be written: {error.strerror}.") from error
    uri = _backend_store_uri(settings)
    if settings.mlflow_backend_store_uri:
        migrate(uri, settings.tracking_auth)
    else:
        _migrate_own(uri, settings)
    connections.check_limit(uri, settings.tracking_connections)


def _migrate_own(uri: str, settings: TrackingSettings) -> None:
    """Migrate the embedded default's database; of a new one nothing half-made is left."""
    path = settings.home / "mlflow.db"
    is_new = not path.exists()
    try:
        migrate(uri, settings.tracking_auth, f"The database {path}")
    except RatchetError:
        if is_new:
            for left in settings.home.glob("mlflow.db*"):
                left.unlink()
        raise


def _backend_store_uri(settings: TrackingSettings) -> str:
    try:
        return settings.backend_store_uri
    except ValueError as error:
        raise InputError(f"{error}. Expected postgresql+psycopg2://USER@HOST:5432/DATABASE") from error


def _database(settings: TrackingSettings) -> str:
    """Where everything is, for a person; without the password."""
    if not settings.mlflow_backend_store_uri:
        return f"database, artifact folder and dev.env in {settings.home}. Start: make start-mlflow"
    url = make_url(settings.backend_store_uri)
    return f"the tables of database {url.database}" + (f" on {url.host}" if url.host else "")


def serve(settings: TrackingSettings) -> None:
    """Become `mlflow server` (its process replaces this one, so that signals reach it)."""
    os.umask(PRIVATE)
    os.environ |= {
        # Features that Ratchet does not use and that start processes of their own.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_ENABLE_AI_GATEWAY": "false",
        # In the environment and not among the arguments, which `ps` shows to everyone: it may hold a password.
        "MLFLOW_BACKEND_STORE_URI": _backend_store_uri(settings),
    }
    os.environ |= connections.pool(settings)
    if key := settings.aws_secret_access_key.get_secret_value():
        os.environ["AWS_SECRET_ACCESS_KEY"] = key  # where boto3 looks for it
    if settings.s3_kms_key_arn:
        encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": settings.s3_kms_key_arn}
        os.environ["MLFLOW_S3_UPLOAD_EXTRA_ARGS"] = json.dumps(encryption)
    arguments = [
        *(sys.executable, "-m", "services.tracking.mlflow_server", "server"),
        "--serve-artifacts",
        *("--artifacts-destination", settings.artifacts_destination),
        *("--host", settings.tracking_host),
        *("--port", str(settings.tracking_port)),
        *("--workers", str(settings.tracking_workers)),
        *("--allowed-hosts", settings.allowed_hosts),
        *("--uvicorn-opts", f"--log-config {shlex.quote(str(Path(__file__).with_name('logging.json')))}"),
    ]
    if settings.tracking_cors_origins:
        arguments += ["--cors-allowed-origins", settings.tracking_cors_origins]
    if settings.tracking_auth:
        os.environ |= access.environment(settings)
        arguments += ["--app-name", "basic-auth"]
    os.execv(sys.executable, arguments)


if __name__ == "__main__":
    main(prog_name="python -m services.tracking")
