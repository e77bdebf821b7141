"""A proxy before the tracking server, by which a test sees each request and can lose its reply."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests


@contextmanager
def proxy(target: str, keep: Callable[[str, str, bytes], bool]) -> Iterator[str]:
    """The URL of a proxy that passes on all requests.

    keep(method, path, body) is called once the server has answered; where it says no, the reply is lost.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or each reply waits 40 ms for an acknowledgement

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {key: value for key, value in self.headers.items() if key not in ("Host", "Connection")}
            reply = requests.request(self.command, target + self.path, data=body, headers=headers, timeout=60)
            if not keep(self.command, self.path, body):
                self.close_connection = True
                return  # without a word
            self.send_response_only(reply.status_code)
            self.send_header("Content-Type", reply.headers.get("Content-Type", "application/json"))
            self.send_header("Content-Length", str(len(reply.content)))
            self.send_header("Date", reply.headers["Date"])
            self.end_headers()
            self.wfile.write(reply.content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
