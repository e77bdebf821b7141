"""The second pass: the chosen candidates become examples, with prompts that fit, and are written to their side."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from code_model import fim
from code_model.context import imports_of
from trainer.data import filters
from trainer.data.candidates import Candidates
from trainer.data.example import Example, digest, to_line
from trainer.data.limits import Limits
from trainer.data.prompts import Prompts
from trainer.data.report import HELD_OUT, TRAIN, Report, Side, histogram
from trainer.data.rows import continuation
from trainer.data.split import choose

BATCH = 256  # examples tokenised at a time
TOO_LONG, NOT_GIVEN_BACK = "too long", "characters that the tokenizer does not give back"
MOST_MEASURED = 1000  # held-out examples that are compared with all of the other side

Numbers = npt.NDArray[Any]


class _Covered:
    """How many characters of files are in one or more of some spans, which come file by file."""

    def __init__(self) -> None:
        self._file, self._spans, self._total = -1, [(0, 0)], 0

    def add(self, file: int, start: int, end: int) -> None:
        if file != self._file:
            self._total, self._file, self._spans = self.total, file, []
        self._spans.append((start, end))

    @property
    def total(self) -> int:
        covered, last = 0, 0
        for start, end in sorted(self._spans):
            covered += max(0, end - max(start, last))
            last = max(last, end)
        return self._total + covered


class Writer:
    """Writes train.jsonl, held_out.jsonl and the report into a folder."""

    def __init__(
        self,
        candidates: Candidates,
        limits: Limits,
        report: Report,
        folder: Path,
        progress: Callable[[int], object],
    ) -> None:
        self.candidates, self.limits, self.report = candidates, limits, report
        self.folder, self.progress = folder, progress
        self.prompts = Prompts(candidates, limits.count, limits.size, limits.max_length)
        self.targets = _Covered()
        self.sides = {TRAIN: Side(), HELD_OUT: Side()}
        self.train_digest = self.held_out_digest = ""
        self.last_file = -1

    @property
    def train_lengths(self) -> Numbers:
        """Tokens of each example to train on."""
        return np.asarray(self.sides[TRAIN].lengths)

    def write(self, train: Numbers, held_out: Numbers, dropped: set[int]) -> list[Example]:
        """Make and write the examples, (len(candidates),) saying which; returns those to judge by.

        No prompt shows anything of the `dropped` files: they are copies of others, which may be judged by.
        """
        candidates = self.candidates
        files = np.asarray(candidates.file)
        # What is judged by is never shown in a prompt to train on.
        judged_files = dropped | set(files[held_out].tolist())
        rows = candidates.rows()
        judged: list[Example] = []
        seen: set[int] = set()  # of one file: two places may make the same example
        waiting: list[tuple[int, Example]] = []
        with (self.folder / "train.jsonl").open("wb") as file:

            def flush() -> None:
                lengths = self.limits.token_counts([example for _, example in waiting]) if waiting else []
                for (number, example), length in zip(waiting, lengths, strict=True):
                    if files[number] != self.last_file:
                        self.last_file = files[number]
                        seen.clear()
                    if files[number] >= 0 and example.number in seen:
                        self.report.examples["dropped: exact duplicate"] += 1
                        continue
                    seen.add(example.number)
                    if not 0 < length <= (self.limits.max_length if files[number] >= 0 else length):
                        self.report.examples[f"dropped: {TOO_LONG if length else NOT_GIVEN_BACK}"] += 1
                        continue
                    name = TRAIN if train[number] else HELD_OUT
                    self._take(self.sides[name], number, example, length)
                    if name == TRAIN:
                        file.write(to_line(example))
                    else:
                        judged.append(example)
                self.progress(len(waiting))
                waiting.clear()

            for number in range(len(candidates)):
                row = next(rows) if files[number] < 0 else None
                if not (train[number] or held_out[number]):
                    continue
                if row is None:
                    hidden = judged_files if train[number] else dropped
                    waiting.append((number, self.prompts.example(number, hidden)))
                else:
                    waiting.append((number, continuation(row) if held_out[number] else row))
                if len(waiting) >= BATCH:
                    flush()
            flush()
        judged.sort(key=lambda example: example.number)
        with (self.folder / "held_out.jsonl").open("wb") as file:
            file.writelines(map(to_line, judged))
        self._describe(train, held_out)
        return judged

    def _take(self, side: Side, number: int, example: Example, length: int) -> None:
        side.lengths.append(length)
        side.numbers.append(example.number)
        side.groups.append(self.candidates.group[number])
        side.kinds[example.kind] += 1
        side.languages[example.language] += 1
        if example.cursor:
            side.cursors[example.cursor] += 1
        if (file := self.candidates.file[number]) < 0:
            return
        shown = fim.read(example.prompt)
        side.places += 1
        side.tokens_of_places += length
        side.tests += filters.is_test(example.group)
        side.with_path += bool(shown.path)
        side.by_file[file] += 1
        if self.candidates.start[number] > self.prompts.first_import(file):
            side.have_imports += 1
            side.with_imports += bool(imports_of(shown.prefix))
        self.targets.add(file, self.candidates.start[number], self.candidates.end[number])

    def _describe(self, train: Numbers, held_out: Numbers) -> None:
        for name, side in self.sides.items():
            self.report.describe_split(name, digest(np.asarray(side.numbers)), side, self.limits.max_length)
        if len(self.candidates.files):
            self.report.source_as_targets = self.targets.total / max(self.candidates.files.characters, 1)
        self.train_digest, self.held_out_digest = (self.report.splits[name]["digest"] for name in (TRAIN, HELD_OUT))
        if train.any():
            numbers = np.asarray(self.candidates.number)
            measured = held_out.copy()
            measured[held_out] = choose(numbers[held_out], MOST_MEASURED)
            of_units = self.candidates.units(measured)
            twins = self.candidates.prints.with_twin(of_units, self.candidates.units(train))
            self.report.held_out_twins = twins / int(of_units.sum())
        lengths = {name: np.asarray(side.lengths) for name, side in self.sides.items()}
        rows = np.asarray(self.candidates.length)
        lengths["too long"] = rows[rows > self.limits.max_length]
        histogram(lengths, self.limits.max_length, self.folder / "lengths.png")
        report = json.dumps(self.report.to_dict(), indent=2, ensure_ascii=False)
        (self.folder / "report.json").write_text(report, encoding="utf-8")
        (self.folder / "report.md").write_text(self.report.to_markdown(), encoding="utf-8")
