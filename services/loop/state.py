"""What the loop knows: its rounds, as runs on the tracking server, and what has happened since the last candidate."""

import json
import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from contract import steering
from contract.errors import RatchetError, printable
from contract.lease import Claim
from contract.names import DRIFT, LOOP_FROZEN, LOOP_RESUMED, LOOP_RUN_NOW, NO_DRIFT, PRODUCTION, ROUNDS, TRACES
from contract.steering import CANDIDATE, END, MODEL, ROUND, TRAINED_S, TRIGGER, WHY, said
from contract.tracking import FINAL, create_once
from services.loop.config import MOST_ACCEPTED, Loop
from services.loop.rounds import Facts, Known, Round
from services.loop.sources import Moved

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Tags of a round beside those that `promoter loop status` shows.
HEADS = "heads"  # JSON of each source's commit as it began
ASKED = "asked"  # the request by which it began, as it stood at the model
TRAINING, GPUS, SPENT_AT = "training", "gpus", "spent_at"
KEY = "round_key"
LONGEST = 4000  # characters of a tag


class Gone(RatchetError):
    """Somebody has deleted the round."""


@dataclass
class Record:
    """One round's run, which nobody writes whose lease on the loop has run out."""

    client: "MlflowClient"
    claim: Claim
    id: str
    tags: dict[str, str] = field(default_factory=dict)

    def set(self, name: str, value: str) -> None:
        """Write one of its tags, where it is another."""
        value = printable(value)[:LONGEST]
        if self.tags.get(name) != value:
            with self._writing():
                self.client.set_tag(self.id, name, value)
            self.tags[name] = value

    def end(self, how: str, why: str) -> None:
        """How it ended, and why."""
        self.set(WHY, why)
        self.set(END, how)
        with self._writing():
            self.client.set_terminated(self.id)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        from mlflow.exceptions import MlflowException

        try:
            with self.claim.in_time():
                yield
        except MlflowException as error:
            if error.error_code in FINAL and self.client.get_run(self.id).info.lifecycle_stage == "deleted":
                raise Gone(f"Round {self.id[:12]} was deleted, and has ended with that.") from error
            raise


def number(tags: Mapping[str, str], name: str) -> float | None:
    """A tag's number; None unless it is one of 0 or more: anybody may have written it."""
    try:
        found = float(tags.get(name, ""))
    except ValueError:
        return None
    return found if 0 <= found < math.inf else None


def experiment(client: "MlflowClient") -> str:
    """Id of the experiment of rounds, which is made on first use."""

    def look() -> Any:
        return client.get_experiment_by_name(ROUNDS)

    found = look() or create_once(look, lambda: client.get_experiment(client.create_experiment(ROUNDS)))
    return str(found.experiment_id)


def runs(client: "MlflowClient", model: str) -> "list[Run]":
    """All rounds of a model, in their order; those that were deleted too, for they have cost what they did."""
    from mlflow.entities import ViewType

    found: list[Run] = []
    token = None
    where, wanted, order = [experiment(client)], steering.rounds_of(model), ["attributes.start_time ASC"]
    while True:
        page = client.search_runs(where, wanted, run_view_type=ViewType.ALL, order_by=order, page_token=token)
        found += page
        if not (token := page.token):
            return found


def goes_on(run: "Run") -> bool:
    """Whether a round has not ended."""
    return bool(run.info.status == "RUNNING" and run.info.lifecycle_stage == "active")


def round_of(run: "Run") -> Round:
    """A run as a round. What it cost and does not say is what has passed: nobody spends more by spoiling a tag."""
    tags, ended = run.data.tags, None if goes_on(run) else (run.info.end_time or run.info.start_time) / 1000
    began = run.info.start_time / 1000
    trained_s = number(tags, TRAINED_S)
    if trained_s is None:
        trained_s = max(0.0, (ended or time.time()) - began) if TRAINING in tags else 0.0
    return Round(
        id=run.info.run_id,
        began=began,
        ended=ended,
        end="" if ended is None else tags.get(END, "deleted"),
        trained=TRAINING in tags,
        trained_s=trained_s,
        gpus=int(number(tags, GPUS) or 0),
        spent_at=number(tags, SPENT_AT) or 0.0,
    )


