"""Reading the registry: versions and their aliases, the incumbent, the candidates, the best of them."""

import logging
import math
import os
import re
from collections.abc import Iterator, Sequence

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from promoter.errors import InputError, Unreachable
from promoter.evidence import GROUND
from promoter.policy import Direction

STAGING, PRODUCTION, PREVIOUS = "staging", "production", "previous"
AT_ONCE = 500  # runs or versions of one request


def connect(uri: str) -> MlflowClient:
    """A client of the tracking server. Raises InputError for what is no address, Unreachable where none answers."""
    if not re.match(r"(https?|file|sqlite|postgresql\+psycopg2)://?", uri):
        raise InputError(f"--tracking-uri is '{uri}'. Expected a URL such as http://127.0.0.1:5000.")
    if uri.startswith("http"):
        try:
            requests.get(f"{uri.rstrip('/')}/health", timeout=5).raise_for_status()
        except requests.RequestException as error:
            raise Unreachable(
                f"No tracking server at {uri} ({type(error).__name__}). Start it with `make start-mlflow`, or name "
                "another with --tracking-uri or MLFLOW_TRACKING_URI."
            ) from error
    mlflow.set_tracking_uri(uri)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    return MlflowClient()


def aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """Version number by alias. Raises InputError for an unknown model."""
    try:
        found = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        known = ", ".join(model.name for model in client.search_registered_models(max_results=20)) or "none yet"
        raise InputError(f"There is no registered model '{name}'. Registered: {known}.") from error
    return {alias: str(number) for alias, number in found.items()}


def versions(client: MlflowClient, name: str, filter_string: str = "", limit: int | None = None) -> list[ModelVersion]:
    """Versions of a registered model with their aliases, newest first; all, or the newest that pass a filter.

    Raises InputError for an unknown model, and for a filter that MLflow does not take.
    """
    by_alias = aliases(client, name)
    found: list[ModelVersion] = []
    token = None
    while limit is None or len(found) < limit:
        try:
            page = client.search_model_versions(
                f"name = '{name}'" + (f" and {filter_string}" if filter_string else ""),
                order_by=["version_number DESC"],
                max_results=min(AT_ONCE, limit or AT_ONCE),
                page_token=token,
            )
        except MlflowException as error:
            if filter_string and error.error_code == "INVALID_PARAMETER_VALUE":
                raise InputError(
                    f"--filter is '{filter_string}', which MLflow does not take: {error.message}. Expected, for "
                    "example: tags.role = 'candidate'"
                ) from error
            raise
        found += page
        if not (token := page.token):
            break
    for version in found:
        version.aliases = [alias for alias, number in by_alias.items() if number == str(version.version)]
    return found[:limit]


def version(client: MlflowClient, name: str, number: str) -> ModelVersion:
    """The version with a number. Raises InputError where there is none."""
    if re.fullmatch(r"[1-9][0-9]*", number):
        try:
            found = client.get_model_version(name, number)
            found.aliases = [alias for alias, named in aliases(client, name).items() if named == number]
            return found
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
    known = [str(item.version) for item in versions(client, name, limit=20)]
    raise InputError(f"There is no version {number} of {name}. Newest: {', '.join(known) or 'none'}.")


def with_alias(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version that an alias names, if any."""
    number = aliases(client, name).get(alias)
    return version(client, name, number) if number is not None else None


def staged(client: MlflowClient, name: str) -> list[ModelVersion]:
    """The versions with an alias of ours, or a stage other than Archived."""
    found = {str(item.version): item for item in versions(client, name, "tags.stage != 'Archived'")}
    for alias, number in aliases(client, name).items():
        if alias in (STAGING, PRODUCTION, PREVIOUS) and number not in found:
            found[number] = version(client, name, number)
    return list(found.values())


def incumbent_of(client: MlflowClient, candidate: ModelVersion) -> ModelVersion | None:
    """What a candidate has to beat: the version in production, else the base model that it was tuned from."""
    production = with_alias(client, candidate.name, PRODUCTION)
    if production is not None:
        return production if production.version != candidate.version else None
    if not (base_model := candidate.tags.get("base_model")) or candidate.tags.get("role") == "base":
        return None
    # The value goes into no filter: it may hold any character.
    bases = versions(client, candidate.name, "tags.role = 'base'")
    return next((base for base in bases if base.tags.get("base_model") == base_model), None)


def candidates(client: MlflowClient, name: str) -> list[ModelVersion]:
    """The fine-tuned versions that may be promoted by themselves, newest first: neither archived nor in production,
    newer than the one there, and evaluated on the newest one's data.

    Older ones were there when it was chosen; `promote --version` takes them.
    """
    incumbent = aliases(client, name).get(PRODUCTION, "0")
    newer = f"tags.role = 'candidate' and version_number > {incumbent}"
    return comparable([item for item in versions(client, name, newer) if not _was_taken_out(item)])


def _was_taken_out(version: ModelVersion) -> bool:
    """Whether it comes back by hand alone: archived, or in production before. A hand-made alias leaves it no stage."""
    stage = version.tags.get("stage")
    return stage in ("Archived", "Previous") or (stage is None and "replaced_by" in version.tags)


def comparable(among: Sequence[ModelVersion]) -> list[ModelVersion]:
    """Those of some versions that were evaluated on the same data and in the same way as the first that was at all."""
    judged = [item for item in among if item.tags.get("dataset_digest")] or among
    ground = [judged[0].tags.get(key) for key in GROUND] if judged else []
    return [item for item in among if [item.tags.get(key) for key in GROUND] == ground]


def best(client: MlflowClient, among: Sequence[ModelVersion], metric: str, direction: Direction) -> ModelVersion | None:
    """The best of some versions (newest first) by a metric of their runs; of a tie the run that began last.

    Where no run has logged it, the newest: the gate says what it lacks. None of none. The server sorts: a request for
    every 500 versions, and one run in each answer.
    """
    ascending = direction == "lower_is_better"
    order = [f"metrics.`{metric}` {'ASC' if ascending else 'DESC'}", "attributes.start_time DESC"]
    first = [page[0] for page in _runs(client, among, order, 1) if page]
    judged = [run for run in first if math.isfinite(run.data.metrics.get(metric, math.nan))]
    if not judged:
        return among[0] if among else None
    sign = 1 if ascending else -1
    run = min(judged, key=lambda run: (sign * run.data.metrics[metric], -run.info.start_time))
    return next(item for item in among if item.run_id == run.info.run_id)


def runs_of(client: MlflowClient, among: Sequence[ModelVersion]) -> dict[str, Run]:
    """The runs that made some versions, by id: a request for every 500, not for each."""
    return {run.info.run_id: run for page in _runs(client, among, [], AT_ONCE) for run in page}


def _runs(client: MlflowClient, among: Sequence[ModelVersion], order: list[str], limit: int) -> Iterator[list[Run]]:
    ids = [str(item.run_id) for item in among if item.run_id]
    experiments = [experiment.experiment_id for experiment in client.search_experiments()] if ids else []
    for start in range(0, len(ids), AT_ONCE):
        listed = ", ".join(f"'{run_id}'" for run_id in ids[start : start + AT_ONCE])
        yield client.search_runs(experiments, f"attributes.run_id IN ({listed})", order_by=order, max_results=limit)
