"""Reading the registry: versions and their aliases, the incumbent, the candidates, the best of them."""

import math
import os
import re
from collections.abc import Iterator, Sequence

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from contract import names, tracking
from contract.errors import InputError, RatchetError, shortened
from contract.metrics import Direction
from contract.names import ARCHIVED, PREVIOUS, PRODUCTION, STAGING
from promoter.ledger import Judged

AT_ONCE = 500  # runs or versions of one request
INFINITY = "1.7e308"  # MLflow stores ±inf as ±1.8e308; as its filters spell numbers


def connect(uri: str) -> MlflowClient:
    """A client of the tracking server. Raises InputError for what is not a URL, Unreachable where no server answers."""
    os.environ.setdefault(tracking.RETRIES, "3")  # MLflow's seven, each after twice as long a pause, take minutes
    return tracking.connect(uri, "--tracking-uri", "--tracking-uri")


def aliases(client: MlflowClient, name: str) -> dict[str, str]:
    """Version number by alias. Raises InputError for an unknown model."""
    try:
        found = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = [shortened(model.name) for model in client.search_registered_models(max_results=20)]
        known = ", ".join(name if name.isprintable() else repr(name) for name in names) or "none yet"
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
    """The version with a number. Raises InputError if it does not exist."""
    if re.fullmatch(r"[1-9][0-9]{0,8}", number):
        try:
            found = client.get_model_version(name, number)
            found.aliases = [alias for alias, named in aliases(client, name).items() if named == number]
            return found
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
    known = [str(item.version) for item in versions(client, name, limit=20)]
    raise InputError(f"There is no version '{number}' of {name}. Newest: {', '.join(known) or 'none'}.")


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


class Frozen(RatchetError):
    """Nothing is promoted at present, by somebody's decision."""


def frozen_by(client: MlflowClient, name: str) -> str | None:
    """The run of the record by which a model was frozen; None where it is not."""
    found: str | None = client.get_registered_model(name).tags.get(names.FROZEN)
    return found


def refuse_frozen(client: MlflowClient, name: str) -> None:
    """Raise Frozen for a model that is."""
    if (run_id := frozen_by(client, name)) is None:
        return
    try:
        tags = client.get_run(run_id).data.tags
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        tags = {}
    by = f" by {tags['by']} ({tags['why']}, {tags['decided_at']})" if "decided_at" in tags else ""
    raise Frozen(
        f"{name} is frozen{by}: no version goes to Staging or Production. `promoter unfreeze --reason …` ends that; "
        "`promoter rollback` goes on working."
    )


class NothingToCompare(InputError):
    """There was an incumbent, and it is gone."""


def incumbent_of(client: MlflowClient, candidate: ModelVersion) -> ModelVersion | None:
    """What a candidate has to beat: the version in production, else the one that was there last, else its base model.

    So production that somebody has emptied by hand is no way round the gate.
    """
    number = last_production(client, candidate.name)
    gone = client.get_registered_model(candidate.name).tags.get(names.LAST_PRODUCTION)
    if number is None and gone is not None:
        raise NothingToCompare(
            f"Version {gone} of {candidate.name} was in production last, and is deleted: nobody can say whether "
            f"version {candidate.version} is better. `promoter promote --stage Production --version "
            f"{candidate.version} --force --reason …` puts it there all the same."
        )
    if number == str(candidate.version) and PRODUCTION in candidate.aliases:
        return None
    if number is not None and number != str(candidate.version):
        return version(client, candidate.name, number)
    if not (base_model := candidate.tags.get(names.BASE_MODEL)) or candidate.tags.get(names.ROLE) == names.BASE:
        return None
    # The value goes into no filter: it may hold any character.
    bases = versions(client, candidate.name, f"tags.{names.ROLE} = '{names.BASE}'")
    return next((base for base in bases if base.tags.get(names.BASE_MODEL) == base_model), None)


