"""Training in several processes, on one machine or more: torchrun's agent starts them and ends all when one dies.

The command itself (`train_together`) keeps to the model, the data and the tracking; it runs this module as a process of
its own, the agent, which runs `trainer.training.worker` once for each GPU. The agent ends with the command, whatever
ends that.
"""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contract.errors import InputError, RatchetError
from contract.files import free_port
from trainer.config import Config, to_yaml
from trainer.training import checkpoints
from trainer.training.divergence import Diverged

JOB, CONFIG, FAILURE = "job.json", "config.yaml", "failure.json"


@dataclass(frozen=True)
class Task:
    """What the processes are told, in the job's folder."""

    key: str  # the job's; the same on all machines
    base_name: str
    base_folder: str
    base_revision: str
    train: str  # file of examples
    uri: str  # of the tracking server
    run_id: str | None  # of the run to log to; None on all machines but the first

    @classmethod
    def read(cls, folder: Path) -> "Task":
        return cls(**json.loads((folder / JOB).read_text()))


class ProcessDied(RatchetError):
    """One of the processes failed, and so the training did."""


def processes(config: Config, device: str) -> int:
    """Processes on this machine: as configured, else one for each GPU."""
    import torch

    found = torch.cuda.device_count() if device == "cuda" else 1
    wanted = config.distributed.processes or found
    if device == "cuda" and wanted > found:
        raise InputError(f"distributed.processes is {wanted}. Expected at most {found}, the GPUs that torch sees here.")
    return wanted


def train_together(folder: Path, config: Config, task: Task, count: int) -> bool:
    """Train in so many processes here, and those of the other machines. False where all were asked to stop.

    Raises ProcessDied, naming the first that failed, and InputError for what one of them found wrong.
    """
    checkpoints.write_json(folder / JOB, asdict(task))
    (folder / CONFIG).write_text(to_yaml(config))
    (folder / FAILURE).unlink(missing_ok=True)
    for old in folder.glob("failure-*.json"):
        old.unlink()
    (folder / "stopped").unlink(missing_ok=True)
    threads = max(
        1, (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) // count
    )
    env = {"OMP_NUM_THREADS": str(threads), **os.environ}
    # In a session of its own: Ctrl-C reaches us alone, and we ask the processes to save and stop. The pipe's end is how
    # the agent learns that we are gone.
    agent = subprocess.Popen(
        [sys.executable, "-m", "trainer.training.distributed", str(folder), str(count)],
        stdin=subprocess.PIPE,
        env=env,
        start_new_session=True,
        close_fds=False,  # the job's lock is the agent's too: no second command begins before all have ended
    )
    try:
        code = agent.wait()
    except BaseException:
        agent.terminate()
        agent.wait()
        raise
    if code:
        raise _failure(folder, config, code)
    return not (folder / "stopped").exists()


def _failure(folder: Path, config: Config, code: int) -> RatchetError:
    if not (folder / FAILURE).exists():
        return ProcessDied(f"The processes ended together with exit code {code}; what they said stands above.")
    first = json.loads((folder / FAILURE).read_text())
    what = folder / f"failure-{first['rank']}.json"
    said: dict[str, Any] = {"message": "", "input": False}
    if what.exists():
        said = json.loads(what.read_text())
    if said["input"]:
        return InputError(said["message"])
    if said.get("diverged"):
        return Diverged(said["message"])
    print(said.get("traceback", ""), end="", file=sys.stderr, flush=True)
    code = first["exit_code"]
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    if code == -signal.SIGKILL:
        how += " (by the kernel, where memory ran out)"
    where = f" on machine {config.distributed.machine_rank}" if config.distributed.machines > 1 else ""
    return ProcessDied(
        f"Process {first['rank']}{where} {how}{': ' + said['message'] if said['message'] else ''}. The other processes "
        "were ended. The same command goes on from the last checkpoint."
    )


def _agent(folder: Path, count: int) -> int:
    """Run the processes until all are done; 1 where one failed, and the first that did stands in `failure.json`."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from trainer.config import load_config

    threading.Thread(target=_end_with_the_command, daemon=True).start()
    options, task = load_config(str(folder / CONFIG), []).distributed, Task.read(folder)
    launch = LaunchConfig(
        min_nodes=options.machines,
        max_nodes=options.machines,
        nproc_per_node=count,
        run_id=task.key,
        rdzv_backend="static",
        rdzv_endpoint=options.rendezvous or f"127.0.0.1:{free_port()}",
        rdzv_configs={"rank": options.machine_rank, "timeout": options.timeout_s},
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(launch, sys.executable)("-u", "-m", "trainer.training.worker", str(folder), str(os.getpid()))
    except ChildFailedError as error:
        # Who was killed comes before those that then missed it, though the agent may have seen them in one look.
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        killed = [rank for rank, code in codes.items() if code < 0]
        rank = killed[0] if killed else error.get_first_failure()[0]
        checkpoints.write_json(folder / FAILURE, {"rank": rank, "exit_code": codes[rank]})
        return 1
    except SignalException:
        return 1
    except Exception as error:  # no other machine came, or one went away
        checkpoints.write_json(
            folder / "failure-0.json", {"message": f"{type(error).__name__}: {error}", "input": False}
        )
        checkpoints.write_json(folder / FAILURE, {"rank": 0, "exit_code": 1})
        return 1
    return 0


def _end_with_the_command() -> None:
    while os.read(0, 1):  # ends when nobody holds the pipe's other end
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(_agent(Path(sys.argv[1]), int(sys.argv[2])))
