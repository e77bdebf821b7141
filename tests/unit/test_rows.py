"""Rows: their formats, what is dropped of them and said so, and what is no bad row but the wrong file or model."""

import json
import math

import pytest

from contract.errors import InputError
from tests.support.data import chat_template, load_from, write_jsonl
from trainer.data.example import Example
from trainer.data.items import File, Row, Unusable
from trainer.data.report import EXAMPLES_OF_EACH, Report
from trainer.data.rows import FIRST, parse, usable

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
PARTS = [{"type": "text", "text": "q"}, {"type": "text", "text": "r"}]
UNION = dict.fromkeys(("prompt", "completion", "messages", "instruction", "input", "output", "text", "content", "path"))


@pytest.mark.parametrize(
    ("row", "prompt", "completion"),
    [
        ({"prompt": "p", "completion": "c"}, "p", "c"),
        ({"prompt": "", "completion": "c"}, "", "c"),
        ({"prompt": "p", "completion": "", "canonical_solution": "s"}, "p", "s"),
        ({"instruction": "i", "output": "o"}, "<user>i", "o"),
        ({"instruction": "i", "input": "x", "output": "o"}, "<user>i\n\nx", "o"),
        ({"messages": CHAT}, "<user>q", "a"),
        ({"messages": [{"role": "user", "content": PARTS}, CHAT[1]]}, "<user>qr", "a"),
        ({"messages": [CHAT[0], {"role": "assistant", "content": PARTS}]}, "<user>q", "qr"),
        ({"text": "t"}, "", "t"),
    ],
)
@pytest.mark.parametrize("beside", [{}, UNION, dict.fromkeys(UNION, ""), dict.fromkeys(UNION, math.nan)])
def test_a_row_is_its_first_format_with_values(row, prompt: str, completion: str, beside) -> None:
    example = parse(Row({**beside, **row}, "here"), chat_template, "text")
    assert isinstance(example, Example)
    assert (example.prompt, example.completion) == (prompt, completion)


@pytest.mark.parametrize("beside", [UNION, {"messages": [], "prompt": "", "text": ""}])
def test_a_file_in_a_row_is_one_beside_empty_columns(beside) -> None:
    row = {**beside, "content": "x = 1", "path": "a.py"}
    assert parse(Row(row, "here"), chat_template, "text") == File("a.py", b"x = 1")


def test_content_without_a_path_is_a_column_beside_another_format() -> None:
    found = parse(Row({"content": "x", "prompt": "p", "completion": "c"}, "here"), chat_template, "text")
    assert isinstance(found, Example)


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ([1], "not an object", "it is a JSON array"),
        ({"question": "x"}, "no known format", "its keys are question"),
        ({}, "no known format", "its keys are none"),
        ({"text": None}, "no known format", "its keys are none"),
        ({"prompt": "x"}, "no completion", "'completion' is missing"),
        ({"completion": "x"}, "no known format", "its keys are completion"),
        ({"prompt": "x", "completion": 3}, "no completion", "'completion' is of type number"),
        ({"prompt": "x", "completion": " "}, "empty completion", "nothing for the model to learn"),
        ({"instruction": "x", "output": ""}, "empty completion", "nothing"),
        ({"instruction": "x"}, "no output", "'output' is missing"),
        ({"messages": "hello"}, "no list of messages", "no list of objects"),
        ({"messages": [CHAT[0]]}, "no answer of the assistant", "does not end with"),
        ({"messages": [*CHAT, CHAT[0]]}, "no answer of the assistant", "does not end with"),
        ({"messages": [CHAT[0], {"role": "assistant", "content": None}]}, "a message without text", "a tool is called"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, CHAT[1]]},
            "a message without text",
            "no text",
        ),
        ({"content": "x = 1"}, "no path", "'path' is missing"),
        ({"content": "x = 1", "path": "."}, "no path", "no name of a file"),
        (
            {"prompt": "a", "completion": "b", "kind": "fim"},
            "of kind fim without a gap",
            "not of the form '<fim_prefix>",
        ),
        ({"prompt": "a", "completion": "b", "kind": "poem"}, "unknown kind", "'kind' is 'poem'"),
        ({"text": "\ud800"}, "half a surrogate pair", "ud800"),
        ({"prompt": "a", "completion": "b", "group": ["x"]}, "group is no text", "'group' is of type array"),
        ({"prompt": "a", "completion": "b", "repository": True}, "repository is no text", "of type boolean"),
        ({"prompt": "a", "completion": "b", "group": "\ud800"}, "half a surrogate pair", "ud800"),
        ({"messages": [{"role": "user", "content": "\udfff"}, CHAT[1]]}, "half a surrogate pair", "ud800"),
        ({"content": "\ud800", "path": "a.py"}, "half a surrogate pair", "ud800"),
        ({"\ud800": 1}, "no known format", "its keys are \\ud800"),
    ],
)
def test_what_cannot_be_used_says_where_and_why(row, reason: str, detail: str) -> None:
    with pytest.raises(Unusable) as caught:
        parse(Row(row, "x.jsonl, line 3"), chat_template, "text")
    assert caught.value.reason == reason
    assert str(caught.value).startswith("x.jsonl, line 3: ")
    assert detail in caught.value.detail


