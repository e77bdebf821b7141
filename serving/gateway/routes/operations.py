"""What operators and their tools ask: /status, /metrics, /feedback and the registry's /webhook."""

import asyncio
import os
import signal
import time
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from contract.names import SERVING_SUPERVISOR
from serving.gateway import metrics
from serving.gateway.body import body_of
from serving.gateway.errors import Refusal
from serving.gateway.tracing import UnknownCompletion
from serving.gateway.worker import Gateway, gateway_of

router = APIRouter()
NUDGE_EVERY_S = 1.0


class Feedback(BaseModel):
    """The body of /feedback."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")
    accepted: bool
    comment: str | None = Field(default=None, max_length=2000)


@router.get("/status")
async def status(request: Request) -> dict[str, Any]:
    """The live version and the one on its way, since when, their processes; what was refused, and why."""
    gateway = gateway_of(request)
    now = gateway.engine.state
    return {
        **asdict(now),
        "model": gateway.settings.serving_model,
        "alias": gateway.settings.serving_alias,
        "engine": await gateway.engine.stats() or {},
    }


@router.get("/metrics")
async def prometheus(request: Request) -> Response:
    """Prometheus's text format."""
    engine = gateway_of(request).engine
    return Response(metrics.page(engine.state, await engine.stats()), media_type="text/plain; version=0.0.4")


@router.post("/feedback")
async def feedback(request: Request, given: Annotated[Feedback, Depends(body_of(Feedback))]) -> dict[str, Any]:
    """Accept or reject a completion by its id: an assessment on its trace."""
    return {"trace_id": await _store_feedback(gateway_of(request), given, request.state.user)}


@router.post("/webhook")
async def webhook(request: Request) -> Response:
    """The registry says that an alias has moved: the supervisor asks at once. Whoever says so is not believed."""
    gateway, now = gateway_of(request), time.monotonic()
    if now - gateway.nudged > NUDGE_EVERY_S and (supervisor := os.environ.get(SERVING_SUPERVISOR)):
        gateway.nudged = now
        os.kill(int(supervisor), signal.SIGUSR1)
    return Response(status_code=204)


async def _store_feedback(gateway: Gateway, given: Feedback, user: str) -> str:
    """The trace's id. A trace may be on its way for some seconds. Raises Refusal."""
    for pause in (0.5, 1.0, 2.0, 0.0):
        try:
            return await asyncio.to_thread(gateway.tracer.feedback, given.id, given.accepted, given.comment, user)
        except UnknownCompletion:
            await asyncio.sleep(pause)
        except Exception as error:
            raise Refusal(
                503, "The tracking server did not take the feedback. Send it again.", retry_after_s=5
            ) from error
    share = gateway.settings.serving_trace_sample
    raise Refusal(
        404,
        f"No trace tells of the completion '{given.id}'. Expected the id of an answer; of {share:.0%} of them a trace "
        "is kept (SERVING_TRACE_SAMPLE).",
    )
