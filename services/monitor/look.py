"""One look at production: three questions, a verdict on each, and what a look before had found."""

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.errors import InputError, RatchetError
from contract.monitoring import CODE, SAMPLE
from contract.names import DRIFT, GROUP, MONITORING, NO_DRIFT, PRODUCTION, REPOSITORY
from contract.tracking import create_once, read_table
from services.monitor import budget, inputs, production, quality
from services.monitor.inputs import LEAST_P, Piece, Unlikeness
from services.monitor.jobs import Unknown, trainer
from services.monitor.quality import Quality

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

INPUTS, REPOSITORY_MOVED, QUALITY = "inputs", "repository", "quality"
QUESTIONS = (INPUTS, REPOSITORY_MOVED, QUALITY)
DAY_S = 86_400.0
LOOKED_AT = "looked_at"  # tag of a look: seconds since 1970


@dataclass(frozen=True)
class Limits:
    """What counts as drift."""

    alpha: float = 0.05  # the chance of a false alarm in all looks of a year together
    functions: float = 0.2  # share of a source's functions that are new or changed
    margin: float = 0.05  # nats a token, by which new code is known less well than held-out code


@dataclass(frozen=True)
class Verdict:
    """On one question. `drifted` is None where it cannot be answered."""

    question: str
    drifted: bool | None
    why: str


@dataclass
class Look:
    """All that one look has found."""

    model: str
    version: str
    at: float  # seconds since 1970
    spent: dict[str, float]  # of the year's alpha, by question
    known: dict[str, str]  # what earlier looks had found of this version, and on which day
    verdicts: list[Verdict] = field(default_factory=list)
    unlikeness: Unlikeness | None = None
    changes: list[dict[str, Any]] = field(default_factory=list)  # of `trainer changes`
    quality: Quality | None = None

    @property
    def drifted(self) -> list[str]:
        """The questions on which it has; one that was not answered this time is answered as before."""
        answers = {verdict.question: verdict.drifted for verdict in self.verdicts if verdict.drifted is not None}
        return [question for question in QUESTIONS if answers.get(question, question in self.known)]

    @property
    def is_known(self) -> bool:
        """Whether any question was answered."""
        return any(verdict.drifted is not None for verdict in self.verdicts)

    @property
    def outcome(self) -> str:
        """As the version's tag says it."""
        return ", ".join(self.drifted) or NO_DRIFT

    def by_chance(self, question: str, p: float, worse: bool, why: str) -> Verdict:
        """The verdict on a question that may be wrong by chance: what a look has found of a version, stays found.

        Raises Unknown where so little may be spent that nothing could be found.
        """
        drifted = p <= self.spent[question] and worse
        if not drifted and question in self.known:
            return Verdict(question, True, f"found on {self.known[question]}; now {why}")
        if not drifted and self.spent[question] < LEAST_P:
            raise Unknown(f"it is too soon after the last look; {why}")
        return Verdict(question, drifted, why)

    @property
    def metrics(self) -> dict[str, float]:
        """The figures by which looks are compared over time."""
        found: dict[str, float] = {f"{question}/alpha": value for question, value in self.spent.items()}
        if self.unlikeness is not None:
            found |= {
                f"inputs/{name}": getattr(self.unlikeness, name) for name in ("share", "expected", "p", "prompts")
            }
        if self.changes:
            found["repository/changed_functions"] = _changed(self.changes)
        if self.quality is not None:
            found |= {f"quality/{name}": getattr(self.quality, name) for name in ("new", "held_out", "p", "files")}
        return found


def in_production(client: "MlflowClient", model: str) -> tuple["ModelVersion", "Run"]:
    """The version to watch, and the run that made it. Raises InputError if no version is in production."""
    from mlflow.exceptions import MlflowException

    try:
        version = client.get_model_version_by_alias(model, PRODUCTION)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise InputError(
            f"No version of '{model}' is in production. Expected a model of which one is: --model-name names it, and "
            "`promoter promote --stage Production` puts one there."
        ) from error
    return version, client.get_run(str(version.run_id))


