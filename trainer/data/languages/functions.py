"""A function in a file, by line numbers: what the parsers of all languages give."""

from collections.abc import Sequence
from typing import NamedTuple


class Function(NamedTuple):
    """Lines of a file, counted from 0; ends are exclusive.

    Head (comments, decorators, signature, docstring): `start` to `body`. Body: `body` to `end`. `runs` are the (start,
    end) of statements that stand together in the body, at any depth, without a blank line between them.
    """

    start: int
    body: int
    end: int
    documented: bool
    movable: bool  # to the left margin, without a change to what it says
    runs: tuple[tuple[int, int], ...]


def moved(lines: Sequence[str]) -> list[str]:
    """A function's lines without the indentation of its first."""
    indentation = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    return [line.removeprefix(indentation) if line.strip() else "" for line in lines]


def statement_runs(statements: Sequence[tuple[int, int]], lines: Sequence[str]) -> list[tuple[int, int]]:
    """Statements of one block, (start, end) in order, joined where only comments stand between them."""
    runs: list[tuple[int, int]] = []
    for start, end in statements:
        if runs and all(line.strip() for line in lines[runs[-1][1] : start]) and runs[-1][1] <= start:
            runs[-1] = (runs[-1][0], end)
        else:
            runs.append((start, end))
    return runs
