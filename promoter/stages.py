"""Moving versions between stages. The alias is the truth and its move the one commit point.

A promotion writes, in this order: the decision (a run in the experiment `promotions`), tags on the
version, the alias. Killed anywhere between, running it again converges to the same state.
"""

import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from promoter.errors import Busy, InputError
from promoter.registry import PREVIOUS, PRODUCTION, STAGING, list_versions, with_alias
from promoter.report import decision_report

EXPERIMENT = "promotions"
ROLLBACK = "rollback"
NOTHING = "nothing"


@contextmanager
def lock(name: str) -> Iterator[None]:
    """One promoter at a time for a model, on this machine. Raises Busy where another holds the lock."""
    key = hashlib.sha256(f"{mlflow.get_tracking_uri()} {name}".encode()).hexdigest()[:16]
    try:
        # Writable for all: another user's promoter on this machine has to find it.
        with FileLock(Path(tempfile.gettempdir()) / f"ratchet-promoter-{key}.lock", timeout=0, mode=0o666):
            yield
    except Timeout:
        raise Busy(f"Somebody else is promoting {name} right now. Nothing was changed; try again.") from None


def promote(
    client: MlflowClient, version: ModelVersion, stage: str, action: str, decision: dict[str, Any], by: str
) -> None:
    """Put a version into Staging or Production, and record it. Hold the lock."""
    name, number = version.name, str(version.version)
    replaced = with_alias(list_versions(client, name), stage.lower())
    run_id = _record(client, name, number, stage, action, decision, by, replaced)
    for key, value in (
        ("stage", stage),
        ("promoted_at", datetime.now(UTC).isoformat(timespec="seconds")),
        ("promoted_by", by),
        ("promotion_run_id", run_id),
    ):
        client.set_model_version_tag(name, number, key, value)
    client.set_registered_model_alias(name, stage.lower(), number)  # the commit point
    settle(client, name)


def rollback_pair(client: MlflowClient, name: str) -> tuple[ModelVersion, ModelVersion]:
    """(version in production, version before it). Raises InputError where one of them is missing."""
    versions = list_versions(client, name)
    current, previous = with_alias(versions, PRODUCTION), with_alias(versions, PREVIOUS)
    if current is None or previous is None:
        raise InputError(
            f"{name} has no version to roll back to: production is "
            f"{current.version if current else 'empty'}, previous is {previous.version if previous else 'empty'}."
        )
    return current, previous


def rollback(client: MlflowClient, name: str, reason: str, by: str) -> tuple[str, str]:
    """Put the previous version back into production. Returns (from, to). Hold the lock."""
    settle(client, name)
    current, previous = rollback_pair(client, name)
    promote(client, previous, "Production", ROLLBACK, {"passed": True, "why": reason}, by)
    return str(current.version), str(previous.version)


def archive(client: MlflowClient, version: ModelVersion, decision: dict[str, Any], by: str) -> None:
    """Take a version out of Staging for good. Raises InputError for the one in production. Hold the lock."""
    if PRODUCTION in version.aliases:
        raise InputError(f"Version {version.version} is in production. Put another there first (promote or rollback).")
    name, number = version.name, str(version.version)
    run_id = _record(client, name, number, "Archived", "promote", decision, by, None)
    client.set_model_version_tag(name, number, "stage", "Archived")
    for alias in version.aliases:
        client.delete_registered_model_alias(name, alias)
    client.set_terminated(run_id, "FINISHED")


def settle(client: MlflowClient, name: str) -> None:
    """Finish what follows from the aliases: `previous`, stage tags, the record. Safe to repeat.

    So a promoter that was killed after it moved the alias is completed by the next one. Hold the lock.
    """
    versions = list_versions(client, name)
    done = [
        run
        for run in _unfinished(client, name)
        if run.data.tags["version"] in (str(v.version) for v in versions if run.data.tags["stage"].lower() in v.aliases)
    ]
    for run in done:
        tags = run.data.tags
        if tags["action"] == ROLLBACK:  # `previous` names the version in production now: there is none before it
            client.delete_registered_model_alias(name, PREVIOUS)
        elif tags["stage"] == "Production" and tags["replaces"] not in (NOTHING, tags["version"]):
            client.set_registered_model_alias(name, PREVIOUS, tags["replaces"])
    production = with_alias(versions, PRODUCTION)
    if production is not None and STAGING in production.aliases:
        client.delete_registered_model_alias(name, STAGING)
    for version in versions:
        stage = "Production" if PRODUCTION in version.aliases else "Staging" if STAGING in version.aliases else None
        if stage is None and "stage" in version.tags:
            stage = "Archived"
        if stage is not None and version.tags.get("stage") != stage:
            client.set_model_version_tag(name, str(version.version), "stage", stage)
    for run in done:
        client.set_terminated(run.info.run_id, "FINISHED")


def _unfinished(client: MlflowClient, name: str) -> list[Run]:
    """Records of promotions that have not come to their end. Under the lock, their promoters are dead."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    filter_string = f"tags.model = '{name}' and attributes.status = 'RUNNING'"
    return list(client.search_runs([experiment.experiment_id], filter_string))


def _record(
    client: MlflowClient,
    name: str,
    number: str,
    stage: str,
    action: str,
    decision: dict[str, Any],
    by: str,
    replaced: ModelVersion | None,
) -> str:
    """Write the decision as a run; one that was left unfinished by a killed promoter is taken up again."""
    tags = {
        "model": name,
        "version": number,
        "replaces": str(replaced.version) if replaced else NOTHING,
        "stage": stage,
        "action": action,
        "by": by,
        "why": decision["why"][:5000],
    }
    run_id = None
    for run in _unfinished(client, name):
        if all(run.data.tags[key] == tags[key] for key in ("version", "replaces", "stage", "action")):
            run_id = run.info.run_id
        else:  # killed before it moved an alias, and nobody asked for it again
            client.set_terminated(run.info.run_id, "KILLED")
    if run_id is None:
        experiment_id = mlflow.set_experiment(EXPERIMENT).experiment_id
        run_id = client.create_run(experiment_id, tags=tags, run_name=f"{name} {number} → {stage}").info.run_id
    client.log_text(run_id, json.dumps({**tags, **decision}, indent=2), "decision.json")
    client.log_text(run_id, decision_report({**tags, **decision}), "decision.md")
    return str(run_id)
