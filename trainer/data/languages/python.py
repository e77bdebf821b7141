"""Python, of whatever version: what this interpreter's own parser is too old for is rewritten before it is asked.

tree-sitter forgives much that no interpreter takes, so that alone it is no judge.
"""

import ast
import codeop
import re
import warnings
from collections.abc import Iterator
from typing import Any

from trainer.data.languages.code import Code, moved
from trainer.data.languages.record import language, parse

PYTHON = language(
    "python",
    (".py", ".pyi", ".ipynb"),
    ("tree_sitter_python", "language"),
    functions=("function_definition",),
    classes=("class_definition",),
    blocks=("module", "block"),
    imports=("import_statement", "import_from_statement", "future_import_statement"),
    comment="#",
    ends=None,
    docstrings=True,
)


def parses(code: str) -> bool:
    """Whether the text is a syntactically valid module in some version of Python up to 3.14."""
    try:
        return _ast_takes(code) or ((older := _in_older_syntax(code)) is not None and _ast_takes(older))
    except (RecursionError, MemoryError):  # no interpreter takes what is nested that deep
        return False


def begins(code: str) -> bool:
    """Whether more lines can make a valid module of a text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            codeop.compile_command(code, symbol="exec")
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        return False
    return True


def without_invalid(code: Code, text: str) -> Code:
    """Without the functions that no version takes, such as those of Python 2, which tree-sitter does."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(text, "", "exec", dont_inherit=True)  # twice as fast as ast.parse
        return code
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        lines = text.split("\n")
        valid = [item for item in code.functions if parses("\n".join(moved(lines[item.start : item.end])) + "\n")]
        return code._replace(functions=valid)


def _ast_takes(code: str) -> bool:
    try:
        with warnings.catch_warnings():  # invalid escapes in other people's strings
            warnings.simplefilter("ignore")
            ast.parse(code)
    except (SyntaxError, ValueError):
        return False
    return True


def _in_older_syntax(code: str) -> str | None:
    """The same without type parameters, `type`, f- and t-strings and bare `except A, B`; None where it has an error.

    What stands in braces in a string follows behind the module, in parentheses and as a statement of its own.
    """
    parsed = parse(PYTHON.grammar, code)
    if parsed is None or parsed[0].has_error:
        return None
    root, source = parsed
    braced: list[Any] = []
    pieces = [_rewritten(source, root, 0, braced)]
    for node in braced:  # which grows: strings in braces in strings
        pieces.append(b"(%s\n)" % _rewritten(source, node, node.start_byte, braced))
    return b"\n".join(pieces).decode(errors="replace")


def _rewritten(source: bytes, node: Any, start: int, braced: list[Any]) -> bytes:
    parts, position = [], start
    for first, last, replacement in sorted(_edits(source, node, braced)):
        parts += [source[position:first], replacement]
        position = last
    return b"".join([*parts, source[position : node.end_byte]])


def _edits(source: bytes, root: Any, braced: list[Any]) -> Iterator[tuple[int, int, bytes]]:
    """(first byte, byte behind the last, replacement) below a node. Adds to `braced` what stands in strings' braces."""
    stack = [root]
    while stack:
        node = stack.pop()
        inner = node.children
        if node.type == "string" and set(source[inner[0].start_byte : inner[0].end_byte].lower()) & set(b"ft"):
            yield node.start_byte, node.end_byte, b'""'
            fields = [child for child in inner if child.type == "interpolation"]
            while fields:
                field = fields.pop()
                braced += field.children_by_field_name("expression")
                fields += [
                    item for child in field.children if child.type == "format_specifier" for item in child.children
                ]
            continue
        if node.type in ("function_definition", "class_definition"):
            inner = [child for child in inner if child.type != "type_parameter"]
            for child in node.children_by_field_name("type_parameters"):
                yield child.start_byte, child.end_byte, b""
        elif node.type == "type_alias_statement":
            left, right = node.child_by_field_name("left"), node.child_by_field_name("right")
            yield node.start_byte, left.start_byte, b""
            name = re.match(rb"\w+", source[left.start_byte : left.end_byte])
            if name is not None:
                yield left.start_byte + name.end(), left.end_byte, b""
            inner = [right]
        elif node.type == "except_clause":
            values = node.children_by_field_name("value")
            if len(values) > 1:  # `as` is not allowed then: it is refused in parentheses too
                yield values[0].start_byte, values[0].start_byte, b"("
                yield values[-1].end_byte, values[-1].end_byte, b")"
        stack += inner
