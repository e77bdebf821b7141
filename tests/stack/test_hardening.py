"""What `docker inspect` says of every container, and what one can see from inside."""

import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.stack import SERVICES, TAG, Platform, docker_json

pytestmark = pytest.mark.stack

OURS = ("bucket", "migrate", "tracking", "evaluator", "trainer", "monitor", "promoter", "promoter-server", "serving",
        "loop", "loop-trainer")  # fmt: skip
PUBLISHED = {"tracking": ("5000", "TRACKING_PORT"), "serving": ("8000", "SERVING_PORT"),
             "minio": ("9001", "MINIO_CONSOLE_PORT")}  # fmt: skip


def processes(container: str) -> str:
    """The commands, with arguments, that run in a container."""
    top = ["docker", "top", container, "-eo", "pid,args"]
    found = subprocess.run(top, capture_output=True, text=True, check=True).stdout
    assert "docker-init" in found
    return found


@pytest.fixture(scope="module")
def created(platform: Platform) -> Iterator[Platform]:
    """The jobs' containers too, made and not started."""
    profiles = ("--profile", "jobs", "--profile", "loop")
    platform.docker_compose(*profiles, "create", "--no-recreate", LOOP_CONFIG="./pyproject.toml")
    yield platform
    platform.docker_compose("--profile", "loop", "rm", "--force", "loop", "loop-trainer")


@pytest.mark.parametrize("service", SERVICES)
def test_every_container_is_read_only_without_rights_and_bounded(created: Platform, service: str) -> None:
    container = created.inspect(service)
    host = container["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Init"] == (service != "evaluator")  # which is the first process itself
    assert not host["Privileged"]
    assert host["Memory"] > 0
    assert host["MemorySwap"] == host["Memory"]  # and none of it on disk
    assert {limit["Name"]: limit["Hard"] for limit in host["Ulimits"]} == {"core": 0}
    assert host["PidsLimit"] > 0
    # As many cores as there are where a variable says nothing else, and one for those with little to do.
    assert host["NanoCpus"] == (
        1e9 if service in ("bucket", "migrate", "evaluator", "promoter", "promoter-server") else 0
    )
    assert host["LogConfig"]["Config"]["max-size"]
    assert host["NetworkMode"] not in ("host", "bridge")


@pytest.mark.parametrize("service", [*OURS, "postgres"])
def test_no_container_of_ours_runs_as_root(created: Platform, service: str) -> None:
    uid = created.inspect(service)["Config"]["User"].partition(":")[0]
    assert int(uid) > 0


