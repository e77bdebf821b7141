"""What the sources share."""

import os
import re
from collections.abc import Callable

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

# Why a file of code is left out by its path inside its source, or None.
Choose = Callable[[str], str | None]


def printable(path: str) -> str:
    """A file's name as one line of text, also where it is not UTF-8 or has control characters in it."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", os.fsencode(path).decode("utf-8", "replace"))


def first_line(error: Exception) -> str:
    """What an error says first, as part of a sentence."""
    return str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
