"""The port while there is no model yet: every request gets 503 and is told what is awaited, or what is wrong."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import click

WAITING = "waiting"  # for a first version: all is well
FAILING = "failing"  # there is something to serve, or nobody knows, and it cannot be got


class WaitingRoom:
    """A context manager that answers on a port: `{"status": "waiting", "message": …}` with 503."""

    def __init__(self, host: str, port: int) -> None:
        self._state = (WAITING, "starting")
        self._server = ThreadingHTTPServer((host, port), self._handler())

    def __enter__(self) -> "WaitingRoom":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def say(self, status: str, message: str) -> None:
        """Tell how things are: those who ask, and the log where it is news."""
        if (status, message) != self._state:
            click.echo(f"{status.capitalize()}. {message}")
        self._state = (status, message)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        room = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))  # unread, it would reset the connection
                body = json.dumps(dict(zip(("status", "message"), room._state, strict=True))).encode()
                self.send_response(503)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Retry-After", "5")
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # the names that http.server calls

            def log_message(self, *arguments: Any) -> None:
                """Nothing: the health check asks every few seconds."""

        return Handler
