"""A look's page: its verdicts, the curves over all looks, what moved most."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from contract.files import REPORT_CSS
from services.monitor.look import LOOKED_AT, Look, to_json

if TYPE_CHECKING:
    from mlflow.entities import Run

WIDTH, HEIGHT, MARGIN = 760, 200, 64
PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader([Path(__file__).parent, REPORT_CSS.parent]),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
# What is drawn over all looks: a metric, what it is, and the one that it is held against.
CURVES = (
    (
        "inputs/share",
        "Prompts unlike the code that was trained on; dashed: of that code itself",
        "inputs/expected",
        "%",
    ),
    ("repository/changed_functions", "Functions new or changed since then", "", "%"),
    ("quality/new", "Nats a token on newer code; dashed: on held-out code", "quality/held_out", ""),
)


def files(found: Look, looks: Sequence["Run"]) -> dict[str, str]:
    """`drift.html` and `drift.json` of a look, after those before."""
    points = [(float(run.data.tags[LOOKED_AT]), run.data.metrics) for run in looks if LOOKED_AT in run.data.tags]
    points.append((found.at, found.metrics))
    curves = []
    for name, title, against, unit in CURVES:
        values = [(at, metrics[name]) for at, metrics in points if name in metrics]
        held = [metrics[against] for _, metrics in points if against in metrics]
        if values:
            curves.append((title, curve(title, values, held[-1] if held else None, unit)))
    weeks = ""
    if found.quality is not None and found.quality.weeks:
        days = [
            (datetime.strptime(week, "%Y-%m-%d").replace(tzinfo=UTC).timestamp(), value)
            for week, value, _ in found.quality.weeks
        ]
        weeks = curve("Nats a token by the week of a commit", days, found.quality.held_out, "")
    html = PAGES.get_template("drift.html").render(
        found=found,
        when=datetime.fromtimestamp(found.at, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        curves=curves,
        weeks=weeks,
        looks=len(points),
    )
    return {"drift.html": html, "drift.json": to_json(found)}


def curve(title: str, points: Sequence[tuple[float, float]], against: float | None, unit: str) -> str:
    """An SVG of values by time (seconds since 1970), and a dashed line of what they are held against."""
    first, last = points[0][0], points[-1][0]
    highest = 1.15 * max([*(value for _, value in points), against or 0.0, 1e-9])

    def x(at: float) -> float:
        return MARGIN + (WIDTH - MARGIN - 20) * ((at - first) / (last - first) if last > first else 0.5)

    def y(value: float) -> float:
        return 10 + (HEIGHT - 40) * (1 - value / highest)

    def said(value: float) -> str:
        return f"{value:.0%}" if unit == "%" else f"{value:.2f}"

    places = [(x(at), y(value)) for at, value in points]
    lines = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" xmlns="http://www.w3.org/2000/svg" aria-label="{title}: '
        f'{said(points[-1][1])} at the end">',
        f'<polyline class="mean" fill="none" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in places)}"/>',
        *(f'<circle class="point" cx="{a:.1f}" cy="{b:.1f}" r="3"/>' for a, b in places),
        f'<line class="zero" x1="{MARGIN}" x2="{WIDTH - 20}" y1="{y(0):.1f}" y2="{y(0):.1f}"/>',
        f'<text x="{MARGIN - 6}" y="{y(0) + 4:.1f}" text-anchor="end">0</text>',
        f'<text x="{MARGIN - 6}" y="{y(highest) + 10:.1f}" text-anchor="end">{said(highest)}</text>',
    ]
    if against is not None:
        place = y(against)
        lines.append(f'<line class="margin" x1="{MARGIN}" x2="{WIDTH - 20}" y1="{place:.1f}" y2="{place:.1f}"/>')
    for at, anchor in {first: "start", last: "end"}.items():
        day = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")
        lines.append(f'<text x="{x(at):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{day}</text>')
    return "".join([*lines, "</svg>"])
