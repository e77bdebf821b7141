"""Moving versions between stages. The alias is the truth, and its move the one commit point.

A move writes, in this order: the record (a run in the experiment `promotions`, with the reports), tags and description
of the version, the alias, and then what follows from the aliases (`settle`). Killed anywhere between, the next promoter
settles what was left, and the same command converges to the same state.

Stages are kept as aliases, and as the tag `stage` on every version that ever had one: Staging, Production, Previous
(the one to roll back to) and Archived. No alias ever names an archived version; one that somebody gave by hand keeps
its version from being archived by itself.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from contract import lease, names, outcomes
from contract.errors import Busy, InputError
from contract.lease import Claim
from contract.names import (
    ARCHIVED,
    CHALLENGER_ALIAS,
    DATASET_DIGEST,
    PREVIOUS,
    PRODUCTION,
    REPLACED_BY,
    STAGE,
    STAGES,
    STAGING,
)
from contract.outcomes import FREEZE, NOTHING, ROLLBACK, TRIAL
from contract.trials import Trial
from promoter import ledger, records, registry, report
from promoter.decision import Decision
from promoter.records import Entry

# Decided by a person alone, or by users.
NO_GATE = (
    *(outcomes.ROLLED_BACK, outcomes.ARCHIVED),
    *(outcomes.ON_TRIAL, outcomes.TRIAL_ROLLED_BACK, outcomes.INCONCLUSIVE),
)
MOVE_TAGS = (names.PROMOTED_AT, names.PROMOTED_BY, names.PROMOTION_RUN)  # of a version: the last move that it made
LONGEST = 1800, 850  # characters in a description, of the user and of a decision; PostgreSQL's column has 5,000
OURS = "\n\n---\n*Decided by the promoter:*\n\n"  # in a version's description: from here on it writes it


@dataclass(frozen=True)
class Move:
    """A version on its way to a stage."""

    version: ModelVersion
    stage: str
    action: str
    by: str
    why: str
    aliases: Mapping[str, str]  # as they were when it was decided: version by alias
    tags: Mapping[str, str] = field(default_factory=dict)  # of the record, besides

    def entry(self, outcome: str) -> Entry:
        """The move in words."""
        version, replaced = self.version, self.aliases.get(self.stage.lower(), NOTHING)
        return Entry(
            *(version.name, str(version.version), self.stage, version.tags.get(STAGE, NOTHING), replaced),
            *(self.action, outcome, self.by, self.why),
        )


def promote(
    claim: Claim,
    move: Move,
    decision: Decision | None,
    outcome: str = outcomes.PROMOTED,
    files: Mapping[str, str] | None = None,
) -> Entry:
    """Put a version into Staging or Production, and record it. `files`: its report, where it is not the gate's."""
    client, version, alias = claim.client, move.version, move.stage.lower()
    name, number = version.name, str(version.version)
    entry = move.entry(outcome)
    _keep(claim, entry, decision, move.tags, files or report.files(entry, decision))
    _write(claim, client.set_model_version_tag, name, number, STAGE, move.stage)
    now = registry.aliases(client, name)
    for moved in dict.fromkeys((alias, PRODUCTION)):
        if now.get(moved) != move.aliases.get(moved):
            _take_back(claim, client.get_run(claim.run_id))
            raise Busy(
                f"The alias {moved} of {name} went from version {move.aliases.get(moved, NOTHING)} to "
                f"{now.get(moved, NOTHING)} while this was decided, by somebody who does not use the promoter. Nothing "
                "was moved; run the same command again."
            )
    _move_alias(claim, client.set_registered_model_alias, name, alias, number)  # the commit point
    settle(claim)
    return entry


def record(claim: Claim, move: Move, decision: Decision, outcome: str) -> Entry:
    """Record a decision that moves nothing: refused, awaiting approval, or only asked for."""
    entry = move.entry(outcome)
    _keep(claim, entry, decision, move.tags, report.files(entry, decision))
    records.finish(claim, claim.run_id)
    return entry


