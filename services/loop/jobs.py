"""The jobs of a round: trainer and promoter as processes of this machine, with a time after which they are ended."""

import ctypes
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from contract.errors import RatchetError
from contract.files import try_lock
from contract.outcomes import NOT_PASSED

PR_SET_PDEATHSIG = 1  # of prctl(2)
TOOK_TOO_LONG = 124  # as `timeout` has it
GRACE_S = 300.0  # for a trainer to save a checkpoint
QUIET = ("changes", "loop")  # of which only the answer is wanted
PACE_S = 0.5  # of looking
LONGEST_TAIL = 8192  # bytes of what a job says, in which the reason of a failure is looked for
TRAINING_LOCK = "training.lock"  # of all loops and workers of a user on a machine


@dataclass(frozen=True)
class Done:
    """What became of a job."""

    exit_code: int  # as everywhere, or TOOK_TOO_LONG
    output: str  # on stdout
    said: str  # otherwise: the last of it
    seconds: float

    @property
    def why(self) -> str:
        """It failed: what it found wrong, or the last that it said."""
        lines = [line.strip() for line in self.said.splitlines() if line.strip()] or [""]
        return "; ".join(line for line in lines if line.startswith(NOT_PASSED)) or lines[-1].removeprefix("Error: ")

    @property
    def answer(self) -> Any:
        """Its output as JSON; None for anything else."""
        try:
            return json.loads(self.output)
        except (ValueError, RecursionError):
            return None


class Jobs(Protocol):
    """Where the jobs of a loop run: on this machine, or where a worker waits for them (services.loop.worker)."""

    def gpus(self) -> int:
        """That a training has."""

    def free_gb(self) -> float:
        """Where it keeps what it makes."""

    def run(self, part: str, arguments: Sequence[str], most_s: float, tick: Callable[[float], None]) -> Done:
        """Run `python -m part …`, at most so long. `tick` gets its seconds so far; what it raises ends it."""


class Here:
    """On this machine."""

    def __init__(self) -> None:
        checkpoints = os.environ.get("CHECKPOINTS_DIR")
        state = Path.home() / ".local" / "state" / "ratchet"
        self.lock = (Path(checkpoints) if checkpoints else state) / TRAINING_LOCK
        self.made = Path(checkpoints or os.environ.get("RATCHET_HOME") or state).absolute()  # where checkpoints go

    def gpus(self) -> int:
        """As NVIDIA's own tool counts them."""
        if shutil.which("nvidia-smi") is None:
            return 0
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
        return len(listed.stdout.splitlines()) if listed.returncode == 0 else 0

    def free_gb(self) -> float:
        """On the disk of the checkpoints."""
        there = next(folder for folder in (self.made, *self.made.parents) if folder.exists())
        return shutil.disk_usage(there).free / 1e9

    def run(self, part: str, arguments: Sequence[str], most_s: float, tick: Callable[[float], None]) -> Done:
        """Run a job to its end. It is ended by SIGTERM, at which the trainer saves a checkpoint."""
        if arguments[:1] == ["train"]:
            with self._alone(tick) as lock:
                return _run(part, arguments, most_s, tick, (lock,))
        return _run(part, arguments, most_s, tick)

    @contextmanager
    def _alone(self, tick: Callable[[float], None]) -> Iterator[int]:
        """No second training at once: two on one GPU would both run out of memory.

        The trainer inherits the lock, and has it for as long as it lives, whatever becomes of the loop.
        """
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        said = False
        with self.lock.open("a") as lock:
            while not try_lock(lock):
                if not said:
                    said = True
                    sys.stderr.write(f"Another loop trains on this machine ({self.lock}): waiting for its end\n")
                tick(0.0)
                time.sleep(PACE_S)
            yield lock.fileno()


def _run(
    part: str, arguments: Sequence[str], most_s: float, tick: Callable[[float], None], inherits: tuple[int, ...] = ()
) -> Done:
    """What it says is passed on, line by line and with its progress bars; an answer as JSON is kept."""
    began, late, tail = time.monotonic(), False, bytearray()
    answers, shown = "json" in arguments, arguments[0] not in QUIET and "--dry-run" not in arguments
    try:
        with (
            tempfile.TemporaryFile("w+", errors="replace") as output,
            subprocess.Popen(
                [sys.executable, "-m", part, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output if answers else subprocess.PIPE,
                stderr=subprocess.PIPE if answers else subprocess.STDOUT,
                preexec_fn=_end_with_parent,
                pass_fds=inherits,
            ) as process,
        ):
            reader = threading.Thread(target=_pass_on, args=(process, tail, shown), daemon=True)
            reader.start()
            try:
                while process.poll() is None and not late:
                    tick(time.monotonic() - began)
                    late = time.monotonic() - began > most_s
                    time.sleep(PACE_S)
                if late:
                    _end(process)
            except BaseException:
                _end(process)
                raise
            reader.join(GRACE_S)
            output.seek(0)
            code = TOOK_TOO_LONG if late else process.returncode
            return Done(code, output.read(), tail.decode(errors="replace"), time.monotonic() - began)
    except OSError as error:
        raise RatchetError(f"`{part} {arguments[0]}` could not be run: {error.strerror or error}.") from error


def _pass_on(process: "subprocess.Popen[bytes]", tail: bytearray, shown: bool) -> None:
    pipe = cast(io.BufferedReader, process.stderr or process.stdout)
    while said := pipe.read1():
        tail += said
        del tail[:-LONGEST_TAIL]
        if shown:
            sys.stderr.buffer.write(said)
            sys.stderr.buffer.flush()


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_with_parent() -> None:
    """In a job: end by SIGTERM when the loop is killed, and do not go on beside what comes after it (Linux alone)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
