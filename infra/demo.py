"""`make demo`: the whole path on real input, step by step, with the commands that a user would type.

Tracking server → baseline and fine-tuning → gate → production → one real completion. Exits with 0 also
when the gate keeps the candidate out, since that is an answer; leaves both servers running.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import requests
from mlflow import MlflowClient
from mlflow.entities import Run

from contract.names import DEFAULT_EXPERIMENT, EVALUATES, PRODUCTION, STAGING, pyfunc_model
from infra.ports import holder
from infra.processes import Service, home
from services.tracking.readiness import is_ready, wait_until
from services.tracking.settings import TrackingSettings
from serving.settings import ServingSettings

PROMPT = 'def is_reading(self):\n    """Return True if the transport is receiving data."""\n'
MODEL = pyfunc_model(DEFAULT_EXPERIMENT)


class Demo:
    """The steps, with the time that each took."""

    def __init__(self, began: float) -> None:
        self.tracking, self.serving = TrackingSettings(), ServingSettings()
        self.tracking_url = f"http://{self.tracking.tracking_host}:{self.tracking.tracking_port}"
        self.serving_url = f"http://{self.serving.serving_host}:{self.serving.serving_port}"
        os.environ["MLFLOW_TRACKING_URI"] = self.tracking_url
        self.client = MlflowClient(self.tracking_url)
        self.times: dict[str, float] = {"set-up": time.time() - began}

    @contextmanager
    def step(self, number: int, name: str, what: str) -> Iterator[None]:
        click.secho(f"\n[{number}/6] {what}", bold=True)
        started = time.monotonic()
        yield
        self.times[name] = time.monotonic() - started

    def run(self) -> None:
        with self.step(2, "tracking server", f"Tracking server on SQLite and files in {home()}"):
            if Service("serving").process() is None:  # said now, not after the training
                refuse_taken("SERVING_PORT", self.serving.serving_host, self.serving.serving_port)
            if Service("tracking").process() is None:
                refuse_taken("TRACKING_PORT", self.tracking.tracking_host, self.tracking.tracking_port)
            self.start_tracking()
        with self.step(3, "training", "Evaluate the base model, fine-tune it on asyncio's source, evaluate again"):
            command("trainer", "train", "--config", "demo")
        with self.step(4, "promotion", "Compare, gate, validate, promote"):
            verdict = self.promote()
        with self.step(5, "serving", "Serve the version in production and ask it"):
            self.serve()
        self.summarise(verdict)

    def start_tracking(self) -> None:
        service = Service("tracking")
        if service.process() is not None and is_ready(self.tracking_url):
            click.echo(f"It is running already: {self.tracking_url}")
            return
        service.stop()
        refuse_taken("TRACKING_PORT", self.tracking.tracking_host, self.tracking.tracking_port)
        click.echo("$ python -m services.tracking")
        service.start("services.tracking")
        self.wait_for(service, lambda: is_ready(self.tracking_url))
        click.echo(f"Ready: {self.tracking_url}  (log: {service.log})")

    def promote(self) -> str:
        """Take the new candidate as far as the gate lets it. Returns the gate's verdict."""
        command("promoter", "compare", "--limit", "5")
        if PRODUCTION not in self.aliases():
            click.echo("\nNothing is in production yet: the base model is what the candidate has to beat.")
        click.echo()
        verdict, code = answer("promoter", "auto-promote", "--stage", "Staging")
        if code == 1:
            click.echo("\nThe gate keeps the candidate out; the incumbent goes on serving.")
        elif STAGING in self.aliases():
            if answer("promoter", "validate")[1] == 0:
                command("promoter", "promote", "--stage", "Production")
            else:
                click.echo("\nThe staged version failed validation; the incumbent goes on serving.")
        if PRODUCTION not in self.aliases():  # so that there is something to serve
            _, base_run = self.candidate_and_base_run()
            base = base_run.data.tags[EVALUATES].rpartition("/")[2]
            force = ("--force", "--reason", "the demo serves the base model, since no candidate has passed")
            command("promoter", "promote", "--stage", "Production", "--version", base, *force)
        return verdict

    def aliases(self) -> dict[str, str]:
        found: dict[str, str] = self.client.get_registered_model(MODEL).aliases
        return found

    def candidate_and_base_run(self) -> tuple[Run, Run]:
        """The newest fine-tuned version's run, and the base model's on the same data."""
        newest = max(
            self.client.search_model_versions(f"name = '{MODEL}' and tags.role = 'candidate'"),
            key=lambda version: int(version.version),
        )
        run = self.client.get_run(str(newest.run_id))
        return run, self.client.get_run(run.data.tags["base_run_id"])

    def serve(self) -> None:
        service = Service("serving")
        if service.process() is None:
            refuse_taken("SERVING_PORT", self.serving.serving_host, self.serving.serving_port)
            click.echo("$ python -m serving")
            service.start("serving")
        else:
            click.echo("It is running already, and follows the alias.")
        version = self.client.get_model_version_by_alias(MODEL, PRODUCTION).version
        self.wait_for(service, lambda: _serves(f"{self.serving_url}/ping", str(version)))
        click.echo(f"Ready: {self.serving_url}/invocations  (log: {service.log})")
        reply = requests.post(f"{self.serving_url}/invocations", json={"inputs": [PROMPT]}, timeout=60)
        reply.raise_for_status()
        completion = str(reply.json()["predictions"][0])
        click.echo("\nPrompt:\n" + _indented(PROMPT) + "\nCompletion:\n" + _indented(completion))

    def wait_for(self, service: Service, condition: Any) -> None:
        """Wait until a server answers; where it ends instead, show why and exit as it did."""
        if wait_until(condition, 120, lambda: service.process() is not None):
            return
        tail = "\n".join(service.log.read_text().splitlines()[-15:])
        service.stop()
        click.echo(f"{service.name} did not start. Its log ends:\n{_indented(tail)}", err=True)
        sys.exit(2 if "Error: " in tail else 1)

    def summarise(self, verdict: str) -> None:
        candidate, base = self.candidate_and_base_run()
        production = self.client.get_model_version_by_alias(MODEL, PRODUCTION)
        click.secho("\n[6/6] Summary", bold=True)
        click.echo(f"Trained: SmolLM2-135M on the code of asyncio; run {candidate.info.run_name}")
        click.echo(f"\n  {'held-out code':<18}{'base':>10}{'candidate':>12}")
        for name in ("nll_per_token", "first_line_nll", "first_line_match", "syntax_ok", "edit_similarity"):
            ours, theirs = (run.data.metrics[f"eval/{name}"] for run in (candidate, base))
            click.echo(f"  {name:<18}{theirs:>10.4f}{ours:>12.4f}")
        click.echo(f"\n{verdict}")
        click.echo("\nTime:")
        for name, seconds in self.times.items():
            click.echo(f"  {name:<18}{seconds:>6.0f} s")
        click.echo(f"  {'all':<18}{sum(self.times.values()):>6.0f} s")
        example = json.dumps({"inputs": [PROMPT]})
        click.echo(
            f"\nMLflow UI:   {self.tracking_url}\n"
            f"Completions: {self.serving_url}/invocations\n"
            f"  curl {self.serving_url}/invocations -H 'Content-Type: application/json' -d {shlex.quote(example)}\n"
            "Stop both:   make down\n"
        )
        click.secho(f"In production: {MODEL} version {production.version} ({production.tags['role']})", bold=True)


