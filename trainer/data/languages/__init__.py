"""The languages that examples are made from: one record each, and one reader for all, by tree-sitter.

To add one: a module here with its record (see go.py), its name in the list below, and the grammar's package in
pyproject.toml.
"""

from pathlib import PurePosixPath

from trainer.data.filters import is_unicode
from trainer.data.languages import (
    c,
    csharp,
    go,
    java,
    javascript,
    kotlin,
    notebook,
    php,
    python,
    reader,
    record,
    ruby,
    rust,
    shell,
    sql,
    swift,
    typescript,
)
from trainer.data.languages.code import Code
from trainer.data.languages.record import Language, parse

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
        c.C,
        c.CPP,
        csharp.CSHARP,
        kotlin.KOTLIN,
        php.PHP,
        ruby.RUBY,
        swift.SWIFT,
        sql.SQL,
        shell.SHELL,
    )
}
NAMES = tuple(LANGUAGES)
SUFFIXES = {suffix: item.name for item in LANGUAGES.values() for suffix in item.suffixes}


def language_of(path: str) -> str | None:
    """The language that a file's name tells, where it is one that examples are made from; a notebook's is Python."""
    return SUFFIXES.get(PurePosixPath(path).suffix.lower())


def text_of(path: str, text: str) -> str | None:
    """The code in a file's text: that of its cells for a notebook, or None where those are not Python."""
    if not path.lower().endswith(notebook.SUFFIX):
        return text
    code = notebook.code_of(text)
    return code if code is not None and is_unicode(code) else None


def read(text: str, language: str) -> Code | None:
    """What is in a file; None where it does not parse. Lines end in a newline alone."""
    code = reader.read(text, LANGUAGES[language])
    return python.without_invalid(code, text) if code is not None and language == "python" else code


def parses(code: str, language: str) -> bool:
    """Whether a text is syntactically valid, as a file or, for methods, inside a class."""
    return python.parses(code) if language == "python" else bool(_contexts(code, language))


def begins(code: str, language: str, valid: str) -> bool:
    """Whether a text may be how something begins that stands where `valid` would; where that cannot be told it may."""
    if language == "python":
        return python.begins(code)
    places = (context.partition("{}")[0].replace("{{", "{") for context in _contexts(valid, language))
    return any(record.begins(LANGUAGES[language].grammar, f"{place}{code.rstrip()}") for place in places)


def _contexts(code: str, language: str) -> list[str]:
    """What a text would stand in, of what its language has for it, to be valid."""
    known = LANGUAGES[language]
    opening = "" if known.opening.strip() in code else known.opening.replace("{", "{{").replace("}", "}}")
    contexts = [f"{opening}{context}" for context in known.contexts]
    parsed = ((context, parse(known.grammar, context.format(code))) for context in contexts)
    return [context for context, item in parsed if item is not None and not item[0].has_error]
