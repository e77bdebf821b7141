"""The gate's statistics against scipy, and against their own promise: simulated, how often they are wrong."""

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from promoter.statistics import bca_interval, mcnemar, spend

RNG = np.random.default_rng(0)
ALPHA = 0.05


@pytest.mark.parametrize("n", [30, 300])
@pytest.mark.parametrize("kind", ["skewed", "pass or fail"])
def test_interval_is_scipys_bca_but_wider_for_few(n: int, kind: str) -> None:
    rng = np.random.default_rng(n)
    if kind == "skewed":
        values, weights = rng.gamma(0.5, 1, n) - 0.4, rng.integers(1, 50, n).astype(float)
    else:
        values, weights = (rng.random(n) < 0.4).astype(float) - (rng.random(n) < 0.3), np.ones(n)
    theirs = bootstrap(
        (values, weights),
        lambda a, b, axis=-1: a.sum(axis) / b.sum(axis),
        paired=True,
        confidence_level=1 - 2 * ALPHA,
        n_resamples=20_000,
        method="BCa",
        rng=1,
    ).confidence_interval
    ours = bca_interval(values, weights, ALPHA, 20_000, seed=0)
    width = theirs.high - theirs.low
    expansion = {30: 0.06, 300: 0.01}[n]  # of each half: Student's quantile and √(n/(n-1))
    near = {30: 0.1, 300: 0.04}[n] * width  # skewness moves the expansion's place
    assert ours.low == pytest.approx(theirs.low - expansion * width / 2, abs=near)
    assert ours.high == pytest.approx(theirs.high + expansion * width / 2, abs=near)


def test_interval_is_the_same_for_the_same_seed_and_not_for_another() -> None:
    values, weights = RNG.normal(0, 1, 5000), np.ones(5000)
    first = bca_interval(values, weights, ALPHA, 1000, seed=1)
    assert bca_interval(values, weights, ALPHA, 1000, seed=1) == first
    assert bca_interval(values, weights, ALPHA, 1000, seed=2) != first


def test_a_bound_never_turns_round_however_small_alpha_is() -> None:
    """One great loss among small gains: the acceleration has a pole far out."""
    values = np.array([*np.linspace(0.9, 1.1, 19), -10.0])
    lows = [bca_interval(values, np.ones(20), spend(ALPHA, earlier), 20_000, 0).low for earlier in range(0, 400, 20)]
    assert lows == sorted(lows, reverse=True)
    assert lows[0] < 0


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_differences_that_are_all_the_same_need_no_draw(value: float) -> None:
    interval = bca_interval(np.full(20, value), np.ones(20), ALPHA, 1000, 0)
    assert (interval.low, interval.high) == (pytest.approx(value), pytest.approx(value))


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (5, 0), (4, 4), (30, 10), (1, 9)])
def test_mcnemar_is_the_exact_binomial_test(won: int, lost: int) -> None:
    expected = binomtest(won, won + lost, 0.5, alternative="greater").pvalue if won + lost else 1.0
    assert mcnemar(won, lost) == pytest.approx(expected)


def test_alpha_spent_adds_up_to_alpha_however_many_are_tried() -> None:
    assert spend(ALPHA, 0) == pytest.approx(ALPHA / 2)
    assert sum(spend(ALPHA, earlier) for earlier in range(10_000)) == pytest.approx(ALPHA, rel=1e-3)
    # Five tried together share what the five would have got one by one.
    assert 5 * spend(ALPHA, 2, at_once=5) == pytest.approx(sum(spend(ALPHA, earlier) for earlier in range(2, 7)))
    assert spend(ALPHA, 0, at_once=1000) * 1000 < ALPHA


def within(rate: float, tries: int, expected: float, slack: float) -> bool:
    """Whether a simulated rate is the expected one, but for four standard errors and a slack."""
    return abs(rate - expected) < 4 * (expected * (1 - expected) / tries) ** 0.5 + slack


@pytest.mark.parametrize(
    ("draw", "n"),
    [
        (lambda rng, n: rng.normal(0, 1, n), 50),
        (lambda rng, n: rng.laplace(0, 1, n), 100),
        (lambda rng, n: rng.gamma(1, 1, n) - 1, 100),  # skewed, either way
        (lambda rng, n: 1 - rng.gamma(1, 1, n), 100),
    ],
)
def test_equal_models_are_promoted_as_often_as_alpha_says(draw, n: int) -> None:
    """The null hypothesis: differences whose mean is zero. Their interval lies above zero in 5% of the gates."""
    tries, rng = 1000, np.random.default_rng(7)
    weights = rng.integers(5, 60, n).astype(float)
    wrong = 0
    for seed in range(tries):
        wrong += bca_interval(draw(rng, n) * weights, weights, ALPHA, 1000, seed).low > 0
    assert within(wrong / tries, tries, ALPHA, slack=0.01), wrong / tries


def test_equal_models_pass_mcnemar_at_most_as_often_as_alpha_says() -> None:
    tries, rng = 20_000, np.random.default_rng(8)
    won = rng.binomial(60, 0.2, tries)
    lost = rng.binomial(60, 0.2, tries)
    wrong = np.mean([mcnemar(int(a), int(b)) <= ALPHA for a, b in zip(won, lost, strict=True)])
    assert 0.01 < wrong <= ALPHA  # exact, so below alpha


def test_many_equal_candidates_against_one_incumbent_still_promote_within_alpha() -> None:
    """Ten tries each; without the correction it is several times alpha."""
    families, tries, n, rng = 300, 10, 60, np.random.default_rng(9)
    corrected = uncorrected = 0
    for family in range(families):
        incumbent = rng.normal(0, 1, n)  # its luck is common to all comparisons
        lows = {ALPHA: False, 0.0: False}
        for k in range(tries):
            difference = incumbent - rng.normal(0, 1, n)
            for alpha in (ALPHA, 0.0):
                own = alpha or spend(ALPHA, k)
                lows[alpha] |= bca_interval(difference, np.ones(n), own, 1000, family * tries + k).low > 0
        uncorrected += lows[ALPHA]
        corrected += lows[0.0]
    assert corrected / families < ALPHA + 4 * (ALPHA * (1 - ALPHA) / families) ** 0.5
    assert uncorrected / families > 2 * ALPHA


def test_power_at_a_stated_effect() -> None:
    """An improvement of a third of the differences' spread is found in 100 pairs in about 19 of 20 gates.

    By theory: Φ(0.33·√100 − 1.645) = 0.95.
    """
    tries, n, rng = 400, 100, np.random.default_rng(10)
    found = sum(bca_interval(rng.normal(0.33, 1, n), np.ones(n), ALPHA, 1000, seed).low > 0 for seed in range(tries))
    assert found / tries == pytest.approx(0.95, abs=0.04)
