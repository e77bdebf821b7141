"""The trainer's side of a loop that runs elsewhere: `python -m services.loop.worker` waits for jobs.

A job is a run in the experiment `rounds`, which the loop writes; the worker answers by a run of its own in `jobs`. Each
writes its own runs alone, so that loop and trainer keep their accounts. Two workers never do the same job: by a lease.
A worker whose loop is gone ends the job, and one that is killed leaves it to the next.
"""

import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click
from mlflow.exceptions import MlflowException

from contract.errors import Busy, RatchetError, Unreachable, unexpected
from contract.lease import Claim, is_alive, lease, server_time
from contract.names import JOBS, ROUNDS
from contract.tracking import as_ours, connect, say_when_waiting
from services.command_line import terminate
from services.loop.jobs import TOOK_TOO_LONG, Done, Here

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Tags: of a job, by the loop; and of what a worker has done, beside those of its claim.
JOB, COMMAND, MOST_S, HOLDER = "job", "command", "most_s", "holder"
SECONDS, EXIT_CODE, SAID = "seconds", "exit_code", "said"
ANSWER = "answer.txt"  # artifact
COMMANDS = {"trainer": ("train", "changes"), "services.monitor": ("drift",)}  # nothing else is done for a loop
FACTS = "facts"  # instead of a command: what machine this is
PACE_S, EVERY_S = 2.0, 10.0  # between looks; between notes of the time that a job has taken


class Elsewhere:
    """Jobs for the loop: the promoter's here, the trainer's where a worker waits for them."""

    def __init__(self, client: "MlflowClient", here: Here, holder: str) -> None:
        self.client, self.here, self.holder = client, here, holder

    def gpus(self) -> int:
        """That the worker's machine has."""
        return int(self._facts()["gpus"])

    def free_gb(self) -> float:
        """Where the worker keeps its checkpoints."""
        return float(self._facts()["free_gb"])

    def run(self, part: str, arguments: Sequence[str], most_s: float, tick: Callable[[float], None]) -> Done:
        """Have a job done, and wait for it; `tick` gets the seconds that it has taken, not those that it waited."""
        if part == "promoter":
            return self.here.run(part, arguments, most_s, tick)
        tags = {JOB: part, COMMAND: json.dumps(list(arguments)), MOST_S: repr(most_s), HOLDER: self.holder}
        where = self.client.get_experiment_by_name(ROUNDS)
        assert where is not None
        job = self.client.create_run(where.experiment_id, run_name=f"job: {part} {arguments[0]}", tags=tags)
        try:
            return self._wait(job.info.run_id, tick)
        finally:
            self.client.set_terminated(job.info.run_id)

    def _wait(self, job: str, tick: Callable[[float], None]) -> Done:
        began, said = time.monotonic(), False
        while True:
            tries = answers(self.client, job)
            seconds = sum(_seconds(one) for one in tries)
            tick(seconds)
            for one in tries:
                if EXIT_CODE in one.data.tags and one.info.status != "RUNNING":
                    return Done(int(one.data.tags[EXIT_CODE]), self._answer(one), one.data.tags.get(SAID, ""), seconds)
            if not tries and not said and time.monotonic() - began > 30:
                said = True
                click.echo("Waiting for a worker: `docker compose --profile loop up --detach loop-trainer`", err=True)
            time.sleep(PACE_S)

    def _answer(self, run: "Run") -> str:
        with tempfile.TemporaryDirectory() as folder:
            return Path(self.client.download_artifacts(run.info.run_id, ANSWER, folder)).read_text(encoding="utf-8")

    def _facts(self) -> dict[str, float]:
        done = self.run("trainer", [FACTS], 60.0, lambda _: None)
        if not isinstance(done.answer, dict):
            raise RatchetError(f"The worker does not say what machine it has: {done.why}")
        return done.answer


def answers(client: "MlflowClient", job: str) -> "list[Run]":
    """What workers have done for a job."""
    found = client.get_experiment_by_name(JOBS)
    if found is None:
        return []
    return list(client.search_runs([found.experiment_id], f"tags.model = 'job {job}'"))


