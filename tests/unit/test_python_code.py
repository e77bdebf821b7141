"""What becomes of the functions of a Python file."""

import pytest

from trainer.data.filters import decode
from trainer.data.kinds import example_of
from trainer.data.languages.python import read_functions

FUNCTIONS = {"function": 1.0, "fim": 0.0, "next_block": 0.0}


def functions(source: str, require_docstring: bool = True):
    """(prompt, completion) of each function, or None where the source does not parse."""
    found = read_functions(source)
    if found is None:
        return None
    lines = source.split("\n")
    examples = [example_of(item, lines, "python", "x.py", FUNCTIONS, require_docstring, 1000) for item in found]
    return [(item.prompt, item.completion) for item in examples if item is not None]


def test_function_is_split_after_its_docstring() -> None:
    source = 'def add(a, b):\n    """Add."""\n    # why\n    return a + b\n\n\nx = 1\n'
    assert functions(source) == [('def add(a, b):\n    """Add."""\n', "    # why\n    return a + b\n")]


def test_method_moves_to_the_margin_with_its_decorators() -> None:
    source = (
        "class A:\n    @property\n    async def b(\n        self,\n    ):\n"
        '        """Long\n\n        text."""\n        if self:\n            return 1\n'
    )
    [(prompt, completion)] = functions(source)
    assert prompt.startswith("@property\nasync def b(\n")
    assert prompt.endswith('    text."""\n')
    assert completion == "    if self:\n        return 1\n"


@pytest.mark.parametrize(
    "body",
    [
        "pass",
        "...",
        "raise NotImplementedError",
        "raise NotImplementedError('no')",
        "'another string'",
    ],
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
    assert functions(source, require_docstring=False) == []


def test_function_without_docstring_only_where_wanted() -> None:
    source = "def f(\n    a,  # colon: no\n) -> int:\n\n    # first\n    return a\n"
    assert functions(source) == []
    [(prompt, completion)] = functions(source, require_docstring=False)
    assert prompt == "def f(\n    a,  # colon: no\n) -> int:\n"
    assert completion == "    # first\n    return a\n"


@pytest.mark.parametrize(
    ("signature", "body"),
    [
        ('def f(sep="#"):\n', "    return sep\n"),
        ('def f(a={"k":\n    1}) -> "x#y":\n', "    # why: so\n    return a\n"),
        ("@wraps(f)\ndef f(\n    a,\n    b=lambda: 1,\n):\n", "    return a\n"),
    ],
)
def test_signature_ends_where_it_ends(signature: str, body: str) -> None:
    assert functions(signature + body, require_docstring=False) == [(signature, body)]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_line_ends_do_not_matter(line_end: str) -> None:
    source = 'x = 1\n\n\ndef f(y):\n    """Doc."""\n    return y\n'
    text = decode(source.replace("\n", line_end).encode())
    assert text is not None
    assert functions(text) == [('def f(y):\n    """Doc."""\n', "    return y\n")]


def test_deeply_nested_file_is_left_out_not_a_crash() -> None:
    chain = "if x == 0:\n    pass\n" + "".join(f"elif x == {n}:\n    pass\n" for n in range(1, 3000))
    assert functions(chain) in (None, [])
    assert functions("x = " + "[" * 5000 + "]" * 5000) is None


def test_inner_function_belongs_to_the_outer_one() -> None:
    source = 'def f():\n    """Doc."""\n    def g():\n        """Inner."""\n        return 1\n    return g\n'
    assert len(functions(source)) == 1


def test_function_under_if_and_try_is_found() -> None:
    source = (
        'if True:\n    try:\n        def f():\n            """Doc."""\n            return 1\n    except E:\n        x\n'
    )
    assert functions(source) == [('def f():\n    """Doc."""\n', "    return 1\n")]


@pytest.mark.parametrize(("indentation", "moves"), [("", True), ("        ", False)])
def test_method_whose_strings_would_change_is_not_moved(indentation: str, moves: bool) -> None:
    source = f'class A:\n    def f(self):\n        """Doc."""\n        return """\n{indentation}text\n"""\n'
    assert len(functions(source)) == moves


def test_long_chain_of_branches_is_left_out_not_a_crash() -> None:
    branches = "".join(f"    elif a == {number}:\n        b({number})\n" for number in range(3000))
    assert functions(f'def f(a):\n    """F."""\n    if a:\n        b()\n{branches}') in (None, [])


def test_block_begins_with_its_decorators() -> None:
    [function] = (
        read_functions('def f(a):\n    """F."""\n    x = 1\n\n    @wraps(a)\n    def g():\n        return x\n') or []
    )
    assert (4, 7) in function.runs


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"x = 1\0"])
def test_what_is_no_text_is_reported_as_such(content: bytes) -> None:
    assert decode(content) is None


def test_file_that_does_not_parse_is_reported_as_such() -> None:
    assert functions("def f(:\n") is None