@pytest.mark.parametrize("service", ["postgres", "minio", "tracking", "evaluator", "serving"])
def test_long_running_services_have_a_health_check_and_restart(created: Platform, service: str) -> None:
    container = created.inspect(service)
    assert container["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    check = container["Config"]["Healthcheck"]["Test"]
    assert "curl" not in " ".join(check)


@pytest.mark.parametrize("service", SERVICES)
def test_published_ports_are_three_and_on_loopback(created: Platform, environ, service: str) -> None:
    bindings = created.inspect(service)["HostConfig"]["PortBindings"] or {}
    expected = {}
    if service in PUBLISHED:
        port, variable = PUBLISHED[service]
        expected = {f"{port}/tcp": [{"HostIp": "127.0.0.1", "HostPort": environ[variable]}]}
    assert bindings == expected


@pytest.mark.parametrize("service", SERVICES)
def test_no_secret_in_inspect(created: Platform, service: str) -> None:
    text = json.dumps(created.inspect(service))
    for name, value in created.secrets.items():
        assert value not in text, f"docker inspect shows {name}"
    names = re.findall(r'"([A-Z_]*(?:PASSWORD|SECRET)[A-Z_]*)=', text)
    assert all(name.endswith("_FILE") for name in names)


def test_no_secret_in_logs_and_arguments(created: Platform) -> None:
    seen = created.docker_compose("logs", "--no-color")
    for service in ("postgres", "minio", "tracking", "serving"):
        container = created.inspect(service)["Id"]
        seen += processes(container)
    assert "Application startup complete" in seen
    for name, value in created.secrets.items():
        assert value not in seen, f"{name} is in the logs or among a process's arguments"


def test_only_tracking_reaches_postgres_and_the_s3_api(created: Platform) -> None:
    def networks(service: str) -> set[str]:
        return {name.rpartition("_")[2] for name in created.inspect(service)["NetworkSettings"]["Networks"]}

    assert {service: networks(service) for service in SERVICES} == {
        "postgres": {"data"},
        "minio": {"data", "console"},
        "bucket": {"data"},
        "migrate": {"data"},
        "tracking": {"data", "platform"},
        "evaluator": {"none"},
        "trainer": {"internet", "platform"},
        "monitor": {"platform"},
        "promoter": {"platform"},
        "promoter-server": {"platform"},
        "serving": {"platform"},
        "loop": {"platform"},
        "loop-trainer": {"internet", "platform"},
    }
    for host in ("postgres", "minio"):
        program = f"import socket\ntry: socket.getaddrinfo('{host}', 5432)\nexcept OSError: print('unknown')"
        assert "unknown" in created.python("serving", program)


def test_data_network_is_internal_and_platform_has_no_way_out(created: Platform, environ) -> None:
    def network(name: str) -> dict[str, Any]:
        return docker_json("network", "inspect", f"{environ['COMPOSE_PROJECT_NAME']}_{name}")

    assert network("data")["Internal"]
    for name in ("platform", "console"):
        assert network(name)["Options"]["com.docker.network.bridge.enable_ip_masquerade"] == "false"
    # The trainer's way out is the network made for it.
    gateway = network("internet")["IPAM"]["Config"][0]["Gateway"]
    route = created.docker_compose(
        *("run", "--rm", "--no-TTY", "--no-deps", "--entrypoint", "cat", "trainer", "/proc/net/route")
    )
    default = next(line.split() for line in route.splitlines() if line.split()[1:2] == ["00000000"])
    assert ".".join(str(byte) for byte in reversed(bytes.fromhex(default[2]))) == gateway


def test_the_root_is_read_only_and_the_source_tree_too(created: Platform) -> None:
    for folder in ("/opt/venv", "/work", "/usr"):
        output = created.docker_compose(*("exec", "--no-TTY", "tracking", "sh", "-c", f"touch {folder}/x 2>&1; true"))
        assert "Read-only file system" in output
    output = created.docker_compose(
        *("run", "--rm", "--no-TTY", "--no-deps", "--entrypoint", "sh", "trainer", "-c"),
        "touch /source/x 2>&1; id -u; grep CapEff /proc/self/status",
    )
    assert "Read-only file system" in output
    assert "10001" in output
    assert "0000000000000000" in output


def test_a_sibling_reaches_tracking_by_name_and_a_foreign_host_name_is_refused(created: Platform) -> None:
    program = (
        "import urllib.request, urllib.error\n"
        "def ask(host):\n"
        "    request = urllib.request.Request('http://tracking:5000/api/2.0/mlflow/experiments/search?max_results=1',"
        " headers={'Host': host})\n"
        "    try: return urllib.request.urlopen(request, timeout=10).status\n"
        "    except urllib.error.HTTPError as error: return error.code\n"
        "print(ask('tracking:5000'), ask('evil.example'))"
    )
    assert "200 403" in created.python("serving", program)


def test_server_jobs_gateway_and_telemetry_are_off(created: Platform) -> None:
    config = requests.get(f"{created.tracking_url}/ajax-api/3.0/mlflow/ui-telemetry", timeout=10).json()
    assert config["disable_ui_telemetry"] is True
    assert "huey" not in processes(created.inspect("tracking")["Id"])
    gateway = requests.get(f"{created.tracking_url}/ajax-api/3.0/mlflow/gateway/supported-providers", timeout=10)
    assert gateway.status_code == 501


@pytest.mark.parametrize("part", ["tracking", "promoter", "evaluator", "serving", "trainer"])
def test_images_have_labels_and_no_torch_where_none_is_needed(
    platform: Platform, environ, root: Path, part: str
) -> None:
    image = docker_json("image", "inspect", f"ratchet-{part}:{TAG}")
    labels = image["Config"]["Labels"]
    assert labels["org.opencontainers.image.title"] == f"ratchet-{part}"
    assert labels["org.opencontainers.image.description"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.revision"] == environ["GIT_COMMIT"]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert labels["org.opencontainers.image.version"] == project["version"]
    if part in ("tracking", "promoter", "evaluator"):
        assert image["Size"] < 1e9
        find = "import importlib.util; print(importlib.util.find_spec('torch'))"
        run = ("docker", "run", "--rm", "--network=none", "--entrypoint=python")
        command = [*run, f"ratchet-{part}:{TAG}", "-c", find]
        assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == "None"


def test_trainer_and_serving_share_the_layers_with_torch(platform: Platform) -> None:
    layers = {
        part: docker_json("image", "inspect", f"ratchet-{part}:{TAG}")["RootFS"]["Layers"]
        for part in ("trainer", "serving")
    }
    shared = [one for one, other in zip(layers["trainer"], layers["serving"], strict=False) if one == other]
    history = subprocess.run(
        ["docker", "history", "--no-trunc", "--format", "{{.CreatedBy}}", f"ratchet-serving:{TAG}"],
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert any("serving.txt" in line for line in history)  # the layer with torch
    assert len(shared) >= len(layers["serving"]) - 2  # all but the promoter's packages and our own code
