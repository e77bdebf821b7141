"""Connections to the gateway: gunicorn's, which wait for no client for ever, and answer one request after another.

gunicorn 26's ASGI worker leaves a connection open on which nothing comes, drops what is sent behind a request before
its answer, takes `+5` for a length, and hands upgrades to WebSocket to an application that has none.
"""

import asyncio
import re
from typing import Any

from gunicorn.asgi.parser import InvalidHeader
from gunicorn.asgi.protocol import ASGIProtocol
from gunicorn.workers import gasgi

HEAD_S = 10.0  # for the whole head of a request
BODY_S = 30.0  # for its body
MOST_BEHIND = 1 << 16  # bytes sent behind a request that is not answered yet, before no more are read
LENGTH = re.compile(rb"[0-9]+")


class Connection(ASGIProtocol):  # type: ignore[misc]
    """One client's connection."""

    def __init__(self, worker: Any) -> None:
        super().__init__(worker)
        self._timer: asyncio.TimerHandle | None = None
        self._behind = b""  # bytes of the requests after this one

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait(HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        parser = self._callback_parser
        if parser is not None and parser.is_complete:
            self._behind += data
        else:
            super().data_received(data)
            if parser is not None and parser.is_complete:
                self._behind += parser.remaining()
        if len(self._behind) > MOST_BEHIND:
            self._pause_reading()

    def _on_headers_complete(self) -> bool:
        headers = [(name.lower(), value.strip()) for name, value in self._callback_parser.headers]
        for name, value in headers:
            if name == b"content-length" and not LENGTH.fullmatch(value):
                raise InvalidHeader("Content-Length is not a number of digits")
        if self._callback_parser.method == b"HEAD" and self._has_body(headers):
            raise InvalidHeader("A HEAD request has a body")  # which would be read as the next request
        self._wait(BODY_S)
        skips: bool = super()._on_headers_complete()
        return skips

    def _on_message_complete(self) -> None:
        self._wait(None)
        super()._on_message_complete()

    def _arm_keepalive_timer(self) -> None:
        """The answer is out: go on with what came behind the request, or wait for the next."""
        self._wait(float(self.cfg.keepalive))
        behind, self._behind = self._behind, b""
        if behind:
            self._wait(HEAD_S)
            self.data_received(behind)

    def _is_websocket_upgrade(self, request: Any) -> bool:
        return False  # as RFC 9110 has it, who does not know an upgrade answers the request

    def _wait(self, seconds: float | None) -> None:
        """Give the client so much time from now on; None: as much as it takes."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.worker.loop.call_later(seconds, self._time_is_up)

    def _time_is_up(self) -> None:
        parser = self._callback_parser
        begun = self._current_request is not None or bool(parser is not None and (parser.method or parser._buffer))
        if begun and self._response_buffer is None:
            self._send_error_response(408, "The request did not come to its end in time")
        self._close_transport()

    @staticmethod
    def _has_body(headers: list[tuple[bytes, bytes]]) -> bool:
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and int(value)) for name, value in headers
        )


class Worker(gasgi.ASGIWorker):  # type: ignore[misc]
    """gunicorn's ASGI worker with our connections."""

    def init_process(self) -> None:
        vars(gasgi)["ASGIProtocol"] = Connection
        super().init_process()
