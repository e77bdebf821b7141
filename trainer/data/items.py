"""What a source gives: files of code, or rows."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class File:
    """A file of code: its path inside the source (or why it is left out), and its content."""

    path: str
    content: bytes = b""
    dropped: str | None = None


@dataclass(frozen=True)
class Row:
    """A row of JSONL or of a Hub data set, and where it stands, for messages."""

    values: Any
    where: str
