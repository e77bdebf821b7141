"""What a language is to us."""

from collections.abc import Callable
from dataclasses import dataclass

from trainer.data.languages.functions import Function


@dataclass(frozen=True)
class Language:
    """A language that examples are made from."""

    name: str
    suffixes: tuple[str, ...]  # of its files
    read_functions: Callable[[str], list[Function] | None]  # of a file's text; None where it does not parse
    parses: Callable[[str], bool]
    braces: bool  # a function ends with a brace at the left margin; else where something else begins there
