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
    """A row of JSONL, Parquet or a Hub data set, and where it stands, for messages."""

    values: Any
    where: str
    broken: tuple[str, str] | None = None  # of one that cannot be read: why, in a few words and in more


class Unusable(Exception):
    """A row that is left out: why in a few words, to count by, and in more; and where it stands."""

    def __init__(self, reason: str, detail: str, where: str = "") -> None:
        super().__init__(reason, detail, where)
        self.reason, self.where = reason, where
        self.detail = detail.encode(errors="backslashreplace").decode()  # it may quote the row

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}"
