"""What runs in MLflow's workers where TRACKING_AUTH is on: its `authorization_function`, with rules of our own.

To MLflow a user who may add a version to a registered model may also move its aliases, write every tag and grant
rights, and one who may log to an experiment may change each run in it. So a user has a role here, and may do what
services.tracking.rights lists for it; everything else is refused, and what is left MLflow's permissions decide.
"""

import math
import os
import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from sqlalchemy import event
from sqlalchemy.engine import Engine

from contract import names
from contract.errors import shortened
from services.tracking import logins, rights
from services.tracking.access import ROLES, roles
from services.tracking.rights import If

if TYPE_CHECKING:
    from flask import Response
    from werkzeug.datastructures import Authorization

FILE = re.compile(r"(\d+)/(?:([0-9a-f]{32})|models/([\w-]+)|traces/([\w-]+))/artifacts(?:/.*)?")
TRIES = logins.Throttle()
NOTHING_ELSE = (
    "What each role may do is in services/tracking/rights.py; TRACKING_ROLES gives a user one, an admin may all."
)


def authenticate() -> "Authorization | Response":
    """Who asks, by user name and password, or the response that refuses. MLflow calls this several times a request.

    It is decided once: when MLflow asks again afterwards, what the request has done must not count against it.
    """
    from flask import Response, g, jsonify, make_response, request
    from mlflow.server.auth import make_basic_auth_response, store

    if "ratchet_let_in" in g:
        let_in: Authorization = g.ratchet_let_in
        return let_in
    if request.authorization is not None and request.authorization.type != "basic":
        return make_basic_auth_response()  # MLflow would look for a user's name in a bearer token, and answer 500
    given = request.authorization
    address = str(request.environ.get("REMOTE_ADDR", ""))  # MLflow names none to its native routes
    user, password = str(given and given.username), str(given and given.password)
    if given is not None and (wait := TRIES.take(address, user, password)):
        who, seconds = shortened(repr(user), 60), math.ceil(wait)
        message = f"Too many wrong passwords for {who}, or from this address. Try again in {seconds} s."
        refusal = make_response(jsonify(error_code="REQUEST_LIMIT_EXCEEDED", message=message), 429)
        refusal.headers["Retry-After"] = str(seconds)
        return refusal
    found = _let_in(address, user, password)
    if isinstance(found, Response):
        return found
    if not store.get_user(user).is_admin and (why := refused(role_of(user))):
        message = f"User {user!r} (role {role_of(user)}) may not {why}"
        return make_response(jsonify(error_code="PERMISSION_DENIED", message=message), 403)
    g.ratchet_let_in = found
    return found


def _let_in(address: str, user: str, password: str) -> "Authorization | Response":
    """Who asks, or MLflow's response to a wrong password."""
    from flask import Response, g, request
    from mlflow.server.auth import authenticate_request_basic_auth, store

    if request.authorization is None:
        return authenticate_request_basic_auth()
    try:
        found = authenticate_request_basic_auth()
        # 401 is also what MLflow answers where the database goes away between password and user, and no client repeats
        # that. So ask once more; while the database is away the store raises, which is a 503.
        if isinstance(found, Response) and "ratchet_database_failed" in g and store.authenticate_user(user, password):
            found = authenticate_request_basic_auth()
        if isinstance(found, Response) and not store.has_user(user):
            logins.check_in_vain(password)
    except Exception:
        TRIES.give_back(address, user)
        raise
    if isinstance(found, Response):
        TRIES.was_wrong(user, password)
    else:
        TRIES.was_right(address, user, password)
    return found


def _note_failure(context: Any) -> None:
    """Have a request know that the database failed in it."""
    from flask import g, has_request_context

    if has_request_context():
        g.ratchet_database_failed = True


event.listen(Engine, "handle_error", _note_failure)


def role_of(user: str) -> str:
    """The role of a user, of those in rights.MAY."""
    return roles(os.environ.get(ROLES, "")).get(user, rights.PERSON)


def refused(role: str) -> str | None:
    """What the role may not do of what is asked, and what would be allowed; None where it may."""
    from flask import request

    rule = request.url_rule.rule if request.url_rule is not None else None
    route = rights.name_of(rule) if rule is not None else rights.native(request.path)
    asked = f"{request.method} {route or request.path}"
    if asked not in rights.MAY[role]:
        return f"{asked}. {NOTHING_ELSE}"
    condition = rights.MAY[role][asked]
    if condition is None or (why := CONDITIONS[condition]()) is None:
        return None
    return f"{asked}: {why} Expected {condition.value}. {NOTHING_ELSE}"


