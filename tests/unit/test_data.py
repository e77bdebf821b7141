"""The data set: formats, duplicates, split, digest, and the errors that name the place."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from contract.errors import InputError
from contract.files import try_lock
from tests.support.data import load_from, write_jsonl, write_tree
from trainer.data.example import Example, ExampleFile, digest, from_line, to_line
from trainer.data.prepare import OUTPUTS
from trainer.data.split import choose, groups_to_hold_out


@pytest.mark.parametrize("source", ["nowhere", "nowhere.jsonl"])
def test_missing_source_is_named(tmp_path, source: str) -> None:
    with pytest.raises(InputError, match=r"data\.source is '.*nowhere.*', which does not exist"):
        load_from(tmp_path / source)


def test_empty_tree_is_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="no example was found"):
        load_from(tmp_path)


def test_one_file_cannot_be_split(tmp_path) -> None:
    write_tree(tmp_path, files=1)
    with pytest.raises(InputError, match=r"gives 3 examples to train on and 0 to hold out.*data\.eval_source"):
        load_from(tmp_path)


def test_no_file_is_on_both_sides(tmp_path) -> None:
    write_tree(tmp_path, files=5)
    found = load_from(tmp_path, eval_fraction=0.3)
    assert {item.language for item in [*found.train, *found.held_out]} == {"python"}
    assert {item.group for item in found.train}.isdisjoint(item.group for item in found.held_out)
    assert found.report.counts()["train"] == len(found.train) == 15 - len(found.held_out)


def test_exact_and_near_duplicates_are_removed_across_files(tmp_path) -> None:
    write_tree(tmp_path)
    copy = (tmp_path / "alpha.py").read_text()
    (tmp_path / "copy.py").write_text(copy)  # exact
    (tmp_path / "layout.py").write_text(copy.replace("return ", "return  "))  # the same tokens
    long_body = "".join(f"    step_{number} = compute(step, {number})\n" for number in range(40))
    near = 'def long():\n    """Long."""\n' + long_body
    (tmp_path / "near_a.py").write_text(near + "    return 1\n")
    (tmp_path / "near_b.py").write_text(near + "    return 2\n")
    (tmp_path / "moved.py").write_text("import os\n\n" + "\n".join(f"X{n} = {n}" for n in range(200)) + "\n" + copy)
    report = load_from(tmp_path).report
    assert report.files["dropped: exact duplicate"] == 2  # copy and layout
    assert report.files["dropped: near duplicate"] == 1  # near_b
    assert report.examples["dropped: in a file that is a duplicate"] == 7
    assert report.examples["dropped: exact duplicate"] == 3  # those of moved.py, a file that is like no other


def test_near_duplicates_of_one_file_are_never_on_both_sides(tmp_path) -> None:
    """A fork of each file with one function changed: what is left of it may not face its original."""
    write_tree(tmp_path, functions=8)
    for path in sorted(tmp_path.glob("*.py")):
        text = path.read_text().rpartition("def ")[0]
        (tmp_path / f"fork_of_{path.name}").write_text(text + 'def new():\n    """New."""\n    return compute(1, 2)\n')
    found = load_from(tmp_path, eval_fraction=0.5, near_duplicate_threshold=0.7)
    names = {item.group.removeprefix("fork_of_") for item in found.train}
    assert names.isdisjoint(item.group.removeprefix("fork_of_") for item in found.held_out)
    assert found.report.files["dropped: near duplicate"] == 8


def test_too_long_examples_are_left_out_and_counted(tmp_path) -> None:
    rows = [{"prompt": f"prompt {n}", "completion": f"{n * 17} " * n} for n in range(1, 25)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    counts = load_from(tmp_path / "rows.jsonl", max_length=50, near_duplicate_threshold=1).report.counts()
    assert counts["dropped: too long"] > 0
    assert counts["dropped: too long"] + counts["train"] + counts["held out"] == 24


def test_prompts_are_cut_to_the_window_and_a_long_function_is_asked_for_in_parts(tmp_path) -> None:
    write_tree(tmp_path)
    long = "".join(f"    total_{n} = alpha_{n} + beta[{n}] * {n * 7}\n" for n in range(40))
    (tmp_path / "long.py").write_text(f'import beta\n\n\ndef long():\n    """Long."""\n{long}    return total_1\n')
    found = load_from(tmp_path, max_length=400, function_weight=1.0, fim_weight=1.0, next_block_weight=1.0)
    every = [*found.train, *found.held_out]
    assert max(len(item.prompt + item.completion) for item in every) < 400
    kinds = {item.kind for item in every if item.group == "long.py"}
    assert kinds
    assert "function" not in kinds


def test_digest_is_the_same_wherever_the_tree_lies_and_in_whatever_order(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "c").mkdir(parents=True)
    write_tree(tmp_path / "a")
    write_tree(tmp_path / "b" / "c")
    first, second = load_from(tmp_path / "a"), load_from(tmp_path / "b" / "c")
    assert (first.train_digest, first.held_out_digest) == (second.train_digest, second.held_out_digest)
    numbers = [item.number for item in first.train]
    assert first.train_digest == digest(numbers) == digest(numbers[::-1]) != first.held_out_digest


def test_digest_is_stable_across_releases() -> None:
    """A literal: a change of the digest would make every earlier evaluation incomparable."""
    assert digest([Example("a", "b", "x").number, Example("c", "d").number]) == "6841c51aa40cc10b83e868ee405b6683"


def groups(names: list[str]) -> np.ndarray:
    """Their hashes, as the preparation has them."""
    return np.array([Example(name, "").number for name in names], dtype=np.uint64)


def files(*sizes: int, prefix: str = "file") -> np.ndarray:
    """The groups of the examples of so many files, each with so many examples."""
    return groups([f"{prefix}{number}" for number, size in enumerate(sizes) for _ in range(size)])


def held_out_sizes(all_groups: np.ndarray, share: float = 0.15, most: float = 256, at_least: int = 10) -> list[int]:
    held_out = groups_to_hold_out(all_groups, share, most, at_least)
    return sorted(int((all_groups == group).sum()) for group in held_out)


@pytest.mark.parametrize(
    ("there", "wanted"),
    [(1, 0), (2, 1), (5, 1), (8, 2), (11, 3), (12, 6), (18, 6), (20, 6), (24, 8), (30, 10), (100, 15)],
)
def test_as_many_files_are_held_out_as_the_gate_wants_and_training_can_spare(there: int, wanted: int) -> None:
    assert len(held_out_sizes(files(*[10] * there))) == wanted


def test_large_code_bases_hold_out_some_of_many_files() -> None:
    sizes = held_out_sizes(files(*[number % 40 + 1 for number in range(600)]))
    assert 25 <= len(sizes) <= 50
    assert 256 <= sum(sizes) <= 1.25 * 256


def test_held_out_files_are_no_larger_than_it_takes() -> None:
    """As in Python's `email`: three of the files hold half of the examples."""
    email = files(*[1] * 4, 3, *[4] * 4, 5, 6, 7, 9, 10, 12, 15, 15, 16, 17, 19, 23, 23, 23, 51, 64, 120)
    sizes = held_out_sizes(email)
    assert len(sizes) == 8
    assert 0.12 * len(email) < sum(sizes) < 0.19 * len(email)
    assert max(sizes) <= 23


