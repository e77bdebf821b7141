"""A challenger in the shadow: which requests it gets a copy of, and what is made of its answers."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from mlflow import MlflowClient

from contract.trials import Limits
from promoter.trials.policy import Shadow, TrialPolicy
from promoter.trials.traffic import Copy, Traffic
from promoter.trials.verdict import judge_shadow
from serving.gateway.arms import Arms
from serving.gateway.shadow import nats_behind, shadowed
from serving.supervisor.state import Challenger, Live, State

POLICY = TrialPolicy(shadow=Shadow(share=0.5, copies=10, kept=2))


def live(version: str) -> Live:
    return Live("code", version, "", "", "", "", 0, 0.0)


def state(**changed: Any) -> State:
    values: dict[str, Any] = {
        "version": "2", "trial": "t1", "share": 0.25, "unit": "request", "until": time.time() + 60,
        "limits": Limits().model_dump(), "shadow": True, "live": live("2"),
    }  # fmt: skip
    return State(live=live("1"), challenger=Challenger(**(values | changed)))


def copies(number: int, **changed: Any) -> list[Copy]:
    values: dict[str, Any] = {"at": 0.0, "failed": False, "empty": False, "live_empty": False, "gain": 0.1}
    return [Copy(**(values | changed)) for _ in range(number)]


def test_in_the_shadow_nobody_is_answered_by_the_challenger(tmp_path: Path) -> None:
    assert all(Arms(tmp_path).assign(state(), f"cmpl-{number}", "", "") is None for number in range(200))
    share = sum(shadowed(state(), f"cmpl-{number}") is not None for number in range(4000)) / 4000
    assert share == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("changed", [{"shadow": False}, {"live": None}, {"stopped": "slow"}, {"until": 1.0}])
def test_there_are_no_copies_where_there_is_no_shadow(changed: dict[str, Any]) -> None:
    assert all(shadowed(state(**changed), f"cmpl-{number}") is None for number in range(200))


def test_the_likelihood_of_what_was_kept_is_that_of_its_own_tokens() -> None:
    tokens = [
        {"token": "def", "logprob": None, "top": {}},
        {"token": " f", "logprob": -9.0, "top": {}},
        {"token": "(x", "logprob": -1.0, "top": {}},
        {"token": "):", "logprob": -0.5, "top": {}},
    ]
    assert nats_behind(cast(Any, tokens), 5) == -1.5
    assert nats_behind(cast(Any, tokens), 6) == -0.5  # a token that begins before it is the prompt's


@pytest.mark.parametrize(
    ("found", "action"),
    [
        (copies(9), "go on"),
        (copies(10), "step"),
        (copies(10, gain=None), "go on"),  # nobody has said what was kept
        (copies(10, gain=-0.1), "roll back"),
        (copies(10, gain=-0.01), "step"),
        (copies(7) + copies(3, failed=True), "roll back"),
        (copies(7) + copies(3, empty=True), "roll back"),
        (copies(7) + copies(3, empty=True, live_empty=True), "step"),
    ],
)
def test_what_is_decided_in_the_shadow(found: list[Copy], action: str) -> None:
    assert judge_shadow(found, POLICY, 0.0, 10.0).action == action


def test_a_shadow_has_a_budget_of_days() -> None:
    assert judge_shadow(copies(1), POLICY, 0.0, 15 * 86_400).action == "inconclusive"


def test_a_copy_that_was_left_out_does_not_count() -> None:
    traffic = Traffic(cast(MlflowClient, None), "t1", POLICY)
    said = [SimpleNamespace(name="shadow_failed", value=False), SimpleNamespace(name="shadow_gain", value=0.5)]
    for number, assessments in enumerate(([], said)):
        info = SimpleNamespace(
            trace_id=f"tr-{number}", request_time=1000, tags={"characters": "3"}, assessments=assessments
        )
        traffic._take_copy(info)
    assert [(copy.at, copy.failed, copy.gain) for copy in traffic.copies] == [(1.0, False, 0.5)]
