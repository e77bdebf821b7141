"""The statistics of a trial on live traffic: valid however often, and whenever, somebody looks.

Design-based: what is random is the arm that each request was given, by a known chance, and nothing is assumed of the
requests. They may come in bursts, depend on one another, and change from hour to hour. Each one adds
φ = (Y − m)(A/p − (1 − A)/(1 − p)) to the evidence: Y is what became of it, A whether the challenger had it, p the
chance of that, and m a forecast from earlier requests alone, which takes out what differs between users. The mean of φ
estimates the mean effect over the requests so far; its bounds are asymptotic confidence sequences.

Sources: Ham, Bojinov, Lindon and Tingley, "Design-Based Confidence Sequences" (2022), for φ and Σφ² as its variance;
Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory" (2021), for asymptotic bounds;
Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences" (2021), for the
one-sided normal mixture. tests/bench/trials.py simulates how often they are wrong, and is where the constants come
from.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_ndtr, logsumexp

Floats = NDArray[np.float64]
SPREAD = 0.2  # variance of an outcome that is 0 or 1 and known by its user's rate
SHARPEST_AT = 300  # requests at which the bounds are sharpest
LEAST = 10  # requests of each arm, before which nothing is said
# Few figures look too sure of themselves, above all those of a small arm whose rare outcomes have not come yet.
SEEN_BEFORE = 6  # requests of an unknown outcome that count as seen
# The share of the variance that it would have if both arms' outcomes differed as much, by the challenger's share.
SMALL, EVEN = (0.05, 0.1), (0.8, 0.5)
OWN, OVERALL = 10.0, 4.0  # requests after which a user's own mean counts as much as all users', and theirs as expected
STEPS = 2048  # of the table of bounds
# Log odds by which a split may differ from the one that was asked for, and how likely each is held to be.
TILTS = np.concatenate([-np.geomspace(3.0, 0.01, 24), np.geomspace(0.01, 3.0, 24)])


@dataclass(frozen=True)
class Path:
    """After each request, (n,): the estimated effect of the challenger, and its bounds."""

    estimate: Floats
    low: Floats  # each is one-sided at alpha, over all requests together
    high: Floats


def effect(
    outcomes: Floats,
    challenger: NDArray[np.bool_],
    shares: Floats,
    users: NDArray[np.int64],
    alpha: float,
    expected: float = 0.0,
    spread: float = SPREAD,
) -> Path:
    """By how much the challenger changes the mean of an outcome.

    outcomes, challenger, shares, users: (n,), of the requests in their order: what became of each, whether it was the
    challenger's, the chance of that (inside 0 and 1), and the number of its user.
    expected, spread: mean and variance that outcomes are held to have: the bounds are made for them, and hold for any.
    """
    if len(outcomes) == 0:
        return Path(*(np.empty(0),) * 3)
    counts = np.arange(1, len(outcomes) + 1)
    left = outcomes - forecasts(outcomes, users, expected)
    terms = left * np.where(challenger, 1 / shares, -1 / (1 - shares))
    sums, both = np.cumsum(terms), 1 / shares + 1 / (1 - shares)
    even = np.interp(np.minimum(shares, 1 - shares), SMALL, EVEN)
    unit = float(both[0]) * spread  # the variance of one request
    variance = np.maximum(np.cumsum(terms**2), np.cumsum(even * left**2 * both)) + SEEN_BEFORE * unit
    away = boundary(variance, SHARPEST_AT * unit, alpha) / counts
    theirs = np.cumsum(challenger)
    away[np.minimum(theirs, counts - theirs) < LEAST] = math.inf
    estimate = sums / counts
    return Path(estimate, estimate - away, estimate + away)


def forecasts(outcomes: Floats, users: NDArray[np.int64], expected: float = 0.0) -> Floats:
    """Of each request, from those before it: its user's mean, drawn to the mean of all while there are few. (n,)"""
    overall = (np.cumsum(outcomes) - outcomes + OVERALL * expected) / (np.arange(len(outcomes)) + OVERALL)
    found = np.empty_like(outcomes)
    for user in np.unique(users):
        own = users == user
        values = outcomes[own]
        found[own] = (np.cumsum(values) - values + OWN * overall[own]) / (np.arange(len(values)) + OWN)
    return found


def boundary(variance: Floats, sharpest: float, alpha: float) -> Floats:
    """What a sum with such a variance exceeds, at any time, with a probability of at most alpha.

    sharpest: the variance at which it is lowest for its alpha.
    """
    sharp = _mixed(sharpest, alpha)
    grid = np.geomspace(variance.min() * 0.999, variance.max() * 1.001, STEPS)
    return np.asarray(np.interp(variance, grid, _boundary(grid, sharp, alpha)), dtype=np.float64)


def _boundary(variance: Floats, rho: float, alpha: float) -> Floats:
    """Howard et al.'s one-sided normal mixture with precision rho: there is no closed form, so by halving."""
    low, high = (
        np.zeros_like(variance),
        np.sqrt(2 * (variance + rho) * (0.5 * np.log1p(variance / rho) - np.log(alpha))),
    )
    for _ in range(60):
        middle = (low + high) / 2
        beyond = _log_mixture(middle, variance, rho) > -math.log(alpha)
        low, high = np.where(beyond, low, middle), np.where(beyond, middle, high)
    return np.asarray(high, dtype=np.float64)


def _log_mixture(sums: Floats, variance: Floats, rho: float) -> Floats:
    wide = variance + rho
    return np.asarray(
        math.log(2) + 0.5 * np.log(rho / wide) + sums**2 / (2 * wide) + log_ndtr(sums / np.sqrt(wide)), dtype=np.float64
    )


@lru_cache(64)  # at each look it is asked for the same few
def _mixed(variance: float, alpha: float) -> float:
    """The mixture's precision whose boundary is lowest at this variance."""

    def width(log_rho: float) -> float:
        return float(_boundary(np.array([variance]), math.exp(log_rho), alpha)[0])

    middle = math.log(variance)
    return math.exp(float(minimize_scalar(width, bounds=(middle - 8, middle + 4), method="bounded").x))


def split_evidence(challenger: NDArray[np.bool_], shares: Floats) -> Floats:
    """After each request, (n,): the natural logarithm of the evidence that the arms are not split as was asked for.

    An e-process, exactly: beyond log(1/alpha) with a probability of at most alpha, at any time. It bets on some odds
    that differ from those of the shares, which may change from request to request.
    """
    odds = np.where(challenger[:, None], TILTS, 0.0) - np.log1p(shares[:, None] * np.expm1(TILTS))
    return np.asarray(logsumexp(np.cumsum(odds, axis=0), axis=1) - math.log(len(TILTS)), dtype=np.float64)
