"""The gate: a pure function from a policy and the evidence on two versions to a decision with every reason.

    decide(policy, candidate, incumbent, stage, alpha) -> Decision

It reads nothing and asks nobody: evidence.py fetches, records.py keeps. Same evidence, same decision.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np
import pandas as pd

from contract import metrics
from contract.metrics import Direction, Metric, NoValue
from promoter import statistics
from promoter.policy import Guard, Policy, Primary

Stage = Literal["Staging", "Production"]
LOOK_RESAMPLES = 1000  # of an interval that is shown, and decides nothing
BEYOND = 10  # resamples that shall lie beyond a bound that decides
MOST_RESAMPLES = 1_000_000


@dataclass(frozen=True)
class Finding:
    """What somebody who looked at a version's files has found."""

    passed: bool
    detail: str


@dataclass(frozen=True)
class Evidence:
    """What is known of one version: where it was evaluated, how, with what result, and what it consists of."""

    model: str
    version: str
    run_id: str
    dataset_digest: str | None = None
    prompt_template: str | None = None
    eval_settings: str | None = None  # decoding and all else that decides on the figures
    metrics: Mapping[str, float] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)  # by artifact path
    unreadable: Mapping[str, str] = field(default_factory=dict)  # tables that are there and broken: how
    base_model: str | None = None  # name@revision or sha256:digest
    validation: str | None = None  # passed, failed or never tried
    signature: Mapping[str, Any] | None = None  # inputs, outputs, params
    files: Mapping[str, Finding] = field(default_factory=dict)  # manifest, no_pickle

    def facts(self) -> dict[str, Any]:
        """All but the tables."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "tables"} | {
            "files": {name: asdict(finding) for name, finding in self.files.items()}
        }


@dataclass(frozen=True)
class Reason:
    """One check of the gate, whether it passed, and the figures."""

    group: Literal["evidence", "improvement", "guard", "floor", "safety"]
    check: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Comparison:
    """One metric of both versions, example by example."""

    metric: str
    role: Literal["primary", "guard"]
    direction: Direction
    candidate: float
    incumbent: float
    improvement: float  # in the metric's unit; positive is better, whatever the direction
    low: float  # bounds of the improvement, each one-sided at alpha
    high: float
    alpha: float
    pairs: int
    better: int  # examples
    worse: int
    p_value: float | None  # McNemar's, of a metric that is pass or fail

    @property
    def relative(self) -> float:
        """The improvement as a share of the incumbent's value."""
        if self.incumbent == 0:
            return math.copysign(math.inf, self.improvement) if self.improvement else 0.0
        return self.improvement / abs(self.incumbent)


