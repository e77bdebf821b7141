"""`make up`: start the Compose stack, after a look at what would stop it half-way. Needs nothing but Python.

python3 -m infra.up [--scale serving=3 …]     # arguments go to `docker compose up`

Checks the engine and Compose, .env and its secrets, the images that are built here, and the ports; then
`docker compose up -d --wait`. Says everything that is wrong at once, and exits with 2 before anything has started.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from infra import ports

COMPOSE_AT_LEAST = (2, 24)  # the first that knows all that the compose files use
ROOT = Path(__file__).parents[1]
COMPOSE = ("docker", "compose")
VARIABLES = {"tracking": "TRACKING_PORT", "serving": "SERVING_PORT", "minio": "MINIO_CONSOLE_PORT", "edge": "EDGE_PORT"}


class Problem(Exception):
    """What is wrong, and what to do."""


def check_engine() -> None:
    """Raise Problem where no engine answers, or Compose is too old."""
    try:
        version = _output(*COMPOSE, "version", "--short")
    except (OSError, subprocess.CalledProcessError):
        raise Problem("there is no Docker with Compose here. Install them, or: make engine") from None
    found = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if found < COMPOSE_AT_LEAST:
        wanted = ".".join(map(str, COMPOSE_AT_LEAST))
        raise Problem(f"Compose is {version}, and {wanted} or newer is needed. Update it, or: make engine")
    try:
        _output("docker", "info")
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise Problem(f"no Docker engine answers ({said}). Start it, or: make engine") from None


def configuration() -> dict[str, Any]:
    """The Compose files as Compose reads them, with .env and the shell's variables. Raises Problem where it cannot."""
    try:
        found: dict[str, Any] = json.loads(_output(*COMPOSE, "--profile", "jobs", "config", "--format", "json"))
    except subprocess.CalledProcessError as error:
        if not (ROOT / ".env").exists():
            raise Problem("there is no .env, and there are no secrets. Write them: make env") from None
        raise Problem(f"Compose does not take its files: {error.stderr.strip()}") from None
    return found


def check_secrets(found: dict[str, Any]) -> None:
    """Raise Problem for secret files that are not there: Docker would make folders of their names."""
    files = [item["file"] for item in found.get("secrets", {}).values() if "file" in item]
    if missing := [path for path in files if not Path(path).exists()]:
        raise Problem(f"{', '.join(missing)}: no such file. Write the secrets: make env")
    if folders := [path for path in files if Path(path).is_dir()]:  # what Docker makes of a file that is missing
        raise Problem(f"{', '.join(folders)}: a folder, and no file. Remove it, then: make env")


def check_images(found: dict[str, Any]) -> None:
    """Raise Problem for images that are not there and can only be built."""
    built = {item["image"] for item in found["services"].values() if item.get("pull_policy") == "never"}
    there = subprocess.run(["docker", "image", "inspect", *sorted(built)], capture_output=True, text=True).stdout
    tags = {tag for image in json.loads(there or "[]") for tag in image["RepoTags"] or []}
    if missing := sorted(built - tags):
        raise Problem(f"not built yet: {', '.join(missing)}. Build them: make images")


def check_ports(found: dict[str, Any]) -> None:
    """Raise Problem for ports that somebody else holds, and for one that two services want."""
    taken: list[str] = []
    wanted_by: dict[int, str] = {}
    for service, item in found["services"].items():
        if item.get("profiles"):
            continue  # `up` does not start it
        for port in item.get("ports", []):
            if not str(port.get("published", "")).isdigit():
                continue  # a range: Compose looks for a free one itself
            number = int(port["published"])
            first = wanted_by.setdefault(number, service)
            if first != service:
                taken.append(f"port {number} is wanted by {first} and {service}. Give one of them another in .env")
            who = ports.holder(number, port.get("host_ip") or "0.0.0.0")
            if who is not None and who.project != found["name"]:
                other = f", or give {VARIABLES[service]} a free one in .env" if service in VARIABLES else ""
                taken.append(f"port {number} ({service}) is held by {who.what}. Free it: {who.remedy}{other}")
    if taken:
        raise Problem("\n".join(taken))


def _output(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    problems: list[str] = []
    try:
        check_engine()
        found = configuration()
        for check in (check_secrets, check_images, check_ports):
            try:
                check(found)
            except Problem as problem:
                problems += str(problem).splitlines()
    except Problem as problem:
        problems.append(str(problem))
    if problems:
        for line in problems:
            print(f"make up: {line}", file=sys.stderr)
        sys.exit(2)
    code = subprocess.run([*COMPOSE, "up", "-d", "--wait", *sys.argv[1:]], cwd=ROOT).returncode
    if code:
        print("make up: not everything is up. Look: docker compose ps --all; docker compose logs", file=sys.stderr)
        sys.exit(1)
    for service, what in {"tracking": "MLflow UI", "serving": "Completions", "edge": "Everything"}.items():
        for port in found["services"].get(service, {}).get("ports", []):
            print(f"{what + ':':<13}{'https' if service == 'edge' else 'http'}://127.0.0.1:{port['published']}")


if __name__ == "__main__":
    main()
