"""`trainer try --page`: a page on this machine alone, for whoever has the token that stands in its address.

GET /?token=…     the page
POST /complete    {"prefix", "suffix", "max_new_tokens", "temperature"}, the header X-Token → {"answers": [Answer, …]}

Whatever is refused, or fails, is {"error": "…"}.
"""

import hmac
import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mlflow.exceptions import MlflowException

from code_model.params import GenerationParams
from contract.errors import InputError, RatchetError, json_type
from contract.tracking import as_ours
from trainer import pages
from trainer.data.filters import is_unicode
from trainer.playground.cursor import Place
from trainer.playground.models import Answer, note

HOST = "127.0.0.1"
MOST_BYTES = 1_000_000  # of a request
TIMEOUT_S = 30  # for a request to arrive
PARAMS = ("max_new_tokens", "temperature")
Complete = Callable[[Place, GenerationParams], list[Answer]]


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Server(ThreadingHTTPServer):
    """Serves the page until it is interrupted. Raises InputError for a port that cannot be had."""

    daemon_threads = True

    def __init__(self, models: Sequence[str], complete: Complete, params: GenerationParams, port: int) -> None:
        self.models, self.complete, self.params = models, complete, params
        self.token = secrets.token_urlsafe(24)
        self.computing = Lock()  # a model answers one at a time
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise InputError(f"--port is {port}, which cannot be had: {error}. Expected one that is free.") from error
        self.hosts = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}

    @property
    def url(self) -> str:
        """Where to open the page."""
        return f"http://{HOST}:{self.server_port}/?token={self.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is nothing to tell of."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = TIMEOUT_S
    server_version, sys_version = "trainer", ""

    def do_GET(self) -> None:
        self._answer(self._page)

    def do_POST(self) -> None:
        self._answer(self._completions)

    def _answer(self, make: Callable[[], tuple[str, bytes]]) -> None:
        try:
            # A page elsewhere whose name was made to lead here says that name: it gets nothing (DNS rebinding).
            if self.headers.get("Host") not in self.server.hosts:
                raise _Refused(403, f"The request is for another host. Expected {' or '.join(self.server.hosts)}.")
            kind, body = make()
            self._send(200, kind, body)
        except (_Refused, RatchetError, MlflowException) as error:
            ours = as_ours(error, "") or error
            status = error.status if isinstance(error, _Refused) else 400 if isinstance(ours, InputError) else 500
            self.send_error(status, getattr(ours, "message", None) or str(ours))
        except ConnectionError:  # the browser went away
            self.close_connection = True
        except Exception as error:  # of a model's own code
            note(f"A completion failed: {type(error).__name__}: {error}")
            self.send_error(500, f"{type(error).__name__}: {error}")

    def _page(self) -> tuple[str, bytes]:
        address = urlsplit(self.path)
        if address.path != "/":
            raise _Refused(404, f"There is no {address.path}.")
        self._check_token(parse_qs(address.query).get("token", [""])[0])
        defaults = {name: getattr(self.server.params, name) for name in PARAMS}
        html = pages.render("try.html", {"models": self.server.models, "params": defaults})
        return "text/html; charset=utf-8", html.encode()

    def _completions(self) -> tuple[str, bytes]:
        if self.path != "/complete":
            raise _Refused(404, f"There is no {urlsplit(self.path).path}.")
        self._check_token(self.headers.get("X-Token", ""))
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()):
            raise _Refused(411, "The request has no Content-Length.")
        if len(length) > 9 or int(length) > MOST_BYTES:
            raise _Refused(413, f"The request has {length[:20]} bytes. Expected at most {MOST_BYTES}.")
        place, params = _parsed(self.rfile.read(int(length)), self.server.params)
        with self.server.computing:
            answers = self.server.complete(place, params)
        return "application/json", json.dumps({"answers": [asdict(item) for item in answers]}).encode()

    def _check_token(self, given: str) -> None:
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self.server.token.encode()):
            raise _Refused(
                403, "The token is missing or wrong. Open the address that `trainer try --page` has printed."
            )

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer with an error in JSON; http.server calls this too, where it would send HTML."""
        self.close_connection = True
        code = 405 if code == HTTPStatus.NOT_IMPLEMENTED else code  # its answer to a method that is not here
        self._send(code, "application/json", json.dumps({"error": message or explain or str(code)}).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Referrer-Policy", "no-referrer"),  # the address has the token in it
            ("X-Content-Type-Options", "nosniff"),
            ("X-Frame-Options", "DENY"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the address has the token in it."""


def _parsed(body: bytes, defaults: GenerationParams) -> tuple[Place, GenerationParams]:
    """What a request asks for. Raises InputError, or MlflowException for a wrong parameter."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError(f"The request is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise InputError(f"The request is a JSON {json_type(given)}. Expected an object.")
    texts = {name: given.pop(name, "") for name in ("prefix", "suffix")}
    for name, text in texts.items():
        if not isinstance(text, str) or not is_unicode(text):
            raise InputError(f"{name} is {text!r:.100}. Expected a text.")
    if not "".join(texts.values()).strip():
        raise InputError("There is no code to complete. Expected some before the cursor, or after it.")
    if unknown := sorted(set(given) - set(PARAMS)):
        raise InputError(f"The request has {', '.join(unknown)}. Expected prefix, suffix, {', '.join(PARAMS)}.")
    return Place("", texts["prefix"], texts["suffix"]), defaults.updated(given)
