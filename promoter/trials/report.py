"""A trial's page: what was decided, traffic by arm, and each measure's confidence sequence as a picture."""

import math
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import numpy as np

from promoter import tables
from promoter.records import Entry
from promoter.report import PAGES, escaped
from promoter.trials.policy import TrialPolicy
from promoter.trials.verdict import Measured, Verdict

WIDTH, HEIGHT, MARGIN, POINTS = 760, 200, 64, 300
TITLES = {
    "acceptance": "Accepted completions",
    "persistence": "What is left of them",
    "errors": "Failures",
    "empty": "Empty completions",
    "slow": "Slow answers",
    "left": "Left before an answer",
}


@dataclass(frozen=True)
class Event:
    """One thing that was decided, and when."""

    at: float  # seconds since 1970
    what: str

    @property
    def when(self) -> str:
        return datetime.fromtimestamp(self.at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def files(entry: Entry, policy: TrialPolicy, verdict: Verdict | None, events: list[Event]) -> dict[str, str]:
    """The report in all its forms: text by file name."""
    facts = asdict(entry) | {"policy": policy.model_dump(mode="json"), "events": [asdict(event) for event in events]}
    if verdict is not None:
        facts |= {
            "requests": {"incumbent": verdict.requests[0], "challenger": verdict.requests[1]},
            "split_evidence": verdict.split,
            "measures": [facts_of(one) for one in verdict.measures],
        }
    html = PAGES.get_template("trials/trial.html").render(
        entry=entry,
        policy=policy,
        verdict=verdict,
        events=events,
        picture=picture,
        titles=TITLES,
        isfinite=math.isfinite,
    )
    return {
        "decision.json": tables.to_json(facts),
        "decision.md": markdown(entry, verdict, events),
        "decision.html": html,
    }


def facts_of(one: Measured) -> dict[str, object]:
    """A measure's figures, as JSON knows them."""
    return {
        **{name: getattr(one, name) for name in ("name", "decides", "margin", "alpha", "challenger", "incumbent")},
        **{name: getattr(one, name) for name in ("requests", "estimate", "low", "high", "holds", "is_worse")},
    }


def markdown(entry: Entry, verdict: Verdict | None, events: list[Event]) -> str:
    """The record as Markdown."""
    lines = [f"## {entry.what}: {entry.outcome}", "", f"{entry.why}.", "", f"By {entry.by} ({entry.action}).", ""]
    if verdict is not None:
        lines += [f"Requests: {verdict.requests[0]} incumbent, {verdict.requests[1]} challenger.", ""]
        lines += [
            "| measure | incumbent | challenger | difference | between | allowed |",
            "|---|---:|---:|---:|---|---:|",
        ]
        for one in verdict.measures:
            cells = [one.name, f"{abs(one.incumbent):.1%}", f"{abs(one.challenger):.1%}", f"{100 * one.estimate:+.1f}"]
            cells += [f"{100 * one.low:+.1f} … {100 * one.high:+.1f}", f"-{100 * one.margin:.3g}"]
            lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *(f"- {event.when}: {escaped(event.what)}" for event in events)]
    return "\n".join(lines) + "\n"


def picture(one: Measured) -> str:
    """An SVG of a measure's difference, challenger less incumbent, in points, with its bounds, by requests."""
    finite = np.flatnonzero(np.isfinite(one.path.low))
    if not len(finite):
        return ""
    chosen = finite[np.unique(np.linspace(0, len(finite) - 1, POINTS).astype(int))]
    estimate, low, high = (100 * values[chosen] for values in (one.path.estimate, one.path.low, one.path.high))
    # The first bounds are so wide that nothing else could be seen.
    reach = max(3 * float(np.median(high - low)) / 2, 100 * one.margin * 1.5, float(np.abs(estimate[-1])) * 1.2)

    def y(value: float) -> float:
        return 10 + (reach - min(max(value, -reach), reach)) * (HEIGHT - 40) / (2 * reach)

    def x(place: int) -> float:
        return MARGIN + (WIDTH - MARGIN - 10) * place / int(chosen[-1])

    def points(values: np.ndarray, order: slice) -> str:
        pairs = [(x(place), y(float(value))) for place, value in zip(chosen, values, strict=True)]
        if len(pairs) == 1:  # where it was decided at once: as wide as can be seen
            pairs = [(pairs[0][0] + offset, pairs[0][1]) for offset in (-4, 4)]
        return " ".join(f"{a:.1f},{b:.1f}" for a, b in pairs[order])

    lines = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg" aria-label="{one.name}: '
        f'difference in points by requests, {100 * one.estimate:+.1f} at the end">',
        f'<polygon class="band" points="{points(high, slice(None))} {points(low, slice(None, None, -1))}"/>',
        f'<polyline class="mean" fill="none" points="{points(estimate, slice(None))}"/>',
        f'<line class="zero" x1="{MARGIN}" x2="{WIDTH - 10}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>',
        f'<text x="{MARGIN - 6}" y="{y(0) + 4:.1f}" text-anchor="end">0</text>',
    ]
    if one.margin:
        place = y(-100 * one.margin)
        lines += [
            f'<line class="margin" x1="{MARGIN}" x2="{WIDTH - 10}" y1="{place:.1f}" y2="{place:.1f}"/>',
            f'<text x="{WIDTH - 14}" y="{place + 13:.1f}" text-anchor="end">−{100 * one.margin:.3g}</text>',
        ]
    for value in (reach, -reach):
        lines.append(f'<text x="{MARGIN - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:+.0f} pts</text>')
    lines.append(f'<text x="{WIDTH - 10}" y="{HEIGHT - 8}" text-anchor="end">{int(chosen[-1]) + 1} requests</text>')
    return "".join([*lines, "</svg>"])