def test_rows_without_a_group_are_groups_of_one() -> None:
    assert held_out_sizes(files(*[1] * 1000)) == [1] * 150
    assert held_out_sizes(files(*[1] * 60)) == [1] * 20  # as many as the gate wants
    assert held_out_sizes(files(*[1] * 6)) == [1] * 2
    assert held_out_sizes(files(*[1] * 100), 0.5, 10) == [1] * 10


def test_held_out_files_change_little_while_the_code_grows() -> None:
    sizes = [(7 * number) % 19 + 1 for number in range(60)]
    small, grown = files(*sizes), files(*sizes, *sizes[:6])
    before, after = (set(groups_to_hold_out(each, 0.15, 256, 10)) for each in (small, grown))
    assert len(before) >= 10
    assert len(before & after) >= len(before) - 2


def test_one_large_file_is_not_held_out() -> None:
    large = groups(["large"] * 90)
    held_out = groups_to_hold_out(np.append(large, files(*[1] * 10)), 0.1, 256, 10)
    assert len(held_out) == 3
    assert large[0] not in held_out


def test_of_large_files_the_smallest_is_held_out() -> None:
    assert held_out_sizes(files(50, 40), 0.03) == [40]


def test_of_each_held_out_file_some_examples_are_kept() -> None:
    of, numbers = files(50, 3, 20), np.arange(73, dtype=np.uint64)
    kept = choose(numbers, 12, of)
    counts = sorted(int(kept[of == group].sum()) for group in np.unique(of))
    assert counts == [3, 4, 5]
    longer = choose(numbers, 13, of)
    assert (longer & kept).sum() == 12  # those, and one more
    assert choose(numbers, 100, of).all()
    assert list(np.flatnonzero(choose(numbers, 2))) == [0, 1]


