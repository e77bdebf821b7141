"""The command line: `monitor drift` looks at the version in production.

docker compose run --rm monitor drift
make drift ARGS="--days 7"
"""

import signal
import time

import click

from contract.errors import InputError, RatchetError
from contract.names import DEFAULT_EXPERIMENT, MONITORING, pyfunc_model
from contract.tracking import connect, say_when_waiting
from services.command_line import Finite, failing_as_everywhere, terminate
from services.monitor.look import QUESTIONS, Limits, Look, earlier, look, to_json, write

LEFT = "The version's tag is as it was."


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """Watch production: what it is asked, the code that it was trained on, and how well it knows new code."""


@main.command()
@click.option(
    "--model-name", default=pyfunc_model(DEFAULT_EXPERIMENT), show_default=True, help="The model in production."
)
@click.option("--days", type=Finite(0, 3650, min_open=True), default=7.0, show_default=True,
              help="Take prompts of so many days.")  # fmt: skip
@click.option("--prompts", type=click.IntRange(min=50), default=200, show_default=True,
              help="So many prompts at most, four of a file.")  # fmt: skip
@click.option("--alpha", type=Finite(0, 1, min_open=True, max_open=True), default=Limits.alpha,
              show_default=True,
              help="The chance of a false alarm in all looks of a year together.")  # fmt: skip
@click.option("--functions", type=Finite(0, 1, min_open=True), default=Limits.functions, show_default=True,
              help="The share of functions new or changed that is drift.")  # fmt: skip
@click.option("--margin", type=Finite(0, 100), default=Limits.margin, show_default=True,
              help="By how much less well newer code may be known, in nats a token.")  # fmt: skip
@click.option("--only", type=click.Choice(QUESTIONS), multiple=True, help="This question alone; may be given again.")
@click.option("--every", type=Finite(0, 10_000, min_open=True), metavar="HOURS",
              help="Look again every so many hours, for ever.")  # fmt: skip
@click.option(
    "--dry-run",
    is_flag=True,
    help="Look, and write neither that down nor the version's tag. Newer code is evaluated, as a run of the trainer.",
)
@click.option("--format", "output_format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--tracking-uri", envvar="MLFLOW_TRACKING_URI", default="http://127.0.0.1:5000", show_default=True,
              help="The tracking server.  [$MLFLOW_TRACKING_URI]")  # fmt: skip
def drift(
    model_name: str,
    days: float,
    prompts: int,
    alpha: float,
    functions: float,
    margin: float,
    only: tuple[str, ...],
    every: float | None,
    dry_run: bool,
    output_format: str,
    tracking_uri: str,
) -> None:
    """See whether the version in production has drifted, and say so: a run in `monitoring`, and the version's tag.

    Three questions: are its prompts like the code that it was trained on (inputs), how far has that code moved
    (repository), and does it know newer code as well as the code by which the gate judged it (quality). The exit code
    is 0 whatever is found, and 1 where no question can be answered.
    """
    signal.signal(signal.SIGTERM, terminate)
    limits, first = Limits(alpha, functions, margin), True
    while True:
        try:
            with failing_as_everywhere(LEFT):
                client = connect(tracking_uri, "--tracking-uri", "--tracking-uri")
                say_when_waiting()
                found = look(client, model_name, limits, days, prompts, only or QUESTIONS, _say)
                _print(found, output_format)
                if not dry_run:
                    from services.monitor import report

                    run = write(client, found, report.files(found, earlier(client, model_name)))
                    _say(f"Written: run {run} in the experiment {MONITORING}, with drift.html")
                elif not found.is_known:
                    raise RatchetError(f"Nothing can be said of version {found.version} of {found.model}.")
        except RatchetError as error:
            if every is None or (first and isinstance(error, InputError)):
                raise
            error.show()  # the next look may say more
        if every is None:
            return
        first = False
        with failing_as_everywhere(LEFT):
            time.sleep(3600 * every)


def _print(found: Look, output_format: str) -> None:
    if output_format == "json":
        click.echo(to_json(found))
        return
    words = f"drifted: {found.outcome}" if found.drifted else "no drift" if found.is_known else "not known"
    click.echo(f"Version {found.version} of {found.model}: {words}")
    for verdict in found.verdicts:
        state = {None: "not known", True: "drifted", False: "no drift"}[verdict.drifted]
        click.echo(f"  {verdict.question:<12}{state:<12}{verdict.why}")


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main(prog_name="monitor")
