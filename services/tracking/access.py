"""Who may do what where TRACKING_AUTH is on: MLflow's basic authentication, and one rule that it cannot express.

To MLflow a user who may add a version to a registered model may also move the model's aliases. So the trainer could put
its own model into production, past the gate. Here only those whom TRACKING_ALIAS_USERS names move an alias.
"""

import configparser
import os
from typing import TYPE_CHECKING

from services.tracking.settings import TrackingSettings

if TYPE_CHECKING:
    from flask import Response
    from werkzeug.datastructures import Authorization

USERS = "RATCHET_ALIAS_USERS"  # from `environment` to `authenticate`, which runs in MLflow's workers
# PBKDF2 or scrypt at each check would be most of a request's time. A password that was changed counts after this long
# (s) at the latest.
REMEMBERED_S = 30


def environment(settings: TrackingSettings) -> dict[str, str]:
    """Write MLflow's authentication settings to RATCHET_HOME; returns the variables that `mlflow server` needs.

    The file holds the database URI, which may hold a password: it is its owner's alone.
    """
    config = configparser.ConfigParser()
    config["mlflow"] = {
        "default_permission": "NO_PERMISSIONS",
        "database_uri": settings.backend_store_uri.replace("%", "%%"),
        "admin_username": "admin",
        "authorization_function": f"{__name__}:authenticate",
        "auth_cache_ttl_seconds": str(REMEMBERED_S),
    }
    path = settings.home / "basic_auth.ini"
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        config.write(file)
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(path),
        "MLFLOW_AUTH_ADMIN_PASSWORD": settings.mlflow_admin_password.get_secret_value(),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": settings.mlflow_secret_key.get_secret_value(),
        USERS: settings.tracking_alias_users,
    }


def migrate(uri: str) -> None:
    """Create or upgrade the tables of users and permissions, beside MLflow's own. Safe to repeat."""
    from mlflow.server.auth.db import utils
    from sqlalchemy import create_engine

    engine = create_engine(uri)
    try:
        utils.migrate(engine, "head")
    finally:
        engine.dispose()


def authenticate() -> "Authorization | Response":
    """MLflow's `authorization_function`: who asks, by user name and password, or the response that refuses."""
    from flask import Response, jsonify, make_response, request
    from mlflow.server.auth import authenticate_request_basic_auth, make_basic_auth_response

    if request.authorization is not None and request.authorization.type != "basic":
        return make_basic_auth_response()  # MLflow would look for a user's name in a bearer token, and answer 500
    found = authenticate_request_basic_auth()
    if isinstance(found, Response) or not moves_alias(request.method, request.path):
        return found
    allowed = [name.strip() for name in os.environ.get(USERS, "").split(",")]
    if found.username in allowed:
        return found
    return make_response(
        jsonify(
            error_code="PERMISSION_DENIED",
            message=f"User {found.username!r} may not move an alias: it is what decides which version serves. Expected "
            f"one of {', '.join(allowed)} (TRACKING_ALIAS_USERS). Use the promoter, whose gate compares first.",
        ),
        403,
    )


def moves_alias(method: str, path: str) -> bool:
    """Whether this is the request that sets or deletes an alias of a registered model."""
    return method in ("POST", "DELETE") and path.rstrip("/").endswith("/mlflow/registered-models/alias")
