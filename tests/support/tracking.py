"""A real tracking server on SQLite and files, in a folder and on a port of its own, and the parts against it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner, Result
from mlflow import MlflowClient

from contract.files import free_port
from services.tracking.readiness import is_ready, wait_until
from tests.support import zygote
from tests.support.zygote import Forked


@dataclass(frozen=True)
class Stack:
    """Where the server is, and how to run the parts against it."""

    url: str
    home: Path
    env: dict[str, str]

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.url)

    def popen(self, module: str, *arguments: str, **env: str) -> "subprocess.Popen[str] | Forked":
        """Run a part as a process of its own; the trainer by a fork that saves its imports (zygote.py)."""
        if module == "trainer":
            return zygote.start(list(arguments), self.env | env)
        return subprocess.Popen(
            [sys.executable, "-u", "-m", module, *arguments],
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A shell's background job ignores Ctrl-C, and so would all that it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def promoter(self, *arguments: str) -> Result:
        from promoter.cli import main

        return CliRunner().invoke(main, ["--tracking-uri", self.url, *arguments])


def make_stack(home: Path) -> Stack:
    """A folder and a free port for a tracking server."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = os.environ | {
        "RATCHET_HOME": str(home),
        "TRACKING_PORT": str(port),
        "MLFLOW_TRACKING_URI": url,
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "https,http",  # to serving, as in the stack
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",  # seconds
    }
    return Stack(url, home, env)


@contextmanager
def server(stack: Stack) -> Iterator["subprocess.Popen[bytes]"]:
    """Its tracking server, up until the end; on data that an earlier one left, where there are any."""
    log_path = stack.home / "tracking.log"
    with log_path.open("a") as log:
        process = subprocess.Popen([sys.executable, "-m", "services.tracking"], env=stack.env, stdout=log, stderr=log)
        try:
            ready = wait_until(lambda: is_ready(stack.url), 60, lambda: process.poll() is None)
            assert ready, log_path.read_text()
            yield process
        finally:
            process.terminate()
            process.wait(20)
