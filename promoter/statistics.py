"""The gate's statistics: what a paired difference says when whole groups (files) were drawn, and not examples.

Pure functions of arrays. docs/promotion.md says in plain words what they answer; tests/bench/gate.py simulates how
often they are wrong, and is where the constants come from.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import bdtr, stdtr, stdtrit

Floats = NDArray[np.float64]
POWER = 0.8
ROUNDING = 1e-12  # a sum of floats that is smaller than this share of its terms is zero
# Student's t is made less sure where it is known to be too sure: where losses are rare and large, and far out.
FEW = 20  # groups at which that counts most; fewer show no skewness to speak of, and more have seen their losses
FAR_OUT = 0.07
# Flips.
ALL_FLIPS = 16  # groups up to which every pattern of signs is tried: 65,536
MOST_BLOCKS = 256  # more groups are merged at random
MOST_FLIPS = 1_000_000
BEYOND = 10  # flips that shall lie beyond a bound that decides
AT_ONCE = 1 << 14  # flips
# Alpha over many tries.
QUICK, SLOW = 2 / 3, 500  # the share that is spent on the first tries; the tries over which half of the rest goes


@dataclass(frozen=True)
class Compared:
    """An improvement, and how sure it is."""

    estimate: float  # Σ values / Σ weights
    low: float  # bounds of the estimate, each one-sided at alpha; low > -margin if and only if p_value <= alpha
    high: float
    p_value: float  # one-sided, of "no better than -margin"
    groups: int
    better: int  # groups whose sum speaks for the candidate
    worse: int
    detectable: float  # the smallest true improvement that data of this spread show at alpha with 80% power


def compare(
    values: Floats,
    weights: Floats,
    groups: NDArray[np.int64],
    alpha: float,
    resamples: int,
    seed: int,
    margin: float = 0.0,
    worst: float = math.inf,
) -> Compared:
    """Whether Σ values / Σ weights is above -margin, judged by the sums of each group.

    values, weights, groups: (n,), of the examples: the improvement times the weight, the weight, the group's number.
    worst: the most that an example can lose per weight: all that the incumbent has, of a metric that ends at 0. With a
    margin, one more group counts as seen whose √(examples per group) examples lost that much; else twenty examples
    without a loss would be proof that there are none.

    The p-value is the larger of two: of a sign-flip permutation test, exact for differences that are symmetric
    around zero, however few and however far apart; and of a damped Student's t, which also holds for skewed ones.
    Where groups differ in their sums' sign alone (single examples that pass or fail), it is McNemar's exact test.
    """
    sums, sizes = _by_group(values, weights, groups)
    n, estimate = len(sums), float(sums.sum() / sizes.sum())
    better, worse = int((sums > 0).sum()), int((sums < 0).sum())
    shifted = _without_rounding(sums + margin * sizes, np.abs(sums).max(initial=0.0))
    if np.count_nonzero(shifted) < 2 or len(values) < 3:
        return Compared(estimate, -math.inf, math.inf, 1.0, n, better, worse, math.inf)
    bounded = margin > 0 and math.isfinite(worst)
    if bounded:
        one_more = weights.mean() * math.sqrt(len(values) / n)
        shifted, sizes = np.append(shifted, (margin - worst) * one_more), np.append(sizes, one_more)
    exact = _mcnemar(shifted)
    spread = _Spread.of(shifted, sizes, symmetric=bounded or exact is not None)
    p_value = spread.p_value if exact is None else exact
    # Where that says no, flips only make the figures complete.
    flips = max(resamples, math.ceil(BEYOND / alpha)) if p_value <= alpha else resamples
    flipped, low, high = _flip(shifted, sizes, alpha, min(flips, MOST_FLIPS), seed)
    p_value = max(p_value, flipped) if exact is None else exact
    low = min(low, spread.center - spread.reach(alpha, -1)) - margin
    high = max(high, spread.center + spread.reach(alpha, 1)) - margin
    # Rounding, or flips that are all tried for the p-value and drawn for the bound, must not make the two disagree.
    low = max(low, math.nextafter(-margin, math.inf)) if p_value <= alpha else min(low, -margin)
    found = spread.reach(alpha, -1) + float(stdtrit(len(sizes) - 1, POWER)) * spread.error - margin
    return Compared(estimate, low, high, p_value, n, better, worse, found if n >= least_groups(alpha) else math.inf)


def _mcnemar(sums: Floats) -> float | None:
    """The chance of so few against the candidate, where groups speak for or against it, but none louder."""
    discordant = sums[sums != 0]
    if np.ptp(np.abs(discordant)) > ROUNDING * np.abs(discordant).max():
        return None
    return float(bdtr((discordant < 0).sum(), len(discordant), 0.5))


def least_groups(alpha: float) -> int:
    """Groups below which nothing is sure enough: that all speak for the candidate has a chance of 1 in 2ⁿ."""
    return math.ceil(-math.log2(alpha) - 1e-9)


def _by_group(values: Floats, weights: Floats, groups: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Σ values and Σ weights of each group, in an order that neither rows nor numbers of groups decide."""
    rows = np.lexsort((values, weights, groups))  # a sum of floats depends on the order
    _, member = np.unique(groups[rows], return_inverse=True)
    sums = np.bincount(member, values[rows]).astype(float)
    sizes = np.bincount(member, weights[rows]).astype(float)
    order = np.lexsort((sums, sizes, np.abs(sums)))
    return sums[order], sizes[order]


