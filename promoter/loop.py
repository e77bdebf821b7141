"""What people say to the loop, and see of it: `promoter loop`, whose commands promoter/cli.py declares.

The loop (services/loop) reads two tags of the registered model, which nobody but the promoter may write.
"""

import time
from typing import Any

import click
import pandas as pd
from mlflow import MlflowClient

from contract import steering
from contract.errors import InputError, printable
from contract.lease import server_time
from contract.names import LOOP_FROZEN, LOOP_RESUMED, LOOP_RUN_NOW, ROUNDS
from contract.steering import CANDIDATE, END, TRAINED_S, TRIGGER, WHY, said, written
from promoter import policy, registry, tables
from promoter.trials import policy as trials

COLUMNS = ("round", "began", TRIGGER, CANDIDATE, "trained", END, WHY)


def status(uri: str, model: str, output_format: str, limit: int) -> None:
    """The loop's last rounds, the newest first, and whether it is frozen."""
    client = registry.connect(uri)
    rows = [_row(run) for run in _rounds(client, model, limit)]
    tags = steering.tags(client, model) if rows else _tags(client, model)  # a first round has registered nothing yet
    frozen, asked = said(tags.get(LOOP_FROZEN)), said(tags.get(LOOP_RUN_NOW))
    if output_format == "json":
        click.echo(tables.to_json({"model": model, "frozen": frozen, "asked_for": asked, "rounds": rows}))
        return
    click.echo(f"The loop of {model} is {f'frozen: {frozen}' if frozen else 'not frozen'}.")
    if asked:
        click.echo(f"A round was asked for: {asked}")
    if not rows:
        click.echo("It has had no rounds.")
        return
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    click.echo(tables.render(table if output_format == "markdown" else table.drop(columns=WHY), output_format))
    if output_format == "text":
        click.echo("".join(f"\n{row['round']}: {row[WHY]}" for row in rows if row[WHY]))


def say(uri: str, model: str, tag: str, by: str, reason: str) -> None:
    """Freeze the loop, or ask for a round, as a tag says; once."""
    client = registry.connect(uri)
    if found := said(_tags(client, model).get(tag)):
        click.echo(f"{'It is frozen already' if tag == LOOP_FROZEN else 'A round was asked for already'}: {found}.")
        return
    client.set_registered_model_tag(model, tag, written(by, reason, server_time(uri)))
    click.echo(
        f"The loop of {model} begins no round until `promoter loop resume`; one that goes on comes to its end."
        if tag == LOOP_FROZEN
        else f"The loop of {model} begins a round when it next looks, within its budget."
    )


def check(gate: str, trial: str | None) -> None:
    """Read the policies that a loop.yaml names. Raises InputError."""
    policy.load(gate)
    if trial is not None:
        trials.load(trial)
    click.echo("The policies are as they should be.")


def resume(uri: str, model: str) -> None:
    """Let the loop go on."""
    client = registry.connect(uri)
    if LOOP_FROZEN not in _tags(client, model):
        raise InputError(f"The loop of {model} is not frozen. Nothing was changed.")
    client.set_registered_model_tag(model, LOOP_RESUMED, f"{server_time(uri):.3f}")  # refusals count from now on
    client.delete_registered_model_tag(model, LOOP_FROZEN)
    click.echo(f"The loop of {model} goes on.")


def _tags(client: MlflowClient, model: str) -> dict[str, str]:
    registry.aliases(client, model)  # an unknown model is an error
    return steering.tags(client, model)


def _rounds(client: MlflowClient, model: str, limit: int) -> list[Any]:
    experiment = client.get_experiment_by_name(ROUNDS)
    if experiment is None:
        return []
    wanted = steering.rounds_of(model)
    order = ["attributes.start_time DESC"]
    return list(client.search_runs([experiment.experiment_id], wanted, order_by=order, max_results=limit))


def _row(run: Any) -> dict[str, str]:
    tags = run.data.tags
    values = {
        "round": run.info.run_id[:12],
        "began": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(run.info.start_time / 1000)),
        "trained": f"{_hours(tags.get(TRAINED_S, '0'))} h",
        END: tags.get(END, "") if run.info.status != "RUNNING" else "goes on",
    }
    return {name: printable(values.get(name, tags.get(name, ""))) for name in COLUMNS}


def _hours(seconds: str) -> str:
    try:
        return f"{float(seconds) / 3600:.2f}"
    except ValueError:
        return "?"
