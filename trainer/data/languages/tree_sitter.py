"""The functions of files in languages with braces, by tree-sitter.

Documented is a function right below a comment. One whose braces share a line with code is left out, and so is one
that does not parse.
"""

import importlib
import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

from trainer.data.languages.functions import Function, statement_runs
from trainer.data.languages.record import Language

UNNAMED = {"arrow_function", "function_expression"}
NAMING = {"variable_declarator", "assignment_expression", "field_definition", "public_field_definition", "pair"}
# What a function is a part of that begins on its line, such as `export const f = …`.
STATEMENTS = NAMING | {"export_statement", "lexical_declaration", "variable_declaration", "expression_statement"}
CLOSING = re.compile(r"\s*\}[\s;,)]*(//.*)?")  # the last line of a function that shares it with nothing
ABOVE = {"comment", "line_comment", "block_comment", "attribute_item", "decorator"}


class Nodes(NamedTuple):
    """What a language's grammar calls things."""

    functions: frozenset[str]
    blocks: frozenset[str]  # of statements, in braces


def language(
    name: str,
    suffixes: tuple[str, ...],
    grammar: tuple[str, str],
    *,
    functions: Iterable[str],
    blocks: Iterable[str],
    methods_in_classes: bool,
) -> Language:
    """The record of a language. `grammar`: the grammar's package, and the function in it that gives it.

    `functions` and `blocks`: the grammar's names of what is a function with a body, and of what is a body.
    `methods_in_classes`: whether a function may be valid only inside a class.
    """
    nodes = Nodes(frozenset(functions), frozenset(blocks))

    def parses(code: str) -> bool:
        """Whether the text is syntactically valid, as a file or, for methods, inside a class."""
        texts = [code, f"class C {{\n{code}\n}}\n"] if methods_in_classes else [code]
        return any(not _parser(grammar).parse(text.encode()).root_node.has_error for text in texts)

    return Language(name, suffixes, lambda source: _read_functions(source, grammar, nodes), parses, braces=True)


def _read_functions(source: str, grammar: tuple[str, str], nodes: Nodes) -> list[Function] | None:
    root = _parser(grammar).parse(source.encode()).root_node
    if root.type == "ERROR":
        return None
    lines = source.split("\n")
    found = [_function(node, lines, nodes) for node in _functions(root, nodes)]
    return [function for function in found if function is not None]


@cache
def _parser(grammar: tuple[str, str]) -> Any:
    import tree_sitter

    package, function = grammar
    return tree_sitter.Parser(tree_sitter.Language(getattr(importlib.import_module(package), function)()))


def _functions(root: Any, nodes: Nodes) -> Iterator[Any]:
    stack = [root]
    while stack:
        node = stack.pop()
        named = node.type not in UNNAMED or (node.parent is not None and node.parent.type in NAMING)
        body = node.child_by_field_name("body")
        if node.type in nodes.functions and named and body is not None and body.type in nodes.blocks:
            yield node
        else:
            stack += reversed(node.named_children)


def _function(node: Any, lines: list[str], nodes: Nodes) -> Function | None:
    body = node.child_by_field_name("body")
    opening, closing = body.start_point.row, body.end_point.row
    if node.has_error or closing <= opening + 1 or not _statements(body):
        return None
    behind = lines[opening].encode()[body.start_point.column + 1 :].strip()
    if (behind and not behind.startswith(b"//")) or not CLOSING.fullmatch(lines[closing]):
        return None
    outer = node
    while outer.parent is not None and outer.parent.type in STATEMENTS and _row(outer.parent) == _row(node):
        outer = outer.parent
    if lines[outer.start_point.row].encode()[: outer.start_point.column].strip():
        return None  # something else comes first on this line
    start, documented = outer.start_point.row, False
    above = outer.prev_sibling
    while above is not None and above.type in ABOVE and _end_row(above) + 1 == start and _starts_its_line(above, lines):
        start, documented = above.start_point.row, documented or "comment" in above.type
        above = above.prev_sibling
    runs = {run for block in _blocks(body, nodes) for run in statement_runs(_whole_lines(block, lines), lines)}
    movable = not lines[start][:1].isspace() or not _has_long_strings(node)
    return Function(start, opening + 1, closing + 1, documented, movable, tuple(sorted(runs)))


def _has_long_strings(node: Any) -> bool:
    """Whether a string goes over several lines, whose indentation is a part of what it says."""
    stack = [node]
    while stack:
        inner = stack.pop()
        if "string" in inner.type and inner.start_point.row != inner.end_point.row:
            return True
        stack += inner.children
    return False


def _row(node: Any) -> int:
    return int(node.start_point.row)


def _blocks(body: Any, nodes: Nodes) -> Iterator[Any]:
    stack = [body]
    while stack:
        node = stack.pop()
        if node.type in nodes.blocks:
            yield node
        stack += node.named_children


def _statements(block: Any) -> list[Any]:
    return [child for child in block.named_children if child.type not in ABOVE and child.type != "statement_list"] or [
        item for child in block.named_children if child.type == "statement_list" for item in _statements(child)
    ]


def _whole_lines(block: Any, lines: list[str]) -> list[tuple[int, int]]:
    """(start, end) of the block's statements that share no line with anything else."""
    spans = []
    for child in _statements(block):
        end_row = _end_row(child)
        after = lines[end_row].encode()[child.end_point.column :] if child.end_point.row == end_row else b""
        if _starts_its_line(child, lines) and (not after.strip(b" \t;") or after.strip(b" \t;").startswith(b"//")):
            spans.append((child.start_point.row, end_row + 1))
    return spans


def _starts_its_line(node: Any, lines: list[str]) -> bool:
    return not lines[node.start_point.row].encode()[: node.start_point.column].strip()


def _end_row(node: Any) -> int:
    """The last row with text of a node: some comments end at the start of the next."""
    return int(node.end_point.row - (node.end_point.column == 0))