def test_eval_source_is_kept_out_of_training(tmp_path) -> None:
    rows = [{"prompt": f"p{n}", "completion": f"c{n} {n * 7}"} for n in range(10)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "eval.jsonl", rows[:3])
    found = load_from(tmp_path / "train.jsonl", eval_source=str(tmp_path / "eval.jsonl"))
    assert (len(found.train), len(found.held_out)) == (7, 3)
    assert {item.language for item in found.train} == {"text"}


def test_a_training_row_like_a_held_out_one_is_dropped(tmp_path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a  b c"}, {"text": "something else"}])
    write_jsonl(tmp_path / "eval.jsonl", [{"prompt": "a", "completion": " b c"}, {"prompt": "a", "completion": " b c"}])
    found = load_from(tmp_path / "train.jsonl", eval_source=str(tmp_path / "eval.jsonl"))
    assert [item.completion for item in found.train] == ["something else"]
    assert len(found.held_out) == 1


@pytest.mark.parametrize(
    ("text", "prompt", "completion"),
    [
        ("one\ntwo\nthree\n", "one\n", "two\nthree\n"),
        ("x = 1", "x ", "= 1"),
        ("abcd", "ab", "cd"),
        ("a", "", "a"),
    ],
)
def test_held_out_text_is_continued_from_its_middle(tmp_path, text: str, prompt: str, completion: str) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": "learned whole\nlines and all"}])
    write_jsonl(tmp_path / "eval.jsonl", [{"text": text}])
    found = load_from(tmp_path / "train.jsonl", eval_source=str(tmp_path / "eval.jsonl"))
    assert (found.held_out[0].prompt, found.held_out[0].completion) == (prompt, completion)
    assert found.train[0].prompt == ""


def test_no_more_is_held_out_than_is_used(tmp_path) -> None:
    rows = [{"prompt": f"prompt {n}", "completion": f"{n * 17} and {n * 31} make {n * 48}"} for n in range(100)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    found = load_from(tmp_path / "rows.jsonl", eval_fraction=0.5, max_eval_examples=10, near_duplicate_threshold=1)
    assert (len(found.train), len(found.held_out)) == (90, 10)


def test_prepared_files_are_read_as_they_were_written(tmp_path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "again").mkdir()
    write_tree(tmp_path / "src")
    weights = {"function_weight": 1.0, "fim_weight": 1.0, "next_block_weight": 1.0}
    first = load_from(tmp_path / "src", folder=tmp_path / "out", **weights)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(OUTPUTS)
    assert {item.kind for item in first.train} == {"function", "fim", "next_block"}
    again = load_from(
        tmp_path / "out" / "train.jsonl",
        folder=tmp_path / "again",
        eval_source=str(tmp_path / "out" / "held_out.jsonl"),
    )
    assert list(again.train) == list(first.train)
    assert (again.train_digest, again.held_out_digest) == (first.train_digest, first.held_out_digest)
    assert again.train_lengths.tolist() == [len(item.prompt + item.completion) for item in first.train]


def test_each_example_says_which_file_of_which_source_it_is_from(tmp_path) -> None:
    for name in ("one", "two", "out", "again"):
        (tmp_path / name).mkdir()
    write_tree(tmp_path / "one", files=2)
    (tmp_path / "two" / "go.py").write_text('def go(a):\n    """Go."""\n    return [a, a + 1, "go", a * 3]\n')
    rows = [
        {"prompt": "q", "completion": "an answer of some words"},
        {"prompt": "p", "completion": "other words, and more of them", "group": "a talk", "repository": "talks"},
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    sources = [tmp_path / "one", tmp_path / "two", tmp_path / "rows.jsonl"]
    found = load_from(sources, folder=tmp_path / "out")
    everything = [*found.train, *found.held_out]
    from_where = {item.group: item.repository for item in everything}
    assert {name: from_where[name] for name in ("alpha.py", "beta.py", "go.py", "a talk")} == {
        **{name: str(tmp_path / "one") for name in ("alpha.py", "beta.py")},
        "go.py": str(tmp_path / "two"),
        "a talk": "talks",
    }
    assert [item.repository for item in everything if item.prompt == "q"] == [str(tmp_path / "rows.jsonl")]
    again = load_from(
        tmp_path / "out" / "train.jsonl",
        folder=tmp_path / "again",
        eval_source=str(tmp_path / "out" / "held_out.jsonl"),
    )
    assert {item.group: item.repository for item in [*again.train, *again.held_out]} == from_where


def test_a_repository_is_called_the_same_at_each_commit(repository) -> None:
    for revision in ("", "@v1"):
        found = load_from(f"git:{repository}{revision}")
        assert {item.repository for item in found.train} == {f"git:{repository}"}


def test_examples_in_a_file_are_a_sequence(tmp_path) -> None:
    examples = [Example(f"p{n}é", "c\n", "g", "fim", "go", "assert" if n else None) for n in range(3)]
    stored = ExampleFile(tmp_path / "x.jsonl")
    with stored.path.open("wb") as file:
        for example in examples:
            stored.append_to(file, example)
    assert list(stored) == examples
    assert (stored[-1], stored[1:], len(stored)) == (examples[2], examples[1:], 3)
    assert from_line(to_line(examples[1])) == examples[1]


def test_failure_leaves_an_earlier_result_alone(tmp_path) -> None:
    (tmp_path / "train.jsonl").write_text("mine")
    with pytest.raises(InputError):
        load_from(tmp_path / "nowhere", folder=tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("train.jsonl", "mine")]


def test_kinds_stand_as_their_weights(tmp_path) -> None:
    write_tree(tmp_path, functions=8)
    weights = {"function_weight": 2.0, "fim_weight": 1.0, "next_block_weight": 1.0, "near_duplicate_threshold": 1}
    kinds = load_from(tmp_path, **weights).report.splits["train"]["kinds"]
    assert 0.3 < kinds["function"] / sum(kinds.values()) < 0.7  # drawn by chance, of 50 or so
    exact = load_from(tmp_path, exact_weights=True, **weights).report.splits["train"]["kinds"]
    assert exact["function"] == pytest.approx(2 * exact["fim"], abs=2)
    assert exact["fim"] == pytest.approx(exact["next_block"], abs=1)


def test_several_sources_and_a_file_that_both_have(tmp_path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    write_tree(tmp_path / "one")
    write_tree(tmp_path / "two", files=2)
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "q", "completion": "an answer of some words"}])
    report = load_from([tmp_path / "one", tmp_path / "two", tmp_path / "rows.jsonl"]).report
    assert [(Path(item["name"]).name, item["read"]) for item in report.sources] == [
        ("one", 8),
        ("two", 2),
        ("rows.jsonl", 1),
    ]
    assert report.files["dropped: exact duplicate"] == 2
    assert sum(split["languages"].get("text", 0) for split in report.splits.values()) == 1


def test_generated_and_vendored_files_are_left_out_and_said_so(tmp_path) -> None:
    write_tree(tmp_path, files=3)
    code = (tmp_path / "alpha.py").read_text().replace("alpha", "omega")
    files = {
        "vendor/a.py": code,
        "x_pb2.py": code,
        "b.py": "# Code generated by protoc. DO NOT EDIT.\n" + code,
        "min.py": "x = '" + "y" * 2000 + "'\n" + code,
        ".hidden/c.py": code,
        "latin.py": "# caf\xe9\n" + code,
        "broken.py": "def f(:\n",
        "nul.py": "x = 1\0",
        "large.py": "x = 1\n" * 200_000,
        "node_modules/d.js": "function f() {\n  return 1;\n}\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text.encode("latin-1"))
    report = load_from(tmp_path).report
    assert dict(report.files) == {
        "dropped: vendored": 2,
        "dropped: generated": 2,
        "dropped: minified or data": 1,
        "dropped: no text": 2,
        "dropped: more than 1 MB": 1,
        "dropped: does not parse": 1,
        "read": 3,
    }
    assert report.file_names["dropped: generated"] == ["b.py", "x_pb2.py"]
    assert "vendor/a.py" in report.to_markdown()


def test_secrets_are_redacted_in_code_and_rows_and_named_without_their_value(tmp_path) -> None:
    write_tree(tmp_path, files=2)
    key = "AKIA" + "QWERTYUIOPASDFGH"
    (tmp_path / "s.py").write_text(f'def f():\n    """F."""\n    key = "{key}"\n    return client(key, 1)\n')
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": f"aws_key = '{key}'", "completion": f"use('{key}')"}])
    found = load_from([tmp_path, tmp_path / "rows.jsonl"])
    everything = [*found.train, *found.held_out]
    assert not any(key in item.prompt + item.completion for item in everything)
    assert any('key = "REDACTED"' in item.completion for item in everything)
    assert found.report.secrets["AWS Access Key"] == 3
    assert "s.py:3 AWS Access Key" in found.report.secret_places
    assert key not in found.report.to_markdown()
    kept = load_from(tmp_path, redact_secrets=False)
    assert any(key in item.completion for item in [*kept.train, *kept.held_out])


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path) -> Path:
    """Two commits, a tag on the first, an ignored file, one that .gitattributes calls generated."""
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "--quiet")
    write_tree(root, files=3)
    (root / ".gitignore").write_text("ignored.py\n")
    (root / ".gitattributes").write_text("gamma.py linguist-generated\n")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "one")
    git(root, "tag", "v1")
    write_tree(root, files=5)
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "two")
    write_tree(root, files=6)
    (root / "ignored.py").write_text((root / "zeta.py").read_text().replace("zeta", "omega"))
    return root


