"""`python -m trainer …` without the nine seconds that its imports take: forked from a process that has made them.

    job = start(["train", "trainer.max_steps=4"], env)     # used as a subprocess.Popen with text

What runs is the trainer's own command line, in a process of its own with its own environment, signals and exit code;
only the imports are done before. The tests that run `trainer` as a user does: test_whole_path, test_docs, the demo.
"""

import array
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path
from typing import IO, Any

PRELOADED = (
    "trainer.cli",
    "trainer.job",
    "trainer.preparation",
    "trainer.evaluation.registered_version",
    "mlflow.store.artifact.mlflow_artifacts_repo",
    "peft",
    "transformers.models.llama.modeling_llama",
    "transformers.trainer",
)


class Forked:
    """A running command; the part of subprocess.Popen that tests use."""

    def __init__(self, arguments: list[str], env: dict[str, str]) -> None:
        self.args = ["trainer", *arguments]
        read, write = os.pipe()
        self.stdout: IO[str] = os.fdopen(read, encoding="utf-8", errors="replace")
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.connect(_zygote())
        request = json.dumps({"arguments": arguments, "env": env, "cwd": str(Path.cwd())}).encode()
        self._connection.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [write]))])
        os.close(write)
        self.pid = int(json.loads(self._connection.recv(4096))["pid"])
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, or minus the signal that ended it; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            self._connection.settimeout(max(timeout, 1e-3) if timeout is not None else None)
            try:
                self.returncode = int(json.loads(self._connection.recv(4096))["code"])
            except TimeoutError:
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it has printed, up to its end. Raises subprocess.TimeoutExpired."""
        seen: list[str] = []
        reader = threading.Thread(target=lambda: seen.append(self.stdout.read()), daemon=True)
        reader.start()
        reader.join(timeout)
        if reader.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(timeout)
        return seen[0], None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(arguments: list[str], env: dict[str, str]) -> Forked:
    """Run `trainer` with these arguments and this environment."""
    return Forked(arguments, env)


@cache
def _zygote() -> str:
    """The address of the process that forks; started with the first command, ended with us."""
    address = f"\0ratchet-zygote-{os.getpid()}"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.zygote", address[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    _kept.append(process)  # its standard input is open as long as we are
    return address


_kept: list[Any] = []


def _serve(address: str) -> None:
    import importlib
    import select

    for name in PRELOADED:
        importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"\0{address}")
    listener.listen()
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the tests' terminal is theirs
    running: dict[int, socket.socket] = {}
    print("ready", flush=True)
    while True:
        ready, _, _ = select.select([listener, ended, sys.stdin], [], [])
        if ended in ready:
            os.read(ended, 4096)
        for pid in list(running):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                with contextlib.suppress(OSError), running.pop(pid) as connection:
                    connection.send(json.dumps({"code": os.waitstatus_to_exitcode(status)}).encode())
        if sys.stdin in ready:
            return  # the tests have ended
        if listener in ready:
            connection, _ = listener.accept()
            request, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 1)
            pid = os.fork()
            if pid == 0:
                listener.close()
                for other in (connection, *running.values()):
                    other.close()
                _run(json.loads(request), descriptors[0])
            os.close(descriptors[0])
            running[pid] = connection
            connection.send(json.dumps({"pid": pid}).encode())


def _run(request: dict[str, Any], output: int) -> None:
    """In the forked process: be `trainer`."""
    import atexit
    import random
    import traceback

    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.stdin, sys.stdout = open(0), os.fdopen(1, "w", buffering=1)  # noqa: SIM115
    sys.stderr = os.fdopen(2, "w", buffering=1)
    sys.argv = ["trainer", *request["arguments"]]
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    random.seed()
    code: Any = 1
    try:
        from trainer.cli import main

        main(request["arguments"])
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    _serve(sys.argv[1])
