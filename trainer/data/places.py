"""Where an editor may ask: places in a file, each with the text that is wanted there.

Several of each function, and of the code outside functions, by its length. Which ones is drawn by a hash of the code:
the same on every machine, and as it was while other code comes and goes.
"""

import math
import random
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple

from trainer.data.example import hash64, is_word
from trainer.data.languages.code import Code

MIN_CHARACTERS = 8  # of a block: less is a brace or a `pass`
BLOCK_SHARE, GAP_SHARE = 0.5, 0.35  # of the window: tokens of a body or block, and of a gap, at most
LINES_PER_GAP, MOST_GAPS = 5, 12  # in a function or in statements that stand together
MOST_BLOCKS = 16  # next blocks in a function or in statements that stand together
TRIES = 4  # to find statements that are short enough
FROM_THE_FIRST = 0.5  # share of the blocks that begin with the first of the statements that stand together
# What is wanted in a gap: whole statements; the rest of a line, or more; an expression or a call; any characters.
STYLES = {"block": 0.45, "rest": 0.3, "expression": 0.1, "characters": 0.15}
# A line that goes on with the statement before it.
ATTACHED = re.compile(r"\s*(@[\w.]+(\(.*\))?|#!?\[.*\]|template\s*<.*>)\s*$")
CLOSING = re.compile(r"\s*([)\]}]|(else|elif|except|finally|catch|end|fi|done|esac|case|default)\b)")
ONE_LINE = 0.6  # share of the gaps of the second kind that end with their line
MOST_LINES = 8  # of the others, after the first
ALSO_IN_BLOCKS = 0.25  # share of the functions asked for whole of which there are blocks too
AT_LINE_START = 0.4  # share of the whole-line places with the cursor before the indentation


class Place(NamedTuple):
    """Characters `start` to `end` of a file are wanted. `unit`: the lines of the function, or statements, around."""

    start: int
    end: int
    kind: str  # of example.KINDS
    unit: tuple[int, int]


class _File:
    """A file's lines, with their places and tokens."""

    def __init__(self, text: str, code: Code, sizes: Sequence[int]) -> None:
        self.text, self.code, self.sizes = text, code, sizes
        self.lines = text.split("\n")
        self.starts = [0, *accumulate(len(line) + 1 for line in self.lines)]  # characters
        self.starts_of_expressions = [start for start, _ in code.expressions]
        self.in_text = {number for start, end in code.quoted for number in range(start, end)}

    def end_of(self, line: int) -> int:
        """Where a line ends, before its newline."""
        return min(self.starts[line + 1] - 1, len(self.text))

    def fitting(self, start: int, end: int, most: float) -> int:
        """How far from line `start` towards `end` so many tokens go."""
        for line in range(start, end):
            most -= self.sizes[line]
            if most < 0:
                return line
        return end

    def statements(self, start: int, end: int, most: float, rng: random.Random) -> tuple[int, int]:
        """Of lines that stand together whole statements, from the first or any on, as many as so many tokens hold."""
        depth = _depth(self.lines[start])
        begins = [
            number
            for number in range(start, end)
            if _depth(self.lines[number]) <= depth
            and not CLOSING.match(self.lines[number])
            and (number == start or not self._goes_on(number))
        ]
        if begins and rng.random() >= FROM_THE_FIRST:
            start = rng.choice(begins)
        last = self.fitting(start, end, most)
        return start, max((n for n in [*begins, end] if start <= n <= last), default=start)

    def _goes_on(self, line: int) -> bool:
        """Whether the line above belongs to this one: a decorator, an annotation, an attribute, a template."""
        return bool(ATTACHED.match(self.lines[line - 1]))

    def whole_statements(self, start: int, end: int, most: float) -> int:
        """How far from line `start` towards `end` whole statements go in so many tokens, in its block."""
        depth, last, found = _depth(self.lines[start]), self.fitting(start, end, most), start
        for line in range(start + 1, last + 1):
            text = self.lines[line] if line < end else ""
            if line == end or (text.strip() and _depth(text) < depth):  # the block ends, be it with an `else`
                found = line
                break
            if text.strip() and _depth(text) == depth and not CLOSING.match(text) and not self._goes_on(line):
                found = line
        while found > start and not self.lines[found - 1].strip():
            found -= 1
        return found


def _depth(line: str) -> float:
    return len(line) - len(line.lstrip()) if line.strip() else math.inf


