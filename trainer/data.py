"""The data set: from source code or JSONL to training and held-out examples, and a digest of each.

    examples = load(config.data, tokenizer)     # Dataset(train, held_out, …)

What a row may look like in a .jsonl file (one JSON object a line; `prompt`/`completion` is the plainest):

    {"prompt": "def add(a, b):\n", "completion": "    return a + b\n"}
    {"instruction": "Add two numbers", "input": "1 and 2", "output": "3"}
    {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
    {"text": "…"}
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasketch import MinHash, MinHashLSH

from trainer.config import DataConfig
from trainer.errors import InputError
from trainer.source_tree import package_folder, python_files, read_functions

# Renders chat messages to the text that the model sees before the answer.
ChatTemplate = Callable[[list[dict[str, str]]], str]

PERMUTATIONS = 128  # of a MinHash: similarities are right to about 0.04
FORMATS = ("prompt/completion", "instruction/input/output", "messages", "text")


@dataclass(frozen=True)
class Example:
    """A prompt and the completion wanted of it; `group` is the file it came from."""

    prompt: str
    completion: str
    group: str

    @property
    def example_id(self) -> str:
        """Stable hash of prompt and completion (the evaluation table's key)."""
        return hashlib.sha256(f"{self.prompt}\0{self.completion}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Dataset:
    """What a run trains on and is judged by. `counts` says what became of what was read."""

    source: str  # as configured
    path: str  # where that was found
    language: str
    train: list[Example]
    held_out: list[Example]
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return Path(self.path) if Path(self.path).is_dir() else Path(self.path).parent

    @property
    def train_digest(self) -> str:
        return digest(self.train)

    @property
    def held_out_digest(self) -> str:
        """The `dataset_digest` that two evaluations must share to be comparable."""
        return digest(self.held_out)


def digest(examples: Iterable[Example]) -> str:
    """Digest of a set of examples, 32 hex digits: the same on every machine, whatever their order."""
    return hashlib.sha256("\n".join(sorted(item.example_id for item in examples)).encode()).hexdigest()[:32]


def load(
    config: DataConfig, chat_template: ChatTemplate, token_count: Callable[[Example], int], max_length: int
) -> Dataset:
    """Read, deduplicate, filter by length and split as configured.

    `token_count(example)` is its length in tokens, prompt and completion together. Raises InputError for
    a source that is missing, unreadable or leaves nothing to train or to evaluate on.
    """
    counts: Counter[str] = Counter()

    def short(items: list[Example]) -> list[Example]:
        kept = [item for item in items if token_count(item) <= max_length]
        counts["too long"] += len(items) - len(kept)
        return kept

    path, examples = read(config.source, "data.source", chat_template, config, counts)
    examples = short(examples)
    if config.eval_source is not None:
        _, held_out = read(config.eval_source, "data.eval_source", chat_template, config, Counter())
        # The held-out rows go first: of two that are alike, it is the training row that is dropped.
        unique = _without_duplicates([*short(held_out), *examples], config.near_duplicate_threshold, counts)
        held_out_ids = {item.example_id for item in held_out}
        train = [item for item in unique if item.example_id not in held_out_ids]
        held_out = [item for item in unique if item.example_id in held_out_ids]
    else:
        unique = _without_duplicates(examples, config.near_duplicate_threshold, counts)
        target = min(config.eval_fraction * len(unique), config.max_eval_examples)
        train, held_out = split_by_group(unique, target)
    train = _choose(train, config.max_train_examples)
    held_out = _choose([_continuation(item) for item in held_out], config.max_eval_examples)
    if not train or not held_out:
        raise InputError(
            f"'{config.source}' gives {len(train)} examples to train on and {len(held_out)} to hold out "
            f"({_as_words(counts)}). Expected at least one of each: give more files, name held-out rows with "
            "data.eval_source, or keep more with data.require_docstring=false or a larger trainer.max_length."
        )
    counts["train"], counts["held out"] = len(train), len(held_out)
    language = config.language if config.language != "auto" else ("python" if path.is_dir() else "text")
    return Dataset(config.source, str(path), language, train, held_out, dict(counts))


def read(
    source: str, key: str, chat_template: ChatTemplate, config: DataConfig, counts: Counter[str]
) -> tuple[Path, list[Example]]:
    """(folder or file, its examples in order). Raises InputError, naming the config's `key`."""
    if source.startswith("package:"):
        path = package_folder(source.removeprefix("package:"))
    else:
        path = Path(source).expanduser().absolute()
    if not path.exists():
        raise InputError(
            f"{key} is '{source}', which does not exist. Expected a folder of Python code, a .jsonl file, "
            "or package:NAME."
        )
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        raise InputError(
            f"{key} is '{source}', which user {os.getuid()} may not read. Make it readable to all "
            "(chmod -R a+rX), or train as its owner."
        )
    if path.is_dir():
        examples = _read_source_tree(path, config.require_docstring, counts)
    else:
        examples = _read_jsonl(path, chat_template, counts)
    if not examples:
        raise InputError(
            f"{key} is '{source}', where no example was found ({_as_words(counts)}). Expected Python functions "
            "with docstrings (or data.require_docstring=false), or JSONL rows."
        )
    return path, examples


def split_by_group(examples: Sequence[Example], target: float) -> tuple[list[Example], list[Example]]:
    """(train, held out): whole groups, in the order of the hash of their name, until so many are held out.

    No group is on both sides, and each side gets at least one where there are two. The order depends on
    names alone, so the held-out files change little while the code grows.
    """
    sizes = Counter(item.group for item in examples)
    order = sorted(sizes, key=lambda group: hashlib.sha256(group.encode()).hexdigest())
    if len(order) < 2:
        return list(examples), []
    held_out: set[str] = set()
    total = 0
    for group in order:
        if total < target and total + sizes[group] <= max(1.5 * target, 1):
            held_out.add(group)
            total += sizes[group]
    if not held_out:  # every group is large
        held_out.add(min(order, key=lambda group: sizes[group]))
    return (
        [item for item in examples if item.group not in held_out],
        [item for item in examples if item.group in held_out],
    )


def _continuation(example: Example) -> Example:
    """A held-out text without a prompt, cut in two (between lines, else words): the first half is the prompt."""
    text = example.completion
    if example.prompt or len(text) < 2:
        return example
    parts = text.splitlines(keepends=True)
    if len(parts) < 2:
        parts = re.findall(r"\s*\S+\s*", text)
    if len(parts) < 2:
        parts = list(text)
    half = len(parts) // 2
    return Example("".join(parts[:half]), "".join(parts[half:]), example.group)


def _read_source_tree(root: Path, require_docstring: bool, counts: Counter[str]) -> list[Example]:
    examples = []
    for path in python_files(root):
        pairs = read_functions(path, require_docstring)
        counts["files"] += 1
        if pairs is None:
            counts["files that cannot be read or parsed"] += 1
            continue
        group = path.relative_to(root).as_posix()
        examples += [Example(prompt, completion, group) for prompt, completion in pairs]
    counts["examples read"] = len(examples)
    return examples


def _read_jsonl(path: Path, chat_template: ChatTemplate, counts: Counter[str]) -> list[Example]:
    examples = []
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    examples.append(_parse_row(line, f"{path}, line {number}", chat_template))
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"'{path}' cannot be read as text: {error}. Expected JSONL in UTF-8.") from error
    counts["examples read"] = len(examples)
    return examples


def _parse_row(line: str, where: str, chat_template: ChatTemplate) -> Example:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}. Expected one JSON object a line.") from error
    if not isinstance(row, dict):
        raise InputError(f"{where} is a JSON {type(row).__name__}. Expected an object with {' or '.join(FORMATS)}.")
    if "messages" in row:
        prompt, completion = _from_messages(row["messages"], where, chat_template)
    elif "instruction" in row:
        asked = _text(row, "instruction", where)
        extra = _text(row, "input", where) if row.get("input") else ""
        message = f"{asked}\n\n{extra}" if extra else asked
        prompt, completion = (
            chat_template([{"role": "user", "content": message}]),
            _text(row, "output", where),
        )
    elif "prompt" in row:
        prompt, completion = _text(row, "prompt", where), _text(row, "completion", where)
    elif "text" in row:
        prompt, completion = "", _text(row, "text", where)
    else:
        raise InputError(f"{where} has the keys {sorted(row)}. Expected {' or '.join(FORMATS)}.")
    if re.search("[\ud800-\udfff]", prompt + completion):
        raise InputError(f"{where} holds half a surrogate pair (\\ud800 to \\udfff). Expected valid Unicode.")
    if not completion.strip():
        raise InputError(f"{where} has an empty completion. Expected the text that the model is to learn.")
    # Rows stand for themselves: no file tells which belong together.
    return Example(prompt, completion, group=hashlib.sha256(line.encode()).hexdigest())


