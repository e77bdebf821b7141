"""What became of a trial's requests: one row each, from the traces that serving keeps in MLflow."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mlflow import MlflowClient
from numpy.typing import NDArray

from contract.names import TRACES
from contract.trials import (
    ARM_TAG,
    CHALLENGER,
    CHANCE_TAG,
    FAILED,
    GAIN,
    LEAST_SHARE,
    LEFT,
    OUTCOME_TAG,
    SHADOW,
    SHADOW_EMPTY,
    SHADOW_FAILED,
    TRIAL_TAG,
    UNIT_TAG,
)
from promoter.trials.policy import TrialPolicy

AT_ONCE = 500  # traces of one request
LATE_S = 900.0  # by which a trace may come later than others, where a replica has not reached the tracking server
SESSION_S = 1800.0  # of silence, after which a session is over
P95, LEAST_FOR_P95 = 0.95, 20  # the incumbent's requests before there is such a thing
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One request."""

    at: float  # seconds since 1970
    challenger: bool
    share: float  # the chance of that
    user: str
    unit: str
    failed: bool
    left: bool
    empty: bool
    seconds: float
    accepted: bool
    kept: float  # the share of its characters that is left, of an accepted one


@dataclass(frozen=True)
class Copy:
    """A request that the live version has answered, and the challenger too, which nobody saw."""

    at: float
    failed: bool
    empty: bool
    live_empty: bool
    gain: float | None  # by how much more likely it holds what the user kept, in nats a character


class Traffic:
    """Reads a trial's requests; what has been read and can no longer change is not read again."""

    def __init__(self, client: MlflowClient, trial: str, policy: TrialPolicy) -> None:
        self.client, self.trial, self.policy = client, trial, policy
        self._rows: dict[str, Row] = {}
        self._copies: dict[str, Copy] = {}
        self._since = 0.0

    def read(self, now: float, anew: bool = False) -> list[Row]:
        """All requests so far, in their order. `now`: seconds since 1970. `anew`: all are read once more."""
        experiment = self.client.get_experiment_by_name(TRACES)
        if experiment is None:
            return []
        since = 0 if anew else max(0, int(1000 * self._since))
        terms = f"tags.{TRIAL_TAG} = '{self.trial}' AND trace.timestamp_ms >= {since}"
        token = None
        while True:
            page = self.client.search_traces(
                locations=[experiment.experiment_id],
                filter_string=terms,
                max_results=AT_ONCE,
                page_token=token,
                order_by=["timestamp_ms ASC"],
                include_spans=False,
            )
            for trace in page:
                if trace.info.tags.get(ARM_TAG) == SHADOW:
                    self._take_copy(trace.info)
                elif (row := self._row(trace.info)) is not None:
                    self._rows[trace.info.trace_id] = row
            if not (token := page.token):
                break
        self._since = now - LATE_S - max(self.policy.settle_s, self.policy.persistence_after_s + 60)
        return sorted(self._rows.values(), key=lambda row: row.at)

    @property
    def copies(self) -> list[Copy]:
        """The requests that have been read whose copy the challenger has answered, in their order."""
        return sorted(self._copies.values(), key=lambda copy: copy.at)

    def _take_copy(self, info: Any) -> None:
        said = {item.name: getattr(item, "value", None) for item in info.assessments}
        if SHADOW_FAILED not in said:  # left out: there were others to answer
            return
        gain, empty = said.get(GAIN), info.tags.get("characters", "0") == "0"
        self._copies[info.trace_id] = Copy(
            *(info.request_time / 1000, bool(said[SHADOW_FAILED]), bool(said.get(SHADOW_EMPTY)), empty),
            float(gain) if gain is not None else None,
        )

    def _row(self, info: Any) -> Row | None:
        tags, said = info.tags, {item.name: getattr(item, "value", None) for item in info.assessments}
        try:
            share, arm, outcome = float(tags[CHANCE_TAG]), tags[ARM_TAG], tags[OUTCOME_TAG]
        except (KeyError, ValueError):  # somebody has changed it by hand
            return None
        if not LEAST_SHARE <= share <= 1 - LEAST_SHARE:
            return None
        answered = outcome not in (FAILED, LEFT)
        return Row(
            at=info.request_time / 1000,
            challenger=arm == CHALLENGER,
            share=share,
            user=tags.get("user", ""),
            unit=tags.get(UNIT_TAG, info.trace_id),
            failed=outcome == FAILED,
            left=outcome == LEFT,
            empty=answered and tags.get("characters", "0") == "0",
            seconds=(info.execution_duration or 0) / 1000,
            accepted=bool(said.get("accepted")),
            kept=float(said.get(f"kept_{self.policy.persistence_after_s}s") or 0.0),
        )


