"""A real tracking server on SQLite and files, in a folder and on a port of its own."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from mlflow import MlflowClient

from services.tracking.readiness import is_ready, wait_until


@dataclass(frozen=True)
class Stack:
    """Where the server is, and how to run the parts against it."""

    url: str
    home: Path
    env: dict[str, str]

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.url)

    def popen(self, *module: str, **env: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-u", "-m", *module],
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def stack(tmp_path_factory, tiny):
    home = tmp_path_factory.mktemp("home")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = os.environ | {"RATCHET_HOME": str(home), "TRACKING_PORT": str(port), "MLFLOW_TRACKING_URI": url}
    log = (home / "tracking.log").open("w")
    server = subprocess.Popen([sys.executable, "-m", "services.tracking"], env=env, stdout=log, stderr=log)
    try:
        ready = wait_until(lambda: is_ready(url), 60, lambda: server.poll() is None)
        assert ready, (home / "tracking.log").read_text()
        yield Stack(url, home, env)
    finally:
        server.terminate()
        server.wait(20)
        log.close()
