"""`trainer evaluate`: any registered version, judged on any data set, as a run that the promoter takes as evidence."""

import re
import tempfile
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from trainer import checkpoints, job, tracking
from trainer.config import Config, to_yaml, with_source
from trainer.data.logged import log_dataset
from trainer.errors import InputError
from trainer.evaluation import runs
from trainer.evaluation.runs import EVALUATES, Evaluation
from trainer.liveness import mark_dead
from trainer.tracking import say

# Besides `eval`, what decides on the examples that a run was judged by, and on how they were read and judged.
ALSO_AS_IN_RUN = ("seed", "model.dtype", "data.redact_secrets", "data.near_duplicate_threshold")


def evaluate_version(config: Config, model_uri: str, again: bool) -> dict[str, float]:
    """Judge the version on the configured data, and return the metrics. Raises InputError.

    Where a run has done just that before, its metrics are returned, unless it shall be done `again`.
    """
    job.quiet()
    client = tracking.connect(config.tracking.uri)
    version = find_version(client, model_uri)
    name = f"{version.name} version {version.version}"
    say(f"Loading {name}")
    try:
        model, tokenizer = runs.load_version(version, config.model.device, config.model.dtype)
    except (MlflowException, AttributeError) as error:
        raise InputError(
            f"--model-uri is '{model_uri}', which does not load as a model of ours: {error}. "
            f"Expected a version of {config.tracking.experiment_name}_model, as `trainer train` registers it."
        ) from error
    if config.data.eval_source is None:
        config = with_source(config)
    with tempfile.TemporaryDirectory(prefix="ratchet-data-") as folder:
        positions = getattr(model.config, "max_position_embeddings", None)
        data = job.prepare_data(config, tokenizer, Path(folder), positions)
        evaluation = Evaluation.of(config.eval, config.seed, data.held_out, data.held_out_digest)
        evaluation.check(tokenizer, positions)
        base = version.tags.get("base_model", "unknown")
        tags = evaluation.tags(tracking.EVALUATION, base, str(model.dtype), tokenizer)
        tags[EVALUATES] = f"{version.name}/{version.version}"
        experiment_id = _experiment_of(client, version, config)
        if not again and (earlier := runs.find(client, experiment_id, tags)) is not None:
            return dict(earlier.data.metrics)
        root = checkpoints.root(config)
        mark_dead(client, experiment_id, root)
        with tracking.run(client, experiment_id, f"version-{version.version}-evaluated", tags, root) as active:
            tracking.log_config(config)
            mlflow.log_text(to_yaml(config), "config.yaml")
            log_dataset(data)
            _, metrics = evaluation.run(model, tokenizer, name)
            say(f"Run {active.info.run_name}: {active.info.run_id}")
    return metrics


def settings_of(uri: str, run_id: str) -> list[str]:
    """How a run judged, as overrides: who judges the same examples in the same way can be compared with it."""
    client = tracking.connect(uri)
    try:
        params = client.get_run(run_id).data.params
    except MlflowException as error:
        raise InputError(f"--data is 'runs:/{run_id}', which is no run: {error.message}") from error
    return [
        f"{key}={'null' if value == 'None' else value}"
        for key, value in params.items()
        if key.startswith("eval.") or key in ALSO_AS_IN_RUN
    ]


def _experiment_of(client: MlflowClient, version: ModelVersion, config: Config) -> str:
    """The experiment of the run that made the version: there the promoter looks for evidence."""
    if version.run_id:
        experiment_id = client.get_run(version.run_id).info.experiment_id
        return str(mlflow.set_experiment(experiment_id=experiment_id).experiment_id)
    return str(mlflow.set_experiment(config.tracking.experiment_name).experiment_id)


def find_version(client: MlflowClient, uri: str) -> ModelVersion:
    """The version that models:/NAME/NUMBER or models:/NAME@ALIAS names. Raises InputError where there is none."""
    match = re.fullmatch(r"models:/([^/@'\"]+)(?:/(\d+)|@([\w-]+))", uri)
    if match is None:
        raise InputError(f"--model-uri is '{uri}'. Expected models:/NAME/NUMBER or models:/NAME@ALIAS.")
    name, number, alias = match.groups()
    try:
        if number is not None:
            return client.get_model_version(name, number)
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise InputError(f"--model-uri is '{uri}', which does not exist. Expected {_known(client, name)}.") from error


def _known(client: MlflowClient, name: str) -> str:
    versions: list[Any] = list(client.search_model_versions(f"name = '{name}'"))
    if versions:
        return f"one of the versions {', '.join(str(version.version) for version in versions[:20])} of {name}"
    models = ", ".join(model.name for model in client.search_registered_models(max_results=20)) or "none yet"
    return f"a registered model ({models})"
