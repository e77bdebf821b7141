"""Running a trial: begin it, look at its traffic, take its steps, and end it. What it needs to go on is in MLflow.

A trial has one watcher at a time, by a lease of its own (contract/lease.py); what serving follows is changed under the
model's lock, as by every promotion. Whoever runs the same command after a crash goes on where the other stopped.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from contract import names, outcomes
from contract.errors import Busy, InputError, Unreachable
from contract.lease import Claim, lease
from contract.names import CHALLENGER_ALIAS, DATASET_DIGEST, PRODUCTION, STAGES, STAGING, VALIDATION
from contract.outcomes import NOTHING, TRIAL
from contract.trials import LEASE_RAN_OUT, Trial, why_stopped
from promoter import records, registry, stages
from promoter.records import Entry
from promoter.stages import Move
from promoter.trials import report
from promoter.trials.policy import TrialPolicy
from promoter.trials.report import Event
from promoter.trials.traffic import Traffic
from promoter.trials.verdict import Verdict, judge, judge_shadow

STATE = "trial_state"  # a tag of the record by which it began: JSON of Progress
IN_SHADOW = -1  # a step
WAIT_S = 60.0  # for others who promote the model just now
LOG_EVERY_S = 15.0  # to the record's metrics
AWAY = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")  # of MLflow's errors, where its server may come back
Say = Callable[[str], None]
COPIED = (records.BEST, records.TABLES, DATASET_DIGEST)  # of the decision that let it into Staging


@dataclass(frozen=True)
class Progress:
    """How far a trial is."""

    began: float  # seconds since 1970
    step: int = 0  # IN_SHADOW before the first one
    step_began: float = 0.0
    events: tuple[Event, ...] = ()

    def to_json(self) -> str:
        """No longer than a tag may be: of many events the last ones."""
        events = [(event.at, event.what[:300]) for event in self.events][-20:]
        return json.dumps({"began": self.began, "step": self.step, "step_began": self.step_began, "events": events})

    @classmethod
    def of(cls, text: str) -> "Progress":
        """Raises KeyError, TypeError, ValueError for what it did not write."""
        found = json.loads(text)
        events = tuple(Event(float(at), str(what)) for at, what in found["events"])
        return cls(float(found["began"]), int(found["step"]), float(found["step_began"]), events)

    def with_event(self, what: str) -> "Progress":
        return replace(self, events=(*self.events, Event(time.time(), what)))


@dataclass
class Running:
    """A trial that has begun and not ended."""

    client: MlflowClient
    model: str
    number: str  # of the challenger
    incumbent: str
    id: str  # the run of the record by which it began
    by: str
    policy: TrialPolicy
    progress: Progress
    record: str | None = None  # the run of the record by which it has ended
    renewed: float = 0.0  # its lease, in seconds since 1970
    _logged: float = -1e9  # monotonic
    _traffic: Traffic | None = field(default=None, repr=False)

    @property
    def in_shadow(self) -> bool:
        return self.progress.step == IN_SHADOW and self.policy.shadow is not None

    @property
    def share(self) -> float:
        if self.policy.shadow is not None and self.progress.step == IN_SHADOW:
            return self.policy.shadow.share
        return self.policy.steps[self.progress.step].share

    @property
    def traffic(self) -> Traffic:
        if self._traffic is None:
            self._traffic = Traffic(self.client, self.id, self.policy)
        return self._traffic

    def verdict(self, anew: bool = False) -> Verdict:
        """What the requests say now."""
        now, progress = time.time(), self.progress
        rows = self.traffic.read(now, anew)
        if self.in_shadow:
            return judge_shadow(self.traffic.copies, self.policy, progress.began, now)
        return judge(rows, self.policy, progress.step, progress.step_began, progress.began, now)


def refuse(client: MlflowClient, version: ModelVersion) -> None:
    """Raise InputError for a version that cannot be tried."""
    name, number = version.name, str(version.version)
    found = registry.aliases(client, name)
    if PRODUCTION not in found:
        raise InputError(f"{name} has no version in production to try against. Promote a first one instead.")
    if found[PRODUCTION] == number:
        raise InputError(f"Version {number} is in production. Expected the staged one, or another.")
    if found.get(STAGING) != number:
        raise InputError(
            f"Version {number} is not in Staging: the gate has not let it there. Run `promoter promote --version "
            f"{number} --stage Staging` first (--force overrules the gate)."
        )
    if version.tags.get(VALIDATION) == "failed":
        raise InputError(f"Version {number} has failed `promoter validate`. Expected one that passes.")
    registry.refuse_frozen(client, name)


def current(client: MlflowClient, model: str) -> Running | None:
    """The trial that runs; None if none does. Raises InputError for an unknown model."""
    number = registry.aliases(client, model).get(CHALLENGER_ALIAS)
    id = client.get_registered_model(model).tags.get(names.TRIAL)
    if id is None or number is None:
        return None
    try:
        run = client.get_run(id)
        policy, progress = _policy(client, run), Progress.of(run.data.tags[STATE])
        incumbent, by = run.data.tags["replaces"], run.data.tags["by"]
        if not (progress.step == IN_SHADOW and policy.shadow is not None):
            policy.steps[range(len(policy.steps))[progress.step]]
    except (MlflowException, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, MlflowException) and error.error_code in AWAY:
            raise
        raise InputError(
            f"What the trial of version {number} began with cannot be read (run {id}: {error}). Delete the alias "
            f"'{CHALLENGER_ALIAS}' to end it."
        ) from error
    return Running(client, model, number, incumbent, id, by, policy, progress)


def _policy(client: MlflowClient, run: Run) -> TrialPolicy:
    with tempfile.TemporaryDirectory() as folder:
        path = client.download_artifacts(run.info.run_id, "decision.json", folder)
        return TrialPolicy.model_validate(json.loads(Path(path).read_text(encoding="utf-8"))["policy"])


def plan(version: ModelVersion, incumbent: str, policy: TrialPolicy) -> str:
    """What would be done, in words."""
    shadow = f"copies of {policy.shadow.share:.0%} in the shadow, " if policy.shadow else ""
    steps = shadow + ", ".join(
        f"{step.share:.0%} for {step.requests} requests and {step.hours:g} h at least" for step in policy.steps
    )
    return (
        f"Version {version.version} of {version.name} would be tried against version {incumbent}: {steps}. "
        f"{policy.decides} decides, and may be at most {100 * getattr(policy.margins, policy.decides):g} points worse. "
        f"It ends after {policy.budget.requests} requests or {policy.budget.days:g} days."
    )


def begin(claim: Claim, version: ModelVersion, policy: TrialPolicy, by: str, reason: str) -> Running:
    """Start a trial, under the model's lock. Raises InputError, Busy."""
    client, name, number = claim.client, version.name, str(version.version)
    refuse(client, version)
    if (other := current(client, name)) is not None:
        raise Busy(f"Version {other.number} is on trial already. `promoter trial status` shows how far it is.")
    found, now = registry.aliases(client, name), time.time()
    why = reason or f"{policy.decides} decides; steps {', '.join(f'{step.share:.0%}' for step in policy.steps)}"
    if policy.shadow is not None:
        share, step, what = policy.shadow.share, IN_SHADOW, "in the shadow: copies of "
    else:
        share, step, what = policy.steps[0].share, 0, "with "
    progress = Progress(now, step, now).with_event(f"began {what}{share:.0%} of the requests")
    move = Move(version, STAGES[PRODUCTION], TRIAL, by, why, found, {STATE: progress.to_json()})
    files = report.files(move.entry(outcomes.ON_TRIAL), policy, None, list(progress.events))
    trial = Trial(
        id=claim.run_id,
        unit=policy.unit,
        shadow=step == IN_SHADOW,
        until=now + policy.lease_s,
        limits=policy.limits,
    )
    stages.begin_trial(claim, move, trial, share, files)
    return Running(client, name, number, found[PRODUCTION], claim.run_id, by, policy, progress)


