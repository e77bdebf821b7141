"""The servers that `make demo` leaves running: start, find and stop them by files in RATCHET_HOME/run.

python -m infra.processes down   # what `make down` does
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click
import psutil

LOOP_DEMO_SERVING = "loop-demo-serving"
SERVICES = ("serving", "tracking")  # in the order in which they stop


def home() -> Path:
    """RATCHET_HOME: where the embedded default keeps everything."""
    return Path(os.environ.get("RATCHET_HOME") or "var").absolute()


@dataclass(frozen=True)
class Service:
    """A background server by name; its log and its pid file stand below RATCHET_HOME."""

    name: str

    @property
    def log(self) -> Path:
        return home() / "log" / f"{self.name}.log"

    @property
    def pid_file(self) -> Path:
        return home() / "run" / f"{self.name}.json"

    def process(self) -> psutil.Process | None:
        """The running process; None where it has ended, even if its pid now belongs to another program."""
        try:
            saved = json.loads(self.pid_file.read_text())
            process = psutil.Process(saved["pid"])
            alive = process.create_time() == saved["create_time"] and process.status() != psutil.STATUS_ZOMBIE
        except (OSError, ValueError, KeyError, psutil.NoSuchProcess):
            return None
        return process if alive else None

    def start(self, *module: str) -> None:
        """Start `python -m …` in a session of its own, so that Ctrl-C here does not reach it."""
        for folder in (self.log.parent, self.pid_file.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with self.log.open("w") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", *module],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = psutil.Process(child.pid)
        self.pid_file.write_text(json.dumps({"pid": child.pid, "create_time": process.create_time()}))

    def stop(self, timeout_s: float = 20) -> bool:
        """End the process and its children, by force where they do not go. Returns whether one was running."""
        process = self.process()
        if process is not None:
            family = [process, *process.children(recursive=True)]
            for member in family:
                _quietly(member.terminate)
            _, stubborn = psutil.wait_procs(family, timeout=timeout_s)
            for member in stubborn:
                _quietly(member.kill)
            psutil.wait_procs(stubborn, timeout=5)
        self.pid_file.unlink(missing_ok=True)
        return process is not None


def _quietly(send_signal: Callable[[], None]) -> None:
    with suppress(psutil.NoSuchProcess):
        send_signal()


@click.group()
def main() -> None:
    """Start, find and stop the background servers."""


@main.command()
def down() -> None:
    """Stop the servers that the demo left running. Data stay."""
    for name in (LOOP_DEMO_SERVING, *SERVICES):
        stopped = Service(name).stop()
        click.echo(f"{name}: {'stopped' if stopped else 'was not running'}")


if __name__ == "__main__":
    main()
