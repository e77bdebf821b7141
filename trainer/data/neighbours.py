"""Pieces of other files that help at a cursor: of those that its file imports, or that lie beside it.

Which lines of them: those with most names in common with the lines around the cursor, as Tabby and Continue choose.
"""

import re
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from functools import lru_cache
from pathlib import PurePosixPath

from code_model.context import imports_of
from code_model.fim import File
from trainer.data.files import Files

MOST = 3  # files
LINES, STEP = 12, 6  # of a piece; between the beginnings of two
WORD = re.compile(r"[^\W\d]\w{2,}")
GENERIC = {"__init__", "index", "mod", "main", "lib"}  # such a file is known by its folder's name


class Neighbours:
    """Which files of the same repository are of use to which."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._by_name: dict[tuple[str, str], array[int]] = defaultdict(lambda: array("I"))
        self._by_folder: dict[tuple[str, str], array[int]] = defaultdict(lambda: array("I"))
        for path, number in sorted((files.path(number), number) for number in range(len(files))):
            repository = files.repository(number)
            self._by_name[repository, _name(path)].append(number)
            self._by_folder[repository, str(PurePosixPath(path).parent)].append(number)
        self._related = lru_cache(maxsize=64)(self._find)
        self._pieces = lru_cache(maxsize=64)(self._cut)

    def of(self, number: int, near: str, hidden: Set[int]) -> Iterator[File]:
        """Pieces for a cursor in file `number` with the lines `near` around it, from files that are not hidden."""
        words = set(WORD.findall(near))
        imported, beside = self._related(number)
        for other in [item for item in (*imported, *beside) if item not in hidden][:MOST]:
            best = max(self._pieces(other), key=lambda piece: len(piece[1] & words), default=None)
            if best is not None and (best[1] & words or other in imported):
                yield File(self._files.path(other), best[0])

    def _find(self, number: int) -> tuple[list[int], list[int]]:
        """The files that one imports, and those beside it, each the nearest first."""
        file = self._files.get(number)
        words = {word for text in imports_of(file.text) for word in WORD.findall(text)}
        imported = {other for word in words for other in self._by_name.get((file.repository, word), ())}
        folder = self._by_folder[file.repository, str(PurePosixPath(file.path).parent)]
        place = folder.index(number)
        beside = [*reversed(folder[max(0, place - 2 * MOST) : place]), *folder[place + 1 : place + 1 + 2 * MOST]]
        paths = {other: self._files.path(other) for other in imported}
        ordered = sorted(imported, key=lambda other: (-_shared(paths[other], file.path), paths[other]))
        nearest = [other for other in ordered if other != number][: 4 * MOST]
        return nearest, [other for other in beside if other not in nearest]

    def _cut(self, number: int) -> Sequence[tuple[str, frozenset[str]]]:
        lines = self._files.get(number).text.split("\n")
        texts = ["\n".join(lines[start : start + LINES]).strip("\n") + "\n" for start in range(0, len(lines), STEP)]
        return [(text, frozenset(WORD.findall(text))) for text in texts]


def _name(path: str) -> str:
    stem = PurePosixPath(path).name.split(".")[0]
    return PurePosixPath(path).parent.name if stem in GENERIC else stem


def _shared(one: str, other: str) -> int:
    """How many folders two paths have in common."""
    count = 0
    for a, b in zip(PurePosixPath(one).parts, PurePosixPath(other).parts, strict=False):
        if a != b:
            break
        count += 1
    return count
