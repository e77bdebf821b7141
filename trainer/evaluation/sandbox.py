"""Hands completions with their tests to the evaluator, and takes its verdicts.

In the stack the evaluator is a container that shares one folder with the trainer, EVALUATOR_DIR, and no network; else
it is a child of this process, in a cage of Linux namespaces. What either stops, and what not: evaluator/program.py.
"""

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

from contract.errors import InputError, RatchetError
from contract.messages import EvaluatorLimits, EvaluatorProgram, EvaluatorVerdict
from contract.names import EVALUATOR_DIR

CONNECT_TIMEOUT_S = 60


class Verdict(NamedTuple):
    """Whether a program ran to its end. `outcome`: passed, failed, timeout, memory or output."""

    passed: bool
    outcome: str
    detail: str
    seconds: float


class Sandbox:
    """A connection to the evaluator, used as a context. Raises InputError where completions cannot be run safely."""

    def __init__(self, timeout_s: float, memory_mb: int) -> None:
        self._limits = EvaluatorLimits(timeout_s=timeout_s, memory_mb=memory_mb)

    def __enter__(self) -> Self:
        self._child: subprocess.Popen[bytes] | None = None
        with contextlib.ExitStack() as opened:
            if folder := os.environ.get(EVALUATOR_DIR):
                self._requests: IO[bytes] = opened.enter_context(_meet(Path(folder)))
                self._replies = self._requests
            else:
                self._child = opened.enter_context(
                    subprocess.Popen(
                        [sys.executable, "-I", "-m", "evaluator"],
                        env={},
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                    )
                )
                assert self._child.stdin is not None
                assert self._child.stdout is not None
                self._requests, self._replies = self._child.stdin, self._child.stdout
            self._send(self._limits)
            self._try()
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        if self._child is not None and error[0] is not None:
            self._child.kill()  # and with it whatever it runs; else it ends with its input
        self._opened.close()

    def _try(self) -> None:
        """Find out now whether it works at all, and not after an hour of training."""
        verdict = self.run("assert 1 + 1 == 2")
        if verdict.outcome in ("timeout", "memory"):
            raise InputError(
                f"Within eval.test_timeout_s={self._limits['timeout_s']:g} and "
                f"eval.test_memory_mb={self._limits['memory_mb']} not even an empty program runs ({verdict.outcome}). "
                "Expected some seconds, and 64 MB or more."
            )
        if not verdict.passed:
            raise RatchetError(f"The evaluator cannot run programs: {verdict.detail}")

    def run(self, program: str) -> Verdict:
        """The verdict on one program."""
        self._send(EvaluatorProgram(program=program))
        try:
            line = self._replies.readline()
        except OSError:
            line = b""
        if not line:
            self._explain()
        verdict: EvaluatorVerdict = json.loads(line)
        return Verdict(**verdict)

    def _send(self, message: EvaluatorLimits | EvaluatorProgram) -> None:
        try:
            self._requests.write(json.dumps(message).encode() + b"\n")
            self._requests.flush()
        except OSError:
            self._explain()

    def _explain(self) -> None:
        """Raise what the evaluator said when it ended."""
        with contextlib.suppress(OSError):
            self._requests.close()
        if self._child is None:
            raise RatchetError("The evaluator ended in the middle: docker compose logs evaluator says why.")
        assert self._child.stderr is not None
        reason = self._child.stderr.read().decode(errors="replace").strip()
        if self._child.wait() == 2:
            raise InputError(reason)
        raise RatchetError(f"The evaluator ended in the middle: {reason or 'it said nothing'}")


@contextlib.contextmanager
def _meet(folder: Path) -> Iterator[Any]:
    """A stream to the evaluator: listen in the shared folder until it connects, and no longer.

    One trainer at a time, which holds a lock: a program that is being run finds nobody who listens.
    """
    path = folder / f"{uuid.uuid4().hex}.sock"
    with contextlib.ExitStack() as opened:
        try:
            lock = opened.enter_context((folder / "lock").open("w"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("Waiting for the evaluator, which another run is using", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            with socket.socket(socket.AF_UNIX) as listener:
                try:
                    listener.bind(str(path))
                    path.chmod(0o666)  # the evaluator is another user
                    listener.listen(1)
                    listener.settimeout(CONNECT_TIMEOUT_S)
                    connection = opened.enter_context(listener.accept()[0])
                finally:
                    path.unlink(missing_ok=True)
            connection.settimeout(None)
            # The evaluator holds the lock too, until it is done: should we be killed, a program of ours may run on.
            socket.send_fds(connection, [b"L"], [lock.fileno()])
        except TimeoutError:
            raise InputError(
                f"No evaluator came within {CONNECT_TIMEOUT_S} s to run completions against their tests. Start it: "
                "docker compose up --detach evaluator"
            ) from None
        except OSError as error:
            raise InputError(f"EVALUATOR_DIR is '{folder}', where nothing can be shared: {error}.") from error
        with contextlib.suppress(BrokenPipeError), connection.makefile("rwb") as stream:
            yield stream