def rounds(client: "MlflowClient", model: str) -> list[Round]:
    """All rounds of a model, in their order."""
    return [round_of(run) for run in runs(client, model)]


def begin(client: "MlflowClient", claim: Claim, loop: Loop, why: str, facts: Facts, asked: str, now: float) -> Record:
    """A new round; one, though a reply is lost."""
    tags = {ROUND: "true", MODEL: loop.model, TRIGGER: printable(why)[:LONGEST], KEY: uuid.uuid4().hex}
    tags |= {HEADS: json.dumps(facts.heads), ASKED: asked}
    name = f"round of {time.strftime('%Y-%m-%d', time.gmtime(now))}"
    where = experiment(client)

    def look() -> "Run | None":
        return next(iter(client.search_runs([where], f"tags.{KEY} = '{tags[KEY]}'")), None)

    with claim.in_time():
        run = create_once(
            look, lambda: client.create_run(where, start_time=round(now * 1000), run_name=name, tags=tags)
        )
    return Record(client, claim, run.info.run_id, dict(run.data.tags))


def known(client: "MlflowClient", loop: Loop, free_gb: Callable[[], float]) -> Known:
    """What holds a round back, or asks for one."""
    tags = steering.tags(client, loop.model)
    return Known(
        free_gb=free_gb,
        frozen=said(tags.get(LOOP_FROZEN)),
        asked_for=said(tags.get(LOOP_RUN_NOW)),
    )


def facts(client: "MlflowClient", loop: Loop, found: "list[Run]", moved: Moved) -> Facts:
    """What has happened since the last candidate's code was taken."""
    counted = [one for one in moved.subjects if not any(word in one for word in loop.stop_words)]
    production = in_production(client, loop.model)
    made = production.creation_timestamp / 1000 if production is not None else 0.0
    last = baseline(found)
    since = last.info.start_time / 1000 if last is not None else made
    drift = "" if production is None else production.tags.get(DRIFT, NO_DRIFT)
    return Facts(
        commits=len(counted),
        functions=moved.functions if counted or not moved.subjects else 0.0,  # else all had stop words
        accepted=_accepted(client, loop, since) if loop.triggers.accepted is not None else 0,
        drift="" if drift == NO_DRIFT else printable(drift),
        news=moved.news,
        unreadable=moved.unreadable,
        heads=moved.heads,
        since=made,
    )


def baseline(found: "list[Run]") -> "Run | None":
    """The last round that made a candidate: its code has been trained on. Deleted ones do not count."""
    made = (run for run in reversed(found) if run.data.tags.get(CANDIDATE))
    return next((run for run in made if run.info.lifecycle_stage == "active"), None)


def heads(run: "Run | None") -> dict[str, str]:
    """The sources' commits as a round began."""
    try:
        found = json.loads(run.data.tags.get(HEADS, "{}")) if run is not None else {}
    except ValueError:
        found = {}
    return {str(name): str(commit) for name, commit in found.items()} if isinstance(found, dict) else {}


def is_registered(client: "MlflowClient", model: str) -> bool:
    """Whether something was trained."""
    return bool(client.search_registered_models(f"name = '{model}'"))


def resumed(client: "MlflowClient", model: str) -> float:
    """When somebody last let the loop go on; 0 for never."""
    return number(steering.tags(client, model), LOOP_RESUMED) or 0.0


def in_production(client: "MlflowClient", model: str) -> Any:
    """The version in production, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(model, PRODUCTION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model, no alias
            return None
        raise


def _accepted(client: "MlflowClient", loop: Loop, since: float) -> int:
    found = client.get_experiment_by_name(TRACES)
    if found is None:
        return 0
    wanted = f"tags.model = '{loop.model}' AND timestamp_ms >= {round(since * 1000)} AND feedback.accepted = 'true'"
    count, token = 0, None
    while count < MOST_ACCEPTED:
        page = client.search_traces(
            locations=[found.experiment_id],
            filter_string=wanted,
            max_results=500,
            page_token=token,
            include_spans=False,
        )
        count += len(page)
        if not (token := page.token):
            break
    return count