def watch(running: Running, say: Say, wait_s: float = WAIT_S) -> Entry:
    """Look at the traffic until the trial has ended; returns its record. Waits for a tracking server that is away."""
    said, watched = "", False
    while True:
        try:
            with lease(running.client, f"{running.model}: trial", running.by, WAIT_S if watched else wait_s) as ours:
                watched = True
                while (entry := _look(running, ours, say)) is None:
                    time.sleep(running.policy.look_s)
                return entry
        except (Unreachable, Busy, MlflowException, OSError) as error:
            if isinstance(error, MlflowException) and error.error_code not in AWAY:
                raise
            if isinstance(error, Busy) and not watched:  # another watches it
                raise
            if (why := " ".join(str(error).split())[:200]) != said:
                say(f"The tracking server does not do its work, and is asked again: {why}")
            said = why
            time.sleep(max(1.0, running.policy.look_s))


def _look(running: Running, ours: Claim, say: Say) -> Entry | None:
    """One look; the record, where it has ended."""
    ours.check()
    client, model, number = running.client, running.model, running.number
    aliases, of_model = registry.aliases(client, model), client.get_registered_model(model).tags.get(names.TRIAL)
    if aliases.get(CHALLENGER_ALIAS) != number or of_model != running.id:
        return _ended_by_others(running)
    version = client.get_model_version(model, number)
    verdict = running.verdict()
    _log(running, verdict, say)
    if aliases.get(PRODUCTION) != running.incumbent:
        return end(running, "inconclusive", _production_moved(running, aliases), verdict)
    if why := why_stopped(version.tags.get(names.TRIAL_STOPPED, ""), running.id):
        action = "inconclusive" if why == LEASE_RAN_OUT else "roll back"
        return end(running, action, f"serving stopped it: {why}", verdict)
    if verdict.action in ("promote", "roll back", "inconclusive"):
        verdict = running.verdict(anew=True)  # by all that has come late, too
    if verdict.action == "promote" and registry.frozen_by(client, model) is not None:
        say("It could be promoted, but promotions are frozen. It goes on until `promoter unfreeze`, or its end")
        verdict = replace(verdict, action="go on")
    if verdict.action in ("promote", "roll back", "inconclusive"):
        return end(running, verdict.action, verdict.why, verdict)
    if verdict.action == "step":
        _step(running, verdict, say)
    elif version.tags.get(names.TRIAL_SHARE) != repr(running.share):  # the watcher before was killed in the middle
        _write_share(running)
    elif time.time() > running.renewed + running.policy.lease_s / 3:
        ours.confirm()
        client.set_model_version_tag(model, number, names.TRIAL, _trial(running).model_dump_json())
    return None