def work(client: "MlflowClient", here: Here) -> bool:
    """Do the oldest job that is open. Whether there was one."""
    for job in open_jobs(client):
        try:
            with lease(client, f"job {job.info.run_id}", "worker", 0.0, JOBS, "doing") as claim:
                if any(EXIT_CODE in one.data.tags for one in answers(client, job.info.run_id)):
                    continue
                claim.keep()
                try:
                    _do(client, here, job, claim)
                except BaseException:
                    with suppress(Exception):
                        client.set_terminated(claim.run_id, "KILLED")
                    raise
                return True
        except Busy as busy:
            click.echo(busy.message, err=True)
    return False


def open_jobs(client: "MlflowClient") -> "list[Run]":
    """Those whose loop is alive, the oldest first."""
    found = client.get_experiment_by_name(ROUNDS)
    if found is None:
        return []
    wanted = f"tags.{JOB} LIKE '%' AND attributes.status = 'RUNNING'"
    listed = client.search_runs([found.experiment_id], wanted, order_by=["attributes.start_time ASC"])
    now = server_time(client.tracking_uri)
    return [job for job in listed if is_alive(client, job.data.tags.get(HOLDER, ""), now)]


def _do(client: "MlflowClient", here: Here, job: "Run", claim: Claim) -> None:
    tags, before = job.data.tags, sum(_seconds(one) for one in answers(client, job.info.run_id))
    command = [str(item) for item in json.loads(tags[COMMAND])]
    click.echo(f"Job {job.info.run_id[:12]}: {command[0]}", err=True)
    said = -EVERY_S

    def tick(seconds: float) -> None:
        nonlocal said
        claim.check()
        if seconds >= said + EVERY_S:
            said = seconds
            with (
                suppress(MlflowException, Unreachable),
                claim.in_time(),
            ):  # the lease tells when the server is away for too long
                client.set_tag(claim.run_id, SECONDS, f"{seconds:.1f}")
                ours = client.get_run(job.info.run_id)
                now = server_time(client.tracking_uri)
                if ours.info.status != "RUNNING" or not is_alive(client, tags[HOLDER], now):
                    raise Busy("The loop that wanted this job has ended.")

    left_s = float(tags[MOST_S]) - before
    if command[0] == FACTS:
        done = Done(0, json.dumps({"gpus": here.gpus(), "free_gb": here.free_gb()}), "", 0.0)
    elif command[0] not in COMMANDS.get(tags[JOB], ()):
        done = Done(2, "", f"`{tags[JOB]} {command[0]}` is not done for a loop", 0.0)
    elif left_s <= 0:
        done = Done(TOOK_TOO_LONG, "", "its time is over", 0.0)
    else:
        done = here.run(tags[JOB], command, left_s, tick)
    with claim.in_time():
        client.set_tag(claim.run_id, SECONDS, f"{done.seconds:.1f}")
        client.set_tag(claim.run_id, SAID, done.said[-4000:])
        client.log_text(claim.run_id, done.output, ANSWER)
        client.set_tag(claim.run_id, EXIT_CODE, str(done.exit_code))
        client.set_terminated(claim.run_id)


def _seconds(run: "Run") -> float:
    return float(run.data.tags.get(SECONDS, "0"))


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", default="http://127.0.0.1:5000", show_default=True,
              help="The tracking server.  [$MLFLOW_TRACKING_URI]")  # fmt: skip
def main(tracking_uri: str) -> None:
    """Train for a loop that runs elsewhere: wait for its jobs, and do one at a time."""
    signal.signal(signal.SIGTERM, terminate)
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri  # the jobs' too
    here = Here()
    said = ""
    while True:
        try:
            client = connect(tracking_uri, "--tracking-uri", "--tracking-uri")
            say_when_waiting()
            if said != (said := "Waiting for jobs"):
                click.echo(said, err=True)
            while True:
                if not work(client, here):
                    time.sleep(PACE_S)
        except KeyboardInterrupt:
            sys.exit(130)
        except Exception as error:
            ours = error if isinstance(error, RatchetError) else as_ours(error, "") or unexpected(error, "")
            if not isinstance(ours, Unreachable):
                raise ours from error
            if said != (said := ours.message):
                ours.show()
            time.sleep(EVERY_S)


if __name__ == "__main__":
    main(prog_name="python -m services.loop.worker")
