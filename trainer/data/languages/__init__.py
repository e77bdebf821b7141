"""The languages that examples are made from: one record each, one module each.

To add one that tree-sitter knows: a module here with its record (see go.py), its name in the list below, and the
grammar's package in pyproject.toml.
"""

from pathlib import PurePosixPath

from trainer.data.languages import go, java, javascript, python, rust, typescript
from trainer.data.languages.functions import Function
from trainer.data.languages.record import Language

LANGUAGES: dict[str, Language] = {
    item.name: item
    for item in (
        python.PYTHON,
        javascript.JAVASCRIPT,
        typescript.TYPESCRIPT,
        typescript.TSX,
        go.GO,
        java.JAVA,
        rust.RUST,
    )
}
NAMES = tuple(LANGUAGES)
SUFFIXES = {suffix: item.name for item in LANGUAGES.values() for suffix in item.suffixes}


def language_of(path: str) -> str | None:
    """The language that a file's name tells, where it is one that examples are made from."""
    return SUFFIXES.get(PurePosixPath(path).suffix.lower())


def read_functions(source: str, language: str) -> list[Function] | None:
    """The functions of a file in order; None where it does not parse. Lines end in a newline alone."""
    return LANGUAGES[language].read_functions(source)


def parses(code: str, language: str) -> bool:
    """Whether a text is syntactically valid."""
    return LANGUAGES[language].parses(code)