def last_production(client: MlflowClient, name: str) -> str | None:
    """The number of the version in production; where it is empty, of the one that was there last and still exists."""
    model = client.get_registered_model(name)
    found = {alias: str(number) for alias, number in model.aliases.items()}
    if PRODUCTION in found:
        return found[PRODUCTION]
    for number in (model.tags.get(names.LAST_PRODUCTION), found.get(PREVIOUS)):
        if number is not None and _exists(client, name, number):
            return number
    return None


def _exists(client: MlflowClient, name: str, number: str) -> bool:
    try:
        client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return False
    return True


def judged_since(client: MlflowClient, incumbent: ModelVersion, candidate: ModelVersion, digest: str) -> Judged:
    """What was judged on some data since the incumbent came, whether or not it is still there.

    Versions newer than the incumbent, those that were deleted among them; runs that have judged, deleted ones too.
    Where the candidate is an older one, it was chosen from all that there are.
    """
    since, first = incumbent.creation_timestamp or 0, int(incumbent.version)
    if int(candidate.version) < first:
        since, first = 0, 0
    there = versions(client, candidate.name, f"version_number > {first}")
    known = [item for item in there if item.version != incumbent.version and item.tags.get(names.ROLE) != names.BASE]
    on_these = {str(item.version) for item in known if item.tags.get(names.DATASET_DIGEST) == digest}
    on_these |= {str(candidate.version)}
    runs = _runs_that_judged(client, candidate, digest)
    prefix = f"{candidate.name}/"
    on_these |= {
        run.data.tags[names.EVALUATES].removeprefix(prefix)
        for run in runs
        if run.data.tags.get(names.EVALUATES, "").startswith(prefix)
    } - {str(incumbent.version)}
    numbers = {int(item.version) for item in there}
    deleted = set(range(first + 1, max(numbers, default=first))) - numbers  # on what, nobody knows any more
    trained = [
        run
        for run in runs
        if run.data.tags.get(names.ROLE) == names.CANDIDATE
        and run.info.start_time >= since
        and run.info.run_id != incumbent.run_id
    ]
    return Judged(frozenset(on_these), frozenset(map(str, deleted)), len({run.info.run_id for run in trained}))


def _runs_that_judged(client: MlflowClient, candidate: ModelVersion, digest: str) -> list[Run]:
    """Runs with an evaluation on these data, in the experiment of the candidate's run; deleted ones too."""
    if not candidate.run_id:
        return []
    experiment = client.get_run(candidate.run_id).info.experiment_id
    if "'" in digest:
        return []
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs(
            [experiment],
            f"tags.{names.DATASET_DIGEST} = '{digest}'",
            run_view_type=ViewType.ALL,
            max_results=1000,
            page_token=token,
        )
        found += page
        if not (token := page.token):
            return found


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
    finite = f" and metrics.`{metric}` < {INFINITY} and metrics.`{metric}` > -{INFINITY}"
    first = [page[0] for page in _runs(client, among, order, 1, finite) if page]
    judged = [run for run in first if math.isfinite(run.data.metrics.get(metric, math.nan))]
    if not judged:
        return among[0] if among else None
    sign = 1 if ascending else -1
    run = min(judged, key=lambda run: (sign * run.data.metrics[metric], -run.info.start_time))
    return next(item for item in among if item.run_id == run.info.run_id)


def runs_of(client: MlflowClient, among: Sequence[ModelVersion]) -> dict[str, Run]:
    """The runs that made some versions, by id: a request for every 500, not for each."""
    return {run.info.run_id: run for page in _runs(client, among, [], AT_ONCE) for run in page}


def _runs(
    client: MlflowClient, among: Sequence[ModelVersion], order: list[str], limit: int, terms: str = ""
) -> Iterator[list[Run]]:
    ids = [str(item.run_id) for item in among if item.run_id]
    experiments = [experiment.experiment_id for experiment in client.search_experiments()] if ids else []
    for start in range(0, len(ids), AT_ONCE):
        listed = ", ".join(f"'{run_id}'" for run_id in ids[start : start + AT_ONCE])
        yield client.search_runs(
            experiments, f"attributes.run_id IN ({listed}){terms}", order_by=order, max_results=limit
        )
