"""What is found in a Python file, and what counts as valid Python."""

import json

import pytest

from tests.support.data import functions_of
from trainer.data.filters import decode
from trainer.data.languages import language_of, parses, read, text_of


def functions(source: str) -> list[tuple[str, str]]:
    return functions_of(source, "python")


def only(source: str):
    code = read(source, "python")
    assert code is not None
    [function] = code.functions
    return function


def test_function_is_split_after_its_docstring() -> None:
    source = 'def add(a, b):\n    """Add."""\n    # why\n    return a + b\n\n\nx = 1\n'
    assert functions(source) == [('def add(a, b):\n    """Add."""\n', "    # why\n    return a + b\n")]
    assert only(source).documented


def test_method_moves_to_the_margin_with_its_decorators() -> None:
    source = (
        "class A:\n    @property\n    async def b(\n        self,\n    ):\n"
        '        """Long\n\n        text."""\n        if self:\n            return 1\n'
    )
    [(head, body)] = functions(source)
    assert head.startswith("@property\nasync def b(\n")
    assert head.endswith('    text."""\n')
    assert body == "    if self:\n        return 1\n"


@pytest.mark.parametrize(
    "body",
    ["pass", "...", "raise NotImplementedError", "raise NotImplementedError('no')", "'another string'", "pass; pass"],
)
def test_stub_is_left_out(body: str) -> None:
    assert functions(f'def f():\n    """Doc."""\n    {body}\n') == []


@pytest.mark.parametrize(
    "source",
    [
        'def f():\n    """Only a docstring."""\n',
        'def f():\n    """Doc."""; return 1\n',
        "def f(): return 1\n",
    ],
)
def test_what_has_no_body_of_its_own_is_left_out(source: str) -> None:
    assert functions(source) == []


def test_function_without_docstring_is_not_documented() -> None:
    source = "# about f\ndef f(\n    a,  # colon: no\n) -> int:\n\n    # first\n    return a\n"
    assert functions(source) == [("def f(\n    a,  # colon: no\n) -> int:\n", "\n    # first\n    return a\n")]
    assert not only(source).documented


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ('def f(sep="#"):\n', "    return sep\n"),
        ('def f(a={"k":\n    1}) -> "x#y":\n', "    # why: so\n    return a\n"),
        ("@wraps(f)\ndef f(\n    a,\n    b=lambda: 1,\n):\n", "    return a\n"),
        ("def f[T: (int, str)](a: T) -> T:\n", "    return a\n"),
        ("def f(\n" + "".join(f"    a{number}: int = 0,\n" for number in range(800)) + "):\n", "    return a0\n"),
    ],
)
def test_signature_ends_where_it_ends(signature: str, body: str) -> None:
    assert functions(signature + body) == [(signature, body)]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_line_ends_do_not_matter(line_end: str) -> None:
    source = 'x = 1\n\n\ndef f(y):\n    """Doc."""\n    return y\n'
    text = decode(source.replace("\n", line_end).encode())
    assert text is not None
    assert functions(text) == [('def f(y):\n    """Doc."""\n', "    return y\n")]


def test_inner_function_belongs_to_the_outer_one() -> None:
    source = 'def f():\n    """Doc."""\n    def g():\n        """Inner."""\n        return 1\n    return g\n'
    assert len(functions(source)) == 1


def test_function_under_if_and_try_is_found() -> None:
    source = (
        'if True:\n    try:\n        def f():\n            """Doc."""\n            return 1\n    except E:\n        x\n'
    )
    assert functions(source) == [('def f():\n    """Doc."""\n', "    return 1\n")]


def test_runs_in_a_function_begin_with_decorators_and_end_at_blank_lines() -> None:
    source = (
        "def f(a):\n    x = 1\n    # why\n    y = 2\n\n    @wraps(a)\n    def g():\n        return x\n\n"
        "    if a:\n        z = 3\n    elif x:\n        z = 4\n    return g\n"
    )
    assert only(source).runs == ((1, 4), (5, 8), (7, 8), (9, 14), (10, 11), (12, 13))


def test_runs_outside_functions_are_without_imports_classes_and_docstrings() -> None:
    source = (
        '"""Doc."""\nimport a\nA = 1\nimport b\nB = 2\nfrom c import d\n\nimport e\n\n'
        'class C:\n    """Doc."""\n    x: int = 1\n    y = 2\n    def f(self):\n        return 1\n    z = 3\n'
    )
    code = read(source, "python")
    assert code is not None
    assert code.runs == [(2, 5), (11, 13), (15, 16)]


def test_of_a_stub_file_the_runs_remain() -> None:
    code = read("X: int\n\nclass A:\n    def f(self) -> int: ...\n    def g(self) -> str: ...\n", "python")
    assert code is not None
    assert code.functions == []
    assert code.runs == [(0, 1), (3, 5)]
    assert language_of("a/b.pyi") == "python"


def test_expressions_are_told_in_characters() -> None:
    source = 'é = "ü"\nif é > limit:\n    x["key"] = call(é, other)\n'
    code = read(source, "python")
    assert code is not None
    assert [source[start:end] for start, end in code.expressions] == [
        *('"ü"', "é > limit", 'x["key"]', '"key"', "call(é, other)", "é, other", "other"),
    ]


def test_no_expression_is_in_an_import_or_docstring() -> None:
    code = read('from a import (bcd, efg)\nimport xyz\n\ndef f():\n    "f(abc)"\n    g\n', "python")
    assert code is not None
    assert code.expressions == []


