"""Files that were made from other files of the same code base, or are the same but for `async`; told by path and text.

    twins = FileTwins()
    twins.add("src/util.ts", text, "typescript")     # each file, in order
    twins.add("lib/util.cjs", text, "javascript")
    twins.generated()                                # {1: 0}: compiled from file 0
    twins.groups()                                   # [0, 0]: what must be on one side of a split

Equal names alone say nothing, every folder has its index.ts: texts have sequences of tokens in common as well.
"""

import re
from array import array
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt

from trainer.data.folding import characters, tokens

SHINGLE = 4  # tokens in a sequence
KEPT = 128  # of a file's sequences: the smallest hashes, which are a fair sample
GENERATED = 0.5  # share of a file's sequences that are in another with its name: made from it
MIRRORED = 0.25  # the same, where both are in folders of the same names: lib/a/b.js, src/a/b.ts
PAIRED = 0.3  # the same, of files with the same name but for `async`
MOST = 16  # files with a name that one is compared with, those in folders of the same names first

# Which of two files with one name is the original: TypeScript, then the plainer JavaScript.
SCRIPTS = {".ts": 0, ".tsx": 0, ".mts": 0, ".cts": 0, ".js": 1, ".jsx": 1, ".mjs": 2, ".cjs": 3}
# Folders that compilers write to; of two files with one suffix, the one outside of them is the original.
WRITTEN = {"lib", "es", "esm", "es5", "es6", "cjs", "umd", "commonjs", "module", "modules", "out", "output", "compiled"}
ASYNC = {"async", "asyncio", "asynchronous", "aio", "sync", "synchronous"}  # words in a path
_ASYNC_NAME = re.compile(r"async_?|(?<=^__)a(?=enter__|exit__|iter__|next__)|^a(?=close|read|write|iter|next|send)")
# What CommonJS adds: exports.f = f, (0, util_1.f)(x), and helpers for what `import` and `export *` do.
_COMMONJS = re.compile(
    r"^var __\w+ = \(this && (?s:.*?)^\}\)*;$|^Object\.defineProperty\(exports,.*;$|^exports\.[\w$]+ = [\w$. =]+;$"
    r"|\bexports\.|\b\w+_\d\.|\(0, (?=[\w.$]+\)\()",
    re.MULTILINE,
)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+")


class FileTwins:
    """Files in the order in which they were added; a sample of each in memory, of 500 bytes at most, and its path."""

    def __init__(self) -> None:
        self._paths: list[str] = []
        self._sizes = array("I")  # sequences of each
        self._samples: list[npt.NDArray[np.uint32]] = []

    def add(self, path: str, text: str, language: str) -> None:
        """Take in one more file."""
        if language == "javascript":
            text = _COMMONJS.sub("", text)
        found = (_ASYNC_NAME.sub("", token.lower()) or token for token in tokens(text, language))
        codes = np.frombuffer(characters(found).encode("utf-16-le"), dtype=np.uint16).astype(np.uint64)
        mixed = np.zeros(max(0, len(codes) - SHINGLE + 1), dtype=np.uint64)
        for place in range(SHINGLE):
            mixed = (mixed ^ codes[place : place + len(mixed)]) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
        hashes = np.unique(mixed.astype(np.uint32))
        self._paths.append(path)
        self._sizes.append(len(hashes))
        self._samples.append(hashes[:KEPT].copy())

    def generated(self) -> dict[int, int]:
        """The number of the original, by the number of the file that was made from it.

        JavaScript that was compiled from TypeScript or from other JavaScript with the same name, in whatever folder.
        """
        by_name: defaultdict[str, list[int]] = defaultdict(list)
        for number, path in enumerate(self._paths):
            if PurePosixPath(path).suffix.lower() in SCRIPTS:
                by_name[PurePosixPath(path).stem].append(number)
        originals: dict[int, int] = {}
        for numbers in by_name.values():
            ranks = {number: _rank(self._paths[number]) for number in numbers}
            for number in sorted(numbers, key=lambda item: ranks[item]):  # originals before what is made from them
                others = [other for other in numbers if ranks[other] < ranks[number] and other not in originals]
                found = self._nearest(number, others, GENERATED, MIRRORED)
                if found is not None:
                    originals[number] = found
        return originals

    def groups(self) -> list[int]:
        """The first file, by number, with which each must share a side: itself, where it has no twin.

        Twins are what `generated` finds, and the asynchronous and the synchronous version of a file.
        """
        twins = self.generated()
        by_name: defaultdict[frozenset[str], list[int]] = defaultdict(list)
        for number, path in enumerate(self._paths):
            words = _words(path)
            if number in twins:
                continue
            others = [other for other in by_name[words - ASYNC] if ASYNC & words != ASYNC & _words(self._paths[other])]
            by_name[words - ASYNC].append(number)
            found = self._nearest(number, others, PAIRED, PAIRED)
            if found is not None:
                twins[number] = found
        groups = list(range(len(self._paths)))
        for number, other in twins.items():
            one, two = _root(groups, number), _root(groups, other)
            groups[max(one, two)] = min(one, two)
        return [_root(groups, number) for number in groups]

    def _nearest(self, number: int, others: Iterable[int], share: float, mirrored: float) -> int | None:
        """The other file that holds the most of a file's sequences, where that is this share or more."""
        folders = _folders(self._paths[number])
        closest = sorted(others, key=lambda other: -_common(folders, _folders(self._paths[other])))
        found = [
            (contained, -place, other)
            for place, other in enumerate(closest[:MOST])
            if (contained := self._contained(number, other))
            >= (mirrored if _folders(self._paths[other]) == folders else share)
        ]
        return max(found)[2] if found else None

    def _contained(self, number: int, other: int) -> float:
        """The share of a file's sequences that another has, from samples: right to about 0.1."""
        one, two = self._samples[number], self._samples[other]
        if not len(one) or not len(two):
            return 0.0
        both = np.union1d(one, two)[:KEPT]
        jaccard = np.isin(both, one).dot(np.isin(both, two).astype(float)) / len(both)
        common = jaccard * (self._sizes[number] + self._sizes[other]) / (1 + jaccard)
        return min(1.0, float(common) / self._sizes[number])


def _rank(path: str) -> tuple[int, bool]:
    """The lowest is the original."""
    found = PurePosixPath(path)
    return SCRIPTS[found.suffix.lower()], not WRITTEN.isdisjoint(found.parts[:-1])


def _folders(path: str) -> tuple[str, ...]:
    """The folders that a file is in, but for those that say whether it was written by hand."""
    return tuple(folder for folder in PurePosixPath(path).parts[:-1] if folder != "src" and folder not in WRITTEN)


def _words(path: str) -> frozenset[str]:
    return frozenset(map(str.lower, _WORD.findall(path)))


def _common(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many folders two paths have in common, from the last on."""
    count = 0
    for mine, theirs in zip(reversed(one), reversed(other), strict=False):
        if mine != theirs:
            break
        count += 1
    return count


def _root(groups: list[int], number: int) -> int:
    while groups[number] != number:
        number = groups[number]
    return number
