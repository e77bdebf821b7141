"""The only public port: MLflow's forms, OpenAI's (serving.openai), and what tells how things are.

    /invocations /ping /health /version    as `mlflow models serve` answers them
    /v1/models /v1/completions /v1/chat/completions
    /status /metrics /feedback /webhook

Run by the supervisor: gunicorn "serving.gateway:create()".
"""

import asyncio
import importlib.metadata
import json
import os
import re
import signal
import time
import uuid
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import metrics
from serving.access import Tokens
from serving.backend import Backend
from serving.errors import Refusal
from serving.settings import RunSettings
from serving.state import WAITING, Live, end_with
from serving.tracing import Call, Tracer, UnknownCompletion

T = TypeVar("T")
OPEN = ("/ping", "/health", "/version", "/webhook")  # to everybody: they tell nothing, and cost nothing
GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
NUDGE_EVERY_S = 1.0
MLFLOW_VERSION = importlib.metadata.version("mlflow")
CLIENT_GONE = 499  # nginx's number for it: nobody reads it, but the metrics


class Gateway:
    """What the routes of one worker share."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.backend = Backend(settings)
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
        usages: list[dict[str, Any]],
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


def create() -> FastAPI:
    """The application, with its settings from the environment."""
    gateway = Gateway(RunSettings())
    if supervisor := os.environ.get("SERVING_SUPERVISOR"):
        end_with(int(supervisor), os.getppid())  # gunicorn's first process, and so all of its workers

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await gateway.backend.close()

    app = FastAPI(title="Ratchet serving", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.gateway = gateway
    _add_routes(app, gateway)
    from serving import openai  # which needs this module

    app.include_router(openai.router)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(Edge, gateway=gateway)
    return app


def _add_routes(app: FastAPI, gateway: Gateway) -> None:
    backend = gateway.backend

    @app.api_route("/ping", methods=["GET", "HEAD"])
    @app.api_route("/health", methods=["GET", "HEAD"])
    async def ping(request: Request) -> Response:
        """Whether a model answers: MLflow's 200 with an empty line, or 503 with what is awaited."""
        now = backend.state
        if now.live is None:
            # To everybody: what is awaited, but not what has failed.
            message = now.message if now.status == WAITING else "see /status, or serving's log"
            return JSONResponse({"status": now.status, "message": message}, 503, {"Retry-After": "5"})
        request.state.live = now.live
        return Response("\n", media_type="application/json")

    @app.get("/version")
    async def version() -> Response:
        """MLflow's version, as `mlflow models serve` says it."""
        return Response(MLFLOW_VERSION, media_type="application/json")

    @app.post("/invocations")
    async def invocations(request: Request) -> Response:
        """MLflow's form: the live child's answer, without a stack trace."""
        body, began_ns = await request.body(), time.time_ns()
        content_type = request.headers.get("content-type", "application/json")
        request_id = uuid.uuid4().hex  # the engine's: a client may send its own twice
        inputs, body = with_request_id(body, content_type, request_id)

        async def ask() -> Any:
            return await backend.invoke(
                body, content_type, gateway.until(), lambda live: setattr(request.state, "live", live)
            )

        try:
            answer = await until_gone(request, ask())
        except (ClientGone, asyncio.CancelledError):  # found out here, or by gunicorn
            if request.state.live is not None:
                gateway.later(backend.cancel(request.state.live, request_id))
            raise
        if answer.status != 200:
            headers = {"Retry-After": answer.retry_after or "2"} if answer.status in (429, 503) else {}
            return Response(without_trace(answer.body), answer.status, headers, media_type="application/json")
        if inputs is not None:
            # Not as the response's background task: gunicorn's next request on the connection would wait for ever.
            gateway.later(_record_invocation(gateway, request, request_id, began_ns, inputs, answer.body))
        return Response(answer.body, 200, media_type=answer.content_type)

    @app.get("/status")
    async def status() -> dict[str, Any]:
        """The live version and the one on its way, since when, their processes; what was refused, and why."""
        now = backend.state
        return {
            **asdict(now),
            "model": gateway.settings.serving_model,
            "alias": gateway.settings.serving_alias,
            "engine": await backend.stats(),
        }

    @app.get("/metrics")
    async def prometheus() -> Response:
        """Prometheus's text format."""
        return Response(metrics.page(backend.state, await backend.stats()), media_type="text/plain; version=0.0.4")

    @app.post("/feedback")
    async def feedback(request: Request, given: Feedback) -> dict[str, Any]:
        """Accept or reject a completion by its id: an assessment on its trace."""
        return {"trace_id": await _store_feedback(gateway, given, request.state.user)}

    @app.post("/webhook")
    async def webhook() -> Response:
        """The registry says that an alias has moved: the supervisor asks at once. Whoever says so is not believed."""
        now = time.monotonic()
        if now - gateway.nudged > NUDGE_EVERY_S and (supervisor := os.environ.get("SERVING_SUPERVISOR")):
            gateway.nudged = now
            os.kill(int(supervisor), signal.SIGUSR1)
        return Response(status_code=204)


async def _record_invocation(
    gateway: Gateway, request: Request, request_id: str, began_ns: int, inputs: dict[str, Any], body: bytes
) -> None:
    usages = await gateway.backend.usage(request.state.live, request_id)
    outputs = {"predictions": json.loads(body).get("predictions")}
    gateway.record(request, f"inv-{request_id}", began_ns, inputs, outputs, usages)


