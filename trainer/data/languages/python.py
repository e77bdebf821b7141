"""The functions of a Python file, by `ast`.

Methods count as functions; functions inside functions belong to their outer one. Stubs (`pass`, `...`, `raise
NotImplementedError`) are left out.
"""

import ast
import textwrap
import warnings
from collections.abc import Iterator

from trainer.data.languages.functions import Function, moved, statement_runs
from trainer.data.languages.record import Language

Node = ast.FunctionDef | ast.AsyncFunctionDef


def read_functions(source: str) -> list[Function] | None:
    """The functions in order; None where the source does not parse. Lines end in a newline alone."""
    try:
        with warnings.catch_warnings():  # invalid escapes in other people's strings
            warnings.simplefilter("ignore")
            lines = source.split("\n")  # splitlines() would also split at form feeds, ast does not
            found = [_function(node, lines) for node in _functions(ast.parse(source))]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return [function for function in found if function is not None]


def parses(code: str) -> bool:
    """Whether the text is a syntactically valid Python module."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _functions(node: ast.AST) -> Iterator[Node]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Node):
            yield child
        elif not isinstance(child, ast.expr):  # classes, and what stands under if, try and with
            yield from _functions(child)


def _function(node: Node, lines: list[str]) -> Function | None:
    """Where head and body of a function are; None for a stub and where the two share a line."""
    documented = ast.get_docstring(node, clean=False) is not None
    body = node.body[1:] if documented else node.body
    if not body or all(_is_stub(item) for item in body):
        return None
    first = _first_line(node)
    head_end = node.body[0].end_lineno if documented else _signature_end(node, first, lines)
    if head_end is None or body[0].lineno <= head_end or node.end_lineno is None:
        return None
    runs = tuple(sorted(set(_runs(body, lines))))
    movable = _says_the_same("\n".join(moved(lines[first - 1 : node.end_lineno])) + "\n", body)
    return Function(first - 1, head_end, node.end_lineno, documented, movable, runs)


def _says_the_same(text: str, body: list[ast.stmt]) -> bool:
    """Whether a function that was moved has this body still: a string of several lines may have been changed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            [function] = ast.parse(text).body
    except (SyntaxError, ValueError):
        return False
    assert isinstance(function, Node)
    return [ast.dump(item) for item in function.body[-len(body) :]] == [ast.dump(item) for item in body]


def _runs(body: list[ast.stmt], lines: list[str]) -> Iterator[tuple[int, int]]:
    """The runs of whole-line statements in a block and in all blocks below it."""
    spans = [(_first_line(item) - 1, item.end_lineno or 0) for item in body if _has_its_own_lines(item, lines)]
    yield from statement_runs(spans, lines)
    for item in body:
        for field in ("body", "orelse", "finalbody"):
            inner = getattr(item, field, None)
            if isinstance(inner, list) and inner:
                yield from _runs(inner, lines)
        for handler in (*getattr(item, "handlers", ()), *getattr(item, "cases", ())):
            yield from _runs(handler.body, lines)


def _first_line(node: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(item.lineno for item in decorators)])


def _has_its_own_lines(node: ast.stmt, lines: list[str]) -> bool:
    assert node.end_lineno is not None
    before = lines[node.lineno - 1].encode()[: node.col_offset]
    after = lines[node.end_lineno - 1].encode()[node.end_col_offset :].strip()
    return not before.strip() and (not after or after.startswith(b"#"))


def _signature_end(node: Node, first: int, lines: list[str]) -> int | None:
    """The last line of the signature: the first one after which a body may follow."""
    for number in range(node.lineno, node.body[0].lineno):
        if parses(textwrap.dedent("\n".join(lines[first - 1 : number])) + "\n    pass\n"):
            return number
    return None


def _is_stub(node: ast.stmt) -> bool:
    if isinstance(node, ast.Pass):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Raise):
        error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return isinstance(error, ast.Name) and error.id == "NotImplementedError"
    return False


PYTHON = Language("python", (".py",), read_functions, parses, braces=False)
