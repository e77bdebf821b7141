"""Who holds a port of this machine, in words, and what to do about it. Needs nothing but Python.

python3 -m infra.ports 5000
"""

import re
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LISTENING = "0A"  # a socket's state in /proc/net/tcp
LONGEST = 60  # characters of a command line that are shown


@dataclass(frozen=True)
class Holder:
    """A program that listens on a port."""

    what: str
    remedy: str
    ours: bool  # a server of Ratchet's, with or without Docker
    project: str | None = None  # the Compose project, of a container


def holder(port: int, host: str = "127.0.0.1") -> Holder | None:
    """Who listens on a port; None where it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            return None
        except OSError:
            pass
    return _container(port) or _process(port) or Holder("a program that this user may not see", "stop it", False)


def _container(port: int) -> Holder | None:
    columns = '{{.Names}}\t{{.Image}}\t{{.Label "com.docker.compose.project"}}'
    command = ["docker", "ps", "--filter", f"publish={port}", "--format", columns]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.TimeoutExpired):
        return None
    if not found:
        return None
    name, image, project = found[0].split("\t")
    ours = image.rpartition("/")[2].startswith("ratchet-")
    if not project:
        return Holder(f"the container {name}", f"docker stop {name}", ours)
    down = f"docker compose --project-name {project} down"
    return Holder(f"the container {name} of the Compose project {project}", down, ours, project)


def _process(port: int) -> Holder | None:
    """Where /proc tells, and lets us see: the process that has the listening socket open."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{fields[9]}]")
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if any(str(item.readlink()) in sockets for item in (folder / "fd").iterdir()):
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                home = re.search(rb"(?:^|\0)RATCHET_HOME=", (folder / "environ").read_bytes())
                shown = words if len(words) <= LONGEST else words[:LONGEST] + "…"
                if home:
                    return Holder(
                        f"a server of Ratchet's without Docker (process {folder.name}: {shown})",
                        "make down, or Ctrl-C where `make start-mlflow` or `make serve-model` runs",
                        True,
                    )
                return Holder(f"process {folder.name} ({shown})", f"kill {folder.name}", False)
    return None


if __name__ == "__main__":
    for number in sys.argv[1:]:
        print(number, holder(int(number)) or "free")
