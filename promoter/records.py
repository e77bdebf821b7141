"""Decision records: one run in the experiment `promotions` for each decision and each move, with the reports.

A record is RUNNING while it is acted on, FINISHED once all that it says is true, KILLED where its promoter died before
the alias moved. Its tags are what `history` shows and what the next gate has to know.
"""

import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, Run, RunTag

from promoter import page, statistics
from promoter.errors import InputError
from promoter.gate import Decision
from promoter.lock import EXPERIMENT, Claim
from promoter.policy import Policy

NOTHING = "nothing"  # instead of a version, where there was none
ROLLBACK = "rollback"
PROMOTED, REFUSED, AWAITING = "promoted", "refused", "awaiting approval"
ARCHIVED, ROLLED_BACK, APPROVED, JUDGED = "archived", "rolled back", "approved", "passed the gate"
MOVES = (PROMOTED, ARCHIVED, ROLLED_BACK)
LONGEST = 5000  # characters of a tag; MLflow takes 8,000


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


def write(claim: Claim, entry: Entry, decision: Decision | None = None, tags: dict[str, str] | None = None) -> None:
    """Make the claim the record of a decision, with decision.json, .md and .html as its artifacts."""
    client, run_id = claim.client, claim.run_id
    claim.check()
    claim.keep()
    values = {**asdict(entry), "mlflow.runName": f"{entry.model} {entry.version} → {entry.stage}", **(tags or {})}
    figures: list[Metric] = []
    if decision is not None:
        incumbent = decision.incumbent.version if decision.incumbent else NOTHING
        values |= {"incumbent": incumbent, "dataset_digest": decision.candidate.dataset_digest or "unknown"}
        now = int(time.time() * 1000)
        for item in decision.comparisons:
            for name in ("candidate", "incumbent", "improvement", "low", "high"):
                figures.append(Metric(f"{item.metric}/{name}", getattr(item, name), now, 0))
    client.log_batch(run_id, figures, tags=[RunTag(key, value[:LONGEST]) for key, value in values.items()])
    facts = asdict(entry) | (decision.to_dict() if decision else {"passed": True}) | {"why": entry.why}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "decision.json").write_text(json.dumps(facts, indent=2, default=str), encoding="utf-8")
        Path(folder, "decision.md").write_text(page.markdown(entry, decision), encoding="utf-8")
        Path(folder, "decision.html").write_text(page.html(entry, decision), encoding="utf-8")
        client.log_artifacts(run_id, folder)


def finish(client: MlflowClient, run_id: str) -> None:
    """Mark a record as done: from here on it is history."""
    client.set_terminated(run_id, "FINISHED")


def link(client: MlflowClient, run_id: str) -> str:
    """Where the MLflow UI shows a record's report; relative to the server, whatever its address."""
    return f"/#/experiments/{client.get_run(run_id).info.experiment_id}/runs/{run_id}/artifacts/decision.html"


def history(client: MlflowClient, model: str, limit: int, all_of_them: bool = False) -> list[Run]:
    """Finished records, newest first: the moves, or all decisions."""
    runs: list[Run] = []
    token = None
    while len(runs) < limit:
        page_of_runs = _search(client, model, "attributes.status = 'FINISHED'", min(1000, 2 * limit), token)
        runs += [run for run in page_of_runs if all_of_them or run.data.tags.get("outcome") in MOVES]
        if not (token := page_of_runs.token):
            break
    return runs[:limit]


def awaiting(client: MlflowClient, model: str, version: str | None) -> Run:
    """The newest decision that awaits approval. Raises InputError where there is none."""
    which = f" and tags.version = '{version}'" if version else ""
    found = _search(client, model, f"attributes.status = 'FINISHED' and tags.outcome = '{AWAITING}'{which}", 1)
    if not found:
        raise InputError(
            f"No version of {model} awaits approval{f' as version {version}' if version else ''}. "
            "`promoter history --all` shows the decisions; "
            "`promoter auto-promote --policy approval` makes one that does."
        )
    run: Run = found[0]
    return run


def policy_of(client: MlflowClient, run: Run) -> Policy:
    """The policy that a decision was made by."""
    with tempfile.TemporaryDirectory() as folder:
        path = client.download_artifacts(run.info.run_id, "decision.json", folder)
        return Policy.model_validate(json.loads(Path(path).read_text(encoding="utf-8"))["policy"])


def share(client: MlflowClient, model: str, version: str, together: list[str], incumbent: str, digest: str) -> float:
    """The share of alpha for a candidate, chosen from those tried `together`, against an incumbent on some data.

    The one that it was given before, on the same data; else by how many others were tried against that incumbent. A
    version tried once more on other data is another try.
    """
    tried: set[tuple[str, str]] = set()
    token = None
    while True:
        found = _search(
            client, model, f"tags.incumbent = '{incumbent}' and attributes.status = 'FINISHED'", 1000, token
        )
        for run in found:
            tags = run.data.tags
            others = set(tags.get("tried", tags["version"]).split(","))
            if version in others and tags["dataset_digest"] == digest and "alpha_share" in tags:
                return float(tags["alpha_share"])
            tried |= {(other, tags["dataset_digest"]) for other in others}
        if not (token := found.token):
            break
    new = {(other, digest) for other in (version, *together)} - tried
    return statistics.spend(1.0, len(tried), max(1, len(new)))


def _search(client: MlflowClient, model: str, terms: str, limit: int, token: str | None = None):  # type: ignore[no-untyped-def]
    experiment = client.get_experiment_by_name(EXPERIMENT)
    ids = [experiment.experiment_id] if experiment is not None else []
    return client.search_runs(
        ids,
        f"tags.model = '{model}' and {terms}",
        order_by=["attributes.start_time DESC"],
        max_results=limit,
        page_token=token,
    )
