"""Checkpoints of a job: which are whole, where the newest is, and their copies in the tracking server's artifact store.

A job is what a command makes of its configuration, model and data (`job_key`). Its folder holds, until its run is
finished: `lock`, `spool/`, `checkpoints/checkpoint-STEP/` as transformers writes them, `result/`, and `stop`, by which
the training is asked to end. A checkpoint counts once `complete.json` names its files: it is written last.

A checkpoint holds pickles (transformers writes them). They are read from our own folder and our own run only, and
never become a model version.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from requests import RequestException

from contract.errors import InputError
from contract.files import try_lock
from trainer.config import Config, flatten

MARK = "complete.json"
REMOTE = "checkpoints"  # folder in a run's artifacts
# What may differ between two commands for the same job: where and how it runs, and not what comes out.
ELSEWHERE = (
    *(
        "checkpoint.",
        "distributed.",
        "tracking.uri",
        "tracking.public_url",
        "tracking.patience_s",
        "tracking.system_metrics_interval_s",
    ),
    *("model.cache_dir", "trainer.dataloader_num_workers", "trainer.logging_steps"),
)


def job_key(config: Config, *identities: str) -> str:
    """What makes two commands the same job, as 16 hex digits: the settings, and what identifies model and data."""
    settings = {key: value for key, value in flatten(config).items() if not key.startswith(ELSEWHERE)}
    return hashlib.sha256(json.dumps([settings, identities], sort_keys=True, default=str).encode()).hexdigest()[:16]


def root(config: Config) -> Path:
    """The folder of all jobs. Raises InputError where nothing can be written."""
    folder = Path(config.checkpoint.folder).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(
            f"checkpoint.folder is '{config.checkpoint.folder}', where nothing can be written: {error}. "
            "Expected a folder on a disk with room for checkpoints."
        ) from error
    return folder


@contextlib.contextmanager
def job_folder(config: Config, key: str) -> Iterator[Path]:
    """The folder of a job, held by this process alone. Raises InputError where another one has it."""
    folder = root(config) / "jobs" / key
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+") as lock:
        if not try_lock(lock):
            raise InputError(
                f"This job is being trained already, by another process on {folder}. Wait for it, or change something, "
                "e.g. seed=43, for another one."
            )
        os.set_inheritable(lock.fileno(), True)  # for the agent of several processes
        (folder / "stop").unlink(missing_ok=True)
        yield folder


def belongs_to(folder: Path, run_id: str) -> None:
    """Have a job's folder hold what is of this run, and nothing of an earlier one."""
    path = folder / "run.json"
    if not path.exists() or json.loads(path.read_text()) != run_id:
        empty(folder)
        write_json(path, run_id)


def empty(folder: Path) -> None:
    """Delete all in a job's folder but its lock."""
    for item in folder.iterdir():
        if item.is_dir():
            shutil.rmtree(item)
        elif item.name != "lock":
            item.unlink()


def newest(folder: Path) -> Path | None:
    """The whole checkpoint with the highest step, if any; those that were left half-written are deleted."""
    found = None
    for checkpoint in sorted(folder.glob("checkpoint-*"), key=step_of):
        if is_whole(checkpoint):
            found = checkpoint
        else:
            shutil.rmtree(checkpoint)
    return found


def step_of(checkpoint: Path | str) -> int:
    return int(str(checkpoint).rpartition("-")[2])


def is_whole(checkpoint: Path) -> bool:
    """Whether all files are there that its mark names, each with its size."""
    try:
        sizes: dict[str, int] = json.loads((checkpoint / MARK).read_text())["files"]
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def mark_whole(checkpoint: Path, **facts: Any) -> None:
    """Say that a checkpoint is whole, once its files are on the disk; with what else is to be known of it."""
    sizes = {}
    for path in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        sizes[str(path.relative_to(checkpoint))] = path.stat().st_size
    write_json(checkpoint / MARK, {"files": sizes, **facts})


