"""The gate's table: what it lets through, what it refuses, and that it says why; and what holds for any evidence."""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promoter import statistics
from promoter.gate import Decision, Evidence, Finding, Reason, decide
from tests.support.gate import BETTER, SIGNATURE, N, evidence, policy, table


def refused(decision: Decision) -> list[str]:
    return [reason.check for reason in decision.reasons if not reason.passed]


SAME = table()


def test_a_candidate_that_is_better_passes_with_every_reason() -> None:
    decision = decide(policy(), evidence("2", BETTER), evidence("1"), "Production")
    assert decision.passed
    assert {reason.group for reason in decision.reasons} == {"evidence", "improvement", "safety"}
    assert "better, 1.0% better wanted" in decision.why
    [comparison] = decision.comparisons
    assert 0 < comparison.low < comparison.improvement < comparison.high
    assert comparison.pairs == N
    assert comparison.better + comparison.worse == N
    json.dumps(decision.to_dict())


@pytest.mark.parametrize(
    ("nll", "checks"),
    [
        (-0.3, []),
        (-0.005, ["improvement"]),  # a quarter of a percent, and as sure as can be
        (0.0, ["improvement", "significance"]),  # a tie stays with the incumbent
        (0.3, ["improvement", "significance"]),
    ],
)
def test_improvement(nll: float, checks: list[str]) -> None:
    rows = SAME.assign(nll=SAME["nll"] + nll * SAME["tokens"])
    assert refused(decide(policy(), evidence("2", rows), evidence("1"), "Staging")) == checks


def test_exactly_the_improvement_wanted_is_enough() -> None:
    rows = SAME.assign(nll=SAME["nll"] * 0.99)
    assert decide(policy(), evidence("2", rows), evidence("1"), "Staging").passed
    value = evidence("1").metrics["eval/nll_per_token"]
    more = policy(primary={"min_absolute_improvement": value * 0.0101})
    assert refused(decide(more, evidence("2", rows), evidence("1"), "Staging")) == ["improvement"]


def test_an_improvement_that_chance_explains_is_refused() -> None:
    rows = table(-0.05, seed=3, noise=2.0)
    assert "significance" in refused(decide(policy(), evidence("2", rows), evidence("1"), "Staging"))


def test_what_is_sure_enough_for_one_try_is_not_for_the_fiftieth() -> None:
    rows = table(-0.12, seed=5, noise=0.4)
    candidate, incumbent = evidence("2", rows), evidence("1")
    assert decide(policy(), candidate, incumbent, "Staging").passed
    late = statistics.spend(0.05, earlier=49)
    assert refused(decide(policy(), candidate, incumbent, "Staging", alpha=late)) == ["significance"]


def test_after_very_many_tries_nothing_passes_since_no_bootstrap_could_tell() -> None:
    """With too few resamples beyond it, a bound would stay where it is, and each further try would be a free one."""
    far = statistics.spend(0.05, earlier=59)
    assert decide(policy(), evidence("2", BETTER), evidence("1"), "Staging", alpha=far).passed
    too_far = decide(policy(), evidence("2", BETTER), evidence("1"), "Staging", alpha=statistics.spend(0.05, 999))
    assert refused(too_far) == ["significance"]
    assert "too small to be told by 1,000,000 resamples" in too_far.why


def test_equal_models_pass_the_whole_gate_no_more_often_than_alpha_says() -> None:
    rng, gates = np.random.default_rng(11), 400
    own = policy(primary={"min_relative_improvement": 0.0})
    passed = 0
    for seed in range(gates):
        shared = rng.gamma(4, 0.5, N)
        rows = [SAME.assign(nll=(shared + rng.normal(0, 0.3, N)) * SAME["tokens"]) for _ in range(2)]
        seeded = own.model_copy(update={"significance": own.significance.model_copy(update={"seed": seed})})
        passed += decide(seeded, evidence("2", rows[0]), evidence("1", rows[1]), "Staging").passed
    assert 0.01 < passed / gates < 0.05 + 4 * (0.05 * 0.95 / gates) ** 0.5


def test_first_version_has_no_incumbent_and_floors_and_safety_decide() -> None:
    assert decide(policy(), evidence("1"), None, "Production").passed
    floors = policy(floors=[{"metric": "eval/syntax_ok", "min": 0.9}])
    assert refused(decide(floors, evidence("1"), None, "Production")) == ["floor eval/syntax_ok"]
    unsafe = evidence("1", files={"manifest": Finding(False, "weights were changed"), "no_pickle": Finding(True, "")})
    assert refused(decide(policy(), unsafe, None, "Production")) == ["files as at training"]


