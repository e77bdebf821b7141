"""Are production's prompts like the code that was trained on?

Each prompt is compared with a part of the training sample, the library, by hashed character n-grams: how like it is to
the piece that it is most like. The rest of the sample says how alike training code is to itself. A prompt is unlike it
where all but 1% of the rest are more alike. Some of production's always are, since people do not ask where examples are
made; more than that is drift, unless chance explains it, which permutations of whole files tell: prompts of one file
resemble each other.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]

UNLIKE = 0.01  # share of the training code that is called unlike the rest of it
TOLERANCE = 0.04
SHORT = 0.2  # share of the training code, or of the prompts, that may be shorter than what is compared
LIBRARY = 2 / 3  # of the sample, that others are compared with
LEAST_SAMPLE, LEAST_PROMPTS, LEAST_FILES = 200, 50, 5  # for a verdict
FEATURES = 2**18
ENOUGH, MOST_PERMUTATIONS, AT_ONCE = 20, 100_000, 2_000
LEAST_P = 1 / (MOST_PERMUTATIONS + 1)  # that can be found
WORD = re.compile(r"[^\W\d]\w{2,}")
MOST_WORDS = 20


@dataclass(frozen=True)
class Piece:
    """A piece of code, and what it has in common with others: its file, or a user's day where that is not known."""

    code: str
    group: str


@dataclass(frozen=True)
class Unlikeness:
    """How many of production's prompts are unlike the code that was trained on."""

    prompts: int
    files: int
    share: float  # of the prompts
    expected: float  # of training code
    p: float  # how likely a share so far above what is tolerated is by chance
    words: tuple[tuple[str, int], ...]  # that trained code does not know, and in how many of the prompts' files


def compare(
    sample: Sequence[Piece], prompts: Sequence[Piece], tolerance: float = TOLERANCE, seed: int = 0
) -> Unlikeness:
    """Of a sample of the training code and production's prompts. Raises ValueError where either is too little.

    `tolerance`: by which share the prompts that are unlike may exceed those of the sample.
    """
    if sample and prompts:
        sample, prompts = _of_one_length(sample, prompts)
    files = len({piece.group for piece in prompts})
    if len(sample) < LEAST_SAMPLE:
        raise ValueError(f"{len(sample)} pieces of training code can be compared with, and it takes {LEAST_SAMPLE}")
    if len(prompts) < LEAST_PROMPTS or files < LEAST_FILES:
        raise ValueError(
            f"{len(prompts)} prompts of {files} files can be compared, and it takes {LEAST_PROMPTS} of {LEAST_FILES}"
        )
    dice = np.random.default_rng(seed)
    order = dice.permutation(len(sample))
    cut = round(LIBRARY * len(sample))
    library, rest = [sample[number] for number in order[:cut]], [sample[number] for number in order[cut:]]
    likeness = _likeness([piece.code for piece in library], [piece.code for piece in (*rest, *prompts)])
    limit = np.quantile(likeness[: len(rest)], UNLIKE)
    unlike = likeness < limit
    groups = [*(f"trained {piece.group}" for piece in rest), *(f"asked {piece.group}" for piece in prompts)]
    asked = np.arange(len(groups)) >= len(rest)
    return Unlikeness(
        prompts=len(prompts),
        files=files,
        share=float(unlike[asked].mean()),
        expected=float(unlike[~asked].mean()),
        p=by_chance(unlike - tolerance * asked, np.ones(len(groups)), groups, asked, dice),
        words=_words(library, [piece for piece, is_unlike in zip(prompts, unlike[asked], strict=True) if is_unlike]),
    )


def _of_one_length(sample: Sequence[Piece], prompts: Sequence[Piece]) -> tuple[list[Piece], list[Piece]]:
    """Both cut to a length that most of either have: a training example sees less before its cursor than an editor
    sends, and short pieces are less alike than long ones."""
    length = min(int(np.quantile([len(piece.code) for piece in pieces], SHORT)) for pieces in (sample, prompts))
    cut = [[Piece(piece.code[-length:], piece.group) for piece in pieces] for pieces in (sample, prompts)]
    return cut[0], cut[1]


def _likeness(library: list[str], texts: list[str]) -> Numbers:
    """Of each text to the piece of the library that it is most like: cosine, (len(texts),)."""
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

    grams = HashingVectorizer(
        analyzer="char_wb", ngram_range=(3, 5), n_features=FEATURES, alternate_sign=False, lowercase=False
    )
    weights = TfidfTransformer().fit(known := grams.transform(library))
    books = weights.transform(known).T.tocsr()
    found = [
        np.asarray((weights.transform(grams.transform(texts[start : start + 256])) @ books).max(axis=1).todense())
        for start in range(0, len(texts), 256)
    ]
    return np.concatenate(found).ravel()


def by_chance(
    values: Numbers, weights: Numbers, groups: Sequence[str], theirs: Numbers, dice: np.random.Generator
) -> float:
    """How likely `theirs` exceed the others in weighted mean as they do, if groups had been dealt to both at random.

    All arguments are of one length; a group is on one side. A Monte Carlo p-value (Besag and Clifford 1991): valid, and
    permuted more often only where it is small.
    """
    _, number = np.unique(np.asarray(groups), return_inverse=True)
    sums, sizes = np.bincount(number, values * weights), np.bincount(number, weights)
    side = np.zeros(len(sums), dtype=bool)
    side[number] = theirs
    count = int(side.sum())

    def difference(chosen: Numbers) -> Numbers:
        ours = chosen.astype(np.float32)
        high, high_weight = ours @ sums, ours @ sizes
        result: Numbers = high / high_weight - (sums.sum() - high) / (sizes.sum() - high_weight)
        return result

    found, reached, done = float(difference(side[None])[0]), 0, 0
    while reached < ENOUGH and done < MOST_PERMUTATIONS:
        chosen = np.zeros((AT_ONCE, len(sums)), dtype=bool)
        places = np.argpartition(dice.random((AT_ONCE, len(sums)), dtype=np.float32), count - 1, axis=1)[:, :count]
        np.put_along_axis(chosen, places, True, axis=1)
        above = difference(chosen) >= found - 1e-9
        ends = np.flatnonzero(np.cumsum(above) == ENOUGH - reached)
        if len(ends):
            return ENOUGH / (done + int(ends[0]) + 1)
        reached, done = reached + int(above.sum()), done + AT_ONCE
    return (reached + 1) / (done + 1)


def _words(library: Sequence[Piece], unlike: Sequence[Piece]) -> tuple[tuple[str, int], ...]:
    known: set[str] = set()
    for piece in library:
        known.update(WORD.findall(piece.code))
    files: defaultdict[str, set[str]] = defaultdict(set)
    for piece in unlike:
        for word in set(WORD.findall(piece.code.partition("\n")[2])) - known:  # its first line may be cut
            files[word].add(piece.group)
    return tuple(Counter({word: len(found) for word, found in files.items()}).most_common(MOST_WORDS))
