"""`make migrate-artifacts ARGS="--to …/.env"`: a local stack's runs, models and artifacts to RDS and S3.

In the local stack's folder, on a machine that reaches both. Reads where to from production's .env, and has Compose run
infra/compose/migrate.yml: the database's dump, then the artifacts, then the check of every model version.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from contract.errors import InputError
from infra.environment import values

ROOT = Path(__file__).parents[1]
COMPOSE = ("docker", "compose", "--file", "docker-compose.yml", "--file", "infra/compose/migrate.yml")
# What AWS's credentials file calls the keys, and the environment.
KEYS = {name: name.upper() for name in ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")}
# What is taken from production's .env, each as TARGET_…, and whether it has to be there.
NEEDED = {
    "AWS_REGION": True,
    "DATABASE_HOST": True,
    "DATABASE_PORT": False,
    "DATABASE_NAME": False,
    "DATABASE_USER": False,
    "DATABASE_AUTH": False,
    "DATABASE_CA_FILE": False,
    "POSTGRES_PASSWORD_FILE": False,
    "S3_BUCKET": True,
    "S3_PREFIX": False,
    "S3_BUCKET_OWNER": True,
    "S3_KMS_KEY_ARN": False,
}


def target(env_file: Path) -> dict[str, str]:
    """The TARGET_ variables, from production's .env; its relative paths count from where it stands.

    Raises InputError for what is missing.
    """
    found = values(env_file.read_text())
    if missing := [name for name, needed in NEEDED.items() if needed and not found.get(name)]:
        raise InputError(f"{env_file} does not set {', '.join(missing)}. Expected the .env of a stack in production.")
    given = {name: found[name] for name in NEEDED if found.get(name)}
    for name in ("DATABASE_CA_FILE", "POSTGRES_PASSWORD_FILE"):
        if name in given:
            given[name] = str((env_file.absolute().parent / given[name]).resolve())
    return {f"TARGET_{name}": value for name, value in given.items()}


@click.command(context_settings={"max_content_width": 110})
@click.option(
    "--to",
    "env_file",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Production's .env: where to.",
)
@click.option("--env-file", "local", type=click.Path(exists=True, dir_okay=False), help="The local stack's.  [.env]")
def main(env_file: Path, local: str | None) -> None:
    """Copy the local stack's database to RDS and its artifacts to S3, and check each model version there.

    Can be run again; only reads from the local stack, which has to be up. Production has to be stopped. AWS's keys:
    those in the environment, else the role of this instance.
    """
    with aws_keys() as keys:
        sys.exit(run([*COMPOSE, *(("--env-file", local) if local else ())], os.environ | target(env_file) | keys))


def run(command: list[str], env: dict[str, str]) -> int:
    """Have Compose do it. Returns the exit code: 0, 1 where the work failed, 2 where the input was wrong."""
    try:
        done = subprocess.run([*command, "run", "--rm", "migrate-artifacts"], cwd=ROOT, env=env)
        # What it printed went by in a container of its own: show why it stopped, or what it counted.
        subprocess.run([*command, "logs", "--no-color", "--no-log-prefix", "migrate-database"], cwd=ROOT, env=env)
        ended = subprocess.run(
            [*command, "ps", "--all", "--format", "{{.ExitCode}}", "migrate-database"],
            cwd=ROOT, env=env, capture_output=True, text=True,
        )  # fmt: skip
    finally:
        jobs = ("migrate-artifacts", "migrate-database", "target-password")
        subprocess.run(
            [*command, "rm", "--stop", "--force", "--volumes", *jobs], cwd=ROOT, env=env, capture_output=True
        )
    if "2" in (ended.stdout.strip(), str(done.returncode)):
        return 2
    return min(done.returncode, 1)


@contextmanager
def aws_keys() -> Iterator[dict[str, str]]:
    """AWS's keys, from the environment into a file for Compose to mount: `docker inspect` shows an environment."""
    given = {name: os.environ[variable] for name, variable in KEYS.items() if os.environ.get(variable)}
    if not given:
        yield {}
        return
    with tempfile.TemporaryDirectory() as folder:  # its owner's alone; the file is for the container's user
        path = Path(folder, "credentials")
        path.write_text("\n".join(["[default]", *(f"{name} = {value}" for name, value in given.items())]) + "\n")
        yield {"TARGET_AWS_CREDENTIALS_FILE": str(path)}


if __name__ == "__main__":
    main(prog_name="make migrate-artifacts")
