"""The prompts that examples of code get: what they show, and what they must not."""

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from code_model import fim
from contract.errors import InputError
from tests.support.data import load_from, write_tree

ALL = {"function_weight": 1.0, "fim_weight": 2.0, "next_block_weight": 1.0}


def git(folder: Path, *arguments: str, when: int = 0) -> None:
    date = {"GIT_AUTHOR_DATE": f"{when} +0000", "GIT_COMMITTER_DATE": f"{when} +0000"} if when else {}
    who = ("-c", "user.name=Ada", "-c", "user.email=ada@localhost")
    subprocess.run(
        ["git", *who, *arguments], cwd=folder, check=True, capture_output=True, env={"PATH": "/usr/bin:/bin", **date}
    )


def test_every_prompt_of_code_has_its_path_and_its_imports(tmp_path: Path) -> None:
    write_tree(tmp_path)
    for path in tmp_path.glob("*.py"):
        path.write_text("import alpha\nimport os\n\n\n" + path.read_text())
    found = load_from(tmp_path, max_length=300, **ALL)
    for item in [*found.train, *found.held_out]:
        shown = fim.read(item.prompt)
        assert shown.path == item.group
        assert "import " in shown.prefix
        assert (shown.suffix is not None) == (item.kind == "fim")
        assert item.completion in (item.function or "")
    shares = found.report.splits["train"]["shares"]
    assert (shares["prompts with a path"], shares["prompts with imports"]) == (1.0, 1.0)
    assert shares["of the window filled"] > 0.8
    assert found.report.source_as_targets is not None
    assert 0.1 < found.report.source_as_targets <= 1


def test_a_small_file_is_shown_with_what_it_imports(tmp_path: Path) -> None:
    write_tree(tmp_path)
    (tmp_path / "zoo.py").write_text('import animals\n\n\ndef feed(n):\n    """Feed."""\n    return animals.LION * n\n')
    (tmp_path / "animals.py").write_text("LION = 3\nTIGER = 4\nBEAR = LION + TIGER\nfeed_all = [LION, TIGER]\n")
    found = load_from(tmp_path, max_length=2000)
    [item] = [item for item in [*found.train, *found.held_out] if item.group == "zoo.py"]
    others = fim.read(item.prompt).others
    assert others[0].path == "animals.py"
    assert "LION = 3" in others[0].text


def test_no_prompt_to_train_on_shows_what_is_judged_by(tmp_path: Path) -> None:
    write_tree(tmp_path, files=5)
    found = load_from(tmp_path, max_length=3000, **ALL)
    judged = {item.group for item in found.held_out}
    shown = {file.path for item in found.train for file in fim.read(item.prompt).others}
    assert shown  # of small files there is room for others
    assert not shown & judged


def test_code_in_another_script_is_not_too_long(tmp_path: Path) -> None:
    """Lengths are in tokens: once they were in characters, and 228 of 240 functions with Chinese comments were lost."""
    write_tree(tmp_path)
    for path in tmp_path.glob("*.py"):
        path.write_text(
            path.read_text().replace('    """', '    """一个说明文字，写得很长很长，用来解释这个函数做什么。')
        )
    found = load_from(tmp_path, max_length=400)
    assert found.report.counts()["train"] + found.report.counts()["held out"] > 8


def test_tests_have_their_share_and_no_more(tmp_path: Path) -> None:
    write_tree(tmp_path, files=3, functions=4)
    tests = tmp_path / "tests"
    tests.mkdir()
    write_tree(tmp_path / "tests", files=8, functions=4)
    for path in sorted(tests.glob("*.py")):
        path.rename(path.with_name(f"test_{path.name}"))
    free = load_from(tmp_path, near_duplicate_threshold=1, max_test_share=1, **ALL)
    assert free.report.splits["train"]["shares"]["from tests"] > 0.5
    capped = load_from(tmp_path, near_duplicate_threshold=1, max_test_share=0.25, **ALL)
    assert capped.report.splits["train"]["shares"]["from tests"] <= 0.25
    assert capped.report.examples["left out: data.max_test_share"] > 0
    both = {item.group.startswith("tests/") for item in capped.held_out}
    assert both == {True, False}  # held out in their shares


@pytest.mark.parametrize("most", [0.1, 0.05])
def test_one_file_has_its_share_and_no_more(most: float) -> None:
    """Also once the kinds stand as their weights, which leaves fewer in all."""
    found = load_from("package:email", max_file_share=most, **ALL)
    groups = Counter(item.group for item in found.train)
    assert found.report.examples["left out: data.max_file_share"] > 0
    assert max(groups.values()) <= max(6, most * len(found.train))


def test_of_one_file_so_many_are_judged_by(tmp_path: Path) -> None:
    write_tree(tmp_path, functions=8)
    found = load_from(tmp_path, near_duplicate_threshold=1, max_eval_examples_per_file=3, **ALL)
    groups = [item.group for item in found.held_out]
    assert max(groups.count(group) for group in groups) == 3


def test_the_newest_files_are_held_out(tmp_path: Path) -> None:
    write_tree(tmp_path)
    git(tmp_path, "init", "--quiet")
    for day, path in enumerate(sorted(tmp_path.glob("*.py")), 1):
        git(tmp_path, "add", path.name)
        git(tmp_path, "commit", "--quiet", "-m", path.name, when=1_700_000_000 + day * 86_400)
    git(tmp_path, "checkout", "--quiet", "-b", "work")
    (tmp_path / "beta.py").write_text((tmp_path / "beta.py").read_text() + "\n\nCHANGED = 1\n")
    git(tmp_path, "commit", "--quiet", "-am", "beta", when=1_710_000_000)
    held_out = {item.group for item in load_from(tmp_path, split="newest", **ALL).held_out}
    assert "beta.py" in held_out
    assert held_out <= {"beta.py", "zeta.py", "theta.py"}  # changed last, and the last by name
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"content": (tmp_path / "alpha.py").read_text(), "path": "a.py"}) + "\n")
    with pytest.raises(InputError, match=r"data\.split is newest, and data\.source is .* no git history"):
        load_from(rows, split="newest", **ALL)


def test_no_example_is_there_twice(tmp_path: Path) -> None:
    """Two places of one file may want the same text behind the same prompt; the gate refuses such a table."""
    write_tree(tmp_path, functions=8)
    for file in tmp_path.glob("*.py"):
        file.write_text(file.read_text() + "\n\nLIMIT = 30\nNAMES = [LIMIT]\n")
    found = load_from(tmp_path, near_duplicate_threshold=1, max_length=500, **ALL)
    numbers = [item.number for item in [*found.train, *found.held_out]]
    assert len(numbers) == len(set(numbers))


def test_no_prompt_shows_a_copy_of_another_file(tmp_path: Path) -> None:
    """A copy may be of what is judged by, or of the file that is completed."""
    write_tree(tmp_path, files=6)
    for path in list(tmp_path.glob("*.py")):
        (tmp_path / f"copy_of_{path.name}").write_text(path.read_text())
    found = load_from(tmp_path, max_length=3000, **ALL)
    dropped = set(found.report.file_names["dropped: exact duplicate"])
    assert len(dropped) == 6
    shown = {file.path for item in [*found.train, *found.held_out] for file in fim.read(item.prompt).others}
    assert shown
    assert not shown & dropped
