"""What runs in MLflow's workers where TRACKING_AUTH is on: its `authorization_function`, with rules of our own.

To MLflow a user who may add a version to a registered model may also move the model's aliases, and so could put a model
into production past the gate; and tracking reads, with its own role, whatever place in S3 a version names as its own.
Those whom TRACKING_ALIAS_USERS names may do all that MLflow lets them; others may not what RULES refuses.
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from contract.names import MANIFEST_SHA256
from services.tracking.access import USERS

if TYPE_CHECKING:
    from flask import Response
    from werkzeug.datastructures import Authorization

SOURCES = ("mlflow-artifacts:", "runs:", "models:")  # those whose owner MLflow looks up


def authenticate() -> "Authorization | Response":
    """Who asks, by user name and password, or the response that refuses. MLflow calls this for every request."""
    from flask import Response, jsonify, make_response, request
    from mlflow.server.auth import authenticate_request_basic_auth, make_basic_auth_response

    if request.authorization is not None and request.authorization.type != "basic":
        return make_basic_auth_response()  # MLflow would look for a user's name in a bearer token, and answer 500
    found = authenticate_request_basic_auth()
    if isinstance(found, Response):
        return found
    allowed = [name.strip() for name in os.environ.get(USERS, "").split(",")]
    if found.username in allowed or not (deed := refused(request.method, request.path)):
        return found
    return make_response(
        jsonify(
            error_code="PERMISSION_DENIED",
            message=f"User {found.username!r} may not {deed}. It could change what serves past the gate, or reach what "
            f"is others'. Expected one of {', '.join(allowed)} (TRACKING_ALIAS_USERS); to promote, use the promoter.",
        ),
        403,
    )


def refused(method: str, path: str) -> str | None:
    """What this request does that only TRACKING_ALIAS_USERS may do; None where it is open to others."""
    rule = RULES.get((method, path.rstrip("/").rpartition("/mlflow/")[2]))
    return rule() if rule else None


def _alias() -> str:
    return "move an alias"


def _registered_model() -> str:
    return "delete or rename a registered model, whose aliases would go along"


def _version_with_alias() -> str | None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.model_registry_pb2 import DeleteModelVersion
    from mlflow.server.handlers import _get_model_registry_store

    message = _asked(DeleteModelVersion())
    try:
        store: Any = _get_model_registry_store()
        aliases = store.get_model_version(message.name, message.version).aliases
    except MlflowException:  # there is none: MLflow says so
        return None
    return f"delete a version that has the alias {', '.join(aliases)}" if aliases else None


def _tag() -> str | None:
    from mlflow.protos.model_registry_pb2 import SetModelVersionTag

    # A request that deletes a tag has the same fields.
    return f"change a version's tag {MANIFEST_SHA256}" if _asked(SetModelVersionTag()).key == MANIFEST_SHA256 else None


def _source() -> str | None:
    from mlflow.protos.model_registry_pb2 import CreateModelVersion

    source = _asked(CreateModelVersion()).source
    return (
        None if source.startswith(SOURCES) else f"make a version of {source!r}, which is none of {', '.join(SOURCES)}"
    )


def _location() -> str | None:
    from mlflow.protos.service_pb2 import CreateExperiment

    return "say where an experiment's artifacts lie" if _asked(CreateExperiment()).artifact_location else None


def _asked(message: Any) -> Any:
    """The request's body, read exactly as MLflow's handler will read it."""
    from mlflow.server import handlers

    read: Any = handlers._get_request_message
    return read(message)


RULES: dict[tuple[str, str], Callable[[], str | None]] = {
    ("POST", "registered-models/alias"): _alias,
    ("DELETE", "registered-models/alias"): _alias,
    ("DELETE", "registered-models/delete"): _registered_model,
    ("POST", "registered-models/rename"): _registered_model,
    ("DELETE", "model-versions/delete"): _version_with_alias,
    ("POST", "model-versions/set-tag"): _tag,
    ("DELETE", "model-versions/delete-tag"): _tag,
    ("POST", "model-versions/create"): _source,
    ("POST", "experiments/create"): _location,
}


def _sign_owner_into_urls() -> None:
    """Have the bucket's expected owner in the URLs that parts are uploaded to, as MLflow has it in those to download.

    Left alone boto3 signs it as a header, of which the client that uploads is told nothing: S3 would refuse each part.
    """
    import boto3
    from mlflow.store.artifact.s3_artifact_repo import _hoist_expected_bucket_owner

    boto3.setup_default_session()
    for operation in ("UploadPart", "PutObject"):
        boto3.DEFAULT_SESSION.events.register(f"before-sign.s3.{operation}", _hoist_expected_bucket_owner)


_sign_owner_into_urls()  # here, since MLflow imports this module in each worker, before it answers anybody
