"""What the routes of one worker share: settings, the way to the model, tokens, traces."""

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from starlette.requests import Request

from contract.messages import CompletionUsage
from serving.gateway import metrics
from serving.gateway.engine_client import EngineClient
from serving.gateway.tokens import Tokens
from serving.gateway.tracing import Call, Tracer
from serving.settings import RunSettings
from serving.supervisor.state import Live

T = TypeVar("T")


class Gateway:
    """What the routes of one worker share."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.engine = EngineClient(settings)
        self.tokens = Tokens(settings.serving_tokens_file)
        self.tracer = Tracer(settings)
        self.nudged = 0.0
        self._tasks: set[asyncio.Future[None]] = set()

    def later(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something that outlives its request."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def until(self) -> float:
        """When a request that comes now has to be answered, on the monotonic clock."""
        return time.monotonic() + self.settings.deadline_s

    def record(
        self,
        request: Request,
        id: str,
        began_ns: int,
        inputs: dict[str, Any],
        outputs: dict[str, Any],
        usages: Sequence[CompletionUsage],
    ) -> None:
        """Count what a request took, and trace it."""
        live: Live = request.state.live
        for usage in usages:
            metrics.queue_seconds.labels(live.version).observe(usage["queue_s"])
            metrics.first_token_seconds.labels(live.version).observe(usage["first_token_s"])
            metrics.batch_size.labels(live.version).observe(usage["batch"])
            metrics.prompt_tokens.labels(live.version).inc(usage["prompt_tokens"])
            metrics.completion_tokens.labels(live.version).inc(usage["completion_tokens"])
        if not self.tracer.sampled():
            return
        self.tracer.record(
            Call(
                id,
                request.state.request_id,
                request.url.path,
                live.version,
                live.model,
                live.run_id,
                live.models_id,
                request.state.user,
                began_ns,
                time.time_ns(),
                inputs if self.settings.serving_trace_prompts else None,
                outputs if self.settings.serving_trace_prompts else None,
                {
                    "prompt_tokens": sum(usage["prompt_tokens"] for usage in usages),
                    "completion_tokens": sum(usage["completion_tokens"] for usage in usages),
                    "queue_s": max((usage["queue_s"] for usage in usages), default=0.0),
                },
            )
        )


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


async def until_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of some work, which is cancelled where the client hangs up. Raises ClientGone then.

    For requests whose body has been read.
    """

    async def hangs_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(hangs_up())
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def gateway_of(request: Request) -> Gateway:
    """The worker's gateway."""
    found: Gateway = request.app.state.gateway
    return found
