"""What a trial's requests are counted as, and what is decided by them."""

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from mlflow import MlflowClient

from contract import outcomes
from contract.errors import InputError
from promoter.records import Entry
from promoter.trials import policy, report, sequential
from promoter.trials.policy import Budget, Margins, Step, TrialPolicy
from promoter.trials.report import Event
from promoter.trials.traffic import Row, Traffic, observe
from promoter.trials.verdict import MEASURES, Verdict, judge
from promoter.trials.watch import Progress

NOW = 1_000_000.0
LONG_AGO = 100_000.0  # seconds, after which all is known
WIDE = Margins(persistence=0.5, errors=0.5, empty=0.5, slow=0.5, left=0.5)
SHORT = TrialPolicy(steps=(Step(share=0.5, requests=100),), margins=WIDE, budget=Budget(requests=5000))


def row(**changed: Any) -> Row:
    values: dict[str, Any] = {
        "at": NOW - LONG_AGO, "challenger": False, "share": 0.5, "user": "ada", "unit": "u", "failed": False,
        "left": False, "empty": False, "seconds": 0.1, "accepted": False, "kept": 0.0,
    }  # fmt: skip
    return Row(**(values | changed))


def rows(number: int, likes: tuple[float, float], share: float = 0.5, seed: int = 1, **changed: Any) -> list[Row]:
    """Requests one second apart; `likes`: the chance that one is accepted, of the incumbent's and the challenger's.

    `changed`: of the challenger's.
    """
    dice = random.Random(seed)
    found = []
    for count in range(number):
        challenger = dice.random() < share
        accepted = dice.random() < likes[challenger]
        own = changed if challenger else {}
        at, user = NOW - LONG_AGO + count, f"user {count // 20 % 12}"
        found.append(
            row(at=at, user=user, challenger=challenger, share=share, accepted=accepted, unit=str(count), **own)
        )
    return found


def verdict(found: Sequence[Row], by: TrialPolicy = SHORT, step: int = 0) -> Verdict:
    return judge(found, by, step, NOW - LONG_AGO, NOW - LONG_AGO, NOW)


@pytest.mark.parametrize(
    ("likes", "number", "margin", "action"),
    [
        ((0.3, 0.3), 3000, 0.1, "promote"),
        ((0.3, 0.6), 800, 0.0, "promote"),
        ((0.3, 0.3), 5000, 0.0, "inconclusive"),
        ((0.3, 0.3), 300, 0.05, "go on"),
        ((0.5, 0.1), 400, 0.05, "roll back"),
        ((0.5, 0.5), 50, 0.9, "go on"),  # the step is not full
    ],
)
def test_what_users_like_decides(likes: tuple[float, float], number: int, margin: float, action: str) -> None:
    margins = WIDE.model_copy(update={"acceptance": margin})
    assert verdict(rows(number, likes), SHORT.model_copy(update={"margins": margins})).action == action


@pytest.mark.parametrize(
    ("changed", "measure"),
    [({"failed": True}, "errors"), ({"empty": True}, "empty"), ({"left": True}, "left"), ({"seconds": 9.0}, "slow")],
)
def test_another_measure_that_gets_worse_takes_it_back(changed: dict[str, Any], measure: str) -> None:
    narrow = SHORT.model_copy(update={"margins": Margins(acceptance=0.9, persistence=0.9)})
    found = verdict(rows(300, (0.5, 0.5), **changed), narrow)
    assert found.action == "roll back"
    assert found.why.startswith(f"it is worse: {measure} -")
    assert verdict(rows(300, (0.5, 0.5)), narrow).action != "roll back"


def test_a_step_is_taken_when_it_is_full() -> None:
    two = SHORT.model_copy(update={"steps": (Step(share=0.25, requests=200), Step(share=0.5, requests=200, hours=1))})
    found = rows(250, (0.4, 0.4), 0.25)
    assert verdict(found, two).action == "step"
    assert verdict(found[:150], two).action == "go on"
    assert judge(found, two, 1, NOW - 10, NOW - LONG_AGO, NOW).action == "go on"  # its hour is not over


def test_a_wrong_split_ends_it() -> None:
    found = [one for one in rows(2000, (0.5, 0.5)) if not one.challenger or random.Random(one.unit).random() < 0.6]
    assert verdict(found).action == "inconclusive"
    assert "not split as was asked for" in verdict(found).why


def test_the_days_are_a_budget_too() -> None:
    found = judge(rows(20, (0.5, 0.5)), SHORT, 0, NOW - 90_000, NOW - 15 * 86_400, NOW)
    assert (found.action, "the budget is spent (20 requests in 15.0 days)" in found.why) == ("inconclusive", True)


def test_nothing_at_all_is_no_reason_to_decide() -> None:
    found = judge([], SHORT, 0, NOW, NOW, NOW)
    assert (found.action, found.requests, len(found.measures)) == ("go on", (0, 0), len(MEASURES))
    assert all(one.low == -math.inf for one in found.measures)


def test_what_may_still_be_accepted_does_not_count_yet() -> None:
    found = [row(at=NOW - 300), row(at=NOW - 30, accepted=True), row(at=NOW - 20)]
    assert len(observe(found, SHORT, "acceptance", NOW).values) == 1
    assert len(observe(found, SHORT, "errors", NOW).values) == 3


