"""What a row may look like (`prompt`/`completion` is the plainest):

    {"prompt": "def add(a, b):\\n", "completion": "    return a + b\\n"}
    {"instruction": "Add two numbers", "input": "1 and 2", "output": "3"}
    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"text": "…"}
    {"content": "…", "path": "src/add.go"}         a file of code, treated as one in a folder (The Stack's names do too)

The first may also have `language`, `kind` (as `trainer prepare` writes it), and `test`: Python that is run after prompt
and completion and fails where they are wrong, with HumanEval's `entry_point` and `canonical_solution` understood. With
a test, a row to be judged on needs no completion. All but the last may have `group`, the file or whatever they belong
together by, and `repository`. A key whose value is null is not there, and other keys do not matter: `datasets`, Parquet
and pandas write the columns of all rows into each.

One row that cannot be used is dropped, and does not end a run. Where the first rows of a source show that it is the
wrong file, or has chats that are not for this model, that is an error.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from code_model import fim
from contract.errors import InputError, json_type, shortened
from trainer.data.example import KINDS, ROW, Example
from trainer.data.filters import is_unicode
from trainer.data.items import File, Row, Unusable
from trainer.data.languages import NAMES as LANGUAGE_NAMES
from trainer.data.languages import SUFFIXES
from trainer.data.pathspec import LEFT_OUT

# Renders chat messages to the text that the model sees before the answer.
ChatTemplate = Callable[[list[dict[str, Any]]], str]
PATHS = ("path", "max_stars_repo_path")
FORMATS = "prompt/completion, instruction/input/output, messages, text or content/path"
ANSWERS = ("completion", "canonical_solution")
# The key that tells a format, and what a row of it needs: of each group one. The first format with all of it counts.
NEEDED: dict[str, tuple[tuple[str, ...], ...]] = {
    "content": (("content",), PATHS),
    "messages": (("messages",),),
    "instruction": (("instruction",), ("output",)),
    "prompt": ((*ANSWERS, "test"),),
    "text": (("text",),),
}
# Besides our own names and the suffixes of files; of languages that there are no examples of, it is text.
LANGUAGE_ALIASES = {
    "golang": "go",
    "python2": "python",
    "python3": "python",
    "node": "javascript",
    "nodejs": "javascript",
    "c++": "cpp",
    "c#": "csharp",
}
NO_FORMAT = ("not UTF-8", "not JSON", "not an object", "no known format")  # reasons that make it the wrong file
REFUSED = "the chat template refuses it"
FIRST = 20  # rows that tell what a source is


def usable(
    items: Iterable[File | Row],
    chat_template: ChatTemplate,
    language: str,
    drop: Callable[[Unusable], None],
    leaves_out: Callable[[str], bool] = lambda path: False,
) -> Iterator[tuple[Example | File, str]]:
    """What a source's items hold, each with where it stands; `drop` is told of every row that cannot be used.

    `leaves_out`: whether a file that stands in a row is not chosen, by its path. Raises InputError where the first
    rows, or all, are of no known format, where the chat template refuses the first conversations, or all of a source
    that has nothing else, and where it takes no system message at all and there is one.
    """
    seen = _Seen()

    def render(messages: list[dict[str, Any]]) -> str:
        seen.chats += 1
        return chat_template(messages)

    for item in items:
        if isinstance(item, File):
            yield item, item.path
            continue
        seen.rows += 1
        try:
            found = parse(item, render, language)
        except Unusable as problem:
            if problem.reason == REFUSED and _is_for_its_system_message(item.values, chat_template):
                raise InputError(
                    f"{problem}. It takes no system message, in any row. Expected rows without, or another model.name."
                ) from problem
            drop(problem)
            seen.add(problem)
        else:
            seen.usable += 1
            if isinstance(found, File) and leaves_out(found.path):
                found = File(found.path, dropped=LEFT_OUT)
            yield found, item.where
        seen.check(FIRST)
    seen.check(None)


def parse(row: Row, chat_template: ChatTemplate, language: str) -> Example | File:
    """The example of a row, or the file that it holds. Raises Unusable, which says where, for anything else."""
    try:
        return _parse(row, chat_template, language)
    except Unusable as problem:
        problem.where = row.where
        raise


def continuation(example: Example) -> Example:
    """A held-out text without a prompt, cut in two (between lines, else words): the first half is the prompt."""
    text = example.completion
    if example.prompt or example.test is not None or len(text) < 2:
        return example
    parts = text.splitlines(keepends=True)
    if len(parts) < 2:
        parts = re.findall(r"\s*\S+\s*", text)
    if len(parts) < 2:
        parts = list(text)
    half = len(parts) // 2
    return dataclasses.replace(example, prompt="".join(parts[:half]), completion="".join(parts[half:]))


@dataclass
class _Seen:
    """What a source's rows are like, to tell the wrong file, or the wrong model, from a bad row."""

    rows: int = 0
    usable: int = 0
    formless: int = 0
    chats: int = 0  # conversations and instructions
    refused: int = 0
    first_formless: Unusable | None = None
    first_refused: Unusable | None = None

    def add(self, problem: Unusable) -> None:
        if problem.reason in NO_FORMAT:
            self.formless += 1
            self.first_formless = self.first_formless or problem
        elif problem.reason == REFUSED:
            self.refused += 1
            self.first_refused = self.first_refused or problem

    def check(self, rows: int | None) -> None:
        """Raise InputError where so many rows, or all (None), say that there is no use in reading on."""
        if self.first_formless is not None and self.formless == self.rows and rows in (None, self.rows):
            raise InputError(
                f"{self.first_formless}. {_as_many(self.rows, rows)} of no known format. Expected {FORMATS}, as "
                "JSONL in UTF-8, a JSON list or Parquet."
            )
        nothing_else = rows is None and not self.usable
        if self.first_refused is not None and self.refused == self.chats and (nothing_else or rows == self.chats):
            raise InputError(
                f"{self.first_refused}. {_as_many(self.chats, rows)} refused. Expected conversations that the template "
                "takes, or another model.name."
            )


