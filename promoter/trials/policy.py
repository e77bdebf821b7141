"""What a trial on live traffic has to show, in which steps, and what it may cost. YAML files; docs/trials.md.

The field descriptions are the reference in docs/trials.md (`make docs`).
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from contract.forms import Section
from contract.trials import LEAST_SHARE, Limits, Unit
from promoter import policy

POLICIES = Path(__file__).parent / "policies"
Decider = Literal["acceptance", "persistence"]


class Step(Section):
    """A share of the requests, and how long the challenger gets it."""

    share: float = Field(ge=LEAST_SHARE, le=0.5, description="The challenger's share of the requests.")
    requests: int = Field(200, ge=1, description="Requests of both arms together, at least.")
    hours: float = Field(0.0, ge=0, description="Hours, at least: a morning is not a day.")


class Shadow(Section):
    """Before all steps: the challenger gets copies of requests, and nobody sees what it answers."""

    share: float = Field(0.2, ge=LEAST_SHARE, lt=1, description="The share of the requests that are copied.")
    copies: int = Field(200, ge=1, description="Copies that it has answered, at least.")
    kept: int = Field(
        0, ge=0, description="Texts that users have kept and editors sent, at least, by whose likelihood it is judged."
    )
    margin: float = Field(
        0.02, ge=0, allow_inf_nan=False, description="By how much less likely it may hold them, in nats a character."
    )


class Margins(Section):
    """By how much each measure may get worse, as a share of the requests."""

    acceptance: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="Requests whose completion was accepted, of all. 0, where it decides: has to be better.",
    )
    persistence: float = Field(
        0.05, ge=0, lt=1, description="Characters that are left of what was accepted, as a share; 0 for what was not."
    )
    errors: float = Field(0.02, ge=0, lt=1, description="Requests that the arm did not answer.")
    empty: float = Field(0.05, ge=0, lt=1, description="Requests that were answered with nothing.")
    slow: float = Field(
        0.05, ge=0, lt=1, description="Requests that took longer than `slow_factor` times the incumbent's p95."
    )
    left: float = Field(0.05, ge=0, lt=1, description="Requests whose client went away before there was an answer.")


class Budget(Section):
    """What a trial may cost. Past either it ends inconclusive, and the incumbent stays."""

    requests: int = Field(20_000, ge=1, description="Requests of both arms together.")
    days: float = Field(14.0, gt=0, description="Days since it began.")


class TrialPolicy(Section):
    """A whole trial."""

    decides: Decider = Field("acceptance", description="The measure that decides; all others only have to hold.")
    shadow: Shadow | None = Field(None, description="First in the shadow, or not.")
    steps: tuple[Step, ...] = Field(
        (
            Step(share=0.05, requests=400, hours=1.0),
            Step(share=0.25, requests=400, hours=4.0),
            Step(share=0.5, requests=1000, hours=24.0),
        ),
        min_length=1,
        max_length=20,
        description="One after another; the share grows.",
    )
    margins: Margins = Margins()
    slow_factor: float = Field(1.2, ge=1, le=100, description="See `margins.slow`.")
    alpha: float = Field(
        0.05,
        gt=0,
        lt=0.5,
        description="How often a version that is too bad may be promoted, and a good one taken back.",
    )
    guards_alpha: float = Field(
        0.2, gt=0, lt=1, description="The share of alpha by which the other measures together may take one back."
    )
    budget: Budget = Budget()
    unit: Unit = Field(
        "request",
        description="What is given an arm: each `request`; a `session` (the header `X-Session-ID`), which counts once "
        "it has been silent for half an hour; or a `user` for a day, who counts once that day is over.",
    )
    settle_s: float = Field(
        120.0, ge=0, le=86_400, description="Seconds after which a completion that was not accepted counts as such."
    )
    persistence_after_s: Literal[30, 120, 600] = Field(
        120, description="Seconds after which it is looked at what is left of a completion."
    )
    limits: Limits = Field(Limits(), description="What takes all requests from a challenger at once.")
    lease_s: float = Field(
        300.0, ge=15, le=86_400, description="Seconds after which serving ends a trial whose promoter is gone."
    )
    look_s: float = Field(5.0, ge=0.5, le=3600, description="Seconds between two looks at the traffic.")

    @model_validator(mode="after")
    def _steps_grow(self) -> Self:
        shares = [step.share for step in self.steps]
        if shares != sorted(set(shares)):
            raise ValueError(f"steps have the shares {shares}. Expected each to be larger than the one before")
        requests, hours = sum(step.requests for step in self.steps), sum(step.hours for step in self.steps)
        if requests > self.budget.requests or hours > 24 * self.budget.days:
            raise ValueError(
                f"the steps take {requests} requests and {hours:g} hours. Expected no more than the budget: "
                f"{self.budget.requests} requests and {self.budget.days:g} days"
            )
        if self.lease_s < 3 * self.look_s:
            raise ValueError(f"lease_s is {self.lease_s:g}. Expected at least three times look_s ({self.look_s:g})")
        return self


def load(name: str) -> TrialPolicy:
    """A policy from a YAML file, or by the name of one in promoter/trials/policies. Raises InputError."""
    return policy.read(name, TrialPolicy, POLICIES, "docs/trials.md")
