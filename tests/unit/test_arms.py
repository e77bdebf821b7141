"""Which arm a request of a trial is given, and what ends a challenger's traffic at once."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from contract.trials import CHALLENGER, INCUMBENT, Limits, is_challengers
from serving.gateway.arms import Arms, Seen, too_bad
from serving.supervisor.state import Challenger, Live, State, stopped_file

GOOD, FAILED, EMPTY, SLOW = (
    Seen(False, False, 0.1),
    Seen(True, False, 0.1),
    Seen(False, True, 0.1),
    Seen(False, False, 30),
)


def live(version: str) -> Live:
    return Live("code", version, "", "", "", "", 0, 0.0)


def state(**changed: Any) -> State:
    values: dict[str, Any] = {
        "version": "2", "trial": "t1", "share": 0.25, "unit": "request", "until": time.time() + 60,
        "limits": Limits().model_dump(), "live": live("2"),
    }  # fmt: skip
    return State(live=live("1"), challenger=Challenger(**(values | changed)))


def challengers(arms: Arms, now: State, user: str = "", session: str = "", number: int = 4000) -> list[bool]:
    found = [arms.assign(now, f"cmpl-{count}", user, session) for count in range(number)]
    return [one is not None and one.arm == CHALLENGER for one in found]


def test_shares_are_those_asked_for_on_every_replica_alike(tmp_path: Path) -> None:
    first, second = challengers(Arms(tmp_path), state()), challengers(Arms(tmp_path), state())
    assert first == second
    assert sum(first) / 4000 == pytest.approx(0.25, abs=0.02)
    more = challengers(Arms(tmp_path), state(share=0.5))
    assert all(after for before, after in zip(first, more, strict=True) if before)  # who is its own stays so
    other = challengers(Arms(tmp_path), state(trial="t2"))
    assert sum(a and b for a, b in zip(first, other, strict=True)) / 4000 == pytest.approx(0.0625, abs=0.015)


def test_an_arm_counts_with_its_own_version(tmp_path: Path) -> None:
    for count in range(50):
        found = Arms(tmp_path).assign(state(), f"cmpl-{count}", "", "")
        assert found is not None
        assert (found.live.version, found.patience_s > 0) == (("2", True) if found.arm == CHALLENGER else ("1", False))
        assert (found.arm in (CHALLENGER, INCUMBENT), found.share) == (True, 0.25)


@pytest.mark.parametrize(
    ("unit", "user", "session", "together"),
    [("user", "ada", "s", True), ("user", "", "s", True), ("session", "ada", "s", True), ("session", "ada", "", False),
     ("user", "", "", False), ("request", "ada", "s", False)],
)  # fmt: skip
def test_what_is_to_stay_together_does_so_where_it_is_known(
    unit: str, user: str, session: str, together: bool, tmp_path: Path
) -> None:
    assert (len(set(challengers(Arms(tmp_path), state(unit=unit), user, session, 200))) == 1) is together


@pytest.mark.parametrize(
    "changed", [{"live": None}, {"stopped": "it is slow"}, {"until": time.time() - 1}], ids=lambda one: next(iter(one))
)
def test_nothing_is_on_trial_where_the_challenger_does_not_answer(changed: dict[str, Any], tmp_path: Path) -> None:
    assert Arms(tmp_path).assign(state(**changed), "cmpl-1", "", "") is None
    assert Arms(tmp_path).assign(State(live=live("1")), "cmpl-1", "", "") is None


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        ([FAILED] * 2, ""),
        ([GOOD, FAILED, FAILED, FAILED], "its last 3 requests on one worker failed"),
        ([FAILED, GOOD] * 5, "5 of its last 10 requests on one worker failed"),
        ([FAILED, GOOD, GOOD] * 3 + [GOOD], ""),
        ([EMPTY] * 9, ""),
        ([EMPTY] * 9 + [GOOD], "9 of its last 10 requests on one worker were empty"),
        ([SLOW] * 10, "10 of its last 10 requests on one worker took longer than 10 s"),
        ([GOOD] * 10, ""),
    ],
)
def test_what_ends_a_challengers_traffic(seen: list[Seen], why: str) -> None:
    assert too_bad(seen, Limits()) == why


def test_a_worker_stops_at_once_and_says_so(tmp_path: Path) -> None:
    arms, now = Arms(tmp_path), state(share=0.999)
    for count in range(3):
        assigned = arms.assign(now, f"cmpl-{count}", "", "")
        assert assigned is not None
        arms.told(now, assigned, failed=True, empty=True, seconds=0.1)
    assert arms.assign(now, "cmpl-4", "", "") is None
    assert json.loads(stopped_file(tmp_path).read_text())["trial"] == "t1"
    assert arms.assign(state(trial="t2"), "cmpl-4", "", "") is not None  # another trial is another matter


def test_the_chance_is_as_fine_as_it_can_be() -> None:
    assert not any(is_challengers("t", str(number), 0.0) for number in range(1000))
    assert sum(is_challengers("t", str(number), 0.001) for number in range(100_000)) == pytest.approx(100, abs=35)