def _as_many(number: int, first: int | None) -> str:
    if number == 1:
        return "The only row is"
    return f"All {number} rows are" if first is None else f"The first {number} rows are all"


def _is_for_its_system_message(values: Any, chat_template: ChatTemplate) -> bool:
    """Whether a template that refuses a row would refuse every one that begins as it does: with a system message."""
    messages = values.get("messages")
    if not messages or messages[0]["role"] != "system":
        return False
    plain = [{"role": "user", "content": "a"}]
    return _takes(chat_template, plain) and not _takes(chat_template, [{"role": "system", "content": "b"}, *plain])


def _takes(chat_template: ChatTemplate, messages: list[dict[str, Any]]) -> bool:
    try:
        chat_template(messages)
    except InputError:
        return False
    return True


def _parse(row: Row, chat_template: ChatTemplate, language: str) -> Example | File:
    if row.broken is not None:
        raise Unusable(*row.broken)
    if not isinstance(row.values, dict):
        raise Unusable("not an object", f"it is a JSON {json_type(row.values)}, not an object")
    values = {key: value for key, value in row.values.items() if not _is_absent(value)}
    kind, test, function = ROW, None, None
    match _format(values):
        case "content":
            return _file(values)
        case "messages":
            prompt, completion = _from_messages(values["messages"], chat_template)
        case "instruction":
            asked, extra = _text(values, "instruction"), _text(values, "input") if values.get("input") else ""
            message = f"{asked}\n\n{extra}" if extra else asked
            prompt = _render(chat_template, [{"role": "user", "content": message}])
            completion = _text(values, "output")
        case "prompt":
            prompt, test = _text(values, "prompt"), _test(values)
            answer = next((name for name in ANSWERS if _is_filled(values, name)), ANSWERS[0])
            completion = "" if test is not None and not _is_filled(values, answer) else _text(values, answer)
            kind, language = _kind(values), _language(values, language)
            function = _text(values, "function") if "function" in values else None
            if kind == "fim" and not fim.is_prompt(prompt):
                raise Unusable("of kind fim without a gap", f"its prompt is not of the form {fim.prompt('…', '…')!r}")
        case _:
            prompt, completion = "", _text(values, "text")
    if not completion.strip() and test is None:
        raise Unusable("empty completion", "there is nothing for the model to learn")
    # Rows stand for themselves where they do not say which file they are from.
    group = _id(values, "group") or hashlib.sha256(json.dumps([prompt, completion]).encode()).hexdigest()
    repository = _id(values, "repository")
    _check_unicode(prompt, completion, test or "", function or "", group, repository)
    language = "python" if test is not None else language
    by_model = values.get("by_model")
    if by_model is not None and (isinstance(by_model, bool) or not isinstance(by_model, int) or by_model < 0):
        raise Unusable("by_model is no count", "'by_model' is no number of characters")
    return Example(prompt, completion, group, kind, language, test, function, repository, by_model)


