"""Reading the tracking server: versions, aliases, and the evidence on a version."""

import logging
import os
import re

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from promoter.errors import InputError
from promoter.gate import Evidence, Policy

STAGING, PRODUCTION, PREVIOUS = "staging", "production", "previous"


def connect(uri: str) -> MlflowClient:
    """A client of the tracking server. Raises InputError, within seconds, where none answers."""
    if not re.match(r"(https?|file|sqlite|postgresql\+psycopg2)://?", uri):
        raise InputError(f"--tracking-uri is '{uri}'. Expected a URL such as http://127.0.0.1:5000.")
    if uri.startswith("http"):
        try:
            requests.get(f"{uri.rstrip('/')}/health", timeout=5).raise_for_status()
        except requests.RequestException as error:
            raise InputError(
                f"No tracking server at {uri} ({type(error).__name__}). Start it with `make start-mlflow`, or name "
                "another with --tracking-uri or MLFLOW_TRACKING_URI."
            ) from error
    mlflow.set_tracking_uri(uri)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    return MlflowClient()


def list_versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    """All versions of a registered model with their aliases, newest first. Raises InputError for an unknown model."""
    try:
        aliases = client.get_registered_model(name).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        known = ", ".join(model.name for model in client.search_registered_models(max_results=20)) or "none yet"
        raise InputError(f"There is no registered model '{name}'. Registered: {known}.") from error
    found: list[ModelVersion] = []
    token = None
    while page := client.search_model_versions(f"name = '{name}'", page_token=token):
        found += page
        if not (token := page.token):
            break
    for version in found:
        version.aliases = [alias for alias, number in aliases.items() if str(number) == str(version.version)]
    return sorted(found, key=lambda version: int(version.version), reverse=True)


def find_version(versions: list[ModelVersion], number: str) -> ModelVersion:
    """The version with a number. Raises InputError where there is none."""
    for version in versions:
        if str(version.version) == number:
            return version
    known = ", ".join(str(version.version) for version in versions) or "none"
    raise InputError(f"There is no version {number}. Expected one of: {known}.")


def with_alias(versions: list[ModelVersion], alias: str) -> ModelVersion | None:
    """The version that an alias names, if any."""
    return next((version for version in versions if alias in version.aliases), None)


def evidence(client: MlflowClient, version: ModelVersion, like: Evidence | None = None) -> Evidence:
    """What is known of a version: from the run that made it, or, to compare it `like` another, from a run
    that evaluated it on the same data in the same way, where there is one (the trainer makes it)."""
    if not version.run_id:  # registered by hand
        return Evidence(str(version.version), run_id="", dataset_digest=None, eval_settings=None)
    own = client.get_run(version.run_id)
    found = _as_evidence(version, own)
    if like is None or (found.dataset_digest, found.eval_settings) == (like.dataset_digest, like.eval_settings):
        return found
    runs = client.search_runs(
        [own.info.experiment_id],
        f"tags.evaluates = '{version.name}/{version.version}' and tags.dataset_digest = '{like.dataset_digest}' "
        f"and tags.eval_settings = '{like.eval_settings}' and attributes.status = 'FINISHED'",
        max_results=1,
    )
    return _as_evidence(version, runs[0]) if runs else found


def _as_evidence(version: ModelVersion, run: Run) -> Evidence:
    return Evidence(
        version=str(version.version),
        run_id=run.info.run_id,
        dataset_digest=run.data.tags.get("dataset_digest"),
        eval_settings=run.data.tags.get("eval_settings"),
        metrics=dict(run.data.metrics),
        validation=version.tags.get("validation_status"),
    )


def incumbent_of(versions: list[ModelVersion], candidate: ModelVersion) -> ModelVersion | None:
    """What a candidate has to beat: the version in production, else the base model that it was tuned from."""
    production = with_alias(versions, PRODUCTION)
    if production is not None:
        return production if production.version != candidate.version else None
    return next(
        (
            version
            for version in versions
            if version.version != candidate.version
            and version.tags.get("role") == "base"
            and version.tags.get("base_model") == candidate.tags.get("base_model")
        ),
        None,
    )


def open_candidates(versions: list[ModelVersion]) -> list[ModelVersion]:
    """The fine-tuned versions that may still be promoted: neither in production nor archived."""
    return [
        version
        for version in versions
        if version.tags.get("role") != "base"
        and PRODUCTION not in version.aliases
        and version.tags.get("stage") != "Archived"
    ]


def best_of(client: MlflowClient, versions: list[ModelVersion], policy: Policy) -> ModelVersion | None:
    """The best of some versions (newest first) by the policy's metric; None of none.

    Those evaluated on the same data as the newest compete; the newer wins a tie.
    """
    if not versions:
        return None
    found = [(version, evidence(client, version)) for version in versions]
    newest = found[0][1]
    comparable = [
        (version, item.metrics[policy.metric])
        for version, item in found
        if (item.dataset_digest, item.eval_settings) == (newest.dataset_digest, newest.eval_settings)
        and policy.metric in item.metrics
    ]
    if not comparable:
        return versions[0]  # the gate says what it lacks
    sign = 1 if policy.direction == "lower_is_better" else -1
    return min(comparable, key=lambda item: (sign * item[1], -int(item[0].version)))[0]
