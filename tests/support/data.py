"""Sources of data, written as tests need them, and the data sets made of them."""

import json
import tempfile
from pathlib import Path

from code_model import fim
from trainer.data.languages import read
from trainer.data.languages.code import moved
from trainer.data.limits import Limits
from trainer.data.prepare import Dataset, prepare
from trainer.data.settings import DataConfig

ONLY_FUNCTIONS = {"fim_weight": 0.0, "next_block_weight": 0.0}


def chat_template(messages) -> str:
    return "".join(f"<{item['role']}>{item['content']}" for item in messages)


def load_from(source, max_length: int = 10_000, folder: Path | None = None, **config) -> Dataset:
    """The data set of a source, one token for each character; functions only, unless weights are given."""
    folder = folder or Path(tempfile.mkdtemp(dir=tempfile.gettempdir(), prefix="ratchet-test-"))
    source = [str(item) for item in source] if isinstance(source, list) else str(source)
    weights = {} if any(name.endswith("_weight") for name in config) else ONLY_FUNCTIONS
    limits = Limits(
        chat_template,
        lambda items: [len(item.prompt + item.completion) for item in items],
        lambda texts: list(map(len, texts)),
        lambda context: len(fim.write(context)),
        max_length,
        max_length,
    )
    return prepare(DataConfig(source=source, **weights, **config), limits, folder)


def write_jsonl(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# Bodies that no two of which are alike, by words or by their shape.
BODIES = (
    "{a} = [{b} * {n} for {b} in range({m})]\nreturn {a}[{n}] + {b}_{m}",
    "if not {a}:\n    raise ValueError('{b}: {n}')\nreturn {a}.{b}({m})",
    "with open({a}) as file:\n    for {b} in file:\n        yield {b}.split()[{n}]",
    "while {a} > {n}:\n    {a} -= {b}\n    n += {m}\nreturn n, {a}",
    "try:\n    return {b}[{a}]\nexcept KeyError as error:\n    log.warning('no {b} %s', error)\n    return None",
    "{b} = {{name: value for name, value in {a}.items() if value}}\nassert len({b}) < {m}\nreturn sorted({b})",
    "return lambda {b}: ({b} ** {n}) % {m} if {b} else {a}",
    "{a}, *{b} = n\nprint({a}, end='{n}')\ndel {b}[{m}:]\nglobal total\ntotal = {a}",
    "class {b}:\n    {a}: int = {n}\nreturn {b}().{a} << {m}",
    "{b} = set(n) | {{{n}, {m}}}\nfor {a} in {b}:\n    if {a} is None:\n        break\nelse:\n    return {b}",
    "assert isinstance(n, (str, bytes)), '{a}'\nreturn n[{n}:{m}].strip('{b}').encode()",
    "return max((abs({a} - {b}) for {a}, {b} in zip(n, n[1:])), default={m})",
    "{a} = n.copy()\n{a}.update({b}={n})\nwhile True:\n    if next({a}) == {m}:\n        return {a}",
    "match n:\n    case [{a}, {b}]:\n        return {a} @ {b}\n    case _:\n        return ~{n}",
    "{a}: list = []\n{a} += [{n}] * {m}\n{a}[0], {a}[-1] = {a}[-1], '{b}'\nreturn {a}[::-1]",
    "return '{a}' + str({b} or {n}) + f'{{n:>{m}}}'",
)


def write_tree(root, files: int = 8, functions: int = 3) -> None:
    """Files of documented Python functions, of which no two are twins as long as they are at most 16."""
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    for number in range(files):
        text = ""
        for inner in range(functions):
            name = f"{words[number]}_{words[inner]}"
            body = BODIES[(number * functions + inner) % len(BODIES)]
            body = body.format(a=words[inner], b=f"{words[number]}_{inner}", n=number, m=inner + 3)
            body = "".join(f"    {line}\n" for line in body.split("\n"))
            text += f'def {name}({words[inner]}, n):\n    """{name} of {words[number]}."""\n{body}\n\n'
        (root / f"{words[number]}.py").write_text(text)


def functions_of(source: str, language: str) -> list[tuple[str, str]]:
    """(head, body) of each function that is found in a file, moved to the left margin."""
    code = read(source, language)
    assert code is not None
    lines = source.split("\n")
    found = []
    for item in code.functions:
        text, head = moved(lines[item.start : item.end]), item.body - item.start
        found.append(("".join(f"{line}\n" for line in text[:head]), "".join(f"{line}\n" for line in text[head:])))
    return found
