"""Who may ask: bearer tokens, of which the file holds only hashes.

python -m serving.gateway.tokens add ada --file .secrets/serving_tokens   # prints the token, once
python -m serving.gateway.tokens list --file .secrets/serving_tokens
python -m serving.gateway.tokens remove ada --file .secrets/serving_tokens

One line for each token, `name:sha256`. A token is 32 random bytes, so a plain hash cannot be turned back. The gateway
reads the file again when it has changed. Without a file everybody may ask.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
from pathlib import Path

import click

from contract.errors import InputError, disk_full

log = logging.getLogger(__name__)
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
LINE = re.compile(r"([A-Za-z0-9._-]{1,64}):([0-9a-f]{64})")


class Tokens:
    """The tokens of a file; None as its path lets everybody in, a file that is gone nobody."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._seen: tuple[int, int, int] | None = None
        self._hashes: dict[str, str] = {}

    @property
    def needed(self) -> bool:
        return self.path is not None

    def owner(self, token: str) -> str | None:
        """The name of a token's owner, or None for a token that is not in the file."""
        self._read()
        digest = hashlib.sha256(token.encode()).hexdigest()
        found = [name for name, known in self._hashes.items() if hmac.compare_digest(known, digest)]
        return found[0] if found else None

    def _read(self) -> None:
        assert self.path is not None
        try:
            stat = self.path.stat()
            seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if seen != self._seen:
                self._seen = seen
                self._hashes = parse(self.path.read_text(encoding="utf-8"))
        except OSError:
            self._hashes, self._seen = {}, None
        except (InputError, UnicodeDecodeError):
            # It is being written, or broken: what was known holds until it can be read.
            log.error("%s cannot be read as tokens: those that were known before go on", self.path)


def parse(text: str) -> dict[str, str]:
    """name → sha256 of a file's text. Raises InputError for a line that is neither a token, empty nor a comment."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = LINE.fullmatch(line.strip())
        if match is None:
            raise InputError(
                f"Line {number} is not a token. Expected name:sha256, as `python -m serving.gateway.tokens add` writes"
            )
        found[match[1]] = match[2]
    return found


def new_line(name: str) -> tuple[str, str]:
    """A new token, and its line for the file."""
    token = f"rt-{secrets.token_urlsafe(32)}"
    return token, f"{name}:{hashlib.sha256(token.encode()).hexdigest()}\n"


def _load(path: Path) -> dict[str, str]:
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
@_file
def add(name: str, path: Path) -> None:
    """Make a token for NAME, and print it. It cannot be shown again."""
    if not NAME.fullmatch(name):
        raise InputError(f"NAME is {name!r}. Expected letters, digits, '.', '_' and '-', 64 at most.")
    known = _load(path)
    if name in known:
        raise InputError(f"'{name}' has a token in {path} already. Remove it first, or take another name.")
    token, line = new_line(name)
    _store(path, "".join(f"{other}:{digest}\n" for other, digest in known.items()) + line)
    click.echo(token)


@main.command()
@click.argument("name")
@_file
def remove(name: str, path: Path) -> None:
    """Take NAME's token back: from the next request on it is refused."""
    known = _load(path)
    if name not in known:
        raise InputError(f"'{name}' has no token in {path}. It holds: {', '.join(known) or 'none'}.")
    del known[name]
    _store(path, "".join(f"{other}:{digest}\n" for other, digest in known.items()))


@main.command("list")
@_file
def list_(path: Path) -> None:
    """Print the names that have a token."""
    for name in _load(path):
        click.echo(name)


if __name__ == "__main__":
    main(prog_name="python -m serving.gateway.tokens")
