"""Policies: what a candidate has to show before it may replace the incumbent. One YAML file each, in policies/.

The field descriptions are the reference in docs/promotion.md (`make docs`).
"""

import math
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, model_validator

from contract import forms
from contract.errors import InputError
from contract.forms import Section
from contract.metrics import PER_EXAMPLE, Definition, Direction, parse

POLICIES = Path(__file__).parent / "policies"
P = TypeVar("P", bound=Section)


def _per_example(name: str) -> str:
    if parse(name) is None:
        raise ValueError(f"expected a metric with a value for each example: PREFIX/NAME with NAME {PER_EXAMPLE}")
    return name


PairedMetric = Annotated[str, AfterValidator(_per_example)]
IfMissing = Literal["refuse", "skip"]


class _Paired(Section):
    """A metric that is compared example by example, in the direction that the registry knows."""

    metric: PairedMetric = Field(description="Which, e.g. `eval/nll_per_token`; it needs a value for each example.")
    direction: Direction | None = Field(
        None,
        description="Whether `lower_is_better` or `higher_is_better`. The metric's own; stated, it has to be that one.",
    )

    @model_validator(mode="after")
    def _in_its_direction(self) -> Self:
        if self.direction not in (None, self.definition.direction):
            raise ValueError(
                f"direction is {self.direction}, expected {self.definition.direction} for {self.metric} (or none: it "
                "follows from the metric)"
            )
        return self

    @property
    def definition(self) -> Definition:
        """What the registry of metrics says of it."""
        metric = parse(self.metric)
        assert metric is not None  # PairedMetric has seen to it
        return metric.definition

    def _check_size(self, key: str, size: float) -> None:
        """Raise ValueError for a difference that two values of the metric cannot have."""
        if size >= self.definition.highest:
            raise ValueError(
                f"{key} is {size:g}, expected less than {self.definition.highest:g}: {self.metric} is between 0 and "
                f"{self.definition.highest:g}"
            )


class Primary(_Paired):
    """The metric by which the candidate has to be better."""

    min_relative_improvement: float = Field(
        0.0, ge=0, lt=1, description="At least so much better, as a share of the incumbent's value: 0.01 is 1%."
    )
    min_absolute_improvement: float = Field(0.0, ge=0, description="At least so much better, in the metric's unit.")

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        self._check_size("min_absolute_improvement", self.min_absolute_improvement)
        return self


