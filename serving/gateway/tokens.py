"""Who may ask: bearer tokens, of which the file holds only hashes.

python -m serving.gateway.tokens add ada --file .secrets/serving_tokens   # prints the token, once
python -m serving.gateway.tokens list --file .secrets/serving_tokens
python -m serving.gateway.tokens remove ada --file .secrets/serving_tokens

The file is that of contract/tokens.py; the gateway reads it again when it has changed. Without one everybody may ask.
"""

import hashlib
import os
import secrets
from dataclasses import replace
from pathlib import Path

import click

from contract.errors import InputError, disk_full
from contract.tokens import NAME, Owner, line_of, parse


def _load(path: Path) -> dict[str, Owner]:
    """sha256 → owner."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--file is '{path}', which cannot be read: {error}.") from error


def _store(path: Path, lines: str) -> None:
    """Replace the file's text in place: a container sees the file that it was given, and no other of the same name."""
    is_new = not path.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if is_new:
            path.touch(mode=0o644)
        with path.open("r+", encoding="utf-8") as file:  # never empty meanwhile
            os.posix_fallocate(file.fileno(), 0, max(1, len(lines.encode())))  # or not begun, where the disk is full
            file.write(lines)
            file.truncate()
    except OSError as error:
        if is_new:
            path.unlink(missing_ok=True)
        if full := disk_full(error, "Nothing was changed.", [path.parent]):
            raise full from error
        raise InputError(f"--file is '{path}', which cannot be written: {error.strerror}.") from error


def _write(path: Path, owners: dict[str, Owner]) -> None:
    _store(path, "".join(line_of(digest, owner) for digest, owner in owners.items()))


def _unknown(name: str, path: Path, known: dict[str, Owner]) -> InputError:
    names = ", ".join(owner.name for owner in known.values()) or "none"
    return InputError(f"'{name}' has no token in {path}. It holds: {names}.")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """The tokens that may ask serving. The file holds their hashes; serving reads it again when it has changed."""


_file = click.option(
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=lambda: os.environ.get("SERVING_TOKENS_FILE") or ".secrets/serving_tokens",
    show_default="$SERVING_TOKENS_FILE or .secrets/serving_tokens",
    help="The file of hashes.",
)


@main.command()
@click.argument("name")
@click.option("--admin", is_flag=True, help="It may approve, roll back and freeze on serving's page too.")
@click.option("--trains", is_flag=True, help="NAME agrees that models are trained on what NAME accepts.")
@_file
def add(name: str, path: Path, admin: bool, trains: bool) -> None:
    """Make a token for NAME, and print it. It cannot be shown again."""
    if not NAME.fullmatch(name):
        raise InputError(f"NAME is {name!r}. Expected letters, digits, '.', '_' and '-', 64 at most.")
    known = _load(path)
    if any(owner.name == name for owner in known.values()):
        raise InputError(f"'{name}' has a token in {path} already. Remove it first, or take another name.")
    token = f"rt-{secrets.token_urlsafe(32)}"
    digest = hashlib.sha256(token.encode()).hexdigest()
    _write(path, {**known, digest: Owner(name, admin, trains)})
    click.echo(token)


@main.command()
@click.argument("name")
@click.argument("answer", type=click.Choice(["yes", "no"]))
@_file
def consent(name: str, answer: str, path: Path) -> None:
    """Say whether models may be trained on what NAME accepts from now on. `python -m services.tracking.traces delete
    --user NAME` deletes what there is."""
    known = _load(path)
    if all(owner.name != name for owner in known.values()):
        raise _unknown(name, path, known)
    _write(path, {digest: replace(owner, trains=answer == "yes") if owner.name == name else owner
                  for digest, owner in known.items()})  # fmt: skip


@main.command()
@click.argument("name")
@_file
def remove(name: str, path: Path) -> None:
    """Take NAME's token back: from the next request on it is refused."""
    known = _load(path)
    left = {digest: owner for digest, owner in known.items() if owner.name != name}
    if len(left) == len(known):
        raise _unknown(name, path, known)
    _write(path, left)


@main.command("list")
@_file
def list_(path: Path) -> None:
    """Print the names that have a token, with what it may: `admin`, `trains`."""
    for owner in _load(path).values():
        click.echo(f"{owner.name}{' admin' * owner.admin}{' trains' * owner.trains}")


if __name__ == "__main__":
    main(prog_name="python -m serving.gateway.tokens")
