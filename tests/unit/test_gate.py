"""The gate's table: what it lets through, what it refuses, and that it says why."""

import math

import pytest

from promoter.errors import InputError
from promoter.gate import Evidence, Policy, decide, load_policy

LOWER = Policy("nll", "lower_is_better", 0.01)
HIGHER = Policy("pass_rate", "higher_is_better", 0.05)


def evidence(version: str, value: float | None, metric: str = "nll", **changes: str | None) -> Evidence:
    fields = {"run_id": "r" + version, "dataset_digest": "d", "eval_settings": "greedy"} | changes
    return Evidence(version=version, metrics={} if value is None else {metric: value}, **fields)


@pytest.mark.parametrize(
    ("policy", "candidate", "incumbent", "passed"),
    [
        (LOWER, 1.5, 2.0, True),
        (LOWER, 1.98, 2.0, True),  # exactly the 1% wanted
        (LOWER, 1.99, 2.0, False),  # better, but by less
        (LOWER, 2.0, 2.0, False),  # a tie stays with the incumbent
        (LOWER, 2.1, 2.0, False),
        (LOWER, math.nan, 2.0, False),
        (LOWER, 1.5, math.nan, False),
        (LOWER, -math.inf, 2.0, False),
        (LOWER, None, 2.0, False),
        (LOWER, 1.5, None, False),
        (HIGHER, 0.60, 0.50, True),
        (HIGHER, 0.51, 0.50, False),
        (HIGHER, 0.01, 0.0, True),  # from nothing to something
        (HIGHER, 0.0, 0.0, False),
        (Policy("nll", "lower_is_better", 0.0), 2.0, 2.0, False),  # no minimum is still no tie
    ],
)
def test_improvement(policy: Policy, candidate: float | None, incumbent: float | None, passed: bool) -> None:
    decision = decide(policy, evidence("2", candidate, policy.metric), evidence("1", incumbent, policy.metric))
    assert decision.passed is passed
    assert decision.why


def test_first_version_has_nothing_to_beat_but_needs_the_metric() -> None:
    assert decide(LOWER, evidence("1", 2.5), None).passed
    assert not decide(LOWER, evidence("1", None), None).passed
    assert not decide(LOWER, evidence("1", math.nan), None).passed


@pytest.mark.parametrize(("name", "other"), [("dataset_digest", "e"), ("dataset_digest", None), ("eval_settings", "x")])
def test_what_was_measured_differently_is_not_compared(name: str, other: str | None) -> None:
    decision = decide(LOWER, evidence("2", 1.0, **{name: other}), evidence("1", 2.0))
    assert not decision.passed
    assert "not comparable" in decision.why
    assert all(reason.check != "improvement" for reason in decision.reasons)


def test_unknown_data_on_both_sides_is_not_the_same_data() -> None:
    assert not decide(LOWER, evidence("2", 1.0, dataset_digest=None), evidence("1", 2.0, dataset_digest=None)).passed


def test_failed_validation_keeps_a_version_out() -> None:
    decision = decide(LOWER, evidence("2", 1.0, validation="failed"), evidence("1", 2.0))
    assert not decision.passed
    assert "failed" in decision.why


def test_shipped_policy_loads() -> None:
    assert load_policy("default") == Policy("eval/nll_per_token", "lower_is_better", 0.01)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("metric: [", "is not YAML"),
        ("metric: nll", "Expected ['metric', 'direction', 'min_relative_improvement']"),
        ("metric: a\ndirection: up\nmin_relative_improvement: 0.1", "direction is 'up'"),
        ("metric: a\ndirection: lower_is_better\nmin_relative_improvement: 2", "min_relative_improvement is 2"),
        ("metric: a\ndirection: lower_is_better\nmin_relative_improvement: yes", "is True"),
        ("metric: 3\ndirection: lower_is_better\nmin_relative_improvement: 0", "metric is 3"),
    ],
)
def test_bad_policy_is_refused_by_name(tmp_path, text: str, expected: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        load_policy(str(path))
    assert expected in caught.value.message


def test_missing_policy_names_the_shipped_ones() -> None:
    with pytest.raises(InputError, match=r"No policy 'nope'.*default"):
        load_policy("nope")