def test_a_session_is_one_observation_once_it_is_over() -> None:
    by_session = SHORT.model_copy(update={"unit": "session"})
    old = [row(at=NOW - 9000 + second, unit="a", accepted=second > 1, challenger=True) for second in range(4)]
    seen = observe([*old, row(at=NOW - 8000, unit="b"), row(at=NOW - 200, unit="c")], by_session, "acceptance", NOW)
    assert (list(seen.values), list(seen.challenger)) == ([0.5, 0.0], [True, False])


def test_what_is_slow_is_told_by_the_incumbents_earlier_requests() -> None:
    quick = [row(at=NOW - LONG_AGO + second, seconds=0.1 + second / 1000) for second in range(40)]
    late = row(at=NOW - LONG_AGO + 50, seconds=1.0, challenger=True)
    assert sum(observe([*quick, late], SHORT, "slow", NOW).values[-1:]) == -1
    assert sum(observe([late, *quick], SHORT, "slow", NOW).values) == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: [{share: 0.5}, {share: 0.2}]", "Expected each to be larger than the one before"),
        ("steps: [{share: 0.9}]", "steps.0.share is 0.9"),
        ("decides: taste", "decides is 'taste'"),
        ("margin: {}", "no such key"),
        ("steps: [{share: 1.0e-320}]", "share is 1e-320"),
        ("steps: [{share: 0.1, requests: 99}]\nbudget: {requests: 10}", "Expected no more than the budget"),
        ("alpha: 0", "alpha is 0"),
        ("lease_s: 20\nlook_s: 10", "Expected at least three times look_s"),
        ("- a", "expected keys with values"),
    ],
)
def test_what_is_wrong_with_a_policy_is_said(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"docs/trials\.md") as caught:
        policy.load(str(path))
    assert words in caught.value.message


def test_progress_is_read_as_it_was_written_and_fits_a_tag() -> None:
    progress = Progress(1.0, 2, 3.0)
    assert Progress.of(progress.with_event("x").to_json()).events[0].what == "x"
    for _ in range(100):
        progress = progress.with_event("why " * 500)
    assert len(progress.to_json()) < 8000
    assert Progress.of(progress.to_json()).step == 2


def test_its_page_has_the_figures_a_picture_and_no_markup_of_others() -> None:
    found = verdict(rows(400, (0.5, 0.1)))
    entry = Entry("code", "2", "Production", "Staging", "1", "trial", outcomes.TRIAL_ROLLED_BACK, "<b>", found.why)
    files = report.files(entry, SHORT, found, [Event(NOW, "<script>")])
    assert "<b>" not in files["decision.html"]
    assert "<script>" not in files["decision.html"]
    assert files["decision.html"].count("<polygon") == len(MEASURES)
    assert "nan" not in files["decision.html"].lower().replace("tenant", "")
    figures = json.loads(files["decision.json"])
    assert figures["requests"] == {"incumbent": found.requests[0], "challenger": found.requests[1]}
    assert "| acceptance |" in files["decision.md"]
    assert "<polygon" not in report.files(entry, SHORT, None, [])["decision.html"]


def test_one_bound_is_a_picture_too() -> None:
    """Where a trial is rolled back as soon as anything is sure."""
    found = next(one for one in verdict(rows(400, (0.5, 0.1))).measures if one.decides)
    first = int(np.flatnonzero(np.isfinite(found.path.low))[0])
    for number in (1, 2):
        path = sequential.Path(*(getattr(found.path, name)[: first + number] for name in ("estimate", "low", "high")))
        assert report.picture(replace(found, path=path)).count("<polygon") == 1
    empty = sequential.Path(*(getattr(found.path, name)[:first] for name in ("estimate", "low", "high")))
    assert report.picture(replace(found, path=empty)) == ""


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, math.nan, math.inf])
def test_a_trace_whose_share_makes_no_sense_is_left_out(share: float) -> None:
    tags = {"trial_share": repr(share), "arm": "challenger", "trial_outcome": "answered"}
    info = SimpleNamespace(tags=tags, assessments=[], request_time=0, execution_duration=1, trace_id="tr-1")
    assert Traffic(cast(MlflowClient, None), "t", SHORT)._row(info) is None


def test_a_small_arm_that_has_not_failed_yet_is_no_proof() -> None:
    """At 5% some twenty of four hundred requests are the challenger's: what fails once in fifty may not have come."""
    one_step = TrialPolicy(steps=(Step(share=0.05, requests=400),), margins=Margins(acceptance=0.9, persistence=0.9))
    found = verdict(rows(1000, (0.5, 0.5), 0.05), one_step)
    errors = next(one for one in found.measures if one.name == "errors")
    assert (found.action, errors.low > -errors.margin, errors.holds) == ("go on", True, False)


def test_where_nobody_tells_nothing_is_promoted() -> None:
    found = verdict(rows(4000, (0.0, 0.0)))
    assert (found.action, next(one for one in found.measures if one.decides).holds) == ("go on", False)


def test_a_margin_is_never_all_that_there_is() -> None:
    """A dead challenger is within five points of one whose completions are accepted four times in a hundred."""
    assert verdict(rows(4000, (0.04, 0.0))).action == "roll back"
    decider = next(one for one in verdict(rows(4000, (0.04, 0.04))).measures if one.decides)
    assert decider.margin == pytest.approx(0.02, abs=0.005)


def test_a_session_counts_with_the_arm_that_it_had_first() -> None:
    """Where the share grows in the middle of it, some of its requests are the other arm's."""
    by_session = SHORT.model_copy(update={"unit": "session"})
    old = [row(at=NOW - 9000 + second, unit="a", accepted=second > 1, challenger=second > 1) for second in range(4)]
    assert list(observe(old, by_session, "acceptance", NOW).values) == [0.0]
