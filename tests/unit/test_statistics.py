"""The gate's statistics by hand and against scipy, and against their own promise: simulated, how often they err."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from promoter.statistics import Compared, Floats, compare, least_groups, spend

ALPHA = 0.05


def judge(sums: Any, alpha: float = ALPHA, **settings: Any) -> Compared:
    """Of examples that are each a group of their own and weigh the same."""
    values = np.asarray(sums, float)
    return compare(values, np.ones(len(values)), np.arange(len(values)), alpha, 1000, 0, **settings)


def passes(gates: Floats, groups: Any = None, alpha: float = ALPHA, **settings: Any) -> float:
    """The share of gates, (gates, examples), that pass."""
    ones = np.ones(gates.shape[1])
    group = np.arange(gates.shape[1]) if groups is None else groups
    return float(np.mean([compare(row, ones, group, alpha, 1000, 0, **settings).p_value <= alpha for row in gates]))


def in_files(rng: np.random.Generator, gates: int, files: int, size: int, correlation: float) -> Floats:
    shared = np.repeat(rng.normal(0, 1, (gates, files)), size, axis=1)
    own = rng.normal(0, 1, (gates, files * size))
    return np.asarray(np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own)


# By hand


def test_three_groups_are_judged_by_all_eight_patterns_of_signs() -> None:
    """3 + 2 - 1 = 4 is reached by two patterns of eight: as it is, and with the 1 turned round."""
    found = judge([3, 2, -1])
    assert found.p_value == 2 / 8
    assert found.estimate == pytest.approx(4 / 3)
    assert (found.groups, found.better, found.worse) == (3, 2, 1)
    # By Hartigan, the flipped groups' own means in order are -∞, -1, 0.5, …: the third is the bound that two may fail.
    assert judge([3, 2, -1], alpha=2 / 8).low > 0
    assert judge([3, 2, -1], alpha=1.9 / 8).low <= 0


@pytest.mark.parametrize(("won", "lost"), [(5, 0), (4, 4), (12, 3), (30, 10), (1, 9)])
@pytest.mark.parametrize("ties", [0, 200])
def test_pass_or_fail_of_single_examples_is_mcnemars_exact_test(won: int, lost: int, ties: int) -> None:
    expected = binomtest(won, won + lost, 0.5, alternative="greater").pvalue
    found = judge([1] * won + [-1] * lost + [0] * ties)
    assert found.p_value == pytest.approx(expected)
    assert (found.better, found.worse) == (won, lost)


def test_a_group_counts_once_however_many_examples_it_has() -> None:
    rng = np.random.default_rng(1)
    few = rng.normal(0.3, 1, 12)
    once = judge(few)
    tenfold = compare(np.repeat(few, 10), np.ones(120), np.repeat(np.arange(12), 10), ALPHA, 1000, 0)
    assert tenfold.p_value == pytest.approx(once.p_value)
    assert (tenfold.low, tenfold.high) == (pytest.approx(once.low), pytest.approx(once.high))
    as_if_independent = compare(np.repeat(few, 10), np.ones(120), np.arange(120), ALPHA, 1000, 0)
    assert as_if_independent.p_value < once.p_value / 3


@pytest.mark.parametrize("examples", [30, 900])
def test_neither_the_order_of_rows_nor_the_groups_numbers_decide(examples: int) -> None:
    rng = np.random.default_rng(2)
    values, weights = rng.normal(0.1, 1, examples), rng.integers(1, 60, examples).astype(float)
    groups = np.arange(examples) // 3
    first = compare(values, weights, groups, ALPHA, 1000, 0)
    order, numbers = rng.permutation(examples), rng.permutation(10 * examples)
    assert compare(values[order], weights[order], numbers[groups[order]], ALPHA, 1000, 0) == first


# What can never pass, and what has to


@pytest.mark.parametrize("sums", [[0.0] * 40, [5.0] + [0.0] * 40, [1.0, 1.0], [1.0]])
def test_fewer_than_two_groups_that_differ_or_two_examples_never_pass(sums: list[float]) -> None:
    found = judge(sums, alpha=0.4)
    assert (found.p_value, found.low, found.detectable) == (1.0, -np.inf, np.inf)


def test_the_same_gain_everywhere_passes_with_as_many_groups_as_alpha_takes() -> None:
    for alpha in (ALPHA, 0.0167, 1e-3, 1e-6):
        enough = least_groups(alpha)
        assert judge([0.3] * enough, alpha).low > 0
        assert judge([0.3] * (enough - 1), alpha).low <= 0
        assert judge([0.3] * (enough - 1), alpha).detectable == np.inf
    assert (least_groups(ALPHA), least_groups(1 / 64)) == (5, 6)


def test_one_great_loss_among_small_gains_is_never_sure() -> None:
    sums = [*np.linspace(0.9, 1.1, 19), -10.0]
    lows = [judge(sums, spend(ALPHA, earlier)).low for earlier in range(0, 100, 20)]
    assert lows == sorted(lows, reverse=True)
    assert lows[0] < 0


def test_much_data_pass_at_the_alpha_of_any_try() -> None:
    rng = np.random.default_rng(3)
    assert judge(rng.normal(0.4, 1, 400), alpha=1e-6).low > 0
    assert judge(rng.normal(0.4, 1, 400), alpha=1e-9).p_value <= 1e-6  # flips tell nothing below one in a million
    assert judge(rng.normal(0.6, 1, 400), alpha=1e-9).p_value <= 1e-9


@pytest.mark.parametrize("margin", [0.0, 0.1])
@pytest.mark.parametrize("worst", [np.inf, 1.0])
def test_the_bound_says_what_the_p_value_says(margin: float, worst: float) -> None:
    rng, passed = np.random.default_rng(4), 0
    for gate in range(200):
        n = int(rng.choice([5, 14, 40, 300]))
        draws = (rng.normal(0.2, 1, n), rng.choice([-1.0, 0.0, 0.0, 1.0, 1.0], n), 1.2 - rng.exponential(1, n))
        weights = rng.integers(1, 9, n).astype(float)
        alpha = float(rng.choice([ALPHA, 0.0167, 1e-3]))
        found = compare(draws[gate % 3] * weights, weights, np.arange(n) // 2, alpha, 1000, 0, margin, worst)
        assert (found.low > -margin) == (found.p_value <= alpha)
        assert found.low <= found.estimate <= found.high
        passed += found.p_value <= alpha
    assert 20 < passed < 180


# How often equal models pass


@pytest.mark.parametrize(("files", "size"), [(6, 10), (10, 20), (30, 20)])
def test_equal_models_pass_as_alpha_says_when_examples_of_a_file_are_alike(files: int, size: int) -> None:
    rng = np.random.default_rng(5)
    gates, file = in_files(rng, 500, files, size, correlation=0.3), np.repeat(np.arange(files), size)
    assert passes(gates, file) <= within(ALPHA, 500)
    assert passes(gates[:100]) > 0.15  # by examples, as it was up to version 0.2


SHAPES: dict[str, tuple[int, Callable[[np.random.Generator, tuple[int, int]], Floats]]] = {
    "normal": (20, lambda rng, size: rng.normal(0, 1, size)),
    "Student's t, 3": (30, lambda rng, size: rng.standard_t(3, size)),
    "exponential to the left": (20, lambda rng, size: 1 - rng.exponential(1, size)),
    "lognormal to the left": (20, lambda rng, size: np.exp(1.125) - np.exp(1.5 * rng.normal(0, 1, size))),
    "lognormal to the left, many": (200, lambda rng, size: np.exp(1.125) - np.exp(1.5 * rng.normal(0, 1, size))),
    "mostly ties": (30, lambda rng, size: rng.normal(0, 1, size) * (rng.random(size) < 0.1)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_models_pass_as_alpha_says_whatever_the_differences_shape(shape: str) -> None:
    n, draw = SHAPES[shape]
    gates = draw(np.random.default_rng(6), (400, n))
    for alpha in (ALPHA, ALPHA / 2):
        assert passes(gates, alpha=alpha) <= within(alpha, 400)
    assert passes(gates, alpha=spend(ALPHA, 5)) <= 1 / 400


def within(alpha: float, gates: int) -> float:
    """What is promised, 1.5 points above alpha, and three standard errors."""
    return alpha + 0.015 + 3 * float(np.sqrt(alpha * (1 - alpha) / gates))


def test_many_equal_candidates_against_one_incumbent_still_promote_within_alpha() -> None:
    """Twenty tries each; with the whole alpha for each try it is several times alpha."""
    rng, families = np.random.default_rng(7), 120
    corrected = uncorrected = 0
    for _ in range(families):
        p_values = [judge(row).p_value for row in rng.normal(0, 1, 40) - rng.normal(0, 1, (20, 40))]
        uncorrected += min(p_values) <= ALPHA
        corrected += any(p_value <= spend(ALPHA, k) for k, p_value in enumerate(p_values))
    assert corrected / families <= within(ALPHA, families)
    assert uncorrected / families > 3 * ALPHA


# Power


def test_a_gain_of_a_third_of_the_spread_is_found_in_a_hundred_pairs() -> None:
    """By theory Φ(0.33·√100 − 1.645) = 0.95: the damping costs next to nothing where nothing is skewed."""
    assert passes(np.random.default_rng(8).normal(1 / 3, 1, (500, 100))) == pytest.approx(0.95, abs=0.035)


@pytest.mark.parametrize("skewed", [-1, 0, 1])
@pytest.mark.parametrize(("files", "gain"), [(6, 2.5), (12, 2.0)])
def test_a_strong_gain_passes_with_few_files_at_the_first_try(files: int, gain: float, skewed: int) -> None:
    rng = np.random.default_rng(9)
    spread = skewed * (rng.gamma(4, 1, (200, files)) - 4) / 2 if skewed else rng.normal(0, 1, (200, files))
    assert passes(spread + gain, alpha=spend(ALPHA, 0)) > 0.8


def test_what_is_called_detectable_is_found_in_four_of_five() -> None:
    rng = np.random.default_rng(10)
    told = float(np.median([judge(row).detectable for row in rng.normal(0, 1, (100, 60))]))
    assert passes(rng.normal(told, 1, (500, 60))) == pytest.approx(0.8, abs=0.07)
    assert told == pytest.approx((1.645 + 0.842) / np.sqrt(60), rel=0.1)


# No worse by more than a margin


def test_a_few_examples_without_a_loss_do_not_prove_that_there_are_none() -> None:
    """The rule of three: with none seen among n, up to 3/n may be lost."""
    unchanged = np.zeros(1000)
    assert judge(unchanged[:20], margin=0.05, worst=1.0).low < -0.05
    assert judge(unchanged[:59], margin=0.05, worst=1.0).low > -0.05
    assert judge(unchanged[:20], margin=0.05).low == pytest.approx(0)  # without a worst known, it looks so


@pytest.mark.parametrize(("files", "size", "correlation"), [(60, 1, 0.0), (200, 1, 0.0), (30, 10, 0.3)])
def test_a_candidate_that_is_worse_by_the_margin_passes_as_alpha_says(
    files: int, size: int, correlation: float
) -> None:
    rng, margin, gates = np.random.default_rng(11), 0.05, 400
    by_file: Any = margin
    if correlation:
        scale = (1 - correlation) / correlation
        by_file = np.repeat(rng.beta(margin * scale, (1 - margin) * scale, (gates, files)), size, axis=1)
    lost = -(rng.random((gates, files * size)) < by_file).astype(float)
    file = np.repeat(np.arange(files), size)
    assert passes(lost, file, margin=margin, worst=1.0) <= within(ALPHA, gates)


# Alpha over many tries


def test_alpha_spent_adds_up_to_alpha_however_many_are_tried() -> None:
    shares = np.array([spend(ALPHA, earlier) for earlier in range(100_000)])
    assert 0.99 * ALPHA < shares.sum() < ALPHA
    assert (np.diff(shares) < 0).all()
    # Five tried together share what the five would have got one by one.
    assert 5 * spend(ALPHA, 2, at_once=5) == pytest.approx(shares[2:7].sum())
    assert spend(ALPHA, 0, at_once=1000) * 1000 < ALPHA


def test_the_first_try_can_pass_with_six_files_and_round_300_still_can() -> None:
    assert least_groups(spend(ALPHA, 0)) == 6
    assert spend(ALPHA, 299) > 1e-5
    assert passes(np.random.default_rng(12).normal(1 / 3, 1, (12, 300)), alpha=spend(ALPHA, 299)) >= 0.8