def _is_absent(value: Any) -> bool:
    """Null, or what pandas makes of it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_filled(values: dict[str, Any], key: str) -> bool:
    return key in values and values[key] not in ("", [])


def _format(values: dict[str, Any]) -> str:
    """The first format that has all it needs; else the first that is there at all, for a message on what it lacks."""
    there = [key for key in NEEDED if key in values]
    if not there:
        keys = ", ".join(sorted(map(str, values))) or "none"
        raise Unusable("no known format", f"its keys are {shortened(keys)}")
    whole = (key for key in there if all(any(_is_filled(values, name) for name in names) for names in NEEDED[key]))
    return next(whole, there[0])


def _file(values: dict[str, Any]) -> File:
    path = _text(values, next((name for name in PATHS if _is_filled(values, name)), PATHS[0]))
    if not PurePosixPath(path).name:
        raise Unusable("no path", f"the path of its content is {shortened(repr(path))}, and no name of a file")
    content = _text(values, "content")
    _check_unicode(path, content)
    return File(path, content.encode())


def _from_messages(messages: Any, chat_template: ChatTemplate) -> tuple[str, str]:
    """Prompt and completion of a conversation."""
    if not isinstance(messages, list) or not all(
        isinstance(item, dict) and isinstance(item.get("role"), str) for item in messages
    ):
        raise Unusable("no list of messages", "'messages' is no list of objects with role and content")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise Unusable("no answer of the assistant", "'messages' does not end with what the assistant answers")
    plain = [item | {"content": _content(item.get("content"))} for item in messages]
    return _render(chat_template, plain[:-1]), str(plain[-1]["content"])


def _content(content: Any) -> str:
    """A message's text, which may come in parts."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise Unusable("a message without text", "a message's content is no text, as where a tool is called")
    return "".join(map(str, texts))


def _render(chat_template: ChatTemplate, messages: list[dict[str, Any]]) -> str:
    try:
        return chat_template(messages)
    except InputError as error:
        raise Unusable(REFUSED, error.message) from error


def _test(values: dict[str, Any]) -> str | None:
    if not _is_filled(values, "test"):
        return None
    test = _text(values, "test")
    if "entry_point" not in values:
        return test
    return f"{test}\ncheck({_text(values, 'entry_point')})\n"  # as HumanEval has it


def _language(values: dict[str, Any], default: str) -> str:
    """The language that a row names, by any of its names; text where examples are made of no such language."""
    if not _is_filled(values, "language"):
        return default
    name = str(values["language"]).strip().lower()
    name = LANGUAGE_ALIASES.get(name) or SUFFIXES.get(f".{name.removeprefix('.')}") or name
    return name if name in LANGUAGE_NAMES else "text"


def _kind(values: dict[str, Any]) -> str:
    kind = values.get("kind") or ROW
    if kind not in (*KINDS, ROW):
        raise Unusable("unknown kind", f"'kind' is {shortened(repr(kind))}, and none of {', '.join((*KINDS, ROW))}")
    return str(kind)


def _id(values: dict[str, Any], key: str) -> str:
    """What a row belongs to: a text or a number; empty where it does not say."""
    value = values.get(key, "")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Unusable(f"{key} is no text", f"'{key}' is of type {json_type(value)}, and no text or number")
    return str(value)


def _text(values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    if not isinstance(value, str):
        what = "missing" if value is None else f"of type {json_type(value)}, and no text"
        raise Unusable(f"no {key}", f"'{key}' is {what}")
    return value


def _check_unicode(*texts: str) -> None:
    if not all(map(is_unicode, texts)):
        raise Unusable("half a surrogate pair", "it holds half a surrogate pair (\\ud800 to \\udfff)")
