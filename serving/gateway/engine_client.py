"""The gateway's way to the live model: whole answers by MLflow's scoring server, growing ones by the engine's socket.

What has not been answered in part is asked again where a model's process goes away: of the next one, or of the same
one started anew.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar, cast

import aiohttp

from contract.messages import (
    CompletionEnd,
    CompletionPiece,
    CompletionRequest,
    CompletionUsage,
    EngineStats,
    RequestUsage,
)
from serving.gateway.arms import Assigned
from serving.gateway.errors import Refusal
from serving.settings import RunSettings
from serving.supervisor import state
from serving.supervisor.state import Live, State, StateFile

T = TypeVar("T")
GONE = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError)
POLL_S = 0.02
KEEP_S = 2.0  # idle connections: uvicorn closes them after 5
BREAKS = 2  # how often a request is asked again that was under way when its process went away


@dataclass(frozen=True)
class Answer:
    """A whole answer of MLflow's scoring server."""

    status: int
    content_type: str
    body: bytes
    retry_after: str | None = None


class EngineClient:
    """One for each worker; used from its event loop."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.file = StateFile(settings.serving_run_folder / "state.json")
        self._http: aiohttp.ClientSession | None = None
        self._sockets: dict[str, aiohttp.ClientSession] = {}

    @property
    def state(self) -> State:
        return self.file.read()

    async def close(self) -> None:
        for session in (self._http, *self._sockets.values()):
            if session is not None:
                await session.close()

    async def live(self, until: float) -> Live:
        """The live model; waits for one that is on its way.

        Raises Refusal (503) where none is, or none by `until` on the monotonic clock.
        """
        while True:
            now = self.state
            if now.live is not None:
                return now.live
            if now.status in (state.WAITING, state.FAILING):
                raise Refusal(503, f"{now.status}: {now.message}", code=now.status, retry_after_s=5)
            if time.monotonic() > until:
                raise Refusal(503, f"No model answers: {now.message or 'it has just ended'}.", retry_after_s=5)
            await asyncio.sleep(POLL_S)

    async def invoke(
        self,
        body: bytes,
        content_type: str,
        until: float,
        chosen: Callable[[Live], None],
        assigned: Assigned | None = None,
    ) -> Answer:
        """Forward a request to MLflow's scoring server. `chosen` is told which version gets it."""

        async def send(live: Live) -> Answer:
            chosen(live)
            async with self._session().post(
                f"{live.url}/invocations", data=body, headers={"Content-Type": content_type}, timeout=_timeout(until)
            ) as reply:
                answer = Answer(
                    reply.status,
                    reply.headers.get("Content-Type", "application/json"),
                    await reply.read(),
                    reply.headers.get("Retry-After"),
                )
                if answer.status != 200 and assigned is not None and live is assigned.live and assigned.patience_s:
                    raise _refusal(answer.status, answer.body, answer.retry_after)  # the incumbent's to answer
                return answer

        return await self._attempt(send, until, assigned)

    @asynccontextmanager
    async def complete(
        self,
        request: CompletionRequest,
        until: float,
        chosen: Callable[[Live], None],
        assigned: Assigned | None = None,
    ) -> AsyncIterator[AsyncIterator[CompletionPiece | CompletionEnd]]:
        """The pieces of a completion, and its end, as the engine's socket sends them. Leaving early stops it.

        Raises Refusal: what the engine refuses, before the first piece.
        """
        reply: aiohttp.ClientResponse | None = None

        async def send(live: Live) -> tuple[aiohttp.ClientResponse, bytes]:
            nonlocal reply
            if reply is not None:
                reply.close()  # of the other arm
            chosen(live)
            asking: CompletionRequest = {**request, "deadline_s": max(0.1, until - time.monotonic())}
            reply = await self._socket(live.socket).post(
                "http://engine/completions", json=asking, timeout=_timeout(until + 5)
            )
            if reply.status != 200:
                raise _refusal(reply.status, await reply.read(), reply.headers.get("Retry-After"))
            first = await reply.content.readline()
            if not first:
                raise aiohttp.ClientPayloadError("nothing came")
            return reply, first

        try:
            opened, first = await self._attempt(send, until, assigned)
            yield _lines(opened, first, assigned)
        finally:
            if reply is not None:
                reply.close()

    async def once(self, live: Live, request: CompletionRequest, patience_s: float) -> CompletionEnd:
        """One whole completion of this version, and of no other. Raises Refusal; TimeoutError after `patience_s`."""
        try:
            async with self._socket(live.socket).post(
                "http://engine/completions",
                json={**request, "deadline_s": 2 * patience_s},  # who waits gives up first
                timeout=aiohttp.ClientTimeout(total=patience_s),
            ) as reply:
                body = await reply.read()
        except GONE as error:
            if isinstance(error, TimeoutError):
                raise
            raise Refusal(503, f"No answer of version {live.version}: {type(error).__name__}.") from error
        if reply.status != 200:
            raise _refusal(reply.status, body, None)
        try:
            last = dict(json.loads(body.splitlines()[-1]))
        except (ValueError, TypeError, IndexError) as error:
            raise Refusal(503, "The model's answer cannot be read.") from error
        if "finish_reason" not in last:
            raise Refusal(503, str(last.get("error", "The model's answer cannot be read.")))
        return cast(CompletionEnd, last)

    async def usage(self, live: Live, request_id: str) -> list[CompletionUsage]:
        """What a request's completions took; empty where the engine does not know."""
        with suppress(*GONE, asyncio.TimeoutError, ValueError, KeyError):
            async with self._socket(live.socket).get(
                f"http://engine/requests/{request_id}", timeout=aiohttp.ClientTimeout(2)
            ) as reply:
                found: RequestUsage = await reply.json()
                return found["usage"]
        return []

    async def cancel(self, live: Live, request_id: str) -> None:
        """Stop a request's completions."""
        with suppress(*GONE, asyncio.TimeoutError):
            await self._socket(live.socket).delete(
                f"http://engine/requests/{request_id}", timeout=aiohttp.ClientTimeout(2)
            )

    async def stats(self) -> EngineStats | None:
        """What the live engine says of itself; None while no version is live."""
        live = self.state.live
        if live is not None:
            with suppress(*GONE, asyncio.TimeoutError, ValueError):
                async with self._socket(live.socket).get(
                    "http://engine/stats", timeout=aiohttp.ClientTimeout(2)
                ) as reply:
                    found: EngineStats = await reply.json()
                    return found if isinstance(found, dict) and {"active", "waiting"} <= found.keys() else None
        return None

    async def _attempt(self, send: Callable[[Live], Awaitable[T]], until: float, assigned: Assigned | None = None) -> T:
        if assigned is not None and assigned.patience_s and not assigned.failed:
            try:
                async with asyncio.timeout(assigned.patience_s):
                    return await send(assigned.live)
            except (*GONE, TimeoutError, Refusal) as error:  # the incumbent answers it; or refuses it too, and says why
                assigned.failed, assigned.gone = str(error) or type(error).__name__, isinstance(error, GONE)
        broken = 0
        while True:
            live = await self.live(until)
            try:
                return await send(live)
            except GONE as error:
                # One that nobody took is sent again for as long as there is time; one that broke off may be the cause.
                broken += not isinstance(error, aiohttp.ClientConnectorError)
                if time.monotonic() > until or broken > BREAKS:
                    raise Refusal(503, "The model went away while it answered. Ask again.", retry_after_s=2) from error
                await asyncio.sleep(POLL_S)
            except TimeoutError as error:
                message = f"No answer within {self.settings.serving_timeout_s} s. Ask for fewer tokens."
                raise Refusal(503, message, retry_after_s=5) from error

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_S))
        return self._http

    def _socket(self, path: str) -> aiohttp.ClientSession:
        if path not in self._sockets:
            self._sockets[path] = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(path, limit=0, keepalive_timeout=KEEP_S)
            )
        return self._sockets[path]


