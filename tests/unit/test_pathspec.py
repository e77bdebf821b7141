"""Pathspecs: the same files as `git ls-files` gives."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contract.errors import InputError
from trainer.data.pathspec import Selection, parse

PATHS = sorted(
    [
        "a",
        "b",
        "a.py",
        "B.py",
        "A/a.py",
        "src/a.py",
        "src/a/b.py",
        "src/a/b/x",
        "x",
        "src/x",
        "ab/x",
        "aab",
        "é.py",
        "*.py",
        "[a]",
        "a-b",
        "a\\b",
        "src*",
        "a b/c d.go",
        "tests/a.py",
        "src/tests/b.py",
        "aa/b/aa/b",
        "bb/a/b/x",
        "-",
        "]",
        "a]b",
        "a^",
        "!a",
        ":a",
        "a:",
        "1",
        "Z",
        "_x/y",
        "a,b",
    ]
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("specs")
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    for path in PATHS:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("")
    subprocess.run(["git", "-C", str(root), "add", "."], check=True)
    return root


def by_git(root: Path, specs: list[str]) -> list[str] | None:
    """What git lists; None where it refuses a pathspec."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--", *specs]
    found = subprocess.run(command, capture_output=True, check=False)
    return sorted(name for name in found.stdout.decode().split("\0") if name) if found.returncode == 0 else None


def by_us(include: list[str], exclude: list[str]) -> list[str] | None:
    try:
        selection = Selection.of(include, exclude)
    except InputError:
        return None
    return [path for path in PATHS if not selection.leaves_out(path)]


# One pathspec a word, one set of them a line.
TABLE = r"""
.
src
src/
src/**
*.py
src/*.py
:(glob)*.py
:(glob)**/x
:(glob)src/*
:(glob)src/**
:(glob)**/b/**
:(glob)a**/x
:(glob)src/**/x
:(glob)**
:(glob)***/x
:(glob)a/**/
:(glob)*[/]*
:(glob)s?c/x
:(glob)s?c?x
:(,glob,)*.py
:!tests
:^src :!*.py
src :!src/tests
:(exclude)src
:!/.
:/src
:/!src
:/./src
:(top,icase)b.PY
:(icase)SRC
:(icase)[A-B].py
:(icase)[A].py
:(icase)[[:upper:]]
:(literal)*.py
:(literal)[a]
[a]
[!a]
[^a]*
[a-c]*
[a-]
[]]
[[:upper:]]
[[:digit:]]
[[:nothing:]]
[[:a]
[a
?.py
??.py
a\b
a\\b
\*.py
a\
*\*
./src//a.py
src/../a
src/a.py/
nothing
:
:()a
:::a
:a
s?c/x
s?c?x
a*b
a-b
*b/*
.. a
/a
:_x
:#a
:(glob
:(nothing)a
:(glob,literal)a
"""


@pytest.mark.parametrize("specs", [line.split() for line in TABLE.strip().split("\n")], ids=" ".join)
def test_as_git_has_it(repository: Path, specs: list[str]) -> None:
    assert by_us(specs, []) == by_git(repository, specs)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text("ab/x*?[]!^-.\\A:spy", min_size=1, max_size=7), min_size=1, max_size=2), st.data())
def test_as_git_has_it_over_a_small_alphabet(repository: Path, bodies: list[str], data: st.DataObject) -> None:
    magic = st.sampled_from(["", "", ":(glob)", ":(icase)", ":(glob,icase)", ":(literal)", ":!", ":(exclude,glob)"])
    specs = [data.draw(magic) + body for body in bodies]
    assert by_us(specs, []) == by_git(repository, specs), specs


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (5, None, "data.include is 5. Expected a git pathspec"),
        ([""], None, "data.include is ['']"),
        (None, [":!a"], "data.exclude has ':!a', which excludes already"),
        (":(attr:x)a", None, "unknown magic 'attr:x'. Expected :(…) with top, icase, literal, glob, exclude"),
        (":(glob", None, "no ')'"),
        ("../a", None, "leads out of the source"),
    ],
)
def test_what_is_no_pathspec_is_refused(include, exclude, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        Selection.of(include, exclude)
    assert expected in caught.value.message


def test_excluding_is_what_git_excludes(repository: Path) -> None:
    assert by_us(["src"], ["*.py"]) == by_git(repository, ["src", ":!*.py"]) == ["src/a/b/x", "src/x"]


def test_a_selection_of_nothing_names_what_matched_nothing() -> None:
    selection = Selection.of(["lib", "*.go"], "b")
    assert [selection.leaves_out(path) for path in ("a.py", "b/c.go")] == [True, True]
    with pytest.raises(InputError, match=r"data\.include has 'lib', which matches none of the 2 files"):
        selection.check()
    everything = Selection.of(None, "*")
    assert everything.leaves_out("a.py")
    with pytest.raises(InputError, match=r"data\.exclude has '\*', which leaves none of the 1 files"):
        everything.check()
    Selection.of("lib").check()  # rows alone: there was nothing to match


def test_a_name_that_is_no_utf_8_is_matched_too() -> None:
    assert parse("*.py", "data.include").matches("caf\udce9.py")
