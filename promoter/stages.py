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
from mlflow.entities.model_registry import ModelVersion

from promoter.errors import Busy, InputError
from promoter.registry import PREVIOUS, PRODUCTION, STAGING, list_versions, with_alias
from promoter.report import decision_report

EXPERIMENT = "promotions"


@contextmanager
def lock(name: str) -> Iterator[None]:
    """One promoter at a time for a model, on this machine. Raises Busy where another holds the lock."""
    key = hashlib.sha256(f"{mlflow.get_tracking_uri()} {name}".encode()).hexdigest()[:16]
    try:
        with FileLock(Path(tempfile.gettempdir()) / f"ratchet-promoter-{key}.lock", timeout=0):
            yield
    except Timeout:
        raise Busy(f"Somebody else is promoting {name} right now. Nothing was changed; try again.") from None


def promote(
    client: MlflowClient,
    version: ModelVersion,
    stage: str,
    action: str,
    decision: dict[str, Any],
    by: str,
    remember_replaced: bool = True,
) -> str:
    """Put a version into Staging or Production. Returns the id of the run that records it. Hold the lock.

    The version replaced in production gets the alias `previous`, unless it is not to be remembered.
    """
    name, number = version.name, str(version.version)
    alias = stage.lower()
    replaced = with_alias(list_versions(client, name), alias)
    run_id = _record(client, name, number, stage, action, decision, by, replaced)
    for key, value in (
        ("stage", stage),
        ("promoted_at", datetime.now(UTC).isoformat(timespec="seconds")),
        ("promoted_by", by),
        ("promotion_run_id", run_id),
    ):
        client.set_model_version_tag(name, number, key, value)
    if alias == PRODUCTION and replaced is not None and remember_replaced:
        client.set_registered_model_alias(name, PREVIOUS, str(replaced.version))
    client.set_registered_model_alias(name, alias, number)
    settle(client, name)
    client.set_terminated(run_id, "FINISHED")
    return run_id


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
    current, previous = rollback_pair(client, name)
    if current.version != previous.version:  # else a rollback was killed after its one commit point
        decision = {"passed": True, "why": reason}
        promote(client, previous, "Production", "rollback", decision, by, remember_replaced=False)
    client.delete_registered_model_alias(name, PREVIOUS)
    return str(current.version), str(previous.version)


def archive(client: MlflowClient, version: ModelVersion, decision: dict[str, Any], by: str) -> str:
    """Take a version out of Staging for good. Raises InputError for the one in production. Hold the lock."""
    if PRODUCTION in version.aliases:
        raise InputError(f"Version {version.version} is in production. Put another there first (promote or rollback).")
    name, number = version.name, str(version.version)
    run_id = _record(client, name, number, "Archived", "promote", decision, by, None)
    client.set_model_version_tag(name, number, "stage", "Archived")
    for alias in version.aliases:
        client.delete_registered_model_alias(name, alias)
    client.set_terminated(run_id, "FINISHED")
    return run_id


def settle(client: MlflowClient, name: str) -> None:
    """Make the stage tags, and a leftover `staging`, agree with the aliases. Safe to repeat."""
    versions = list_versions(client, name)
    production = with_alias(versions, PRODUCTION)
    if production is not None and STAGING in production.aliases:
        client.delete_registered_model_alias(name, STAGING)
    for version in versions:
        stage = "Production" if PRODUCTION in version.aliases else "Staging" if STAGING in version.aliases else None
        if stage is None and "stage" in version.tags:
            stage = "Archived"
        if stage is not None and version.tags.get("stage") != stage:
            client.set_model_version_tag(name, str(version.version), "stage", stage)


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
    experiment = mlflow.set_experiment(EXPERIMENT)
    tags = {
        "model": name,
        "version": number,
        "replaces": str(replaced.version) if replaced else "nothing",
        "stage": stage,
        "action": action,
        "by": by,
        "why": decision["why"][:5000],
    }
    same = " and ".join(f"tags.{key} = '{tags[key]}'" for key in ("model", "version", "replaces", "stage", "action"))
    unfinished = client.search_runs([experiment.experiment_id], f"{same} and attributes.status = 'RUNNING'")
    if unfinished:
        run_id = unfinished[0].info.run_id
    else:
        run_name = f"{name} {number} → {stage}"
        run_id = client.create_run(experiment.experiment_id, tags=tags, run_name=run_name).info.run_id
    client.log_text(run_id, json.dumps({**tags, **decision}, indent=2), "decision.json")
    client.log_text(run_id, decision_report({**tags, **decision}), "decision.md")
    return str(run_id)