def test_work_tree_gives_what_git_does_not_ignore(repository) -> None:
    found = load_from(repository)
    groups = {item.group for item in [*found.train, *found.held_out]}
    assert groups == {"alpha.py", "beta.py", "delta.py", "epsilon.py", "zeta.py"}
    assert found.report.file_names["dropped: generated"] == ["gamma.py"]


def test_folder_of_a_repository_at_a_commit_runs_nothing_of_the_repository(repository, tmp_path) -> None:
    inner = repository / "inner"
    inner.mkdir()
    write_tree(inner, files=3)
    (repository / ".gitattributes").write_text("inner/beta.py linguist-generated\n")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "-m", "three")
    for hook in ("post-index-change", "fsmonitor"):
        path = repository / ".git" / "hooks" / hook
        path.write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
        path.chmod(0o755)
    git(repository, "config", "core.fsmonitor", str(repository / ".git" / "hooks" / "fsmonitor"))
    for source in (f"git:{inner}", str(inner)):
        found = load_from(source)
        assert {item.group for item in [*found.train, *found.held_out]} == {"alpha.py", "gamma.py"}
        assert found.report.file_names["dropped: generated"] == ["beta.py"]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("bare", [False, True])
def test_repository_at_a_commit(repository, tmp_path, bare: bool) -> None:
    root = repository
    if bare:
        root = tmp_path / "bare.git"
        git(tmp_path, "clone", "--quiet", "--bare", str(repository), str(root))
    found = load_from(f"git:{root}@v1")
    assert {item.group for item in [*found.train, *found.held_out]} == {"alpha.py", "beta.py"}
    assert found.report.file_names["dropped: generated"] == ["gamma.py"]
    assert found.commits == [git(repository, "rev-parse", "v1")]
    head = load_from(f"git:{root}")
    assert {item.group for item in [*head.train, *head.held_out]} == {"alpha.py", "beta.py", "delta.py", "epsilon.py"}
    with pytest.raises(InputError, match="has no commit 'v7'"):
        load_from(f"git:{root}@v7")
    with pytest.raises(InputError, match="there is no git repository"):
        load_from(f"git:{tmp_path / 'nowhere'}")


