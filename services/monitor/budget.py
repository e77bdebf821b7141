"""How sure a look has to be: all looks of a year together are wrong in `alpha` at most, however many they are.

The budget grows with time, and each look spends what has come together since the one before: a look an hour later has
next to nothing to spend, and one that was left out loses nothing within a month.
"""

YEAR_S = 365.25 * 86_400
FIRST_S, MOST_S = 7 * 86_400.0, 30 * 86_400.0  # that a first look spends as if it came so late, and any look at most
SHARES = {"inputs": 0.8, "quality": 0.2}  # of what a look may spend, by question


def to_spend(alpha: float, last: float | None, now: float) -> float:
    """By a look now, of a budget of `alpha` a year; `last`: when the one before was. Times in seconds since 1970."""
    since = FIRST_S if last is None else min(max(now - last, 0.0), MOST_S)
    return alpha * since / YEAR_S