@pytest.mark.parametrize(
    ("floor", "passed"),
    [({"min": 0.8}, True), ({"min": 0.81}, False), ({"max": 0.8}, True), ({"min": 0.1, "max": 0.5}, False)],
)
def test_floors_hold_whatever_the_incumbent_does(floor: dict[str, float], passed: bool) -> None:
    own = policy(floors=[{"metric": "eval/syntax_ok", **floor}])
    assert decide(own, evidence("2", BETTER), evidence("1"), "Staging").passed is passed


@pytest.mark.parametrize(
    ("ok", "certain", "passed"),
    [
        (0.8, False, True),
        (0.76, False, True),
        (0.7, False, False),
        (0.9, False, True),
        (0.76, True, False),
        (0.8, True, True),
    ],
)
def test_a_guard_may_get_worse_by_so_much_and_if_wanted_for_certain(ok: float, certain: bool, passed: bool) -> None:
    guard = {"metric": "eval/syntax_ok", "direction": "higher_is_better", "max_regression": 0.05, "certain": certain}
    rows = table(-0.3, ok=ok, seed=2)
    decision = decide(policy(guards=[guard]), evidence("2", rows), evidence("1"), "Staging")
    assert decision.passed is passed, decision.why
    assert [item.role for item in decision.comparisons] == ["primary", "guard"]


@pytest.mark.parametrize("name", ["dataset_digest", "prompt_template", "eval_settings"])
@pytest.mark.parametrize("other", ["other", None])
def test_what_was_measured_differently_is_not_compared(name: str, other: str | None) -> None:
    decision = decide(policy(), evidence("2", BETTER, **{name: other}), evidence("1"), "Staging")
    assert not decision.passed
    assert not decision.comparisons
    first = "run1" if other is None and name == "dataset_digest" else "run2"
    version = "2" if first == "run1" else "1"
    assert f"`trainer evaluate --model-uri models:/m/{version} --data runs:/{first}` judges both" in decision.why


def test_unknown_data_on_both_sides_is_not_the_same_data() -> None:
    both = [evidence(version, dataset_digest=None) for version in ("2", "1")]
    assert "same held-out data" in refused(decide(policy(), both[0], both[1], "Staging"))


def _rows(change: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    return change(table())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"metrics": {}}, "has no metric eval/nll_per_token"),
        ({"metrics": {"eval/nll_per_token": math.nan}}, "eval/nll_per_token nan"),
        ({"metrics": {"eval/nll_per_token": -math.inf}}, "eval/nll_per_token -inf"),
        ({"tables": {}}, "has no eval/examples.parquet"),
        (
            {"unreadable": {"eval/examples.parquet": "no magic bytes"}},
            "eval/examples.parquet is broken: no magic bytes",
        ),
        ({"rows": _rows(lambda t: t[:0]), "metrics": {"eval/nll_per_token": 2.0}}, "zero examples"),
        ({"rows": _rows(lambda t: t.assign(tokens=0)), "metrics": {"eval/nll_per_token": 2.0}}, "zero examples with"),
        ({"rows": _rows(lambda t: t.drop(columns="nll")), "metrics": {"eval/nll_per_token": 2.0}}, "no column 'nll'"),
        ({"rows": _rows(lambda t: t.assign(nll=t["nll"].where(t.index > 2)))}, "3 of 60 examples have no finite nll"),
        ({"rows": _rows(lambda t: pd.concat([t, t[:1]]))}, "1 example_ids are there twice"),
        ({"metrics": {"eval/nll_per_token": 1.0}}, "its table says"),
        ({"rows": table(n=59)}, "1 examples with eval/nll_per_token are in one version's table only"),
        ({"rows": _rows(lambda t: t.assign(tokens=t["tokens"] + 1))}, "differ in length"),
    ],
)
@pytest.mark.parametrize("who", ["candidate", "incumbent"])
def test_missing_and_broken_evidence_is_refused_by_name(who: str, changes: dict[str, Any], why: str) -> None:
    changes = dict(changes)
    rows = changes.pop("rows", table())
    if rows["nll"].isna().any() if "nll" in rows else False:
        changes["metrics"] = {"eval/nll_per_token": 2.0}
    elif "nll" not in rows:
        rows = rows.assign(syntax_ok=True)
    bad = evidence_of(rows, changes)
    good = evidence("1" if who == "candidate" else "2")
    pair = (bad, good) if who == "candidate" else (good, bad)
    decision = decide(policy(), *pair, "Staging")
    assert not decision.passed
    assert why in decision.why