def test_hub_data_set_is_streamed(tmp_path, monkeypatch) -> None:
    """The Hub cannot be reached here; `datasets` reads a folder of that name in the same way."""
    (tmp_path / "org" / "name").mkdir(parents=True)
    rows = [{"content": f'def f{n}(a):\n    """F {n}."""\n    return a + {n}\n', "path": f"f{n}.py"} for n in range(9)]
    write_jsonl(tmp_path / "org" / "name" / "train.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    found = load_from("hub:org/name", near_duplicate_threshold=1)
    assert {item.kind for item in found.train} == {"function"}
    assert len(found.train) + len(found.held_out) == 9
    with pytest.raises(InputError, match=r"hub:org/name:nosplit', which does not load"):
        load_from("hub:org/name:nosplit")
    with pytest.raises(InputError, match="Expected hub:ORG/NAME"):
        load_from("hub:not a name")


@pytest.mark.parametrize(
    ("source", "expected"),
    [("benchmark:nothing", "Expected one of humaneval"), ("package:math", "Expected package:NAME"), ([], "Expected a")],
)
def test_unknown_source_is_refused(source, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        load_from(source)


def test_benchmark_is_a_data_set_with_tests() -> None:
    found = load_from([], eval_source="benchmark:humaneval", max_eval_examples=200)
    assert (len(found.held_out), len(found.train)) == (164, 0)
    assert all(item.test and "check(" in item.test and item.language == "python" for item in found.held_out)


def test_row_with_a_test_needs_no_completion_to_be_judged_on(tmp_path) -> None:
    write_jsonl(tmp_path / "tests.jsonl", [{"prompt": "def f():", "test": "assert f() == 1"}])
    write_jsonl(tmp_path / "train.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "c", "test": "pass"}])
    found = load_from(tmp_path / "train.jsonl", eval_source=str(tmp_path / "tests.jsonl"))
    assert found.held_out[0].test == "assert f() == 1"
    assert len(found.train) == 1
    assert found.report.examples["dropped: a test but no completion to learn"] == 1


def test_held_out_part_of_a_function_keeps_the_function_out_of_training(tmp_path) -> None:
    """Gaps and blocks that were held out once, as rows, against the code that they are from."""
    for name in ("src", "out", "again"):
        (tmp_path / name).mkdir()
    write_tree(tmp_path / "src")
    weights = {"function_weight": 0.0, "fim_weight": 1.0, "next_block_weight": 1.0}
    first = load_from(tmp_path / "src", folder=tmp_path / "out", **weights)
    held_out = str(tmp_path / "out" / "held_out.jsonl")
    again = load_from(tmp_path / "src", folder=tmp_path / "again", eval_source=held_out, **weights)
    assert again.held_out_digest == first.held_out_digest
    assert len(again.train) > 8
    assert not {item.function for item in again.train} & {item.function for item in first.held_out}
    alone = load_from([], eval_source=held_out)
    assert alone.held_out_digest == first.held_out_digest


def test_the_report_says_what_there_is_to_judge_by_and_how_much_of_it_has_a_twin(tmp_path) -> None:
    """A gap is compared by its whole function: its own text would be like no other."""
    body = [f"    step_{n} = compute(step_{n - 1}, {n * 7})\n" for n in range(1, 40)]
    other = [line.replace("compute", "combine") if n % 2 else line for n, line in enumerate(body)]
    for name, lines in (("train", other), ("eval", body)):
        function = "def steps(step_0):\n" + "".join(lines) + "    return step_39\n"
        rows = [{"prompt": "def steps(step_0):\n" + lines[0], "completion": lines[1], "function": function}]
        for n in (1, 2, 3):
            rows.append({"prompt": f"{name} {n} = ", "completion": " ".join(f"{name}{n * k}" for k in range(9))})
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    report = load_from(tmp_path / "train.jsonl", eval_source=str(tmp_path / "eval.jsonl")).report
    assert report.counts()["train"] == 4  # no duplicate
    assert report.held_out_twins == 0.25
    line = "Held out: 4 examples of 4 groups, 25% with a near twin to train on; the promoter's default policy wants 6"
    assert line in report.to_markdown()
    assert report.to_dict()["splits"]["held out"]["groups"] == 4


def test_test_is_a_part_of_the_digest() -> None:
    one, other = (Example("p", "c", test=f"assert f() == {n}") for n in (1, 2))
    assert len({one.number, other.number, Example("p", "c").number}) == 3


def test_secret_over_the_end_of_the_prompt_drops_the_row(tmp_path) -> None:
    rows = [
        {"prompt": "aws = 'AKIAQWERTY", "completion": "UIOPASDFGH'\nrest = compute(1)\n"},
        {"prompt": "password = ", "completion": "'hunter2hunter'\nanswer = 1\n"},
        {"prompt": "a = ", "completion": "some(other, words)\n"},
    ]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    found = load_from(tmp_path / "rows.jsonl")
    completions = {item.completion for item in [*found.train, *found.held_out]}
    assert completions == {"'REDACTED'\nanswer = 1\n", "some(other, words)\n"}
    assert found.report.examples["dropped: a secret over the end of the prompt"] == 1


def test_odd_names_and_files_do_not_stop_a_preparation(tmp_path) -> None:
    write_tree(tmp_path, files=2)
    code = (tmp_path / "alpha.py").read_text().replace("alpha", "omega")
    Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.py")).write_text(code)
    Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9_pb2.py")).write_text(code)
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone.py").symlink_to("nowhere")
    report = load_from(tmp_path).report
    assert dict(report.files) == {"read": 3, "dropped: generated": 1, "dropped: a link": 1, "dropped: no file": 1}
    assert report.file_names["dropped: generated"] == ["caf\ufffd_pb2.py"]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("~nosuchuser/x", "Could not determine home"),
        ("git:~nosuchuser/x", "Could not determine home"),
        ("x" * 5000, "does not exist"),
        ("s3://", "is no name of a bucket"),
        ("s3:///key", "is no name of a bucket"),
    ],
)
def test_place_that_cannot_be_is_refused(source: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        load_from(source)
    assert expected in caught.value.message


def test_report_adds_up(tmp_path) -> None:
    write_tree(tmp_path, functions=6)
    found = load_from(tmp_path, max_train_examples=5, max_eval_examples=2)
    counts = found.report.counts()
    left_out = sum(count for name, count in counts.items() if name.startswith(("dropped:", "left out:")))
    assert counts["read"] == left_out + counts["train"] + counts["held out"] == 48


def test_what_is_trained_on_is_not_judged_by(tmp_path) -> None:
    write_tree(tmp_path)
    with pytest.raises(InputError, match=r"data\.source and data\.eval_source both have"):
        load_from([tmp_path, "package:email"], eval_source=str(tmp_path))


def test_duplicate_files_are_named(tmp_path) -> None:
    write_tree(tmp_path, files=4)
    (tmp_path / "again.py").write_text((tmp_path / "alpha.py").read_text())
    [name] = load_from(tmp_path).report.file_names["dropped: exact duplicate"]
    assert name in ("again.py", "alpha.py")


def test_what_a_killed_preparation_left_is_taken_away(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".work-of-one-killed").mkdir(parents=True)
    (out / ".work-of-one-killed" / "texts").write_text("much")
    (out / "mine").write_text("kept")
    (tmp_path / "src").mkdir()
    write_tree(tmp_path / "src", files=2)
    load_from(tmp_path / "src", folder=out)
    assert {path.name for path in out.iterdir()} == {"mine", *OUTPUTS}


def test_two_preparations_do_not_share_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out" / ".work-of-the-other").mkdir(parents=True)
    other = os.open(tmp_path / "out", os.O_RDONLY)
    assert try_lock(other)
    (tmp_path / "src").mkdir()
    write_tree(tmp_path / "src", files=2)
    with pytest.raises(InputError, match="Another process is preparing data in"):
        load_from(tmp_path / "src", folder=tmp_path / "out")
    os.close(other)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".work-of-the-other"]


def test_a_reports_tables_keep_their_form_whatever_a_file_is_called(tmp_path: Path) -> None:
    write_tree(tmp_path, files=2)
    (tmp_path / "a|b`c d.min.js").write_text("let a = 1\n")
    rows = [line for line in load_from(tmp_path).report.to_markdown().splitlines() if "c d" in line]
    assert [row.replace("\\|", "").count("|") for row in rows] == [4]
