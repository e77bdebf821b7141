"""The real compose file on a real Docker engine, as a project of its own with ports and secrets of its own."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from testcontainers.compose import DockerCompose

from contract.files import free_port
from infra import environment
from tests.support.images import ROOT
from tests.support.stack import BUILT_FROM, SECRETS, TAG, Platform


@pytest.fixture(scope="package")
def environ(tmp_path_factory) -> Iterator[dict[str, str]]:
    """What the stack's env file says: `make env` in a folder of its own, free ports, a project name."""
    home = tmp_path_factory.mktemp("stack")
    if (offline := ROOT / environment.OFFLINE).exists():
        shutil.copy(offline, home)
    environment.write(home)
    users = environment.values((ROOT / ".env").read_text()) if (ROOT / ".env").exists() else {}
    commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    values = {name: os.environ.get(name) or users.get(name) for name in BUILT_FROM} | {
        "COMPOSE_PROJECT_NAME": f"ratchet-test-{os.getpid()}",
        "POSTGRES_PASSWORD_FILE": str(home / ".secrets" / "postgres_password"),
        "MINIO_ROOT_PASSWORD_FILE": str(home / ".secrets" / "minio_root_password"),
        "SERVING_TOKENS_FILE": str(home / ".secrets" / "serving_tokens"),
        "TRACKING_PORT": str(free_port()),
        "SERVING_PORT": str(free_port()),
        "BALANCER_PORT": str(free_port()),
        "MINIO_CONSOLE_PORT": str(free_port()),
        "RATCHET_TAG": TAG,
        "GIT_COMMIT": commit.stdout.strip(),
    }
    given = {name: value for name, value in values.items() if value}
    with (home / ".env").open("a") as file:
        file.writelines(f"{name}={value}\n" for name, value in given.items())
    # Which server earlier tests spoke to: MLflow keeps it, and now and then writes it into the environment once more.
    mlflow.set_tracking_uri("")
    with pytest.MonkeyPatch.context() as patch:
        for name in {*environment.values(environment.TEMPLATE.read_text().replace("#", "")), *given}:
            patch.delenv(name, raising=False)  # the shell would win over the file
        yield given | {"ENV_FILE": str(home / ".env")}


@pytest.fixture(scope="package")
def platform(engine, environ) -> Iterator[Platform]:
    """`docker compose up --wait` from nothing; afterwards everything is taken away, the volumes too."""
    compose = DockerCompose(ROOT, compose_file_name="docker-compose.yml", env_file=environ["ENV_FILE"])
    stack = Platform(
        compose,
        f"http://127.0.0.1:{environ['TRACKING_PORT']}",
        f"http://127.0.0.1:{environ['SERVING_PORT']}",
        {name: Path(environ[name]).read_text() for name in SECRETS},
        {"Authorization": f"Bearer {Path(environ['SERVING_TOKENS_FILE']).with_name('serving_token').read_text()}"},
    )
    try:
        stack.docker_compose("--profile", "jobs", "build", "--quiet", timeout_s=1800)
        try:
            compose.start()
        except subprocess.CalledProcessError:
            print(stack.evidence())
            raise
        yield stack
    finally:  # the jobs' networks and volumes too
        stack.docker_compose("--profile", "*", "down", "--volumes", "--timeout", "5")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Production last: its way from a local stack takes along what the tests of that stack have made."""
    ours = [number for number, item in enumerate(items) if "stack" in item.path.parts]
    last = sorted((items[number] for number in ours), key=lambda item: "production" in item.path.parts)
    for number, item in zip(ours, last, strict=True):
        items[number] = item


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Print the services' logs with a failure."""
    outcome = yield
    report = outcome.get_result()
    stack = getattr(item, "funcargs", {}).get("platform")
    if report.failed and isinstance(stack, Platform):
        report.sections.append(("docker compose", stack.evidence()))