def places(text: str, code: Code, sizes: Sequence[int], window: int, require_docstring: bool) -> Iterator[Place]:
    """The places of a file. `sizes`: tokens of its lines. `window`: tokens of an example, prompt and completion."""
    file = _File(text, code, sizes)
    for function in code.functions:
        unit = (function.start, function.end)
        rng = random.Random(hash64("\n".join(file.lines[slice(*unit)])))
        whole = file.fitting(function.body, function.end, window * BLOCK_SHARE) == function.end
        span = (function.body, function.end)
        asked = whole and (function.documented or not require_docstring)
        if not asked:
            yield from _blocks(file, unit, span, window, rng)
        else:
            yield _of_lines(file, *span, "function", unit, rng)
            if rng.random() < ALSO_IN_BLOCKS and span[1] - span[0] > 1:  # what comes next behind some lines of it
                yield from _blocks(file, unit, (rng.randrange(span[0] + 1, span[1]), span[1]), window, rng)
        yield from _gaps(file, unit, span, function.runs, window, rng)
    for run in code.runs:
        rng = random.Random(hash64("\n".join(file.lines[slice(*run)])))
        yield from _blocks(file, run, run, window, rng)
        yield from _gaps(file, run, run, [run], window, rng)


def _blocks(
    file: _File, unit: tuple[int, int], span: tuple[int, int], window: int, rng: random.Random
) -> Iterator[Place]:
    """Statements one after another, as many as fit each time; of one that is too long, those inside it."""
    found: list[tuple[int, int]] = []
    line = span[0]
    while line < span[1]:
        if not file.lines[line].strip() or CLOSING.match(file.lines[line]):
            line += 1
            continue
        end = file.whole_statements(line, span[1], window * BLOCK_SHARE)
        if len("".join(file.lines[line:end]).strip()) >= MIN_CHARACTERS:
            found.append((line, end))
        line = max(end, line + 1)  # into a statement that is too long
    for start, end in sorted(rng.sample(found, min(len(found), MOST_BLOCKS))):
        yield _of_lines(file, start, end, "next_block", unit, rng)


def _gaps(
    file: _File,
    unit: tuple[int, int],
    span: tuple[int, int],
    runs: Sequence[tuple[int, int]],
    window: int,
    rng: random.Random,
) -> Iterator[Place]:
    """Gaps inside some lines, `span`."""
    length = span[1] - span[0]
    blocks = [run for run in runs if len("".join(file.lines[slice(*run)]).strip()) >= MIN_CHARACTERS]
    seen: set[tuple[int, int]] = set()
    for style in rng.choices(list(STYLES), list(STYLES.values()), k=min(MOST_GAPS, -(-length // LINES_PER_GAP))):
        place: Place | None = None
        if style == "block" and blocks:
            for _ in range(TRIES):
                start, end = file.statements(*rng.choice(blocks), window * GAP_SHARE, rng)
                if end > start:
                    place = _of_lines(file, start, end, "fim", unit, rng)
                    break
        elif style == "expression":
            place = _expression(file, span, unit, rng)
        elif style in ("rest", "characters"):
            place = _cut(file, span, unit, window * GAP_SHARE, rng, style)
        if place is not None and (place.start, place.end) not in seen and file.text[place.start : place.end].strip():
            seen.add((place.start, place.end))
            yield place


def _of_lines(file: _File, start: int, end: int, kind: str, unit: tuple[int, int], rng: random.Random) -> Place:
    """Whole lines, or all but the indentation of the first."""
    line = file.lines[start]
    indentation = len(line) - len(line.lstrip()) if rng.random() >= AT_LINE_START else 0
    # What comes after a gap begins with the newline, as an editor has it.
    return Place(file.starts[start] + indentation, file.end_of(end - 1) + (kind != "fim"), kind, unit)


def _expression(file: _File, span: tuple[int, int], unit: tuple[int, int], rng: random.Random) -> Place | None:
    first = bisect_left(file.starts_of_expressions, file.starts[span[0]])
    last = bisect_right(file.starts_of_expressions, file.end_of(span[1] - 1))
    if first == last:
        return None
    start, end = file.code.expressions[rng.randrange(first, last)]
    return Place(start, end, "fim", unit) if end <= file.end_of(span[1] - 1) else None


def _cut(
    file: _File, span: tuple[int, int], unit: tuple[int, int], most: float, rng: random.Random, style: str
) -> Place | None:
    """From inside a line on: to its end, to the end of a later one, or to any character."""
    lines = [n for n in range(*span) if n not in file.in_text and len(file.lines[n].strip()) >= 4]
    if not lines:
        return None
    line = rng.choice(lines)
    text = file.lines[line]
    first, end = len(text) - len(text.lstrip()) + 1, len(text.rstrip())
    inside = rng.random() < 0.5
    columns = [n for n in range(first, end) if (is_word(text[n - 1]) and is_word(text[n])) == inside]
    if not columns:
        return None
    start = file.starts[line] + rng.choice(columns)
    last = line
    if style == "characters" or rng.random() >= ONE_LINE:
        last = max(line, file.fitting(line, min(span[1], line + 2 + rng.randrange(MOST_LINES)), most) - 1)
    stop = file.end_of(last)
    if style == "characters":
        first = max(start, file.starts[last]) + 1
        stop = rng.randrange(first, stop + 1) if stop >= first else stop
    return Place(start, stop, "fim", unit) if stop > start else None
