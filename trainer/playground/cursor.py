"""Where to complete: the text before a cursor and after it, and the prompt that a model gets of them."""

from pathlib import Path
from typing import NamedTuple

from code_model import fim
from code_model.context import budget_of, prompt
from contract.errors import InputError
from trainer.data.filters import is_unicode
from trainer.data.sources.base import printable
from trainer.evaluation.models import JudgedModel

MARKER = "<|cursor|>"


class Place(NamedTuple):
    """A cursor in a text."""

    path: str  # of the file; empty for a text that is in none
    prefix: str
    suffix: str


def in_file(where: str) -> Place:
    """The place that FILE:LINE:COLUMN names, both from 1, as editors count. Raises InputError if it is missing."""
    path, line, column = [*where.rsplit(":", 2), "", ""][:3]
    if not (path and line.isdecimal() and column.isdecimal()):
        raise InputError(
            f"The place is '{where}'. Expected FILE:LINE:COLUMN, such as src/add.py:12:5, or - for a text."
        )
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"The file '{path}' is not UTF-8: {error.reason} at byte {error.start}.") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise InputError(f"The file '{path}' cannot be read: {error}.") from error
    path = printable(path)
    lines = text.split("\n")
    number, place = int(line), int(column)
    if not 1 <= number <= len(lines):
        raise InputError(f"The place is '{where}', and '{path}' has {len(lines)} lines. Expected one of them.")
    columns = len(lines[number - 1].removesuffix("\r")) + 1
    if not 1 <= place <= columns:
        raise InputError(
            f"The place is '{where}', and line {number} of '{path}' has {columns - 1} characters. Expected a column "
            f"from 1 to {columns}, which is behind the last one."
        )
    offset = sum(len(item) + 1 for item in lines[: number - 1]) + place - 1
    return Place(path, text[:offset], text[offset:])


def in_text(text: str) -> Place:
    """The place of MARKER in a text, or its end. Raises InputError where there are several, and for no text at all."""
    if (count := text.count(MARKER)) > 1:
        raise InputError(f"The text has {MARKER} {count} times. Expected it once, or not at all: at the end then.")
    if not is_unicode(text):
        raise InputError("The text is not UTF-8. Expected code in UTF-8, as the terminal should send it.")
    prefix, _, suffix = text.partition(MARKER)
    if not (prefix + suffix).strip():
        raise InputError(f"The text is empty. Expected code, with {MARKER} where to complete it if not at its end.")
    return Place("", prefix, suffix)


def prompt_of(model: JudgedModel, place: Place, new_tokens: int) -> str:
    """The prompt as serving makes it of a request's prompt, suffix and path.

    Where nothing but space comes after the cursor, the model is to go on, and not to fill a gap.
    """
    asked = fim.Context(place.prefix, place.suffix if place.suffix.strip() else None, place.path)
    return prompt(asked, model.tokenizer, budget_of(model.window, model.positions, new_tokens))
