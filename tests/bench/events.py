"""What keeping a completion's facts and an event adds to a request.

    .venv/bin/python -m tests.bench.events

A store as the gateway has it, on this machine's disk, with prompts of 4,000 characters; another process writes to it as
a second worker would. Printed are the median and the 99th percentile of what a request waits for, and their ratio to a
plain INSERT into a table of the same file format.
"""

import argparse
import asyncio
import multiprocessing
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from serving.gateway.events.store import Event, Store
from tests.support.events import completion

COUNT = 2000
TEXTS = {"inputs": {"prompt": "def f(x):\n" * 400}, "outputs": {"completions": ["return x\n" * 20]}}


def other(folder: Path) -> None:
    """Another worker, with fifty completions a second."""
    store = Store(folder, "here", 1 << 30)
    while True:
        store.completed(completion(texts=TEXTS))
        time.sleep(0.02)


async def measured(action: Callable[[], None]) -> list[float]:
    """Milliseconds of each call in a thread, as the gateway calls it."""
    found = []
    for _ in range(COUNT):
        began = time.perf_counter()
        await asyncio.to_thread(action)
        found.append((time.perf_counter() - began) * 1000)
    return found


def main() -> None:
    """Print a line for each kind of write."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), "here", 1 << 30)
        made = [completion(texts=TEXTS) for _ in range(COUNT)]
        completions, events = iter(made), iter(made)
        peer = sqlite3.connect(Path(folder) / "peer.db", isolation_level=None, check_same_thread=False)
        peer.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; CREATE TABLE t (body TEXT)")
        worker = multiprocessing.get_context("spawn").Process(target=other, args=(Path(folder),), daemon=True)
        worker.start()
        kinds: dict[str, Callable[[], None]] = {
            "a plain INSERT": lambda: peer.execute("INSERT INTO t VALUES (?)", ("x" * 4200,)) and None,
            "a completion": lambda: store.completed(next(completions)),
            "an event": lambda: store.told(Event(next(events).id, viewed=True, shown_ms=900, accepted=True)),
        }
        plain = 0.0
        for name, action in kinds.items():
            times = sorted(asyncio.run(measured(action)))
            median = statistics.median(times)
            plain = plain or median
            print(
                f"{name:<16} p50 {median:.2f} ms  p99 {times[int(COUNT * 0.99)]:.2f} ms  {median / plain:.1f}x",
                flush=True,
            )
        worker.kill()


if __name__ == "__main__":
    main()