def _step(running: Running, verdict: Verdict, say: Say) -> None:
    """Give the challenger more: first it is noted, and then done."""
    step = running.progress.step + 1
    share = running.policy.steps[step].share
    say(f"{verdict.why}. Next: {share:.0%} of the requests.")
    progress = replace(running.progress, step=step, step_began=time.time())
    running.progress = progress.with_event(f"{share:.0%} of the requests: {verdict.why}")
    running.client.set_tag(running.id, STATE, running.progress.to_json())
    _write_share(running)


def _write_share(running: Running) -> None:
    with _locked(running) as claim:
        # Under the lock: whoever has ended it meanwhile has taken the alias.
        if registry.aliases(running.client, running.model).get(CHALLENGER_ALIAS) == running.number:
            stages.write_trial(claim, running.model, running.number, _trial(running), running.share)


def _trial(running: Running) -> Trial:
    """What serving is told, with a lease from now on."""
    running.renewed, policy = time.time(), running.policy
    until = running.renewed + policy.lease_s
    return Trial(id=running.id, unit=policy.unit, shadow=running.in_shadow, until=until, limits=policy.limits)


def end(running: Running, action: str, why: str, verdict: Verdict | None, by: str = "") -> Entry:
    """End a trial: promoted, rolled back or inconclusive."""
    with _locked(running, by) as claim:
        now = current(running.client, running.model)
        entry = _end(claim, running, action, why, verdict, by) if now is not None and now.id == running.id else None
    return entry or _ended_by_others(running)


