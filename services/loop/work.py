"""A round's steps: each starts one job, and does nothing where an earlier try has done it.

    check     that configuration, sources and policies are such that the round can work
    train     a candidate, as a version that this round's run has made
    gate      the candidate into Staging, or refused
    validate  load it as serving does, and compute its figures again
    promote   where nobody has to approve it first: by a trial with users, or at once where there is none

What a step has found stands in the round's tags, so that a loop that was killed goes on behind the last whole step.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from mlflow.exceptions import MlflowException

from contract import names
from contract.errors import Unreachable
from contract.names import TRACES
from contract.outcomes import (
    AWAITING,
    INCONCLUSIVE,
    NOT_PASSED,
    NOTHING_TO_DO,
    PROMOTED,
    REFUSED_BEFORE,
    TRIAL_ROLLED_BACK,
)
from contract.outcomes import REFUSED as GATE_REFUSED
from contract.steering import CANDIDATE, TRAINED_S, WHY
from services.loop import state
from services.loop.config import Loop
from services.loop.jobs import TOOK_TOO_LONG, Done, Jobs
from services.loop.rounds import FAILED, HOUR_S, REFUSED, in_words
from services.loop.sources import quoted
from services.loop.state import GPUS, SPENT_AT, TRAINING, Record

STAGED = "waits for approval"
CHECK_S, GATE_S, TRIAL_S = 0.5 * HOUR_S, HOUR_S, 60 * 24 * HOUR_S  # that each may take
AHEAD_S = 60.0  # of training that are set aside before they are used: a loop that is killed has never spent too little
FILES = 60  # to judge by, where there are three times as many: of the hundredth candidate the gate wants much evidence
EVERY_S = 20.0  # a round says how long it has trained


def settings(loop: Loop) -> list[str]:
    """What the trainer is told."""
    of_file = ["--config", loop.training.config] if loop.training.config else []
    sources = [*loop.data.sources, *([f"traces:{TRACES}"] if loop.data.feedback else [])]
    ours = [f"data.source={quoted(sources)}", f"tracking.experiment_name={loop.experiment}"]
    held_out = [] if of_file else ["data.split=newest", f"data.min_eval_files={FILES}"]
    return [*of_file, *ours, *held_out, *loop.training.overrides]


def cannot_work(loop: Loop, jobs: Jobs, tick: Callable[[float], None]) -> str:
    """Why a round could not work: a policy, the configuration, a source. Empty where nothing speaks against it."""
    trial = ["--trial", loop.trial] if loop.trial else []
    for part, arguments in (
        ("promoter", ["loop", "check", "--gate", loop.gate, *trial]),
        ("trainer", ["train", "--dry-run", *settings(loop)]),
    ):
        done = jobs.run(part, arguments, CHECK_S, tick)
        if done.exit_code:
            return done.why or f"`{part} {arguments[0]}` ended with {done.exit_code}"
    return ""


@dataclass
class Work:
    """One round's work."""

    record: Record
    loop: Loop
    jobs: Jobs
    still_ours: Callable[[float], None]  # raises Busy where the lease on the loop has run out
    left_s: Callable[[int], float]  # of the budget, on so many GPUs
    now: Callable[[], float] = time.time

    def go(self) -> tuple[str, str]:
        """(how it ended, why). A job that fails ends the round; what it raises is not about a job."""
        tags = self.record.tags
        version = tags.get(CANDIDATE) or self._candidate() or self._train()
        if version is None:
            return FAILED, tags.get(WHY, "")
        self.record.set(CANDIDATE, version)
        if "gate" not in tags:
            self._gate(version)
        if tags["gate"] in (GATE_REFUSED, REFUSED_BEFORE):
            return REFUSED, tags.get(WHY, "")
        if tags["gate"] not in (PROMOTED, NOTHING_TO_DO, AWAITING):
            return FAILED, tags.get(WHY, "")
        if tags["gate"] == AWAITING:
            return STAGED, f"the gate's policy wants approval: `promoter approve --version {version}`"
        if "validated" not in tags:
            self._validate(version)
        valid = tags["validated"] == "0"
        if self.loop.approval == "manual":
            said = f"version {version} is in Staging: `promoter trial --version {version}` lets users decide"
            return STAGED, said if valid else f"version {version} is in Staging; but {tags.get(WHY, '')}"
        if not valid:
            return (REFUSED if NOT_PASSED in tags.get(WHY, "") else FAILED), f"{tags.get(WHY)}. It stays in Staging"
        if self.loop.trial is None or state.in_production(self.record.client, self.loop.model) is None:
            return self._promote(version)
        return self._trial(version)

    def _train(self) -> str | None:
        """The candidate; None where there is none, and the round's `why` says so."""
        if why := cannot_work(self.loop, self.jobs, self.still_ours):
            self.record.set(WHY, f"it could not have worked: {why}")
            return None
        gpus = self.jobs.gpus()
        self.record.set(GPUS, str(gpus))
        left_s = self.left_s(gpus)
        if left_s <= 0:
            self.record.set(WHY, "its training took all that was left of the budget")
            return None
        if TRAINED_S not in self.record.tags:
            self.record.set(TRAINED_S, "0")
        self.record.set(TRAINING, "true")
        done = self._counted([*("train", *settings(self.loop)), f"tracking.run_name={self._name}"], left_s)
        if done.exit_code == TOOK_TOO_LONG:
            self.record.set(WHY, f"its training took the {in_words(left_s)} that were left of the budget")
            return None
        if done.exit_code:
            self.record.set(WHY, f"its training failed (exit code {done.exit_code}): {done.why}")
            return None
        if (candidate := self._candidate()) is None:
            self.record.set(WHY, "the trainer ended well, and has registered no version")
        return candidate

    def _counted(self, arguments: list[str], left_s: float) -> Done:
        """Run the trainer. Its time is set aside before it is used, so that whatever is killed has been counted."""
        before = state.round_of(self.record.client.get_run(self.record.id)).trained_s
        said = -EVERY_S

        def count(seconds: float, at: float) -> None:
            self.record.set(SPENT_AT, f"{at:.0f}")
            self.record.set(TRAINED_S, f"{before + seconds:.1f}")

        def tick(seconds: float) -> None:
            nonlocal said
            self.still_ours(seconds)
            if seconds >= said + EVERY_S:
                # Later it may fail, as what was set aside lasts: the lease tells when the server is away for too long.
                with suppress(*((MlflowException, Unreachable) if seconds else ())):
                    count(min(seconds + AHEAD_S, left_s), self.now())
                said = seconds

        done = self.jobs.run("trainer", arguments, left_s, tick)
        count(min(done.seconds, left_s), self.now())
        return done

    @property
    def _name(self) -> str:
        return f"round-{self.record.id[:12]}"

    def _candidate(self) -> str | None:
        """The version that this round has trained."""
        client = self.record.client
        experiment = client.get_experiment_by_name(self.loop.experiment)
        if experiment is None:
            return None
        found = client.search_runs(
            [experiment.experiment_id],
            f"tags.`mlflow.runName` = '{self._name}' AND tags.{names.ROLE} = '{names.CANDIDATE}'",
        )
        for run in found:
            versions = client.search_model_versions(f"name = '{self.loop.model}' AND run_id = '{run.info.run_id}'")
            if versions:
                for tag in (names.TRAIN_DIGESTS, names.DATASET_DIGEST):  # what it was trained on, and judged by
                    self.record.set(tag, run.data.tags.get(tag, ""))
                self.record.set("training_run", run.info.run_id)
                return str(versions[0].version)
        return None

    def _gate(self, version: str) -> None:
        outcome, why = self._decided("promote", version, GATE_S, "--stage", "Staging", "--policy", self.loop.gate)
        self.record.set(WHY, why)
        self.record.set("gate", outcome)

    def _validate(self, version: str) -> None:
        which = ["--model-name", self.loop.model, "--version", version]
        done = self.jobs.run("promoter", ["validate", *which, "--policy", self.loop.gate], GATE_S, self.still_ours)
        if done.exit_code:
            self.record.set(WHY, f"`promoter validate` says no (exit code {done.exit_code}): {done.why}")
        self.record.set("validated", str(done.exit_code))

    def _promote(self, version: str) -> tuple[str, str]:
        outcome, why = self._decided("promote", version, GATE_S, "--stage", "Production", "--policy", self.loop.gate)
        if outcome in (GATE_REFUSED, REFUSED_BEFORE):
            return REFUSED, why
        return (PROMOTED if outcome in (PROMOTED, NOTHING_TO_DO) else FAILED), why

    def _trial(self, version: str) -> tuple[str, str]:
        outcome, why = self._decided("trial", version, TRIAL_S, "--policy", str(self.loop.trial))
        if outcome == TRIAL_ROLLED_BACK:
            return REFUSED, why
        return (outcome if outcome in (PROMOTED, INCONCLUSIVE) else FAILED), why

    def _decided(self, command: str, version: str, most_s: float, *options: str) -> tuple[str, str]:
        """What the promoter decided, and why."""
        reason = f"round {self.record.id[:12]}"
        who = ["--by", "the loop", "--reason", reason]
        which = ["--model-name", self.loop.model, "--version", version, "--wait", "600", "--format", "json"]
        done = self.jobs.run("promoter", [command, *which, *who, *options], most_s, self.still_ours)
        answer = done.answer if isinstance(done.answer, dict) else {}
        outcome = str(answer.get("outcome") or f"the promoter ended with {done.exit_code}")
        why = str(answer.get("why") or done.why or outcome)
        return outcome, why.removeprefix(f"{reason} (").removesuffix(")") if why.startswith(f"{reason} (") else why
