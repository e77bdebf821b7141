"""Completions as the gateway keeps them, without a gateway."""

import time
from typing import Any

from serving.gateway.events.facts import Completion, digest
from serving.gateway.feedback import new_id


def completion(**changed: Any) -> Completion:
    """An answered request of Ada's: a Python file, ten characters."""
    now = time.time_ns()
    facts: dict[str, Any] = {
        "id": new_id("cmpl"),
        "request_id": "r1",
        "path": "/v1/completions",
        "user": "ada",
        "model": "code",
        "version": "1",
        "run_id": "",
        "models_id": "",
        "language": "python",
        "repository": "",
        "began_ns": now - 10**8,
        "ended_ns": now,
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "queue_s": 0.01,
        "first_token_s": 0.02,
        "choices": [10],
        "prompt_hash": digest("def f("),
        "completion_hash": digest("x): pass"),
        "cut_off": False,
        "texts": {"inputs": {"prompt": "def f("}, "outputs": {"completions": ["x): pass"]}},
    }
    return Completion(**(facts | changed))
