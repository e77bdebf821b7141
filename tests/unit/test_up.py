"""`make up`, `make doctor` and the make targets: what they say before anything begins."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra import environment, ports, up
from infra.up import Problem

LISTEN = (
    "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
)


@pytest.fixture
def listening() -> Iterator[tuple[int, int]]:
    """(port, pid) of another program that listens."""
    yield from _listening({})


@pytest.fixture
def ratchet_listening() -> Iterator[tuple[int, int]]:
    yield from _listening({"RATCHET_HOME": "var"})


def _listening(env: dict[str, str]) -> Iterator[tuple[int, int]]:
    own = {name: value for name, value in os.environ.items() if name != "RATCHET_HOME"}
    with subprocess.Popen(
        [sys.executable, "-c", LISTEN], env=own | env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process.pid
        process.kill()


def test_a_free_port_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert ports.holder(port) is not None
    assert ports.holder(port) is None


def test_who_holds_a_port_is_named(listening) -> None:
    port, pid = listening
    found = ports.holder(port)
    assert found is not None
    assert found.what.startswith(f"process {pid} (")
    assert (found.remedy, found.ours) == (f"kill {pid}", False)


def test_a_server_of_ratchet_s_is_known(ratchet_listening) -> None:
    found = ports.holder(ratchet_listening[0])
    assert found is not None
    assert found.ours
    assert found.remedy.startswith("make down")


def config(port: int | str, **service: Any) -> dict[str, Any]:
    published = {"host_ip": "127.0.0.1", "target": 5000, "published": str(port)}
    return {"name": "ratchet", "services": {"tracking": {"image": "i", "ports": [published], **service}}}


def test_a_taken_port_is_refused_with_its_holder_and_what_to_do(listening) -> None:
    port, pid = listening
    with pytest.raises(Problem) as caught:
        up.check_ports(config(port))
    assert f"port {port} (tracking) is held by process {pid}" in str(caught.value)
    assert f"Free it: kill {pid}, or give TRACKING_PORT a free one in .env" in str(caught.value)
    up.check_ports(config(port, profiles=["jobs"]))  # `up` does not start it
    up.check_ports(config("8000-8009"))  # a range: Compose looks for a free one


def test_two_services_on_one_port_are_refused() -> None:
    found = config(1)
    found["services"]["serving"] = found["services"]["tracking"]
    with pytest.raises(Problem, match="port 1 is wanted by tracking and serving"):
        up.check_ports(found)


def test_a_secret_that_docker_has_made_a_folder_of_is_named(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="a folder, and no file"):
        up.check_secrets({"secrets": {"a": {"file": str(tmp_path)}}})
    (tmp_path / ".secrets" / "postgres_password").mkdir(parents=True)
    with pytest.raises(environment.InputError, match="which is a folder: Docker makes one"):
        environment.write(tmp_path)


def test_its_own_containers_may_hold_it(monkeypatch) -> None:
    monkeypatch.setattr(ports, "holder", lambda *_: ports.Holder("it", "", True, project="ratchet"))
    up.check_ports(config(5000))


def test_a_missing_secret_is_named(tmp_path: Path) -> None:
    there, missing = tmp_path / "there", tmp_path / "missing"
    there.touch()
    with pytest.raises(Problem, match=f"^{missing}: no such file.*make env"):
        up.check_secrets({"secrets": {"a": {"file": str(there)}, "b": {"file": str(missing)}}})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train-model", "data.source=../src"), 'make train-model ARGS="data.source=../src"'),
        (("prepare-data", "trainer.lr=1", "seed=2"), 'make prepare-data ARGS="seed=2 trainer.lr=1"'),
        (("promote-model", "args=--stage Production"), 'make promote-model ARGS="--stage Production"'),
        (("demo", "trainer.max_steps=5"), 'nothing reads `trainer.max_steps=5`. These take options, in ARGS="…": up '),
        (("demo", "TRAKING_PORT=5001"), "nothing reads `TRAKING_PORT=5001`"),
    ],
)
def test_make_refuses_an_assignment_that_nothing_reads(root: Path, arguments: tuple[str, ...], said: str) -> None:
    result = subprocess.run(["make", "--dry-run", *arguments], cwd=root, capture_output=True, text=True)
    assert result.returncode == 2
    assert said in result.stderr
    assert "ARGS=" in result.stderr


def test_make_takes_what_is_known(root: Path) -> None:
    given = (
        "ARGS=data.source=src",
        "TRACKING_PORT=5001",
        "RATCHET_HOME=var",
        "MLFLOW_TRACKING_URI=http://x",
        "QUIET=-q",
    )
    result = subprocess.run(["make", "--dry-run", "help", *given], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
