"""The gateway's processes, gunicorn and its workers, as the supervisor sees them: start, start again, end."""

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from contract.names import SERVING_SUPERVISOR
from serving.settings import RunSettings

log = logging.getLogger(__name__)
TICK_S = 0.1
IDLE_S = 4.0  # without a completion under way, after which a gateway that is ending is cut off


class GatewayProcess:
    """gunicorn, which looks after its workers itself."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        metrics = self.settings.serving_run_folder / "metrics"
        shutil.rmtree(metrics, ignore_errors=True)  # counters of workers that are gone
        metrics.mkdir()
        arguments = [
            *(sys.executable, "-m", "gunicorn", "serving.gateway.app:create()"),
            *("--worker-class", "serving.gateway.connections.Worker"),
            *("--workers", str(self.settings.serving_workers)),
            *("--bind", f"{self.settings.serving_host}:{self.settings.serving_port}"),
            *("--graceful-timeout", str(self.settings.serving_timeout_s)),
            *("--keep-alive", "5"),  # an idle connection holds up the end for so long
            *("--asgi-disconnect-grace-period", "0"),  # who hangs up frees the place at once
            *("--log-level", "warning"),
            *("--log-config-json", str(Path(__file__).parents[1] / "gateway" / "logging.json")),
            "--no-control-socket",
        ]
        self.process = subprocess.Popen(
            arguments,
            env=os.environ
            | self._environment()
            | {"PROMETHEUS_MULTIPROC_DIR": str(metrics), SERVING_SUPERVISOR: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self) -> None:
        """Start it again where it has ended."""
        if self.process is not None and self.process.poll() is not None:
            log.error("The gateway has ended with %s, and is started again.", self.process.returncode)
            time.sleep(1)  # its port may still be in use
            self.start()

    def end(self, busy: Callable[[], bool]) -> None:
        """End it, once it has answered what it had begun. Whether completions are under way, `busy` says.

        gunicorn waits for idle connections too: those are cut once nothing is under way.
        """
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()  # no new connections; what was begun is answered
        began = idle_since = time.monotonic()
        while self.process.poll() is None:
            now = time.monotonic()
            if busy():
                idle_since = now
            if now - idle_since > IDLE_S or now - began > self.settings.serving_timeout_s + 5:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            time.sleep(TICK_S)

    def _environment(self) -> dict[str, str]:
        """The settings as they are now, options too, for the gateway to read."""
        return {
            name.upper(): str(value)
            for name, value in self.settings.model_dump(exclude_none=True).items()
            if str(value) != ""
        }
