"""The gate: a pure function from a policy and the evidence on two versions to a decision with its reasons."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from promoter.errors import InputError

POLICIES = Path(__file__).parent / "policies"
DIRECTIONS = ("lower_is_better", "higher_is_better")


@dataclass(frozen=True)
class Policy:
    """When a candidate is better enough than the incumbent."""

    metric: str
    direction: Literal["lower_is_better", "higher_is_better"]
    min_relative_improvement: float  # share of the incumbent's value: 0.01 is 1%

    def improvement(self, candidate: float, incumbent: float) -> float:
        """Improvement of candidate over incumbent as a share of the incumbent's value; negative if worse."""
        difference = incumbent - candidate if self.direction == "lower_is_better" else candidate - incumbent
        if incumbent == 0:
            return math.copysign(math.inf, difference) if difference else 0.0
        return difference / abs(incumbent)


@dataclass(frozen=True)
class Evidence:
    """What is known of one version: where it was evaluated, how, and with what result."""

    version: str
    run_id: str
    dataset_digest: str | None
    eval_settings: str | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    validation: str | None = None  # passed, failed or never tried


@dataclass(frozen=True)
class Reason:
    """One check of the gate, whether it passed, and the figures."""

    check: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Decision:
    """The gate's verdict on a candidate, with every reason."""

    policy: Policy
    candidate: Evidence
    incumbent: Evidence | None
    reasons: tuple[Reason, ...]

    @property
    def passed(self) -> bool:
        return all(reason.passed for reason in self.reasons)

    @property
    def why(self) -> str:
        """The reasons that decided: those that failed, or else the last and hardest one."""
        deciding = [reason for reason in self.reasons if not reason.passed] or self.reasons[-1:]
        return "; ".join(reason.detail for reason in deciding)

    def to_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, "why": self.why, **asdict(self)}


def decide(policy: Policy, candidate: Evidence, incumbent: Evidence | None) -> Decision:
    """Whether the candidate may replace the incumbent (None: nothing is there yet)."""
    reasons = [_has_metric("candidate", policy, candidate), _is_valid(candidate)]
    if incumbent is None:
        reasons.append(Reason("incumbent", True, "there is no incumbent to beat"))
    else:
        reasons += [
            _has_metric("incumbent", policy, incumbent),
            _same("dataset_digest", "held-out data", candidate, incumbent),
            _same("eval_settings", "evaluation settings", candidate, incumbent),
        ]
        if all(reason.passed for reason in reasons):
            reasons.append(_is_better(policy, candidate, incumbent))
    return Decision(policy, candidate, incumbent, tuple(reasons))


def load_policy(name: str) -> Policy:
    """A policy from a YAML file, or by the name of one in promoter/policies. Raises InputError."""
    path = next((path for path in (Path(name), POLICIES / f"{name}.yaml") if path.is_file()), None)
    if path is None:
        known = ", ".join(sorted(file.stem for file in POLICIES.glob("*.yaml")))
        raise InputError(f"No policy '{name}'. Expected a YAML file or one of: {known}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"Policy '{path}' is not YAML: {' '.join(str(error).split())}.") from error
    names = [item.name for item in fields(Policy)]
    if not isinstance(values, dict) or set(values) != set(names):
        found = sorted(map(str, values)) if isinstance(values, dict) else values
        raise InputError(f"Policy '{path}' has the keys {found}. Expected {names}, each once.")
    improvement = values["min_relative_improvement"]
    if not isinstance(values["metric"], str):
        raise InputError(f"Policy '{path}': metric is {values['metric']!r}. Expected a name, e.g. eval/nll_per_token.")
    if values["direction"] not in DIRECTIONS:
        raise InputError(f"Policy '{path}': direction is {values['direction']!r}. Expected {' or '.join(DIRECTIONS)}.")
    if isinstance(improvement, bool) or not isinstance(improvement, (int, float)) or not 0 <= improvement < 1:
        raise InputError(
            f"Policy '{path}': min_relative_improvement is {improvement!r}. Expected a share of at least 0, below 1."
        )
    return Policy(values["metric"], values["direction"], float(improvement))


def _has_metric(who: str, policy: Policy, evidence: Evidence) -> Reason:
    value = evidence.metrics.get(policy.metric)
    if value is None:
        detail = f"{who} version {evidence.version} has no metric {policy.metric}"
    else:
        detail = f"{who} version {evidence.version} has {policy.metric} {value:.4f}"
    return Reason(f"{who} has the metric", value is not None and math.isfinite(value), detail)


def _is_valid(candidate: Evidence) -> Reason:
    detail = f"{candidate.validation or 'not tried yet'} (version {candidate.version})"
    return Reason("has not failed validation", candidate.validation != "failed", detail)


def _same(name: str, what: str, candidate: Evidence, incumbent: Evidence) -> Reason:
    ours, theirs = getattr(candidate, name), getattr(incumbent, name)
    same = ours is not None and ours == theirs
    detail = str(ours)
    if not same:
        detail = (
            f"not comparable: version {candidate.version} was evaluated with {what} {ours or 'unknown'}, "
            f"version {incumbent.version} with {theirs or 'unknown'}; `trainer evaluate --model-uri models:/… --data "
            f"runs:/{candidate.run_id}` evaluates the incumbent on the candidate's data"
        )
    return Reason(f"same {what}", same, detail)


def _is_better(policy: Policy, candidate: Evidence, incumbent: Evidence) -> Reason:
    ours, theirs = candidate.metrics[policy.metric], incumbent.metrics[policy.metric]
    improvement = policy.improvement(ours, theirs)
    detail = (
        f"{policy.metric} {theirs:.4f} (version {incumbent.version}) → {ours:.4f} (version {candidate.version}): "
        f"{abs(improvement):.1%} {'worse' if improvement < 0 else 'better'}, "
        f"{policy.min_relative_improvement:.1%} better wanted"
    )
    better = improvement >= policy.min_relative_improvement and improvement > 0
    return Reason("improvement", better, detail)
