"""`make loop-demo`: the loop closes, on a repository of its own and with users who are a script.

It trains the bundled model on a repository and puts it into production. New code is committed: the loop notices,
trains, gates, lets users try the candidate, and promotes it. The new code is reverted: it trains again, and promotes
nothing.
Everything else is real: tracking server, trainer, gate, trial, serving.
"""

import difflib
import importlib.util
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import requests
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from contract.files import free_port
from contract.names import PRODUCTION, PROMOTIONS, ROUNDS, pyfunc_model, pytorch_model
from infra.demo import Demo, command
from infra.processes import LOOP_DEMO_SERVING, Service, home

EXPERIMENT = "loop_demo"
MODEL = pyfunc_model(EXPERIMENT)
OLD, NEW = ("asyncio", "email"), "mlflow.entities"  # code that everybody has who runs this
PEOPLE, LINES = 4, 6  # users at work; lines of a file that they know before they ask
LIKES = 0.7  # a completion is accepted whose first line is so much like what stands in the file
TRAINER = (
    *("data.max_train_examples=96", "data.min_eval_files=16", "data.max_eval_examples=48", "trainer.lr=1e-3"),
    *("trainer.batch_size=4", "trainer.logging_steps=1", "eval.max_new_tokens=16", "eval.max_generated=16"),
)
TRIAL: dict[str, Any] = {
    "steps": [{"share": 0.5, "requests": 80}],
    # As wide as a demonstration of a minute needs; docs/trials.md has what a day's traffic can show.
    "margins": {"acceptance": 0.4, "persistence": 0.9, "errors": 0.3, "empty": 0.5, "slow": 0.9, "left": 0.5},
    "alpha": 0.1,
    "settle_s": 1,
    "persistence_after_s": 30,
    "look_s": 1,
    "budget": {"requests": 2000},
}


