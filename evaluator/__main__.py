"""The evaluator: programs in, verdicts out, one JSON object a line.

    python -m evaluator                  in a cage of its own (Linux namespaces), from standard input to standard output
    python -m evaluator --connect DIR    in the stack, where its container is the cage: answers the socket of each
                                         trainer that listens in DIR
    python -m evaluator --check          say whether programs can be run here
    python -m evaluator --health         say whether the container's first process does its work

In:  {"timeout_s": 5, "memory_mb": 1024} once, then {"program": "assert 1 + 1 == 2"} for each
Out: {"passed": true, "outcome": "passed", "detail": "", "seconds": 0.03} for each, before the next is read
"""

import argparse
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from evaluator import logs
from evaluator.cage import CageError, in_cage
from evaluator.program import Limits, prepare_process, run, set_name

log = logging.getLogger(__name__)
POLL_S = 0.5  # how often the container looks for a trainer
LATE_S = 60.0  # what a step may take beyond its limit before the container counts as unhealthy


def main() -> int:
    """Run the command line; returns the exit code: 2 where no cage can be made, 1 where the input is no request."""
    parser = argparse.ArgumentParser(
        prog="evaluator", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--connect", metavar="DIR", type=Path, help="answer the sockets in this folder, for ever")
    parser.add_argument("--check", action="store_true", help="run one program, and say whether that works")
    parser.add_argument("--health", action="store_true", help="the container's health check")
    options = parser.parse_args()
    if options.health:
        return health(Path("/proc/1/comm").read_text())
    if options.connect is not None:
        if os.getpid() != 1:
            print("--connect is for a container whose first process this is.", file=sys.stderr)
            return 2
        logs.set_up("evaluator")
        prepare_process()
        answer_sockets(options.connect)
    try:
        if options.check:
            return in_cage(check)
        return in_cage(lambda user: answer(sys.stdin.buffer, sys.stdout.buffer, user))
    except CageError as error:
        print(error, file=sys.stderr)
        return 2


def answer(requests: Iterable[bytes], replies: Any, user: int | None = None) -> int:
    """Run each program that comes in, and write its verdict."""
    limits = None
    for line in requests:
        request = json.loads(line)
        if limits is None:
            limits = Limits(**request)
            continue
        expect_next(limits.timeout_s)
        try:
            verdict = run(request["program"], limits, user)
        except OSError as error:  # ours, and not the connection's
            raise RuntimeError(f"A program broke the evaluator: {error}") from error
        replies.write(json.dumps(verdict._asdict()).encode() + b"\n")
        replies.flush()
        expect_next(None)
    return 0


def expect_next(within_s: float | None) -> None:
    """Say by when the next step has to come (s from now; None: whenever the trainer wants one)."""
    set_name("waiting" if within_s is None else str(int(time.monotonic() + within_s + LATE_S)))


def health(name: str) -> int:
    """The exit code of the health check, by the name of the container's first process."""
    if not name.strip().isdigit() or time.monotonic() <= int(name):
        return 0
    print(f"The evaluator is {time.monotonic() - int(name):.0f} s late.")
    return 1


def check(user: int | None) -> int:
    """Run one program, and say what became of it."""
    verdict = run("assert 1 + 1 == 2", Limits(timeout_s=10, memory_mb=512), user)
    print(f"A program was run in its cage: {verdict.outcome} {verdict.detail}".strip())
    return 0 if verdict.passed else 1


def answer_sockets(folder: Path) -> None:
    """Serve whoever listens in the folder, one after the other.

    It is the trainer that listens, and it stops once we are connected; only one does at a time (it holds a lock,
    and so do we): no program finds a socket to talk to. Where a program breaks this process it ends, and Docker starts
    it anew.
    """
    log.info("Waiting for trainers in %s", folder)
    while True:
        expect_next(POLL_S)
        for path in sorted(folder.glob("*.sock")):
            with socket.socket(socket.AF_UNIX) as connection:
                lock: list[int] = []
                try:
                    connection.connect(str(path))
                    _, lock, _, _ = socket.recv_fds(connection, 1, 1)
                    with connection.makefile("rwb") as stream:
                        log.info("Serving a trainer")
                        expect_next(None)
                        answer(stream, stream)
                except (OSError, ValueError, TypeError, KeyError) as error:
                    if not isinstance(error, ConnectionRefusedError | FileNotFoundError):  # left by a dead trainer
                        log.warning("The trainer is gone: %s", error)
                finally:
                    for descriptor in lock:
                        os.close(descriptor)
        time.sleep(POLL_S)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.exit(main())
