"""How many held-out functions have a twin in training: the share above 90% and 80% edit similarity.

    python -m tests.bench.leaks                              # the six code bases of tests/support/codebases.py
    python -m tests.bench.leaks networkx zod trainer.max_length=512
    python -m tests.bench.leaks prepared                     # a folder that `trainer prepare` wrote

Measures what `trainer prepare` wrote, and shares no code with what finds twins there. A held-out row is compared with
every row to train on: the function that it is from, or what is to be completed; of rows of kind `function` also the
head and the completion together. Compared are tokens: as they stand ("plain"); and without comments, docstrings and
types, and with identifiers numbered in the order in which they first appear ("renamed"). The similarity is Indel's,
2 * common / (tokens of both), which is never below Levenshtein's.
"""

import argparse
import contextlib
import io
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rapidfuzz.distance import Indel
from rapidfuzz.process import cdist

from tests.support import codebases

LEVELS = (0.9, 0.8)
WORST = 10  # pairs that are printed
MOST_LINES = 12  # of each text that is printed
KEYWORDS = (
    "and as assert async await break case catch class const continue def default del delete do elif else enum except "
    "export extends false False finally fn for from func function global if impl import in instanceof interface is "
    "lambda let new nonlocal None not null or pass private protected public pub raise range return self static struct "
    "super switch this throw true True try typeof undefined var void while with yield"
)
WORDS = set(KEYWORDS.split())  # that are no identifiers
LITERAL = r"\"\"\".*?\"\"\"|'''.*?'''|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`"
TOKEN = re.compile(rf"({LITERAL})|(\w+|[^\w\s])", re.DOTALL)
DOCSTRING = re.compile(r"^[ \t]*[rR]?(?:\"\"\".*?\"\"\"|'''.*?''')[ \t]*$", re.DOTALL | re.MULTILINE)
PYTHON_COMMENT = re.compile(rf"({LITERAL})|#[^\n]*", re.DOTALL)
OTHER_COMMENT = re.compile(rf"({LITERAL})|//[^\n]*|/\*.*?\*/", re.DOTALL)
NAME = r"[A-Za-z_][\w.]*(?:\[[^][=()]*(?:\[[^][=()]*\][^][=()]*)*\]|<[^<>=();]*>)?(?:\[\])?"
PYTHON_TYPE = re.compile(rf"->[^:\n]+(?=:)|(?<=\w):[ ]+[\"']?{NAME}[\"']?(?:\s*\|\s*[\"']?{NAME}[\"']?)*(?=\s*[,=)\n])")
TYPESCRIPT_TYPE = re.compile(
    rf"(?<=[\w)?])\??:\s*{NAME}(?:\s*[|&]\s*{NAME})*(?=\s*[,=){{;])|\bas\s+{NAME}|(?<=\w)<[\w\s,.|]*>(?=\()"
)


def plain(text: str) -> list[str]:
    """Words and signs, those of strings and comments too."""
    return re.findall(r"\w+|[^\w\s]", text)


def renamed(text: str, language: str) -> list[str]:
    """Words and signs without comments, docstrings and types; identifiers as numbers."""
    if language == "python":
        text = PYTHON_COMMENT.sub(r"\1", DOCSTRING.sub("", text))
        text = PYTHON_TYPE.sub("", text)
    else:
        text = OTHER_COMMENT.sub(r"\1", text)
        if language in ("typescript", "tsx"):
            text = TYPESCRIPT_TYPE.sub(lambda match: match[0] if in_object(text, match.start()) else "", text)
    numbers: dict[str, int] = {}
    tokens = []
    for literal, token in TOKEN.findall(text):
        if literal:
            tokens += ['"', *plain(literal[1:-1]), '"']
        elif token.isidentifier() and token not in WORDS:
            tokens.append(f"name {numbers.setdefault(token, len(numbers))}")
        elif token not in (";", "async", "await", "export"):
            tokens.append({"let": "const", "var": "const"}.get(token, token))
    return tokens


def in_object(text: str, place: int) -> bool:
    """Whether a colon there is one between key and value, and says no type: the innermost bracket is a brace."""
    before = text[:place]
    while (reduced := re.sub(r"\([^()\[\]{}]*\)|\[[^()\[\]{}]*\]|\{[^()\[\]{}]*\}", "", before)) != before:
        before = reduced
    opened = re.findall(r"[(\[{]", before)
    is_declared = re.search(r"\b(const|let|var)\s+\w+$|\)$", text[:place])
    return bool(opened) and opened[-1] == "{" and is_declared is None and text[place] == ":"


