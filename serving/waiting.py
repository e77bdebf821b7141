"""The port while there is no model yet: every request gets 503 and is told what is awaited."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import click

WAITING = "waiting"


class WaitingRoom:
    """A context manager that answers on a port: `{"status": "waiting", "message": …}`."""

    def __init__(self, host: str, port: int) -> None:
        self._message = "starting"
        self._server = ThreadingHTTPServer((host, port), self._handler())

    def __enter__(self) -> "WaitingRoom":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def say(self, message: str) -> None:
        """Tell what is awaited: those who ask, and the log where it is news."""
        if message != self._message:
            click.echo(f"Waiting. {message}")
        self._message = message

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        room = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = json.dumps({"status": WAITING, "message": room._message}).encode()
                self.send_response(503)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Retry-After", "5")
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = answer  # the names that http.server calls

            def log_message(self, *arguments: Any) -> None:
                """Nothing: the health check asks every few seconds."""

        return Handler
