"""`loop.yaml`: when the loop trains, on what, how much it may spend, and how far it goes without a person."""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from contract import forms
from contract.forms import Section
from services.loop import calendar

HOURS_A_WEEK = 168.0
LEAST_HOURS = 0.001
MOST_ACCEPTED = 100_000  # that are counted
# What the loop itself tells the trainer.
OURS = re.compile(r"data\.(source|eval_source|eval_since)=|tracking\.")


def _plain(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("expected some printable characters")
    return text


def _findable(name: str) -> str:
    """A name of what is shipped, or a whole path: the loop may be started anywhere."""
    _plain(name)
    if "/" in name and not Path(name).is_absolute():
        raise ValueError("expected the name of a shipped one, or a whole path, for the loop may be started anywhere")
    return name


Text = Annotated[str, AfterValidator(_plain)]
Name = Annotated[str, AfterValidator(_findable)]


class Triggers(Section):
    """What begins a round; any of them does."""

    commits: int | None = Field(50, ge=1, description="So many commits, without those that have a stop word.")
    functions: float | None = Field(0.1, gt=0, le=1, description="This share of the functions is new or changed.")
    accepted: int | None = Field(None, ge=1, le=MOST_ACCEPTED, description="So many completions were accepted.")
    drift: bool = Field(True, description="The version in production has drifted (docs/drift.md).")
    drift_hours: float | None = Field(
        168.0, gt=0, le=10_000, description="Where drift counts: have the monitor look so often; null: others do."
    )
    calendar: str | None = Field(None, description="By the clock (UTC), as cron writes it: `0 3 * * 0`, Sundays at 3.")

    @field_validator("calendar")
    @classmethod
    def _rings(cls, value: str | None) -> str | None:
        if value is not None:
            calendar.parse(value)
        return value

    @model_validator(mode="after")
    def _any(self) -> Self:
        if not (self.commits or self.functions or self.accepted or self.drift or self.calendar):
            raise ValueError("all are off, and no round would ever begin: expected one of them at least")
        return self


class Budget(Section):
    """What the rounds of any seven days may take together."""

    rounds: int = Field(2, ge=1, le=1000, description="Trainings.")
    hours: float = Field(24.0, ge=LEAST_HOURS, le=HOURS_A_WEEK, description="Hours of training.")
    gpu_hours: float | None = Field(
        None, ge=LEAST_HOURS, description="Hours of training, times the GPUs of the machine."
    )
    disk_gb: float = Field(20.0, gt=0, description="GB that have to be free before a round begins.")


class Training(Section):
    """How a candidate is trained."""

    config: Name | None = Field(None, description="The trainer's configuration file, or the name of a shipped one.")
    overrides: tuple[Text, ...] = Field((), description="Settings of the trainer's, as on its command line.")
    budget: Budget = Budget()

    @field_validator("overrides")
    @classmethod
    def _settings(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            if not re.match(r"(seed|[a-z_]+(\.[a-z_0-9]+)+)=", item):
                raise ValueError(f"'{item}' is no setting: expected section.key=value")
            if OURS.match(item):
                raise ValueError(f"'{item}' is for the loop to say, by `model` and `data.sources`")
        return value


class Data(Section):
    """What is trained on."""

    sources: tuple[Text, ...] = Field(
        min_length=1,
        max_length=100,
        description="As the trainer's data.source: work trees and `git:PATH[@REVISION]`, each with its whole path.",
    )

    feedback: bool = Field(
        False,
        description="Also what users accepted of completions, of those who agreed (`traces:serving`).",
    )

    @field_validator("sources")
    @classmethod
    def _known_to_git(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for source in value:
            if not Path(source.removeprefix("git:")).is_absolute():
                raise ValueError(f"'{source}' is no whole path, and the loop may be started anywhere")
            if "${" in source:
                raise ValueError(f"'{source}' holds ${{, which the trainer would take for a variable")
        if len(set(value)) < len(value):
            raise ValueError("one of them stands there twice")
        return value


class Loop(Section):
    """The whole file."""

    model: str = Field(pattern=r"^[\w. -]{1,200}_model$", description="The registered model, `EXPERIMENT_model`.")
    data: Data = Field(description="What is trained on.")
    triggers: Triggers = Triggers()
    training: Training = Training()
    gate: Name = Field("default", description="The gate's policy: a file, or a shipped one (docs/promotion.md).")
    trial: Name | None = Field(
        "default", description="The trial's policy: a file, or a shipped one (docs/trials.md); null: no trial."
    )
    approval: Literal["manual", "automatic"] = Field(
        "manual", description="manual: a candidate that has passed the gate waits for a person before its trial."
    )
    cooldown_hours: float = Field(24.0, ge=0, le=10_000, description="From one round's beginning to the next one's.")
    freeze_after: int = Field(
        3, ge=1, description="Rounds in a row that were refused, or failed, and the loop freezes."
    )
    stop_words: tuple[Text, ...] = Field(
        ("[skip train]",), description="A commit with one of them in its subject does not count."
    )

    @property
    def experiment(self) -> str:
        """In which the trainer works."""
        return self.model.removesuffix("_model")


def load(path: Path) -> Loop:
    """Read the file. Raises InputError, which names the key and what was expected."""
    return forms.read(path, Loop, "Loop", "docs/loop.md")