class Texts:
    """What is compared of some rows: the tokens of each text as a string of one character a token."""

    def __init__(self, rows: list[dict[str, Any]], alphabet: dict[str, str]) -> None:
        self.texts: list[str] = []
        self.rows: list[int] = []  # whose text it is
        self.views: dict[str, list[str]] = {"plain": [], "renamed": []}
        for number, row in enumerate(rows):
            texts = {row.get("function") or row["completion"]}
            if row["kind"] == "function":
                texts.add(row["prompt"] + row["completion"])
            for text in sorted(texts):
                self.texts.append(text)
                self.rows.append(number)
                for name, tokens in (("plain", plain(text)), ("renamed", renamed(text, row["language"]))):
                    spelled = (alphabet.setdefault(token, chr(len(alphabet) + 1)) for token in tokens)
                    self.views[name].append("".join(spelled))


def measure(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(pairs, the worst first; numbers for the table) of a folder that `trainer prepare` wrote."""
    alphabet: dict[str, str] = {}
    sides = []
    for name in ("held_out", "train"):
        with (folder / f"{name}.jsonl").open(encoding="utf-8") as file:
            sides.append([json.loads(line) for line in file])
    held_out, train = (Texts(rows, alphabet) for rows in sides)
    pairs, numbers = [], {"train": len(sides[1]), "held out": len(sides[0])}
    for view in ("plain", "renamed"):
        scores = cdist(
            held_out.views[view],
            train.views[view],
            scorer=Indel.normalized_similarity,
            score_cutoff=min(LEVELS),
            dtype=np.float32,
        )
        nearest = scores.argmax(axis=1)
        best = np.zeros(len(sides[0]))
        np.maximum.at(best, held_out.rows, scores.max(axis=1))
        numbers |= {f"{view} > {level}": int((best > level + 1e-6).sum()) for level in LEVELS}
        for number in np.flatnonzero(scores.max(axis=1) > min(LEVELS)):
            one, other = sides[0][held_out.rows[number]], sides[1][train.rows[nearest[number]]]
            texts = held_out.texts[number], train.texts[nearest[number]]
            similarity = float(scores[number].max())
            pairs.append({"similarity": similarity, "view": view, "rows": (one, other), "texts": texts})
    pairs.sort(key=lambda pair: (-pair["similarity"], -len(pair["texts"][0])))
    return pairs, numbers


def prepare(name: str, folder: Path, overrides: list[str]) -> None:
    """Let `trainer prepare` make a data set of a code base."""
    from trainer.cli import main as trainer

    # One token for about a byte, so most functions fit into 4,032 of them, as into 1,024 of a real model.
    settings = [
        "model.name=bundled:tiny-random",
        "trainer.max_length=4032",
        *overrides,
        f"data.source={codebases.fetch(name)}",
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # the report
        trainer(["prepare", "-o", str(folder), *settings], standalone_mode=False)


def main() -> None:
    """Print one row for each data set, and then the pairs that are most alike."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help="names of code bases, prepared folders, and settings KEY=VALUE")
    parser.add_argument("--pairs", type=int, default=WORST, help="how many to print")
    options = parser.parse_args()
    overrides = [item for item in options.data if "=" in item]
    every: list[dict[str, Any]] = []
    shown = [f"{view} > {level}" for view in ("plain", "renamed") for level in LEVELS]
    print("| data | train | held out | " + " | ".join(shown) + " |\n|---" + "|---" * (2 + len(shown)) + "|")
    for name in [item for item in options.data if "=" not in item] or codebases.NAMES:
        with tempfile.TemporaryDirectory(prefix="ratchet-bench-") as temporary:
            folder = Path(name)
            if name in codebases.NAMES:
                folder = Path(temporary)
                prepare(name, folder, overrides)
            pairs, numbers = measure(folder)
        every += [pair | {"data": folder.name if name not in codebases.NAMES else name} for pair in pairs]
        share = (f"{numbers[key]} ({numbers[key] / numbers['held out']:.1%})" for key in shown)
        print(f"| {name} | {numbers['train']} | {numbers['held out']} | {' | '.join(share)} |", flush=True)
    every.sort(key=lambda pair: (-pair["similarity"], -len(pair["texts"][0])))
    for pair in every[: options.pairs]:
        one, other = pair["rows"]
        print(f"\n{pair['similarity']:.3f} {pair['view']}, {pair['data']}: {one['group']} | {other['group']}")
        for mark, text in zip("-+", pair["texts"], strict=True):
            print("".join(f"{mark} {line}\n" for line in text.split("\n")[:MOST_LINES]), end="")


if __name__ == "__main__":
    main()