def test_columns_that_are_not_used_do_not_matter() -> None:
    row = {"prompt": "a", "completion": "b", "id": "\ud800", "messages": None, "score": math.inf}
    assert isinstance(parse(Row(row, "here"), chat_template, "text"), Example)


@pytest.mark.parametrize(
    ("given", "language"),
    [
        *(("Python", "python"), ("py", "python"), (" PYTHON3 ", "python"), ("JS", "javascript"), (".ts", "typescript")),
        *(("golang", "go"), ("Go", "go"), ("RS", "rust"), ("java", "java"), ("node", "javascript"), ("text", "text")),
        *(("en", "text"), ("Haskell", "text"), ("cobol", "text"), (3, "text"), (["py"], "text")),
        *((None, "go"), ("", "go")),  # the configured one
    ],
)
def test_languages_have_many_names(given, language: str) -> None:
    row = {"prompt": "a", "completion": "b", "language": given}
    assert parse(Row(row, "here"), chat_template, "go").language == language


def strict(messages) -> str:
    """As templates of Llama 2, Mistral and Gemma."""
    if messages[0]["role"] == "system":
        raise InputError("the chat template of M says: System role not supported")
    if any(item["role"] != ("user", "assistant")[n % 2] for n, item in enumerate(messages)):
        raise InputError("the chat template of M says: roles must alternate")
    return chat_template(messages)


def read(rows, template=chat_template):
    """What is found in rows, and what is dropped."""
    dropped: list[Unusable] = []
    items = [Row(row, f"x.jsonl, line {number}") for number, row in enumerate(rows, start=1)]
    return [found for found, _ in usable(items, template, "text", dropped.append)], dropped


TWICE = {"messages": [CHAT[0], *CHAT]}
SYSTEM = {"messages": [{"role": "system", "content": "s"}, *CHAT]}


def test_a_chat_that_the_template_refuses_is_dropped_with_its_words() -> None:
    found, dropped = read([{"messages": CHAT}, TWICE, {"messages": CHAT}], strict)
    assert len(found) == 2
    assert [str(item) for item in dropped] == ["x.jsonl, line 2: the chat template of M says: roles must alternate"]


def test_a_template_without_system_messages_is_an_error_and_not_a_bad_row() -> None:
    with pytest.raises(InputError, match=r"line 2: the chat template of M says: System role.*takes no system message"):
        read([{"messages": CHAT}, SYSTEM], strict)
    twice_with_system = {"messages": [{"role": "system", "content": "s"}, *TWICE["messages"]]}

    def alternating(messages) -> str:
        return strict([item for item in messages if item["role"] != "system"])

    found, dropped = read([SYSTEM, twice_with_system], alternating)
    assert (len(found), [item.where for item in dropped]) == (1, ["x.jsonl, line 2"])


