"""The data set: formats, duplicates, split, digest, and the errors that name the place."""

import json
from collections import Counter

import pytest

from trainer import data
from trainer.config import DataConfig
from trainer.data import Example, digest, load, split_by_group
from trainer.errors import InputError


def chat_template(messages) -> str:
    return "".join(f"<{item['role']}>{item['content']}" for item in messages)


def load_from(source, max_length: int = 10_000, **config) -> data.Dataset:
    return load(
        DataConfig(source=str(source), **config),
        chat_template,
        token_count=lambda item: len(item.prompt + item.completion),
        max_length=max_length,
    )


def write_jsonl(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_tree(root, files: int = 8, functions: int = 3) -> None:
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    for number in range(files):
        text = ""
        for inner in range(functions):
            name = f"{words[number]}_{words[inner]}"
            text += (
                f'def {name}({words[inner]}, n):\n    """{name} of {words[number]}."""\n'
                f"    {name}_total = [{words[inner]} * {number} for {words[inner]} in range({inner + 3})]\n"
                f"    return {name}_total[{number}] + {words[number]}_{inner}\n\n\n"
            )
        (root / f"{words[number]}.py").write_text(text)


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"prompt": "p", "completion": "c"}, "p", "c"),
        ({"instruction": "i", "output": "o"}, "<user>i", "o"),
        ({"instruction": "i", "input": "x", "output": "o"}, "<user>i\n\nx", "o"),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
            "<user>q",
            "a",
        ),
        ({"text": "t"}, "", "t"),
    ],
)
def test_row_formats(tmp_path, row, prompt: str, completion: str) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [row])
    _, [example] = data.read(str(path), "data.source", chat_template, DataConfig(), Counter())
    assert (example.prompt, example.completion) == (prompt, completion)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is a JSON list"),
        ('{"question": "x"}', "has the keys ['question']"),
        ('{"prompt": "x"}', "'completion' is None"),
        ('{"prompt": "x", "completion": 3}', "'completion' is 3"),
        ('{"prompt": "x", "completion": " "}', "empty completion"),
        ('{"messages": [{"role": "user", "content": "q"}]}', "ends with the assistant's"),
        ('{"text": "\\ud800"}', "half a surrogate pair"),
        ('{"messages": "hello"}', "'messages' must be a list"),
        ('{"instruction": "x"}', "'output' is None"),
    ],
)
def test_bad_row_is_named_with_its_line(tmp_path, line: str, expected: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(InputError) as caught:
        load_from(path)
    assert expected in caught.value.message
    assert str(path) in caught.value.message


def test_binary_file_is_refused(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="Expected JSONL in UTF-8"):
        load_from(path)


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
    write_tree(tmp_path)
    found = load_from(tmp_path, eval_fraction=0.3)
    assert found.language == "python"
    assert {item.group for item in found.train}.isdisjoint(item.group for item in found.held_out)
    assert found.counts["train"] == len(found.train) == 24 - len(found.held_out)


def test_exact_and_near_duplicates_are_removed_across_files(tmp_path) -> None:
    write_tree(tmp_path)
    copy = (tmp_path / "alpha.py").read_text()
    (tmp_path / "copy.py").write_text(copy)  # exact
    (tmp_path / "layout.py").write_text(copy.replace("return ", "return  "))  # the same tokens
    long_body = "".join(f"    step_{number} = compute(step, {number})\n" for number in range(40))
    near = 'def long():\n    """Long."""\n' + long_body
    (tmp_path / "near_a.py").write_text(near + "    return 1\n")
    (tmp_path / "near_b.py").write_text(near + "    return 2\n")
    counts = load_from(tmp_path).counts
    assert counts["exact duplicates"] == 6
    assert counts["near duplicates"] == 1


def test_too_long_examples_are_left_out_and_counted(tmp_path) -> None:
    write_tree(tmp_path)
    everything = load_from(tmp_path)
    lengths = sorted(len(item.prompt + item.completion) for item in everything.train + everything.held_out)
    found = load_from(tmp_path, max_length=lengths[len(lengths) // 2])
    assert found.counts["too long"] > 0
    assert found.counts["too long"] + found.counts["train"] + found.counts["held out"] == 24


def test_digest_is_the_same_wherever_the_tree_lies_and_in_whatever_order(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "c").mkdir(parents=True)
    write_tree(tmp_path / "a")
    write_tree(tmp_path / "b" / "c")
    first, second = load_from(tmp_path / "a"), load_from(tmp_path / "b" / "c")
    assert (first.train_digest, first.held_out_digest) == (second.train_digest, second.held_out_digest)
    assert digest(first.train) == digest(reversed(first.train)) != digest(first.held_out)


def test_digest_is_stable_across_releases() -> None:
    """A literal: a change of the digest would make every earlier evaluation incomparable."""
    assert digest([Example("a", "b", "x"), Example("c", "d", "y")]) == "6841c51aa40cc10b83e868ee405b6683"


def test_held_out_files_change_little_while_the_code_grows() -> None:
    small = [Example(str(n), "c", f"file{n}") for n in range(20)]
    grown = small + [Example(str(n), "c", f"file{n}") for n in range(20, 24)]
    before = {item.group for item in split_by_group(small, 4)[1]}
    after = {item.group for item in split_by_group(grown, 4)[1]}
    assert len(before) == len(after) == 4
    assert len(before & after) >= 3


def test_one_large_file_is_not_held_out() -> None:
    examples = [Example(str(n), "c", "large") for n in range(90)] + [Example(f"s{n}", "c", f"s{n}") for n in range(10)]
    _, held_out = split_by_group(examples, 10)
    assert held_out
    assert all(item.group != "large" for item in held_out)


def test_eval_source_is_kept_out_of_training(tmp_path) -> None:
    rows = [{"prompt": f"p{n}", "completion": f"c{n} {n * 7}"} for n in range(10)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "eval.jsonl", rows[:3])
    found = load_from(tmp_path / "train.jsonl", eval_source=str(tmp_path / "eval.jsonl"))
    assert (len(found.train), len(found.held_out)) == (7, 3)
    assert found.language == "text"


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
