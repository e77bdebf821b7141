"""Which parts of code are worth a gap in a line: what follows `=`, `if` or `return`, arguments, calls, subscripts.

The grammars call these by much the same names, and where they do not, the token before an expression tells it.
"""

from collections.abc import Iterator
from typing import Any

CALLS = {
    *("call", "call_expression", "new_expression", "method_invocation", "object_creation_expression"),
    *("invocation_expression", "function_call_expression", "member_call_expression", "scoped_call_expression"),
    *("nullsafe_member_call_expression", "macro_invocation", "invocation", "command", "command_substitution"),
    *("subscript", "subscript_expression", "index_expression", "array_access", "element_access_expression"),
    "element_reference",
}
LISTS = {"argument_list", "arguments", "value_arguments", "bracketed_argument_list"}
PARENTHESES = {"parenthesized_expression", "condition_clause"}
BEFORE = {
    *("=", ":=", "+=", "-=", "*=", "/=", "%=", "//=", "**=", "&=", "|=", "^=", "<<=", ">>=", "??=", "||=", "&&="),
    *("return", "if", "elif", "while", "until", "unless", "assert", "throw", "raise", "yield", "await", "in"),
    *("switch", "match"),
}
FIELDS = ("condition", "subscript", "index", "default_value", "predicate")


def spans_in(node: Any, kind: str, children: list[Any]) -> Iterator[tuple[int, int]]:
    """(first byte, byte behind the last) of a node's expressions: itself, and those of its children that are.

    `kind` and `children` are the node's own, which the caller has read.
    """
    if kind in CALLS:
        yield node.start_byte, node.end_byte
    if kind in LISTS:
        if children[0].type in ("(", "["):
            yield children[0].end_byte, children[-1].start_byte
        for child in children:
            if child.is_named:
                yield child.start_byte, child.end_byte
    elif kind in ("command", "invocation"):  # whose arguments stand in no list
        for child in children[1:]:
            if child.is_named:
                yield child.start_byte, child.end_byte
    elif kind == "token_tree":  # the arguments of a macro, which are not told apart
        yield children[0].end_byte, children[-1].start_byte
    if kind.startswith("type"):
        return  # what is equal to a type is one
    values = [child for field in FIELDS if (child := node.child_by_field_name(field)) is not None]
    before = ""
    for child in children:
        if child.is_named:
            if before in BEFORE:
                values.append(child)
            before = ""
        else:
            before = child.type
    for child in values:
        if child.type in LISTS or child.type == "value_binding_pattern":  # read on its own; `let` in a condition
            continue
        inside = child.type in PARENTHESES
        yield child.start_byte + inside, child.end_byte - inside
