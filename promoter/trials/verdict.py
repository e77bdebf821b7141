"""What a trial's requests say by now: go on, take the next step, promote, roll back, or end without a result."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from promoter.trials.policy import TrialPolicy
from promoter.trials.sequential import SPREAD, Path, effect, split_evidence
from promoter.trials.traffic import Copy, Observations, Row, observe

MEASURES = ("acceptance", "persistence", "errors", "empty", "slow", "left")
EXPECTED = {"acceptance": 0.3, "persistence": 0.2}  # means of the measures, before any is known
SPREADS = {"errors": 0.02, "empty": 0.05, "slow": 0.05, "left": 0.1}  # variances; else sequential.SPREAD
MOST_OF_IT = 0.5  # of what the incumbent has may be lost at the deciding measure, whatever the policy allows
SPLIT_ALPHA = 0.001  # of the test that the arms are split as was asked for
Action = Literal["go on", "step", "promote", "roll back", "inconclusive"]


@dataclass(frozen=True)
class Measured:
    """One measure of both arms. Larger is better: what is bad counts negative."""

    name: str
    decides: bool
    margin: float
    alpha: float
    challenger: float  # means
    incumbent: float
    requests: int  # of which it is known
    of_smaller_arm: int
    path: Path = field(repr=False)

    @property
    def estimate(self) -> float:
        return float(self.path.estimate[-1]) + 0.0 if self.requests else 0.0  # and never -0.0

    @property
    def low(self) -> float:
        return float(self.path.low[-1]) if self.requests else -math.inf

    @property
    def high(self) -> float:
        return float(self.path.high[-1]) if self.requests else math.inf

    @property
    def holds(self) -> bool:
        """It is shown that it is not worse by more than is allowed."""
        return self.low > -self.margin and self.is_enough

    @property
    def is_enough(self) -> bool:
        """What is as rare as is allowed would have been seen by now, in the smaller arm."""
        return self.margin == 0 or self.of_smaller_arm >= math.log(1 / self.alpha) / self.margin

    @property
    def is_worse(self) -> bool:
        """It is shown to be worse: the one that decides at all, the others by more than is allowed."""
        return self.high < (0.0 if self.decides else -self.margin) and not self.holds

    @property
    def text(self) -> str:
        points = f"{100 * self.estimate:+.1f} points"
        if not math.isfinite(self.low):
            return f"{self.name} {points} (too few requests yet)"
        return f"{self.name} {points} (between {100 * self.low:+.1f} and {100 * self.high:+.1f})"


@dataclass(frozen=True)
class Verdict:
    """What is to be done, and why."""

    action: Action
    why: str
    measures: Sequence[Measured]
    requests: tuple[int, int]  # of the incumbent, of the challenger
    split: float  # the logarithm of the evidence that the arms are not split as was asked for


def judge_shadow(copies: Sequence[Copy], policy: TrialPolicy, began: float, now: float) -> Verdict:
    """By all copies so far: both versions were asked the same, so there is nothing to estimate, and no bound."""
    assert policy.shadow is not None
    wanted, gains = policy.shadow, [copy.gain for copy in copies if copy.gain is not None]

    def verdict(action: Action, why: str) -> Verdict:
        return Verdict(action, why, (), (len(copies), len(copies)), 0.0)

    count = max(len(copies), 1)
    failed = sum(copy.failed for copy in copies) / count
    emptier = sum(copy.empty - copy.live_empty for copy in copies if not copy.failed) / count
    gain = float(np.mean(gains)) if gains else 0.0
    found = f"{failed:.1%} of {len(copies)} copies failed, {100 * emptier:+.1f} points are empty"
    if gains:
        found += f"; what {len(gains)} users kept is {gain:+.3f} nats a character likelier"
    if len(copies) >= wanted.copies and len(gains) >= wanted.kept:
        if failed > policy.margins.errors or emptier > policy.margins.empty or (gains and gain < -wanted.margin):
            return verdict("roll back", f"it is worse in the shadow: {found}")
        return verdict("step", found)
    if now - began >= 86_400 * policy.budget.days:
        return verdict("inconclusive", f"the budget is spent in the shadow: {found}")
    return verdict("go on", f"in the shadow: {found}")


def judge(rows: Sequence[Row], policy: TrialPolicy, step: int, step_began: float, began: float, now: float) -> Verdict:
    """By all requests so far. `step`: which, from 0; times in seconds since 1970."""
    measures = [_measure(rows, policy, name, now) for name in MEASURES]
    theirs = sum(row.challenger for row in rows)
    counts = (len(rows) - theirs, theirs)
    split = _split(rows, policy)

    def verdict(action: Action, why: str) -> Verdict:
        return Verdict(action, why, measures, counts, split)

    if split > -math.log(SPLIT_ALPHA):
        share = f"{theirs} of {len(rows)} requests were the challenger's"
        return verdict("inconclusive", f"the arms are not split as was asked for: {share}. The figures say nothing")
    if bad := [one for one in measures if one.is_worse]:
        return verdict("roll back", "it is worse: " + ", ".join(one.text for one in bad))
    decider = next(one for one in measures if one.decides)
    of_step = sum(row.at >= step_began for row in rows)
    now_at = policy.steps[step]
    full = of_step >= now_at.requests and now - step_began >= 3600 * now_at.hours
    last = step == len(policy.steps) - 1
    open_ones = [one for one in measures if not one.holds]
    if full and last and not open_ones:
        found = f"not worse by more than {100 * decider.margin:.3g} points" if decider.margin else "better"
        return verdict("promote", f"it is {found}: {decider.text}")
    if len(rows) >= policy.budget.requests or now - began >= 86_400 * policy.budget.days:
        spent = f"{len(rows)} requests in {(now - began) / 86_400:.1f} days"
        return verdict(
            "inconclusive",
            f"the budget is spent ({spent}) without a result; open: "
            + (", ".join(one.text for one in open_ones) or f"step {step + 1} of {len(policy.steps)}"),
        )
    if full and not last:
        return verdict("step", f"{of_step} requests at {now_at.share:.0%}, and nothing is worse: {decider.text}")
    return verdict("go on", decider.text)


def _measure(rows: Sequence[Row], policy: TrialPolicy, name: str, now: float) -> Measured:
    decides = name == policy.decides
    guards = len(MEASURES) - 1
    alpha = policy.alpha * (1 - policy.guards_alpha if decides else policy.guards_alpha / guards)
    seen = observe(rows, policy, name, now)
    margin, incumbent = float(getattr(policy.margins, name)), _mean(seen, False)
    if decides:  # of 3 accepted in 100, five points would be everything; without events nothing can be shown
        margin = min(margin, MOST_OF_IT * max(incumbent, 0.0))
    given = (EXPECTED.get(name, 0.0), SPREADS.get(name, SPREAD))
    return Measured(
        name=name,
        decides=decides,
        margin=margin,
        alpha=alpha,
        challenger=_mean(seen, True),
        incumbent=incumbent,
        requests=len(seen.values),
        of_smaller_arm=int(min(seen.challenger.sum(), (~seen.challenger).sum())),
        path=effect(seen.values, seen.challenger, seen.shares, seen.users, alpha, *given),
    )


def _mean(seen: Observations, challenger: bool) -> float:
    of_arm = seen.values[seen.challenger == challenger]
    return float(of_arm.mean()) if len(of_arm) else 0.0


def _split(rows: Sequence[Row], policy: TrialPolicy) -> float:
    """Of whole units: what was drawn once for several requests counts once."""
    if policy.unit != "request":
        seen: dict[str, Row] = {}
        for row in rows:
            seen.setdefault(row.unit, row)
        rows = list(seen.values())
    if not rows:
        return 0.0
    challenger, shares = (np.array([getattr(row, name) for row in rows]) for name in ("challenger", "share"))
    return float(split_evidence(challenger.astype(bool), shares.astype(float)).max())
