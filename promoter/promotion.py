"""What a promoting command does: fetch the evidence, let the gate decide, act on it, leave a record."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from contract import names, outcomes
from contract.errors import InputError
from contract.lease import Claim
from contract.names import PRODUCTION
from contract.outcomes import NOTHING
from promoter import evidence, ledger, records, registry, stages
from promoter.decision import Decision, Stage
from promoter.gate import best_of, decide, with_files
from promoter.policy import Policy
from promoter.records import Entry
from promoter.stages import Move


@dataclass(frozen=True)
class Request:
    """What a command was asked to do with the version that it has chosen."""

    stage: Stage
    action: str  # the command
    by: str
    policy: Policy
    force: bool = False
    reason: str = ""
    approved: bool = False
    only_judge: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a request."""

    entry: Entry
    decision: Decision | None = None  # None: there was nothing to decide
    run_id: str | None = None  # of the record; None where nothing was written

    @property
    def refused(self) -> bool:
        return self.entry.outcome == outcomes.REFUSED

    @property
    def refused_before(self) -> bool:
        return self.entry.outcome == outcomes.REFUSED_BEFORE


def run(
    client: MlflowClient,
    claim: Claim | None,
    version: ModelVersion,
    request: Request,
    unless_refused: Mapping[str, str] = MappingProxyType({}),
) -> Outcome:
    """Judge a version, and move it where the gate, or force, lets it.

    Without a claim nothing is written: the outcome is what would happen. What was refused on the very same evidence
    (`unless_refused`: records by its key) is not judged again. Raises InputError.
    """
    name, number, stage = version.name, str(version.version), request.stage
    by_alias = registry.aliases(client, name)
    failed = version.tags.get(names.VALIDATION) == "failed"  # a staged one stands in nobody's way
    if not request.only_judge and by_alias.get(stage.lower()) == number and not failed:
        return nothing(version, stage, request.action, request.by, f"version {number} of {name} is in {stage} already")
    if by_alias.get(PRODUCTION) == number:
        raise InputError(
            f"Version {number} is in production. Expected another: `promoter compare-versions` lists them."
        )
    if not request.only_judge:
        registry.refuse_frozen(client, name)
    try:
        incumbent = registry.incumbent_of(client, version)
    except registry.NothingToCompare:
        if not request.force:
            raise
        incumbent = None
    policy = request.policy
    candidate = evidence.fetch(client, version, policy)
    other = evidence.fetch(client, incumbent, policy, like=candidate) if incumbent is not None else None
    model_tags = client.get_registered_model(name).tags
    best = ledger.best_on(model_tags, candidate.dataset_digest)
    tags = {"policy": records.digest(policy)}
    tags[records.EVIDENCE_KEY] = evidence.key(candidate, other, tags["policy"], stage, best)
    if (before := unless_refused.get(tags[records.EVIDENCE_KEY])) is not None:
        why = f"version {number} of {name} was refused on the same evidence before (run {before})"
        return Outcome(
            Entry(name, number, stage, NOTHING, NOTHING, request.action, outcomes.REFUSED_BEFORE, request.by, why)
        )
    share = 1.0
    if other is not None and incumbent is not None:
        # Judged once more in another way, a version is tried once more.
        ground = names.evaluation_key({name: getattr(candidate, name) or "" for name in names.GROUND}) or "unknown"
        judged = registry.judged_since(client, incumbent, version, candidate.dataset_digest or "unknown")
        entries = ledger.read(model_tags, other.version)
        found = ledger.share(entries, number, judged, ground, policy.primary.metric)
        if found.entry is not None and claim is not None:
            ledger.write(claim, other.version, found.entry)
        if policy.significance.correction == "alpha_spending":  # else it was a try all the same
            share = found.of_alpha
        tags["alpha_share"] = repr(share)
    alpha = share * policy.significance.alpha
    decision = decide(policy, candidate, other, stage, alpha, best)
    if decision.passed or request.force or request.only_judge:  # all files are fetched for it, so not before
        candidate = evidence.with_files(candidate, version, policy)
        decision = with_files(decision, candidate)
    outcome = _outcome(decision, request)
    if candidate.dataset_digest:
        tags[records.BEST] = json.dumps(best_of(decision, best))
        if len(tags[records.BEST]) > ledger.LONGEST:
            raise InputError(
                f"The policy names {len(policy.guards)} guards, whose best values take {len(tags[records.BEST])} "
                f"characters. Expected {ledger.LONGEST} at most: fewer guards."
            )
    if outcome == outcomes.AWAITING and records.awaits(client, name, number, stage, tags["policy"]):
        return nothing(
            version, stage, request.action, request.by, f"version {number} of {name} awaits approval already"
        )
    why = f"{request.reason} ({decision.why})" if request.reason else decision.why
    move = Move(version, stage, request.action, request.by, why, by_alias, tags)
    if claim is None:
        return Outcome(move.entry(outcome), decision)
    if outcome == outcomes.PROMOTED:
        entry = stages.promote(claim, move, decision)
    else:
        entry = stages.record(claim, move, decision, outcome)
    return Outcome(entry, decision, claim.run_id)


def nothing(version: ModelVersion | None, stage: str, action: str, by: str, why: str) -> Outcome:
    """There was nothing to do."""
    name, number = (version.name, str(version.version)) if version is not None else ("", NOTHING)
    return Outcome(Entry(name, number, stage, NOTHING, NOTHING, action, outcomes.NOTHING_TO_DO, by, why))


def _outcome(decision: Decision, request: Request) -> str:
    if request.only_judge:
        return outcomes.JUDGED if decision.passed else outcomes.REFUSED
    if request.force:
        return outcomes.PROMOTED
    if not decision.passed:
        return outcomes.REFUSED
    return outcomes.AWAITING if request.policy.approval == "manual" and not request.approved else outcomes.PROMOTED
