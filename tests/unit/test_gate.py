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
from scipy.stats import binomtest

from promoter import statistics
from promoter.decision import Decision, Evidence, Finding, Reason
from promoter.gate import best_of, decide
from tests.support.gate import BETTER, GROUPS, SIGNATURE, N, evidence, policy, table


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
    assert (comparison.groups, comparison.groups_better, comparison.groups_worse) == (GROUPS, GROUPS, 0)
    assert 0 < comparison.detectable < comparison.improvement
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
    rows = table(-0.1, seed=4, noise=0.6)
    decision = decide(policy(), evidence("2", rows), evidence("1", table(noise=0.6)), "Staging")
    assert decision.comparisons[0].improvement > 0.03
    assert "significance" in refused(decision)


def test_what_is_sure_enough_for_one_try_is_not_for_the_fiftieth() -> None:
    rows = table(-0.12, seed=5, noise=0.3)
    candidate, incumbent = evidence("2", rows), evidence("1")
    assert decide(policy(), candidate, incumbent, "Staging").passed
    late = statistics.spend(0.05, earlier=49)
    assert refused(decide(policy(), candidate, incumbent, "Staging", alpha=late)) == ["significance"]


def test_even_after_hundreds_of_tries_a_clear_gain_passes() -> None:
    far = statistics.spend(0.05, earlier=499)
    files = {"group": [f"{number}.py" for number in range(N)]}
    candidate, incumbent = evidence("2", BETTER.assign(**files)), evidence("1", SAME.assign(**files))
    assert decide(policy(), candidate, incumbent, "Staging", alpha=far).passed
    few = decide(policy(), evidence("2", BETTER), evidence("1"), "Staging", alpha=1e-7)
    assert "20 files cannot show as much after so many tries, 24 or more could" in few.why


@pytest.mark.parametrize("correlated", [False, True])
def test_equal_models_pass_the_whole_gate_no_more_often_than_alpha_says(correlated: bool) -> None:
    """Also where the examples of a file get better or worse together, as they do."""
    rng, gates = np.random.default_rng(11), 400
    own = policy(primary={"min_relative_improvement": 0.0})
    file = np.arange(N) % GROUPS
    passed = 0
    for seed in range(gates):
        shared = 3 + rng.gamma(4, 0.5, N)
        noise = [rng.normal(0, 0.3, N) + correlated * rng.normal(0, 0.3, GROUPS)[file] for _ in range(2)]
        rows = [SAME.assign(nll=(shared + item) * SAME["tokens"]) for item in noise]
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


def test_a_floor_reads_the_table_and_not_what_was_logged_beside_it() -> None:
    own = policy(floors=[{"metric": "eval/syntax_ok", "min": 0.9}, {"metric": "eval/perplexity", "max": 2.0}])
    praised = {
        "eval/syntax_ok": 1.0,
        "eval/perplexity": 1.0,
        "eval/nll_per_token": evidence("1").metrics["eval/nll_per_token"],
    }
    assert refused(decide(own, evidence("1", metrics=praised), None, "Production")) == [
        "floor eval/syntax_ok",
        "floor eval/perplexity",
    ]


@pytest.mark.parametrize(
    ("ok", "certain", "passed"),
    [
        (0.8, False, True),
        (0.76, False, True),
        (0.7, False, False),
        (0.9, False, True),
        (0.76, True, False),  # within what is allowed as measured, and 60 examples do not show it
        (0.85, True, True),
    ],
)
def test_a_guard_may_get_worse_by_so_much_and_has_to_show_it(ok: float, certain: bool, passed: bool) -> None:
    guard = {"metric": "eval/syntax_ok", "max_regression": 0.05, "certain": certain}
    rows = table(-0.3, ok=ok, seed=2)
    decision = decide(policy(guards=[guard]), evidence("2", rows), evidence("1"), "Staging")
    assert decision.passed is passed, decision.why
    assert [item.role for item in decision.comparisons] == ["primary", "guard"]


@pytest.mark.parametrize(("drop", "least", "most"), [(0.0, 0.75, 1.0), (0.1, 0.0, 0.17)])
def test_a_guard_lets_an_equal_model_pass_and_stops_one_that_is_worse_by_its_limit(
    drop: float, least: float, most: float
) -> None:
    """100 examples of 20 files, limit 0.1, confidence 90%; the measured value alone would stop half of the worse."""
    rng, gates, n = np.random.default_rng(5), 120, 100
    own = policy(guards=[{"metric": "eval/syntax_ok", "max_regression": 0.1}])
    passed = 0
    for _ in range(gates):
        before = rng.random(n) < 0.8
        flipped = rng.random(n)
        after = np.where(before, flipped >= 0.05 + drop / 0.8, flipped < 0.2)
        rows = [table(change, n=n).assign(syntax_ok=ok) for change, ok in ((-0.3, after), (0.0, before))]
        passed += decide(own, evidence("2", rows[0]), evidence("1", rows[1]), "Staging").passed
    assert least <= passed / gates <= most


