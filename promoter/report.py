"""The report on a decision: JSON, Markdown, and HTML in one file with its plot and its examples (decision.html is the
template)."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd

from contract import metrics, names
from contract.files import REPORT_CSS
from contract.outcomes import NOT_PASSED, PASSED
from promoter import tables
from promoter.decision import Comparison, Decision, Reason
from promoter.gate import differences
from promoter.records import Entry
from promoter.statistics import Floats

# Templates of reports; they share one style sheet.
PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader([Path(__file__).parent, REPORT_CSS.parent]),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
EXAMPLES = 5  # shown that got better most, and as many that got worse
BARS = 400  # of the plot; with more files each stands for several
WIDTH, HEIGHT, MARGIN = 760, 220, 52  # of the plot, in its own units
GROUPS = {
    "improvement": "Is it better?",
    "guard": "Did nothing else get worse?",
    "floor": "Is it good enough by itself?",
    "safety": "Is the version in order?",
    "evidence": "Can the two be compared?",
}


@dataclass(frozen=True)
class Example:
    """One held-out example under both versions."""

    example_id: str
    change: float  # of the primary metric; positive is better
    prompt: str
    reference: str
    candidate: str
    incumbent: str


def files(entry: Entry, decision: Decision | None) -> dict[str, str]:
    """The report in all its forms: text by file name."""
    facts = asdict(entry) | (decision.to_dict() if decision else {"passed": True}) | {"why": entry.why}
    return {
        "decision.json": tables.to_json(facts),
        "decision.md": markdown(entry, decision),
        "decision.html": html(entry, decision),
    }


def escaped(cell: str) -> str:
    """A text as a cell of a Markdown table, or an item of a list."""
    return cell.replace("|", "\\|").replace("\n", " ")


def markdown(entry: Entry, decision: Decision | None) -> str:
    """The record as Markdown, for a colleague, a pull request or a step summary."""
    lines = [f"## {entry.what}: {entry.outcome}", "", f"{entry.why}.", ""]
    if entry.replaces != "nothing":
        lines += [f"By {entry.by} ({entry.action}). Before: version {entry.replaces}.", ""]
    else:
        lines += [f"By {entry.by} ({entry.action}).", ""]
    if decision is not None:
        lines += ["| | check | detail |", "|---|---|---|"]
        for reason in decision.reasons:
            cells = ((PASSED if reason.passed else NOT_PASSED), reason.check, reason.detail)
            lines.append("| " + " | ".join(map(escaped, cells)) + " |")
    if decision is not None and decision.comparisons:
        lines += [
            "",
            "| metric | incumbent | candidate | better by | interval | examples | files |",
            "|---|---:|---:|---:|---|---:|---:|",
        ]
        lines += [
            f"| {item.metric} | {item.incumbent:.4f} | {item.candidate:.4f} | {item.improvement:+.4f} | "
            f"{item.low:+.4f} … {item.high:+.4f} | {item.pairs} | {item.groups} |"
            for item in decision.comparisons
        ]
    return "\n".join(lines) + "\n"


def html(entry: Entry, decision: Decision | None) -> str:
    """The record as one page that needs nothing else: no script, no style sheet, no image from elsewhere."""
    groups: list[tuple[str, list[Reason]]] = []
    primary, plot = None, ""
    better: list[Example] = []
    worse: list[Example] = []
    if decision is not None:
        by_group = {key: [r for r in decision.reasons if r.group == key] for key in GROUPS}
        groups = [(title, by_group[key]) for key, title in GROUPS.items() if by_group[key]]
        primary = next((item for item in decision.comparisons if item.role == "primary"), None)
        if primary is not None and decision.incumbent is not None:
            pairs = differences(primary.metric, decision.candidate, decision.incumbent)
            changes = pairs["improvement"] / pairs["weight"]
            of_files = pairs.groupby([names.REPOSITORY, names.GROUP])[["improvement", "weight"]].sum()
            plot = _plot((of_files["improvement"] / of_files["weight"]).to_numpy(), primary)
            better, worse = _examples(decision, changes)
    return PAGES.get_template("decision.html").render(
        entry=entry,
        decision=decision,
        groups=groups,
        primary=primary,
        plot=plot,
        better=better,
        worse=worse,
        other=_other_metrics(decision),
    )


def _other_metrics(decision: Decision | None) -> list[tuple[str, float | None, float | None]]:
    """(name, incumbent, candidate) of what the evaluation logged, but for the metrics that were compared."""
    if decision is None:
        return []
    compared = {item.metric for item in decision.comparisons}
    ours, theirs = decision.candidate.metrics, decision.incumbent.metrics if decision.incumbent else {}
    logged = sorted(
        name for name in ours if name.split("/")[0] not in ("run", "train", "system") and name not in compared
    )
    return [(name, theirs.get(name), ours[name]) for name in logged]


def _examples(decision: Decision, changes: "pd.Series[float]") -> tuple[list[Example], list[Example]]:
    """The examples that got better most, and those that got worse most; none where nothing but figures was kept."""
    assert decision.incumbent is not None
    parsed = metrics.parse(decision.policy.primary.metric)
    assert parsed is not None
    ours, theirs = (
        evidence.tables[parsed.table].astype({"example_id": str}).set_index("example_id")
        for evidence in (decision.candidate, decision.incumbent)
    )
    if not all({"prompt", "reference", "completion"} <= set(table) for table in (ours, theirs)):
        return [], []
    ordered = changes.sort_values(kind="stable")

    def of(names: Sequence[str]) -> list[Example]:
        return [
            Example(
                *(name, float(changes[name]), str(ours.at[name, "prompt"]), str(ours.at[name, "reference"])),
                *(str(ours.at[name, "completion"]), str(theirs.at[name, "completion"])),
            )
            for name in names
        ]

    best = [name for name in reversed(ordered.index[-EXAMPLES:]) if changes[name] > 0]
    return of(best), of([name for name in ordered.index[:EXAMPLES] if changes[name] < 0])


def _plot(changes: Floats, primary: Comparison) -> str:
    """An SVG: a bar for each file, from the most worsened to the most improved; the mean with its interval."""
    ordered = np.sort(changes)
    if len(ordered) > BARS:
        ordered = np.array([part.mean() for part in np.array_split(ordered, BARS)])
    # What is far out would flatten all else: the bars end at the first and last percentile's scale.
    low, high = min(0.0, float(np.quantile(ordered, 0.01))), max(0.0, float(np.quantile(ordered, 0.99)))
    band = [bound if math.isfinite(bound) else primary.improvement for bound in (primary.low, primary.high)]
    low, high = min(low, band[0]), max(high, band[1])
    scale = (HEIGHT - 20) / ((high - low) or 1.0)

    def y(value: float) -> float:
        return 10 + (high - min(max(value, low), high)) * scale

    step = (WIDTH - MARGIN) / len(ordered)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Change of each file in {primary.metric}" '
        'xmlns="http://www.w3.org/2000/svg">'
    ]
    for number, value in enumerate(ordered):
        top, bottom = sorted((y(0), y(float(value))))
        parts.append(
            f'<rect x="{MARGIN + number * step:.2f}" y="{top:.2f}" width="{max(step * 0.9, 0.5):.2f}" '
            f'height="{max(bottom - top, 0.5):.2f}" class="{"up" if value > 0 else "down"}"/>'
        )
    top, bottom = y(band[1]), y(band[0])
    parts.append(
        f'<rect x="{MARGIN}" y="{top:.2f}" width="{WIDTH - MARGIN}" height="{max(bottom - top, 1):.2f}" class="band"/>'
    )
    mean = y(primary.improvement)
    parts.append(f'<line x1="{MARGIN}" x2="{WIDTH}" y1="{mean:.2f}" y2="{mean:.2f}" class="mean"/>')
    parts.append(f'<line x1="{MARGIN}" x2="{WIDTH}" y1="{y(0):.2f}" y2="{y(0):.2f}" class="zero"/>')
    labels = {round(y(value)): value for value in (low, 0.0, high)}
    for place, value in labels.items():
        parts.append(f'<text x="{MARGIN - 6}" y="{place + 4}" text-anchor="end">{value:+.2f}</text>')
    return "".join([*parts, "</svg>"])
