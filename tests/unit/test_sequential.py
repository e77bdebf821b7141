"""A trial's statistics: against an independent implementation, by enumeration, and by simulation."""

import itertools
import math

import numpy as np
import pytest
import ville
from ville._boundaries import best_rho, normal_mixture

from promoter.trials.sequential import LEAST, TILTS, boundary, effect, forecasts, split_evidence
from tests.bench import trials


@pytest.mark.parametrize("alpha", [0.001, 0.025, 0.05])
@pytest.mark.parametrize("sharpest", [3.0, 800.0])
def test_the_boundary_is_that_of_an_independent_implementation(alpha: float, sharpest: float) -> None:
    variance = np.geomspace(0.5, 20_000, 300)
    expected = normal_mixture(variance, alpha, best_rho(sharpest, alpha, one_sided=True), one_sided=True)
    assert boundary(variance, sharpest, alpha) == pytest.approx(expected, rel=2e-4)


def test_the_estimate_is_that_of_an_independent_implementation() -> None:
    """With one user, forecasts are running means as theirs are, and differ in where they start."""
    random = np.random.default_rng(3)
    outcomes, challenger = random.random(4000), random.random(4000) < 0.2
    ours = effect(outcomes, challenger, np.full(4000, 0.2), np.zeros(4000, dtype=np.int64), 0.05, 0.5, 1 / 12)
    theirs = ville.AsymptoticABTest(0.05, 0.2).fit(outcomes, challenger)
    assert ours.estimate[200:] == pytest.approx(theirs.estimate_[200:], abs=0.01)
    # Theirs is two-sided, and takes the variance about the mean.
    assert (ours.high - ours.low)[1000:] == pytest.approx((theirs.upper_ - theirs.lower_)[1000:], rel=0.25)


def test_a_forecast_knows_the_past_alone() -> None:
    outcomes, users = np.array([1.0, 0.0, 1.0, 1.0, 0.0]), np.array([0, 1, 0, 0, 1])
    whole = forecasts(outcomes, users, 0.3)
    for number in range(5):
        changed = outcomes.copy()
        changed[number:] = 17.0
        assert forecasts(changed, users, 0.3)[number] == whole[number]
    assert whole[0] == pytest.approx(0.3)


def test_nothing_is_said_before_each_arm_has_had_its_requests() -> None:
    challenger = np.array([True] * (LEAST - 1) + [False] * 50 + [True])
    path = effect(challenger * 1.0, challenger, np.full(60, 0.5), np.zeros(60, dtype=np.int64), 0.05)
    assert np.isinf(path.low[:-1]).all()
    assert math.isfinite(path.low[-1])
    nothing = np.empty(0)
    assert len(effect(nothing, nothing.astype(bool), nothing, nothing.astype(np.int64), 0.05).low) == 0


def test_requests_of_all_shares_count_by_their_own() -> None:
    """The share may grow: an estimate that took the last one for all would be far off."""
    random = np.random.default_rng(5)
    shares = np.repeat([0.05, 0.25, 0.5], 4000)
    challenger = random.random(12_000) < shares
    rate = np.repeat([0.1, 0.3, 0.6], 4000)  # and so may the users' acceptance
    outcomes = (random.random(12_000) < rate + 0.1 * challenger).astype(float)
    path = effect(outcomes, challenger, shares, np.zeros(12_000, dtype=np.int64), 0.05, 0.3)
    assert path.estimate[-1] == pytest.approx(0.1, abs=0.03)
    assert path.low[-1] < 0.1 < path.high[-1]


def test_the_evidence_of_a_wrong_split_is_a_fair_bet() -> None:
    """Over all ways in which five requests can be split, its mean is one: whatever the shares."""
    shares = np.array([0.05, 0.5, 0.25, 0.1, 0.9])
    mean = 0.0
    for arms in itertools.product((False, True), repeat=5):
        challenger = np.array(arms)
        chance = np.prod(np.where(challenger, shares, 1 - shares))
        mean += chance * math.exp(split_evidence(challenger, shares)[-1])
    assert mean == pytest.approx(1.0)
    assert len(TILTS) == 48


@pytest.mark.parametrize(("asked", "sent", "within"), [(0.5, 0.4, 700), (0.05, 0.1, 800)])
def test_a_wrong_split_is_found(asked: float, sent: float, within: int) -> None:
    challenger = np.random.default_rng(1).random(4000) < sent
    evidence = split_evidence(challenger, np.full(4000, asked))
    assert (evidence > math.log(1000)).argmax() in range(1, within)


@pytest.mark.parametrize(
    ("world", "worse", "median"), [(0, (0, 0.08), None), (1, (0, 0.1), None), (3, (1, 1), 290), (4, (1, 1), 480)]
)
def test_it_is_right_as_often_as_it_says(world: int, worse: tuple[float, float], median: int | None) -> None:
    """A small dose of tests/bench/trials.py: equal arms, and one that is 15 points worse."""
    found = trials.measure(trials.WORLDS[world], 250, 7, (trials.LEAST_RATE, trials.MOST_RATE))
    assert worse[0] <= found.worse <= worse[1]
    assert median is None or found.median <= median
