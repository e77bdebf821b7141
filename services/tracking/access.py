"""Logins, where TRACKING_AUTH is on: MLflow's basic authentication, its settings and its tables.

What our server adds to MLflow's rules: services.tracking.authorization.
"""

import configparser
import os
from functools import cache

from contract.errors import InputError
from services.tracking.rights import PARTS
from services.tracking.settings import TrackingSettings

CONFIG = "MLFLOW_AUTH_CONFIG_PATH"  # MLflow's variable: the file with its authentication settings
ROLES = "RATCHET_ROLES"  # from `environment` to services.tracking.authorization, in MLflow's workers
# PBKDF2 or scrypt at each check would be most of a request's time. A password that was changed counts after this long
# (s) at the latest.
REMEMBERED_S = 30


@cache
def roles(text: str) -> dict[str, str]:
    """The role of each user who has one: of the parts' own, and of those that `text` (TRACKING_ROLES) names.

    Raises InputError for a text that is not USER=ROLE, separated by commas.
    """
    found = {part: part for part in PARTS}
    for pair in filter(None, (item.strip() for item in text.split(","))):
        user, _, role = (word.strip() for word in pair.partition("="))
        if not user or role not in PARTS:
            raise InputError(
                f"TRACKING_ROLES has {pair!r}. Expected USER=ROLE, separated by commas, with a ROLE of "
                f"{', '.join(PARTS)}, such as ada=promoter."
            )
        found[user] = role
    return found


def environment(settings: TrackingSettings) -> dict[str, str]:
    """Write MLflow's authentication settings to RATCHET_HOME; returns the variables that `mlflow server` needs.

    The file holds the database URI, which may hold a password: it is its owner's alone. Raises InputError for roles
    that are none.
    """
    roles(settings.tracking_roles)
    config = configparser.ConfigParser()
    config["mlflow"] = {
        "default_permission": "NO_PERMISSIONS",
        "database_uri": settings.backend_store_uri.replace("%", "%%"),
        "admin_username": "admin",
        "authorization_function": "services.tracking.authorization:authenticate",
        "auth_cache_ttl_seconds": str(REMEMBERED_S),
    }
    path = settings.home / "basic_auth.ini"
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        config.write(file)
    return {
        CONFIG: str(path),
        "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",  # what has no rule is refused
        "MLFLOW_AUTH_ADMIN_PASSWORD": settings.mlflow_admin_password.get_secret_value(),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": settings.mlflow_secret_key.get_secret_value(),
        ROLES: settings.tracking_roles,
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
