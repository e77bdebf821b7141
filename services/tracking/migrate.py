"""The database's tables: created, or brought up to this MLflow's version.

On PostgreSQL under an advisory lock, so that of several that start at once one migrates and the others wait. The
lock belongs to a connection: it ends with the process that holds it, however that ends, and what it had not committed
is rolled back.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import click
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from contract.errors import InputError, RatchetError
from services.tracking import access

# The lock's number, the same for all that migrate an MLflow database: the first bytes of sha256("ratchet migrate").
LOCK = 0x95D5D3D4

# What a database's refusal usually comes from: text in it, and what to do.
CAUSES = (
    (
        "password authentication failed",
        "POSTGRES_PASSWORD (the secret postgres_password) differs from the one that the database was made with (a "
        "volume keeps its first password): put the old one back, or change it there with ALTER ROLE.",
    ),
    ("Can't locate revision", "a newer MLflow has migrated this database: use that version, or restore a backup."),
    (
        "no password supplied",
        "neither the URI nor PGPASSFILE has one for this host, port and user. In production the service "
        "`database-password` writes that file: `docker compose logs database-password`.",
    ),
    (
        "PAM authentication failed",
        "RDS refuses the IAM token: the role needs rds-db:connect for this database user, the user the role rds_iam "
        "(`infra.database_role` grants it), the instance IAM authentication; and the host's clock has to be right.",
    ),
    (
        "certificate verify failed",
        "DATABASE_CA_FILE does not hold the CA that signed the database's certificate: infra/aws/rds-ca.pem holds "
        "those of RDS.",
    ),
    (
        "does not match host name",
        "DATABASE_HOST has to be the name in the database's certificate: RDS's endpoint, and no alias for it.",
    ),
    ("could not translate host name", "the database's host is not known here: is its container up, on this network?"),
    ("Connection refused", "no database listens there: is it up, and is the port right?"),
    ("does not exist", "create the role or database first, or correct its name."),
    (
        "permission denied",
        "the role may not create tables: GRANT ALL ON SCHEMA public TO it (in production: "
        "`docker compose run --rm database-role`).",
    ),
    ("unable to open database file", "the folder of a SQLite file has to be there, and writable."),
    (
        "disk is full",
        "there is no space left where the database is. Make some, and give the same command again.",
    ),
    ("file is not a database", "name a SQLite file, or one that is not there yet."),
    ("Can't load plugin", "expected postgresql+psycopg2://… or sqlite:///…"),
    ("No module named 'MySQLdb'", "expected postgresql+psycopg2://… or sqlite:///…"),
    ("No module named 'psycopg", "install the extra `tracking-prod`, and write postgresql+psycopg2:// in the URI."),
)


def migrate(
    uri: str, with_users: bool = False, database: str = "MLFLOW_BACKEND_STORE_URI names a database that"
) -> None:
    """Create or upgrade the tables (`mlflow db upgrade`; those of users too). Safe to repeat, and safe to kill.

    `database`: what it is, for messages. Raises InputError, with the likely cause, or RatchetError for an unknown one,
    where the database refuses.
    """
    from alembic.util import CommandError
    from mlflow.db import upgrade
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        with _lock(uri):
            upgrade.main([uri], standalone_mode=False)
            if with_users:
                access.migrate(uri)
            _measure(uri)
    except (SQLAlchemyError, CommandError, ImportError) as error:
        reason = re.sub(r"\s+", " ", str(error).partition("\n(Background")[0]).strip()
        cause = next((what for found, what in CAUSES if found in reason), None)
        # Where the cause is one to be set right, it was bad input; else the work failed.
        kind = InputError if cause or isinstance(error, ArgumentError) else RatchetError
        raise kind(f"{database} cannot be used: {reason}" + (f"\nLikely: {cause}" if cause else "")) from error


def _measure(uri: str) -> None:
    """Have SQLite count its tables; PostgreSQL does so by itself.

    Without, it joins runs and metrics row by row: sorting 10,000 runs by a metric took 5 s, and takes 0.2 s.
    """
    if make_url(uri).get_backend_name() == "sqlite":
        engine = create_engine(uri)
        with engine.begin() as connection:
            connection.execute(text("PRAGMA analysis_limit = 1000"))
            connection.execute(text("ANALYZE"))
        engine.dispose()


@contextmanager
def _lock(uri: str) -> Iterator[None]:
    """Hold PostgreSQL's advisory lock for migrations; a SQLite file has one writer anyway."""
    if not make_url(uri).get_backend_name().startswith("postgresql"):
        yield
        return
    engine = create_engine(uri)
    try:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": LOCK}):
                click.echo("Another migration is running; waiting for its end …")
                connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK})
            yield
    finally:
        engine.dispose()  # closes the connection, and so lets the lock go
