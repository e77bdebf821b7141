"""Requests that their clients leave, and answers that break off: what is kept of them, and once."""

import asyncio
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
from starlette.requests import Request

from contract.trials import ANSWERED, CHALLENGER, FAILED, LEFT
from serving.gateway.arms import Assigned
from serving.gateway.errors import Refusal
from serving.gateway.routes.answer import Answer
from serving.gateway.worker import Answered, Gateway
from serving.supervisor.state import Live, State

LIVE = Live("code", "1", "", "", "", "", 0, 0.0)


def gateway_and_request(assigned: Assigned | None = None) -> tuple[Gateway, Request, list[Any]]:
    """Without processes; what it keeps, and what it tells of the challenger."""
    kept: list[Any] = []
    gateway = cast(Gateway, object.__new__(Gateway))
    gateway._tasks = set()
    gateway.settings = cast(Any, SimpleNamespace(serving_trace_prompts=False))
    gateway.store = cast(Any, SimpleNamespace(labels=lambda *labels: labels, completed=kept.append))
    gateway.engine = cast(Any, SimpleNamespace(state=State()))
    gateway.arms = cast(Any, SimpleNamespace(told=lambda *how, **more: kept.append("told")))
    scope = {"type": "http", "path": "/v1/completions", "headers": [], "query_string": b"", "server": ("gateway", 80)}
    state = {"live": LIVE, "user": "ada", "request_id": "r1", "assigned": assigned, "trains": False}
    return gateway, Request({**scope, "state": state}), kept


def challengers() -> Assigned:
    return Assigned("t1", CHALLENGER, 0.5, LIVE, "u", 10.0)


def test_what_is_known_of_a_request_outlives_its_client() -> None:
    """All threads are busy, so that the write has not begun: it could still be cancelled."""
    gateway, request, kept = gateway_and_request()
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


@pytest.mark.parametrize(("outcome", "told"), [(ANSWERED, 1), (FAILED, 1), (LEFT, 0)])
def test_a_client_that_leaves_is_not_the_challengers_fault(outcome: str, told: int) -> None:
    gateway, request, kept = gateway_and_request(challengers())
    asyncio.run(gateway.record(request, Answered("cmpl-1", 0, {}, {}, "x", [], [], outcome=outcome)))
    assert kept.count("told") == told
    assert [item.outcome for item in kept if item != "told"] == [outcome]


@pytest.mark.parametrize("sent", [{}, {0: "def"}])
def test_an_answer_that_breaks_off_is_kept_once(sent: dict[int, str]) -> None:
    """In a stream, too, of which some has been sent: the stream's end must not keep it again."""
    gateway, request, kept = gateway_and_request(challengers())
    answer = cast(Answer, object.__new__(Answer))
    answer.request, answer.gateway, answer.assigned, answer.recorded = request, gateway, challengers(), False
    answer.ends, answer.sent, answer.inputs, answer.params = {}, sent, [{"prompt": "x"}], {}
    answer.id, answer.began_ns, answer.where = "cmpl-1", 0, cast(Any, SimpleNamespace(language="", repository=""))

    async def break_off() -> None:
        answer._lost(Refusal(503, "The model went away in the middle of the completion. Ask again."))
        assert answer.recorded  # at once: what ends the stream looks there
        answer._lost(Refusal(503, "once more"))
        await asyncio.wait(gateway._tasks)

    asyncio.run(break_off())
    assert [item.outcome for item in kept if item != "told"] == [FAILED]
