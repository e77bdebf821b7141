"""A trial on live traffic: what the promoter writes on the challenger's version, and what serving makes of it.

The alias `challenger` names the version, its tag `trial_share` the share of requests that it gets, and its tag `trial`
the rest. Serving never asks the promoter: once the lease in that tag has run out, the challenger gets nothing.
"""

import hashlib
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

INCUMBENT, CHALLENGER = "incumbent", "challenger"  # the arms
# What became of a request of a trial, by its trace's tag: answered, by its arm; failed, which its arm did and the other
# arm may have answered; or left by its client before there was an answer.
ANSWERED, FAILED, LEFT = "answered", "failed", "left"
# Tags of the trace of a request of a trial: the trial, the arm that it was given, the challenger's share then, what
# became of it, and (hashed) what was given the arm.
TRIAL_TAG, ARM_TAG, CHANCE_TAG = "trial", "arm", "trial_share"
OUTCOME_TAG, UNIT_TAG = "trial_outcome", "trial_unit"
# In the shadow a trace has this as its arm, and these assessments: how the challenger's copy went, and by how much more
# likely it holds what the user has kept than the live version does, in nats a character.
SHADOW = "shadow"
SHADOW_FAILED, SHADOW_EMPTY, SHADOW_SECONDS = "shadow_failed", "shadow_empty", "shadow_seconds"
GAIN = "shadow_gain"
LEAST_SHARE = 0.001  # of the requests, that an arm can have
Unit = Literal["request", "session", "user"]


class Limits(BaseModel):
    """What ends a challenger's traffic at once, by its last requests, without statistics."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    last: int = Field(
        default=10, ge=3, le=1000, description="By how many of its last requests, on each gateway worker."
    )
    errors: float = Field(default=0.5, gt=0, le=1, description="The share of them that fail.")
    empty: float = Field(default=0.9, gt=0, le=1, description="The share of them that are empty.")
    slow: float = Field(default=0.9, gt=0, le=1, description="The share of them that take longer than `slow_s`.")
    slow_s: float = Field(
        default=10.0, gt=0, le=600, description="Seconds. One that takes longer is answered by the incumbent."
    )


class Trial(BaseModel):
    """The tag `trial` of a challenger's version, as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str  # the run of the record by which it began
    unit: Unit = "request"  # what is given an arm
    shadow: bool = False  # it gets copies, and answers nobody
    until: float = Field(allow_inf_nan=False)  # seconds since 1970: the promoter's lease
    limits: Limits = Limits()


LEASE_RAN_OUT = "the promoter that runs the trial is gone: its lease has run out"  # why serving may stop one


def stopped(trial: str, why: str) -> str:
    """The tag `trial_stopped`: serving, or one replica of it, lets a challenger answer no more."""
    return f"{trial}: {why}"


def why_stopped(tag: str, trial: str) -> str:
    """What that tag says of a trial; empty if it is missing or about another one."""
    whose, _, why = tag.partition(":")
    return why.strip() or "serving has stopped it" if whose == trial else ""


def is_challengers(trial: str, unit: str, share: float) -> bool:
    """Whether a unit (a request's id, a session, a user) is the challenger's: on every replica alike.

    A unit that is the challenger's stays so where the share grows.
    """
    drawn = int.from_bytes(hashlib.sha256(f"{trial}\0{unit}".encode()).digest()[:8])
    return drawn < share * 2**64
