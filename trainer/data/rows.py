"""What a row may look like (one JSON object a line; `prompt`/`completion` is the plainest):

    {"prompt": "def add(a, b):\\n", "completion": "    return a + b\\n"}
    {"instruction": "Add two numbers", "input": "1 and 2", "output": "3"}
    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"text": "…"}
    {"content": "…", "path": "src/add.go"}         a file of code, treated as one in a folder (The Stack's names do too)

The first may also have `language`, `kind` (as `trainer prepare` writes it), and `test`: Python that is run after prompt
and completion and fails where they are wrong, with HumanEval's `entry_point` and `canonical_solution` understood. With
a test, a row to be judged on needs no completion.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from code_model import fim
from contract.errors import InputError
from trainer.data.example import KINDS, ROW, Example
from trainer.data.items import File, Row
from trainer.data.languages import NAMES as LANGUAGE_NAMES

# Renders chat messages to the text that the model sees before the answer.
ChatTemplate = Callable[[list[dict[str, str]]], str]
PATHS = ("path", "max_stars_repo_path")
FORMATS = "prompt/completion, instruction/input/output, messages, text or content/path"


def parse(row: Row, chat_template: ChatTemplate, language: str) -> Example | File:
    """The example of a row, or the file that it holds. Raises InputError, naming the row, for anything else."""
    values, where = row.values, row.where
    if not isinstance(values, dict):
        raise InputError(f"{where} is a JSON {type(values).__name__}. Expected an object with {FORMATS}.")
    if re.search("[\ud800-\udfff]", json.dumps(values, ensure_ascii=False, default=str)):
        raise InputError(f"{where} holds half a surrogate pair (\\ud800 to \\udfff). Expected valid Unicode.")
    if "content" in values:
        path = _text(values, next((name for name in PATHS if name in values), PATHS[0]), where)
        if not PurePosixPath(path).name:
            raise InputError(f"{where}: the path of its content is {path!r}. Expected the name of a file.")
        return File(path, _text(values, "content", where).encode())
    kind, test, function = ROW, None, None
    if "messages" in values:
        prompt, completion = _from_messages(values["messages"], where, chat_template)
    elif "instruction" in values:
        asked = _text(values, "instruction", where)
        extra = _text(values, "input", where) if values.get("input") else ""
        message = f"{asked}\n\n{extra}" if extra else asked
        prompt = _render(chat_template, [{"role": "user", "content": message}], where)
        completion = _text(values, "output", where)
    elif "prompt" in values:
        test = _test(values, where)
        names = [name for name in ("completion", "canonical_solution") if values.get(name) is not None]
        prompt = _text(values, "prompt", where)
        completion = "" if test is not None and not names else _text(values, (names or ["completion"])[0], where)
        kind, language = _one_of(values, "kind", (*KINDS, ROW), ROW, where), _language(values, language, where)
        function = _text(values, "function", where) if values.get("function") is not None else None
        if kind == "fim" and not fim.is_prompt(prompt):
            raise InputError(f"{where} is of kind fim. Expected a prompt like {fim.prompt('…', '…')!r}.")
    elif "text" in values:
        prompt, completion = "", _text(values, "text", where)
    else:
        raise InputError(f"{where} has the keys {sorted(values)}. Expected {FORMATS}.")
    if not completion.strip() and test is None:
        raise InputError(f"{where} has an empty completion. Expected the text that the model is to learn.")
    # Rows stand for themselves where they do not say which file they are from.
    group = values.get("group") or hashlib.sha256(json.dumps([prompt, completion]).encode()).hexdigest()
    return Example(prompt, completion, str(group), kind, "python" if test is not None else language, test, function)


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


def _from_messages(messages: Any, where: str, chat_template: ChatTemplate) -> tuple[str, str]:
    valid = isinstance(messages, list) and all(
        isinstance(item, dict) and isinstance(item.get("role"), str) and isinstance(item.get("content"), str)
        for item in messages
    )
    if not valid or len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise InputError(
            f"{where}: 'messages' must be a list of two or more {{role, content}} that ends with the assistant's."
        )
    return _render(chat_template, messages[:-1], where), messages[-1]["content"]


def _render(chat_template: ChatTemplate, messages: list[dict[str, str]], where: str) -> str:
    try:
        return chat_template(messages)
    except InputError as error:
        raise InputError(f"{where}: {error.message}") from error


def _test(values: dict[str, Any], where: str) -> str | None:
    if values.get("test") is None:
        return None
    test = _text(values, "test", where)
    if values.get("entry_point") is None:
        return test
    return f"{test}\ncheck({_text(values, 'entry_point', where)})\n"  # as HumanEval has it


def _language(values: dict[str, Any], default: str, where: str) -> str:
    return _one_of(values, "language", (*LANGUAGE_NAMES, "text"), default, where)


def _one_of(values: dict[str, Any], key: str, allowed: tuple[str, ...], default: str, where: str) -> str:
    value = values.get(key)
    if value is None:
        return default
    if value not in allowed:
        raise InputError(f"{where}: '{key}' is {value!r}. Expected one of {', '.join(allowed)}.")
    return str(value)


def _text(values: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(values.get(key), str):
        raise InputError(f"{where}: '{key}' is {values.get(key)!r}. Expected a string.")
    return str(values[key])
