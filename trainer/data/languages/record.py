"""What a language is to us, and the few names that its grammar has for it."""

import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

BRACE = re.compile(r"\}")
# How often the parser may jump in a text. A file of code makes it jump 35 times at most, and prose in a shell script
# 200 times for each KB.
CHUNK, MIN_READS, BYTES_PER_READ = 1 << 14, 1000, 500


@dataclass(frozen=True)
class Language:
    """A language that examples are made from. The kinds of nodes are those of its tree-sitter grammar."""

    name: str
    suffixes: tuple[str, ...]  # of its files, in lower case
    grammar: tuple[str, str]  # the grammar's package, and the function in it that gives it
    functions: frozenset[str]  # with a body
    classes: frozenset[str]  # and whatever else has a head and members
    blocks: frozenset[str]  # whose children are statements or members: bodies, and a file
    imports: frozenset[str] = frozenset()
    import_words: frozenset[str] = frozenset()  # first words of statements, where imports are calls or commands
    comment: str = "//"  # begins a comment that goes to the end of its line
    # The line at the left margin that ends a function; None: it ends where something else begins there.
    ends: re.Pattern[str] | None = BRACE
    docstrings: bool = False  # a function is documented by its first string; else by the comment above it
    opening: str = ""  # what a file begins with, and a piece of code does not
    contexts: tuple[str, ...] = ("{}",)  # in any of which a piece of code may be valid


def language(
    name: str,
    suffixes: tuple[str, ...],
    grammar: tuple[str, str],
    *,
    functions: Iterable[str] = (),
    classes: Iterable[str] = (),
    blocks: Iterable[str] = (),
    imports: Iterable[str] = (),
    import_words: Iterable[str] = (),
    **more: Any,
) -> Language:
    """A record: see `Language`."""
    return Language(
        name,
        suffixes,
        grammar,
        frozenset(functions),
        frozenset(classes),
        frozenset(blocks),
        frozenset(imports),
        frozenset(import_words),
        **more,
    )


def parse(grammar: tuple[str, str], text: str) -> tuple[Any, bytes] | None:
    """The root of a text's tree, and the bytes that it counts in. A node's own `text` would read them one by one.

    None where the parser goes over the text again and again: on some that is far from the language, such as prose in a
    shell script, it would take time by the square of its length.
    """
    data = text.encode(errors="replace")
    left = MIN_READS + len(data) // BYTES_PER_READ

    def read(offset: int, _point: Any) -> bytes:
        nonlocal left
        left -= 1
        return data[offset : offset + CHUNK] if left >= 0 else b""

    root = _parser(grammar).parse(read).root_node
    return (root, data) if left >= 0 else None


def begins(grammar: tuple[str, str], text: str) -> bool:
    """Whether all that is wrong with a text, if anything, reaches to its end."""
    parsed = parse(grammar, text)
    if parsed is None:
        return False
    stack = [parsed[0]]
    while stack:
        node = stack.pop()
        if node.is_missing or node.is_error:
            if node.end_byte < len(parsed[1]):
                return False
        elif node.has_error:
            stack += node.children
    return True


@cache
def _parser(grammar: tuple[str, str]) -> Any:
    """The tree-sitter parser of a grammar, whose package is imported when it is first needed."""
    import tree_sitter

    package, function = grammar
    return tree_sitter.Parser(tree_sitter.Language(getattr(importlib.import_module(package), function)()))
