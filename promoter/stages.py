"""Moving versions between stages. The alias is the truth, and its move the one commit point.

A move writes, in this order: the record (a run in the experiment `promotions`, with the reports), tags and description
of the version, the alias, and then what follows from the aliases (`settle`). Killed anywhere between, the next promoter
settles what was left, and the same command converges to the same state.

Stages are kept as aliases, and as the tag `stage` on every version that ever had one: Staging, Production, Previous
(the one to roll back to) and Archived. No alias ever names an archived version.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from promoter import lock, records, registry
from promoter.errors import Busy, InputError
from promoter.gate import Decision
from promoter.lock import Claim
from promoter.records import NOTHING, ROLLBACK, Entry
from promoter.registry import PREVIOUS, PRODUCTION, STAGING

ARCHIVED = "Archived"
STAGES = {PRODUCTION: "Production", STAGING: "Staging", PREVIOUS: "Previous"}  # by alias, the highest first
TOLD = ("gate", "decision_run_id", "decision_report", "promoted_at", "promoted_by", "promotion_run_id")  # tags
OURS = "\n\n---\n"  # in a version's description: from here on it is written by the promoter


@dataclass(frozen=True)
class Move:
    """A version on its way to a stage."""

    version: ModelVersion
    stage: str
    action: str
    by: str
    why: str
    tags: dict[str, str]  # of the record, besides

    def entry(self, outcome: str, replaced: str) -> Entry:
        """The move in words."""
        version = self.version
        return Entry(
            *(version.name, str(version.version), self.stage, version.tags.get("stage", NOTHING), replaced),
            *(self.action, outcome, self.by, self.why),
        )


def promote(claim: Claim, move: Move, decision: Decision | None, outcome: str = records.PROMOTED) -> Entry:
    """Put a version into Staging or Production, and record it."""
    client, version, alias = claim.client, move.version, move.stage.lower()
    name = version.name
    replaced = registry.aliases(client, name).get(alias, NOTHING)
    entry = move.entry(outcome, replaced)
    records.write(claim, entry, decision, move.tags)
    _tell(claim, move, outcome)
    now = registry.aliases(client, name).get(alias, NOTHING)
    if now != replaced:
        raise Busy(
            f"{move.stage} of {name} went from version {replaced} to {now} while this was decided, by somebody who "
            "does not use the promoter. Nothing was moved; run the same command again."
        )
    _write(claim, client.set_registered_model_alias, name, alias, str(version.version))  # the commit point
    settle(claim)
    return entry


def record(claim: Claim, move: Move, decision: Decision, outcome: str) -> Entry:
    """Record a decision that moves nothing: refused, awaiting approval, or only asked for."""
    replaced = registry.aliases(claim.client, move.version.name).get(move.stage.lower(), NOTHING)
    entry = move.entry(outcome, replaced)
    records.write(claim, entry, decision, move.tags)
    _tell(claim, move, outcome)
    records.finish(claim.client, claim.run_id)
    return entry


def rollback_pair(client: MlflowClient, name: str) -> tuple[str, str]:
    """(version in production, version to roll back to). Raises InputError where there are not both."""
    found = registry.aliases(client, name)
    if PRODUCTION not in found or PREVIOUS not in found:
        raise InputError(
            f"{name} has no version to roll back to: production is {found.get(PRODUCTION, 'empty')}, previous is "
            f"{found.get(PREVIOUS, 'empty')}. `promoter promote --stage Production --version N --force --reason …` "
            "puts any version there."
        )
    return found[PRODUCTION], found[PREVIOUS]


def rollback(claim: Claim, reason: str, by: str) -> tuple[str, str]:
    """Put the previous version back into production. Returns (from, to)."""
    current, previous = rollback_pair(claim.client, claim.model)
    version = registry.version(claim.client, claim.model, previous)
    promote(claim, Move(version, "Production", ROLLBACK, by, reason, {}), None, records.ROLLED_BACK)
    return current, previous


def archive(claim: Claim | None, version: ModelVersion, reason: str, by: str) -> Entry:
    """Take a version out for good; without a claim only say so. Raises InputError for the one in production."""
    if PRODUCTION in version.aliases:
        raise InputError(f"Version {version.version} is in production. Put another there first (promote or rollback).")
    move = Move(version, ARCHIVED, "archive", by, reason, {})
    entry = move.entry(records.ARCHIVED, NOTHING)
    if claim is not None:
        records.write(claim, entry, None)
        _tell(claim, move, records.ARCHIVED)
        settle(claim)
    return entry


def settle(claim: Claim) -> None:
    """Finish what follows from the aliases: `previous`, the stage tags, the records. Safe to repeat.

    So what a dead promoter left is completed, or taken back where it had moved nothing, by the next one, whatever that
    came for.
    """
    client, name = claim.client, claim.model
    left = lock.unfinished(client, name, claim.run_id)
    if claim.kept:
        left.append(client.get_run(claim.run_id))
    left.sort(key=lambda run: run.info.start_time)
    done = [run for run in left if _follow_up(claim, run.data.tags)]
    for run in left:
        if run not in done and run.info.run_id != claim.run_id:
            with _where_it_exists():  # one that only slept may withdraw its claim just now
                if "version" in run.data.tags:
                    _take_back(claim, run.data.tags)
                    _write(claim, client.set_terminated, run.info.run_id, "KILLED")
                else:  # it had decided nothing yet: no record
                    _write(claim, client.delete_run, run.info.run_id)
    by_alias = registry.aliases(client, name)
    if STAGING in by_alias and by_alias[STAGING] == by_alias.get(PRODUCTION):
        _write(claim, client.delete_registered_model_alias, name, STAGING)
    for version in registry.staged(client, name):  # with the aliases as they are now
        stage = next((stage for alias, stage in STAGES.items() if alias in version.aliases), ARCHIVED)
        if version.tags.get("stage") != stage:
            _write(claim, client.set_model_version_tag, name, str(version.version), "stage", stage)
    for run in done:
        records.finish(client, run.info.run_id)


def _follow_up(claim: Claim, tags: dict[str, str]) -> bool:
    """Do what follows from a record whose alias has moved. Returns whether it has; an archival moves none itself."""
    client, name, number = claim.client, claim.model, tags.get("version", "")
    by_alias, outcome = registry.aliases(client, name), tags.get("outcome")
    if outcome == records.ARCHIVED:
        if by_alias.get(PRODUCTION) == number:
            return False
        for alias in [alias for alias, named in by_alias.items() if named == number]:
            _write(claim, client.delete_registered_model_alias, name, alias)
        # After the aliases: none names an archived version.
        _write(claim, client.set_model_version_tag, name, number, "stage", ARCHIVED)
        return True
    if outcome not in (records.PROMOTED, records.ROLLED_BACK) or by_alias.get(tags["stage"].lower()) != number:
        return False
    if tags["action"] == ROLLBACK:  # `previous` names the version in production now: there is none before it
        if by_alias.get(PREVIOUS) == number:
            _write(claim, client.delete_registered_model_alias, name, PREVIOUS)
    elif tags["stage"] == "Production" and tags["replaces"] not in (NOTHING, number):
        with _where_it_exists():  # somebody may have deleted the version that was replaced
            _write(claim, client.set_registered_model_alias, name, PREVIOUS, tags["replaces"])
    return True


def _take_back(claim: Claim, tags: dict[str, str]) -> None:
    """Undo what a promoter that died before it moved an alias has written on its version."""
    client, name, number = claim.client, claim.model, tags["version"]
    with _where_it_exists():
        version = client.get_model_version(name, number)
        for key in TOLD:
            if key in version.tags:
                _write(claim, client.delete_model_version_tag, name, number, key)
        if tags["moved_from"] != NOTHING:
            _write(claim, client.set_model_version_tag, name, number, "stage", tags["moved_from"])
        elif "stage" in version.tags:
            _write(claim, client.delete_model_version_tag, name, number, "stage")


def _write(claim: Claim, request: Callable[..., object], *arguments: str) -> None:
    claim.check()
    request(*arguments)


@contextmanager
def _where_it_exists() -> Iterator[None]:
    """Go on where MLflow says that something is not there."""
    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST" and "'active' state" not in str(error):
            raise


def _tell(claim: Claim, move: Move, outcome: str) -> None:
    """Tags and description of the version, so that the registry's page alone tells the story."""
    client, name, number = claim.client, move.version.name, str(move.version.version)
    now, report = datetime.now(UTC), records.link(client, claim.run_id)
    tags = {"gate": outcome, "decision_run_id": claim.run_id, "decision_report": report}
    if outcome in (records.PROMOTED, records.ROLLED_BACK):
        tags |= {
            "stage": move.stage,
            "promoted_at": now.isoformat(timespec="seconds"),
            "promoted_by": move.by,
            "promotion_run_id": claim.run_id,
        }
    for key, value in tags.items():
        _write(claim, client.set_model_version_tag, name, number, key, value)
    before = (client.get_model_version(name, number).description or "").partition(OURS)[0]
    what = f"**{move.stage}: {outcome}** by {move.by}, {now:%Y-%m-%d %H:%M} UTC. {move.why}. [Report]({report})"
    _write(claim, client.update_model_version, name, number, before + OURS + what)