def earlier(client: "MlflowClient", model: str) -> list["Run"]:
    """All looks at a model that were finished, the first one first."""
    experiment = client.get_experiment_by_name(MONITORING)
    if experiment is None:
        return []
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs(
            [experiment.experiment_id],
            f"tags.model = '{model}' AND attributes.status = 'FINISHED'",
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        found += page
        if not (token := page.token):
            return found


def look(
    client: "MlflowClient",
    model: str,
    limits: Limits,
    days: float,
    prompts: int,
    questions: Sequence[str],
    say: Callable[[str], None],
) -> Look:
    """Answer the questions about the version in production; nothing is written but the trainer's evaluation."""
    version, run = in_production(client, model)
    now, looks = time.time(), earlier(client, model)
    spent = {
        question: share * budget.to_spend(limits.alpha, _last(looks, question), now)
        for question, share in budget.SHARES.items()
    }
    found = Look(model, str(version.version), now, spent, _known(looks, version))
    for question in questions:
        say(f"Looking at {question}")
        try:
            verdict = _ANSWERS[question](client, version, run, found, limits, now - days * DAY_S, prompts)
        except Unknown as unknown:
            verdict = Verdict(question, None, str(unknown).rstrip("."))
        found.verdicts.append(verdict)
    return found


def _last(looks: Sequence["Run"], question: str) -> float | None:
    """When a question that may be wrong by chance was last answered; it does not matter of which version."""
    times = [float(run.data.tags[LOOKED_AT]) for run in looks if f"{question}/p" in run.data.metrics]
    return max(times, default=None)


def _known(looks: Sequence["Run"], version: "ModelVersion") -> dict[str, str]:
    """The questions on which earlier looks had found drift of this version, and the day of the first one."""
    found: dict[str, str] = {}
    for run in looks:
        if run.data.tags.get("version") == str(version.version) and LOOKED_AT in run.data.tags:
            day = datetime.fromtimestamp(float(run.data.tags[LOOKED_AT]), UTC).strftime("%Y-%m-%d")
            for question in run.data.tags.get("outcome", "").split(", "):
                found.setdefault(question, day)
    return found


def _inputs(
    client: "MlflowClient", version: "ModelVersion", run: "Run", found: Look, limits: Limits, since: float, most: int
) -> Verdict:
    sample = _sample(client, run)
    asked = production.prompts(client, version.name, since, most)
    try:
        found.unlikeness = unlike = inputs.compare(sample, asked)
    except ValueError as error:
        raise Unknown(str(error)) from error
    return found.by_chance(
        INPUTS,
        unlike.p,
        True,
        f"{unlike.share:.0%} of {unlike.prompts} prompts are unlike the code that was trained on, where "
        f"{unlike.expected:.0%} are expected (p {unlike.p:.2g})",
    )


def _sample(client: "MlflowClient", run: "Run") -> list[Piece]:
    from mlflow.exceptions import MlflowException

    try:
        table = read_table(client, run.info.run_id, SAMPLE)
    except (MlflowException, OSError, ValueError) as error:
        raise Unknown(
            f"the run that made it has no sample of code ({SAMPLE}): trained on rows, or by an older Ratchet"
        ) from error
    return [Piece(row[CODE], f"{row[REPOSITORY]} {row[GROUP]}") for row in table.to_dict(orient="records")]


def _repository(
    client: "MlflowClient", version: "ModelVersion", run: "Run", found: Look, limits: Limits, since: float, most: int
) -> Verdict:
    changes = _changes(version, run, client, found)
    if not any(one["functions"] for one in changes):
        raise Unknown("there is no function to count in its sources")
    share = _changed(changes)
    return Verdict(
        REPOSITORY_MOVED,
        share >= limits.functions,
        f"{share:.0%} of the functions are new or changed, and {limits.functions:.0%} are drift",
    )


def _changes(version: "ModelVersion", run: "Run", client: "MlflowClient", found: Look) -> list[dict[str, Any]]:
    if not found.changes:
        experiment = client.get_experiment(run.info.experiment_id).name
        found.changes = trainer(
            *("changes", "--model-uri", f"models:/{version.name}/{version.version}"),
            f"tracking.experiment_name={experiment}",
        )
    return found.changes


def _changed(changes: list[dict[str, Any]]) -> float:
    new, functions = (sum(int(one[name]) for one in changes) for name in ("new_functions", "functions"))
    return new / max(functions, 1)


def _quality(
    client: "MlflowClient", version: "ModelVersion", run: "Run", found: Look, limits: Limits, since: float, most: int
) -> Verdict:
    changes = _changes(version, run, client, found)
    found.quality = known = quality.judge(client, version, run, changes)
    return found.by_chance(
        QUALITY,
        known.p,
        known.difference > limits.margin,
        f"{known.new:.3f} nats a token on newer code of {known.files} files, {known.held_out:.3f} on the code by which "
        f"the gate judged (p {known.p:.2g})",
    )


_ANSWERS = {INPUTS: _inputs, REPOSITORY_MOVED: _repository, QUALITY: _quality}


def write(client: "MlflowClient", found: Look, files: dict[str, str]) -> str:
    """The look as a run, and its outcome as the version's tag; returns the run's id.

    Raises RatchetError where no question was answered.
    """
    if not found.is_known:
        reasons = "; ".join(f"{verdict.question}: {verdict.why}" for verdict in found.verdicts)
        raise RatchetError(f"Nothing can be said of version {found.version} of {found.model}. {reasons}.")

    def existing() -> Any:
        return client.get_experiment_by_name(MONITORING)

    experiment = existing() or create_once(existing, lambda: _created(client))
    tags = {"model": found.model, "version": found.version, "outcome": found.outcome, LOOKED_AT: repr(found.at)}
    run = client.create_run(experiment.experiment_id, run_name=f"version-{found.version}", tags=tags)
    for name, value in found.metrics.items():
        client.log_metric(run.info.run_id, name, value)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            Path(folder, name).write_text(text, encoding="utf-8")
        client.log_artifacts(run.info.run_id, folder)
    client.set_terminated(run.info.run_id)
    client.set_model_version_tag(found.model, found.version, DRIFT, found.outcome)  # last: the next look knows the run
    return str(run.info.run_id)


def _created(client: "MlflowClient") -> Any:
    return client.get_experiment(client.create_experiment(MONITORING))


def facts_of(found: Look) -> dict[str, Any]:
    """As JSON has it."""
    return {
        "model": found.model,
        "version": found.version,
        "at": found.at,
        "alpha_spent": found.spent,
        "outcome": found.outcome if found.is_known else None,
        "verdicts": [vars(verdict) for verdict in found.verdicts],
        "metrics": found.metrics,
        "words": dict(found.unlikeness.words) if found.unlikeness is not None else {},
        "changes": found.changes,
        "weeks": found.quality.weeks if found.quality is not None else [],
    }


def to_json(found: Look) -> str:
    """As `drift.json`."""
    return json.dumps(facts_of(found), indent=2)
