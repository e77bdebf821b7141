"""Readiness that asks the database and the artifact store: MLflow's /health answers 200 with either of them down.

python -m services.tracking.readiness   # the container's health check: exit code 0 or 1, and what is wrong
"""

import sys
import time
from collections.abc import Callable

import requests

from services.settings import read
from services.tracking.settings import TrackingSettings

# Served by the tracking server, from its database and from its artifact store.
ASKED = {
    "database": ("api/2.0/mlflow/experiments/search", {"max_results": "1"}),
    "artifact store": ("api/2.0/mlflow-artifacts/artifacts", {"path": "readiness"}),
}


def trouble(url: str, timeout_s: float = 5.0, admin_password: str = "") -> str | None:
    """What keeps the tracking server at `url` from being ready; None where nothing does.

    With TRACKING_AUTH it takes the admin's password: to anybody else the artifact store's top folder is closed.
    """
    auth = ("admin", admin_password) if admin_password else None
    for name, (path, params) in ASKED.items():
        try:
            answer = requests.get(f"{url}/{path}", params=params, timeout=timeout_s, auth=auth)
        except requests.RequestException as error:
            return f"no answer from {url} about its {name}: {type(error).__name__}"
        if answer.status_code == 401 and auth:
            return "it refuses the user `admin`: mlflow_admin_password is not what the password is now"
        if not answer.ok:
            return f"its {name} cannot be used: HTTP {answer.status_code} {answer.text[:300]}"
    return None


def is_ready(url: str, timeout_s: float = 5.0) -> bool:
    """Whether a tracking server answers at `url` and can read its database and its artifact store."""
    return trouble(url, timeout_s) is None


def wait_until(condition: Callable[[], bool], timeout_s: float, still_alive: Callable[[], bool]) -> bool:
    """Poll a condition until it holds (True), time is up, or what it waits for has died (False)."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and still_alive():
        if condition():
            return True
        time.sleep(0.2)  # the pace of polling, not a guess at how long it takes
    return condition()


if __name__ == "__main__":
    settings = read(TrackingSettings)
    password = settings.mlflow_admin_password.get_secret_value() if settings.tracking_auth else ""
    sys.exit(trouble(f"http://127.0.0.1:{settings.tracking_port}", 4.0, password))
