"""What becomes of the functions of a source tree."""

import pytest

from trainer.errors import InputError
from trainer.source_tree import package_folder, python_files, read_functions


def functions(tmp_path, source: str, require_docstring: bool = True):
    path = tmp_path / "code.py"
    path.write_text(source)
    return read_functions(path, require_docstring)


def test_function_is_split_after_its_docstring(tmp_path) -> None:
    source = 'def add(a, b):\n    """Add."""\n    # why\n    return a + b\n\n\nx = 1\n'
    assert functions(tmp_path, source) == [('def add(a, b):\n    """Add."""\n', "    # why\n    return a + b\n")]


def test_method_moves_to_the_margin_with_its_decorators(tmp_path) -> None:
    source = (
        "class A:\n    @property\n    async def b(\n        self,\n    ):\n"
        '        """Long\n\n        text."""\n        if self:\n            return 1\n'
    )
    [(prompt, completion)] = functions(tmp_path, source)
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
def test_stub_is_left_out(tmp_path, body: str) -> None:
    assert functions(tmp_path, f'def f():\n    """Doc."""\n    {body}\n') == []


@pytest.mark.parametrize(
    "source",
    [
        'def f():\n    """Only a docstring."""\n',
        'def f():\n    """Doc."""; return 1\n',
        "def f(): return 1\n",
    ],
)
def test_what_has_no_body_of_its_own_is_left_out(tmp_path, source: str) -> None:
    assert functions(tmp_path, source, require_docstring=False) == []


def test_function_without_docstring_only_where_wanted(tmp_path) -> None:
    source = "def f(\n    a,  # colon: no\n) -> int:\n\n    # first\n    return a\n"
    assert functions(tmp_path, source) == []
    [(prompt, completion)] = functions(tmp_path, source, require_docstring=False)
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
def test_signature_ends_where_it_ends(tmp_path, signature: str, body: str) -> None:
    assert functions(tmp_path, signature + body, require_docstring=False) == [(signature, body)]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_line_ends_do_not_matter(tmp_path, line_end: str) -> None:
    source = 'x = 1\n\n\ndef f(y):\n    """Doc."""\n    return y\n'
    path = tmp_path / "code.py"
    path.write_bytes(source.replace("\n", line_end).encode())
    assert read_functions(path, True) == [('def f(y):\n    """Doc."""\n', "    return y\n")]


def test_deeply_nested_file_is_left_out_not_a_crash(tmp_path) -> None:
    chain = "if x == 0:\n    pass\n" + "".join(f"elif x == {n}:\n    pass\n" for n in range(1, 3000))
    assert functions(tmp_path, chain) in (None, [])
    assert functions(tmp_path, "x = " + "[" * 5000 + "]" * 5000) is None


def test_inner_function_belongs_to_the_outer_one(tmp_path) -> None:
    source = 'def f():\n    """Doc."""\n    def g():\n        """Inner."""\n        return 1\n    return g\n'
    assert len(functions(tmp_path, source)) == 1


def test_function_under_if_and_try_is_found(tmp_path) -> None:
    source = (
        'if True:\n    try:\n        def f():\n            """Doc."""\n            return 1\n    except E:\n        x\n'
    )
    assert functions(tmp_path, source) == [('def f():\n    """Doc."""\n', "    return 1\n")]


def test_strings_at_the_margin_do_not_break_a_method(tmp_path) -> None:
    source = 'class A:\n    def f(self):\n        """Doc."""\n        return """\nmargin\n"""\n'
    assert functions(tmp_path, source) == []  # it cannot be moved to the margin: left out, not mangled


@pytest.mark.parametrize("content", [b"def f(:\n", b"\xff\xfe\x00", b"x = 1\0"])
def test_file_that_does_not_parse_is_reported_as_such(tmp_path, content: bytes) -> None:
    path = tmp_path / "code.py"
    path.write_bytes(content)
    assert read_functions(path, True) is None


def test_hidden_and_vendored_folders_are_left_out(tmp_path) -> None:
    for name in ("a.py", ".venv/b.py", "node_modules/c.py", "pkg/d.py", "build/e.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x = 1\n")
    assert [path.name for path in python_files(tmp_path)] == ["a.py", "d.py"]


@pytest.mark.parametrize("name", ["no_such_package", "math", "os.path", "..", ""])
def test_package_without_source_is_refused_by_name(name: str) -> None:
    with pytest.raises(InputError, match="Expected package:NAME"):
        package_folder(name)
