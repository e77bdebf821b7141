"""What is done for every request: who asks, how much, under which id; which version answered, how long it took."""

import asyncio
import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contract.tokens import bearer
from serving.gateway import metrics
from serving.gateway.errors import Refusal, too_large
from serving.gateway.worker import ClientGone, Gateway
from serving.supervisor.state import Live

log = logging.getLogger(__name__)
OPEN = ("/ping", "/health", "/version", "/webhook")  # to everybody: they tell nothing, and cost nothing
PAGES = ("/", "/login", "/logout", "/act")  # which let people in themselves, by a cookie too
ABSOLUTE = re.compile(r"/?https?://[^/]*")  # a request's target as a proxy gets it
GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
CLIENT_GONE = 499  # nginx's number for it: nobody reads it, but the metrics


class Edge:
    """The ASGI middleware around all routes."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self.app, self.gateway = app, gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if absolute := ABSOLUTE.match(scope["path"]):
            scope = {**scope, "path": scope["path"][absolute.end() :] or "/"}
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        known: dict[str, Any] = dict(scope.get("state") or {})  # gunicorn's own is shared by all requests
        scope = {**scope, "state": known}
        known["request_id"] = given if GIVEN_ID.fullmatch(given) else uuid.uuid4().hex
        known["live"], known["user"], known["failed"], known["too_large"] = None, "", None, False
        known["assigned"] = None  # the arm of a trial
        known["trains"] = self.gateway.settings.serving_trains and not self.gateway.tokens.needed
        path, began, status = scope["path"], time.monotonic(), None

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                out = MutableHeaders(scope=message)
                out["X-Request-ID"] = known["request_id"]
                if (live := known["live"] or self.gateway.engine.state.live) is not None:
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
                if status is not None:
                    raise  # the answer has begun
                log.error("%s: %s: %s", path, type(error).__name__, error, extra={"request_id": known["request_id"]})
                await Refusal(503, "Something went wrong here. The log has more under this request's id.").response(
                    path
                )(scope, receive, sending)
        finally:
            self._count(scope, known, str(known["failed"] or status), time.monotonic() - began)

    def _admit(self, headers: Headers, path: str, known: dict[str, Any]) -> None:
        """Raise Refusal for whom no token lets in, and for too large a body."""
        tokens = self.gateway.tokens
        if tokens.needed and path not in (*OPEN, *PAGES):
            token = bearer(headers.get("authorization", ""))
            if not token:
                raise Refusal(401, "No token was sent. Expected the header `Authorization: Bearer TOKEN`.")
            owner = tokens.owner(token)
            if owner is None:
                raise Refusal(
                    401,
                    "The token is not known here. `python -m serving.gateway.tokens add NAME` makes one.",
                    code="invalid_api_key",
                )
            known["user"], known["trains"] = owner.name, owner.trains
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

    def _count(self, scope: Scope, known: dict[str, Any], status: str, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", None)
        label = str(route) if route else "other"  # paths that do not exist are many
        live: Live | None = known["live"]
        version = live.version if live else ""
        metrics.requests.labels(label, status, version, known["user"]).inc()
        metrics.request_seconds.labels(label, version).observe(seconds)
