"""Fetch the secrets of a stack in production from AWS Secrets Manager into files.

python -m infra.pull_secrets --prefix ratchet/ --folder .secrets     # infra/aws/start.sh does so, before every start

A secret's name, without the prefix, is the file's; its value is the file's content. A file that has changed is written
in place and not replaced, since a container that runs sees the file that was there when it started.
"""

import os
from pathlib import Path

import boto3
import click
from botocore.exceptions import BotoCoreError, ClientError

from contract.errors import InputError, RatchetError

READABLE = 0o444  # Compose mounts each as it is, for users of the containers' own; the folder keeps others out
OWNERS = {"serving_token": 0o400}  # no container gets it


@click.command(context_settings={"max_content_width": 110})
@click.option("--prefix", required=True, help="How the secrets' names begin, such as ratchet/.")
@click.option("--folder", required=True, type=click.Path(file_okay=False, path_type=Path), help="Where the files go.")
def main(prefix: str, folder: Path) -> None:
    """Write every secret whose name begins with PREFIX to a file of its name in FOLDER."""
    try:
        found = secrets(prefix)
    except (BotoCoreError, ClientError) as error:
        raise RatchetError(f"Secrets Manager did not answer: {error}") from error
    if not found:
        raise InputError(
            f"--prefix is {prefix!r}: no secret's name begins so. Expected RATCHET_NAME and a slash, in the region "
            "where `terraform apply` made them."
        )
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name, value in sorted(found.items()):
        click.echo(f"{folder / name}: {put(folder / name, value, OWNERS.get(name, READABLE))}")


def secrets(prefix: str) -> dict[str, str]:
    """The values of all secrets whose name begins with the prefix, by the rest of the name.

    Raises InputError for a name that is no file's, and botocore's errors.
    """
    client = boto3.client("secretsmanager")
    pages = client.get_paginator("list_secrets").paginate(Filters=[{"Key": "name", "Values": [prefix]}])
    names = [item["Name"] for page in pages for item in page["SecretList"] if item["Name"].startswith(prefix)]
    for name in names:
        if "/" in name.removeprefix(prefix) or name.removeprefix(prefix) in ("", ".", ".."):
            raise InputError(f"The secret {name!r} cannot be a file: expected {prefix}NAME, without a further slash.")
    return {name.removeprefix(prefix): client.get_secret_value(SecretId=name)["SecretString"] for name in names}


def put(path: Path, value: str, mode: int) -> str:
    """Write the file where its content differs. Returns what was done."""
    there = path.exists()
    if there and path.read_text() == value:
        return "as it is"
    if there:
        path.chmod(0o600)
    # At once and then cut, not emptied and filled: who reads meanwhile sees the old one or the new one.
    content = value.encode()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb", buffering=0) as file:
        file.write(content)
        file.truncate(len(content))
    done = "changed" if there else "written"
    path.chmod(mode)
    return done


if __name__ == "__main__":
    main(prog_name="python -m infra.pull_secrets")
