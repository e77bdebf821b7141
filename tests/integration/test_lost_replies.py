"""The tracking server does what it is asked, and its reply is lost: nothing is there twice."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import requests

from tests.integration.conftest import Stack
from tests.integration.test_never_loses_work import STEPS, candidate, finish, losses, settings

pytestmark = pytest.mark.integration


@contextmanager
def forgetful_proxy(target: str, requests_lost: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """(URL, paths whose replies were lost so far): passes on all requests, and loses two replies of each path.

    Those whose request holds the bytes that stand beside the path.
    """
    lost: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {key: value for key, value in self.headers.items() if key not in ("Host", "Connection")}
            reply = requests.request(self.command, target + self.path, data=body, headers=headers, timeout=60)
            for path, inside in requests_lost.items():
                if self.path.endswith(path) and inside in body and lost.count(path) < 2:
                    lost.append(path)
                    self.close_connection = True
                    return  # without a word
            self.send_response(reply.status_code)
            self.send_header("Content-Type", reply.headers.get("Content-Type", "application/json"))
            self.send_header("Content-Length", str(len(reply.content)))
            self.end_headers()
            self.wfile.write(reply.content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        def log_message(self, *arguments: object) -> None:
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}", lost
    finally:
        proxy.shutdown()
        proxy.server_close()


def test_lost_replies_make_no_second_run_version_or_metric(stack: Stack, tiny) -> None:
    paths = {"/model-versions/create": b"candidate", "/runs/create": b"candidate", "/runs/log-batch": b"train/loss"}
    with forgetful_proxy(stack.url, paths) as (url, lost):
        finish(stack, *settings(tiny, "lost"), MLFLOW_TRACKING_URI=url)
    # The run's one, each version's one, and two of metrics, which are simply sent again.
    assert {path: lost.count(path) for path in paths} == dict(zip(paths, (2, 1, 2), strict=True))
    run = candidate(stack, "lost")  # one
    assert [step for step, _ in losses(stack, run)] == list(range(1, STEPS + 1))
    for name in ("lost_model", "lost_pytorch_model"):
        versions = stack.client.search_model_versions(f"name = '{name}'")
        assert sorted(version.tags["role"] for version in versions) == ["base", "candidate"]
