"""What is logged while a model trains: metrics by step and of the machine, through the spool; lines for people.

Our own callback instead of transformers' for MLflow: that one waits for the server, ends a run as FINISHED after an
exception and leaves it RUNNING after SIGTERM.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
from transformers import TrainerCallback

from trainer.training.spool import Spool

LOSS, VALIDATION_LOSS = "train/loss", "validation/loss"
LINE_EVERY_S = 5.0
SYSTEM_KEY = "cpu_utilization_percentage"


class Recorder(TrainerCallback):  # type: ignore[misc]
    """Logs to one run what transformers' Trainer and the machine report; none of it waits for the server.

    A step that was recorded before (by a trainer that died after its last checkpoint) is not recorded again. Without a
    terminal it prints a plain line every so many seconds instead of a progress bar.
    """

    def __init__(self, client: MlflowClient, run_id: str, folder: Path, system_interval_s: float) -> None:
        self.spool = Spool(client, run_id, folder, say=lambda line: print(f"  {line}", file=sys.stderr, flush=True))
        logged = client.get_run(run_id).data.metrics

        def last_step(key: str) -> int:
            """Of what is in the spool, and of what is in the server: the spool of another machine is not here."""
            there = client.get_metric_history(run_id, key) if key in logged else []
            return max([self.spool.last_step(key), *(metric.step for metric in there)])

        self.last_step, self.last_validation = last_step(LOSS), last_step(VALIDATION_LOSS)
        self.system = None
        if system_interval_s:
            self.system = _SystemMetrics(self.spool, system_interval_s, last_step(f"system/{SYSTEM_KEY}") + 1)
        self.plain = not sys.stderr.isatty()
        self.loss = self.speed = 0.0  # as recorded last; tokens/s
        self.seconds = 0.0  # spent on recording

    def record(self, first_step: int, losses: Sequence[float], values: dict[str, float]) -> None:
        """The loss of each of some steps in a row, and other metrics at the last of them."""
        began = time.perf_counter()
        at, last = int(time.time() * 1000), first_step + len(losses) - 1
        metrics = [
            Metric(LOSS, loss, at, step) for step, loss in enumerate(losses, first_step) if step > self.last_step
        ]
        if last > self.last_step:
            metrics += [Metric(key, value, at, last) for key, value in values.items()]
        self.last_step = max(self.last_step, last)
        self.loss, self.speed = losses[-1], values["train/tokens_per_second"]
        if metrics:
            self.spool.add(metrics)
        self.seconds += time.perf_counter() - began

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started = self.last_line = time.monotonic()
        self.first_step = state.global_step
        if self.system is not None:
            self.system.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.plain and time.monotonic() - self.last_line >= LINE_EVERY_S:
            self._print_line(state)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        step = state.global_step
        if step > self.last_validation:
            self.spool.add([Metric(VALIDATION_LOSS, metrics["eval_loss"], int(time.time() * 1000), step)])
            self.last_validation = step
        if self.plain:
            print(f"  step {step}/{state.max_steps}  validation loss {metrics['eval_loss']:.4f}", flush=True)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.plain:
            self._print_line(state)

    def close(self) -> None:
        """Stop; what has not arrived stays on disk, for `Spool` to send."""
        if self.system is not None:
            self.system.stop()
        if self.spool.down_since is None:
            self.spool.wait(5.0)
        self.spool.close()

    def _print_line(self, state: Any) -> None:
        self.last_line = time.monotonic()
        seconds = self.last_line - self.started
        left = (state.max_steps - state.global_step) * seconds / max(1, state.global_step - self.first_step)
        loss = f"  loss {self.loss:.3f}  {self.speed:.0f} tokens/s" if self.speed else ""
        print(f"  step {state.global_step}/{state.max_steps}{loss}  {seconds:.0f} s, {left:.0f} s to go", flush=True)


class _SystemMetrics:
    """MLflow's monitors of CPU, memory, disk, network and GPU; its own loop ends for good when the server is away."""

    def __init__(self, spool: Spool, interval_s: float, step: int) -> None:
        self.spool, self.interval_s, self.step = spool, interval_s, step
        kinds: list[Any] = [CPUMonitor, DiskMonitor, NetworkMonitor, GPUMonitor]
        self.monitors: list[Any] = []
        for kind in kinds:
            with contextlib.suppress(Exception):  # no NVIDIA GPU, or not the package that asks it
                self.monitors.append(kind())
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        self.ended.set()
        if self.thread.is_alive():
            self.thread.join()

    def _run(self) -> None:
        while not self.ended.wait(self.interval_s):
            values: dict[str, float] = {}
            for monitor in self.monitors:
                with contextlib.suppress(Exception):  # of one: the others go on
                    monitor.collect_metrics()
                    values |= monitor.aggregate_metrics()
                    monitor.clear_metrics()
            at = int(time.time() * 1000)
            self.spool.add([Metric(f"system/{key}", float(value), at, self.step) for key, value in values.items()])
            self.step += 1
