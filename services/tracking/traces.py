"""Deletes traces of completions: of one user, older than so many days, or what is beyond a size, the oldest first.

    python -m services.tracking.traces delete --user ada
    python -m services.tracking.traces delete --older-than 90 --keep-mb 5000 --yes    # as a nightly job

Asks the server that MLFLOW_TRACKING_URI names; with logins on, as an administrator.
"""

import json
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from contract.errors import InputError
from contract.names import TRACES
from contract.tracking import connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import TraceInfo

AT_ONCE = 100  # that MLflow deletes in one request
DAY_MS = 24 * 3600 * 1000


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """The traces of completions in the tracking server."""


@main.command()
@click.option("--user", help="All of this user's: the name of a token; empty: of nobody's.")
@click.option("--older-than", type=click.FloatRange(min=0), metavar="DAYS", help="All that are older.")
@click.option(
    "--keep-mb", type=click.FloatRange(min=0), metavar="MB", help="The oldest, until so many MB of traces are left."
)
@click.option("--dry-run", is_flag=True, help="Say how many, and delete none.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    default="http://127.0.0.1:5000",
    show_default=True,
    help="The tracking server.",
)
def delete(
    user: str | None, older_than: float | None, keep_mb: float | None, dry_run: bool, yes: bool, tracking_uri: str
) -> None:
    """Delete traces, with what was told of them. What several options name is deleted all."""
    if user is None and older_than is None and keep_mb is None:
        raise InputError("Nothing says which traces. Expected --user, --older-than or --keep-mb.")
    for option, value in (("--older-than", older_than), ("--keep-mb", keep_mb)):
        if value is not None and math.isnan(value):
            raise InputError(f"{option} is nan. Expected a number.")
    client = connect(tracking_uri, "--tracking-uri", "--tracking-uri")
    experiment = client.get_experiment_by_name(TRACES)
    found = list(_traces(client, experiment.experiment_id)) if experiment is not None else []
    chosen = choose(found, user, older_than, keep_mb, time.time() * 1000)
    size = sum(map(size_of, chosen)) / 1e6
    click.echo(f"{len(chosen)} of {len(found)} traces, {size:.1f} MB")
    if dry_run or not chosen or experiment is None:
        return
    if not yes:
        click.confirm("They cannot be had again. Delete them?", abort=True)
    with click.progressbar(range(0, len(chosen), AT_ONCE), label="Deleting") as starts:
        for start in starts:
            ids = [trace.trace_id for trace in chosen[start : start + AT_ONCE]]
            client.delete_traces(experiment.experiment_id, trace_ids=ids)


def choose(
    found: list["TraceInfo"], user: str | None, older_than: float | None, keep_mb: float | None, now_ms: float
) -> list["TraceInfo"]:
    """The traces to delete, of all: those of a user, those older than so many days, and the oldest beyond a size."""
    chosen: list[TraceInfo] = []
    left: list[TraceInfo] = []
    for trace in found:
        is_old = older_than is not None and trace.request_time < now_ms - older_than * DAY_MS
        (chosen if is_old or (user is not None and trace.tags.get("user", "") == user) else left).append(trace)
    if keep_mb is not None:
        left.sort(key=lambda trace: trace.request_time)
        beyond = sum(map(size_of, left)) - keep_mb * 1e6
        for trace in left:
            if beyond <= 0:
                break
            chosen.append(trace)
            beyond -= size_of(trace)
    return chosen


def size_of(trace: "TraceInfo") -> int:
    """What a trace takes, in bytes, as serving says; 0 for one of an earlier release."""
    try:
        return int(json.loads(trace.trace_metadata["mlflow.trace.sizeStats"])["total_size_bytes"])
    except (KeyError, ValueError, TypeError):
        return 0


def _traces(client: "MlflowClient", experiment: str) -> Iterator["TraceInfo"]:
    token = None
    while True:
        page = client.search_traces(locations=[experiment], max_results=500, page_token=token, include_spans=False)
        yield from (trace.info for trace in page)
        token = page.token
        if not token:
            return


if __name__ == "__main__":
    main(prog_name="python -m services.tracking.traces")
