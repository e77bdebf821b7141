"""What a promoting command does: fetch the evidence, let the gate decide, act on it, leave a record."""

from collections.abc import Iterable
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from contract.errors import InputError
from contract.names import PRODUCTION
from promoter import evidence, records, registry, stages
from promoter.gate import Decision, Stage, decide
from promoter.lock import Claim
from promoter.policy import Policy
from promoter.records import NOTHING, Entry
from promoter.stages import Move

NOTHING_TO_DO = "nothing to do"


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
        return self.entry.outcome == records.REFUSED


def run(
    client: MlflowClient, claim: Claim | None, version: ModelVersion, together: Iterable[str], request: Request
) -> Outcome:
    """Judge a version, chosen from those tried `together` (numbers), and move it where the gate, or force, lets it.

    Without a claim nothing is written: the outcome is what would happen. Raises InputError.
    """
    name, number, stage = version.name, str(version.version), request.stage
    by_alias = registry.aliases(client, name)
    if not request.only_judge and by_alias.get(stage.lower()) == number:
        return nothing(version, stage, request.action, request.by, f"version {number} of {name} is in {stage} already")
    if by_alias.get(PRODUCTION) == number:
        raise InputError(
            f"Version {number} is in production. Expected another: `promoter compare-versions` lists them."
        )
    incumbent = registry.incumbent_of(client, version)
    policy = request.policy
    candidate = evidence.fetch(client, version, policy, files=True)
    other = evidence.fetch(client, incumbent, policy, like=candidate) if incumbent is not None else None
    tried = sorted({number, *together})
    tags, share = {"tried": records.to_ranges(tried)}, 1.0
    if other is not None and policy.significance.correction == "alpha_spending":
        digest, metric = candidate.dataset_digest or "unknown", policy.primary.metric
        share = records.share(client, name, number, tried, other.version, digest, metric)
        tags["alpha_share"] = repr(share)
    decision = decide(policy, candidate, other, stage, share * policy.significance.alpha)
    outcome = _outcome(decision, request)
    tags["policy"] = records.digest(policy)
    if outcome == records.AWAITING and records.awaits(client, name, number, stage, tags["policy"]):
        return nothing(
            version, stage, request.action, request.by, f"version {number} of {name} awaits approval already"
        )
    why = f"{request.reason} ({decision.why})" if request.reason else decision.why
    move = Move(version, stage, request.action, request.by, why, by_alias, tags)
    if claim is None:
        return Outcome(move.entry(outcome), decision)
    if outcome == records.PROMOTED:
        entry = stages.promote(claim, move, decision)
    else:
        entry = stages.record(claim, move, decision, outcome)
    return Outcome(entry, decision, claim.run_id)


def nothing(version: ModelVersion | None, stage: str, action: str, by: str, why: str) -> Outcome:
    """There was nothing to do."""
    name, number = (version.name, str(version.version)) if version is not None else ("", NOTHING)
    return Outcome(Entry(name, number, stage, NOTHING, NOTHING, action, NOTHING_TO_DO, by, why))


def _outcome(decision: Decision, request: Request) -> str:
    if request.only_judge:
        return records.JUDGED if decision.passed else records.REFUSED
    if request.force:
        return records.PROMOTED
    if not decision.passed:
        return records.REFUSED
    return records.AWAITING if request.policy.approval == "manual" and not request.approved else records.PROMOTED