def _end(claim: Claim, running: Running, action: str, why: str, verdict: Verdict | None, by: str = "") -> Entry:
    """Under the model's lock."""
    client, model, number = running.client, running.model, running.number
    version = registry.version(client, model, number)
    outcome = {
        "promote": outcomes.PROMOTED,
        "roll back": outcomes.TRIAL_ROLLED_BACK,
        "inconclusive": outcomes.INCONCLUSIVE,
    }[action]
    if outcome == outcomes.PROMOTED:
        registry.refuse_frozen(client, model)
    found = registry.aliases(client, model)
    if found.get(PRODUCTION) != running.incumbent:  # just now: nobody has compared the two
        outcome, why = outcomes.INCONCLUSIVE, _production_moved(running, found)
    tags = {"trial_run": running.id, **_of_staging(client, version)}
    move = Move(version, STAGES[PRODUCTION], TRIAL, by or running.by, why, found, tags)
    events = list(running.progress.with_event(f"{outcome}: {why}").events)
    entry = move.entry(outcome)
    files = report.files(entry, running.policy, verdict, events)
    if outcome == outcomes.PROMOTED:
        stages.promote(claim, move, None, outcome, files)
    else:
        stages.end_trial(claim, move, outcome, files)
    running.record = claim.run_id
    return entry


def _of_staging(client: MlflowClient, version: ModelVersion) -> dict[str, str]:
    """What the gate has noted of a version when it let it into Staging: the next gate asks production for it."""
    for run in records.of_version(client, version.name, str(version.version)):
        if run.data.tags["outcome"] == outcomes.PROMOTED and run.data.tags["stage"] == STAGES[STAGING]:
            return {name: run.data.tags[name] for name in COPIED if name in run.data.tags}
    return {}


def _production_moved(running: Running, aliases: Mapping[str, str]) -> str:
    live = aliases.get(PRODUCTION)
    if live == running.number:
        return "it was put into production by hand"
    return f"production is {f'version {live}' if live else 'empty'} now, and was version {running.incumbent}"


def _ended_by_others(running: Running) -> Entry:
    """As its record says; writes one if there is none."""
    client, model, number = running.client, running.model, running.number
    with _locked(running) as claim:
        for run in records.of_version(client, model, number):
            if run.data.tags.get("trial_run") == running.id:
                running.record = run.info.run_id
                return Entry(**{name: run.data.tags[name] for name in Entry.__dataclass_fields__})
        why = "somebody has taken the alias from it"
        try:
            client.get_model_version(model, number)
        except MlflowException as error:
            if error.error_code in AWAY:
                raise
            stages.clear_trial(claim, number)
            why = "somebody has deleted the version"
        else:
            if client.get_registered_model(model).tags.get(names.TRIAL, running.id) == running.id:
                return _end(claim, running, "inconclusive", why, None)
        # Without a record: the version is gone, or another trial has begun since, which is not to be ended.
        about = (model, number, STAGES[PRODUCTION], NOTHING, running.incumbent)
        return Entry(*about, TRIAL, outcomes.INCONCLUSIVE, running.by, why)


def _log(running: Running, verdict: Verdict, say: Say) -> None:
    """Show how it stands: to whoever waits, and as metrics of the record."""
    total = sum(verdict.requests)
    text = f"{total} requests, {verdict.requests[1]} of them the challenger's ({running.share:.0%}): {verdict.why}"
    if running.in_shadow:
        text = verdict.why
    now = time.monotonic()
    if now < running._logged + LOG_EVERY_S and verdict.action == "go on":
        return
    running._logged = now
    say(text)
    at, figures = int(time.time() * 1000), {"trial/share": running.share}
    figures |= {"trial/requests/incumbent": verdict.requests[0], "trial/requests/challenger": verdict.requests[1]}
    for one in verdict.measures:
        if one.requests and abs(one.low) < float("inf"):
            bounds = {"difference": one.estimate, "low": one.low, "high": one.high}
            figures |= {f"trial/{one.name}/{what}": value for what, value in bounds.items()}
    running.client.log_batch(running.id, [Metric(name, value, at, total) for name, value in figures.items()])


@contextmanager
def _locked(running: Running, by: str = "") -> Iterator[Claim]:
    with lease(running.client, running.model, by or running.by, WAIT_S) as claim:
        stages.settle(claim)
        yield claim
