"""A process for code that somebody else has written: what it gets, and what comes back of it.

    run(Path("worker.py"), {"folder": "…"}, [folder], limit_s=300)

It starts with an environment of its own, an empty home and no open files of ours, reads the request from `request.json`
in its working directory, and answers with one line of JSON to the file descriptor that is its first argument. What it
can reach: confinement.py. With its answer, or at the end of its time, it is killed, and all that it has started.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFINEMENT = Path(__file__).with_name("confinement.py")
MOST_BYTES = 8 << 20  # of an answer
SAID_BYTES = 8 << 10  # of what it prints, the last of it
# Of our environment: where programs and libraries are, how to compute. No address, and nobody's name or secret.
KEPT = (
    *("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOMP_SPINCOUNT"),
    *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"),
)
SET = {"DO_NOT_TRACK": "true", "HF_HUB_OFFLINE": "1", "USER": "nobody", "LOGNAME": "nobody"}


@dataclass(frozen=True)
class Answer:
    """What came back: the answer, or else why there is none. All of it is said by whoever wrote the code."""

    found: dict[str, Any] | None
    why: str = ""
    in_time: bool = True


def run(
    worker: Path, request: Mapping[str, Any], folders: Sequence[Path], limit_s: float, confined: bool = True
) -> Answer:
    """Run a worker's file, which may read some folders, on a request; for `limit_s` seconds at most."""
    with tempfile.TemporaryDirectory(prefix="ratchet-confined-", ignore_cleanup_errors=True) as temporary:
        scratch = Path(temporary).resolve()
        (scratch / "request.json").write_text(json.dumps(request), encoding="utf-8")
        reading, writing = os.pipe()
        arguments = [str(worker), str(writing), str(scratch)]
        if confined:
            arguments = [str(CONFINEMENT), *arguments, *(str(folder.resolve()) for folder in folders)]
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-B", *arguments],
                env=environment(scratch),
                cwd=scratch,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(writing,),
                start_new_session=True,
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        try:
            return _listen(process, reading, time.monotonic() + limit_s)
        finally:
            with suppress(ProcessLookupError):  # and all that it has started: none of them can leave the group
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(reading)
            assert process.stdout is not None
            process.stdout.close()


def environment(scratch: Path) -> dict[str, str]:
    """All the variables of such a process."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return kept | SET | {"HOME": str(scratch), "TMPDIR": str(scratch)}


def _listen(process: "subprocess.Popen[bytes]", answers: int, until: float) -> Answer:
    """Read what a process says, up to its answer, its end, or the end of its time."""
    assert process.stdout is not None
    output = process.stdout.fileno()
    answer, said = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        for descriptor in (answers, output):
            selector.register(descriptor, selectors.EVENT_READ)
        while selector.get_map():
            left = until - time.monotonic()
            if left <= 0:
                return Answer(None, "it did not answer in time", in_time=False)
            # Its own end counts, though something that it has started may hold the pipes open.
            ready = selector.select(min(left, 0.2))
            for key, _ in ready:
                chunk = os.read(key.fd, 1 << 16)
                if not chunk:
                    selector.unregister(key.fd)
                elif key.fd == output:
                    said = (said + chunk)[-SAID_BYTES:]
                else:
                    answer += chunk
            if len(answer) > MOST_BYTES:
                return Answer(None, f"its answer is longer than {MOST_BYTES} bytes")
            if b"\n" in answer:
                return _parsed(bytes(answer).partition(b"\n")[0])
            if not ready and process.poll() is not None:
                break
    with suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, min(5.0, until - time.monotonic())))
    lines = [line.strip() for line in said.decode(errors="replace").splitlines() if line.strip()]
    return Answer(None, f"its process ended with {process.poll()}: {lines[-1] if lines else 'it said nothing'}")


def _parsed(line: bytes) -> Answer:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    return Answer(found) if isinstance(found, dict) else Answer(None, "its answer is no JSON object")