def refuse_taken(variable: str, host: str, port: int) -> None:
    """Exit with 2 where somebody else has a port, and say who."""
    if (who := holder(port, host)) is not None:
        click.echo(
            f"Port {port} is held by {who.what}. Free it: {who.remedy}; or set {variable} to a free port.", err=True
        )
        sys.exit(2)


def command(*arguments: str) -> None:
    """Run a command as a user would; where it fails, so does the demo, with the same exit code."""
    click.secho(f"$ {' '.join(arguments)}", fg="cyan")
    code = _wait(subprocess.Popen([sys.executable, "-m", *arguments]))
    if code != 0:
        click.echo(f"`{' '.join(arguments)}` ended with exit code {code}.", err=True)
        sys.exit(code)


def answer(*arguments: str) -> tuple[str, int]:
    """Run a command whose answer is 0 or 1, show what it prints, and return that with the exit code."""
    click.secho(f"$ {' '.join(arguments)}", fg="cyan")
    result = subprocess.run([sys.executable, "-m", *arguments], stdout=subprocess.PIPE, text=True)
    click.echo(result.stdout, nl=False)
    if result.returncode not in (0, 1):
        sys.exit(result.returncode)
    return result.stdout.strip(), result.returncode


def _wait(child: "subprocess.Popen[bytes]") -> int:
    """Wait for a child that shares the terminal: at Ctrl-C it tidies up and ends, and so do we."""
    previous = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        return child.wait()
    finally:
        signal.signal(signal.SIGINT, previous)


def _serves(url: str, version: str) -> bool:
    try:
        reply = requests.get(url, timeout=5)
        return reply.ok and reply.headers["X-Model-Version"] == version
    except requests.RequestException:
        return False


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.rstrip("\n").split("\n"))


@click.command()
@click.option("--began", type=float, default=time.time, help="When set-up began (seconds since 1970).")
def main(began: float) -> None:
    """Run the demo. `make demo` sets everything up first."""
    Demo(began).run()


if __name__ == "__main__":
    main()