def test_strings_of_several_lines_are_quoted() -> None:
    code = read('"""a\nb"""\nx = ("c"\n    "d")\ny = f"""\n{x}\n"""\n', "python")
    assert code is not None
    assert code.quoted == [(0, 2), (4, 7)]


# By the version that has it first.
NEWER = {
    "3.12, type parameters": "def f[T: (int, str), *U, **V](a: T) -> T:\n    return a\n",
    "3.12, a class with them": "class A[T](B):\n    def f(self) -> T:\n        return 1\n",
    "3.12, type": "type X[T] = list[T]\n\ndef f(a):\n    return a\n",
    "3.12, quotes in strings": 'def f(a):\n    return f"a {a["b"]!r:>{a["c"]}}" "d"\n',
    "3.12, strings in strings": "def f(a):\n    return f\"{f\"{a['x']}\"}\\n{'\\n'.join(a)}\"\n",
    "3.14, except": "def f(a):\n    try:\n        return a()\n    except ValueError, a.Error:\n        return 1\n",
    "3.14, templates": 'def f(a):\n    return t"a {a}" + rt"{a["b"]}"\n',
}


@pytest.mark.parametrize("name", NEWER)
def test_python_newer_than_this_one_is_read(name: str) -> None:
    assert len(functions(NEWER[name])) == 1
    assert parses(NEWER[name], "python")


def test_a_long_file_of_newer_python_is_read() -> None:
    source = NEWER["3.12, quotes in strings"] * 3000
    assert len(functions(source)) == 3000
    assert parses(source, "python")


@pytest.mark.parametrize(
    "source",
    [
        *("return x +\n", "x = (1\n", "x = [1, 2)\n", "def f(:\n    pass\n", "x = = 1\n", "def f():\n", "a b\n"),
        *("  x = 1\ny = 2\n", "def f():\n  x\n    y\n", "try:\n    a\n", 'print "x"\n', "x = 08\n", '"abc\n'),
        *("if x\n    y\n", "def f():\n\tx\n        y\n", "def f(x=1, y): pass\n"),
        # Broken in a way that only a newer Python gets to.
        *('f"{d["a"}"\n', 'x = f"{d["a"]}" 1\n', 'f"{d["a"]} {return}"\n', 't"{a b}"\n', "type X =\n"),
        *("def f[T(x): pass\n", "def f[](x): pass\n", "def f[T](x=1, y): pass\n", "class A[T]:\n"),
        "try:\n    a\nexcept A, B as e:\n    pass\n",
    ],
)
def test_broken_python_does_not_parse(source: str) -> None:
    assert not parses(source, "python")


def test_what_is_nested_too_deep_does_not_parse() -> None:
    assert not parses("[" * 50_000 + "]" * 50_000, "python")


GOOD = 'def good(a):\n    """Doc."""\n    return a\n\n\n'


@pytest.mark.parametrize(
    "broken",
    [
        *("def b(a):\n    return a +\n\n\n", "def b(a:\n    return a\n\n\n", "def b(a):\nreturn a\n\n\n"),
        *("class B:\n    def b(a):\n        return )\n\n\n", "<<<<<<< HEAD\nx = 1\n=======\nx = 2\n>>>>>>> b\n\n"),
        'def b(a):\n    print "a"\n\n\n',  # tree-sitter takes this
        f"x = {'[' * 5000}{']' * 5000}\n\n",
        "def b(a):\n    return " + "(" * 5000 + ")" * 5000 + "\n\n\n",
    ],
)
def test_what_does_not_parse_costs_its_file_no_other_function(broken: str) -> None:
    [one, other] = functions(GOOD + broken + GOOD)
    assert one == other == ('def good(a):\n    """Doc."""\n', "    return a\n")


@pytest.mark.parametrize("source", ["def f(:\n", "}}} ]] %% <<\n" * 5, "All is prose, and none of it code.\n" * 5])
def test_file_that_does_not_parse_is_reported_as_such(source: str) -> None:
    assert read(source, "python") is None


def test_long_chain_of_branches_is_no_crash() -> None:
    branches = "".join(f"    elif a == {number}:\n        b({number})\n" for number in range(3000))
    assert len(functions(f'{GOOD}def f(a):\n    """F."""\n    if a:\n        b()\n{branches}')) in (1, 2)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"x = 1\0"])
def test_what_is_no_text_is_reported_as_such(content: bytes) -> None:
    assert decode(content) is None


def notebook(*cells: str, language: str = "python") -> str:
    code = [{"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in cells]
    text = {"cell_type": "markdown", "source": "# Title"}
    return json.dumps({"metadata": {"kernelspec": {"language": language}}, "cells": [text, *code]})


def test_of_a_notebook_the_code_is_read() -> None:
    text = notebook(
        "%matplotlib inline\nimport a\n!pip install \\\n  b\na.c?\n",
        "%%bash\nls\n",
        "%%time\nif a:\n    !ls\nx = !pwd\ny = (5\n  % 3)",
    )
    code = text_of("a/b.ipynb", text)
    assert code == "import a\n\nif a:\n    pass\ny = (5\n  % 3)\n"
    assert language_of("a/b.ipynb") == "python"
    assert parses(code, "python")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"cells": 1}', '{"cells": [1], "metadata": {}}', "[" * 100_000, notebook("x", language="R")],
)
def test_what_is_no_notebook_in_python_has_no_code(text: str) -> None:
    assert text_of("b.ipynb", text) is None


def test_any_other_file_is_code_as_it_is() -> None:
    assert text_of("b.py", "{}") == "{}"
