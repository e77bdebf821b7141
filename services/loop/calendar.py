"""When a calendar rings: five fields as cron has them, in UTC.

APScheduler finds the times. What it understands otherwise than cron does is translated: its week begins on Monday.
"""

from datetime import UTC, datetime

from apscheduler.triggers.cron import CronTrigger

DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")


def parse(text: str) -> CronTrigger:
    """Raises ValueError for what is no calendar, or one that never rings."""
    fields = text.split()
    if len(fields) != 5:
        raise ValueError(f"{len(fields)} fields: expected minute, hour, day, month and day of the week, as cron has")
    minute, hour, day, month, weekday = fields
    if day != "*" and weekday != "*":
        raise ValueError("a day of the month and one of the week: expected * for one of them, since cron takes either")
    trigger = CronTrigger(minute=minute, hour=hour, day=day, month=month, day_of_week=_days(weekday), timezone=UTC)
    if following(trigger, 0.0) is None:
        raise ValueError("such a day does not come")
    return trigger


def following(trigger: CronTrigger, after: float) -> float | None:
    """The first time after `after`, in seconds since 1970; None for never."""
    since = datetime.fromtimestamp(after + 1, UTC)
    found = trigger.get_next_fire_time(None, since)
    return None if found is None else float(found.timestamp())


def _days(field: str) -> str:
    """A day of the week field in the names that both understand."""
    if field == "*":
        return field
    found: set[int] = set()
    for part in field.lower().split(","):
        span, _, step = part.partition("/")
        first, _, last = ("0-6" if span == "*" else span).partition("-")
        begin, end = _day(first), _day(last or ("6" if step else first))
        if end < begin:  # sat-mon
            end += 7
        if step and not (step.isdecimal() and int(step)):
            raise ValueError(f"'{part}': expected a step of 1 or more behind the /")
        found |= {number % 7 for number in range(begin, end + 1, int(step or 1))}
    return ",".join(DAYS[number] for number in sorted(found))


def _day(text: str) -> int:
    if text in DAYS:
        return DAYS.index(text)
    if text.isdecimal() and int(text) <= 7:
        return int(text)
    raise ValueError(f"'{text}' is no day of the week: expected 0 (Sunday) to 7, or {', '.join(DAYS)}")