def evidence_of(rows: pd.DataFrame, changes: dict[str, Any]) -> Evidence:
    """Evidence with such a table; figures follow from it unless they are given."""
    if "metrics" in changes:
        changes = {"tables": {"eval/examples.parquet": rows}} | changes
        return evidence("9", **changes)
    return evidence("9", rows, **changes)


def test_too_few_pairs_are_refused_by_number() -> None:
    decision = decide(policy(), evidence("2", table(-0.3, n=19, seed=2)), evidence("1", table(n=19)), "Staging")
    assert "19 examples have eval/nll_per_token, 20 wanted" in decision.why


@pytest.mark.parametrize(
    ("ok", "certain", "passed", "words"),
    [
        (5, False, True, "no worse on the only 5 examples that have it, 0.05 worse allowed"),
        (4, False, False, "0.2000 worse on the only 5 examples that have it, 0.05 worse allowed"),
        (5, True, False, "5 examples have eval/syntax_ok, 20 wanted"),
    ],
)
def test_a_guard_that_is_not_certain_needs_no_number_of_pairs_and_says_how_few_it_saw(
    ok: int, certain: bool, passed: bool, words: str
) -> None:
    """As on the stack's own data, where only 5 of 64 held-out examples are code that stands by itself."""
    guard = {"metric": "eval/syntax_ok", "direction": "higher_is_better", "max_regression": 0.05, "certain": certain}
    only_five = [table(-0.3, seed=2), table()]
    for rows, good in zip(only_five, (ok, 5), strict=True):
        rows["syntax_ok"] = [True] * good + [False] * (5 - good) + [None] * (N - 5)
    versions = [
        evidence(version, rows, metrics={**evidence(version, rows).metrics, "eval/syntax_ok": good / 5})
        for version, rows, good in zip(("2", "1"), only_five, (ok, 5), strict=True)
    ]
    decision = decide(policy(guards=[guard]), *versions, "Staging")
    assert decision.passed is passed, decision.why
    assert words in "; ".join(reason.detail for reason in decision.reasons)


def test_one_pair_is_enough_for_a_guard_that_is_not_certain() -> None:
    guard = {"metric": "eval/syntax_ok", "direction": "higher_is_better", "max_regression": 0.05}
    rows = [own.assign(syntax_ok=[True] + [None] * (N - 1)) for own in (BETTER, SAME)]
    versions = [
        evidence(version, own, metrics={**evidence(version, own).metrics, "eval/syntax_ok": 1.0})
        for version, own in zip(("2", "1"), rows, strict=True)
    ]
    decision = decide(policy(guards=[guard]), *versions, "Staging")
    assert decision.passed, decision.why
    assert any("no worse on one example" in reason.detail for reason in decision.reasons)


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"validation": "failed"}, "validation"),
        ({"validation": None}, "validation"),
        ({"signature": None}, "signature"),
        ({"signature": SIGNATURE | {"inputs": [{"type": "long"}]}}, "signature"),
        ({"signature": SIGNATURE | {"params": {}}}, "signature"),
        ({"signature": SIGNATURE | {"params": {"max_new_tokens": "string"}}}, "signature"),
        ({"base_model": None}, "base model recorded"),
        ({"base_model": "base@"}, "base model recorded"),
        ({"files": {}}, "files as at training"),
        ({"files": {"manifest": Finding(True, ""), "no_pickle": Finding(False, "a.pkl")}}, "no pickled code"),
    ],
)
def test_safety(changes: dict[str, Any], check: str) -> None:
    decision = decide(policy(), evidence("2", BETTER, **changes), evidence("1"), "Production")
    assert check in refused(decision)
    switched_off = {
        "signature": "signature",
        "base model recorded": "base_model_revision",
        "files as at training": "manifest",
        "no pickled code": "no_pickle",
    }
    if check in switched_off:
        off = policy(safety={switched_off[check]: False})
        assert check not in refused(decide(off, evidence("2", BETTER, **changes), evidence("1"), "Production"))