def rollback(claim: Claim | None, client: MlflowClient, name: str, reason: str, by: str) -> Entry:
    """Put the previous version back into production; without a claim only say so. Raises InputError without one.

    Where somebody has emptied production by hand and nothing is `previous`, the version that was there last.
    """
    found = registry.aliases(client, name)
    target = found.get(PREVIOUS)
    if PRODUCTION not in found and target is None:  # somebody has emptied it by hand
        target = registry.last_production(client, name)
        decisions = records.of_version(client, name, target) if target is not None else []
        if decisions and decisions[0].data.tags["outcome"] == outcomes.ARCHIVED:
            target = None
    if target is None or target == found.get(PRODUCTION):
        raise InputError(
            f"{name} has no version to roll back to: production is {found.get(PRODUCTION, 'empty')}, previous is "
            f"{found.get(PREVIOUS, 'empty')}. `promoter promote --stage Production --version N --force --reason …` "
            "puts any version there."
        )
    move = Move(registry.version(client, name, target), "Production", ROLLBACK, by, reason, found)
    if claim is None:
        return move.entry(outcomes.ROLLED_BACK)
    return promote(claim, move, None, outcomes.ROLLED_BACK)


def archive(claim: Claim | None, version: ModelVersion, reason: str, by: str) -> Entry:
    """Take a version out for good; without a claim only say so. Raises InputError for the one in production."""
    if PRODUCTION in version.aliases:
        raise InputError(f"Version {version.version} is in production. Put another there first (promote or rollback).")
    entry = Move(version, ARCHIVED, "archive", by, reason, {}).entry(outcomes.ARCHIVED)
    if claim is not None:
        _keep(claim, entry, None, {}, report.files(entry, None))
        settle(claim)
    return entry


def freeze(claim: Claim | None, client: MlflowClient, name: str, action: str, reason: str, by: str) -> Entry:
    """Let no version of the model into Staging or Production any more (FREEZE), or again (UNFREEZE).

    Without a claim only say so.
    """
    outcome = outcomes.FROZEN if action == FREEZE else outcomes.UNFROZEN
    entry = Entry(name, NOTHING, STAGES[PRODUCTION], NOTHING, NOTHING, action, outcome, by, reason)
    if claim is not None:
        records.write(claim, entry, None, {}, report.files(entry, None))
        if action == FREEZE:
            _write(claim, client.set_registered_model_tag, name, names.FROZEN, claim.run_id)
        else:
            _write(claim, client.delete_registered_model_tag, name, names.FROZEN)
        settle(claim)
    return entry


def begin_trial(claim: Claim, move: Move, trial: Trial, share: float, files: Mapping[str, str]) -> Entry:
    """Let a version answer a share of production's requests, and record it. The alias is the commit point."""
    client, name, number = claim.client, move.version.name, str(move.version.version)
    entry = move.entry(outcomes.ON_TRIAL)
    _keep(claim, entry, None, move.tags, files)
    write_trial(claim, name, number, trial, share)
    _write(claim, client.set_registered_model_tag, name, names.TRIAL, claim.run_id)
    _move_alias(claim, client.set_registered_model_alias, name, CHALLENGER_ALIAS, number)
    settle(claim)
    return entry


def write_trial(claim: Claim, name: str, number: str, trial: Trial, share: float) -> None:
    """Say on the challenger's version how it is tried: serving follows."""
    client = claim.client
    # The share first: what leaves the shadow does not get a shadow's share of the answers.
    _write(claim, client.set_model_version_tag, name, number, names.TRIAL_SHARE, repr(share))
    _write(claim, client.set_model_version_tag, name, number, names.TRIAL, trial.model_dump_json())


def end_trial(claim: Claim, move: Move, outcome: str, files: Mapping[str, str]) -> Entry:
    """Take the challenger's requests away, and record why. The alias is the commit point."""
    entry = move.entry(outcome)
    _keep(claim, entry, None, move.tags, files)
    _take_challenger(claim)
    settle(claim)
    return entry


def clear_trial(claim: Claim, number: str) -> None:
    """Nothing is on trial any more. Safe to repeat."""
    client, name = claim.client, claim.model
    _take_challenger(claim)
    for tag in (names.TRIAL, names.TRIAL_SHARE):
        with _where_it_exists():
            _write(claim, client.delete_model_version_tag, name, number, tag)
    with _where_it_exists():
        _write(claim, client.delete_registered_model_tag, name, names.TRIAL)


def _take_challenger(claim: Claim) -> None:
    if CHALLENGER_ALIAS in registry.aliases(claim.client, claim.model):
        _move_alias(claim, claim.client.delete_registered_model_alias, claim.model, CHALLENGER_ALIAS)


