"""Files and ports that several parts use the same way."""

import fcntl
import hashlib
import os
import socket
import threading
from pathlib import Path
from typing import IO, Any

REPORT_CSS = Path(__file__).with_name("report.css")  # how the page of every report looks


def write_whole(path: Path, text: str) -> None:
    """Replace a file's text: whoever reads it sees the old text or the new one, and never a part."""
    aside = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def try_lock(file: IO[Any] | int) -> bool:
    """Lock an open file or folder for this process alone, at once or not at all; whether that worked.

    The operating system lets go of it when the file is closed, whatever becomes of the process.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def why_not_free(host: str, port: int) -> str:
    """Why nobody can listen at an address, in the system's words; empty where one can."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return error.strerror or str(error)
    return ""
