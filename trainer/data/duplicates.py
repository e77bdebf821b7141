"""Exact and near duplicates among many texts, by MinHash and locality-sensitive hashing, on disk.

`datasketch` makes the signatures. Its index keeps every one of them in memory, 1 GB for a million texts; here they lie
in files, and memory holds one band's keys at a time: about 60 bytes a text.
"""

import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from datasketch import MinHash, MinHashLSH

from trainer.data.example import hash64

PERMUTATIONS = 128  # of a MinHash: similarities are right to about 0.04
SHINGLE = 5  # tokens
TWIN = (
    0.5  # similarity of what is no duplicate, and yet so alike that who learned the one has an easy time with the other
)
CHUNK = 4096  # signatures in memory at a time, when each is compared
REPRESENTATIVES = 8  # of the texts that share a band's key: each further one is compared to these


class Fingerprints:
    """The signatures of texts, in the order in which they were added."""

    def __init__(self, folder: Path, threshold: float) -> None:
        """`threshold`: Jaccard similarity of token 5-grams from which two texts count as duplicates."""
        folder.mkdir()
        self.threshold = threshold
        # An index finds pairs near its threshold with a chance only: this one looks further, and `_similar` decides.
        index = MinHashLSH(threshold=max(0.1, threshold - 0.3), num_perm=PERMUTATIONS)
        self._bands, self._rows = index.b, index.r
        random = np.random.default_rng(0)
        self._mix = random.integers(1, 2**63, self._rows, dtype=np.uint64) | np.uint64(1)
        self._blank = MinHash(num_perm=PERMUTATIONS)
        self._signatures = (folder / "signatures").open("w+b")
        self._keys = [(folder / f"band{number}").open("w+b") for number in range(self._bands)]
        self._exact = array("Q")  # hash of the tokens

    def __len__(self) -> int:
        return len(self._exact)

    def add(self, text: str) -> None:
        """Take in one more text."""
        tokens = re.findall(r"\w+|[^\w\s]", text)
        self._exact.append(hash64(" ".join(tokens)))
        starts = range(max(1, len(tokens) - SHINGLE + 1))
        shingles = {" ".join(tokens[start : start + SHINGLE]) for start in starts}
        minhash = self._blank.copy()
        minhash.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in shingles])
        signature = minhash.hashvalues.astype(np.uint32)
        self._signatures.write(signature.tobytes())
        banded = signature[: self._bands * self._rows].reshape(self._bands, self._rows).astype(np.uint64)
        with np.errstate(over="ignore"):
            keys = (banded * self._mix).sum(axis=1, dtype=np.uint64)
            keys ^= keys >> np.uint64(29)
        for file, key in zip(self._keys, keys, strict=True):
            file.write(key.tobytes())

    def duplicates(self, live: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """(is it exactly, is it nearly the same as an earlier text?) of each; only the `live` are looked at.

        Texts that are alike, directly or through others, keep their first.
        """
        exact = np.zeros(len(self), dtype=bool)
        parents = np.arange(len(self), dtype=np.int32)
        hashes = np.asarray(self._exact)
        for members in _groups(hashes, live):
            exact[members[1:]] = True
            parents[members[1:]] = members[0]
        live = live & ~exact
        self._signatures.flush()
        for file in self._keys:
            file.seek(0)
            for members in _groups(np.fromfile(file, dtype=np.uint64), live):
                self._join(members, parents)
        near = live & (parents != np.arange(len(self)))
        return exact, near

    def with_twin(self, texts: npt.NDArray[np.bool_], among: npt.NDArray[np.bool_]) -> int:
        """How many of the texts share half of their token 5-grams with one of some others (Jaccard, to about 0.04).

        Each is compared with each, by signature: 20 s for a thousand texts among a million.
        """
        self._signatures.flush()
        every = np.memmap(self._signatures, dtype=np.uint32, mode="r").reshape(-1, PERMUTATIONS)
        wanted = every[np.flatnonzero(texts)]  # (texts, PERMUTATIONS)
        found = np.zeros(len(wanted), dtype=bool)
        others = np.flatnonzero(among)
        for start in range(0, len(others), CHUNK):
            chunk = every[others[start : start + CHUNK]]
            for number in np.flatnonzero(~found):
                same = np.count_nonzero(chunk == wanted[number], axis=1)
                found[number] = same.max() >= TWIN * PERMUTATIONS
        return int(found.sum())

    def _join(self, members: Sequence[int], parents: npt.NDArray[np.int32]) -> None:
        """Put those of some texts into one cluster that are alike."""
        representatives = [members[0]]
        for member in members[1:]:
            own = _root(parents, member)
            for other in representatives:
                root = _root(parents, other)
                if own == root or self._similar(member, other):
                    parents[max(own, root)] = min(own, root)
                    break
            else:
                if len(representatives) < REPRESENTATIVES:
                    representatives.append(member)

    def _similar(self, one: int, other: int) -> bool:
        return float((self._signature(one) == self._signature(other)).mean()) >= self.threshold

    def _signature(self, number: int) -> npt.NDArray[np.uint32]:
        self._signatures.seek(number * 4 * PERMUTATIONS)
        return np.frombuffer(self._signatures.read(4 * PERMUTATIONS), dtype=np.uint32)

    def close(self) -> None:
        file: IO[bytes]
        for file in (self._signatures, *self._keys):
            file.close()


def _groups(keys: npt.NDArray[np.uint64], live: npt.NDArray[np.bool_]) -> Iterator[list[int]]:
    """The numbers of the live texts that share a key, where there are several, each group in order."""
    numbers = np.flatnonzero(live).astype(np.int32)
    order = numbers[np.argsort(keys[numbers], kind="stable")]
    ordered = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(order) else order
    ends = np.append(starts[1:], len(order))
    for group in np.flatnonzero(ends - starts > 1):
        yield order[starts[group] : ends[group]].tolist()


def _root(parents: npt.NDArray[np.int32], number: int) -> int:
    while parents[number] != number:
        parents[number] = parents[parents[number]]
        number = int(parents[number])
    return number
