"""The running Compose stack, and what a user does with it."""

import json
import os
import subprocess
from dataclasses import dataclass
from typing import Any

import requests
from mlflow import MlflowClient
from testcontainers.compose import DockerCompose

from services.tracking.readiness import wait_until
from tests.support.images import ROOT

# Kept from the shell and the user's .env: what images are built from. All else is the tests' own.
BUILT_FROM = (
    *("PIP_EXTRA_INDEX_URL", "PYTHON_IMAGE", "WHEELS_IMAGE", "POSTGRES_IMAGE", "MINIO_IMAGE"),
    *("BALANCER_IMAGE", "EDGE_IMAGE"),
)
TAG = "test"
SERVICES = (
    *("postgres", "minio", "bucket", "migrate", "tracking", "evaluator", "trainer", "monitor", "promoter"),
    *("promoter-server", "serving", "loop", "loop-trainer"),
)
SECRETS = ("POSTGRES_PASSWORD_FILE", "MINIO_ROOT_PASSWORD_FILE")


def docker_json(*arguments: str) -> dict[str, Any]:
    """The one object that a `docker … inspect NAME` prints."""
    (found,) = json.loads(subprocess.run(["docker", *arguments], capture_output=True, check=True).stdout)
    return dict(found)


@dataclass(frozen=True)
class Platform:
    """The running stack, and what a user does with it."""

    compose: DockerCompose
    tracking_url: str
    serving_url: str
    secrets: dict[str, str]  # by the variable that names the file
    headers: dict[str, str]  # with the first token for serving

    def docker_compose(self, *arguments: str, expected: int | None = 0, timeout_s: float = 300, **env: str) -> str:
        """Run `docker compose …` as Ada does; returns what it printed. `expected` None allows any exit code."""
        result = subprocess.run(
            [*self.compose.compose_command_property, *arguments],
            cwd=ROOT,
            env=os.environ | {"USER": "ada"} | env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        assert expected in (None, result.returncode), f"{arguments} {result.returncode}\n{result.stdout}{result.stderr}"
        return result.stdout + result.stderr

    def up(self) -> None:
        self.docker_compose("up", "--detach", "--wait")

    def run(self, service: str, *arguments: str, expected: int = 0, **env: str) -> str:
        """Run a job, as `docker compose run --rm SERVICE …` does."""
        return self.docker_compose("run", "--rm", "--no-TTY", service, *arguments, expected=expected, **env)

    def python(self, service: str, program: str) -> str:
        """Run a Python program inside a running service; returns what it printed."""
        return self.docker_compose("exec", "--no-TTY", service, "python", "-c", program)

    def inspect(self, service: str) -> dict[str, Any]:
        """What `docker inspect` says of a service's container, running or not."""
        found = self.docker_compose("ps", "--all", "--quiet", service).split()
        assert found, f"{service} has no container"
        return docker_json("inspect", found[0])

    def health(self, service: str) -> str:
        return str(self.inspect(service)["State"]["Health"]["Status"])

    def wait_for(self, condition: Any, what: str, timeout_s: float = 120) -> None:
        assert wait_until(condition, timeout_s, lambda: True), f"not within {timeout_s} s: {what}"

    def serves(self) -> bool:
        try:
            return requests.get(f"{self.serving_url}/ping", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def evidence(self) -> str:
        """What one looks at after a failure: the services' states and logs."""
        return self.docker_compose("ps", "--all") + self.docker_compose("logs", "--no-color", "--tail", "40")

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.tracking_url)
