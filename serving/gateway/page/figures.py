"""What is counted by day, as shares and durations: of a version, and over time."""

import re
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from serving.gateway.events.store import AFTER_S, STEP, STEP_RATIO, day_of

Row = tuple[str, str, str, float]  # day, name, version, value
DAYS = 60  # that are shown: this month and the one before
MONTH = 30
MOST = 1e12  # that a count can be
STEPS = re.compile(r"-?[0-9]{1,3}")
LEAST = 10  # completions that were shown, for a day's share to be drawn


@dataclass(frozen=True)
class Figures:
    """Of some completions; None for what none of them tells."""

    counts: Mapping[str, float]

    @property
    def completions(self) -> int:
        return int(self.counts.get("completions", 0))

    @property
    def shown(self) -> int:
        return int(self.counts.get("shown", 0))

    @property
    def acceptance(self) -> float | None:
        return self._share("accepted", "shown")

    @property
    def acceptance_by_characters(self) -> float | None:
        return self._share("accepted_characters", "shown_characters")

    @property
    def persistence(self) -> list[float | None]:
        """The share of accepted characters that are left after each of AFTER_S."""
        return [self._share(f"kept_characters_{s}", f"watched_characters_{s}") for s in AFTER_S]

    @property
    def empty(self) -> float | None:
        return self._share("empty", "completions")

    @property
    def cut_off(self) -> float | None:
        return self._share("cut_off", "completions")

    def _share(self, part: str, whole: str) -> float | None:
        return self.counts.get(part, 0.0) / self.counts[whole] if self.counts.get(whole) else None

    def quantile(self, name: str, share: float) -> float | None:
        """Seconds within which this share of completions were answered (`seconds`) or begun (`first_token`)."""
        prefix = name + STEP
        steps = sorted((int(key[len(prefix) :]), value) for key, value in self.counts.items() if key.startswith(prefix))
        wanted = share * sum(value for _, value in steps)
        for step, value in steps:
            wanted -= value
            if wanted <= 0:
                return float(0.01 * STEP_RATIO**step)
        return None


def sound(rows: Iterable[Sequence[object]]) -> list[Row]:
    """The rows that a count can have; those of a file that somebody has written into are left out."""
    found: list[Row] = []
    for day, name, version, value in rows:
        if not (isinstance(day, str) and isinstance(name, str) and isinstance(version, str) and len(version) <= 20):
            continue
        if not (isinstance(value, int | float) and 0 <= value < MOST):
            continue
        _, is_step, step = name.partition(STEP)
        if not is_step or STEPS.fullmatch(step):
            found.append((day, name, version, float(value)))
    return found


def of(rows: Iterable[Row]) -> Figures:
    """The figures of all rows together."""
    counts: dict[str, float] = defaultdict(float)
    for _, name, _, value in rows:
        counts[name] += value
    return Figures(dict(counts))


def by_version(rows: Iterable[Row]) -> dict[str, Figures]:
    """Of each version, the newest first."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[row[2]].append(row)
    newest = sorted(found, key=lambda version: (not version.isdecimal(), -int(version) if version.isdecimal() else 0))
    return {version: of(found[version]) for version in newest}


def by_day(rows: Iterable[Row]) -> dict[tuple[str, str], Figures]:
    """Of each (version, day)."""
    found: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        found[row[2], row[0]].append(row)
    return {key: of(those) for key, those in found.items()}


def last_days(count: int = DAYS) -> list[str]:
    """The last days, in UTC, the oldest first."""
    now = time.time()
    return [day_of(now - back * 86_400) for back in reversed(range(count))]


def months(rows: Sequence[Row]) -> tuple[Figures, Figures]:
    """(the last thirty days, the thirty before them)."""
    since = last_days(MONTH)[0]
    return of(row for row in rows if row[0] >= since), of(row for row in rows if row[0] < since)
