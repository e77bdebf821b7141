"""Functions of a Python source tree as completion examples: signature and docstring → body.

Methods count as functions (moved to the left margin); functions inside functions belong to their outer
one. Stubs (`pass`, `...`, `raise NotImplementedError`) and files that do not parse are left out.
"""

import ast
import importlib.util
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path

from trainer.errors import InputError

# Folders that hold no code of the project's own.
SKIPPED_FOLDERS = {"__pycache__", "build", "dist", "env", "node_modules", "site-packages", "venv"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def package_folder(name: str) -> Path:
    """The source folder of an installed package. Raises InputError where there is none."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # a parent that is missing or no package
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"data.source names the package '{name}', which is not installed here as a folder of Python code. "
            "Expected package:NAME with an importable package, e.g. package:email, or the path of a folder."
        )
    return Path(next(iter(spec.submodule_search_locations)))


def python_files(root: Path) -> list[Path]:
    """The Python files below a folder, sorted by relative path; hidden and vendored folders left out."""
    return sorted(
        (
            path
            for path in root.rglob("*.py")
            if path.is_file()
            and not any(part in SKIPPED_FOLDERS or part.startswith(".") for part in path.relative_to(root).parts[:-1])
        ),
        key=lambda path: path.relative_to(root).as_posix(),
    )


def read_functions(path: Path, require_docstring: bool) -> list[tuple[str, str]] | None:
    """(prompt, completion) of each function in a file, in order; None where it cannot be read or parsed."""
    try:
        # One kind of line end, so that lines are counted as ast counts them.
        source = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
        with warnings.catch_warnings():  # invalid escapes in other people's strings
            warnings.simplefilter("ignore")
            functions = list(_functions(ast.parse(source)))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    lines = source.split("\n")  # splitlines() would also split at form feeds, ast does not
    pairs = [_split(function, lines, require_docstring) for function in functions]
    return [pair for pair in pairs if pair is not None]


def _functions(node: ast.AST) -> Iterator[Function]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield child
        elif not isinstance(child, ast.expr):  # classes, and what stands under if, try and with
            yield from _functions(child)


def _split(function: Function, lines: list[str], require_docstring: bool) -> tuple[str, str] | None:
    """Cut a function's source between docstring (or signature) and body; None where that gives no example."""
    has_docstring = ast.get_docstring(function, clean=False) is not None
    body = function.body[1:] if has_docstring else function.body
    if (require_docstring and not has_docstring) or not body or all(_is_stub(item) for item in body):
        return None
    first = min((item.lineno for item in function.decorator_list), default=function.lineno)
    head_end = function.body[0].end_lineno if has_docstring else _signature_end(function, first, lines)
    if head_end is None or body[0].lineno <= head_end or function.end_lineno is None:
        return None  # head and body share a line
    head = "\n".join(lines[first - 1 : head_end]) + "\n"
    text = textwrap.dedent(head + "\n".join(lines[head_end : function.end_lineno]) + "\n")
    prompt_lines = head_end - first + 1
    split = text.split("\n")
    prompt = "\n".join(split[:prompt_lines]) + "\n"
    completion = "\n".join(split[prompt_lines:]).strip("\n") + "\n"
    return (prompt, completion) if parses(prompt + completion) else None


def _signature_end(function: Function, first: int, lines: list[str]) -> int | None:
    """The last line of the signature: the first one after which a body may follow."""
    for number in range(function.lineno, function.body[0].lineno):
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


def parses(code: str) -> bool:
    """Whether the text is a syntactically valid Python module."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
