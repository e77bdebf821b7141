"""Sources of data, written as tests need them, and the data sets made of them."""

import json
import tempfile
from pathlib import Path

from trainer.data.prepare import Dataset, Limits, prepare
from trainer.data.settings import DataConfig

ONLY_FUNCTIONS = {"fim_weight": 0.0, "next_block_weight": 0.0}


def chat_template(messages) -> str:
    return "".join(f"<{item['role']}>{item['content']}" for item in messages)


def load_from(source, max_length: int = 10_000, folder: Path | None = None, **config) -> Dataset:
    """The data set of a source, one token for each character; functions only, unless weights are given."""
    folder = folder or Path(tempfile.mkdtemp(dir=tempfile.gettempdir(), prefix="ratchet-test-"))
    source = [str(item) for item in source] if isinstance(source, list) else str(source)
    weights = {} if any(name.endswith("_weight") for name in config) else ONLY_FUNCTIONS
    limits = Limits(chat_template, lambda items: [len(i.prompt + i.completion) for i in items], max_length, max_length)
    return prepare(DataConfig(source=source, **weights, **config), limits, folder)


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
