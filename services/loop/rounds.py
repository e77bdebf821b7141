"""When a round may begin, and why: pure functions of what is known and of the rounds before.

What a round has cost is counted whatever became of it, so that one that fails again and again does not spend more than
one that works. Times in seconds since 1970, by the tracking server's clock.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from services.loop import calendar
from services.loop.config import Loop

WEEK_S, HOUR_S = 7 * 86_400.0, 3600.0
# Ends: the gate or the users did not want the candidate; there was none, or it could not be judged.
REFUSED, FAILED = "refused", "failed"
LEAST_PAUSE_H = 1.0  # after a round that failed: what is wrong may take no budget, and would come again at each look


@dataclass(frozen=True)
class Round:
    """One that has begun."""

    id: str
    began: float
    ended: float | None  # None while it goes on
    end: str  # how it ended; empty while it goes on
    trained: bool = False  # a training was begun
    trained_s: float = 0.0  # that its training has taken, or has set aside
    gpus: int = 0
    spent_at: float = 0.0  # when it last took some of the budget

    @property
    def counts_from(self) -> float:
        """The budget of the seven days after this time has it."""
        return max(self.began, self.spent_at)


@dataclass(frozen=True)
class Known:
    """What holds a round back, or asks for one: soon known."""

    free_gb: Callable[[], float]  # asked where a round would begin
    frozen: str = ""  # why, where somebody has stopped the loop
    asked_for: str = ""  # by whom, and why, where somebody wants a round now


@dataclass(frozen=True)
class Facts:
    """What has happened since the code was taken that the last candidate was trained on."""

    commits: int = 0  # without those with stop words
    functions: float = 0.0  # share that is new or changed
    accepted: int = 0
    drift: str = ""  # what the monitor says; empty where it has not looked, or found none
    news: str = ""  # why the code has to be trained on, where there is nothing to count from
    unreadable: str = ""  # why nothing is known of the code
    heads: dict[str, str] = field(default_factory=dict)  # each source's commit by now
    since: float = 0.0  # when the version in production was made, or 0


@dataclass(frozen=True)
class Verdict:
    """Whether a round begins, and why or why not."""

    begins: bool
    why: str
    facts: Facts = Facts()


def decide(loop: Loop, known: Known, look: Callable[[], Facts], rounds: Sequence[Round], now: float) -> Verdict:
    """The rounds are in their order. `look` may take minutes, and is asked only where a round may begin.

    A person who asks for one is not held up by triggers or the cooldown.
    """
    if known.frozen:
        return Verdict(False, f"the loop is frozen: {known.frozen}")
    if rounds and rounds[-1].ended is None:
        return Verdict(False, "a round goes on")
    if why := spent(loop, rounds, now):
        return Verdict(False, f"the budget is spent: {why}")
    if known.asked_for:
        return _with_disk(loop, known, f"asked for: {known.asked_for}", look())
    since = now - rounds[-1].began if rounds else -1.0
    cooldown = max(loop.cooldown_hours, LEAST_PAUSE_H * (bool(rounds) and rounds[-1].end == FAILED))
    if 0 <= since < HOUR_S * cooldown:  # one in the future, after a clock went wrong, holds nothing up
        return Verdict(False, f"cooldown: {in_words(HOUR_S * cooldown - since)} are left of {cooldown:g} h")
    facts = look()
    if facts.unreadable:
        return Verdict(False, facts.unreadable, facts)
    if why := trigger(loop, facts, rounds, now):
        return _with_disk(loop, known, why, facts)
    why = f"nothing has happened that begins a round: {_so_far(loop, facts)}"
    return Verdict(False, why, facts)


def _with_disk(loop: Loop, known: Known, why: str, facts: Facts) -> Verdict:
    wanted, free = loop.training.budget.disk_gb, known.free_gb()
    if free < wanted:
        return Verdict(
            False, f"the disk has {free:.1f} GB left, and a round takes {wanted:g} (but for that: {why})", facts
        )
    return Verdict(True, why, facts)


def spent(loop: Loop, rounds: Sequence[Round], now: float) -> str:
    """Which part of the budget is spent, with the figures; empty while some of each is left."""
    budget = loop.training.budget
    trained = [one for one in _recent(rounds, now) if one.trained]
    hours, gpu_hours = _hours(trained)
    if len(trained) >= budget.rounds:
        return f"{len(trained)} of {budget.rounds} rounds in seven days"
    if hours >= budget.hours:
        return f"{hours:.1f} of {budget.hours:g} hours in seven days"
    if budget.gpu_hours is not None and gpu_hours >= budget.gpu_hours:
        return f"{gpu_hours:.1f} of {budget.gpu_hours:g} GPU hours in seven days"
    return ""


def seconds_left(loop: Loop, rounds: Sequence[Round], gpus: int, now: float) -> float:
    """That a training may take from now on, on so many GPUs. The rounds are all, the one that trains among them."""
    hours, gpu_hours = _hours(_recent(rounds, now))
    left = loop.training.budget.hours - hours
    if loop.training.budget.gpu_hours is not None and gpus:
        left = min(left, (loop.training.budget.gpu_hours - gpu_hours) / gpus)
    return max(0.0, HOUR_S * left)


def trigger(loop: Loop, facts: Facts, rounds: Sequence[Round], now: float) -> str:
    """What begins a round; empty for nothing."""
    wanted = loop.triggers
    if facts.news:
        return facts.news
    if wanted.commits is not None and facts.commits >= wanted.commits:
        return f"{facts.commits} commit{'s' * (facts.commits > 1)}"
    if wanted.functions is not None and facts.functions >= wanted.functions:
        return f"{facts.functions:.0%} of the functions are new or changed"
    if wanted.accepted is not None and facts.accepted >= wanted.accepted:
        return f"{facts.accepted} completions were accepted"
    if wanted.drift and facts.drift:
        return f"production has drifted: {facts.drift}"
    if wanted.calendar is not None and _rings(wanted.calendar, facts, rounds, now):
        return f"the calendar rings: {wanted.calendar}"
    return ""


def freezes(loop: Loop, rounds: Sequence[Round], resumed: float) -> bool:
    """Whether so many rounds in a row led to nothing, since somebody let the loop go on, that a person has to look."""
    ends = [one.end for one in rounds if one.ended is not None and one.ended > resumed][-loop.freeze_after :]
    return len(ends) == loop.freeze_after and set(ends) <= {REFUSED, FAILED}


def in_words(seconds: float) -> str:
    """A time as people say it."""
    return f"{seconds / HOUR_S:.1f} hours" if seconds >= HOUR_S else f"{seconds / 60:.1f} minutes"


def _so_far(loop: Loop, facts: Facts) -> str:
    """How far the triggers are, for whoever wonders why nothing happens."""
    wanted = loop.triggers
    parts = []
    if wanted.commits is not None:
        parts.append(f"{facts.commits} of {wanted.commits} commits")
    if wanted.functions is not None:
        parts.append(f"{facts.functions:.1%} of {wanted.functions:.0%} of the functions")
    if wanted.accepted is not None:
        parts.append(f"{facts.accepted} of {wanted.accepted} accepted completions")
    if wanted.drift:
        parts.append("no drift")
    if wanted.calendar is not None:
        parts.append(f"{wanted.calendar} has not come")
    return ", ".join(parts)


def _recent(rounds: Sequence[Round], now: float) -> list[Round]:
    return [one for one in rounds if one.counts_from > now - WEEK_S]


def _hours(rounds: Sequence[Round]) -> tuple[float, float]:
    """Of training; and the same times GPUs."""
    return sum(one.trained_s for one in rounds) / HOUR_S, sum(one.trained_s * one.gpus for one in rounds) / HOUR_S


def _rings(text: str, facts: Facts, rounds: Sequence[Round], now: float) -> bool:
    """Whether a time of the calendar has come since the last round began, or production was made."""
    since = max(facts.since, rounds[-1].began if rounds else 0.0)
    following = calendar.following(calendar.parse(text), min(since, now))
    return following is not None and following <= now
