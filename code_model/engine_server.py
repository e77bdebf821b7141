"""The engine's own door, beside MLflow's `/invocations`: a Unix socket on which the gateway reads growing completions.

`mlflow models serve` answers a request whole, and cannot tell that its client has gone. So the PyFunc opens this socket
where SERVING_CHANNEL names its path. HTTP; one JSON object per line in answers that stream.

    POST /completions  CompletionRequest → CompletionPiece… CompletionEnd (messages.py), or EngineError
    GET  /requests/ID  → RequestUsage of a request's completions;  DELETE stops them
    GET  /stats        → EngineStats
"""

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from code_model.engine import Engine, Result
from code_model.messages import (
    CompletionEnd,
    CompletionPiece,
    CompletionRequest,
    EngineError,
    RequestUsage,
)
from code_model.params import GenerationParams

SUPERVISOR = "SERVING_SUPERVISOR"  # the supervisor's process id (contract.names.SERVING_SUPERVISOR)
ToPrompt = Callable[[CompletionRequest], tuple[str, GenerationParams]]


def listen(engine: Engine, to_prompt: ToPrompt, path: str) -> None:
    """Answer on a Unix socket, from a thread of its own, for as long as the process lives."""
    import uvicorn

    if supervisor := os.environ.get(SUPERVISOR):
        end_with(int(supervisor))
    Path(path).unlink(missing_ok=True)
    config = uvicorn.Config(
        application(engine, to_prompt), uds=path, log_level="warning", access_log=False, lifespan="off"
    )
    threading.Thread(target=uvicorn.Server(config).run, name="engine server", daemon=True).start()


def application(engine: Engine, to_prompt: ToPrompt) -> Starlette:
    """The ASGI application over an engine."""

    async def completions(request: Request) -> Response:
        body = await request.body()
        asked: CompletionRequest = json.loads(body)
        try:
            prompt, params = await asyncio.wrap_future(engine.encoder.submit(len(body), partial(to_prompt, asked)))
            return await _complete(engine, request, asked, prompt, params)
        except MlflowException as error:
            return _refusal(error, engine)

    async def usage(request: Request) -> Response:
        usages = [item.message() for item in engine.usage(request.path_params["id"])]
        return JSONResponse(RequestUsage(usage=usages))

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


async def _complete(
    engine: Engine, request: Request, asked: CompletionRequest, prompt: str, params: GenerationParams
) -> Response:
    """Answer with the completion's pieces; the status is that of its first one."""
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue[Any]()

    def put(item: Any) -> None:
        loop.call_soon_threadsafe(pieces.put_nowait, item)

    [submitted] = engine.submit(
        [(prompt, params)],
        asked.get("id", ""),
        put if asked.get("stream") else None,
        asked.get("deadline_s"),
        asked.get("logprobs", -1),
        asked.get("echo", False),
    )
    submitted.future.add_done_callback(put)

    async def lines(first: Any) -> AsyncIterator[bytes]:
        try:
            item = first
            while isinstance(item, str):
                yield json.dumps(CompletionPiece(text=item)).encode() + b"\n"
                item = await pieces.get()
            yield json.dumps(_end(item.result())).encode() + b"\n"
        except MlflowException as error:
            yield json.dumps(_error(error)).encode() + b"\n"
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


def _end(result: Result) -> CompletionEnd:
    end = CompletionEnd(text=result.text, finish_reason=result.finish_reason, usage=result.usage.message())
    if result.logprobs is not None:
        end["logprobs"] = result.logprobs
    return end


def _error(error: MlflowException) -> EngineError:
    return EngineError(error=error.message, error_code=error.error_code)


def _refusal(error: MlflowException, engine: Engine) -> Response:
    status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    headers = {"Retry-After": f"{engine.retry_after_s():.0f}"} if status in (429, 503) else None
    return JSONResponse(_error(error), status, headers)


def end_with(pid: int) -> None:
    """Have this process end by SIGTERM once there is no process `pid` any more: nothing outlives the supervisor."""

    def watch() -> None:
        while True:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                os.kill(os.getpid(), signal.SIGTERM)
                return
            except PermissionError:
                pass
            time.sleep(1)  # the pace of asking

    threading.Thread(target=watch, name="supervisor", daemon=True).start()
