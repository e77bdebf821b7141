"""Odd values for every field of MLflow's REST API, at a server that runs: `python -m tests.support.fuzz_tracking URL`.

Prints how many requests got which answer, and each 5xx with what was sent. Exit code 1 where there is one.
"""

import argparse
import collections
import random
import sys
from typing import Any

import requests
from google.protobuf.descriptor import FieldDescriptor
from mlflow.server import handlers

LONG = "a" * 5000
OFF = ("feature is disabled", "without workspaces support", "not supported for the current artifact repository")
VALUES: tuple[Any, ...] = (
    *("", "0", "1", "-1", "12345678901234567890123", "\x00", "\ud800", "é☺", "../../etc", "a/b", "%00", LONG),
    *(0, -1, 2**31, 2**63, 10**23, 1.5, 1e308, True, None, [], {}, ["x"], [LONG], {"key": "a"}, [{"key": "a"}]),
    *("name = 'x' AND", "tags.`a` = 'b'", "x ILIKE '%'", "attributes.start_time > 99999999999999999999999"),
)
QUERIES = ("{", '{"query": "{"}', '{"query": 3}', "[]", "null", '{"query": "{ a }"}', '{"query": "' + "{a" * 900 + '"}')
PATHS = (LONG[:300], LONG, "a%00b", "%ff%fe", "..%2f..%2fetc", "a" + "/b" * 400, "%F0%9F%98%80")
OTHERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *(("POST", "/graphql", {"data": body, "headers": {"Content-Type": "application/json"}}) for body in QUERIES),
    *(
        (method, f"/api/2.0/mlflow-artifacts/artifacts/{path}", {"data": b"x"})
        for method in ("GET", "PUT", "DELETE")
        for path in PATHS
    ),
    ("GET", "/get-artifact?path=%00&run_uuid=x", {}),
    ("GET", f"/model-versions/get-artifact?name=x&version={'9' * 23}&path=a", {}),
    ("GET", f"/ajax-api/2.0/mlflow/get-trace-artifact?request_id={LONG}", {}),
    ("GET", "/static-files/%00", {}),
    ("GET", f"/{LONG}", {}),
)


def forms() -> list[tuple[str, str, list[str]]]:
    """(method, path, the names of its fields) of each endpoint."""
    found = []
    for message, handler in handlers.HANDLERS.items():
        fields = [field.name for field in message.DESCRIPTOR.fields if field.type != FieldDescriptor.TYPE_GROUP]
        for path, known, methods in handlers.get_endpoints():
            if path.startswith("/api/") and getattr(known, "__wrapped__", known) is getattr(
                handler, "__wrapped__", handler
            ):
                found.append((methods[0], path, fields))
    return found


def fuzz(
    url: str, count: int, seed: int = 0, auth: tuple[str, str] | None = None
) -> tuple[collections.Counter[int], list[str]]:
    """Send so many requests; returns how many got which status, and a line for each 5xx."""
    dice, known = random.Random(seed), forms()
    answers: collections.Counter[int] = collections.Counter()
    wrong = []

    def ask(method: str, path: str, **more: Any) -> None:
        try:
            answer = session.request(method, url + path, timeout=60, allow_redirects=False, **more)
        except (UnicodeError, requests.exceptions.InvalidURL, requests.exceptions.InvalidJSONError):
            return  # what this client cannot send
        except requests.RequestException as error:
            wrong.append(f"no answer {method} {path[:120]} {str(more)[:200]}: {error}")
            return
        answers[answer.status_code] += 1
        if answer.status_code >= 500 and not any(words in answer.text for words in OFF):
            wrong.append(f"{answer.status_code} {method} {path[:120]} {str(more)[:200]}: {answer.text[:160]!r}")

    with requests.Session() as session:
        session.auth = auth
        for method, path, more in OTHERS:
            ask(method, path, **more)
        for _ in range(count):
            method, path, fields = dice.choice(known)
            while "<" in path:
                before, _, rest = path.partition("<")
                path = before + dice.choice(["1", "0", "x", "9" * 23, "%00", "é"]) + rest.partition(">")[2]
            sent = {name: dice.choice(VALUES) for name in fields if dice.random() < 0.7}
            ask(method, path, **({"params": sent} if method == "GET" else {"json": sent}))
    return answers, wrong


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    answers, wrong = fuzz(options.url, options.requests, options.seed)
    print(dict(sorted(answers.items())), f"wrong: {len(wrong)}", *wrong, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
