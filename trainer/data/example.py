"""One example, and a file of them that is read as it is needed."""

import hashlib
import json
import os
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, overload

import numpy as np

from code_model import fim
from contract.metrics import INDENTED, LINE_START, MIDLINE, MIDTOKEN

# What an example of source code may be: the body of a function, a gap in the code, the code that comes next.
KINDS = ("function", "fim", "next_block")
ROW = "row"  # a prompt and its completion, as somebody's JSONL has them


@dataclass(frozen=True)
class Example:
    """A prompt and the completion wanted of it.

    The prompt of source code is written in neutral markers (`code_model.fim`), which `fim.render` turns into those of a
    model. `group` is the file that it came from: all of a group are on one side of the split. `repository` is the
    source that the file is from. `test` is Python that fails where prompt and completion together are wrong.
    `function` is the whole function, or the statements, of which the completion is a part.
    """

    prompt: str
    completion: str
    group: str = ""
    kind: str = ROW
    language: str = "text"
    test: str | None = None
    function: str | None = None
    repository: str = ""
    by_model: int | None = None  # of what users kept of completions: characters that a model wrote

    @property
    def number(self) -> int:
        """Stable 64-bit hash of prompt, completion and test."""
        test = f"\0{self.test}" if self.test is not None else ""
        return hash64(f"{self.prompt}\0{self.completion}{test}")

    @property
    def cursor(self) -> str:
        """Which of CURSORS the completion begins at; empty for a row."""
        if self.kind not in KINDS:
            return ""
        prefix = fim.read(self.prompt).prefix
        return cursor_of(prefix + self.completion, len(prefix))

    @property
    def compared(self) -> str:
        """The text by which duplicates are found. Gaps of one file have their surroundings in common, and may."""
        return self.function or f"{self.prompt}{self.completion}{self.test or ''}"

    @property
    def example_id(self) -> str:
        """The same as 16 hex digits: the evaluation table's key."""
        return f"{self.number:016x}"


def cursor_of(text: str, start: int) -> str:
    """Which of CURSORS a place in a text is."""
    before = text[text.rfind("\n", 0, start) + 1 : start]
    if not before.strip():
        return INDENTED if before else LINE_START
    inside = is_word(text[start - 1]) and start < len(text) and is_word(text[start])
    return MIDTOKEN if inside else MIDLINE


def is_word(character: str) -> bool:
    """Whether a character may stand in a name or number."""
    return character.isalnum() or character == "_"


def hash64(text: str) -> int:
    """A stable 64-bit hash."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8])


def digest(numbers: Any) -> str:
    """Digest of a set of examples by their numbers, 32 hex digits: the same on every machine, whatever the order."""
    ordered = np.sort(np.asarray(numbers, dtype=np.uint64))
    hashed = hashlib.sha256()
    for start in range(0, len(ordered), 4096):
        text = "\n".join(f"{number:016x}" for number in ordered[start : start + 4096].tolist())
        hashed.update(("\n" * (start > 0) + text).encode())
    return hashed.hexdigest()[:32]


class ExampleFile(Sequence[Example]):
    """Examples in a .jsonl file, one line each, read when asked for; 8 bytes of memory for each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = array("Q")
        self._file: IO[bytes] | None = None
        self._opened_by = 0

    @classmethod
    def open(cls, path: Path) -> "ExampleFile":
        """A file that was written before."""
        found = cls(path)
        with path.open("rb") as file:
            start = 0
            for line in file:
                found._starts.append(start)
                start += len(line)
        return found

    def append_to(self, file: IO[bytes], example: Example) -> None:
        """Write an example at the end of this file, which the caller has open for writing."""
        self._starts.append(file.tell())
        file.write(to_line(example))

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if self._file is None or self._opened_by != os.getpid():  # a process that was forked shares the place in it
            self._file, self._opened_by = self.path.open("rb"), os.getpid()
        self._file.seek(self._starts[index])
        return from_line(self._file.readline())


def to_line(example: Example) -> bytes:
    """A row of a prepared .jsonl file."""
    row = {name: value for name, value in asdict(example).items() if value is not None}
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"


def from_line(line: bytes) -> Example:
    row: dict[str, Any] = json.loads(line)
    return Example(**row)
