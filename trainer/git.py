"""Questions to git about somebody's repository, of which nothing is run and nothing is fetched."""

import os
import subprocess
from pathlib import Path

# A mounted source tree belongs to somebody else; no program that its configuration names is started.
COMMAND = (
    *("git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"),
    *("-c", "protocol.allow=never"),  # nothing is fetched either
)


def output(
    root: Path, *arguments: str, stdin: bytes = b"", index: str | None = None, timeout_s: float | None = None
) -> bytes:
    """What a git command prints; nothing where it fails or there is no git. `index`: a file instead of the own one."""
    command = [*COMMAND, "-C", str(root), *arguments]
    environment = os.environ | ({"GIT_INDEX_FILE": index} if index is not None else {})
    try:
        return subprocess.run(
            command, input=stdin, capture_output=True, check=True, env=environment, timeout=timeout_s
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return b""


def commit(folder: Path) -> str | None:
    """The commit checked out in a folder (with `-dirty`), or None where git knows none."""
    arguments = ("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    return output(folder, *arguments, timeout_s=20).decode().strip() or None