def _from_messages(messages: Any, where: str, chat_template: ChatTemplate) -> tuple[str, str]:
    valid = isinstance(messages, list) and all(
        isinstance(item, dict) and isinstance(item.get("role"), str) and isinstance(item.get("content"), str)
        for item in messages
    )
    if not valid or len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise InputError(
            f"{where}: 'messages' must be a list of two or more {{role, content}} that ends with the assistant's."
        )
    return chat_template(messages[:-1]), messages[-1]["content"]


def _text(row: dict[str, Any], key: str, where: str) -> str:
    if not isinstance(row.get(key), str):
        raise InputError(f"{where}: '{key}' is {row.get(key)!r}. Expected a string.")
    return str(row[key])


def _without_duplicates(examples: Sequence[Example], threshold: float, counts: Counter[str]) -> list[Example]:
    """Keep the first of examples whose tokens are the same, or nearly so (MinHash, 5-grams of tokens)."""
    # The index finds pairs near its threshold with a chance only: it looks further, and jaccard() decides.
    index = MinHashLSH(threshold=max(0.1, threshold - 0.3), num_perm=PERMUTATIONS)
    hashes: list[MinHash] = []
    seen: set[str] = set()
    kept = []
    for example in examples:
        tokens = re.findall(r"\w+|[^\w\s]", example.prompt + example.completion)
        text = " ".join(tokens)
        if text in seen:
            counts["exact duplicates"] += 1
            continue
        seen.add(text)
        minhash = MinHash(num_perm=PERMUTATIONS)
        starts = range(max(1, len(tokens) - 4))
        minhash.update_batch([" ".join(tokens[start : start + 5]).encode() for start in starts])
        if any(minhash.jaccard(hashes[number]) >= threshold for number in index.query(minhash)):
            counts["near duplicates"] += 1
            continue
        index.insert(len(hashes), minhash)
        hashes.append(minhash)
        kept.append(example)
    return kept


def _choose(examples: list[Example], most: int | None) -> list[Example]:
    """At most so many, chosen by hash: the same on every machine, and steady while data are added."""
    return sorted(examples, key=lambda item: item.example_id)[:most]


def _as_words(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "nothing read"