class Feedback(BaseModel):
    """The body of /feedback."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")
    accepted: bool
    comment: str | None = Field(default=None, max_length=2000)


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


def with_request_id(body: bytes, content_type: str, request_id: str) -> tuple[dict[str, Any] | None, bytes]:
    """(the JSON object, the body with the request's id among its params); (None, the body as it is) for other bodies.

    What is wrong with them, MLflow says itself.
    """
    if not content_type.startswith("application/json"):
        return None, body
    try:
        asked = json.loads(body)
    except ValueError:
        return None, body
    if not isinstance(asked, dict) or not isinstance(asked.get("params") or {}, dict):
        return None, body
    if any(name in asked for name in ("inputs", "instances", "dataframe_split", "dataframe_records")):
        sent = asked | {"params": {**(asked.get("params") or {}), "request_id": request_id}}
    else:
        sent = asked | {"request_id": request_id}
    return asked, json.dumps(sent).encode()


def without_trace(body: bytes) -> bytes:
    """MLflow's error without a stack trace; another text than JSON in MLflow's form."""
    try:
        error = json.loads(body)
        return json.dumps({"error_code": error["error_code"], "message": error["message"]}).encode()
    except (ValueError, KeyError, TypeError):
        text = body.decode(errors="replace").strip().splitlines()
        message = text[0][:500] if text and "Traceback" not in text[0] else "The model failed."
        return json.dumps({"error_code": "INTERNAL_ERROR", "message": message}).encode()


def too_large(most: int) -> Refusal:
    """The refusal of a body of more bytes than that."""
    message = f"The body is larger than {most} bytes, the most that is taken here (SERVING_MAX_BODY_BYTES)."
    return Refusal(413, message)


class Edge:
    """ASGI middleware: who asks, how much, under which id; which version answered, how long it took."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self.app, self.gateway = app, gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        known: dict[str, Any] = dict(scope.get("state") or {})  # gunicorn's own is shared by all requests
        scope = {**scope, "state": known}
        known["request_id"] = given if GIVEN_ID.fullmatch(given) else uuid.uuid4().hex
        known["live"], known["user"], known["failed"], known["too_large"] = None, "", None, False
        path, began, status = scope["path"], time.monotonic(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["X-Request-ID"] = known["request_id"]
                if (live := known["live"] or self.gateway.backend.state.live) is not None:
                    out["X-Model-Version"] = live.version
            await send(message)

        try:
            try:
                self._admit(headers, path, known)
                await self.app(scope, self._limited(receive, known), sending)
            except Refusal as refusal:
                await refusal.response(path)(scope, receive, sending)
            except ClientGone:
                status = CLIENT_GONE
            except asyncio.CancelledError:
                status = CLIENT_GONE
                raise
            except Exception as error:
                if status != 500:
                    raise  # the answer has begun
                print(f"{known['request_id']} {path}: {type(error).__name__}: {error}", flush=True)
                await Refusal(500, "Something went wrong here. The log has more under this request's id.").response(
                    path
                )(scope, receive, sending)
        finally:
            self._count(scope, path, str(known["failed"] or status), known["live"], time.monotonic() - began)

    def _admit(self, headers: Headers, path: str, known: dict[str, Any]) -> None:
        """Raise Refusal for whom no token lets in, and for too large a body."""
        tokens = self.gateway.tokens
        if tokens.needed and path not in OPEN:
            scheme, _, token = headers.get("authorization", "").partition(" ")
            if not token or scheme.lower() != "bearer":
                raise Refusal(401, "No token was sent. Expected the header `Authorization: Bearer TOKEN`.")
            owner = tokens.owner(token.strip())
            if owner is None:
                raise Refusal(
                    401,
                    "The token is not known here. `python -m serving.access add NAME` makes one.",
                    code="invalid_api_key",
                )
            known["user"] = owner
        size = headers.get("content-length", "")
        if size.isdecimal() and int(size) > self.gateway.settings.serving_max_body_bytes:
            raise too_large(self.gateway.settings.serving_max_body_bytes)

    def _limited(self, receive: Receive, known: dict[str, Any]) -> Receive:
        """`receive`, which raises Refusal once a body without a stated length is too large."""
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body") or b"")
            if size > self.gateway.settings.serving_max_body_bytes:
                known["too_large"] = True  # FastAPI makes a 400 of whatever comes from here
                raise too_large(self.gateway.settings.serving_max_body_bytes)
            return message

        return limited

    def _count(self, scope: Scope, path: str, status: str, live: Live | None, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None)
        label = str(route) if route else "other"  # paths that do not exist are many
        version = live.version if live else ""
        metrics.requests.labels(label, status, version).inc()
        metrics.request_seconds.labels(label, version).observe(seconds)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error.response(request.url.path)


async def _invalid(request: Request, error: Exception) -> Response:
    """A body that is not what the form asks for: which field, and why."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != "body")
    if first["type"] == "json_invalid":
        return Refusal(400, "The body is not JSON.").response(request.url.path)
    given = first.get("input")
    shown = f" is {str(given)[:100]!r}" if isinstance(given, (str, int, float, bool)) else ""
    return Refusal(422, f"{where or 'The body'}{shown}: {first['msg']}.", param=where or None).response(
        request.url.path
    )


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if request.state.too_large:
        return too_large(request.app.state.gateway.settings.serving_max_body_bytes).response(request.url.path)
    if error.status_code == 404:
        return Refusal(404, f"There is nothing at {request.url.path}.").response(request.url.path)
    return Refusal(error.status_code, str(error.detail)).response(request.url.path, error.headers)
