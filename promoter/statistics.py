"""The gate's statistics: bootstrap interval of a paired difference, McNemar's test, alpha spent on several tries.

Pure functions of arrays. docs/promotion.md says in plain words what they answer.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, ndtr, ndtri, stdtrit

Floats = NDArray[np.float64]
DRAWN_AT_ONCE = 1 << 17  # indices: 1 MB, which stays in the cache
FEW_KINDS = 16
BLOCK = 250  # resamples from one seed


@dataclass(frozen=True)
class Interval:
    """Two bounds; below `low` lies a share of alpha, and above `high` another."""

    low: float
    high: float


def bca_interval(values: Floats, weights: Floats, alpha: float, resamples: int, seed: int) -> Interval:
    """The BCa bootstrap interval of Σ values / Σ weights over examples; each bound one-sided at alpha.

    values, weights: (n,), of the examples; n of them are drawn with replacement, `resamples` times. Efron (1987):
    bias-corrected and accelerated, so that it also fits where the differences are skewed. Expanded for few examples
    as by Hesterberg (2015): Student's quantiles instead of the normal's, and √(n/(n-1)), since resampling shrinks the
    spread.
    """
    n = len(values)
    estimate = values.sum() / weights.sum()
    if np.ptp(values - estimate * weights) == 0:  # all differences are the same: nothing to draw
        return Interval(float(estimate), float(estimate))
    drawn = _bootstrap(values, weights, resamples, seed)  # (resamples,)
    drawn.sort()
    below = (np.searchsorted(drawn, estimate, "left") + np.searchsorted(drawn, estimate, "right")) / 2
    bias = ndtri(np.clip(below / resamples, 0.5 / resamples, 1 - 0.5 / resamples))
    without = (values.sum() - values) / (weights.sum() - weights)  # (n,), each example left out once
    deviations = without.mean() - without
    acceleration = (deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5)
    wide = np.sqrt(n / (n - 1))
    levels = []
    for z in (wide * stdtrit(n - 1, alpha), wide * stdtrit(n - 1, 1 - alpha)):
        stretch = 1 - acceleration * (bias + z)
        # Far out in a skewed distribution the correction has a pole; behind it, it would turn round.
        levels.append(ndtr(bias + (bias + z) / stretch) if stretch > 0 else float(z > 0))
    return Interval(float(np.quantile(drawn, levels[0])), float(np.quantile(drawn, levels[1])))


def _bootstrap(values: Floats, weights: Floats, resamples: int, seed: int) -> Floats:
    """The ratio in each resample: (resamples,). Same seed, same result, however many cores there are."""
    n = len(values)
    kinds, counts = np.unique(np.stack([values, weights]), axis=1, return_counts=True)  # (2, kinds), (kinds,)
    if len(counts) <= FEW_KINDS:  # pass or fail: how often each kind is drawn says it all
        drawn = np.random.default_rng(seed).multinomial(n, counts / n, resamples)  # (resamples, kinds)
        return np.asarray(drawn @ kinds[0] / (drawn @ kinds[1]), float)
    center = values.mean()
    # Both in one array, so that each draw is one look-up; centred, so that single precision does for the sums.
    pairs = ((values - center) + 1j * weights).astype(np.complex64)  # (n,)
    rows = max(1, DRAWN_AT_ONCE // n)
    sizes = [min(BLOCK, resamples - start) for start in range(0, resamples, BLOCK)]
    seeds = np.random.SeedSequence(seed).spawn(len(sizes))

    def draw(size: int, own: np.random.SeedSequence) -> Floats:
        generator = np.random.Generator(np.random.SFC64(own))
        sums = []
        for start in range(0, size, rows):
            chosen = _indices(generator, n, min(rows, size - start) * n).reshape(-1, n)
            sums.append(pairs.take(chosen, mode="wrap").sum(axis=1))  # "wrap" is the quickest; all are in range
        found = np.concatenate(sums)
        return np.asarray((found.real.astype(float) + n * center) / found.imag.astype(float), float)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy lets go of the interpreter while it draws and adds
        return np.concatenate(list(pool.map(draw, sizes, seeds)))


def _indices(generator: np.random.Generator, n: int, count: int) -> NDArray[np.int64]:
    """`count` numbers below n, of 32 random bits each; `integers(n)` takes twice as long. Uneven by n/2³² at most."""
    words = generator.integers(0, 2**64 - 1, (count + 1) // 2, np.uint64, endpoint=True)
    numbers = words.view(np.uint32).astype(np.uint64)
    numbers *= np.uint64(n)
    numbers >>= np.uint64(32)
    return numbers.view(np.int64)[:count]


def mcnemar(only_candidate: int, only_incumbent: int) -> float:
    """McNemar's exact test, one-sided: the chance of so many wins or more if both were equally good.

    only_candidate, only_incumbent: examples that one passes and the other fails. Without any, 1.
    """
    n = only_candidate + only_incumbent
    return float(bdtr(only_incumbent, n, 0.5)) if n else 1.0


def spend(alpha: float, earlier: int, at_once: int = 1) -> float:
    """The alpha for each of `at_once` candidates, after `earlier` others were tried against the same incumbent.

    The k-th try gets alpha/(k(k+1)); over all tries there will ever be, that adds up to alpha. Several tried together
    share theirs in equal parts.
    """
    first, after = earlier + 1, earlier + 1 + at_once
    return alpha * (1 / first - 1 / after) / at_once