def facts_of(checkpoint: Path) -> dict[str, Any]:
    """What `mark_whole` was told."""
    facts: dict[str, Any] = json.loads((checkpoint / MARK).read_text())
    return facts


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all, and onto the disk."""
    aside = path.with_name(path.name + ".new")
    with aside.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    for folder in (path.parent, path.parent.parent):
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)


class Upload:
    """Copies the newest checkpoint, and the best, to the run's artifacts in a thread; retries while the server is away.

    What is to be copied is held in `folder` by hard links: training deletes old checkpoints faster than they upload.
    """

    def __init__(
        self, client: MlflowClient, run_id: str, folder: Path, keep: int, metrics_arrived: Callable[[float], bool]
    ) -> None:
        self.client, self.run_id, self.keep, self.metrics_arrived = client, run_id, keep, metrics_arrived
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        self.waiting: Path | None = None
        self.busy, self.closed = False, False
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self.thread.start()

    def add(self, checkpoint: Path) -> None:
        """Upload this one next, instead of one that still waits."""
        held = self.folder / str(step_of(checkpoint))
        for source in {checkpoint, best_of(checkpoint) or checkpoint}:
            shutil.copytree(source, held / source.name, copy_function=_link)
        with self.changed:
            if self.waiting is not None:
                shutil.rmtree(self.waiting.parent)
            self.waiting = held / checkpoint.name
            self.changed.notify_all()

    def close(self, timeout_s: float) -> bool:
        """Wait for what is under way, and end; whether all of it is there."""
        with self.changed:
            done = self.changed.wait_for(lambda: self.waiting is None and not self.busy, timeout_s)
            self.closed = True
            self.changed.notify_all()
        self.thread.join()
        return done

    def _run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting is not None or self.closed)
                if self.closed:
                    return
                checkpoint, self.waiting, self.busy = self.waiting, None, True
            assert checkpoint is not None
            try:
                self._upload(checkpoint)
            except Exception:  # the server is away
                done = False
            else:
                done = True
            with self.changed:
                if not done:
                    self.changed.wait_for(lambda: self.closed, 5.0)
                if done or self.waiting is not None:
                    shutil.rmtree(checkpoint.parent)
                else:
                    self.waiting = checkpoint
                self.busy = False
                self.changed.notify_all()

    def _upload(self, checkpoint: Path) -> None:
        if not self.metrics_arrived(30.0):  # who goes on from it elsewhere does not have our spool
            raise TimeoutError
        there = remote(self.client, self.run_id)
        best = best_of(checkpoint)
        for wanted in (best, checkpoint):
            if wanted is not None and step_of(wanted) not in there:
                path = f"{REMOTE}/{wanted.name}"
                for name in [*facts_of(wanted)["files"], MARK]:  # the mark last
                    if self.closed:
                        return
                    self.client.log_artifact(self.run_id, str(wanted / name), str(Path(path, name).parent))
        for old in there[: 1 - self.keep]:
            if best is None or old != step_of(best):
                delete_remote(self.client, self.run_id, f"{REMOTE}/checkpoint-{old}")


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # no hard links there
        shutil.copy2(source, target)


def best_of(checkpoint: Path) -> Path | None:
    """The checkpoint beside this one that had the lowest validation loss by then, if there was any validation."""
    step = json.loads((checkpoint / "trainer_state.json").read_text())["best_global_step"]
    best = checkpoint.with_name(f"checkpoint-{step}")
    return best if step and best.is_dir() else None


def remote(client: MlflowClient, run_id: str) -> list[int]:
    """The steps of the whole checkpoints among a run's artifacts, in order."""
    folders = [item.path for item in client.list_artifacts(run_id, REMOTE) if item.is_dir]
    whole = [path for path in folders if MARK in {Path(item.path).name for item in client.list_artifacts(run_id, path)}]
    return sorted(step_of(path) for path in whole)


def download(client: MlflowClient, run_id: str, step: int, folder: Path) -> Path | None:
    """Fetch a checkpoint from a run's artifacts into a folder of checkpoints; None where it is not whole."""
    name = f"checkpoint-{step}"
    aside = folder / ".download"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        fetched = Path(client.download_artifacts(run_id, f"{REMOTE}/{name}", str(aside)))
        if not is_whole(fetched):
            return None
        shutil.rmtree(folder / name, ignore_errors=True)
        return fetched.rename(folder / name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def delete_remote(client: MlflowClient, run_id: str, path: str = REMOTE) -> None:
    """Delete checkpoints from a run's artifacts: they are of no use to anybody when it is finished."""
    uri = client.get_run(run_id).info.artifact_uri
    with contextlib.suppress(MlflowException, RequestException):  # not there, or not ours to delete: they take up room
        repository: Any = get_artifact_repository(uri)
        repository.delete_artifacts(path)