def test_the_ratchet_never_slips_through_many_small_losses() -> None:
    """Twenty candidates, each worse than the one before by all that the guard allows: the second is refused already."""
    own = policy(
        guards=[{"metric": "eval/syntax_ok", "max_regression": 0.05, "certain": False}],
        floors=[{"metric": "eval/syntax_ok", "min": 0.9}],
    )
    incumbent, best, level = evidence("1", table(ok=1.0)), {}, 1.0
    for number in range(2, 22):
        nll = -0.05 * number
        candidate = evidence(str(number), table(nll, ok=level - 0.05, seed=number))
        decision = decide(own, candidate, incumbent, "Staging", best=best)
        if not decision.passed:
            assert "guard eval/syntax_ok against the best" in refused(decision)
            assert "0.9500 in version" not in decision.why  # the best, and not the last, is what it is held to
            continue
        incumbent, best, level = candidate, best_of(decision, best), level - 0.05
    assert level == pytest.approx(0.95)
    assert best == {"eval/syntax_ok": (1.0, "1")}


def test_the_best_is_kept_on_these_data_alone_and_grows() -> None:
    own = policy(guards=[{"metric": "eval/syntax_ok", "max_regression": 0.05, "certain": False}])
    decision = decide(own, evidence("2", table(-0.3, ok=0.9)), evidence("1"), "Staging")
    assert best_of(decision, {}) == {"eval/syntax_ok": (0.9, "2")}
    assert best_of(decision, {"eval/syntax_ok": (0.95, "0")}) == {"eval/syntax_ok": (0.95, "0")}


@pytest.mark.parametrize("kind", ["guards", "floors"])
@pytest.mark.parametrize("if_missing", ["skip", "refuse"])
def test_what_the_data_do_not_have_is_left_out_or_refused_as_the_policy_says(kind: str, if_missing: str) -> None:
    item = {"metric": "eval/edit_similarity", "if_missing": if_missing} | ({"min": 0.1} if kind == "floors" else {})
    decision = decide(policy(**{kind: [item]}), evidence("2", BETTER), evidence("1"), "Staging")
    assert decision.passed is (if_missing == "skip")
    words = "these data have no eval/edit_similarity: left out" if if_missing == "skip" else "has no metric eval/edit_"
    assert any(words in reason.detail for reason in decision.reasons)


def test_what_the_table_has_is_not_left_out_where_nobody_has_logged_it() -> None:
    rows = BETTER.assign(syntax_ok=False)
    logged = {"eval/nll_per_token": evidence("2", rows).metrics["eval/nll_per_token"]}
    own = policy(guards=[{"metric": "eval/syntax_ok", "if_missing": "skip"}])
    decision = decide(own, evidence("2", rows, metrics=logged), evidence("1"), "Staging")
    assert "has no metric eval/syntax_ok" in decision.why


def test_a_tuned_version_whose_base_is_not_there_has_nothing_to_be_compared_with() -> None:
    tuned = evidence("2", BETTER, role="candidate", base_model="elsewhere@1")
    assert "was tuned from elsewhere@1: there is no version of that" in decide(policy(), tuned, None, "Staging").why


def test_a_guard_that_only_one_of_them_has_is_not_left_out() -> None:
    rows = BETTER.assign(edit_similarity=0.5)
    own = policy(guards=[{"metric": "eval/edit_similarity", "if_missing": "skip"}])
    incumbent = evidence("1", SAME.assign(edit_similarity=0.9))
    incumbent = dataclasses.replace(incumbent, metrics={**incumbent.metrics, "eval/edit_similarity": 0.9})
    assert not decide(own, evidence("2", rows), incumbent, "Staging").passed


@pytest.mark.parametrize(
    ("who", "changes", "check"),
    [
        ("candidate", {"sealed": "b" * 64}, "candidate's table as by the trainer's tag"),
        ("incumbent", {"sealed": "b" * 64}, "incumbent's table as by the trainer's tag"),
        (
            "incumbent",
            {"recorded": {"eval/examples.parquet": "b" * 64}},
            "incumbent's table as by the record of its promotion",
        ),
        ("candidate", {"manifest": "m", "judged_manifest": "other"}, "candidate's own files were judged"),
        ("incumbent", {"manifest": "m", "judged_manifest": "other"}, "incumbent's own files were judged"),
        ("candidate", {"finished": False}, "candidate's run has finished"),
        ("candidate", {"train_digests": ("x", "data")}, "held-out data apart from training data"),
        ("candidate", {"recomputed": False}, "candidate's figures vouched for"),
        ("incumbent", {"recomputed": False}, "incumbent's figures vouched for"),
    ],
)
def test_each_forgery_is_refused(who: str, changes: dict[str, Any], check: str) -> None:
    """A table that was overwritten, figures of other files or of data that were trained on, or invented ones."""
    bound = {"sha256": {"eval/examples.parquet": "a" * 64}, "sealed": "a" * 64, "manifest": "m", "judged_manifest": "m"}
    ours, theirs = evidence("2", BETTER, **bound), evidence("1", **bound)
    assert decide(policy(), ours, theirs, "Production").passed
    if who == "candidate":
        ours = dataclasses.replace(ours, **changes)
    else:
        theirs = dataclasses.replace(theirs, **changes)
    assert refused(decide(policy(), ours, theirs, "Production")) == [check]


