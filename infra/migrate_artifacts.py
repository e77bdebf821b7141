"""`make migrate-artifacts ARGS="--to …/.env"`: a local stack's runs, models and artifacts to RDS and S3.

In the local stack's folder, on a machine that reaches both. Reads where to from production's .env, and has Compose run
docker-compose.migrate.yml: the database's dump, then the artifacts, then the check of every model version.
"""

import os
import subprocess
import sys
from pathlib import Path

import click

from infra.environment import values

ROOT = Path(__file__).parents[1]
COMPOSE = ("docker", "compose", "--file", "docker-compose.yml", "--file", "docker-compose.migrate.yml")
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


class InputError(click.ClickException):
    """Bad input; the command exits with 2."""

    exit_code = 2


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
    command = [*COMPOSE, *(("--env-file", local) if local else ())]
    env = os.environ | target(env_file)
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
    sys.exit(2 if ended.stdout.strip() == "2" else min(done.returncode, 1) if done.returncode != 2 else 2)


if __name__ == "__main__":
    main(prog_name="make migrate-artifacts")