def settle(claim: Claim) -> list[Run]:
    """Finish what follows from the aliases: `previous`, the stage tags, the records. Safe to repeat.

    So what a dead promoter left is completed, or taken back where it had moved nothing, by the next one, whatever that
    came for. Returns the records that it completed.
    """
    client, name = claim.client, claim.model
    left = lease.unfinished(client, name, claim.run_id)
    if claim.kept:
        left.append(client.get_run(claim.run_id))
    left.sort(key=lambda run: run.info.start_time)
    done = [run for run in left if _follow_up(claim, run)]
    for run in left:
        if run not in done and run.info.run_id != claim.run_id:
            with _where_it_exists():  # one that only slept may withdraw its claim just now
                _take_back(claim, run)
    by_alias = registry.aliases(client, name)
    number, model_tags = by_alias.get(PRODUCTION), client.get_registered_model(name).tags
    if number is not None and model_tags.get(names.LAST_PRODUCTION) != number:
        _write(claim, client.set_registered_model_tag, name, names.LAST_PRODUCTION, number)
    for alias in (STAGING, PREVIOUS):
        if alias in by_alias and by_alias[alias] == by_alias.get(PRODUCTION):
            _move_alias(claim, client.delete_registered_model_alias, name, alias)
    for version in registry.staged(client, name):  # with the aliases as they are now
        number = str(version.version)
        stage = next((stage for alias, stage in STAGES.items() if alias in version.aliases), None)
        if stage is None and not version.aliases:
            stage = ARCHIVED
        if stage is None:
            _write(claim, client.delete_model_version_tag, name, number, STAGE)
        elif version.tags.get(STAGE) != stage:
            _write(claim, client.set_model_version_tag, name, number, STAGE, stage)
    for run in done:
        records.finish(claim, run.info.run_id)
    return done


def _follow_up(claim: Claim, run: Run) -> bool:
    """Do what follows from a record whose alias has moved. Returns whether it has; an archival moves none itself."""
    tags = run.data.tags
    client, name, number = claim.client, claim.model, tags.get("version", "")
    by_alias, outcome = registry.aliases(client, name), tags.get("outcome")
    if outcome in (outcomes.FROZEN, outcomes.UNFROZEN):
        frozen = client.get_registered_model(name).tags.get(names.FROZEN)
        return frozen == run.info.run_id if outcome == outcomes.FROZEN else frozen is None
    if outcome == outcomes.ON_TRIAL:
        return by_alias.get(CHALLENGER_ALIAS) == number
    if outcome in (outcomes.TRIAL_ROLLED_BACK, outcomes.INCONCLUSIVE):
        if CHALLENGER_ALIAS in by_alias:
            return False
        clear_trial(claim, number)
        return True
    if outcome == outcomes.ARCHIVED:
        if by_alias.get(PRODUCTION) == number:
            return False
        for alias in [alias for alias, named in by_alias.items() if named == number]:
            _move_alias(claim, client.delete_registered_model_alias, name, alias)
        with _where_it_exists():  # somebody may have deleted the version
            # After the aliases: none names an archived version.
            _write(claim, client.set_model_version_tag, name, number, STAGE, ARCHIVED)
        return True
    if outcome not in (outcomes.PROMOTED, outcomes.ROLLED_BACK) or by_alias.get(tags["stage"].lower()) != number:
        return False
    with _where_it_exists():
        _tell_who_follows(claim, tags)
    if tags["action"] == TRIAL:
        clear_trial(claim, number)
    if tags["action"] == ROLLBACK:  # what turned out bad is no best
        model_tags = client.get_registered_model(name).tags
        for key in [key for key in model_tags if key.startswith(names.BEST_GUARDS)]:
            kept = ledger.without(model_tags, key, tags["replaces"])
            if kept != model_tags[key]:
                _write(claim, client.set_registered_model_tag, name, key, kept)
    elif tags["stage"] == STAGES[PRODUCTION] and records.BEST in tags:
        _write(claim, client.set_registered_model_tag, name, ledger.best_key(tags[DATASET_DIGEST]), tags[records.BEST])
    # After a rollback `previous` names what is in production: `settle` takes it away, there is none before it.
    if tags["action"] != ROLLBACK and tags["stage"] == "Production" and tags["replaces"] not in (NOTHING, number):
        with _where_it_exists():  # somebody may have deleted the version that was replaced
            _move_alias(claim, client.set_registered_model_alias, name, PREVIOUS, tags["replaces"])
    return True


