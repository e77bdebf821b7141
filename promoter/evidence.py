"""Fetches the evidence on a version from the tracking server; the gate decides on it."""

import pandas as pd
import pyarrow as pa
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from contract import metrics, names
from contract.names import GROUND
from contract.tracking import read_table
from promoter import artifacts
from promoter.gate import Evidence
from promoter.policy import Policy


def fetch(
    client: MlflowClient, version: ModelVersion, policy: Policy, like: Evidence | None = None, files: bool = False
) -> Evidence:
    """What is known of a version, from the run that made it or, to compare it `like` another, from one that evaluated
    it on the same data in the same way, where there is one (the trainer makes it). `files`: look at them too."""
    run = _run(client, version, like)
    tables: dict[str, pd.DataFrame] = {}
    unreadable: dict[str, str] = {}
    if run is not None:
        compared = [policy.primary.metric, *(guard.metric for guard in policy.guards)]
        for path in {found.table for name in compared if (found := metrics.parse(name)) is not None}:
            table = _table(client, run.info.run_id, path)
            if isinstance(table, str):
                unreadable[path] = table
            elif table is not None:
                tables[path] = table
    tags = run.data.tags if run is not None else {}
    return Evidence(
        model=version.name,
        version=str(version.version),
        run_id=run.info.run_id if run is not None else "",
        **{name: tags.get(name) for name in GROUND},
        metrics=dict(run.data.metrics) if run is not None else {},
        tables=tables,
        unreadable=unreadable,
        base_model=version.tags.get(names.BASE_MODEL),
        validation=version.tags.get(names.VALIDATION),
        signature=artifacts.signature(version) if policy.safety.signature else None,
        files=artifacts.look(version) if files and (policy.safety.manifest or policy.safety.no_pickle) else {},
    )


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


def _table(client: MlflowClient, run_id: str, path: str) -> pd.DataFrame | str | None:
    """An evaluation table of a run; None where it has none, and where it is broken, how."""
    if path not in (item.path for item in client.list_artifacts(run_id, path.rpartition("/")[0])):
        return None
    try:
        return read_table(client, run_id, path)
    except MlflowException:  # trouble with the tracking server, and not with the table
        raise
    except (pa.ArrowException, ValueError, OSError) as error:
        return str(error)