@dataclass(frozen=True)
class Decision:
    """The gate's verdict on a candidate, with every reason."""

    policy: Policy
    stage: Stage
    alpha: float
    candidate: Evidence
    incumbent: Evidence | None
    reasons: tuple[Reason, ...]
    comparisons: tuple[Comparison, ...] = ()

    @property
    def passed(self) -> bool:
        return all(reason.passed for reason in self.reasons)

    @property
    def why(self) -> str:
        """The reasons that decided: those that failed, or else those that a candidate has to earn."""
        failed = [reason for reason in self.reasons if not reason.passed]
        return "; ".join(r.detail for r in failed or [r for r in self.reasons if r.group == "improvement"])

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tables, as JSON knows it."""
        return {
            "passed": self.passed,
            "why": self.why,
            "stage": self.stage,
            "alpha": self.alpha,
            "policy": self.policy.model_dump(mode="json"),
            "candidate": self.candidate.facts(),
            "incumbent": self.incumbent.facts() if self.incumbent else None,
            "reasons": [asdict(reason) for reason in self.reasons],
            "comparisons": [asdict(item) for item in self.comparisons],
        }


def decide(
    policy: Policy, candidate: Evidence, incumbent: Evidence | None, stage: Stage, alpha: float | None = None
) -> Decision:
    """Whether the candidate may replace the incumbent (None: nothing is there yet).

    alpha: of this try; the policy's, where it is the only one (statistics.spend).
    """
    alpha = policy.significance.alpha if alpha is None else alpha
    reasons = [_measured(name, "candidate", candidate) for name in policy.metrics]
    comparisons: list[Comparison] = []
    if incumbent is None:
        reasons += [_table(_paired(policy.primary.metric), "candidate", candidate)]
        reasons.append(Reason("improvement", "incumbent", True, "there is no incumbent to beat"))
    else:
        compared: list[Primary | Guard] = [policy.primary, *policy.guards]
        reasons += [_measured(item.metric, "incumbent", incumbent) for item in compared]
        reasons += [
            _same("dataset_digest", "held-out data", candidate, incumbent),
            _same("prompt_template", "prompt template", candidate, incumbent),
            _same("eval_settings", "decoding and evaluation settings", candidate, incumbent),
        ]
        if all(reason.passed for reason in reasons):
            for item in compared:
                found = _compare(policy, item, candidate, incumbent, alpha)
                if isinstance(found, Reason):
                    reasons.append(found)
                    continue
                comparisons.append(found)
                if isinstance(item, Primary):
                    reasons += _improvement(item, found, candidate, incumbent)
                else:
                    reasons.append(_guard(item, found, policy.significance.min_pairs))
    reasons += [_floor(item.metric, item.min, item.max, candidate) for item in policy.floors]
    reasons += _safety(policy, candidate, incumbent, stage)
    unique = tuple(dict.fromkeys(reasons))  # a metric may be named twice
    return Decision(policy, stage, alpha, candidate, incumbent, unique, tuple(comparisons))


def differences(metric: str, direction: Direction, candidate: Evidence, incumbent: Evidence) -> pd.DataFrame:
    """By example_id: `candidate` and `incumbent` (value / weight), `improvement` (of the value) and `weight`.

    Raises NoValue where the tables do not pair.
    """
    parsed = _paired(metric)
    both = []
    for evidence in (candidate, incumbent):
        table = evidence.tables.get(parsed.table)
        if table is None:
            raise NoValue(f"version {evidence.version} has no table {parsed.table} in run {evidence.run_id or '?'}")
        try:
            both.append(metrics.per_example(parsed, table))
        except NoValue as error:
            raise NoValue(f"version {evidence.version}: {error}") from error
    ours, theirs = both
    ours, theirs = ours.sort_index(), theirs.sort_index()  # so that the order of rows decides nothing
    if not ours.index.equals(theirs.index):
        alone = len(ours.index.symmetric_difference(theirs.index))
        raise NoValue(f"{parsed.table}: {alone} examples with {metric} are in one version's table only")
    if not np.array_equal(ours["weight"].to_numpy(), theirs["weight"].to_numpy()):
        raise NoValue(f"{parsed.table}: the versions' examples differ in length, so {metric} is not comparable")
    sign = -1.0 if direction == "lower_is_better" else 1.0
    return pd.DataFrame(
        {
            "candidate": ours["value"] / ours["weight"],
            "incumbent": theirs["value"] / theirs["weight"],
            "improvement": sign * (ours["value"] - theirs["value"]),
            "weight": ours["weight"],
        }
    )


def _paired(name: str) -> Metric:
    metric = metrics.parse(name)
    assert metric is not None  # the policy has seen to it
    return metric


def _measured(name: str, who: str, evidence: Evidence) -> Reason:
    value = evidence.metrics.get(name)
    check = f"{who} has {name}"
    if value is None:
        hint = "judge it on data that have it, or take it out of the policy"
        return Reason("evidence", check, False, f"{who} version {evidence.version} has no metric {name}: {hint}")
    detail = f"{who} version {evidence.version} has {name} {value:.4f}"
    return Reason("evidence", check, math.isfinite(value), detail)


def _table(metric: Metric, who: str, evidence: Evidence) -> Reason:
    """Whether the table is there and gives what the run has logged."""
    check = f"{who} has the table"
    table = evidence.tables.get(metric.table)
    if broken := evidence.unreadable.get(metric.table):
        return Reason("evidence", check, False, f"{who} version {evidence.version}: {metric.table} is broken: {broken}")
    if table is None:
        run = evidence.run_id or "?"
        return Reason("evidence", check, False, f"{who} version {evidence.version} has no {metric.table} in run {run}")
    try:
        rows = metrics.per_example(metric, table)
    except NoValue as error:
        return Reason("evidence", check, False, f"{who} version {evidence.version}: {error}")
    value = float(rows["value"].sum() / rows["weight"].sum())
    logged = evidence.metrics.get(metric.name, math.nan)
    if not math.isclose(value, logged, rel_tol=1e-6, abs_tol=1e-9):
        detail = f"version {evidence.version} has logged {metric.name} {logged:.6f}, and its table says {value:.6f}"
        return Reason("evidence", check, False, detail)
    return Reason("evidence", check, True, f"{len(rows)} examples, whose {metric.name} is the one logged")


def _same(name: str, what: str, candidate: Evidence, incumbent: Evidence) -> Reason:
    ours, theirs = getattr(candidate, name), getattr(incumbent, name)
    same = ours is not None and ours == theirs
    detail = str(ours)
    if not same:
        detail = (
            f"not comparable: version {candidate.version} was evaluated with {what} {ours or 'unknown'}, "
            f"version {incumbent.version} with {theirs or 'unknown'}. `{_common_ground(candidate, incumbent)}` judges "
            "both on the same"
        )
    return Reason("evidence", f"same {what}", same, detail)


def _common_ground(candidate: Evidence, incumbent: Evidence) -> str:
    """The one command after which both have been judged on the same examples in the same way."""
    first, other = (candidate, incumbent) if candidate.dataset_digest else (incumbent, candidate)
    return f"trainer evaluate --model-uri models:/{other.model}/{other.version} --data runs:/{first.run_id}"


def _compare(
    policy: Policy, item: Primary | Guard, candidate: Evidence, incumbent: Evidence, alpha: float
) -> Comparison | Reason:
    """The comparison, or why there is none."""
    name, primary = item.metric, isinstance(item, Primary)
    metric = _paired(name)
    for who, evidence in (("candidate", candidate), ("incumbent", incumbent)):
        if not (reason := _table(metric, who, evidence)).passed:
            return reason
    try:
        pairs = differences(name, item.direction, candidate, incumbent)
    except NoValue as error:
        return Reason("evidence", f"pairs for {name}", False, str(error))
    # A guard without `certain` is decided by the value that was measured, however few examples have it.
    by_statistics = isinstance(item, Primary) or item.certain
    if by_statistics and len(pairs) < policy.significance.min_pairs:
        detail = (
            f"{len(pairs)} examples have {name}, {policy.significance.min_pairs} wanted: judge on more "
            "(data.max_eval_examples, data.eval_fraction), or lower significance.min_pairs"
        )
        return Reason("evidence", f"pairs for {name}", False, detail)
    improvement, weight = pairs["improvement"].to_numpy(), pairs["weight"].to_numpy()
    decides = by_statistics and not (primary and metric.pass_or_fail)  # else McNemar's test does, or the value
    own_alpha = alpha if primary else policy.significance.alpha
    resamples = max(policy.significance.resamples, math.ceil(BEYOND / own_alpha)) if decides else LOOK_RESAMPLES
    if resamples > MOST_RESAMPLES:
        detail = (
            f"{name}: an alpha of {own_alpha:.1g} is too small to be told by {MOST_RESAMPLES:,} resamples. Either many "
            f"candidates were tried against version {incumbent.version}: wait for another incumbent, or set "
            "significance.correction; or the policy's own alpha is so small"
        )
        return Reason("improvement", "significance", False, detail)
    interval = statistics.bca_interval(improvement, weight, own_alpha, resamples, policy.significance.seed)
    better, worse = int((improvement > 0).sum()), int((improvement < 0).sum())
    return Comparison(
        metric=name,
        role="primary" if primary else "guard",
        direction=item.direction,
        candidate=float((pairs["candidate"] * weight).sum() / weight.sum()),
        incumbent=float((pairs["incumbent"] * weight).sum() / weight.sum()),
        improvement=float(improvement.sum() / weight.sum()),
        low=interval.low,
        high=interval.high,
        alpha=own_alpha,
        pairs=len(pairs),
        better=better,
        worse=worse,
        p_value=statistics.mcnemar(better, worse) if metric.pass_or_fail else None,
    )


def _improvement(primary: Primary, found: Comparison, candidate: Evidence, incumbent: Evidence) -> list[Reason]:
    wanted = []
    if primary.min_relative_improvement:
        wanted.append(f"{primary.min_relative_improvement:.1%}")
    if primary.min_absolute_improvement or not wanted:
        wanted.append(f"{primary.min_absolute_improvement:g}" if primary.min_absolute_improvement else "any")
    enough = (
        found.improvement > 0
        and _at_least(found.relative, primary.min_relative_improvement)
        and _at_least(found.improvement, primary.min_absolute_improvement)
    )
    detail = (
        f"{found.metric} {found.incumbent:.4f} (version {incumbent.version}) → {found.candidate:.4f} "
        f"(version {candidate.version}): {abs(found.relative):.1%} {'worse' if found.improvement < 0 else 'better'}, "
        f"{' and '.join(wanted)} better wanted"
    )
    level = f"{1 - found.alpha:.1%}"
    if found.p_value is not None:
        sure = found.p_value <= found.alpha
        test = (
            f"{found.better} examples won, {found.worse} lost: McNemar's p {found.p_value:.2g}, "
            f"at most {found.alpha:.2g} wanted"
        )
    else:
        sure = found.low > 0
        test = (
            f"the improvement's lower bound at {level} confidence is {found.low:.4f}, over {found.pairs} pairs; "
            "above 0 wanted"
        )
    return [
        Reason("improvement", "improvement", enough, detail),
        Reason("improvement", "significance", sure, test),
    ]


def _at_least(value: float, wanted: float) -> bool:
    return value >= wanted or math.isclose(value, wanted, rel_tol=1e-9)


def _guard(guard: Guard, found: Comparison, min_pairs: int) -> Reason:
    change = f"{found.incumbent:.4f} → {found.candidate:.4f}"
    allowed = f"{guard.max_regression:g} worse allowed"
    if guard.certain:
        worst = -found.low
        detail = f"{guard.metric} {change}: with {1 - found.alpha:.1%} confidence at most {max(worst, 0):.4f} worse"
    else:
        worst = -found.improvement
        detail = f"{guard.metric} {change}: " + (f"{worst:.4f} worse" if worst > 0 else "no worse")
        if found.pairs < min_pairs:
            detail += f" on the only {found.pairs} examples that have it" if found.pairs > 1 else " on one example"
    return Reason("guard", f"guard {guard.metric}", _at_least(guard.max_regression, worst), f"{detail}, {allowed}")


def _floor(name: str, least: float | None, most: float | None, candidate: Evidence) -> Reason:
    value = candidate.metrics.get(name, math.nan)
    passed = (least is None or value >= least) and (most is None or value <= most)
    named = (("at least", least), ("at most", most))
    limits = [f"{words} {limit:g}" for words, limit in named if limit is not None]
    return Reason("floor", f"floor {name}", passed, f"{name} is {value:.4f}, {' and '.join(limits)} wanted")


def _safety(policy: Policy, candidate: Evidence, incumbent: Evidence | None, stage: Stage) -> list[Reason]:
    safety, version = policy.safety, candidate.version
    checks: list[tuple[bool, str, Callable[[], Finding]]] = [
        (safety.signature, "signature", lambda: _signature(candidate, incumbent)),
        (safety.manifest, "files as at training", lambda: _looked_at("manifest", candidate)),
        (safety.no_pickle, "no pickled code", lambda: _looked_at("no_pickle", candidate)),
        (safety.base_model_revision, "base model recorded", lambda: _base_model(candidate)),
    ]
    reasons = [Reason("safety", name, *_as_pair(look())) for wanted, name, look in checks if wanted]
    needed = safety.validation == "always" or (safety.validation == "production" and stage == "Production")
    tried = candidate.validation or "not tried yet"
    detail = f"{tried} (version {version})"
    if needed and candidate.validation is None:
        detail = f"version {version} was not validated: `promoter validate --version {version}`, where torch is"
    passed = candidate.validation == "passed" if needed else candidate.validation != "failed"
    return [*reasons, Reason("safety", "validation", passed, detail)]


def _as_pair(finding: Finding) -> tuple[bool, str]:
    return finding.passed, finding.detail


def _looked_at(name: str, candidate: Evidence) -> Finding:
    return candidate.files.get(name) or Finding(False, f"version {candidate.version}: nobody has looked at its files")


def _base_model(candidate: Evidence) -> Finding:
    base = candidate.base_model or ""
    known = base.startswith("sha256:") or all(base.partition("@")[::2])
    hint = "expected the tag base_model with name@revision or sha256:digest, as the trainer sets it"
    return Finding(known, base if known else f"version {candidate.version} names no revision ('{base}'): {hint}")


def _signature(candidate: Evidence, incumbent: Evidence | None) -> Finding:
    ours, theirs = candidate.signature, incumbent.signature if incumbent is not None else None
    if ours is None:
        return Finding(False, f"version {candidate.version} has no signature: serving could not check its requests")
    if theirs is None or incumbent is None:
        return Finding(True, "there is one, and none to be compatible with")
    for part in ("inputs", "outputs"):
        if ours.get(part) != theirs.get(part):
            return Finding(
                False,
                f"{part} of version {candidate.version} are {ours.get(part)}, of version {incumbent.version} "
                f"{theirs.get(part)}: callers of the one would break",
            )
    taken = ours.get("params") or {}
    missing = [
        f"{name} ({kind})" for name, kind in sorted((theirs.get("params") or {}).items()) if taken.get(name) != kind
    ]
    if missing:
        return Finding(False, f"version {candidate.version} does not take {', '.join(missing)}, which callers may send")
    return Finding(True, f"inputs, outputs and parameters of version {incumbent.version}")
