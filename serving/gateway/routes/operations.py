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
from serving.gateway.events.facts import trace_id
from serving.gateway.feedback import Feedbacks
from serving.gateway.worker import gateway_of

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
    gateway = gateway_of(request)
    stats = await gateway.engine.stats()
    page = await asyncio.to_thread(metrics.page, gateway.engine.state, stats, gateway.store)
    return Response(page, media_type="text/plain; version=0.0.4")


@router.post("/feedback")
async def feedback(request: Request, given: Annotated[Feedback, Depends(body_of(Feedback))]) -> dict[str, Any]:
    """Accept or reject a completion by its id: an assessment on its trace, the last one counts."""
    feedbacks: Feedbacks = request.app.state.feedbacks
    await feedbacks.store(request, gateway_of(request), given.id, given.accepted, given.comment)
    return {"trace_id": trace_id(given.id)}


@router.post("/webhook")
async def webhook(request: Request) -> Response:
    """The registry says that an alias has moved: the supervisor asks at once. Whoever says so is not believed."""
    gateway, now = gateway_of(request), time.monotonic()
    if now - gateway.nudged > NUDGE_EVERY_S and (supervisor := os.environ.get(SERVING_SUPERVISOR)):
        gateway.nudged = now
        os.kill(int(supervisor), signal.SIGUSR1)
    return Response(status_code=204)
