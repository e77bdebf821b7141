"""One of several processes that train together: `python -m trainer.training.worker FOLDER PID`, by distributed.py.

Its first process logs metrics and writes checkpoints; everything before and after the training stays with the command.
"""

import os
import sys
import threading
import time
import traceback
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from mlflow import MlflowClient

from contract.errors import InputError, RatchetError
from trainer import base_model
from trainer.base_model import BaseModel
from trainer.config import Config, load_config
from trainer.data.example import ExampleFile
from trainer.training import checkpoints
from trainer.training.batches import TrainingData
from trainer.training.distributed import CONFIG, Task
from trainer.training.divergence import Diverged
from trainer.training.loop import train
from trainer.training.recorder import Recorder

CHUNK = 64 * 2**20  # bytes of a file that are sent at a time


def work(folder: Path, rank: int) -> None:
    """Train as the task in the job's folder says."""
    base_model.quiet()
    task, config = Task.read(folder), load_config(str(folder / CONFIG), [])
    base = BaseModel(task.base_name, Path(task.base_folder), task.base_revision, config.model.trust_remote_code)
    if torch.cuda.is_available() and config.model.device != "cpu":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    tokenizer = base_model.load_tokenizer(base)
    model = base_model.load_model(base, config.model, tokenizer, in_4bit=config.lora.load_in_4bit)
    timeout = timedelta(seconds=config.distributed.timeout_s)
    dist.init_process_group("nccl" if model.device.type == "cuda" else "gloo", timeout=timeout)
    _check_same_job(task, config)
    data = TrainingData(ExampleFile.open(Path(task.train)), np.load(folder / "lengths.npy").tolist())
    recorder = None
    if rank == 0:
        assert task.run_id is not None
        client = MlflowClient(task.uri)
        recorder = Recorder(client, task.run_id, folder / "spool", config.tracking.system_metrics_interval_s)
    checkpoint = _agree_on_checkpoint(folder / "checkpoints", rank)
    done = train(model, tokenizer, data, config, folder, recorder, checkpoint)
    if recorder is not None:
        recorder.close()
    if not done:
        (folder / "stopped").touch()
    dist.barrier()
    dist.destroy_process_group()


def _check_same_job(task: Task, config: Config) -> None:
    """Raise InputError, in all processes, where a machine would train on other data or in other steps."""
    mine = f"job {task.key}, checkpoint.save_steps={config.checkpoint.save_steps}, "
    mine += f"trainer.logging_steps={config.trainer.logging_steps}, strategy {config.distributed.strategy}"
    everyones: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(everyones, mine)
    if len(set(everyones)) > 1:
        raise InputError(
            f"The machines differ: {'; '.join(sorted(set(everyones)))}. Expected the same command on the same code, "
            "but for distributed.machine_rank and folders. Another job means other settings, model or data."
        )


def _agree_on_checkpoint(folder: Path, rank: int) -> Path | None:
    """The first process's newest checkpoint, copied to the machines that do not have it."""
    folder.mkdir(parents=True, exist_ok=True)
    mine = checkpoints.newest(folder) if rank == 0 else None
    found = [(mine.name, checkpoints.facts_of(mine)) if mine is not None else None]
    dist.broadcast_object_list(found, src=0)
    if found[0] is None:
        return None
    name, facts = found[0]
    path = folder / name
    has: list[bool] = [False] * dist.get_world_size()
    # What an earlier run left on a machine has the same name and other facts.
    dist.all_gather_object(has, checkpoints.is_whole(path) and checkpoints.facts_of(path) == facts)
    if not all(has):
        receives = not has[rank] and os.environ["LOCAL_RANK"] == "0"
        path.mkdir(exist_ok=True)
        for file in [*facts["files"], checkpoints.MARK]:
            _send(path / file, rank == 0, receives)
        dist.barrier()
    return path


def _send(path: Path, sends: bool, receives: bool) -> None:
    """Copy one file from the first process, in pieces."""
    source = path.open("rb") if sends else None
    target = path.open("wb") if receives else None
    while True:
        piece = [source.read(CHUNK) if source else None]
        dist.broadcast_object_list(piece, src=0)
        if not piece[0]:
            break
        if target:
            target.write(piece[0])
    for file in (source, target):
        if file:
            file.close()


def _end_with(agent: int) -> None:
    """End when the agent does, however that was: nobody else would end us."""
    while os.getppid() == agent:
        time.sleep(1.0)
    os._exit(1)


def main() -> None:
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    threading.Thread(target=_end_with, args=(int(sys.argv[2]),), daemon=True).start()
    try:
        work(folder, rank)
    except Exception as error:
        wrong_input = isinstance(error, InputError)
        message = error.message if isinstance(error, RatchetError) else f"{type(error).__name__}: {error}"
        # For the command to print, if this is the process that failed first: the others only miss it.
        said = {"message": message[:2000], "input": wrong_input, "traceback": traceback.format_exc()}
        if isinstance(error, Diverged):
            said |= {"diverged": True, "traceback": ""}
        checkpoints.write_json(folder / f"failure-{rank}.json", said)
        # At once: closing the process group would wait for processes that are no more.
        os._exit(2 if wrong_input else 1)


if __name__ == "__main__":
    main()