def _without_rounding(sums: Floats, scale: float) -> Floats:
    return np.where(np.abs(sums) <= ROUNDING * scale, 0.0, sums)


@dataclass(frozen=True)
class _Spread:
    """The estimate and its standard error by groups (CR2), and how sure a Student's t of it is."""

    center: float
    error: float
    skewness: float  # 0: not to be damped for
    groups: int

    @classmethod
    def of(cls, sums: Floats, sizes: Floats, symmetric: bool) -> "_Spread":
        total = float(sizes.sum())
        center = float(sums.sum()) / total
        rest = _without_rounding(sums - center * sizes, np.abs(sums).max())
        error = math.sqrt(float((rest**2 / (1 - sizes / total)).sum())) / total
        skewness = 0.0 if symmetric or not error else (rest**3).mean() / (rest**2).mean() ** 1.5
        return cls(center, error, float(skewness), len(sums))

    @property
    def p_value(self) -> float:
        if not self.error:
            return 0.0 if self.center > 0 else 1.0
        t = self.center / self.error
        return float(stdtr(self.groups - 1, -self._damped(t, -1) if t > 0 else -t))

    def reach(self, alpha: float, side: int) -> float:
        """How far the bound lies from the estimate, below (-1) or above (1): the damping turned round."""
        if not self.error:
            return 0.0
        wanted = -float(stdtrit(self.groups - 1, alpha))
        if wanted <= 0:
            return wanted * self.error
        skewed, far = self._damping(side)
        most = wanted + wanted**2 * math.sqrt(skewed) + wanted**4 * far
        return float(brentq(lambda t: self._damped(t, side) - wanted, wanted / 2, 2 * most, maxiter=1000)) * self.error

    def _damped(self, t: float, side: int) -> float:
        skewed, far = self._damping(side)
        return float(t / (1 + skewed * t**2 + far * t**3) ** 0.25)

    def _damping(self, side: int) -> tuple[float, float]:
        """Rare and large deviations on that side make the sample look better than it is."""
        much = min(FEW / self.groups, self.groups / FEW)
        return (much * max(0.0, side * self.skewness) ** 2) ** 2, FAR_OUT * much**2


