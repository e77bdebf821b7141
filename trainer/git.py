"""Questions to git about somebody's repository, of which nothing is run and nothing is fetched."""

import os
import subprocess
from pathlib import Path

# A mounted source tree belongs to somebody else; no program that its configuration names is started.
COMMAND = ("git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null")
# Nothing is fetched either, not even what a partial clone lacks; the repository's own settings cannot allow it.
ENVIRONMENT = {"GIT_ALLOW_PROTOCOL": "", "GIT_NO_LAZY_FETCH": "1"}


def output(
    root: Path, *arguments: str, stdin: bytes = b"", index: str | None = None, timeout_s: float | None = None
) -> bytes:
    """What a git command prints; nothing where it fails or there is no git. `index`: a file instead of the own one."""
    command = [*COMMAND, "-C", str(root), *arguments]
    environment = os.environ | ENVIRONMENT | ({"GIT_INDEX_FILE": index} if index is not None else {})
    try:
        return subprocess.run(
            command, input=stdin, capture_output=True, check=True, env=environment, timeout=timeout_s
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return b""


def without_filters(root: Path) -> list[str] | None:
    """Options for a comparison with the work tree by which no filter of the repository is run; None: there are none."""
    printed = output(root, "config", "--name-only", "-z", "--get-regexp", r"^filter\..*\.(clean|process|required)$")
    drivers = [name for name in os.fsdecode(printed).split("\0") if name]
    if any("=" in name for name in drivers):  # no such name can be set so
        return None
    return [word for name in drivers for word in ("-c", f"{name}=")]


def commit(folder: Path) -> str | None:
    """The commit checked out in a folder (with `-dirty`), or None where git knows none."""
    off = without_filters(folder)
    arguments = ["describe", "--always", "--abbrev=40", "--exclude=*", *(["--dirty"] if off is not None else [])]
    return output(folder, *(off or []), *arguments, timeout_s=20).decode().strip() or None