def test_an_incumbent_is_vouched_for_by_the_record_of_its_promotion() -> None:
    sha256 = {"eval/examples.parquet": "a" * 64}
    incumbent = evidence("1", recomputed=False, sha256=sha256, recorded=sha256)
    assert decide(policy(), evidence("2", BETTER), incumbent, "Production").passed
    assert decide(policy(), evidence("2", BETTER, recomputed=False), incumbent, "Staging").passed
    more = dataclasses.replace(incumbent, sha256=sha256 | {"eval/humaneval.parquet": "c" * 64})
    assert refused(decide(policy(), evidence("2", BETTER), more, "Production")) == ["incumbent's figures vouched for"]
    off = policy(safety={"evidence": "never"})
    assert decide(off, evidence("2", BETTER, recomputed=False), incumbent, "Production").passed


def test_files_are_what_is_counted() -> None:
    few = {"group": ["a.py", "b.py", "c.py", "d.py", "e.py"] * (N // 5)}
    decision = decide(policy(), evidence("2", BETTER.assign(**few)), evidence("1", SAME.assign(**few)), "Staging")
    assert "are from 5 files, 6 wanted" in decision.why
    assert "data.min_eval_files" in decision.why
    two = {"repository": ["one", "two"] * (N // 2)} | {"group": ["a.py"] * 30 + ["b.py"] * 30}
    own = policy(significance={"min_groups": 4})
    decision = decide(own, evidence("2", BETTER.assign(**two)), evidence("1", SAME.assign(**two)), "Staging")
    assert decision.comparisons[0].groups == 4  # a.py of one is not a.py of the other
    assert set(decision.comparisons[0].by_repository) == {"one", "two"}


def test_both_tables_have_to_name_the_files_and_name_the_same() -> None:
    old = SAME.drop(columns="group")
    decision = decide(policy(), evidence("2", BETTER), evidence("1", old), "Staging")
    assert "of version 1 has no column 'group'" in decision.why
    assert "trainer evaluate --model-uri models:/m/1 --data runs:/run1 --again" in decision.why
    moved = SAME.assign(group=SAME["group"][::-1].to_numpy())
    decision = decide(policy(), evidence("2", BETTER), evidence("1", moved), "Staging")
    assert "from other files" in decision.why


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
        ({"rows": _rows(lambda t: t.assign(tokens=0)), "metrics": {"eval/nll_per_token": 2.0}}, "no count of tokens"),
        ({"rows": _rows(lambda t: t.assign(tokens=-t["tokens"]))}, "60 of 60 examples have no count of tokens"),
        ({"rows": _rows(lambda t: t.assign(nll=-t["nll"]))}, "Expected at least 0"),
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
        (5, True, False, "no worse on the only 5 examples that have it; with 90% confidence at most"),
    ],
)
def test_a_guard_that_is_not_certain_needs_no_number_of_files_and_says_how_few_it_saw(
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
    guard = {"metric": "eval/syntax_ok", "max_regression": 0.05, "certain": False}
    rows = [own.assign(syntax_ok=[True] + [None] * (N - 1)) for own in (BETTER, SAME)]
    versions = [
        evidence(version, own, metrics={**evidence(version, own).metrics, "eval/syntax_ok": 1.0})
        for version, own in zip(("2", "1"), rows, strict=True)
    ]
    decision = decide(policy(guards=[guard]), *versions, "Staging")
    assert decision.passed, decision.why
    assert any("no worse on the only 1 examples" in reason.detail for reason in decision.reasons)


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
        ("if_tried", "Staging", None, True),
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
    alone = {"group": [f"{number}.py" for number in range(N)]}
    return evidence("2", ours.assign(**alone)), evidence("1", theirs.assign(**alone))


@pytest.mark.parametrize(
    ("won", "lost", "passed"), [(9, 1, True), (7, 2, False), (6, 0, True), (4, 0, False), (1, 0, False), (0, 0, False)]
)
def test_a_pass_or_fail_metric_is_judged_by_the_files_that_only_one_of_them_passes(
    won: int, lost: int, passed: bool
) -> None:
    """With one example a file that is McNemar's exact test, at least."""
    own = policy(primary={"metric": "eval/syntax_ok", "direction": "higher_is_better", "min_relative_improvement": 0})
    decision = decide(own, *passes(won, lost), "Staging")
    assert decision.passed is passed, decision.why
    assert decision.comparisons[0].p_value >= binomtest(won, won + lost or 1, alternative="greater").pvalue - 1e-12
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