class Floor(Section):
    """A limit that the candidate has to keep whatever the incumbent does; also for the first version ever."""

    metric: str = Field(
        min_length=1,
        description="Any metric that the evaluation's run has logged; read from the table where it has it.",
    )
    min: float | None = Field(None, description="The candidate's value has to be at least this.")
    max: float | None = Field(None, description="The candidate's value has to be at most this.")
    if_missing: IfMissing = Field(
        "refuse", description="Where these data do not have the metric: `refuse` the candidate, or `skip` the floor."
    )

    @model_validator(mode="after")
    def _has_sane_limits(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("expected min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min is {self.min:g} and max {self.max:g}, between which nothing lies")
        metric = parse(self.metric)
        highest = metric.definition.highest if metric is not None else math.inf
        for key, value in (("min", self.min), ("max", self.max)):
            if metric is not None and value is not None and not 0 <= value <= highest:
                limits = f"from 0 to {highest:g}" if math.isfinite(highest) else "at least 0"
                raise ValueError(f"{key} is {value:g}, expected {limits}, as {self.metric} is")
        return self


class Guard(_Paired):
    """A metric that need not get better, and may get worse by so much at most."""

    max_regression: float = Field(
        0.0,
        ge=0,
        description="It may be worse by so much, in the metric's unit: than the incumbent, and than the best that "
        "production ever had on these data.",
    )
    certain: bool = Field(
        True,
        description="Whether it has to be shown, with `confidence`, that it is not worse by more (non-inferiority). "
        "`false`: the measured value alone decides, however few examples have it.",
    )
    confidence: float = Field(
        0.9, gt=0.5, lt=1, description="Of a guard that is `certain`: how sure the gate has to be."
    )
    if_missing: IfMissing = Field(
        "refuse", description="Where these data do not have the metric: `refuse` the candidate, or `skip` the guard."
    )

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        self._check_size("max_regression", self.max_regression)
        return self


class Significance(Section):
    """How sure the gate has to be that the improvement is none of chance."""

    alpha: float = Field(
        0.05, ge=1e-6, lt=0.5, description="The chance that a candidate which is no better passes, one-sided."
    )
    correction: Literal["alpha_spending", "none"] = Field(
        "alpha_spending",
        description="`alpha_spending`: `alpha` holds for all candidates together that are ever tried against one "
        "incumbent; each gets its share. `none`: it holds for each try by itself.",
    )
    min_pairs: int = Field(
        20,
        ge=2,
        description="Examples that both versions were judged on, at least, for the primary metric.",
    )
    min_groups: int = Field(
        6,
        ge=2,
        description="Files (or other groups that were held out whole) that those examples are from, at least. With "
        "fewer, no test can tell how much files differ.",
    )
    resamples: int = Field(10_000, ge=1000, le=1_000_000, description="Of the permutation test, at least.")
    seed: int = Field(0, ge=0, description="Of the permutation test: the same evidence gives the same decision.")


class Safety(Section):
    """What has to be in order with the version itself. None of it needs an incumbent but the signature."""

    signature: bool = Field(True, description="Inputs and outputs as the incumbent's, and every parameter it takes.")
    manifest: bool = Field(True, description="Every file has the sha256 of the manifest written at training.")
    no_pickle: bool = Field(True, description="No file holds pickled code.")
    base_model_revision: bool = Field(True, description="The exact base model is recorded: a commit or a digest.")
    validation: Literal["always", "production", "if_tried"] = Field(
        "production",
        description="Whether `promoter validate` has to have passed: `always`, on the way to `production`, or "
        "`if_tried`: it must not have failed.",
    )
    evidence: Literal["always", "production", "never"] = Field(
        "production",
        description="Whether the figures of both versions have to be vouched for, by `promoter validate`, which "
        "computes a sample of them again, or the incumbent's by the record of its promotion: `always`, on the way to "
        "`production`, or `never`.",
    )
    smoke_time_limit_s: float = Field(
        300.0, gt=0, description="`promoter validate`: seconds within which the model has to load and answer."
    )


class Policy(Section):
    """When a candidate is better enough than the incumbent."""

    primary: Primary
    floors: tuple[Floor, ...] = ()
    guards: tuple[Guard, ...] = ()
    significance: Significance = Significance()
    safety: Safety = Safety()
    approval: Literal["none", "manual"] = Field(
        "none", description="`manual`: a version that passes awaits `promoter approve`; `none`: it is promoted."
    )

    @property
    def metrics(self) -> tuple[str, ...]:
        """Every metric that it names, each once, the primary one first."""
        guards, floors = (item.metric for item in self.guards), (item.metric for item in self.floors)
        names = [self.primary.metric, *guards, *floors]
        return tuple(dict.fromkeys(names))


def load(name: str) -> Policy:
    """A policy from a YAML file, or by the name of one in promoter/policies. Raises InputError."""
    return read(name, Policy, POLICIES, "docs/promotion.md")


def read(name: str, form: type[P], shipped: Path, page: str) -> P:
    """A policy of a form from a YAML file, or by the name of one that is shipped. Raises InputError."""
    try:
        path = next((path for path in (Path(name), shipped / f"{name}.yaml") if path.is_file()), None)
    except (OSError, ValueError):  # no name that a file could have
        path = None
    if path is None:
        known = ", ".join(sorted(file.stem for file in shipped.glob("*.yaml")))
        raise InputError(f"No policy '{name[:200]}'. Expected a YAML file or one of: {known}.")
    return forms.read(path, form, "Policy", page)