def _timeout(until: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=max(0.1, until - time.monotonic()))


def _refusal(status: int, body: bytes, retry_after: str | None) -> Refusal:
    try:
        message = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        message = "The model answered with an error."
    if status >= 500:
        return Refusal(503, message, retry_after_s=float(retry_after or 5))
    return Refusal(422 if status == 400 else status, message, retry_after_s=float(retry_after) if retry_after else None)


async def _lines(
    reply: aiohttp.ClientResponse, first: bytes, assigned: Assigned | None
) -> AsyncIterator[CompletionPiece | CompletionEnd]:
    """Raises Refusal where the completion fails on its way."""
    line = first
    while line:
        try:
            item = dict(json.loads(line))
        except (ValueError, TypeError) as error:  # its own code says something else than the protocol
            raise Refusal(503, "The model's answer cannot be read. Ask again.") from error
        if "error" in item:
            raise Refusal(429 if item.get("error_code") == "RESOURCE_EXHAUSTED" else 503, item["error"])
        yield cast(CompletionEnd, item) if "finish_reason" in item else cast(CompletionPiece, item)
        if "finish_reason" in item:
            return
        try:
            line = await reply.content.readline()
        except GONE:
            if assigned is not None:
                assigned.gone = True
            break
    raise Refusal(503, "The model went away in the middle of the completion. Ask again.")
