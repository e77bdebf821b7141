"""The gate: a pure function from a policy and the evidence on two versions to a decision with every reason.

    decide(policy, candidate, incumbent, stage, alpha) -> Decision

It reads nothing and asks nobody: evidence.py fetches, records.py keeps. Same evidence, same decision.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

import numpy as np
import pandas as pd

from contract import metrics, names
from contract.metrics import Direction, Metric, NoValue
from promoter import safety, statistics
from promoter.decision import Comparison, Decision, Evidence, Reason, Stage
from promoter.policy import Floor, Guard, Policy, Primary

FEW = 20  # examples of a guard's metric: the report says so


def decide(
    policy: Policy,
    candidate: Evidence,
    incumbent: Evidence | None,
    stage: Stage,
    alpha: float | None = None,
    best: Mapping[str, tuple[float, str]] = MappingProxyType({}),
) -> Decision:
    """Whether the candidate may replace the incumbent (None: nothing is there yet).

    alpha: of this try; the policy's, where it is the only one (statistics.spend). best: what production had at best of
    a guard's metric on these data, and in which version.
    """
    alpha = policy.significance.alpha if alpha is None else alpha
    limits: list[Guard | Floor] = [*policy.guards, *policy.floors]
    skipped = [item for item in limits if _left_out(item, candidate, incumbent)]
    reasons = [_without(item) for item in skipped]
    guards = [item for item in policy.guards if item not in skipped]
    floors = [item for item in policy.floors if item not in skipped]
    compared: list[Primary | Guard] = [policy.primary, *guards]
    named = dict.fromkeys(item.metric for item in (*compared, *floors))
    reasons += [_measured(name, "candidate", candidate) for name in named]
    reasons += safety.bound("candidate", candidate)
    reasons.append(safety.apart(candidate))
    comparisons: list[Comparison] = []
    if incumbent is None:
        reasons += [_table(_paired(policy.primary.metric), "candidate", candidate)]
        reasons.append(_no_incumbent(candidate))
    else:
        reasons += [_measured(item.metric, "incumbent", incumbent) for item in compared]
        reasons += safety.bound("incumbent", incumbent)
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
                    reasons += [_guard(item, found), *_never_slips(item, found, best)]
    reasons += [_floor(item, candidate) for item in floors]
    reasons += safety.safety(policy, candidate, incumbent, stage)
    unique = tuple(dict.fromkeys(reasons))  # a metric may be named twice
    return Decision(policy, stage, alpha, candidate, incumbent, unique, tuple(comparisons))


def with_files(decision: Decision, candidate: Evidence) -> Decision:
    """The same decision after a look at the candidate's files. Nothing is compared once more."""
    apart = [reason for reason in decision.reasons if reason.group != "safety"]
    reasons = safety.safety(decision.policy, candidate, decision.incumbent, decision.stage)
    return replace(decision, candidate=candidate, reasons=tuple(dict.fromkeys([*apart, *reasons])))


def _no_incumbent(candidate: Evidence) -> Reason:
    if candidate.role != names.CANDIDATE:
        return Reason("improvement", "incumbent", True, "there is no incumbent to beat")
    detail = (
        f"version {candidate.version} was tuned from {candidate.base_model or 'a base that it does not name'}: there "
        "is no version of that to compare it with (`trainer train` registers one)"
    )
    return Reason("improvement", "incumbent", False, detail)


def best_of(decision: Decision, before: Mapping[str, tuple[float, str]]) -> dict[str, tuple[float, str]]:
    """The best of each guard's metric, by (value, version), once the candidate is in production too."""
    found = dict(before)
    for guard in decision.policy.guards:
        for evidence in (decision.incumbent, decision.candidate):
            value = _value(guard.metric, evidence) if evidence is not None else None
            if evidence is None or value is None or evidence.dataset_digest != decision.candidate.dataset_digest:
                continue
            if guard.metric not in found or _sign(guard.definition.direction) * (value - found[guard.metric][0]) > 0:
                found[guard.metric] = (value, evidence.version)
    return found