# --- what is asked ---


@cache
def _messages() -> dict[tuple[str, str], Any]:
    """The class of the message that MLflow reads from a request, by method and route."""
    from mlflow.server.handlers import get_endpoints

    endpoints: Any = get_endpoints
    return {
        (method, rule): kind
        for rule, kind, methods in endpoints(lambda kind: kind)
        for method in methods
        if hasattr(kind, "DESCRIPTOR")  # a protobuf message; the others are handlers
    }


def _message() -> Any:
    """The request's body, read exactly as MLflow's handler will read it."""
    from flask import request
    from mlflow.server import handlers

    read: Any = handlers._get_request_message
    assert request.url_rule is not None
    return read(_messages()[request.method, request.url_rule.rule]())


def _runs() -> list[str]:
    """The ids of the runs that a request names."""
    from flask import request

    if request.url_rule is not None and (request.method, request.url_rule.rule) not in _messages():
        return request.args.getlist("run_uuid")  # upload-artifact
    message = _message()
    return [found for name in ("run_id", "run_uuid") if (found := getattr(message, name, ""))]


def _tags() -> Iterable[str]:
    """The keys of the tags that a request writes, or takes away."""
    message = _message()
    return [message.key] if hasattr(message, "key") else [tag.key for tag in message.tags]


# --- what is there ---


def _tracking() -> Any:
    from mlflow.server.handlers import _get_tracking_store

    return _get_tracking_store()


def _registry() -> Any:
    from mlflow.server.handlers import _get_model_registry_store

    return _get_model_registry_store()


def _found(look: Callable[..., Any], *which: str) -> Any:
    """What MLflow's store finds; None where there is no such thing, which MLflow's handler will say."""
    from mlflow.exceptions import MlflowException

    try:
        return look(*which)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def _evidence(run_id: str) -> str | None:
    """Why nobody is to change a run; None where one may, or where there is no such run."""
    run = _found(_tracking().get_run, run_id)
    if run is None:
        return None
    versions = _registry().search_model_versions(f"run_id = '{run.info.run_id}'")
    for version in versions:
        if version.aliases or rights.OF_PROMOTER & version.tags.keys():
            return f"version {version.version} of {version.name} was judged by run {run_id}."
    if run.info.status == "FINISHED" and (versions or {names.ROLE, names.EVALUATES} & run.data.tags.keys()):
        return f"run {run_id} is FINISHED, and evidence of what it evaluated. Start a new run."
    return None


def _open_run() -> str | None:
    return next(filter(None, map(_evidence, _runs())), None)


def _open_run_or_base() -> str | None:
    """The trainer notes on the base model's run which version it evaluates, when that is registered: once."""
    if (why := _open_run()) is None:
        return None
    message = _message()
    run = _found(_tracking().get_run, message.run_id)
    if run is None or message.key != names.EVALUATES or run.data.tags.get(names.ROLE) != names.BASE:
        return why
    name, _, number = message.value.rpartition("/")
    version = _found(_registry().get_model_version, name, number)
    wanted = {names.ROLE: names.BASE, names.BASE_MODEL: run.data.tags.get(names.BASE_MODEL)}
    if version is None or not wanted.items() <= dict(version.tags).items():
        return f"{why} {message.value!r} is no version of its base model."
    return why if run.data.tags.get(names.EVALUATES, message.value) != message.value else None


def _file() -> tuple[str, str, str, str] | None:
    """(experiment, run, logged model, trace) that an artifact's path belongs to; None for a path of none of them."""
    from flask import request
    from mlflow.utils import uri

    read: Any = uri.validate_path_is_safe  # as MLflow's handler will
    path = str(read((request.view_args or {})["artifact_path"]))
    match = FILE.fullmatch(path)
    if match is None or {"", "."} & set(path.rstrip("/").split("/")):
        return None
    experiment, run, model, trace = (text or "" for text in match.groups())
    return experiment, run, model, trace


