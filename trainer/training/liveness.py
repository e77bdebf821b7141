"""Which runs in the state RUNNING have a trainer, and which were left so by one that died.

A trainer holds a lock on a file for each run of its own, which the operating system lets go of whatever becomes of it,
and says every 30 s in the run's tag `heartbeat` that it is there. The lock decides for trainers on the same volume, the
heartbeat for those elsewhere.
"""

import contextlib
import fcntl
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run, ViewType

from contract import names
from contract.errors import InputError
from contract.files import try_lock

HEARTBEAT_S = 30.0
STALE_S = 900.0  # longer than a tracking server is down for an upgrade
VOLUME, HOST, HEARTBEAT = "trainer_volume", "trainer_host", "heartbeat"


@contextlib.contextmanager
def alive(client: MlflowClient, run_id: str, root: Path) -> Iterator[None]:
    """Be known as this run's trainer. `root` is the folder of checkpoints."""
    path = root / "running" / run_id
    path.parent.mkdir(parents=True, exist_ok=True)
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(HEARTBEAT_S):
            with contextlib.suppress(Exception):  # the next one will get through
                client.set_tag(run_id, HEARTBEAT, str(time.time()))

    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another trainer may be looking just now
        for key, value in ((VOLUME, volume(root)), (HOST, socket.gethostname()), (HEARTBEAT, str(time.time()))):
            client.set_tag(run_id, key, value)
        threading.Thread(target=beat, name="heartbeat", daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            path.unlink(missing_ok=True)


def volume(root: Path) -> str:
    """A name for the disk that the folder is on, made once."""
    path = root / "volume-id"
    root.mkdir(parents=True, exist_ok=True)
    aside = root / f"volume-id.{uuid.uuid4().hex}"
    if not path.exists():
        try:
            aside.write_text(uuid.uuid4().hex)
            with contextlib.suppress(FileExistsError):
                path.hardlink_to(aside)  # whole, or not at all
        finally:
            aside.unlink(missing_ok=True)
    return path.read_text()


def has_trainer(run: Run, root: Path) -> bool:
    """Whether a trainer is at work on a run that is RUNNING."""
    tags = run.data.tags
    if tags.get(VOLUME) == volume(root):
        path = root / "running" / run.info.run_id
        if not path.exists():
            return False
        with path.open("a") as lock:
            return not try_lock(lock)
    seen = float(tags.get(HEARTBEAT, run.info.start_time / 1000))
    return time.time() - seen < STALE_S


def mark_dead(client: MlflowClient, experiment_id: str, root: Path) -> list[Run]:
    """End the runs of an experiment that a trainer left RUNNING, as KILLED; returns them."""
    dead = [
        run
        for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'", ViewType.ACTIVE_ONLY)
        if names.ROLE in run.data.tags and not has_trainer(run, root)
    ]
    for run in dead:
        client.set_tag(run.info.run_id, "ended_because", f"Its trainer on {run.data.tags.get(HOST, 'a machine')} died.")
        client.set_terminated(run.info.run_id, "KILLED")
        (root / "running" / run.info.run_id).unlink(missing_ok=True)
    return dead


def unfinished(client: MlflowClient, experiment_id: str, job: str, root: Path) -> Run | None:
    """The newest run of a job, where it did not finish. Raises InputError while a trainer elsewhere is at it."""
    runs = client.search_runs(
        [experiment_id], f"tags.job = '{job}'", order_by=["attributes.start_time DESC"], max_results=1
    )
    if not runs or runs[0].info.status == "FINISHED":
        return None
    run = runs[0]
    # On our volume we hold the job's lock: whoever had the run is gone.
    elsewhere = run.data.tags.get(VOLUME) != volume(root)
    if run.info.status == "RUNNING" and elsewhere and has_trainer(run, root):
        raise InputError(
            f"Run {run.info.run_name} is this very job, and a trainer on {run.data.tags.get(HOST, 'another machine')} "
            f"was at work on it less than {STALE_S / 60:.0f} minutes ago. Wait for it, or start a run of its own with "
            "checkpoint.resume=false."
        )
    return run
