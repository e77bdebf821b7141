"""The real compose file on a real Docker engine, as a project of its own with ports and secrets of its own."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from mlflow import MlflowClient
from testcontainers.compose import DockerCompose

from infra import environment
from services.tracking.readiness import wait_until
from tests.conftest import ROOT
from tests.integration.conftest import free_port

SERVICES = ("postgres", "minio", "bucket", "migrate", "tracking", "trainer", "promoter", "serving")
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

    def docker_compose(self, *arguments: str, expected: int = 0) -> str:
        """Run `docker compose …`; returns what it printed."""
        result = subprocess.run(
            [*self.compose.compose_command_property, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == expected, f"{arguments}: {result.returncode}\n{result.stdout}{result.stderr}"
        return result.stdout + result.stderr

    def up(self) -> None:
        self.docker_compose("up", "--detach", "--wait")

    def run(self, service: str, *arguments: str, expected: int = 0) -> str:
        """Run a job, as `docker compose run --rm SERVICE …` does."""
        return self.docker_compose("run", "--rm", "--no-TTY", service, *arguments, expected=expected)

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

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.tracking_url)


@pytest.fixture(scope="session")
def environ(tmp_path_factory) -> Iterator[dict[str, str]]:
    """The environment in which Compose runs: `make env` in a folder of its own, free ports, a project name."""
    home = tmp_path_factory.mktemp("stack")
    if (offline := ROOT / environment.OFFLINE).exists():
        shutil.copy(offline, home)
    environment.write(home)
    values = {
        "COMPOSE_PROJECT_NAME": f"ratchet-test-{os.getpid()}",
        "ENV_FILE": str(home / ".env"),
        "POSTGRES_PASSWORD_FILE": str(home / ".secrets" / "postgres_password"),
        "MINIO_ROOT_PASSWORD_FILE": str(home / ".secrets" / "minio_root_password"),
        "TRACKING_PORT": str(free_port()),
        "SERVING_PORT": str(free_port()),
        "MINIO_CONSOLE_PORT": str(free_port()),
        "SOURCE_DIR": "",
        "USER": "ada",
    }
    before = dict(os.environ)
    os.environ.update(values)
    yield values
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def platform(engine, environ) -> Iterator[Platform]:
    """`docker compose up --wait` from nothing; afterwards everything is taken away, the volumes too."""
    compose = DockerCompose(
        ROOT, compose_file_name="docker-compose.yml", env_file=environ["ENV_FILE"], profiles=["jobs"]
    )
    stack = Platform(
        compose,
        f"http://127.0.0.1:{environ['TRACKING_PORT']}",
        f"http://127.0.0.1:{environ['SERVING_PORT']}",
        {name: Path(environ[name]).read_text() for name in SECRETS},
    )
    # One list of images for all tests: built here, so that no test's time depends on which one came first.
    build = subprocess.run(
        [*compose.compose_command_property, "build", "--quiet"], cwd=ROOT, capture_output=True, text=True
    )
    assert build.returncode == 0, build.stdout + build.stderr
    compose.profiles = None  # from here on the jobs are started by `run`, as users do
    del compose.compose_command_property
    try:
        with compose:
            yield stack
    finally:
        subprocess.run(  # the jobs' networks and volumes too
            [*compose.compose_command_property, "--profile", "jobs", "down", "--volumes", "--timeout", "5"],
            cwd=ROOT,
            capture_output=True,
        )


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Print the services' logs with a failure."""
    outcome = yield
    report = outcome.get_result()
    stack = getattr(item, "funcargs", {}).get("platform")
    if report.failed and isinstance(stack, Platform):
        report.sections.append(("docker compose logs", stack.docker_compose("logs", "--no-color", "--tail", "40")))
        report.sections.append(("docker compose ps", stack.docker_compose("ps", "--all")))
