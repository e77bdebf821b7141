"""Versions of a tiny model in a registry, a serving process that follows them, and clients that never stop asking."""

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import requests
from mlflow.models import Model

import code_model.pyfunc
from code_model.params import GenerationParams
from contract.files import free_port
from contract.names import MANIFEST_SHA256, PRODUCTION
from contract.versions import metadata_of_release
from services.tracking.readiness import wait_until
from tests.support.tracking import Stack
from trainer.pyfunc_flavor import PyfuncWithManifest

PROMPT = "def add(a, b):\n"


def variant(folder: Path, to: Path, seed: int) -> Path:
    """A copy of a model's folder with other random weights: it answers otherwise."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, to)
    torch.manual_seed(seed)
    for path in to.glob("*.safetensors"):
        save_file(
            {name: torch.randn_like(value) for name, value in load_file(path).items()}, path, metadata={"format": "pt"}
        )
    return to


def register(
    stack: Stack,
    name: str,
    folder: Path,
    python_model: str = code_model.pyfunc.__file__,
    metadata: dict[str, str] | None = None,
) -> str:
    """Log a PyFunc as the trainer does, and register it; returns the version's number."""
    mlflow.set_tracking_uri(stack.url)
    flavor = PyfuncWithManifest()
    mlflow.set_experiment(name)
    with mlflow.start_run() as run:
        info = Model.log(
            artifact_path=None,
            name="model",
            flavor=flavor,
            python_model=python_model,
            code_paths=[str(Path(code_model.pyfunc.__file__).parent)],
            metadata=metadata or metadata_of_release(),
            artifacts={"model": str(folder)},
            model_config=code_model.pyfunc.default_config(),
            pip_requirements=[],
            signature=code_model.pyfunc.signature(GenerationParams(max_new_tokens=8)),
        )
    client = stack.client
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    tags = {MANIFEST_SHA256: flavor.sha256}
    version = client.create_model_version(name, info.model_uri, run.info.run_id, tags, model_id=info.model_id)
    return str(version.version)


def register_variants(stack: Stack, name: str, folder: Path, to: Path, count: int) -> None:
    """Versions 1, 2, … that answer differently; the first is in production."""
    for number in range(count):
        register(stack, name, variant(folder, to / str(number), number))
    stack.client.set_registered_model_alias(name, PRODUCTION, "1")


@dataclass
class Serving:
    """A running `python -m serving`."""

    process: "subprocess.Popen[str]"
    url: str
    log: Path
    headers: dict[str, str] = field(default_factory=dict)  # the token

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = requests.get(f"{self.url}/status", headers=self.headers, timeout=10).json()
        return found

    def ask(self, prompt: str = PROMPT, **params: Any) -> requests.Response:
        asked = {"inputs": [prompt], "params": {"max_new_tokens": 8, **params}}
        return requests.post(f"{self.url}/invocations", json=asked, headers=self.headers, timeout=90)

    def version(self) -> str | None:
        """The version behind /ping; None where nothing answers it with 200."""
        try:
            reply = requests.get(f"{self.url}/ping", timeout=5)
        except requests.RequestException:
            return None
        return reply.headers["X-Model-Version"] if reply.ok else None

    def listens(self) -> bool:
        try:
            return requests.get(f"{self.url}/ping", timeout=5).status_code in (200, 503)
        except requests.RequestException:
            return False

    def wait_for(self, condition: Any, what: str, timeout_s: float = 90) -> None:
        met = wait_until(condition, timeout_s, lambda: self.process.poll() is None)
        assert met, f"not within {timeout_s} s: {what}\n{self.log.read_text()[-5000:]}"

    def wait_for_version(self, number: str) -> None:
        self.wait_for(lambda: self.version() == number, f"version {number} is live")

    def metric(self, line: str) -> float:
        """The value of one line of /metrics, by its name and labels; 0 where it is not there."""
        text = requests.get(f"{self.url}/metrics", headers=self.headers, timeout=10).text
        return next((float(found.split()[-1]) for found in text.splitlines() if found.startswith(line)), 0.0)


@contextmanager
def serving_process(
    stack: Stack, model: str, home: Path, prefix: tuple[str, ...] = (), **env: str
) -> Iterator[Serving]:
    """Serve a model's alias `production`, until the end."""
    port = env.get("SERVING_PORT") or str(free_port())
    home.mkdir(exist_ok=True)
    settings = {
        "RATCHET_HOME": str(home),
        "SERVING_MODEL": model,
        "SERVING_PORT": port,
        "SERVING_WAIT": "true",
        "SERVING_POLL_S": "0.5",
    }
    log_path = home / "serving.log"
    with log_path.open("w") as log:
        process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "serving"],
            env=stack.env | settings | env,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )
        service = Serving(process, f"http://127.0.0.1:{port}", log_path)
        try:
            service.wait_for(service.listens, "it listens")
            yield service
        finally:
            process.terminate()
            try:
                process.wait(90)
            finally:
                process.kill()


@dataclass
class Load:
    """Clients that ask one after another until `stop`; what came back, request by request."""

    service: Serving
    clients: int
    answers: list[tuple[float, float, int, str, str]] = field(
        default_factory=list
    )  # when, seconds, status, version, text
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Load":
        for number in range(self.clients):
            thread = threading.Thread(target=self._ask, args=(number,))
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def failed(self) -> list[tuple[float, float, int, str, str]]:
        return [answer for answer in self.answers if answer[2] != 200]

    def _ask(self, number: int) -> None:
        session = requests.Session()
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                if number % 2:
                    reply = session.post(
                        f"{self.service.url}/v1/completions", json={"prompt": PROMPT, "max_tokens": 8}, timeout=90
                    )
                    text = reply.json()["choices"][0]["text"] if reply.ok else reply.text
                else:
                    reply = session.post(
                        f"{self.service.url}/invocations",
                        json={"inputs": [PROMPT], "params": {"max_new_tokens": 8}},
                        timeout=90,
                    )
                    text = reply.json()["predictions"][0] if reply.ok else reply.text
                status, version = reply.status_code, reply.headers.get("X-Model-Version", "")
            except requests.RequestException as error:
                status, version, text = 0, "", repr(error)
            self.answers.append((began, time.monotonic() - began, status, version, text))
