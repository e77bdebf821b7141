"""`trainer evaluate`: any registered version, judged on any data set, as a run that the promoter takes as evidence."""

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from contract import names
from contract.errors import InputError
from contract.monitoring import SOURCES
from contract.names import EVALUATES, pyfunc_model
from contract.redaction import redact
from trainer import base_model, tracking
from trainer.config import Config, load_config, to_yaml, with_source
from trainer.data.changes import Changes, changes
from trainer.data.logged import log_dataset
from trainer.data.pathspec import Selection
from trainer.data.prepare import source_names
from trainer.data.sources import folders, open_source
from trainer.evaluation import runs
from trainer.evaluation.runs import Evaluation
from trainer.evaluation.version_process import VersionProcess, open_version
from trainer.preparation import prepare_data
from trainer.tracking import say
from trainer.training import checkpoints
from trainer.training.liveness import mark_dead

# Besides `eval`, what decides on the examples that a run was judged by, and on how they were read and judged.
ALSO_AS_IN_RUN = ("seed", "model.dtype", "data.redact_secrets", "data.near_duplicate_threshold")


def evaluate_version(config: Config, model_uri: str, again: bool) -> dict[str, float]:
    """Judge the version on the configured data, and return the metrics. Raises InputError.

    Where a run has done just that before, its metrics are returned, unless it shall be done `again`.
    """
    if config.data.eval_source is None:
        config = with_source(config)
    base_model.quiet()
    client = tracking.connect(config.tracking.uri)
    version = find_version(client, model_uri)
    name = f"{version.name} version {version.version}"
    for source in source_names(config.data.eval_source) or source_names(config.data.source):
        open_source(source, "data.eval_source" if config.data.eval_source is not None else "data.source")  # it is there
    say(f"Loading {name}")
    with (
        tempfile.TemporaryDirectory(prefix="ratchet-data-") as folder,
        _loaded(version, model_uri, config) as model,
    ):
        data = prepare_data(config, model.tokenizer, Path(folder), model.positions)
        evaluation = Evaluation.of(config.eval, config.seed, data.held_out, data.held_out_digest)
        evaluation.check(model.tokenizer, model.positions)
        base = version.tags.get(names.BASE_MODEL, "unknown")
        tags = evaluation.tags(names.EVALUATION, base, model.dtype, model.tokenizer)
        tags |= {EVALUATES: f"{version.name}/{version.version}", **runs.manifest_tag(version)}
        experiment_id = _experiment_of(client, version, config)
        if not again and (earlier := runs.find(client, experiment_id, tags)) is not None:
            return dict(earlier.data.metrics)
        root = checkpoints.root(config)
        mark_dead(client, experiment_id, root)
        with tracking.run(client, experiment_id, f"version-{version.version}-evaluated", tags, root) as active:
            tracking.log_config(config)
            mlflow.log_text(redact(to_yaml(config)), "config.yaml")
            log_dataset(data)
            metrics = evaluation.run(model, name).metrics
            say(f"Run {active.info.run_name}: {active.info.run_id}")
    return metrics


def changes_of(config: Config, model_uri: str | None, since: str | None) -> list[Changes]:
    """How far the sources of a version, or the configured ones, have moved since. Raises InputError."""
    if model_uri is None:
        assert since is not None
        selection = Selection.of(config.data.include, config.data.exclude)
        return [
            changes(name, since, "data.source", selection) for name in source_names(with_source(config).data.source)
        ]
    client = tracking.connect(config.tracking.uri)
    version = find_version(client, model_uri)
    said = f"--model-uri is '{model_uri}', version {version.version},"
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(client.download_artifacts(version.run_id or "", SOURCES, folder))
            sources: list[dict[str, str | None]] = json.loads(path.read_text(encoding="utf-8"))
    except (MlflowException, OSError, ValueError) as error:
        raise InputError(
            f"{said} whose run does not say what it was trained on ({SOURCES}). Expected one that Ratchet 0.2 trained."
        ) from error
    known = [(item["source"], item["commit"]) for item in sources]
    if version.tags.get(names.ROLE) == names.BASE or not known:
        raise InputError(f"{said} which was not trained here. Expected a fine-tuned version.")
    params = client.get_run(str(version.run_id)).data.params
    chosen = [f"{key}={params[key]}" for key in ("data.include", "data.exclude") if params.get(key, "None") != "None"]
    data = load_config(None, chosen).data
    selection = Selection.of(data.include, data.exclude)
    if not (compared := [(source, commit) for source, commit in known if commit is not None]):
        raise InputError(
            f"{said} which was trained on '{known[0][0]}', where git knew no commit. Expected sources in a git work "
            "tree, or git:PATH[@REVISION]."
        )
    for source, commit in known:
        if commit is None:
            say(f"Left out: {source}, of which git knew no commit")
    return [changes(folders.current(str(source)), str(commit), "data.source", selection) for source, commit in compared]


@contextmanager
def _loaded(version: ModelVersion, model_uri: str, config: Config) -> Iterator[VersionProcess]:
    """The version in its own process. Raises InputError where it does not load."""
    with ExitStack() as opened:
        try:
            model = opened.enter_context(open_version(version, config.model.device, config.model.dtype))
        except InputError as error:
            raise InputError(
                f"--model-uri is '{model_uri}'. {error.message} Expected a version of "
                f"{pyfunc_model(config.tracking.experiment_name)}, as `trainer train` registers it."
            ) from error
        yield model


def settings_of(uri: str, run_id: str) -> list[str]:
    """How a run judged, as overrides: who judges the same examples in the same way can be compared with it."""
    client = tracking.connect(uri)
    try:
        params = client.get_run(run_id).data.params
    except MlflowException as error:
        raise InputError(f"--data is 'runs:/{run_id}', which is no run: {error.message}") from error
    as_before = {"eval.max_generated": "None"}  # Ratchet 0.1.0 completed all
    return [
        f"{key}={'null' if value == 'None' else value}"
        for key, value in (as_before | params).items()
        if key.startswith("eval.") or key in ALSO_AS_IN_RUN
    ]


def _experiment_of(client: MlflowClient, version: ModelVersion, config: Config) -> str:
    """The experiment of the run that made the version: there the promoter looks for evidence."""
    if version.run_id:
        experiment_id = client.get_run(version.run_id).info.experiment_id
        return str(mlflow.set_experiment(experiment_id=experiment_id).experiment_id)
    return str(mlflow.set_experiment(config.tracking.experiment_name).experiment_id)


def find_version(client: MlflowClient, uri: str) -> ModelVersion:
    """The version that models:/NAME/NUMBER or models:/NAME@ALIAS names. Raises InputError if it does not exist."""
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
