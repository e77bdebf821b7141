"""Reading the registry: versions and their aliases, the incumbent, the candidates, the best of them."""

import math
import re
from collections.abc import Iterator, Sequence

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from contract import names, tracking
from contract.errors import InputError
from contract.metrics import Direction
from contract.names import ARCHIVED, PREVIOUS, PRODUCTION, STAGING

AT_ONCE = 500  # runs or versions of one request


def connect(uri: str) -> MlflowClient:
    """A client of the tracking server. Raises InputError for what is not a URL, Unreachable where no server answers."""
    return tracking.connect(uri, "--tracking-uri", "--tracking-uri")


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
    found = {str(item.version): item for item in versions(client, name, f"tags.{names.STAGE} != '{ARCHIVED}'")}
    for alias, number in aliases(client, name).items():
        if alias in (STAGING, PRODUCTION, PREVIOUS) and number not in found:
            found[number] = version(client, name, number)
    return list(found.values())


def incumbent_of(client: MlflowClient, candidate: ModelVersion) -> ModelVersion | None:
    """What a candidate has to beat: the version in production, else the base model that it was tuned from."""
    production = with_alias(client, candidate.name, PRODUCTION)
    if production is not None:
        return production if production.version != candidate.version else None
    if not (base_model := candidate.tags.get(names.BASE_MODEL)) or candidate.tags.get(names.ROLE) == names.BASE:
        return None
    # The value goes into no filter: it may hold any character.
    bases = versions(client, candidate.name, f"tags.{names.ROLE} = '{names.BASE}'")
    return next((base for base in bases if base.tags.get(names.BASE_MODEL) == base_model), None)


def candidates(client: MlflowClient, name: str) -> list[ModelVersion]:
    """The fine-tuned versions that may be promoted by themselves, newest first: neither archived nor in production,
    newer than the one there, and evaluated on the newest one's data.

    Older ones were there when it was chosen; `promote --version` takes them.
    """
    incumbent = aliases(client, name).get(PRODUCTION, "0")
    newer = f"tags.{names.ROLE} = '{names.CANDIDATE}' and version_number > {incumbent}"
    return comparable([item for item in versions(client, name, newer) if not _was_taken_out(item)])


def _was_taken_out(version: ModelVersion) -> bool:
    """Whether it comes back by hand alone: archived, or in production before. A hand-made alias leaves it no stage."""
    stage = version.tags.get(names.STAGE)
    return stage in (ARCHIVED, names.STAGES[PREVIOUS]) or (stage is None and names.REPLACED_BY in version.tags)


def comparable(among: Sequence[ModelVersion]) -> list[ModelVersion]:
    """Those of some versions that were evaluated on the same data and in the same way as the first that was at all."""
    keys = [names.evaluation_key(item.tags) for item in among]
    first = next((key for key in keys if key is not None), None)
    return [item for item, key in zip(among, keys, strict=True) if key == first]


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