@dataclass(frozen=True)
class Observations:
    """One measure, of what was given an arm: (n,) each, in order. Larger is better."""

    values: Floats
    challenger: NDArray[np.bool_]
    shares: Floats
    users: NDArray[np.int64]


def observe(rows: Sequence[Row], policy: TrialPolicy, measure: str, now: float) -> Observations:
    """A measure of all requests of which it is known by now; of those after the first that is not, none.

    So what is known does not depend on what became of a request: one is not accepted for as long as it may still be.
    """
    waits = {"acceptance": policy.settle_s, "persistence": policy.persistence_after_s + policy.settle_s}
    rows = [row for row in rows if row.at <= now - waits.get(measure, 0.0)]
    values = _values(rows, measure, policy)
    if policy.unit != "request":
        return _by_unit(rows, values, now, policy)
    users = np.unique([row.user for row in rows], return_inverse=True)[1] if rows else np.empty(0, dtype=np.int64)
    return Observations(
        values,
        np.array([row.challenger for row in rows], dtype=bool),
        np.array([row.share for row in rows], dtype=np.float64),
        users.astype(np.int64),
    )


def _values(rows: Sequence[Row], measure: str, policy: TrialPolicy) -> Floats:
    if measure == "acceptance":
        found = [float(row.accepted) for row in rows]
    elif measure == "persistence":
        found = [row.kept if row.accepted else 0.0 for row in rows]
    elif measure == "slow":
        return -_slow(rows, policy.slow_factor)
    else:
        found = [-float({"errors": row.failed, "empty": row.empty, "left": row.left}[measure]) for row in rows]
    return np.array(found, dtype=np.float64)


def _slow(rows: Sequence[Row], factor: float) -> Floats:
    """Of each request, whether it took longer than `factor` times the p95 of the incumbent's before it."""
    found = np.zeros(len(rows))
    seen: list[float] = []
    limit = np.inf
    for number, row in enumerate(rows):
        found[number] = row.seconds > factor * limit
        if not row.challenger and not row.failed and not row.left:
            seen.append(row.seconds)
            if len(seen) >= LEAST_FOR_P95 and (len(seen) < 200 or len(seen) % 50 == 0):
                limit = float(np.quantile(seen, P95))
    return found


def _by_unit(rows: Sequence[Row], values: Floats, now: float, policy: TrialPolicy) -> Observations:
    """One observation for each session, or user of a day: the mean of its requests, once it is over."""
    places: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        of_unit = places.setdefault(row.unit, [])
        if not of_unit or rows[of_unit[0]].challenger == row.challenger:  # not those after the share has grown
            of_unit.append(number)
    over = [unit for unit in places.values() if _is_over(rows[unit[-1]].at, now, policy)]
    over.sort(key=lambda unit: rows[unit[-1]].at)
    first = [rows[unit[0]] for unit in over]
    names = np.unique([row.user for row in first], return_inverse=True)[1] if first else np.empty(0)
    return Observations(
        np.array([values[unit].mean() for unit in over], dtype=np.float64),
        np.array([row.challenger for row in first], dtype=bool),
        np.array([row.share for row in first], dtype=np.float64),
        names.astype(np.int64),
    )


def _is_over(last: float, now: float, policy: TrialPolicy) -> bool:
    if policy.unit == "user":
        return int(now // 86_400) > int(last // 86_400)
    return now - last > SESSION_S
