"""A field of the configuration: its default, its help, and the values that it allows."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import field, fields, is_dataclass
from typing import Any


def option(
    default: Any,
    help: str,
    choices: tuple[str, ...] = (),
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
    pattern: tuple[str, str] = ("", ""),
    optional: bool = False,
) -> Any:
    """A config field with its help (also the command line's) and the values that it allows.

    `pattern` is a regular expression that a text has to match, and what that means in words.
    """
    expected = [f"one of {', '.join(choices)}"] if choices else []
    for words, bound in (("at least", at_least), ("above", above), ("at most", at_most), ("below", below)):
        if math.isfinite(bound):
            expected.append(f"{words} {bound}")

    if pattern[1]:
        expected.append(pattern[1])

    def allowed(value: Any) -> bool:
        if value is None:
            return default is None or optional
        if choices:
            return value in choices
        if pattern[0]:
            return re.fullmatch(pattern[0], value) is not None
        return not expected or bool(at_least <= value <= at_most and above < value < below)

    return field(default=default, metadata={"help": help, "expected": " and ".join(expected), "allowed": allowed})


def walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """(dotted key, value, metadata: help, expected, allowed) of every field below a config, in order."""
    for item in fields(node):
        value = getattr(node, item.name)
        key = f"{prefix}{item.name}"
        if is_dataclass(value):
            yield from walk(value, f"{key}.")
        else:
            yield key, value, item.metadata