def differences(metric: str, candidate: Evidence, incumbent: Evidence) -> pd.DataFrame:
    """By example_id: `candidate` and `incumbent` (value / weight), `improvement` (of the value), `weight`, and `group`
    and `repository` that the example is from.

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
    sign = _sign(parsed.definition.direction)
    found = pd.DataFrame(
        {
            "candidate": ours["value"] / ours["weight"],
            "incumbent": theirs["value"] / theirs["weight"],
            "improvement": sign * (ours["value"] - theirs["value"]),
            "weight": ours["weight"],
        }
    )
    return found.join(_groups(parsed, candidate, incumbent).loc[found.index])


def _groups(metric: Metric, candidate: Evidence, incumbent: Evidence) -> pd.DataFrame:
    """Columns `group` and `repository` by example_id. Raises NoValue if a table does not say, or they disagree."""
    columns = [names.GROUP, names.REPOSITORY]
    said = []
    for evidence in (candidate, incumbent):
        table = evidence.tables[metric.table]
        if names.GROUP not in table:
            raise NoValue(
                f"{metric.table} of version {evidence.version} has no column '{names.GROUP}': an earlier release has "
                f"judged. `trainer evaluate --model-uri models:/{evidence.model}/{evidence.version} --data "
                f"runs:/{evidence.run_id} --again` judges it anew"
            )
        of = table.reindex(columns=["example_id", *columns]).astype(object).fillna("").astype(str)
        said.append(of.set_index("example_id").sort_index())
    if not said[0][names.GROUP].equals(said[1][names.GROUP]):
        raise NoValue(f"{metric.table}: the versions' tables say of the same examples that they are from other files")
    return said[0]


def _sign(direction: Direction) -> float:
    return -1.0 if direction == "lower_is_better" else 1.0


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
    name, asked, primary = item.metric, policy.significance, isinstance(item, Primary)
    for who, evidence in (("candidate", candidate), ("incumbent", incumbent)):
        if not (reason := _table(_paired(name), who, evidence)).passed:
            return reason
    try:
        pairs = differences(name, candidate, incumbent)
    except NoValue as error:
        return Reason("evidence", f"pairs for {name}", False, str(error))
    if primary and len(pairs) < asked.min_pairs:
        detail = (
            f"{len(pairs)} examples have {name}, {asked.min_pairs} wanted: judge on more "
            "(data.max_eval_examples, data.eval_fraction), or lower significance.min_pairs"
        )
        return Reason("evidence", f"pairs for {name}", False, detail)
    groups = pd.factorize(pairs[names.REPOSITORY].str.cat(pairs[names.GROUP], sep="\0"))[0]
    number = int(groups.max()) + 1
    if primary and number < asked.min_groups:
        detail = (
            f"the examples with {name} are from {number} files, {asked.min_groups} wanted: examples of one file are "
            "alike, and say little about the next file. Hold out more files (data.min_eval_files, data.eval_fraction, "
            "data.eval_source)"
        )
        return Reason("evidence", f"files for {name}", False, detail)
    own_alpha, margin = (alpha, 0.0) if isinstance(item, Primary) else (1 - item.confidence, item.max_regression)
    improvement, weight = pairs["improvement"].to_numpy(), pairs["weight"].to_numpy()
    theirs = float((pairs["incumbent"] * weight).sum() / weight.sum())
    found = statistics.compare(
        *(improvement, weight, groups, own_alpha, asked.resamples, asked.seed, margin),
        worst=theirs if math.isfinite(item.definition.highest) else math.inf,  # no more than the incumbent has
    )
    repositories = pairs.groupby(names.REPOSITORY, sort=True)[["improvement", "weight"]].sum()
    return Comparison(
        metric=name,
        role="primary" if primary else "guard",
        direction=item.definition.direction,
        candidate=float((pairs["candidate"] * weight).sum() / weight.sum()),
        incumbent=theirs,
        improvement=found.estimate,
        low=found.low,
        high=found.high,
        alpha=own_alpha,
        p_value=found.p_value,
        pairs=len(pairs),
        better=int((improvement > 0).sum()),
        worse=int((improvement < 0).sum()),
        groups=number,
        groups_better=found.better,
        groups_worse=found.worse,
        detectable=found.detectable,
        by_repository={str(name): float(row["improvement"] / row["weight"]) for name, row in repositories.iterrows()}
        if len(repositories) > 1
        else {},
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
    unit = "files" if found.groups < found.pairs else "examples"
    test = (
        f"{found.groups_better} of {found.groups} {unit} are better and {found.groups_worse} worse "
        f"({found.pairs} examples); between equal models the chance of that is {found.p_value:.2g}, at most "
        f"{found.alpha:.2g} wanted"
    )
    if found.groups < statistics.least_groups(found.alpha):
        least = statistics.least_groups(found.alpha)
        test += f"; {found.groups} {unit} cannot show as much after so many tries, {least} or more could"
    elif math.isfinite(found.detectable):
        test += f"; a gain of {found.detectable:.4f} would be found in 80 of 100 such samples"
    return [
        Reason("improvement", "improvement", enough, detail),
        Reason("improvement", "significance", found.p_value <= found.alpha, test),
    ]


def _at_least(value: float, wanted: float) -> bool:
    return value >= wanted or math.isclose(value, wanted, rel_tol=1e-9)


def _guard(guard: Guard, found: Comparison) -> Reason:
    change = f"{found.incumbent:.4f} → {found.candidate:.4f}"
    allowed = f"{guard.max_regression:g} worse allowed"
    worst = -found.improvement
    detail = f"{guard.metric} {change}: " + (f"{worst:.4f} worse" if worst > 0 else "no worse")
    detail += f" on the only {found.pairs} examples that have it" if found.pairs < FEW else ""
    unchanged = not (guard.max_regression or found.better or found.worse)  # where nothing may change, and nothing has
    if guard.certain and not unchanged:
        worst = -found.low
        detail += (
            f"; with {guard.confidence:.0%} confidence at most {max(worst, 0):.4f} worse"
            if math.isfinite(worst)
            else "; too few files to say how much worse it may be (eval.max_generated, or the guard's `certain: false`)"
        )
    return Reason("guard", f"guard {guard.metric}", _at_least(guard.max_regression, worst), f"{detail}, {allowed}")


def _never_slips(guard: Guard, found: Comparison, best: Mapping[str, tuple[float, str]]) -> list[Reason]:
    """Against the best that production had, so that small losses do not add up from promotion to promotion."""
    if guard.metric not in best:
        return []
    value, version = best[guard.metric]
    worse = _sign(found.direction) * (value - found.candidate)
    detail = (
        f"{guard.metric} was {value:.4f} in version {version}, the best that production had on these data: "
        + (f"{worse:.4f} worse" if worse > 0 else "no worse")
        + f" than that, {guard.max_regression:g} worse allowed"
    )
    passed = _at_least(guard.max_regression, worse)
    return [Reason("guard", f"guard {guard.metric} against the best", passed, detail)]


def _left_out(item: Guard | Floor, candidate: Evidence, incumbent: Evidence | None) -> bool:
    """Whether a guard or floor is skipped: the data do not have its metric, on either side, and the policy says so."""
    judged = (candidate, incumbent) if incumbent is not None and isinstance(item, Guard) else (candidate,)
    return item.if_missing == "skip" and all(_value(item.metric, evidence) is None for evidence in judged)


def _without(item: Guard | Floor) -> Reason:
    kind: Literal["guard", "floor"] = "guard" if isinstance(item, Guard) else "floor"
    detail = f"these data have no {item.metric}: left out, as the policy says (if_missing: skip)"
    return Reason(kind, f"{kind} {item.metric}", True, detail)


def _value(name: str, evidence: Evidence) -> float | None:
    """A metric's value by the table, where it says; else as the run has logged it."""
    if (metric := metrics.parse(name)) is not None and metric.table in evidence.tables:
        try:
            rows = metrics.per_example(metric, evidence.tables[metric.table])
        except NoValue:
            return None
        return float(rows["value"].sum() / rows["weight"].sum())
    prefix, _, last = name.rpartition("/")
    if last == "perplexity" and (nll := _value(f"{prefix}/nll_per_token", evidence)) is not None:
        return math.exp(min(nll, 700.0))
    return evidence.metrics.get(name)


def _floor(floor: Floor, candidate: Evidence) -> Reason:
    found = _value(floor.metric, candidate)
    value = math.nan if found is None else found
    passed = (floor.min is None or value >= floor.min) and (floor.max is None or value <= floor.max)
    named = (("at least", floor.min), ("at most", floor.max))
    limits = [f"{words} {limit:g}" for words, limit in named if limit is not None]
    shown = "not known" if math.isnan(value) else f"{value:.4f}"
    detail = f"{floor.metric} is {shown}, {' and '.join(limits)} wanted"
    return Reason("floor", f"floor {floor.metric}", passed and math.isfinite(value), detail)
