"""What the gate decides by, and what it says: evidence on two versions, reasons, comparisons, a decision."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import pandas as pd

from contract.metrics import Direction
from promoter.policy import Policy

Stage = Literal["Staging", "Production"]


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
    sha256: Mapping[str, str] = field(default_factory=dict)  # of the tables' files, by artifact path
    sealed: str | None = None  # sha256 of the evaluation table as the trainer has tagged it; None: an earlier release
    recorded: Mapping[str, str] = field(default_factory=dict)  # sha256 as in the record of its promotion on these data
    recomputed: bool = False  # `promoter validate` came to the same figures as this table
    manifest: str | None = None  # sha256 of the version's manifest
    finished: bool = True  # the run: nothing is added to it any more
    judged_manifest: str | None = None  # of the files that the run has judged
    train_digests: tuple[str, ...] = ()  # what it, and a base that was tuned here, was trained on
    role: str | None = None  # base or candidate
    base_model: str | None = None  # name@revision or sha256:digest
    validation: str | None = None  # passed, failed or never tried
    signature: Mapping[str, Any] | None = None  # inputs, outputs, params
    files: Mapping[str, Finding] | None = None  # manifest, no_pickle; None: nobody has looked at them yet

    def facts(self) -> dict[str, Any]:
        """All but the tables."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "tables"} | {
            "files": {name: asdict(finding) for name, finding in (self.files or {}).items()}
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
    """One metric of both versions: differences by example, judged by the groups that the examples are from."""

    metric: str
    role: Literal["primary", "guard"]
    direction: Direction
    candidate: float
    incumbent: float
    improvement: float  # in the metric's unit; positive is better, whatever the direction
    low: float  # bounds of the improvement, each one-sided at alpha
    high: float
    alpha: float
    p_value: float  # one-sided: of no improvement, or of a guard's being worse by more than is allowed
    pairs: int
    better: int  # examples
    worse: int
    groups: int
    groups_better: int
    groups_worse: int
    detectable: float  # the smallest improvement that such data show with a power of 80%
    by_repository: Mapping[str, float]  # the improvement in each, where there are several

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