def _flip(sums: Floats, sizes: Floats, alpha: float, flips: int, seed: int) -> tuple[float, float, float]:
    """The sign-flip test's p-value of Σ sums > 0, and bounds of Σ sums / Σ sizes that come out of the same flips.

    To flip a set of groups reaches the sum if and only if their own sum is not above 0; and their own ratio is a
    "typical value" of the estimate (Hartigan 1969), so that quantiles of these ratios are bounds.
    """
    if len(sums) > MOST_BLOCKS:
        block = np.random.default_rng(seed).permutation(len(sums)) % MOST_BLOCKS
        merged = _without_rounding(np.bincount(block, sums).astype(float), np.abs(sums).max())
        told, told_sizes = merged, np.bincount(block, sizes).astype(float)
    else:
        told, told_sizes = sums, sizes
    typical, own = _typical(told, told_sizes, flips, seed)
    tried = len(typical) + own
    discordant = sums[sums != 0]
    few = len(discordant) <= ALL_FLIPS < len(sums)
    exact, one = _typical(discordant, np.ones_like(discordant), flips, seed) if few else (typical, own)
    reached = int((exact <= 0).sum()) + one
    p_value = reached / (len(exact) + one)
    if one and reached == one and p_value > alpha:
        p_value = 0.5 ** len(discordant)  # no flip can tell more; Student's t has to
    # The pattern that flips nothing is among all patterns, and has to be added to those that were drawn.
    k = math.floor(alpha * tried * (1 + ROUNDING)) - own
    if k < 0:
        return p_value, math.inf, -math.inf  # too few flips to say anything on a bound
    k = min(k, len(typical) - 1)
    mirrored = np.where(np.isneginf(typical), np.inf, typical)
    return p_value, float(np.partition(typical, k)[k]), float(-np.partition(-mirrored, k)[k])


def _typical(sums: Floats, sizes: Floats, flips: int, seed: int) -> tuple[Floats, int]:
    """Σ sums / Σ sizes of the flipped in each pattern, -∞ if none is; 1 if the patterns were drawn, 0 if all."""
    n = len(sums)
    every = n <= ALL_FLIPS
    count = 2**n if every else flips
    # A byte says of eight groups which are flipped; what each byte adds up to is known beforehand.
    eights = -(-n // 8)
    pairs = np.zeros((eights, 8), complex)
    pairs.flat[:n] = sums + 1j * sizes
    added = pairs @ ((np.arange(256)[:, None] >> np.arange(8)) & 1).T  # (eights, 256)
    scale, generator = np.abs(sums).sum(), np.random.default_rng((seed, n))
    found = []
    for start in range(0, count, AT_ONCE):
        size = min(AT_ONCE, count - start)
        if every:
            patterns = np.arange(start, start + size, dtype="<u2").view(np.uint8).reshape(size, 2)
        else:
            patterns = np.frombuffer(generator.bytes(size * eights), np.uint8).reshape(size, eights)
        total = np.zeros(size, complex)
        for eight in range(eights):
            total += added[eight].take(patterns[:, eight])
        top = _without_rounding(total.real, scale)
        found.append(np.divide(top, total.imag, out=np.full(size, -np.inf), where=total.imag > 0))
    return np.concatenate(found), int(not every)


def spend(alpha: float, earlier: int, at_once: int = 1) -> float:
    """The alpha for each of `at_once` candidates, after `earlier` others were tried against the same incumbent.

    Over all tries there will ever be, that adds up to alpha: the chance of any false promotion against this
    incumbent stays below it, however the tries depend on each other (Bonferroni). Each promotion starts anew, as
    LORD does after each discovery. Two thirds go to the first tries, as 1/(k(k+1)), and one third slowly, as
    500/((k+499)(k+500)), so that round 300 still has a share. Several tried together share theirs in equal parts.
    """
    return alpha * (_spent(earlier + at_once) - _spent(earlier)) / at_once


def _spent(tries: int) -> float:
    return QUICK * tries / (tries + 1) + (1 - QUICK) * tries / (tries + SLOW)
