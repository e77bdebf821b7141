"""Policies: what a candidate has to show before it may replace the incumbent. One YAML file each, in policies/.

The field descriptions are the reference in docs/promotion.md (`make docs`).
"""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from contract.errors import InputError
from contract.metrics import PER_EXAMPLE, Direction, parse

POLICIES = Path(__file__).parent / "policies"


def _per_example(name: str) -> str:
    if parse(name) is None:
        raise ValueError(f"expected a metric with a value for each example: PREFIX/NAME with NAME {PER_EXAMPLE}")
    return name


PairedMetric = Annotated[str, AfterValidator(_per_example)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Paired(_Section):
    """A metric that is compared example by example, in the direction that the registry knows."""

    @model_validator(mode="after")
    def _in_its_direction(self) -> "_Paired":
        metric, given = parse(getattr(self, "metric", "")), getattr(self, "direction", None)
        if metric is not None and given != metric.definition.direction:
            raise ValueError(f"direction is {given}, expected {metric.definition.direction} for {metric.name}")
        return self


class Primary(_Paired):
    """The metric by which the candidate has to be better."""

    metric: PairedMetric = Field(description="Which, e.g. `eval/nll_per_token`; it needs a value for each example.")
    direction: Direction = Field(description="Whether `lower_is_better` or `higher_is_better`.")
    min_relative_improvement: float = Field(
        0.0, ge=0, lt=1, description="At least so much better, as a share of the incumbent's value: 0.01 is 1%."
    )
    min_absolute_improvement: float = Field(0.0, ge=0, description="At least so much better, in the metric's unit.")


class Floor(_Section):
    """A limit that the candidate has to keep whatever the incumbent does; also for the first version ever."""

    metric: str = Field(min_length=1, description="Any metric that the evaluation's run has logged.")
    min: float | None = Field(None, description="The candidate's value has to be at least this.")
    max: float | None = Field(None, description="The candidate's value has to be at most this.")

    @model_validator(mode="after")
    def _has_a_limit(self) -> "Floor":
        if self.min is None and self.max is None:
            raise ValueError("expected min, max or both")
        return self


class Guard(_Paired):
    """A metric that need not get better, and may get worse by so much at most."""

    metric: PairedMetric = Field(description="Which; it needs a value for each example.")
    direction: Direction = Field(description="Whether `lower_is_better` or `higher_is_better`.")
    max_regression: float = Field(0.0, ge=0, description="It may be worse by so much, in the metric's unit.")
    certain: bool = Field(
        False,
        description="Whether the whole confidence interval has to stay within `max_regression` (non-inferiority), "
        "and not the measured value alone. Needs many examples.",
    )


class Significance(_Section):
    """How sure the gate has to be that the improvement is none of chance."""

    alpha: float = Field(
        0.05, gt=0, lt=0.5, description="The chance that a candidate which is no better passes, one-sided."
    )
    correction: Literal["alpha_spending", "none"] = Field(
        "alpha_spending",
        description="`alpha_spending`: `alpha` holds for all candidates together that are ever tried against one "
        "incumbent; the k-th gets alpha/(k(k+1)). `none`: it holds for each try by itself.",
    )
    min_pairs: int = Field(
        20,
        ge=2,
        description="Examples that both versions were judged on, at least: of the primary metric, and of each guard "
        "that is `certain`. Other guards look at what was measured, and say so where they saw fewer.",
    )
    resamples: int = Field(10_000, ge=1000, le=1_000_000, description="Of the bootstrap.")
    seed: int = Field(0, ge=0, description="Of the bootstrap: the same evidence gives the same decision.")


class Safety(_Section):
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
    smoke_time_limit_s: float = Field(
        300.0, gt=0, description="`promoter validate`: seconds within which the model has to load and answer."
    )


class Policy(_Section):
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
    path = next((path for path in (Path(name), POLICIES / f"{name}.yaml") if path.is_file()), None)
    if path is None:
        known = ", ".join(sorted(file.stem for file in POLICIES.glob("*.yaml")))
        raise InputError(f"No policy '{name}'. Expected a YAML file or one of: {known}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"Policy '{path}' is not YAML: {' '.join(str(error).split())}.") from error
    try:
        return Policy.model_validate(values)
    except ValidationError as error:
        raise InputError(f"Policy '{path}': {_in_words(error)}. See docs/promotion.md for all keys.") from error


def _in_words(error: ValidationError) -> str:
    words = []
    for item in error.errors(include_url=False, include_context=False):
        place = ".".join(str(part) for part in item["loc"]) or "the whole file"
        value = "" if item["type"] == "missing" else f" is {item['input']!r}"
        what = "no such key" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
        words.append(f"{place}{value}: {what}")
    return "; ".join(words)
