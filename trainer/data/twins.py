"""Twins of held-out functions among those to train on, by edit distance of tokens; on disk.

    twins = Twins(folder)
    twins.add(text, "python")                                # each, in order
    best, hits = twins.similar(held_out, train, threshold)   # the measure, and what not to train on

MinHash of 5-grams (`duplicates.py`) finds what is alike among all texts, and forgives short functions: one token that
differs is in five of their 5-grams. Here only the few that are held out are compared with all others, pair by pair, as
they stand and folded (`folding.py`), so that neither a renaming nor types hide a twin.
"""

from array import array
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Indel
from rapidfuzz.process import cdist

from trainer.data.folding import fold, spell

FLOOR = 0.7  # similarities below are not told apart: 0
SHORT = 20  # folded tokens: getters and the like, of which many are equal but for their names
MOST = 2048  # tokens of a text that are compared: its first, of as many characters as they hardly ever have
CHARACTERS = 16 * MOST
CHUNK = 4096  # texts in memory at a time
ROUNDING = 1e-6  # of similarities
BITS = 1024  # of a text's signature

Flags = npt.NDArray[np.bool_]


class Twins:
    """Texts in the order in which they were added, on disk; 28 bytes of memory for each, and as much for its part."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._spelled = [_Strings(folder / name) for name in ("plain", "numbered", "ranked")]
        self._owners = array("I")  # of each string: the number of the text that it is, or that it is a part of
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, text: str, language: str, part: str = "") -> None:
        """Take in one more text, and a part of it that is to have no twin either: the body of a function."""
        for piece in filter(str.strip, (text[:CHARACTERS], part[:CHARACTERS])):
            for strings, spelling in zip(self._spelled, (spell(piece), *fold(piece, language)), strict=True):
                strings.add(spelling)
            self._owners.append(self._count)
        self._count += 1

    def similar(self, texts: Flags, among: Flags, threshold: float) -> tuple[npt.NDArray[np.float32], Flags]:
        """(similarity of each of the `texts` to its nearest among some others, which of those are a twin of one).

        `texts`, `among` and the second result have a flag for each text that was added; the first result has one
        number for each of the `texts`, in their order: 2 * common / (tokens of both), common in the same order, of
        the texts or their parts, as they stand or folded, whichever is most; 0 below FLOOR. A twin has `threshold` or
        more (FLOOR at least); folded only where both have SHORT tokens, for most getters are alike but for their
        names. Of a text that is still so similar to others when the twins are gone there are many in any code: judge
        by it, and you measure little.
        """
        owners = np.asarray(self._owners)
        wanted, others = np.flatnonzero(texts[owners]), np.flatnonzero(among[owners])
        best = np.zeros(len(wanted), dtype=np.float32)
        hits = np.zeros(len(self), dtype=bool)
        for strings, shortest in zip(self._spelled, (0, SHORT, SHORT), strict=True):
            looked_for = strings.read(wanted)
            for start in range(0, len(others), CHUNK):
                numbers = others[start : start + CHUNK]
                found = _compare(looked_for, strings.read(numbers), threshold, shortest, best)
                hits[owners[numbers[found]]] = True
        nearest = np.zeros(len(self), dtype=np.float32)
        np.maximum.at(nearest, owners[wanted], best)
        return nearest[texts], hits

    def close(self) -> None:
        for strings in self._spelled:
            strings.file.close()


class _Strings:
    """Strings in a file, two bytes a character."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w+b")
        self._ends = array("Q", [0])  # in bytes

    def add(self, text: str) -> None:
        self._ends.append(self._ends[-1] + self.file.write(text[:MOST].encode("utf-16-le")))

    def read(self, numbers: npt.NDArray[Any]) -> list[str]:
        """The strings of these numbers."""
        found = []
        for number in numbers.tolist():
            self.file.seek(self._ends[number])
            found.append(self.file.read(self._ends[number + 1] - self._ends[number]).decode("utf-16-le"))
        return found


def _compare(wanted: list[str], others: list[str], threshold: float, shortest: int, best: npt.NDArray[Any]) -> Flags:
    """Which of the others are twins; raises `best`, of each that is wanted, where they come nearer."""
    order = np.argsort([len(text) for text in others], kind="stable")
    others = [others[number] for number in order]
    lengths, signatures = np.array([len(text) for text in others]), _signatures(others)
    found = np.zeros(len(others), dtype=bool)
    for number, (text, signature) in enumerate(zip(wanted, _signatures(wanted), strict=True)):
        cutoff = min(threshold, max(FLOOR, float(best[number]))) - ROUNDING
        bounds = len(text) * cutoff / (2 - cutoff), len(text) * (2 - cutoff) / cutoff  # lengths that allow as much
        first, last = np.searchsorted(lengths, np.ceil(bounds[0])), np.searchsorted(lengths, bounds[1], side="right")
        # Each bit that differs is a token to insert or to delete.
        edits = np.bitwise_count(signatures[first:last] ^ signature).sum(axis=1, dtype=np.int32)
        near = first + np.flatnonzero(edits <= (1 - cutoff) * (lengths[first:last] + len(text)))
        if not len(near):
            continue
        candidates = [others[other] for other in near]
        scores = cdist([text], candidates, scorer=Indel.normalized_similarity, score_cutoff=cutoff, dtype=np.float32)[0]
        best[number] = max(best[number], scores.max())
        if len(text) >= shortest:
            found[order[near[(scores >= threshold - ROUNDING) & (lengths[near] >= shortest)]]] = True
    return found


def _signatures(texts: list[str]) -> npt.NDArray[np.uint64]:
    """A bit for each token with the number of times that it came before, by hash, (len(texts), BITS / 64)."""
    codes = np.frombuffer("".join(texts).encode("utf-16-le"), dtype=np.uint16).astype(np.int64)
    owners = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    keys = np.sort(owners << 16 | codes)
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])) if len(keys) else np.zeros(0, dtype=np.int64)
    times = np.arange(len(keys)) - np.repeat(starts, np.diff(np.append(starts, len(keys))))
    bits = np.zeros((len(texts), BITS), dtype=bool)
    bits[keys >> 16, ((keys & 0xFFFF) * 40503 + times * 2654435761 >> 7) % BITS] = True
    return np.packbits(bits, axis=1).view(np.uint64)
