"""How far code has moved since a commit, and judging by what is newer."""

from pathlib import Path

import pytest

from contract.errors import InputError
from contract.monitoring import LEAST_CODE, LONGEST_CODE, code_before
from tests.support.data import load_from, write_tree
from tests.support.git import git
from trainer.data.changes import changes, in_words, is_new, lines_at
from trainer.data.pathspec import Selection
from trainer.data.sources import folders, open_source

ALL = Selection.of(None, None)
NEW = (
    'def added(values):\n    """Of values that are new."""\n    found = [value.strip() for value in values if value]\n'
    "    return dict(enumerate(found, start=11))\n"
)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits: the second renames a file, deletes one, adds one, and adds a function to a fourth."""
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "--quiet", "--initial-branch", "main")
    write_tree(root)
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "one", when=1000)
    git(root, "tag", "then")
    git(root, "mv", "alpha.py", "omega.py")
    git(root, "rm", "--quiet", "beta.py")
    with (root / "gamma.py").open("a") as file:
        file.write(NEW)
    (root / "new.py").write_text("def one(first):\n    return first - 11\n")
    (root / "new.go").write_text("package a\n\nfunc Two() int {\n\treturn 2\n}\n")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "two", when=2000)
    return root


@pytest.mark.parametrize("name", ["{}", "git:{}", "git:{}@main"])
def test_functions_files_and_languages_are_counted(repository: Path, name: str) -> None:
    found = changes(name.format(repository), "then", "data.source", ALL)
    assert (found.functions_then, found.functions, found.new_functions) == (24, 24, 3)  # three gone with their file
    assert (found.files_then, found.files, found.added, found.deleted) == (8, 9, 2, 1)
    assert (found.changed, found.renamed) == (1, 1)
    assert found.characters["go"][0] == 0 < found.characters["go"][1]
    assert {path: (new, of) for path, new, of in found.most}["gamma.py"] == (1, 4)
    assert found.changed_at == dict.fromkeys(("gamma.py", "new.py", "new.go", "omega.py"), 2000)
    assert "3 of 24 functions are new or changed (12%)" in in_words(found)


def test_what_is_not_committed_counts_in_a_folder(repository: Path) -> None:
    (repository / "more.py").write_text("def more():\n    return 'not committed'\n")
    assert changes(str(repository), "then", "data.source", ALL).new_functions == 4
    assert changes(f"git:{repository}", "then", "data.source", ALL).new_functions == 3


def test_a_function_that_moves_or_is_indented_is_not_new(repository: Path) -> None:
    text = (repository / "delta.py").read_text()
    inside = "".join(f"    {line}" if line.strip() else line for line in text.splitlines(keepends=True))
    (repository / "delta.py").write_text(f"class Delta:\n{inside}")
    assert changes(str(repository), "HEAD", "data.source", ALL).new_functions == 0


@pytest.mark.parametrize(
    ("name", "since", "message"),
    [
        ("{}/../plain", "then", "git knows nothing since 'then'"),
        ("{}/ignored", "then", "had no code at"),
        ("{}", "nowhere", "has no commit 'nowhere'"),
        ("{}", "--all", "has no commit '--all'"),
        ("{}/none", "then", "does not exist"),
    ],
)
def test_what_cannot_be_compared_is_said(repository: Path, name: str, since: str, message: str) -> None:
    for folder in (repository.parent / "plain", repository / "ignored"):
        folder.mkdir()
        write_tree(folder)
    with pytest.raises(InputError, match=message):
        changes(name.format(repository), since, "data.source", ALL)


def test_a_line_is_new_where_no_file_had_it(repository: Path) -> None:
    known = lines_at(open_source(f"git:{repository}@then", "data.source"), "then")
    text = (repository / "gamma.py").read_text()
    start = text.index("found = [")
    assert is_new(text, start + 3, start + 9, known)
    assert not is_new(text, 0, text.index(NEW) - 1, known)
    assert not is_new("x\n}\n", 0, 3, known)  # nothing that tells
    assert not is_new("password = 'REDACTED'\n", 0, 5, known)


def test_what_is_judged_by_is_newer(repository: Path) -> None:
    data = load_from(f"git:{repository}@then", eval_source=f"git:{repository}", eval_since="then", fim_weight=1.0)
    assert {example.group.rpartition("/")[2] for example in data.held_out} <= {"gamma.py", "new.py", "new.go"}
    assert any("enumerate(found" in example.completion for example in data.held_out)
    assert {example.group.rpartition("/")[2] for example in data.train} >= {
        *("alpha.py", "beta.py", "delta.py", "epsilon.py", "eta.py", "theta.py", "zeta.py")
    }  # what has not changed is no duplicate of what is judged by
    whole = load_from([], eval_source=f"git:{repository}", fim_weight=1.0)
    assert len(whole.held_out) > len(data.held_out)


def test_newer_than_what_has_no_use_alone(repository: Path) -> None:
    with pytest.raises(InputError, match=r"data\.eval_source is not set"):
        load_from(repository, eval_since="then")
    with pytest.raises(InputError, match="has no commit 'nowhere'"):
        load_from(f"git:{repository}@then", eval_source=f"git:{repository}", eval_since="nowhere")


@pytest.mark.parametrize(
    ("revision", "now"), [("", ""), ("@main", "@main"), ("@then", ""), ("@HEAD~1", ""), ("@HEAD", "@HEAD")]
)
def test_a_branch_is_followed_and_a_commit_is_not_stuck_to(repository: Path, revision: str, now: str) -> None:
    assert folders.current(f"git:{repository}{revision}") == f"git:{repository}{now}"
    assert folders.current("package:email") == "package:email"


def test_a_branch_that_is_gone_is_head_and_a_repository_that_is_gone_an_error(repository: Path) -> None:
    assert folders.current(f"git:{repository}@merged-and-deleted") == f"git:{repository}"
    with pytest.raises(InputError, match="there is no git repository"):
        folders.current("git:/nowhere@main")
    with pytest.raises(InputError, match="there is no git repository"):
        folders.current("git:/nowhere")


def test_a_bare_repository_is_named_with_git(repository: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--bare", str(repository), str(tmp_path / "bare.git"))
    assert changes(f"git:{tmp_path / 'bare.git'}", "then", "data.source", ALL).new_functions == 3
    with pytest.raises(InputError, match=r"a bare repository. Expected git:"):
        changes(str(tmp_path / "bare.git"), "then", "data.source", ALL)


def test_compared_code_is_whole_lines_of_a_bounded_length() -> None:
    assert code_before("x = 1\n") == ""
    assert len(code_before("y" * 5000)) == LONGEST_CODE
    assert code_before("a line that is cut somewhere\n" * 100).startswith("a line that is cut")
    assert len(code_before("a line that is cut somewhere\n" * 100)) > LONGEST_CODE - 30 > LEAST_CODE


def test_only_the_chosen_files_are_compared(repository: Path) -> None:
    found = changes(str(repository), "then", "data.source", Selection.of(["gamma.py", "delta.py"], None))
    assert (found.files_then, found.files, found.functions, found.new_functions) == (2, 2, 7, 1)


def test_code_that_git_did_not_track_then_is_not_newer(repository: Path) -> None:
    (repository / "ignored").mkdir()
    write_tree(repository / "ignored")
    with pytest.raises(InputError, match="had no code at"):
        load_from([], eval_source=str(repository / "ignored"), eval_since="then")
