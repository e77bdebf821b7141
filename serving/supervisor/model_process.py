"""One `mlflow models serve` process, for one version's files: start it, see that it answers, stop it."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from contract.files import free_port
from contract.messages import EngineStats
from contract.names import GOMP_SPINCOUNT, SERVING_CHANNEL, SERVING_SUPERVISOR, SPIN
from contract.versions import UnknownVersion, VersionCode, refuse_unknown
from serving.settings import RunSettings
from serving.supervisor.versions import Refused, Unavailable

SMOKE = {"inputs": ["def add(a, b):\n", "import ", "# "], "params": {"max_new_tokens": 4}}
LAST_LINES = 40
RAISED = re.compile(r"[\w.]*(Error|Exception|Interrupt|Exit)\b(:|$)")  # how a traceback's last line begins
log = logging.getLogger(__name__)


class ModelProcess:
    """`mlflow models serve` for one version, with the version's own code, and all that it started."""

    def __init__(self, settings: RunSettings, folder: Path, code: VersionCode, version: str) -> None:
        self.version = version
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.socket = settings.serving_run_folder / f"{self.port}.sock"
        self.timeout_s = settings.serving_timeout_s
        self.log: deque[str] = deque(maxlen=LAST_LINES)
        arguments = [
            *(sys.executable, "-m", "mlflow", "models", "serve"),
            *("--model-uri", str(folder)),
            *("--env-manager", "local"),
            *("--host", "127.0.0.1"),
            *("--port", str(self.port)),
            *("--timeout", str(self.timeout_s)),
        ]
        self.process = subprocess.Popen(
            arguments,
            env={GOMP_SPINCOUNT: SPIN}
            | os.environ
            | code.environment()
            | {
                "MLFLOW_TRACKING_URI": settings.mlflow_tracking_uri,
                "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
                SERVING_CHANNEL: str(self.socket),
                # One thread for each completion that may be there: asyncio's own choice is 6 on two cores.
                "UVICORN_LOOP": code.event_loop,
                SERVING_SUPERVISOR: str(os.getpid()),
                "SERVING_MODEL_CONFIG": json.dumps(settings.limits),  # MLflow's: `model_config` at loading
                # `mlflow models serve` starts `uvicorn` by name: the one of this Python, also where no venv is active.
                "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]),
            },
            cwd=code.folder,  # which uvicorn puts first on sys.path
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def alive(self) -> bool:
        return self.process.poll() is None

    def wait_until_ready(self, timeout_s: float, go_on: Callable[[], bool]) -> None:
        """Return once it answers. Raises Refused where it ends instead, Unavailable where it takes too long,
        InterruptedError where `go_on` says no."""
        until = time.monotonic() + timeout_s
        while not self._answers():
            if not go_on():
                raise InterruptedError
            if not self.alive():
                words = self.last_words()
                if "address already in use" in words.lower():  # between the choice of the port and its use
                    raise Unavailable(f"it does not start: {words}")
                raise Refused(f"it does not load: {words}")
            if time.monotonic() > until:
                raise Unavailable(f"it has not loaded within {timeout_s:.0f} s (SERVING_START_TIMEOUT_S)")
            time.sleep(0.1)  # the pace of asking

    def smoke(self) -> None:
        """Ask for a completion, and at the engine's socket. Raises Refused where no answer comes."""
        request = urllib.request.Request(
            f"{self.url}/invocations", json.dumps(SMOKE).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as reply:
                answer: Any = json.load(reply)
            texts = answer["predictions"]
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError(answer)
            if not any(texts):
                raise Refused(f"it answers the prompts {', '.join(map(repr, SMOKE['inputs']))} with empty texts alone")
            refuse_unknown(int(self._stats().get("protocol", 1)), None)
        except UnknownVersion as error:
            raise Refused(f"this serving cannot run it: {error.message}") from error
        except urllib.error.HTTPError as error:
            why = _reason(error.read().decode(errors="replace"))
            raise Refused(f"it does not answer a smoke request: HTTP {error.code}: {why}") from error
        except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, HTTPException) as error:
            raise Refused(f"it does not answer a smoke request: {error}; {self.last_words()}") from error

    def busy(self) -> int:
        """Completions under way or waiting; 0 where nobody listens any more. One that does not answer may be busy."""
        try:
            stats = self._stats()
            return int(stats["active"] + stats["waiting"])
        except (ConnectionRefusedError, FileNotFoundError):
            return 0
        except (OSError, ValueError, KeyError, TypeError, HTTPException):
            return 1

    def responds(self) -> bool:
        """Whether both of its doors answer."""
        try:
            return self._answers() and bool(self._stats())
        except (OSError, ValueError, HTTPException):
            return False

    def _stats(self) -> EngineStats:
        """What the engine says of itself. Raises OSError, ValueError."""
        connection = HTTPConnection("engine", timeout=5)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.settimeout(5)
            connection.sock.connect(str(self.socket))
            connection.request("GET", "/stats")
            found: EngineStats = json.load(connection.getresponse())
            if not isinstance(found, dict):
                raise ValueError(f"/stats is {str(found)[:100]}. Expected an object")
            return found
        finally:
            connection.close()

    def retire(self, drain_s: float) -> None:
        """Stop once all that was begun has been answered, or after `drain_s`."""
        until, idle_since = time.monotonic() + drain_s, time.monotonic()
        try:
            while time.monotonic() < until and self.alive():
                if self.busy():
                    idle_since = time.monotonic()
                elif time.monotonic() - idle_since > 1:  # and whoever had just chosen it has come
                    break
                time.sleep(0.1)  # the pace of asking
        finally:
            self.stop()

    def stop(self, grace_s: float = 10) -> None:
        """End it: by SIGTERM, and by SIGKILL what is left of it after `grace_s`."""
        self._signal(signal.SIGTERM)
        until = time.monotonic() + grace_s
        while self._signal(0) and time.monotonic() < until:
            self.process.poll()
            time.sleep(0.05)  # the pace of asking
        self._signal(signal.SIGKILL)
        self.process.wait()
        self.socket.unlink(missing_ok=True)

    def memory_bytes(self) -> int:
        """What its processes hold resident; 0 where the system does not say."""
        return sum(_resident(pid) for pid in _group(self.pid))

    def only_when_idle(self, idle: bool) -> bool:
        """Let its processes have the processors only while nobody else wants them, or as all others do.

        False where the system does not let them: back from idle it takes root, or a limit of `nice`.
        """
        if not hasattr(os, "SCHED_IDLE"):
            return not idle
        policy, done = os.SCHED_IDLE if idle else os.SCHED_OTHER, True
        for pid in _group(self.pid):
            for thread in Path(f"/proc/{pid}/task").glob("[0-9]*"):
                try:
                    if os.sched_getscheduler(int(thread.name)) != policy:
                        os.sched_setscheduler(int(thread.name), policy, os.sched_param(0))
                except ProcessLookupError:  # it has just ended
                    continue
                except OSError:
                    done = False
        return done

    def last_words(self) -> str:
        """The last line of its log that tells something."""
        # MLflow's last word is that its server has ended, and not why.
        lines = [line for line in self.log if line.strip() and "returned non zero return code" not in line]
        errors = [line for line in lines if RAISED.match(line)]
        return (errors or lines or ["it said nothing"])[-1].strip()[:500]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line.rstrip())
            log.info(line.rstrip(), extra={"version": self.version})

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/ping", timeout=2) as reply:
                return bool(reply.status == 200)
        except (OSError, HTTPException):
            return False

    def _signal(self, number: int) -> bool:
        """Send a signal to all of its processes (0: none, only to ask); whether there are any."""
        try:
            os.killpg(self.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True


def start(
    settings: RunSettings,
    folder: Path,
    code: VersionCode,
    version: str,
    step: Callable[[str], None],
    go_on: Callable[[], bool],
) -> ModelProcess:
    """Start a version, and have it answer. Raises as `wait_until_ready` and `smoke`."""
    step("loading")
    process = ModelProcess(settings, folder, code, version)
    try:
        process.wait_until_ready(settings.serving_start_timeout_s, go_on)
        step("answering a smoke request")
        process.smoke()
    except BaseException:
        process.stop()
        raise
    return process


def lacks_memory(live: ModelProcess, reserve_mb: int) -> str | None:
    """Why a second model does not fit beside the live one; None where it does, or nobody can say."""
    lacking = shortage(live, reserve_mb)
    return lacking and (
        f"{lacking}. Both do not fit: the live one is stopped first, and requests wait meanwhile. Give serving more "
        "memory (SERVING_MEMORY in the stack) to swap without a gap."
    )


def shortage(live: ModelProcess, reserve_mb: int) -> str | None:
    """The figures, where as much memory as the live model holds is not to be had; None where it is."""
    available = available_bytes()
    if available is None:
        return None
    needed = live.memory_bytes()
    if needed + (reserve_mb << 20) < available:
        return None
    return (
        f"the live version's processes hold {needed >> 20} MiB, and {available >> 20} MiB are left, of which "
        f"{reserve_mb} MiB are to stay free (SERVING_MEMORY_RESERVE_MB)"
    )


def _group(leader: int) -> list[int]:
    """The processes of a process group, where /proc tells."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(entry.read_text().rpartition(")")[2].split()[2]) == leader:
                found.append(int(entry.parent.name))
        except (OSError, ValueError, IndexError):
            continue
    return found


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def available_bytes() -> int | None:
    """Memory that a further process may take, by the machine and by this container's limit; None where nobody says."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    with suppress(OSError, ValueError):  # no limit of its own
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
        if limit != "max":
            free = min(free, int(limit) - used + int(stat.get("inactive_file", 0)))
    return free


def _reason(text: str) -> str:
    """What an error of MLflow's scoring server comes down to: the last line of its stack trace, or its message."""
    with suppress(ValueError, KeyError, TypeError):
        error = json.loads(text)
        text = error.get("stack_trace") or error["message"]
    return (text.strip().splitlines() or ["no text"])[-1][:300]
