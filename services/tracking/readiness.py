"""Readiness that asks the database: MLflow's own /health answers 200 while the database is down."""

import time
from collections.abc import Callable

import requests


def is_ready(url: str, timeout_s: float = 5.0) -> bool:
    """Whether a tracking server answers at `url` and can read its database."""
    try:
        answer = requests.get(
            f"{url}/api/2.0/mlflow/experiments/search", params={"max_results": "1"}, timeout=timeout_s
        )
    except requests.RequestException:
        return False
    return answer.ok


def wait_until(condition: Callable[[], bool], timeout_s: float, still_alive: Callable[[], bool]) -> bool:
    """Poll a condition until it holds (True), time is up, or what it waits for has died (False)."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and still_alive():
        if condition():
            return True
        time.sleep(0.2)  # the pace of polling, not a guess at how long it takes
    return condition()
