"""From a place in a file to an example: with as much around it as fits, as an editor would send it."""

import math
from collections.abc import Set
from functools import lru_cache

from code_model import context, fim
from code_model.context import Count, Size
from trainer.data.candidates import Candidates
from trainer.data.example import KINDS, Example
from trainer.data.neighbours import Neighbours

NEAR = 600  # characters on each side of the cursor, by whose names pieces of other files are chosen


class Prompts:
    """Makes the examples of places."""

    def __init__(self, candidates: Candidates, count: Count, size: Size, window: int) -> None:
        """`window`: tokens of an example at most, its completion and the end-of-text token with it."""
        self._candidates, self._count, self._size, self._window = candidates, count, size, window
        self._neighbours = Neighbours(candidates.files)
        self.first_import = lru_cache(maxsize=64)(self._first_import)

    def _first_import(self, file: int) -> float:
        """The character of a file at which its first import begins; infinity without one."""
        text = self._candidates.files.get(file).text
        return next((text.find(item) for item in context.imports_of(text)), math.inf)

    def example(self, number: int, hidden: Set[int]) -> Example:
        """The example of candidate `number`. `hidden`: the files of which no piece may be in its prompt."""
        candidates = self._candidates
        file = candidates.files.get(candidates.file[number])
        start, end, kind = candidates.start[number], candidates.end[number], KINDS[candidates.kind[number]]
        text, completion = file.text, file.text[start:end]
        near = text[max(0, start - NEAR) : start] + text[end : end + NEAR]
        asked = fim.Context(
            text[:start],
            text[end:] if kind == "fim" else None,
            file.path,
            tuple(self._neighbours.of(candidates.file[number], near, hidden)),
        )
        [wanted] = self._count([completion])
        fitted = context.fit(asked, self._window - wanted - 1, self._count, self._size)
        unit = text[candidates.unit_start[number] : candidates.unit_end[number]]
        return Example(
            fim.write(fitted), completion, file.path, kind, file.language, function=unit, repository=file.repository
        )
