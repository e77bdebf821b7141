"""The command line: `python -m services.loop --config loop.yaml` looks, and begins a round where one is due.

It starts trainer and promoter as the jobs that they are. One loop works for a model at a time, by a lease on the
tracking server; a loop that was killed goes on with its round when it is started again.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from contract import steering
from contract.errors import Busy, InputError, RatchetError, Unreachable, disk_full, printable, unexpected
from contract.lease import Claim, lease, server_time
from contract.names import LOOP_FROZEN, LOOP_LOOKED, LOOP_RUN_NOW, ROUNDS
from contract.tracking import connect, say_when_waiting
from services.command_line import Finite, failing_as_everywhere, terminate
from services.loop import sources, state
from services.loop.config import Loop, load
from services.loop.jobs import Here, Jobs
from services.loop.rounds import FAILED, HOUR_S, Facts, Verdict, decide, freezes, seconds_left
from services.loop.state import Record
from services.loop.work import Work, cannot_work
from services.loop.worker import Elsewhere

if TYPE_CHECKING:
    from mlflow import MlflowClient

WAIT_S = 60.0  # for a loop that was killed just now: longer than its lease
LEFT = "A round that has begun goes on with the same command."


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--config", "-c", "path", type=click.Path(path_type=Path), default="loop.yaml", show_default=True, help="The file."
)
@click.option("--once", is_flag=True, help="Look once, and end when the round has, if one begins.")
@click.option("--dry-run", is_flag=True, help="Say whether a round would begin, and why; begin none.")
@click.option("--every", type=Finite(10, 86_400), default=300.0, show_default=True, metavar="SECONDS",
              help="Look so often.")  # fmt: skip
@click.option("--elsewhere", is_flag=True,
              help="Train where a worker waits for it (`python -m services.loop.worker`), and not here.")  # fmt: skip
@click.option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", default="http://127.0.0.1:5000", show_default=True,
              help="The tracking server.  [$MLFLOW_TRACKING_URI]")  # fmt: skip
def main(path: Path, once: bool, dry_run: bool, every: float, elsewhere: bool, tracking_uri: str) -> None:
    """Look whether a round is due, and do it: train, gate, and let users decide, as far as loop.yaml allows.

    Exit codes with --once: 0 whatever came of the round, 2 bad input, 3 the tracking server does not do its work,
    4 another loop works for this model.
    """
    loop = load(path)
    signal.signal(signal.SIGTERM, terminate)
    os.environ["MLFLOW_TRACKING_URI"] = tracking_uri  # the jobs' too
    here = Here()
    alone = once or dry_run
    while True:
        try:
            with failing_as_everywhere(LEFT):
                client = connect(tracking_uri, "--tracking-uri", "--tracking-uri")
                say_when_waiting()
                if dry_run and not elsewhere:
                    _would(client, loop, here)
                else:
                    with lease(client, loop.model, "loop", WAIT_S if once else 0.0, ROUNDS, "training") as claim:
                        jobs: Jobs = Elsewhere(client, here, claim.run_id) if elsewhere else here
                        if dry_run:
                            _would(client, loop, jobs)
                        else:
                            look(client, loop, jobs, claim)
        except RatchetError as error:
            if alone or isinstance(error, InputError):
                raise
            error.show()  # the next look may go on
        if alone:
            return
        with failing_as_everywhere(LEFT):
            time.sleep(every)


def _would(client: "MlflowClient", loop: Loop, jobs: Jobs) -> None:
    """Say what a look would do."""
    verdict = _verdict(client, loop, jobs, lambda _: None)
    if verdict.begins and (why := cannot_work(loop, jobs, lambda _: None)):
        raise InputError(f"A round would begin ({verdict.why}), and could not work: {why}")
    click.echo(f"{'A round would begin' if verdict.begins else 'No round'}: {verdict.why}")


def look(client: "MlflowClient", loop: Loop, jobs: Jobs, claim: Claim) -> Verdict:
    """Go on with a round that was left, or begin one that is due."""
    found = state.runs(client, loop.model)
    if found and state.goes_on(found[-1]):
        record = Record(client, claim, found[-1].info.run_id, dict(found[-1].data.tags))
        click.echo(f"Going on with round {record.id[:12]}")
        _work(record, loop, jobs)
        return Verdict(True, "a round was left")
    verdict = _verdict(client, loop, jobs, lambda _: claim.check(), claim)
    click.echo(f"{'A round begins' if verdict.begins else 'No round'}: {verdict.why}")
    if verdict.begins:
        asked = steering.tags(client, loop.model).get(LOOP_RUN_NOW, "")
        now = server_time(client.tracking_uri)
        _work(state.begin(client, claim, loop, verdict.why, verdict.facts, asked, now), loop, jobs)
    return verdict


def _verdict(
    client: "MlflowClient", loop: Loop, jobs: Jobs, still_ours: Callable[[float], None], claim: Claim | None = None
) -> Verdict:
    """Whether a round is due. With the claim that allows it, the monitor is asked too where its last look is old."""
    found = state.runs(client, loop.model)

    def facts() -> Facts:
        since = state.heads(state.baseline(found))
        there = state.in_production(client, loop.model) is not None
        if there and claim is not None:
            _look_for_drift(client, loop, jobs, still_ours, claim)
        return state.facts(client, loop, found, sources.moved(loop, since, there, jobs, still_ours))

    known = state.known(client, loop, jobs.free_gb)
    return decide(loop, known, facts, [state.round_of(one) for one in found], server_time(client.tracking_uri))


def _look_for_drift(
    client: "MlflowClient", loop: Loop, jobs: Jobs, still_ours: Callable[[float], None], claim: Claim
) -> None:
    """Have the monitor look, where that is due. What it finds is the version's tag."""
    hours, now = loop.triggers.drift_hours, server_time(client.tracking_uri)
    last = state.number(steering.tags(client, loop.model), LOOP_LOOKED)
    if not loop.triggers.drift or hours is None or (last is not None and 0 <= now - last < HOUR_S * hours):
        return
    with claim.in_time():
        client.set_registered_model_tag(loop.model, LOOP_LOOKED, f"{now:.0f}")
    command = ["drift", "--model-name", loop.model, "--format", "json"]
    done = jobs.run("services.monitor", command, HOUR_S, still_ours)
    if done.exit_code:
        click.echo(f"The monitor cannot tell whether production has drifted: {printable(done.why)}", err=True)


