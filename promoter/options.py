"""The options that several commands share."""

import getpass
import math
import re
from collections.abc import Callable
from typing import Any

import click

from contract.errors import shortened
from contract.metrics import SHOWN
from contract.names import DEFAULT_EXPERIMENT, pyfunc_model

LONGEST_TEXT = 2000  # characters of who, and of why
NAME = r"[\w.\-/: ]+"  # of a metric, param or tag, to MLflow


def _model_name(context: click.Context, parameter: click.Parameter, value: str | None) -> str:
    """The model named, or the one that the trainer registers from the experiment."""
    name = value or pyfunc_model(context.params.get("experiment_name") or DEFAULT_EXPERIMENT)
    if "'" in name or '"' in name:
        raise click.BadParameter(f"'{name}' holds a quote. Expected a registered model's name.")
    if not name.strip() or "/" in name or ":" in name:
        raise click.BadParameter(f"'{name}' is no name that a registered model can have: it holds / or :, or nothing.")
    return name


def text(context: click.Context, parameter: click.Parameter, value: str) -> str:
    """Something that says something: letters or digits, and not a book."""
    if not any(character.isalnum() for character in value) or len(value) > LONGEST_TEXT:
        raise click.BadParameter(
            f"{shortened(value)!r}. Expected a text of at most {LONGEST_TEXT} characters, for the record."
        )
    return value


def _seconds(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if not math.isfinite(value):
        raise click.BadParameter(f"'{value}' is no number of seconds. Expected 0 or more, such as 60.")
    return value


def _names(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Names that MLflow may have stored: with any other it would search for a long while, or fail at the server."""
    for value in values:
        if not re.fullmatch(NAME, value):
            raise click.BadParameter(
                f"'{value}' is no name of a metric, param or tag. Expected letters, digits, and _ - . / : or spaces."
            )
    return values


def options(*names: str) -> Callable[[Any], Any]:
    """The options that several commands share, by name."""
    known: dict[str, Any] = {
        "experiment": click.option(
            "--experiment-name",
            default=DEFAULT_EXPERIMENT,
            show_default=True,
            is_eager=True,  # the model's name follows from it
            help="MLflow experiment.",
        ),
        "model": click.option(
            "--model-name", callback=_model_name, help="Registered PyFunc model.  [default: the experiment's, …_model]"
        ),
        "columns": _columns,
        "policy": click.option(
            "--policy",
            "policy_name",
            default="default",
            show_default=True,
            help="YAML file, or the name of a shipped policy (docs/promotion.md).",
        ),
        "by": click.option("--by", default=getpass.getuser, callback=text, help="Who, for the record.  [default: you]"),
        "reason": click.option("--reason", required=True, callback=text, help="Why, for the record."),
        "version": click.option("--version", "number", help="Which version.  [default: the staged one]"),
        "stage": click.option(
            "--stage",
            type=click.Choice(["Staging", "Production"], case_sensitive=False),
            default="Staging",
            show_default=True,
            help="Where to.",
        ),
        "dry-run": click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing."),
        "wait": click.option(
            "--wait",
            "wait_s",
            type=click.FloatRange(0),
            callback=_seconds,
            default=0,
            show_default=True,
            help="Seconds to wait for somebody else who is promoting the model.",
        ),
        "format": click.option(
            "--format",
            "output_format",
            type=click.Choice(["text", "json", "markdown"], case_sensitive=False),
            default="text",
            show_default=True,
            help="How to print.",
        ),
    }

    def add(command: Any) -> Any:
        for name in reversed(names):
            command = known[name](command)
        return command

    return add


def _columns(command: Any) -> Any:
    """What a table shows, and which rows."""
    for option in (
        click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="Show so many rows."),
        click.option(
            "--filter", "filter_string", default="", help="MLflow's syntax, e.g. \"tags.role = 'candidate'\"."
        ),
        click.option("--tag", "tags", multiple=True, callback=_names, help="Tag to show, may be repeated."),
        click.option(
            "--param",
            "params",
            multiple=True,
            callback=_names,
            help="Param to show, e.g. trainer.lr; may be repeated.",
        ),
        click.option(
            "--metric",
            "metrics",
            multiple=True,
            default=SHOWN,
            callback=_names,
            help="Metric to show, may be repeated.  [default: the evaluation's]",
        ),
    ):
        command = option(command)
    return command
