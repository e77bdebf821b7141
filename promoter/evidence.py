"""Fetches the evidence on a version from the tracking server; the gate decides on it."""

import hashlib
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from contract import metrics, names
from contract.files import sha256_of
from contract.names import GROUND
from promoter import artifacts, recomputation, records
from promoter.decision import Evidence
from promoter.policy import Policy


def fetch(client: MlflowClient, version: ModelVersion, policy: Policy, like: Evidence | None = None) -> Evidence:
    """What is known of a version but for its files (`with_files`).

    From the run that made it or, to compare it `like` another, from one that evaluated it on the same data in the same
    way, where there is one (the trainer makes it).
    """
    run = _run(client, version, like)
    tables: dict[str, pd.DataFrame] = {}
    unreadable: dict[str, str] = {}
    sha256: dict[str, str] = {}
    if run is not None:
        for path in {found.table for name in policy.metrics if (found := metrics.parse(name)) is not None}:
            table = _table(client, run.info.run_id, path)
            if table is None:
                continue
            sha256[path] = table.sha256
            if isinstance(table.rows, str):
                unreadable[path] = table.rows
            else:
                tables[path] = table.rows
    tags = run.data.tags if run is not None else {}
    own = run is not None and run.info.run_id == version.run_id
    digest = tags.get(names.DATASET_DIGEST)
    return Evidence(
        model=version.name,
        version=str(version.version),
        run_id=run.info.run_id if run is not None else "",
        dataset_digest=digest,
        prompt_template=tags.get(names.PROMPT_TEMPLATE),
        eval_settings=tags.get(names.EVAL_SETTINGS),
        metrics=dict(run.data.metrics) if run is not None else {},
        tables=tables,
        unreadable=unreadable,
        sha256=sha256,
        # The version's own tag counts, which is written once: a run's tags are written as long as the run goes on.
        sealed=(version.tags.get(names.EVIDENCE) if own else None) or tags.get(names.EVIDENCE),
        recorded=records.evidence_of(client, version.name, str(version.version), digest) if digest else {},
        recomputed=all(recomputation.validated(version.tags, digest) for digest in sha256.values()) and bool(sha256),
        manifest=version.tags.get(names.MANIFEST_SHA256),
        finished=run is None or run.info.status == "FINISHED",
        judged_manifest=tags.get(names.EVALUATED_MANIFEST),
        train_digests=tuple(filter(None, version.tags.get(names.TRAIN_DIGESTS, "").split(","))),
        role=version.tags.get(names.ROLE),
        base_model=version.tags.get(names.BASE_MODEL),
        validation=version.tags.get(names.VALIDATION),
        signature=artifacts.signature(version) if policy.safety.signature else None,
    )


def with_files(found: Evidence, version: ModelVersion, policy: Policy) -> Evidence:
    """The same after a look at the version's files, all of which are fetched."""
    look = policy.safety.manifest or policy.safety.no_pickle
    return replace(found, files=artifacts.look(version) if look else {})


def key(candidate: Evidence, incumbent: Evidence | None, policy: str, stage: str, best: object) -> str:
    """The same for two requests that the gate would answer alike, but for what is left of alpha; 16 digits."""

    def facts(found: Evidence | None) -> object:
        if found is None:
            return None
        measured = found.run_id, dict(found.sha256), dict(found.metrics), [getattr(found, name) for name in GROUND]
        return measured, found.version, found.validation, found.recomputed, dict(found.recorded), found.manifest

    text = json.dumps([facts(candidate), facts(incumbent), policy, stage, best], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _run(client: MlflowClient, version: ModelVersion, like: Evidence | None) -> Run | None:
    """The run to take figures from: its own, else the newest that evaluated it and fits."""
    own = client.get_run(version.run_id) if version.run_id else None  # None: registered by hand
    wanted = {name: getattr(like, name) for name in GROUND} if like is not None and like.dataset_digest else {}
    if own is not None and own.data.tags.get(names.DATASET_DIGEST) and wanted.items() <= own.data.tags.items():
        return own
    experiments = (
        [own.info.experiment_id] if own is not None else [e.experiment_id for e in client.search_experiments()]
    )
    terms = f"tags.{names.EVALUATES} = '{version.name}/{version.version}' and attributes.status = 'FINISHED'"
    # The values go into no filter: they may hold any character.
    found = client.search_runs(experiments, terms, order_by=["attributes.start_time DESC"], max_results=1000)
    return next((run for run in found if wanted.items() <= run.data.tags.items()), own)


class _Table(NamedTuple):
    rows: pd.DataFrame | str  # or how it is broken
    sha256: str


def _table(client: MlflowClient, run_id: str, path: str) -> _Table | None:
    """An evaluation table of a run; None where it has none."""
    with tempfile.TemporaryDirectory(prefix="ratchet-promoter-") as folder:
        file = recomputation.download(client, run_id, path, Path(folder))
        if file is None:
            return None
        sha256 = sha256_of(file)
        try:
            return _Table(pd.read_parquet(file), sha256)
        except (pa.ArrowException, ValueError, OSError, KeyError, TypeError, AttributeError) as error:
            return _Table(str(error), sha256)
