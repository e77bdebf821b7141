"""The engine's own door, beside MLflow's `/invocations`: a Unix socket on which the gateway reads growing completions.

`mlflow models serve` answers a request whole, and cannot tell that its client has gone. So the PyFunc opens this socket
where SERVING_CHANNEL names a path. HTTP; one JSON object per line in answers that stream.

    POST /completions  {"id", "prompt", "suffix" or "messages", "params", "stream", "deadline_s"}
                       → {"text": a piece}… {"text": all of it, "finish_reason", "usage"}
    GET  /requests/ID  → {"usage": […]} of a request's completions;  DELETE stops them
    GET  /stats        → what Engine.stats says
"""

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow.exceptions import MlflowException
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from serving.engine import Engine, Result
from serving.state import end_with

if TYPE_CHECKING:
    from serving.model import CodeGenerationModel


def listen(model: "CodeGenerationModel", path: str) -> None:
    """Answer on a Unix socket, from a thread of its own, for as long as the process lives."""
    import uvicorn

    if supervisor := os.environ.get("SERVING_SUPERVISOR"):
        end_with(int(supervisor), os.getpid())
    Path(path).unlink(missing_ok=True)
    config = uvicorn.Config(application(model), uds=path, log_level="warning", access_log=False, lifespan="off")
    threading.Thread(target=uvicorn.Server(config).run, name="channel", daemon=True).start()


def application(model: "CodeGenerationModel") -> Starlette:
    """The ASGI application over a loaded PyFunc."""
    engine = model.engine

    async def completions(request: Request) -> Response:
        asked = await request.json()
        try:
            params = model.defaults.updated(asked.get("params") or {})
            return await _complete(engine, request, asked, model.prompt_of(asked), params)
        except MlflowException as error:
            return _refusal(error, engine)

    async def usage(request: Request) -> Response:
        return JSONResponse({"usage": [asdict(item) for item in engine.usage(request.path_params["id"])]})

    async def cancel(request: Request) -> Response:
        engine.cancel(request.path_params["id"])
        return Response(status_code=204)

    async def stats(request: Request) -> Response:
        return JSONResponse(engine.stats())

    return Starlette(
        routes=[
            Route("/completions", completions, methods=["POST"]),
            Route("/requests/{id}", usage, methods=["GET"]),
            Route("/requests/{id}", cancel, methods=["DELETE"]),
            Route("/stats", stats, methods=["GET"]),
        ]
    )


async def _complete(engine: Engine, request: Request, asked: dict[str, Any], prompt: str, params: Any) -> Response:
    """Answer with the completion's pieces; the status is that of its first one."""
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def put(item: Any) -> None:
        loop.call_soon_threadsafe(pieces.put_nowait, item)

    [submitted] = engine.submit(
        [(prompt, params)], asked.get("id", ""), put if asked.get("stream") else None, asked.get("deadline_s")
    )
    submitted.future.add_done_callback(put)

    async def lines(first: Any) -> AsyncIterator[bytes]:
        try:
            item = first
            while isinstance(item, str):
                yield json.dumps({"text": item}).encode() + b"\n"
                item = await pieces.get()
            yield json.dumps(_end(item.result())).encode() + b"\n"
        except MlflowException as error:
            yield json.dumps({"error": error.message, "error_code": error.error_code}).encode() + b"\n"
        finally:
            submitted.cancel()  # the gateway has gone, or all is said

    getting = asyncio.ensure_future(pieces.get())
    while not getting.done():
        await asyncio.wait([getting], timeout=0.5)
        if not getting.done() and await request.is_disconnected():
            getting.cancel()
            submitted.cancel()
            return Response(status_code=499)
    first = getting.result()
    if not isinstance(first, str):
        first.result()  # raises what it failed with
    return StreamingResponse(lines(first), media_type="application/x-ndjson")


def _end(result: Result) -> dict[str, Any]:
    return {"text": result.text, "finish_reason": result.finish_reason, "usage": asdict(result.usage)}


def _refusal(error: MlflowException, engine: Engine) -> Response:
    status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    headers = {"Retry-After": f"{engine.retry_after_s():.0f}"} if status in (429, 503) else None
    return JSONResponse({"error": error.message, "error_code": error.error_code}, status, headers)
