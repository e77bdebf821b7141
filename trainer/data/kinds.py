"""From a function to one example: completed from its head, a gap in it filled, or its next block written.

Which of the three is drawn by weight, by a hash of the function: the choice is the same on every machine and stays
as it is while other code comes and goes.
"""

import math
from collections.abc import Mapping, Sequence

from code_model import fim
from trainer.data.example import Example, hash64
from trainer.data.languages.functions import Function, moved

MIN_CHARACTERS = 8  # of a gap or block: less is a brace or a `pass`
SUFFIX_SHARE = 0.3  # of the context around a gap: the text after it


def example_of(
    function: Function,
    lines: Sequence[str],
    language: str,
    group: str,
    weights: Mapping[str, float],
    require_docstring: bool,
    context: int,
) -> Example | None:
    """The function's example, or None where it can be of no kind that has a weight.

    `lines` are those of its file. `context`: characters of a gap's or block's example, text around it included.
    """
    text = "\n".join(lines[function.start : function.end]) + "\n"  # what it is told by, and compared by
    runs = [run for run in function.runs if len("".join(lines[slice(*run)]).strip()) >= MIN_CHARACTERS]
    possible = []
    if function.movable and (function.documented or not require_docstring):
        possible.append("function")
    if runs:
        possible += ["next_block", "fim"]
    kind = _draw(possible, weights, text)
    if kind is None:
        return None
    if kind == "function":
        prompt, completion = _whole(function, lines)
    else:
        start, end = runs[hash64(f"run\0{text}") % len(runs)]
        completion = "\n".join(lines[start:end]) + "\n"
        room = max(0, context - len(completion))
        if kind == "fim":
            suffix = _nearest(lines[end:], int(room * SUFFIX_SHARE))
            prefix = _nearest(lines[:start][::-1], room - sum(len(line) + 1 for line in suffix))[::-1]
            prompt = fim.prompt("".join(f"{line}\n" for line in prefix), "".join(f"{line}\n" for line in suffix))
        else:
            prompt = "".join(f"{line}\n" for line in _nearest(lines[:start][::-1], room)[::-1])
    return Example(prompt, completion, group, kind, language, function=None if kind == "function" else text)


def _whole(function: Function, lines: Sequence[str]) -> tuple[str, str]:
    """Head and body, moved to the left margin."""
    text = moved(lines[function.start : function.end])
    head = function.body - function.start
    return "\n".join(text[:head]) + "\n", "\n".join(text[head:]).strip("\n") + "\n"


def _draw(possible: Sequence[str], weights: Mapping[str, float], text: str) -> str | None:
    """One of the kinds, each with a chance in proportion to its weight: the first arrival of exponential clocks."""
    arrivals = {
        kind: -math.log((hash64(f"{kind}\0{text}") + 1) / (2**64 + 1)) / weights[kind]
        for kind in possible
        if weights[kind] > 0
    }
    return min(arrivals, key=lambda kind: arrivals[kind], default=None)


def _nearest(lines: Sequence[str], room: int) -> list[str]:
    """As many lines, from the first on, as fit into so many characters."""
    taken: list[str] = []
    for line in lines:
        room -= len(line) + 1
        if room < 0:
            break
        taken.append(line)
    return taken
