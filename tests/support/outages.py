"""What the tracking server answers where its database goes away in a request: `python -m tests.support.outages`.

Prints `statement ROUTE K HOW STATUS` for requests of a logged-in trainer and each SQL statement of theirs, the K-th:
from which on the database is away (`on`), or which fails `alone`.
"""

import itertools
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import sqlalchemy
from sqlalchemy import event
from werkzeug.security import generate_password_hash

from services.tracking.bad_input import named
from tests.support.rights import application

TRAINER = ("trainer", "password-of-the-trainer")
FOREVER = 1_000_000


@contextmanager
def gone(at: range) -> Iterator[Iterator[int]]:
    """The database is away at the statements of these numbers (0 is the first); gives the statements' counter."""
    statements = itertools.count()

    def fail(*_: Any) -> None:
        if next(statements) in at:
            raise sqlite3.OperationalError("the database is away")

    event.listen(sqlalchemy.Engine, "do_execute", fail)
    try:
        yield statements
    finally:
        event.remove(sqlalchemy.Engine, "do_execute", fail)


def main() -> None:
    from fastapi.testclient import TestClient

    client = TestClient(named(application()), base_url="http://127.0.0.1", raise_server_exceptions=False)
    from mlflow.server import app, auth
    from mlflow.server.auth import sqlalchemy_store

    app.config["PROPAGATE_EXCEPTIONS"] = True  # as services.tracking.application does

    sqlalchemy_store.generate_password_hash = partial(generate_password_hash, method="pbkdf2:sha256:1")  # 600 checks
    api = "/api/2.0/mlflow"
    grant = "../../3.0/mlflow/users/permissions/grant"

    def admin(path: str, **body: Any) -> Any:
        answer = client.post(f"{api}/{path}", json=body, auth=("admin", "twelve-characters"))
        assert answer.status_code == 200, (path, answer.text)
        return answer.json()

    admin("users/create", username=TRAINER[0], password=TRAINER[1])
    experiment = admin("experiments/create", name="mine")["experiment_id"]
    admin(grant, username=TRAINER[0], resource_type="experiment", resource_id=experiment, permission="EDIT")
    run = admin("runs/create", experiment_id=experiment)["run"]["info"]["run_id"]
    requests = {
        "runs/create": ("POST", {"experiment_id": experiment}),
        "runs/log-metric": ("POST", {"run_id": run, "key": "loss", "value": 1.0, "timestamp": 1, "step": 1}),
        "runs/log-batch": ("POST", {"run_id": run, "metrics": [], "params": [], "tags": []}),
        f"runs/get?run_id={run}": ("GET", None),
        f"experiments/get?experiment_id={experiment}": ("GET", None),
        "runs/search": ("POST", {"experiment_ids": [experiment]}),
        "registered-models/search": ("GET", None),
    }
    for path, (method, body) in requests.items():
        for how, length in {"on": FOREVER, "alone": 1}.items():
            for k in itertools.count():
                auth._USER_AUTH_CACHE.clear()
                with gone(range(k, k + length)) as statements:
                    answer = client.request(method, f"{api}/{path}", json=body, auth=TRAINER)
                if next(statements) <= k:
                    break
                print("statement", path.partition("?")[0], k, how, answer.status_code)


if __name__ == "__main__":
    main()
