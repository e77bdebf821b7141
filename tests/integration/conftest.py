"""A real tracking server on SQLite and files, in a folder and on a port of its own."""

import shutil
from collections.abc import Iterator

import pytest
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import PortWaitStrategy

from tests.support.images import base_image
from tests.support.tracking import Stack, make_stack, server


@pytest.fixture(scope="session")
def stack(tmp_path_factory, tiny) -> Iterator[Stack]:
    stack = make_stack(tmp_path_factory.mktemp("home"))
    with server(stack):
        yield stack


@pytest.fixture
def no_unfinished_jobs(stack: Stack) -> None:
    """What earlier tests left unfinished, and would be found instead of what this one makes."""
    shutil.rmtree(stack.home / "checkpoints" / "jobs", ignore_errors=True)


@pytest.fixture(scope="session")
def s3(engine) -> Iterator[str]:
    """A real S3 API; rclone's, where MinIO cannot be pulled."""
    container = (
        DockerContainer(image=base_image("MINIO_IMAGE"))
        .with_command("server /data --console-address :9001")
        .with_env("MINIO_ROOT_USER", "ratchet")
        .with_env("MINIO_ROOT_PASSWORD", "right-secret")
        .with_exposed_ports(9000)
        .waiting_for(PortWaitStrategy(9000))
    )
    with container:
        yield f"http://{container.get_container_host_ip()}:{container.get_exposed_port(9000)}"