def test_more_parameters_than_the_incumbent_takes_are_compatible() -> None:
    more = SIGNATURE | {"params": {"max_new_tokens": "long", "stop": "string"}}
    assert decide(policy(), evidence("2", BETTER, signature=more), evidence("1"), "Staging").passed
    assert decide(policy(), evidence("2", BETTER), evidence("1", signature=None), "Staging").passed


@pytest.mark.parametrize(
    ("wanted", "stage", "tried", "passed"),
    [
        ("production", "Staging", None, True),
        ("production", "Production", None, False),
        ("always", "Staging", None, False),
        ("if_tried", "Production", None, True),
        ("if_tried", "Staging", "failed", False),
        ("always", "Staging", "passed", True),
    ],
)
def test_validation_is_wanted_as_the_policy_says(wanted: str, stage: Any, tried: str | None, passed: bool) -> None:
    own = policy(safety={"validation": wanted})
    assert decide(own, evidence("2", BETTER, validation=tried), evidence("1"), stage).passed is passed


def passes(won: int, lost: int) -> tuple[Evidence, Evidence]:
    """(candidate, incumbent) on a pass-or-fail metric: so many examples that only one of them passes."""
    ours, theirs = table(), table()
    ours["syntax_ok"] = [True] * won + [False] * lost + [True] * (N - won - lost)
    theirs["syntax_ok"] = [False] * won + [True] * lost + [True] * (N - won - lost)
    return evidence("2", ours), evidence("1", theirs)


@pytest.mark.parametrize(
    ("won", "lost", "passed"), [(9, 1, True), (7, 2, False), (5, 0, True), (4, 0, False), (0, 0, False)]
)
def test_a_pass_or_fail_metric_is_judged_by_mcnemar(won: int, lost: int, passed: bool) -> None:
    own = policy(primary={"metric": "eval/syntax_ok", "direction": "higher_is_better", "min_relative_improvement": 0})
    decision = decide(own, *passes(won, lost), "Staging")
    assert decision.passed is passed, decision.why
    assert decision.comparisons[0].p_value == pytest.approx(statistics.mcnemar(won, lost))
    assert (decision.comparisons[0].better, decision.comparisons[0].worse) == (won, lost)


noise = st.floats(-3, 3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(noise, noise), min_size=20, max_size=40), st.integers(0, 2**31))
def test_properties(pairs: list[tuple[float, float]], seed: int) -> None:
    """Deterministic; a candidate and its mirror never both pass; better never hurts; the order of rows is nothing."""
    own = policy(primary={"min_relative_improvement": 0.0})
    rows = [table(n=len(pairs)).assign(nll=[5 + pair[k] for pair in pairs], tokens=1) for k in (0, 1)]
    ours, theirs = evidence("2", rows[0]), evidence("1", rows[1])
    decision = decide(own, ours, theirs, "Staging")
    assert decide(own, ours, theirs, "Staging").to_dict() == decision.to_dict()
    mirrored = decide(own, theirs, ours, "Staging")
    assert not (decision.passed and mirrored.passed)
    assert not decide(own, ours, ours, "Staging").passed
    shuffled = rows[0].sample(frac=1, random_state=seed % 2**32)
    metrics = {"metrics": ours.metrics}  # the same sum in another order may differ in the last digit
    again = decide(own, evidence("2", shuffled, **metrics), theirs, "Staging")
    assert (again.passed, again.comparisons) == (decision.passed, decision.comparisons)
    if decision.passed:
        even_better = evidence("2", rows[0].assign(nll=rows[0]["nll"] - 1))
        assert decide(own, even_better, theirs, "Staging").passed
        assert decision.comparisons[0].improvement > 0
    assert decision.passed == all(reason.passed for reason in decision.reasons)


def test_no_single_failed_reason_is_overlooked() -> None:
    decision = decide(policy(), evidence("2", BETTER), evidence("1"), "Staging")
    for number, reason in enumerate(decision.reasons):
        failed = dataclasses.replace(reason, passed=False)
        reasons = (*decision.reasons[:number], failed, *decision.reasons[number + 1 :])
        worse = dataclasses.replace(decision, reasons=reasons)
        assert not worse.passed
        assert worse.why == reason.detail
    assert isinstance(decision.reasons[0], Reason)
