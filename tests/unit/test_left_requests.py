"""A request that its client leaves, at the very moment when its facts are written."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.requests import Request

from serving.gateway.worker import Answered, Gateway
from serving.supervisor.state import Live


def test_what_is_known_of_a_request_outlives_its_client() -> None:
    """All threads are busy, so that the write has not begun: it could still be cancelled."""
    kept: list[Any] = []
    gateway = cast(Gateway, object.__new__(Gateway))
    gateway._tasks = set()
    gateway.settings = cast(Any, SimpleNamespace(serving_trace_prompts=False))
    gateway.store = cast(Any, SimpleNamespace(labels=lambda *labels: labels, completed=kept.append))
    live = Live("code", "1", "", "", "", "", 0, 0.0)
    scope = {"type": "http", "path": "/v1/completions", "headers": [], "query_string": b"", "server": ("gateway", 80)}
    state = {"live": live, "user": "ada", "request_id": "r1"}
    request = Request({**scope, "state": state})
    answered = Answered("cmpl-1", 0, {}, {}, "x", ["y"], [])

    async def leave() -> None:
        busy = threading.Event()
        loop = asyncio.get_running_loop()
        for _ in range(64):  # more than there are threads
            loop.run_in_executor(None, busy.wait)
        task = asyncio.ensure_future(gateway.record(request, answered))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        busy.set()
        await asyncio.wait(gateway._tasks)

    asyncio.run(leave())
    assert [item.id for item in kept] == ["cmpl-1"]
