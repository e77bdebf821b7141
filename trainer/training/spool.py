"""Metrics on their way to the tracking server: written to disk at once, sent by a thread that training never waits for.

A folder holds `metrics.jsonl`, one batch of metrics a line, and `sent`, how many of its bytes have arrived. A server
that is down is asked again until it answers; a trainer that died goes on where the file ends. Sending a line twice
does no harm: MLflow keeps one of two metrics that agree in key, step, time and value.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from contract.files import write_whole
from contract.tracking import FINAL, why_unreachable

BATCH = 1000  # metrics in one request: the server's limit
RETRY_S = 2.0


class Spool:
    """The metrics of one run. `add` from any thread; `close` leaves what has not arrived on disk."""

    def __init__(self, client: MlflowClient, run_id: str, folder: Path, say: Callable[[str], None] = print) -> None:
        self.client, self.run_id, self.say = client, run_id, say
        self.path, self.sent_path = folder / "metrics.jsonl", folder / "sent"
        folder.mkdir(parents=True, exist_ok=True)
        self._cut_half_written_line()
        self.file = self.path.open("ab")
        # What a power cut left of the two may not agree. To send twice does no harm.
        noted = self.sent_path.read_text() if self.sent_path.exists() else ""
        self.sent = min(int(noted or 0), self.path.stat().st_size)
        self.lock, self.changed = threading.Lock(), threading.Condition()
        self.closed = False
        self.down_since: float | None = None
        self.thread = threading.Thread(target=self._send_all, name="metrics", daemon=True)
        self.thread.start()

    def add(self, metrics: Sequence[Metric]) -> None:
        """Write metrics down; they are with the operating system afterwards, and on their way."""
        with self.lock:
            for start in range(0, len(metrics), BATCH):
                batch = [(item.key, item.value, item.timestamp, item.step) for item in metrics[start : start + BATCH]]
                self.file.write(json.dumps(batch).encode() + b"\n")
            self.file.flush()
        with self.changed:
            self.changed.notify_all()

    def to_disk(self) -> None:
        """Have all that was added on the disk itself: it survives a power cut."""
        with self.lock:
            os.fsync(self.file.fileno())

    def last_step(self, key: str) -> int:
        """The last step of a metric that was ever added, -1 for none."""
        steps = [-1]
        with self.path.open("rb") as file:
            for line in file:
                with contextlib.suppress(ValueError):
                    steps += [step for name, _, _, step in json.loads(line) if name == key]
        return max(steps)

    def wait(self, timeout_s: float) -> bool:
        """Wait until everything that was added by now has arrived; whether it has."""
        wanted = self.path.stat().st_size
        with self.changed:
            return self.changed.wait_for(lambda: self.sent >= wanted, timeout_s)

    def close(self) -> None:
        """Stop sending."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.thread.join(timeout=5)
        self.file.close()

    def _cut_half_written_line(self) -> None:
        if self.path.exists():
            content = self.path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                with self.path.open("r+b") as file:
                    file.truncate(whole)

    def _send_all(self) -> None:
        with self.path.open("rb") as file:
            while not self.closed:
                file.seek(self.sent)
                metrics, end = _batch(file)
                if end == self.sent:
                    with self.changed:
                        self.changed.wait(1.0)
                elif self._send(metrics):
                    with self.changed:
                        self.sent = end
                        self.changed.notify_all()
                    with contextlib.suppress(OSError):  # a full disk: it is sent once more after a restart
                        write_whole(self.sent_path, str(end))
                else:
                    with self.changed:  # what is added meanwhile wakes us, and changes nothing
                        self.changed.wait_for(lambda: self.closed, RETRY_S)

    def _send(self, metrics: list[Metric]) -> bool:
        """Whether some metrics are done with: they arrived, or never will."""
        trouble = why_unreachable(
            self.client.tracking_uri
        )  # asked first: MLflow's own retries would hold us for minutes
        if not trouble:
            try:
                self.client.log_batch(self.run_id, metrics=metrics)
            except MlflowException as error:
                if error.error_code in FINAL:
                    self.say(f"The tracking server refuses metrics of steps up to {metrics[-1].step}: {error.message}")
                    return True
                trouble = error.message
            except Exception as error:  # whatever it is, training goes on
                trouble = f"{type(error).__name__}: {error}"
        if trouble and self.down_since is None:
            self.down_since = time.monotonic()
            self.say(f"No metric gets through to the tracking server ({trouble[:200]}). They wait in {self.path}.")
        if not trouble and self.down_since is not None:
            self.say(f"The tracking server is back after {time.monotonic() - self.down_since:.0f} s.")
            self.down_since = None
        return not trouble


def _batch(file: IO[bytes]) -> tuple[list[Metric], int]:
    """As many whole lines as fit into one request: their metrics, and where the next line begins."""
    metrics: list[Metric] = []
    end = file.tell()
    while (line := file.readline()).endswith(b"\n"):
        with contextlib.suppress(ValueError):  # a line that a power cut spoilt
            found = [Metric(key, value, at, step) for key, value, at, step in json.loads(line)]
            if len(metrics) + len(found) > BATCH:
                break
            metrics += found
        end = file.tell()
    return metrics, end
