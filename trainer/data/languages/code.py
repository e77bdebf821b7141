"""What the reader gives of a file of any language, by line numbers and character offsets."""

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
    runs: tuple[tuple[int, int], ...]


class Code(NamedTuple):
    """A file's code, each list in order. Lines from 0, offsets in characters from 0; ends are exclusive.

    `functions`: the outermost ones that have a name, and methods; without stubs. `runs`: lines of statements or
    members that stand together without a blank line, outside functions and classes' heads; imports are cut off.
    `expressions`: offsets of conditions, right-hand sides, returned values, arguments, calls and subscripts, of 3 to
    200 characters. `quoted`: lines of comments and strings of several lines.
    """

    functions: list[Function]
    runs: list[tuple[int, int]]
    expressions: list[tuple[int, int]]
    quoted: list[tuple[int, int]]


def moved(lines: Sequence[str]) -> list[str]:
    """A function's lines without the indentation of its first."""
    indentation = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    return [line.removeprefix(indentation) if line.strip() else "" for line in lines]