def test_chats_that_are_all_refused_are_an_error() -> None:
    with pytest.raises(InputError, match=r"line 1: the chat template.*All 3 rows are refused"):
        read([TWICE] * 3, strict)
    found, dropped = read([TWICE] * 3 + [{"text": "t"}], strict)  # there is something else
    assert (len(found), len(dropped)) == (1, 3)
    with pytest.raises(InputError, match=f"The first {FIRST} rows are all refused"):
        read([{"text": "t"}] + [TWICE] * FIRST + [{"messages": CHAT}], strict)
    read([{"messages": CHAT}] + [TWICE] * 2 * FIRST, strict)  # it takes some


def test_the_wrong_file_is_an_error_and_a_bad_row_is_none() -> None:
    wrong = {"question": "x"}
    with pytest.raises(
        InputError, match=r"line 1: its keys are question\. The only row is of no known format\. Expected"
    ):
        read([wrong])
    with pytest.raises(InputError, match=f"The first {FIRST} rows are all of no known format"):
        read([wrong] * FIRST + [{"text": "t"}])
    found, dropped = read([wrong] * (FIRST - 1) + [{"text": "t"}] + [wrong] * FIRST)
    assert (len(found), len(dropped)) == (1, 2 * FIRST - 1)
    found, dropped = read([{"prompt": "a", "completion": ""}] * 2 * FIRST)  # known, and empty
    assert (len(found), len(dropped)) == (0, 2 * FIRST)


def test_unusable_rows_are_counted_and_named_in_the_report(tmp_path, capsys) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": f"q{n}", "completion": f"answer {n * 7919} {n * 31}"}).encode() for n in range(8)]
    bad = [b"{", b"[1]", b'{"text": "caf\xe9"}', b'{"prompt": "a|b", "completion": ""}', b'{"text": "\\ud800"}']
    path.write_bytes(b"\n".join([*lines, *bad, *[b'{"prompt": "p", "completion": " "}'] * 12]) + b"\n")
    found = load_from(path)
    report = found.report
    assert len(found.train) + len(found.held_out) == 8
    assert dict(report.rows) == {
        "not JSON": 1,
        "not an object": 1,
        "not UTF-8": 1,
        "empty completion": 13,
        "half a surrogate pair": 1,
    }
    assert report.row_places["not UTF-8"] == [f"{path}, line 11: it is no UTF-8, invalid continuation byte at byte 14"]
    assert len(report.row_places["empty completion"]) == EXAMPLES_OF_EACH
    assert report.sources[0]["read"] == 25
    assert report.to_dict()["rows_dropped"]["not JSON"] == 1
    assert f"- 1 × not an object\n  - `{path}, line 10: it is a JSON array, not an object`\n" in report.to_markdown()
    said = capsys.readouterr().err
    assert f"13 rows left out: empty completion\n  {path}, line 12: there is nothing for the model to learn\n" in said
    assert said.count(", line ") == 7  # three of those at most, and one of each other


def test_nothing_left_is_an_error_with_the_counts(tmp_path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": ""}, {"messages": [CHAT[0]]}])
    with pytest.raises(
        InputError, match=r"no example was found \(1 rows dropped: empty completion, 1 rows dropped: no a"
    ):
        load_from(tmp_path / "rows.jsonl")


def test_a_file_of_bytes_is_refused(tmp_path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match=r"line 1: it is no UTF-8.*as JSONL in UTF-8"):
        load_from(tmp_path / "rows.jsonl")


def test_counts_of_many_reasons_stay_one_line() -> None:
    report = Report()
    for number in range(15):
        report.rows[f"reason {number}"] = number + 1
    report.examples["read"] = 3
    words = report.in_words()
    assert words.endswith("3 read, 45 left out for 9 other reasons")
    assert "15 rows dropped: reason 14" in words
    assert words.count(",") == 7
    assert len(report.counts()) == 16
