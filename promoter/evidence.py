"""Fetches the evidence on a version from the tracking server; the gate decides on it."""

import tempfile

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from promoter import artifacts, metrics
from promoter.gate import Evidence
from promoter.policy import Policy

# Tags of a run, and of the version it made, that say on what and how it evaluated.
GROUND = ("dataset_digest", "prompt_template", "eval_settings")


def fetch(
    client: MlflowClient, version: ModelVersion, policy: Policy, like: Evidence | None = None, files: bool = False
) -> Evidence:
    """What is known of a version, from the run that made it or, to compare it `like` another, from one that evaluated
    it on the same data in the same way, where there is one (the trainer makes it). `files`: look at them too."""
    run = _run(client, version, like)
    tables: dict[str, pd.DataFrame] = {}
    if run is not None:
        names = [policy.primary.metric, *(guard.metric for guard in policy.guards)]
        for path in {found.table for name in names if (found := metrics.parse(name)) is not None}:
            if (table := _table(client, run.info.run_id, path)) is not None:
                tables[path] = table
    tags = run.data.tags if run is not None else {}
    return Evidence(
        model=version.name,
        version=str(version.version),
        run_id=run.info.run_id if run is not None else "",
        **{name: tags.get(name) for name in GROUND},
        metrics=dict(run.data.metrics) if run is not None else {},
        tables=tables,
        base_model=version.tags.get("base_model"),
        validation=version.tags.get("validation_status"),
        signature=artifacts.signature(version) if policy.safety.signature else None,
        files=artifacts.look(version) if files and (policy.safety.manifest or policy.safety.no_pickle) else {},
    )


def _run(client: MlflowClient, version: ModelVersion, like: Evidence | None) -> Run | None:
    """The run to take figures from: its own, else the newest that evaluated it and fits."""
    own = client.get_run(version.run_id) if version.run_id else None  # None: registered by hand
    wanted = {name: getattr(like, name) for name in GROUND} if like is not None and like.dataset_digest else {}
    if own is not None and own.data.tags.get("dataset_digest") and wanted.items() <= own.data.tags.items():
        return own
    experiments = (
        [own.info.experiment_id] if own is not None else [e.experiment_id for e in client.search_experiments()]
    )
    terms = [f"tags.evaluates = '{version.name}/{version.version}'", "attributes.status = 'FINISHED'"]
    terms += [f"tags.{name} = '{value}'" for name, value in wanted.items() if value is not None]
    found = client.search_runs(experiments, " and ".join(terms), order_by=["attributes.start_time DESC"], max_results=1)
    return found[0] if found else own


def _table(client: MlflowClient, run_id: str, path: str) -> pd.DataFrame | None:
    """An evaluation table of a run; None where it has none. Raises MlflowException where the store is in trouble."""
    if path not in (item.path for item in client.list_artifacts(run_id, path.rpartition("/")[0])):
        return None
    with tempfile.TemporaryDirectory() as temporary:
        return pd.read_parquet(client.download_artifacts(run_id, path, temporary))
