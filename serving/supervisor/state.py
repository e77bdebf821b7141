"""What the supervisor tells the gateway's workers: one small file, replaced whole, read again when it has changed."""

import json
import os
import signal
import threading
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from contract.files import write_whole

SERVING = "serving"
WAITING = "waiting"  # for a first version: all is well
STARTING = "starting"  # a version is on its way; requests wait for it
FAILING = "failing"  # there is something to serve, or nobody knows, and it cannot be got
GRACE_S = 10.0  # for what was begun, when the supervisor is gone


@dataclass(frozen=True)
class Live:
    """A running `mlflow models serve`, and the version that it serves."""

    model: str
    version: str
    run_id: str
    manifest_sha256: str
    url: str  # of MLflow's scoring server
    socket: str  # path of the engine's
    pid: int
    since: float  # seconds since 1970: when it went live
    models_id: str = ""  # of the logged model
    instead_of: str = ""  # the version in production, whose files are broken: this one was there before


@dataclass(frozen=True)
class Pending:
    """A version on its way, and how far it is."""

    version: str
    step: str
    since: float


@dataclass(frozen=True)
class Challenger:
    """A version that a trial lets answer a share of the requests (contract/trials.py)."""

    version: str
    trial: str  # its id
    share: float
    unit: str
    until: float  # seconds since 1970: the promoter's lease
    limits: dict[str, float]
    shadow: bool = False  # it gets copies, and answers nobody
    live: Live | None = None  # its process, while it answers
    stopped: str = ""  # why it gets no requests any more


@dataclass(frozen=True)
class State:
    """How things are."""

    status: str = WAITING
    message: str = "starting"
    live: Live | None = None
    pending: Pending | None = None
    challenger: Challenger | None = None
    draining: tuple[str, ...] = ()  # versions that answer what they had begun
    refused: dict[str, str] = field(default_factory=dict)  # version → why it was not let live
    drift: str = ""  # the tag of the version that the alias names
    backed_up_at: float = 0.0  # seconds since 1970, by the tracking server's tag; 0: never, as far as is known
    swaps: int = 0
    swaps_failed: int = 0
    restarts: int = 0
    last_swap_s: float = 0.0  # from the first sight of the alias on a version to its first answer

    def changed(self, **values: Any) -> "State":
        return replace(self, **values)


def write(state: State, path: Path) -> None:
    write_whole(path, json.dumps(asdict(state)))


class StateFile:
    """Reads the file where it has changed: a `stat` for each look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, int] | None = None
        self._state = State()

    def read(self) -> State:
        try:
            stat = self.path.stat()
            seen = (stat.st_mtime_ns, stat.st_ino)
            if seen != self._seen:
                self._state, self._seen = _parse(self.path.read_text(encoding="utf-8")), seen
        except OSError:
            return self._state
        return self._state


def _parse(text: str) -> State:
    values = json.loads(text)
    live, pending, challenger = values.pop("live"), values.pop("pending"), values.pop("challenger")
    values["draining"] = tuple(values["draining"])
    if challenger is not None:
        its = challenger.pop("live")
        values["challenger"] = Challenger(**challenger, live=its and Live(**its))
    return State(**values, live=live and Live(**live), pending=pending and Pending(**pending))


def end_with(pid: int, then: int) -> None:
    """End the process `then` once there is no process `pid` any more: nothing outlives the supervisor.

    By SIGTERM, and by SIGKILL what is left of its group after GRACE_S: gunicorn would wait a minute for connections
    that are idle, and hold the port meanwhile.
    """

    def watch() -> None:
        while True:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                os.kill(then, signal.SIGTERM)
                time.sleep(GRACE_S)
                os.killpg(then, signal.SIGKILL)
                return
            except PermissionError:
                pass
            time.sleep(1)  # the pace of asking

    threading.Thread(target=watch, name="supervisor", daemon=True).start()


def stopped_file(folder: Path) -> Path:
    """Where a gateway's worker says which trial goes wrong, and why."""
    return folder / "trial-stopped.json"
