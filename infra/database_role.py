"""Make the database user that the stack connects as, on a new RDS instance.

docker compose run --rm database-role     # once; run again, it changes nothing

Signs in as the master user, with the secret that RDS keeps in Secrets Manager. The user owns nothing at first and is no
superuser: it may connect to the one database and make tables there. With DATABASE_AUTH=iam it gets the role rds_iam,
after which RDS takes tokens from it and no password.
"""

import json
import os
from typing import Any, Literal

import boto3
import click
import psycopg2
from botocore.exceptions import BotoCoreError, ClientError
from psycopg2 import sql
from psycopg2.extensions import encrypt_password
from pydantic import SecretStr
from pydantic_settings import BaseSettings

from contract.errors import InputError, RatchetError
from services.settings import FROM_ENVIRONMENT_AND_SECRETS, read


class RoleSettings(BaseSettings):
    """Environment variables (in any case), or files of these names in /run/secrets: see infra/env/prod.env."""

    model_config = FROM_ENVIRONMENT_AND_SECRETS

    database_auth: Literal["iam", "password"]
    database_host: str
    database_port: int = 5432
    database_name: str
    database_user: str
    database_master_secret_arn: str
    postgres_password: SecretStr = SecretStr("")


@click.command(context_settings={"max_content_width": 110})
def main() -> None:
    """Make the user DATABASE_USER in the database DATABASE_NAME. Settings come from the environment."""
    settings = read(RoleSettings)
    if settings.database_auth == "password" and not settings.postgres_password.get_secret_value():
        raise InputError("DATABASE_AUTH is 'password', and the secret postgres_password is empty. Write it first.")
    user, password = master(settings.database_master_secret_arn)
    try:
        connection = psycopg2.connect(
            host=settings.database_host,
            port=settings.database_port,
            dbname=settings.database_name,
            user=user,
            password=password,
            sslmode="verify-full",  # its certificates: PGSSLROOTCERT
            connect_timeout=10,
        )
        with connection, connection.cursor() as cursor:
            made = ensure(cursor, settings)
        connection.close()
    except psycopg2.Error as error:
        raise RatchetError(f"The database at {settings.database_host} refuses: {error}") from error
    click.echo(f"User {settings.database_user}: {'made' if made else 'there already'}, by {settings.database_auth}")


def master(arn: str) -> tuple[str, str]:
    """The master's name and password. Raises InputError where the secret is not to be had."""
    try:
        secret = boto3.client("secretsmanager").get_secret_value(SecretId=arn)["SecretString"]
        found = json.loads(secret)
        return found["username"], found["password"]
    except (BotoCoreError, ClientError, ValueError, KeyError) as error:
        raise InputError(
            f"DATABASE_MASTER_SECRET_ARN is {arn!r}, which gives no username and password: {error}. Expected the "
            "secret that RDS made with the instance (`terraform output -raw env`), and a role that may read it."
        ) from error


def ensure(cursor: Any, settings: RoleSettings) -> bool:
    """Make the user and give it its rights. Returns whether it was not there."""
    user, database = sql.Identifier(settings.database_user), sql.Identifier(settings.database_name)
    cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (settings.database_user,))
    if missing := cursor.fetchone() is None:
        cursor.execute(sql.SQL("CREATE ROLE {} LOGIN").format(user))
    if settings.database_auth == "iam":
        cursor.execute(sql.SQL("GRANT rds_iam TO {}").format(user))
    else:
        cursor.execute(
            "SELECT 1 FROM pg_roles WHERE rolname = 'rds_iam' AND pg_has_role(%s, oid, 'MEMBER')",
            (settings.database_user,),
        )
        if cursor.fetchone():  # or RDS would go on to take tokens alone
            cursor.execute(sql.SQL("REVOKE rds_iam FROM {}").format(user))
        # Hashed here, since the server may log the statement.
        password = settings.postgres_password.get_secret_value().strip()
        hashed = encrypt_password(password, settings.database_user, cursor.connection, "scram-sha-256")
        cursor.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(user, sql.Literal(hashed)))
    cursor.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(database))
    cursor.execute(sql.SQL("GRANT CONNECT, TEMPORARY ON DATABASE {} TO {}").format(database, user))
    cursor.execute(sql.SQL("GRANT USAGE, CREATE ON SCHEMA public TO {}").format(user))
    return missing


if __name__ == "__main__":
    os.environ.setdefault("AWS_DEFAULT_REGION", os.environ.get("AWS_REGION", ""))
    main(prog_name="python -m infra.database_role")