class LoopDemo:
    """The steps, with the time that each took."""

    def __init__(self) -> None:
        self.demo, self.folder = Demo(time.time()), home() / "loop-demo"
        self.repository, self.config = self.folder / "repository", self.folder / "loop.yaml"
        self.client = MlflowClient(self.demo.tracking_url)
        self.url = ""
        self.times: dict[str, float] = {}

    def run(self) -> None:
        with self._step("1. A tracking server, and a repository with the code of " + " and ".join(OLD)):
            self.demo.start_tracking()
            self._start_over()
        with self._step("2. The loop finds nothing in production: it trains, and the gate alone decides"):
            self._loop()
        with self._step("3. Serve it"):
            self._serve()
        with self._step(f"4. New code is committed ({NEW}): the loop trains, and users decide"):
            self._commit(f"Add {NEW}", NEW)
            with self._people():
                self._loop()
        with self._step("5. The commit is reverted: the loop trains, and nothing is promoted"):
            self._git("revert", "--no-edit", "HEAD")
            self._loop()
        self._summarise()

    @contextmanager
    def _step(self, what: str) -> Iterator[None]:
        click.secho(f"\n{what}", bold=True)
        began = time.monotonic()
        yield
        self.times[what] = time.monotonic() - began

    def _start_over(self) -> None:
        """Take away what an earlier demonstration has left."""
        Service(LOOP_DEMO_SERVING).stop()
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in (MODEL, pytorch_model(EXPERIMENT)):
            with suppress(MlflowException):
                self.client.delete_registered_model(name)
        for run in (*self._runs(PROMOTIONS), *self._runs(ROUNDS), *self._runs(EXPERIMENT, "")):
            self.client.delete_run(run.info.run_id)
        self.repository.mkdir(parents=True)
        self._git("init", "--quiet", "--initial-branch", "main")
        self._commit("Begin", *OLD)
        (self.folder / "trial.yaml").write_text(yaml.safe_dump(TRIAL))
        loop = {
            "model": MODEL,
            "data": {"sources": [f"git:{self.repository}@main"]},
            "triggers": {"commits": 1, "drift": False},
            "training": {"overrides": list(TRAINER), "budget": {"rounds": 100, "hours": 24, "disk_gb": 2}},
            "trial": str(self.folder / "trial.yaml"),
            "approval": "automatic",
            "cooldown_hours": 0,
        }
        self.config.write_text(yaml.safe_dump(loop, sort_keys=False))
        click.echo(f"\n{self.config}:\n{self.config.read_text()}")

    def _git(self, *arguments: str) -> None:
        who = ("-c", "user.name=Ada", "-c", "user.email=ada@example.com")
        subprocess.run(["git", "-C", str(self.repository), *who, *arguments], check=True, stdout=subprocess.DEVNULL)

    def _commit(self, message: str, *packages: str) -> None:
        for package in packages:
            shutil.copytree(
                _folder(package), self.repository / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
            )
        self._git("add", ".")
        self._git("commit", "--quiet", "-m", message)

    def _loop(self) -> None:
        command("services.loop", "--config", str(self.config), "--once")

    def _serve(self) -> None:
        service, port = Service(LOOP_DEMO_SERVING), free_port()
        self.url = f"http://127.0.0.1:{port}"
        os.environ |= {"SERVING_MODEL": MODEL, "SERVING_PORT": str(port), "SERVING_HOST": "127.0.0.1"}
        click.echo("$ python -m serving")
        service.start("serving")
        self.demo.wait_for(service, lambda: self._version() is not None)
        click.echo(f"Ready: {self.url}, version {self._version()}  (log: {service.log})")

    def _status(self) -> dict[str, Any]:
        try:
            found = requests.get(f"{self.url}/status", timeout=5).json()
        except (requests.RequestException, ValueError):
            return {}
        return dict(found)

    def _version(self) -> str | None:
        """That is being served."""
        return (self._status().get("live") or {}).get("version")

    @contextmanager
    def _people(self) -> Iterator[None]:
        """Users who write the new code, and ask for completions as long as a candidate is on trial."""
        over = threading.Event()
        people = [threading.Thread(target=self._person, args=(number, over), daemon=True) for number in range(PEOPLE)]
        for person in people:
            person.start()
        try:
            yield
        finally:
            over.set()
            for person in people:
                person.join(30)

    def _person(self, number: int, over: threading.Event) -> None:
        dice, files = random.Random(number), sorted((self.repository / NEW).glob("*.py"))
        while not over.is_set():
            if not self._status().get("challenger"):
                over.wait(2)
                continue
            before, line = _place(dice, dice.choice(files))
            asked = {"prompt": before, "max_tokens": 12, "stop": ["\n"], "path": "a.py"}
            with suppress(requests.RequestException):
                answer = requests.post(f"{self.url}/v1/completions", json=asked, timeout=60)
                said = answer.json()["choices"][0]["text"] if answer.ok else ""
                if difflib.SequenceMatcher(None, said.strip(), line.strip()).ratio() >= LIKES:
                    taken = {"type": "select", "completion_id": answer.json()["id"], "elapsed": 900}
                    requests.post(f"{self.url}/v1/events", json=taken, timeout=60)

    def _runs(self, experiment: str, wanted: str = f"tags.model = '{MODEL}'") -> list[Run]:
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            return []
        return list(self.client.search_runs([found.experiment_id], wanted, order_by=["attributes.start_time ASC"]))

    def _summarise(self) -> None:
        rounds = [run.data.tags for run in self._runs(ROUNDS) if "round" in run.data.tags]
        click.secho("\n6. What it did", bold=True)
        command("promoter", "loop", "status", "--model-name", MODEL)
        for what, seconds in self.times.items():
            click.echo(f"  {seconds:>5.0f} s  {what}")
        click.echo(f"  {sum(self.times.values()):>5.0f} s  in all")
        production = self.client.get_model_version_by_alias(MODEL, PRODUCTION).version
        click.echo(
            f"\nRounds:     {self.demo.tracking_url}, experiment {ROUNDS}\nProduction: version {production}; "
            f"{self.url} serves {self._version()}\nStop:       make down\n"
        )
        ends = [tags.get("end") for tags in rounds]
        expected = ["promoted", "promoted", "refused"]
        if ends != expected or str(production) != rounds[1].get("candidate"):
            click.echo(f"Not as expected: the rounds ended {ends}, and not {expected}.", err=True)
            sys.exit(1)


def _folder(package: str) -> Path:
    """Where an installed package's code lies; it is not imported."""
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def _place(dice: random.Random, file: Path) -> tuple[str, str]:
    """What stands before a line of a file, and the line."""
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    numbers = [number for number in range(LINES, len(lines)) if len(lines[number].strip()) >= 8]
    if not numbers:
        return "".join(lines), ""
    number = dice.choice(numbers)
    return "".join(lines[max(0, number - 20) : number]), lines[number]


@click.command()
def main() -> None:
    """Show the loop at work. Exits with 1 where a round ends otherwise than it should."""
    LoopDemo().run()


if __name__ == "__main__":
    main()
