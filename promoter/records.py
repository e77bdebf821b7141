"""Decision records: one run in the experiment `promotions` for each decision and each move, with the reports.

A record is RUNNING while it is acted on, FINISHED once all that it says is true, KILLED where its promoter died before
the alias moved. Its tags are what `history` shows and what the next gate has to know.
"""

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Run, RunTag
from mlflow.store.entities import PagedList

from contract.errors import InputError
from contract.lease import Claim
from contract.names import DATASET_DIGEST, PRODUCTION, PROMOTIONS, STAGES
from contract.outcomes import AWAITING, MOVES, NOTHING, PROMOTED, REFUSED, link
from promoter.decision import Decision
from promoter.policy import Policy

# Tags of a record: what the gate saw, as a key; as JSON the best of each guard once this is in production, and the
# sha256 of the tables.
EVIDENCE_KEY, BEST, TABLES = "evidence_key", "best_guards", "evidence_sha256"
LONGEST = 7000  # characters of a tag; MLflow takes 8,000


@dataclass(frozen=True)
class Entry:
    """Who did what to which version, and why."""

    model: str
    version: str
    stage: str  # where to
    moved_from: str  # the stage that it was in; `nothing` for none
    replaces: str  # the version that leaves the stage; `nothing` for none
    action: str  # the command
    outcome: str
    by: str
    why: str

    @property
    def what(self) -> str:
        """In a few words, what it is about."""
        return self.model if self.version == NOTHING else f"{self.model} version {self.version} → {self.stage}"


def write(
    claim: Claim, entry: Entry, decision: Decision | None, tags: Mapping[str, str], files: Mapping[str, str]
) -> None:
    """Make the claim the record of a decision, with its report's `files` (text by name) as artifacts."""
    client, run_id = claim.client, claim.run_id
    claim.check()
    claim.keep()
    values = {**asdict(entry), "mlflow.runName": entry.what, **tags}
    values["decided_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    figures: list[Metric] = []
    if decision is not None:
        incumbent = decision.incumbent.version if decision.incumbent else NOTHING
        values |= {
            "incumbent": incumbent,
            DATASET_DIGEST: decision.candidate.dataset_digest or "unknown",
            "primary_metric": decision.policy.primary.metric,
        }
        values[TABLES] = json.dumps(dict(decision.candidate.sha256))
        now = int(time.time() * 1000)
        for item in decision.comparisons:
            for name in ("candidate", "incumbent", "improvement", "low", "high", "p_value"):
                if math.isfinite(value := getattr(item, name)):
                    figures.append(Metric(f"{item.metric}/{name}", value, now, 0))
    client.log_batch(run_id, figures, tags=[RunTag(key, value[:LONGEST]) for key, value in values.items()])
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            Path(folder, name).write_text(text, encoding="utf-8")
        client.log_artifacts(run_id, folder)


def finish(claim: Claim, run_id: str) -> None:
    """Mark a record as done: from here on it is history."""
    claim.check()
    claim.client.set_terminated(run_id, "FINISHED")


def report_of(run: Run) -> str:
    """Where the MLflow UI shows a record's report; relative to the server."""
    return link(run.info.experiment_id, run.info.run_id)


def of_version(client: MlflowClient, model: str, version: str) -> list[Run]:
    """The finished records of a version, newest first."""
    found = _search(client, model, f"attributes.status = 'FINISHED' and tags.version = '{version}'", 1000)
    return [run for run in found if "decided_at" in run.data.tags]  # older promoters wrote less


def history(client: MlflowClient, model: str, limit: int, all_of_them: bool = False) -> list[Run]:
    """Finished records, newest first: the moves, or all decisions."""
    runs: list[Run] = []
    token = None
    while len(runs) < limit:
        page_of_runs = _search(client, model, "attributes.status = 'FINISHED'", min(1000, 2 * limit), token)
        runs += [run for run in page_of_runs if all_of_them or run.data.tags.get("outcome", PROMOTED) in MOVES]
        if not (token := page_of_runs.token):
            break
    return runs[:limit]


def digest(policy: Policy) -> str:
    """Equal for policies that say the same."""
    return hashlib.sha256(policy.model_dump_json().encode()).hexdigest()[:16]


def awaits(client: MlflowClient, model: str, version: str, stage: str, policy: str) -> bool:
    """Whether a version awaits approval for a stage, by a policy of this digest."""
    wanted = {"outcome": AWAITING, "stage": stage, "policy": policy}.items()
    return any(wanted <= run.data.tags.items() for run in of_version(client, model, version))


def awaiting(client: MlflowClient, model: str, version: str | None) -> list[Run]:
    """The decisions on one version that await approval, newest first. Raises InputError if there are none."""
    which = f" and tags.version = '{version}'" if version else ""
    found = _search(client, model, f"attributes.status = 'FINISHED' and tags.outcome = '{AWAITING}'{which}", 1000)
    if not found:
        raise InputError(
            f"No version of {model} awaits approval{f' as version {version}' if version else ''}. "
            "`promoter history --all` shows the decisions; "
            "`promoter auto-promote --policy approval` makes one that does."
        )
    return [run for run in found if run.data.tags["version"] == found[0].data.tags["version"]]


def policy_of(client: MlflowClient, run: Run) -> Policy:
    """The policy that a decision was made by."""
    with tempfile.TemporaryDirectory() as folder:
        path = client.download_artifacts(run.info.run_id, "decision.json", folder)
        try:
            return Policy.model_validate(json.loads(Path(path).read_text(encoding="utf-8"))["policy"])
        except (ValueError, KeyError) as error:
            raise InputError(
                f"The decision in run {run.info.run_id} was made by a policy that this promoter does not know. Have it "
                f"made anew: promoter auto-promote --policy FILE. ({' '.join(str(error).split())})"
            ) from error


def evidence_of(client: MlflowClient, model: str, version: str, digest: str) -> dict[str, str]:
    """The sha256 of each table by which a version came into production on these data; empty: by others."""
    for run in of_version(client, model, version):
        tags = run.data.tags
        if (tags["outcome"], tags["stage"], tags.get(DATASET_DIGEST)) == (PROMOTED, STAGES[PRODUCTION], digest):
            return {str(path): str(sha256) for path, sha256 in json.loads(tags.get(TABLES, "{}")).items()}
    return {}


def refused_by(client: MlflowClient, model: str, policy: str, stage: str) -> dict[str, str]:
    """The record by which each version was refused for a stage, last, by the key of its evidence (evidence.key)."""
    found: dict[str, str] = {}
    token = None
    while True:
        terms = f"attributes.status = 'FINISHED' and tags.outcome = '{REFUSED}' and tags.policy = '{policy}'"
        page = _search(client, model, terms, 1000, token)
        for run in page:
            if run.data.tags.get("stage") == stage and (known := run.data.tags.get(EVIDENCE_KEY)):
                found.setdefault(known, run.info.run_id)
        if not (token := page.token):
            return found


def _search(client: MlflowClient, model: str, terms: str, limit: int, token: str | None = None) -> PagedList[Run]:
    experiment = client.get_experiment_by_name(PROMOTIONS)
    ids = [experiment.experiment_id] if experiment is not None else []
    return client.search_runs(
        ids,
        f"tags.model = '{model}' and {terms}",
        order_by=["attributes.start_time DESC"],
        max_results=limit,
        page_token=token,
    )