def _open_file() -> str | None:
    from flask import request

    experiment, run_id, model_id, trace_id = _file() or ("", "", "", "")
    if trace_id:
        return None
    look = (_tracking().get_run, run_id) if run_id else (_tracking().get_logged_model, model_id)
    owner = _found(*look) if run_id or model_id else None
    of = None if owner is None else owner.info.experiment_id if run_id else owner.experiment_id
    if of != experiment:
        return f"{request.path} is the place of no run or logged model."
    return _evidence(run_id) if run_id else _finished(model_id)


def _file_of_trace() -> str | None:
    from flask import request

    found = _file()
    return None if found is not None and found[3] else f"{request.path} is the place of no trace."


def _finished(model_id: str) -> str | None:
    model = _found(_tracking().get_logged_model, model_id)
    if model is None or str(model.status) == "PENDING":
        return None
    return f"the logged model {model_id} is {model.status}, and versions may be made of it. Log another."


def _pending_model() -> str | None:
    from flask import request

    return _finished((request.view_args or {})["model_id"])


def _new_version() -> str | None:
    message = _message()
    model_id = message.source.removeprefix("models:/")
    model = _found(_tracking().get_logged_model, model_id) if re.fullmatch(r"m-\w+", model_id) else None
    if model is None or str(model.status) != "READY":
        return f"{message.source!r} is no finished logged model (models:/m-…)."
    if not message.run_id:
        return "it names no run."
    return _others(_tags(), rights.OF_TRAINER) or _evidence(message.run_id)


def _plain_version() -> str | None:
    source = _message().source
    if not source.startswith(rights.SOURCES):
        return f"{source!r} is not one of {', '.join(rights.SOURCES)}."
    return _ours(_tags(), rights.OURS)


def _taken_back() -> str | None:
    message = _message()
    version = _found(_registry().get_model_version, message.name, message.version)
    if version is None:
        return None
    if version.aliases:
        return f"version {version.version} has the alias {', '.join(version.aliases)}."
    return _evidence(version.run_id) if version.run_id else None


def _ours(keys: Iterable[str], ours: frozenset[str]) -> str | None:
    taken = [key for key in keys if key in ours]
    return f"of a version's tags others write {', '.join(taken)}." if taken else None


def _others(keys: Iterable[str], own: frozenset[str]) -> str | None:
    strange = [key for key in keys if key not in own]
    return f"of a version's tags others write {', '.join(strange)}." if strange else None


def _plain_model_tag() -> str | None:
    taken = [key for key in _tags() if key.startswith(rights.MODELS_TAGS)]
    return f"of a model's tags the promoter writes {', '.join(taken)}." if taken else None


def _bare_model() -> str | None:
    tags = list(_tags())
    return f"it has the tags {', '.join(tags)}." if tags else None


def _default_place() -> str | None:
    place = _message().artifact_location
    return f"it names the place {place!r}." if place else None


def _plain_experiment() -> str | None:
    found = _found(_tracking().get_experiment, _message().experiment_id)
    if found is None:
        return None
    if found.name in (names.PROMOTIONS, names.TRACES):
        return f"the parts write into the experiment {found.name}."
    for run in _tracking().search_runs([found.experiment_id], f"tags.{names.ROLE} LIKE '%'", 3, 1):  # deleted ones too
        return f"run {run.info.run_id} in it is evidence."
    return None


CONDITIONS: dict[If, Callable[[], str | None]] = {
    If.OPEN_RUN: _open_run,
    If.OPEN_RUN_OR_BASE: _open_run_or_base,
    If.OPEN_FILE: _open_file,
    If.FILE_OF_TRACE: _file_of_trace,
    If.PENDING_MODEL: _pending_model,
    If.NEW_VERSION: _new_version,
    If.PLAIN_VERSION: _plain_version,
    If.TAKEN_BACK: _taken_back,
    If.TAG_OF_MONITOR: lambda: _others(_tags(), rights.OF_MONITOR),
    If.TAG_OF_PROMOTER: lambda: _ours(_tags(), rights.OF_TRAINER | rights.OF_SERVING | rights.OF_MONITOR),
    If.TAG_OF_SERVING: lambda: _others(_tags(), rights.OF_SERVING),
    If.PLAIN_TAG: lambda: _ours(_tags(), rights.OURS),
    If.PLAIN_MODEL_TAG: _plain_model_tag,
    If.BARE_MODEL: _bare_model,
    If.DEFAULT_PLACE: _default_place,
    If.PLAIN_EXPERIMENT: _plain_experiment,
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
