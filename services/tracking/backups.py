"""Remembers when what the tracking server holds was last backed up, so that serving can tell, and an alarm too.

    docker compose exec tracking python -m services.tracking.backups done    # at the end of a backup
    python -m services.tracking.backups last

Asks the server that MLFLOW_TRACKING_URI names; with logins on, as an administrator.
"""

import time

import click

from contract.errors import RatchetError
from contract.names import BACKED_UP_AT, PROMOTIONS
from contract.tracking import connect

_server = click.option(
    "--tracking-uri",
    envvar="MLFLOW_TRACKING_URI",
    default="http://127.0.0.1:5000",
    show_default=True,
    help="The tracking server.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def main() -> None:
    """When what the tracking server holds was last backed up."""


@main.command()
@_server
def done(tracking_uri: str) -> None:
    """A backup is complete: remember that it was now."""
    client = connect(tracking_uri, "--tracking-uri", "--tracking-uri")
    experiment = client.get_experiment_by_name(PROMOTIONS)
    number = experiment.experiment_id if experiment is not None else client.create_experiment(PROMOTIONS)
    client.set_experiment_tag(number, BACKED_UP_AT, f"{time.time():.0f}")
    click.echo("Remembered: a backup was done now.")


@main.command()
@_server
def last(tracking_uri: str) -> None:
    """Print when the last backup was done; exit code 1 if none is known."""
    client = connect(tracking_uri, "--tracking-uri", "--tracking-uri")
    experiment = client.get_experiment_by_name(PROMOTIONS)
    found = experiment.tags.get(BACKED_UP_AT) if experiment is not None else None
    if found is None:
        raise RatchetError("No backup is known.")
    click.echo(time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(float(found))))


if __name__ == "__main__":
    main(prog_name="python -m services.tracking.backups")
