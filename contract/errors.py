"""What a person sees when a command cannot go on. One mistake has one exit code, whichever part finds it.

    click.ClickException
    └── RatchetError       1   the work itself failed
        ├── InputError     2   bad input: a value, a file, a setting
        ├── Unreachable    3   the tracking server, or its store, does not do its work
        └── Busy           4   somebody else is doing this just now

Besides: 1 where the gate or a check says no, 130 after Ctrl-C, 143 after SIGTERM. A message says what was wrong, what
was expected and what to do. What HTTP clients of the gateway see: serving/gateway/errors.py.
"""

import click


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


def shortened(text: str, most: int = 80) -> str:
    """A text for a message: no more of it than so many characters, and a mark where there was more."""
    return text if len(text) <= most else f"{text[:most]}…"


def json_type(value: object) -> str:
    """What JSON calls the type of a value; of what JSON does not have, such as bytes from Parquet, Python's name."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    names |= {int: "number", float: "number"}
    return names.get(type(value), type(value).__name__)
