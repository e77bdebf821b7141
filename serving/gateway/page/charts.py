"""Figures over time as SVG: a line for each version, each point with its figure as a tooltip."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 200
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 24  # margins
COLOURS = 4  # of versions; earlier ones are grey
GAP_DAYS = 7  # after which a line is not drawn on


@dataclass(frozen=True)
class Line:
    """A figure of one version, by day."""

    name: str
    colour: int  # 0 … COLOURS - 1; COLOURS for grey
    points: Mapping[str, float]  # by day
    dashed: bool = False


def chart(
    title: str,
    lines: Sequence[Line],
    days: Sequence[str],
    say: Callable[[float], str],
    scale: Callable[[float], str],
) -> str:
    """The lines over the days. `say` words a value, and `scale` one of the scale's."""
    highest = _round_up(max((value for line in lines for value in line.points.values()), default=0.0) or 1.0)
    place = {day: number for number, day in enumerate(days)}

    def x(day: str) -> float:
        return LEFT + place[day] * (WIDTH - LEFT - RIGHT) / max(1, len(days) - 1)

    def y(value: float) -> float:
        return TOP + (1 - value / highest) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for share in (0.0, 0.5, 1.0):
        at = y(share * highest)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(scale(share * highest))}</text>')
    for day, anchor in ((days[0], "start"), (days[len(days) // 2], "middle"), (days[-1], "end")):
        parts.append(f'<text class="{anchor}" x="{x(day):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{day}</text>')
    for line in lines:
        known = [day for day in days if day in line.points]
        dashes = " dashed" if line.dashed else ""
        for run in _runs(known, place):
            path = " ".join(f"{x(day):.1f},{y(line.points[day]):.1f}" for day in run)
            parts.append(f'<polyline class="c{line.colour}{dashes}" points="{path}"/>')
        for day in known:
            value = line.points[day]
            parts.append(
                f'<circle class="c{line.colour}" cx="{x(day):.1f}" cy="{y(value):.1f}" r="{2 if line.dashed else 3}">'
                f"<title>{escape(f'{line.name}, {day}: {say(value)}')}</title></circle>"
            )
    return "".join([*parts, "</svg>"])


def colours(versions: Sequence[str]) -> dict[str, int]:
    """A colour for each version, the newest first: it keeps its own when another comes. Earlier ones share grey."""
    oldest_first = list(reversed(versions))
    return {
        version: oldest_first.index(version) % COLOURS if number < COLOURS else COLOURS
        for number, version in enumerate(versions)
    }


def _runs(days: Sequence[str], place: Mapping[str, int]) -> list[list[str]]:
    runs: list[list[str]] = []
    for day in days:
        if runs and place[day] - place[runs[-1][-1]] <= GAP_DAYS:
            runs[-1].append(day)
        else:
            runs.append([day])
    return [run for run in runs if len(run) > 1]


def _round_up(value: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten, so that half of it is a round number too."""
    power = 1.0
    while power < value:
        power *= 10
    while power / 10 >= value:
        power /= 10
    return next(power * part for part in (0.2, 0.5, 1.0) if power * part >= value)
