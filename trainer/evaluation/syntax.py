"""Whether a completion is valid code where it stands."""

from rapidfuzz.distance import Postfix, Prefix

from code_model import fim
from trainer.data import languages
from trainer.data.example import ROW, Example

MOST_PLACES = 200  # in a function that are looked at, where a short text stands often


def is_valid(example: Example, completion: str, cut_off: bool = False) -> bool | None:
    """Whether a completion makes valid code of what it stands in; None if that cannot be told.

    It is looked at within its function, or the statements around it, and only where those are valid with the reference
    in the same place. Where max_new_tokens has `cut_off` the completion, its last line and what is open there count
    for valid.
    """
    language = example.language
    if language == "text":
        return None
    before, after = fim.read(example.prompt).prefix if example.kind != ROW else example.prompt, ""
    if example.function is not None:
        around = _around(example)
        if around is None:
            return None
        before, after = around
        if example.kind != "fim":
            after = ""  # it is the model's to write
        if before[:1].isspace() and languages.LANGUAGES[language].ends is None:
            before = f"if True:\n{before}"  # a method is not moved to the left margin
        if not languages.parses(before + example.completion + after, language):
            return None
    if not completion.strip():
        return False
    ends = "\n" if after and example.completion.endswith("\n") and not completion.endswith("\n") else ""
    if languages.parses(before + completion + ends + after, language):
        return True
    if not cut_off:
        return False
    whole_lines = completion[: completion.rfind("\n") + 1]
    if not whole_lines.strip() or languages.parses(before + whole_lines + after, language):
        return True
    valid = before + example.completion + after
    return any(languages.begins(before + text, language, valid) for text in (completion, whole_lines))


def _around(example: Example) -> tuple[str, str] | None:
    """What stands before and after the reference in its function: where most of the prompt stands too."""
    function, reference, shown = example.function or "", example.completion, fim.read(example.prompt)
    best: tuple[int, int] | None = None
    start = function.find(reference)
    for _ in range(MOST_PLACES):
        if start < 0:
            break
        end = start + len(reference)
        same = Postfix.similarity(function[:start], shown.prefix) + Prefix.similarity(
            function[end:], shown.suffix or ""
        )
        best = max(best or (same, start), (same, start))
        start = function.find(reference, start + 1)
    return None if best is None else (function[: best[1]], function[best[1] + len(reference) :])