def _work(record: Record, loop: Loop, jobs: Jobs) -> None:
    client, claim = record.client, record.claim
    if (asked := record.tags.get(state.ASKED)) and steering.tags(client, loop.model).get(LOOP_RUN_NOW) == asked:
        with claim.in_time():
            client.delete_registered_model_tag(loop.model, LOOP_RUN_NOW)

    def now() -> float:
        return server_time(client.tracking_uri)

    def left_s(gpus: int) -> float:
        return seconds_left(loop, state.rounds(client, loop.model), gpus, now())

    try:
        how, why = Work(record, loop, jobs, lambda _: claim.check(), left_s, now).go()
    except (Busy, Unreachable, state.Gone):
        raise  # the round goes on when the server is there, and the lease had again
    except (RatchetError, OSError) as error:
        ours = error if isinstance(error, RatchetError) else disk_full(error, "") or unexpected(error, "")
        how, why = FAILED, ours.message
    record.end(how, why)
    click.echo(f"Round {record.id[:12]}: {how}. {printable(why)}")
    if freezes(loop, state.rounds(client, loop.model), state.resumed(client, loop.model)):
        reason = f"{loop.freeze_after} rounds in a row were refused, or failed"
        if not state.is_registered(client, loop.model):
            raise RatchetError(f"{reason}, and nothing has been trained yet: look at the reasons, and start it again.")
        with claim.in_time():
            client.set_registered_model_tag(loop.model, LOOP_FROZEN, steering.written("the loop", reason, now()))
        click.echo(f"Frozen: {reason}. `promoter loop resume` lets it go on.")


if __name__ == "__main__":
    main(prog_name="python -m services.loop")
