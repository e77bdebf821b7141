"""Which files are held out, and which examples are chosen of them.

Examples of a file resemble each other, so a statistic has as many units as there are files: many are held out, and of
each some. All of it depends on names, sizes and hashes alone: the same on every machine, and steady while code grows.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[Any]

# What the promoter's default policy wants at least, and gets where the data have it: groups, and examples.
GATE_GROUPS, GATE_EXAMPLES = 6, 20
MANY = 30  # groups: a statistic gains little by more
TOO_MUCH = 1.25  # times what is to be held out
AT_LEAST_OF_A_GROUP = 6  # examples of one kind, whatever share of all that is
MIX = np.uint64(0x9E3779B97F4A7C15)  # odd: another order of hashes
KEPT_SHARE = 0.5  # of the examples, where kinds are put into the shares of their weights


def groups_to_hold_out(
    groups: Numbers, share: float, most: float, at_least: int, age: Numbers | None = None
) -> Numbers:
    """Whole groups with about this share of the examples, at most so many, in at least so many groups.

    `groups`: that of each example, as a hash. Each side gets at least one where there are two; training keeps two
    thirds of them, or half where else there are too few for the gate. Those that have about their share of the examples
    (half of it to twice as much) come first, in the order of their hash; with the `age` of each example's file those
    that were changed last.
    """
    order, first, sizes = np.unique(groups, return_index=True, return_counts=True)
    if len(order) < 2:
        return order[:0]
    wanted = _count(len(order), min(at_least, most))
    target = min(max(share * len(groups), min(GATE_EXAMPLES, len(groups) / 3)), most)
    fair = target / max(wanted, min(len(order) // 10, MANY))
    fair = 2.0 ** round(math.log2(fair))  # by steps: else which sizes come first would move with each new function
    distance = np.abs(np.log(sizes / fair))
    distance[distance <= np.log(2)] = 0.0
    chosen: list[int] = []
    total = 0
    for number in np.lexsort((order, distance if age is None else age[first])):
        if len(chosen) >= max(wanted, len(order) // 3) or (len(chosen) >= wanted and total >= target):
            break
        if total + sizes[number] <= max(TOO_MUCH * target, 1) or age is not None:
            chosen.append(number)
            total += int(sizes[number])
    for number in np.lexsort((order, sizes)):  # the others may all be large
        if len(chosen) < wanted and number not in chosen:
            chosen.append(number)
    held_out: Numbers = order[np.sort(chosen)]
    return held_out


def _count(there: int, at_least: float) -> int:
    """How many groups to hold out at least, of so many."""
    affordable = GATE_GROUPS if there >= 2 * GATE_GROUPS else 1
    return max(1, int(min(at_least, max(there // 3, affordable))))


def choose(numbers: Numbers, most: int | None, groups: Numbers | None = None) -> Numbers:
    """Whether each example is among so many, which are chosen by their hash: steady while others are added.

    With `groups`, from each in turn: first one of each, then a second.
    """
    chosen = np.ones(len(numbers), dtype=bool)
    if most is None or len(numbers) <= most:
        return chosen
    turn = np.zeros(len(numbers), dtype=int) if groups is None else turns(numbers, groups)
    chosen[np.lexsort((numbers, turn))[most:]] = False
    return chosen


def turns(numbers: Numbers, groups: Numbers) -> Numbers:
    """The place of each example in its group, by hash, from 0."""
    turn = np.zeros(len(numbers), dtype=int)
    order = np.lexsort((numbers, groups))
    _, starts, counts = np.unique(groups[order], return_index=True, return_counts=True)
    turn[order] = np.arange(len(numbers)) - np.repeat(starts, counts)
    return turn


def capped(numbers: Numbers, groups: Numbers, most: int) -> Numbers:
    """Whether each example is among those that no group has more of than so many; some it has in any case."""
    kept: Numbers = turns(numbers, groups) < max(AT_LEAST_OF_A_GROUP, most)
    return kept


def in_shares(numbers: Numbers, kinds: Numbers, weights: Sequence[float], exact: bool) -> Numbers:
    """Whether each example is among those by which the kinds stand as their weights do, (n,).

    Unless it has to be `exact`, at least half of the examples stay: then the rare kinds have all of theirs.
    """
    counts = np.bincount(kinds, minlength=len(weights))[: len(weights)]
    present = [kind for kind, count in enumerate(counts) if count and weights[kind] > 0]
    scales = sorted(counts[kind] / weights[kind] for kind in present)

    def wanted(scale: float) -> dict[int, int]:
        return {kind: min(int(counts[kind]), round(scale * weights[kind])) for kind in present}

    least = 0 if exact else KEPT_SHARE * len(numbers)
    low, scale = scales[0], scales[0]
    if sum(wanted(low).values()) < least:
        scale = scales[-1]
        for _ in range(40):
            middle = (low + scale) / 2
            low, scale = (low, middle) if sum(wanted(middle).values()) >= least else (middle, scale)
    # Not in the order by which files and tests were kept to their shares: those that were would come first here too.
    numbers = numbers * MIX
    kept = np.zeros(len(numbers), dtype=bool)
    for kind, most in wanted(scale).items():
        kept[kinds == kind] = choose(numbers[kinds == kind], most)
    return kept