def _tell_who_follows(claim: Claim, tags: dict[str, str]) -> None:
    """Tag a version that was taken out of production with the one that follows it; its description says why."""
    client, name, number, replaced = claim.client, claim.model, tags["version"], tags["replaces"]
    if REPLACED_BY in client.get_model_version(name, number).tags:  # it is back
        _write(claim, client.delete_model_version_tag, name, number, REPLACED_BY)
    if tags["stage"] == STAGES[PRODUCTION] and replaced not in (NOTHING, number):
        _write(claim, client.set_model_version_tag, name, replaced, REPLACED_BY, number)
        decisions = records.of_version(client, name, replaced)
        _tell(claim, replaced, decisions, f"**Replaced by version {number}.** {tags['why']}")


def _take_back(claim: Claim, run: Run) -> None:
    """Undo what a promoter that moved nothing has written on its version, and mark its record KILLED."""
    client, name, tags = claim.client, claim.model, run.data.tags
    number = tags.get("version")
    if number is None:  # it had decided nothing yet: no record
        _write(claim, client.delete_run, run.info.run_id)
        return
    with _where_it_exists():
        if number != NOTHING:  # then it was about the model
            _tell(claim, number, records.of_version(client, name, number))
        if tags.get("outcome") == outcomes.ON_TRIAL:
            clear_trial(claim, number)
        if tags.get("outcome") in (outcomes.PROMOTED, outcomes.ROLLED_BACK):
            if tags["moved_from"] != NOTHING:
                _write(claim, client.set_model_version_tag, name, number, STAGE, tags["moved_from"])
            else:
                _write(claim, client.delete_model_version_tag, name, number, STAGE)
    _write(claim, client.set_terminated, run.info.run_id, "KILLED")


def _keep(
    claim: Claim, entry: Entry, decision: Decision | None, tags: Mapping[str, str], files: Mapping[str, str]
) -> None:
    """Write the record of a decision on a version, and tell it on the version's page."""
    records.write(claim, entry, decision, tags, files)
    told = [claim.client.get_run(claim.run_id), *records.of_version(claim.client, entry.model, entry.version)]
    _tell(claim, entry.version, told)


def _write(claim: Claim, request: Callable[..., object], *arguments: str) -> None:
    with claim.in_time():
        request(*arguments)


def _move_alias(claim: Claim, request: Callable[..., object], *arguments: str) -> None:
    """A write that counts: the server is asked first whether the lease is ours still."""
    claim.confirm()
    _write(claim, request, *arguments)


@contextmanager
def _where_it_exists() -> Iterator[None]:
    """Go on where MLflow says that something is not there."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST" and "'active' state" not in str(error):
            raise


def _tell(claim: Claim, number: str, decisions: list[Run], more: str = "") -> None:
    """Tags and description of a version from the decisions on it, newest first: the registry's page tells the story.

    `more`: what else there is to say.
    """
    client, name = claim.client, claim.model
    version = client.get_model_version(name, number)
    wanted: dict[str, str] = {}
    moved = next(
        (run for run in decisions if run.data.tags["outcome"] in (outcomes.PROMOTED, outcomes.ROLLED_BACK)), None
    )
    by_gate = next((run for run in decisions if run.data.tags["outcome"] not in NO_GATE), None)
    if by_gate is not None:
        wanted[names.GATE] = by_gate.data.tags["outcome"]
    if moved is not None:
        facts = (moved.data.tags["decided_at"], moved.data.tags["by"], moved.info.run_id)
        wanted |= zip(MOVE_TAGS, facts, strict=True)
    told: list[Run] = []
    for run in (*decisions[:1], moved, by_gate):  # the last decision, the last move, the last one by the gate
        if run is not None and run not in told:
            told.append(run)
    lines = [*([more[: LONGEST[1]]] if more else []), *(_in_words(run) for run in told)]
    story = OURS + "\n\n".join(lines) if lines else ""
    for key in (names.GATE, *MOVE_TAGS):
        if key in wanted and version.tags.get(key) != wanted[key]:
            _write(claim, client.set_model_version_tag, name, number, key, wanted[key])
        elif key not in wanted and key in version.tags:
            _write(claim, client.delete_model_version_tag, name, number, key)
    before = version.description or ""
    after = before.partition(OURS)[0][: LONGEST[0]] + story
    if after != before:
        _write(claim, client.update_model_version, name, number, after)


def _in_words(run: Run) -> str:
    """A decision as a line of Markdown."""
    tags = run.data.tags
    what = f"**{tags['stage']}: {tags['outcome']}** by {tags['by']}, {tags['decided_at']}. {tags['why']}"
    return f"{what[: LONGEST[1]]}. [Report]({records.report_of(run)})"
