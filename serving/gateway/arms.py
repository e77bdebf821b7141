"""Which of two versions answers a request while a trial runs, and when one of them is to answer none any more."""

import json
import logging
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from contract.files import write_whole
from contract.trials import CHALLENGER, INCUMBENT, Limits, is_challengers
from serving.supervisor.state import Challenger, Live, State, stopped_file

log = logging.getLogger(__name__)
IN_A_ROW = 3  # that fail are enough, whatever the limits say


@dataclass
class Assigned:
    """The arm that a request was given. It counts there, whoever answers it."""

    trial: str
    arm: str
    share: float  # the chance of the challenger
    live: Live  # of the arm
    unit: str  # what was given the arm
    patience_s: float = 0.0  # after which a challenger's request is the incumbent's to answer
    failed: str = ""  # why the arm has not answered it
    gone: bool = False  # since its process went away just then: the supervisor starts it again


@dataclass(frozen=True)
class Seen:
    """How a challenger's request went."""

    failed: bool
    empty: bool
    seconds: float


class Arms:
    """For one worker: gives requests their arms, and looks at how the challenger's last ones went."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # where the supervisor looks
        self._trial = ""
        self._seen: deque[Seen] = deque()
        self._stopped = ""  # the trial that this worker has stopped

    def assign(self, state: State, request: str, user: str, session: str) -> Assigned | None:
        """The arm of a request; None where no trial runs here. By nothing but the arguments and the time."""
        challenger, live = state.challenger, state.live
        if challenger is None or live is None or challenger.trial == self._stopped or not _runs(challenger):
            return None
        assert challenger.live is not None
        unit = _unit(challenger.unit, request, user, session)
        theirs = is_challengers(challenger.trial, unit, challenger.share)
        return Assigned(
            *(challenger.trial, CHALLENGER if theirs else INCUMBENT, challenger.share),
            *(challenger.live if theirs else live, unit, challenger.limits["slow_s"] if theirs else 0.0),
        )

    def told(self, state: State, assigned: Assigned, failed: bool, empty: bool, seconds: float) -> None:
        """Take note of how a request went; stop the trial where too many of the challenger's go wrong."""
        challenger = state.challenger
        if challenger is None or assigned.trial != challenger.trial or assigned.arm != CHALLENGER or assigned.gone:
            return
        limits = Limits.model_validate(challenger.limits)
        if self._trial != challenger.trial:
            self._trial, self._seen = challenger.trial, deque(maxlen=limits.last)
        self._seen.append(Seen(failed, empty, seconds))
        why = too_bad(list(self._seen), limits)
        if why and self._stopped != self._trial:
            self._stopped = self._trial
            log.error("The challenger, version %s, gets no requests any more: %s", challenger.version, why)
            write_whole(stopped_file(self.folder), json.dumps({"trial": self._trial, "why": why}))


def too_bad(seen: list[Seen], limits: Limits) -> str:
    """Why the challenger's last requests end its traffic; empty where they do not."""
    if len(seen) >= IN_A_ROW and all(one.failed for one in seen[-IN_A_ROW:]):
        return f"its last {IN_A_ROW} requests on one worker failed"
    if len(seen) < limits.last:
        return ""
    for what, count, most in (
        ("failed", sum(one.failed for one in seen), limits.errors),
        ("were empty", sum(one.empty and not one.failed for one in seen), limits.empty),
        (f"took longer than {limits.slow_s:g} s", sum(one.seconds > limits.slow_s for one in seen), limits.slow),
    ):
        if count >= most * len(seen):
            return f"{count} of its last {len(seen)} requests on one worker {what}"
    return ""


def _runs(challenger: Challenger) -> bool:
    return (
        not challenger.shadow
        and challenger.live is not None
        and not challenger.stopped
        and time.time() < challenger.until
    )


def _unit(kind: str, request: str, user: str, session: str) -> str:
    """By what a request is given its arm: what is asked for, or else the next finer thing that is known."""
    if kind == "user" and user:
        return f"user {user} {time.strftime('%Y-%m-%d', time.gmtime())}"  # for a day, which is then one observation
    if kind in ("user", "session") and session:
        return f"session {user} {session}"
    return request
