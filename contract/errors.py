"""What a person sees when a command cannot go on. One mistake has one exit code, whichever part finds it.

    click.ClickException
    └── RatchetError       1   the work itself failed
        ├── InputError     2   bad input: a value, a file, a setting
        ├── Unreachable    3   the tracking server, or its store, does not do its work
        └── Busy           4   somebody else is doing this just now

Besides: 1 where the gate or a check says no, 130 after Ctrl-C, 143 after SIGTERM. A message says what was wrong, what
was expected and what to do. What HTTP clients of the gateway see: serving/gateway/errors.py.
"""

import errno
import shutil
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

# What libraries say that pass no `errno` on: the system, torch, SQLite.
_FULL = ("No space left on device", "Disk quota exceeded", "inline_container.cc", "disk is full")


class RatchetError(click.ClickException):
    """The work itself failed; the command exits with 1."""

    exit_code = 1


class InputError(RatchetError):
    """Bad input: says what was wrong, what was expected and what to do; the command exits with 2."""

    exit_code = 2


class Unreachable(RatchetError):
    """The tracking server, or its store, does not do its work; the command exits with 3."""

    exit_code = 3


class Busy(RatchetError):
    """Somebody else is doing this, or has taken over; the command exits with 4 and has moved nothing."""

    exit_code = 4


def disk_full(error: BaseException, left: str, folders: Iterable[str | Path] = ()) -> RatchetError | None:
    """An error that comes from a full disk, as one of ours; None for any other.

    `left`: what has become of the work, for the message. `folders`: where the command writes, whose free space it names
    beside that of TMPDIR.
    """
    if not any(
        getattr(one, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(words in str(one) for words in _FULL)
        for one in chain(error)
    ):
        return None
    disks: dict[int, str] = {}
    for folder in map(Path, (tempfile.gettempdir(), *folders)):
        there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
        disks.setdefault(there.stat().st_dev, f"{shutil.disk_usage(there).free / 1e6:,.1f} MB in {folder}")
    space = ", ".join(disks.values())
    return RatchetError(f"The disk is full. {left} Free by now: {space}. Make room, or write elsewhere.")


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it came from."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def unexpected(error: BaseException, left: str) -> RatchetError:
    """An error that nobody foresaw, as one of ours: where it happened stands in a file, for whoever mends it."""
    lines = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="ratchet-", suffix=".log", delete=False, encoding="utf-8") as file:
            file.write(lines)
        where = f"Please report it, with {file.name}, which says where"
    except OSError:
        where = f"Please report it, with this:\n{lines}"
    said = shortened(" ".join(str(error).split()), 300)
    return RatchetError(f"A mistake of Ratchet's own: {type(error).__name__}: {said}. {left} {where}.")


def shortened(text: str, most: int = 80) -> str:
    """A text for a message: no more of it than so many characters, and a mark where there was more."""
    return text if len(text) <= most else f"{text[:most]}…"


def printable(text: str) -> str:
    """What somebody else has written, for one line of a terminal: nothing in it moves the cursor."""
    return "".join(character if character.isprintable() else " " for character in text)


def json_type(value: object) -> str:
    """What JSON calls the type of a value; of what JSON does not have, such as bytes from Parquet, Python's name."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    names |= {int: "number", float: "number"}
    return names.get(type(value), type(value).__name__)
