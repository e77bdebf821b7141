"""From sources to a prepared data set: train.jsonl, held_out.jsonl and a report, in a folder.

    dataset = prepare(config.data, tokenizer_facts, folder)     # Dataset(train, held_out, report, …)

Two passes. The first reads every source, redacts, makes examples, and writes them down with their fingerprints; the
second writes those that are kept to their side of the split. No file of code is on both sides, nor is a near duplicate.
"""

import contextlib
import dataclasses
import json
import math
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from code_model import fim
from contract.errors import InputError
from trainer.data import filters, kinds, languages
from trainer.data.duplicates import Fingerprints
from trainer.data.example import KINDS, Example, ExampleFile, digest, from_line, hash64, to_line
from trainer.data.items import File, Row
from trainer.data.report import Report, histogram
from trainer.data.rows import ChatTemplate, continuation, parse
from trainer.data.secrets import Redactor, overwrite
from trainer.data.settings import DataConfig
from trainer.data.sources import EXPECTED, Source, open_source

BATCH = 256  # examples tokenised at a time
CHARACTERS_PER_TOKEN = 2.5  # of code, or more: how much context around a gap fits into max_length

REPORTS = ("report.json", "report.md", "lengths.png")
OUTPUTS = ("train.jsonl", "held_out.jsonl", *REPORTS)
TRAIN, HELD_OUT = "train", "held out"
Progress = Callable[[int], object]  # called with the number of examples just read

Numbers = npt.NDArray[Any]


@dataclass(frozen=True)
class Limits:
    """What the model says about the data: how it counts tokens, and how many it takes."""

    chat_template: ChatTemplate
    # Of prompt, completion and end of text together; 0 where the tokenizer does not give the completion back.
    token_counts: Callable[[Sequence[Example]], list[int]]
    max_length: int  # tokens, of an example to train on
    max_eval_length: int  # tokens, of an example from data.eval_source


@dataclass(frozen=True)
class Dataset:
    """What a run trains on and is judged by, with the report on how it came about."""

    train: ExampleFile
    held_out: list[Example]
    train_lengths: Numbers  # tokens of each, (len(train),)
    train_digest: str
    held_out_digest: str  # the `dataset_digest` that two evaluations must share to be comparable
    report: Report
    location: str  # of the first source
    eval_location: str
    folders: list[Path]  # of the sources that are folders, where git may know the commit
    commits: list[str]  # of those that name one


def source_names(source: Any) -> list[str]:
    """`data.source` as a list, whichever of the two it is."""
    return [source] if isinstance(source, str) else list(source or [])


def check_sources(config: DataConfig) -> None:
    """Raise InputError for a source that is not there, before anything is read."""
    for key in ("eval_source", "source"):
        for name in source_names(getattr(config, key)):
            open_source(name, f"data.{key}")


def prepare(config: DataConfig, limits: Limits, folder: Path, progress: Progress = lambda count: None) -> Dataset:
    """Read, redact, deduplicate, filter by length and split as configured, into a folder that exists.

    Writes train.jsonl, held_out.jsonl, report.json, report.md and lengths.png there. Raises InputError for a source
    that is missing, unreadable or leaves nothing to train or to evaluate on; then nothing is left in the folder.
    """
    with (
        tempfile.TemporaryDirectory(dir=folder, prefix=".work-") as work,
        contextlib.closing(_Preparation(config, limits, Path(work), progress)) as preparation,
    ):
        return preparation.run(folder)


class _Candidates:
    """The examples as made, on disk, with what decides on each in arrays."""

    def __init__(self, folder: Path, threshold: float) -> None:
        self.path = folder / "candidates.jsonl"
        self.file = self.path.open("wb")
        self.prints = Fingerprints(folder / "examples", threshold)
        self.lengths = array("I")  # tokens
        self.numbers = array("Q")  # Example.number
        self.groups = array("Q")  # hash of the group's name
        self.files = array("i")  # which file of code; -1: a row
        self.kinds = array("b")  # index in KINDS; -1: a row

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, example: Example, file: int, length: int) -> None:
        self.file.write(to_line(example))
        self.prints.add(example.compared)
        self.lengths.append(length)
        self.numbers.append(example.number)
        self.groups.append(hash64(example.group))
        self.files.append(file)
        self.kinds.append(KINDS.index(example.kind) if example.kind in KINDS else -1)

    def __iter__(self) -> Iterator[Example]:
        self.file.flush()
        with self.path.open("rb") as file:
            for line in file:
                yield from_line(line)


class _Preparation:
    def __init__(self, config: DataConfig, limits: Limits, work: Path, progress: Progress) -> None:
        self.config, self.limits, self.work, self.progress = config, limits, work, progress
        self.report = Report()
        self.weights = {kind: getattr(config, f"{kind}_weight") for kind in KINDS}
        self.files = Fingerprints(work / "files", config.near_duplicate_threshold)
        self.candidates = _Candidates(work, config.near_duplicate_threshold)
        self.waiting: list[tuple[Example, int]] = []  # to be tokenised: example, number of its file

    def run(self, folder: Path) -> Dataset:
        config, candidates = self.config, self.candidates
        # The held-out examples go first: of two that are alike, it is the one to train on that is dropped.
        held_out_sources = [open_source(name, "data.eval_source") for name in source_names(config.eval_source)]
        sources = [open_source(name, "data.source") for name in source_names(config.source)]
        if not sources and not held_out_sources:
            raise InputError(f"data.source is {config.source!r}. Expected {EXPECTED}, or a list of them.")
        with Redactor() as redactor:
            for source in held_out_sources:
                self._read(source, redactor)
            first_of_train = len(candidates)
            for source in sources:
                self._read(source, redactor)
        is_eval = np.arange(len(candidates)) < first_of_train
        live = self._without_duplicates(self._short_enough(is_eval))
        if held_out_sources:
            train, held_out = live & ~is_eval, live & is_eval
        else:
            train, held_out = self._split(live)
        if config.exact_weights:
            train = self._in_exact_shares(train)
        train = self._at_most(config.max_train_examples, train, "data.max_train_examples")
        held_out = self._at_most(config.max_eval_examples, held_out, "data.max_eval_examples")
        if (sources and not train.any()) or not held_out.any():
            if not sources:
                raise InputError(
                    f"Of '{config.eval_source}' nothing is left to judge by ({self.report.in_words()}). "
                    f"Expected examples of at most {self.limits.max_eval_length} tokens."
                )
            raise InputError(
                f"data.source '{config.source}' gives {int(train.sum())} examples to train on and "
                f"{int(held_out.sum())} to hold out ({self.report.in_words()}). Expected at least one of each: give "
                "more files, name held-out ones with data.eval_source, or keep more with "
                "data.require_docstring=false or a larger trainer.max_length."
            )
        return self._write(folder, train, held_out, sources, held_out_sources)

    def close(self) -> None:
        self.files.close()
        self.candidates.prints.close()
        self.candidates.file.close()

    def _read(self, source: Source, redactor: Redactor) -> None:
        made, read = self.report.examples["read"], 0
        language = "text" if self.config.language == "auto" else self.config.language
        for item in source.items:
            read += 1
            found = item if isinstance(item, File) else parse(item, self.limits.chat_template, language)
            if isinstance(found, File):
                self._read_file(found, redactor)
            elif isinstance(item, Row):
                self._read_row(found, redactor, item.where, source)
        self._tokenise()
        self.report.sources.append({"name": source.name, "location": source.location, "read": read})
        if self.report.examples["read"] == made:
            raise InputError(
                f"{source.key} is '{source.name}', where no example was found ({self.report.in_words()}). "
                "Expected functions with docstrings (or data.require_docstring=false, or a weight for other kinds), "
                "or rows."
            )

    def _read_row(self, example: Example, redactor: Redactor, where: str, source: Source) -> None:
        if not example.completion and source.key == "data.source":
            self.report.examples["read"] += 1
            self.report.examples["dropped: a test but no completion to learn"] += 1
            return
        if self.config.redact_secrets:
            # Together, since a secret may be recognised by what stands before it.
            cut = len(example.prompt)
            secrets = redactor.find(example.prompt + example.completion)
            if any(secret.start < cut < secret.end for secret in secrets):
                self.report.examples["read"] += 1
                self.report.examples["dropped: a secret over the end of the prompt"] += 1
                return
            if secrets:
                self.report.add_secrets(where.replace(", line ", ":"), secrets)
                example = dataclasses.replace(
                    example,
                    prompt=overwrite(example.prompt, [item for item in secrets if item.end <= cut]),
                    completion=overwrite(example.completion, [item for item in secrets if item.start >= cut], cut),
                    function=overwrite(example.function, redactor.find(example.function)) if example.function else None,
                )
        self._add(continuation(example) if source.key == "data.eval_source" else example, -1)

    def _read_file(self, file: File, redactor: Redactor) -> None:
        language = languages.language_of(file.path)
        dropped = file.dropped or filters.by_name(file.path)
        text = filters.decode(file.content) if dropped is None else None
        if dropped is None and language is None:
            dropped = "in another language"
        elif dropped is None:
            dropped = "no text" if text is None else filters.by_content(text)
        if dropped is not None or text is None or language is None:
            self.report.drop_file(file.path, f"dropped: {dropped}")
            return
        if self.config.redact_secrets:
            secrets = redactor.find(text, Path(file.path).suffix)
            self.report.add_secrets(file.path, secrets)
            text = overwrite(text, secrets)
        functions = languages.read_functions(text, language)
        if functions is None:
            self.report.drop_file(file.path, "dropped: does not parse")
            return
        self.report.files["read"] += 1
        number = len(self.files)
        self.files.add(text)
        lines = text.removesuffix("\n").split("\n")
        weights = self.weights if fim.may_hold_gaps(text) else self.weights | {"fim": 0.0}
        context = int(CHARACTERS_PER_TOKEN * self.limits.max_length)
        for function in functions:
            example = kinds.example_of(
                function, lines, language, file.path, weights, self.config.require_docstring, context
            )
            if example is None:
                self.report.examples["functions left out: of no kind that has a weight"] += 1
            else:
                self._add(example, number)

    def _add(self, example: Example, file: int) -> None:
        self.report.examples["read"] += 1
        self.waiting.append((example, file))
        if len(self.waiting) >= BATCH:
            self._tokenise()

    def _tokenise(self) -> None:
        lengths = self.limits.token_counts([example for example, _ in self.waiting]) if self.waiting else []
        for (example, file), length in zip(self.waiting, lengths, strict=True):
            self.candidates.add(example, file, length)
        self.progress(len(self.waiting))
        self.waiting.clear()

    def _short_enough(self, is_eval: Numbers) -> Numbers:
        lengths = np.asarray(self.candidates.lengths)
        short = lengths <= np.where(is_eval, self.limits.max_eval_length, self.limits.max_length)
        self._count("dropped: too long", ~short)
        self._count("dropped: characters that the tokenizer does not give back", lengths == 0)
        return np.asarray(short & (lengths > 0))

    def _without_duplicates(self, live: Numbers) -> Numbers:
        """First whole files, then examples; so no near-duplicate file's remains stay behind."""
        exact, near = self.files.duplicates(np.ones(len(self.files), dtype=bool))
        if (exact | near).any():
            self.report.files["dropped: exact duplicate"] += int(exact.sum())
            self.report.files["dropped: near duplicate"] += int(near.sum())
            self.report.files["read"] -= int((exact | near).sum())
        files = np.asarray(self.candidates.files)
        in_duplicate = (files >= 0) & np.append(exact | near, False)[files]
        self._count("dropped: in a file that is a duplicate", live & in_duplicate)
        live = live & ~in_duplicate
        exact, near = self.candidates.prints.duplicates(live)
        self._count("dropped: exact duplicate", exact)
        self._count("dropped: near duplicate", near)
        return np.asarray(live & ~exact & ~near)

    def _at_most(self, most: int | None, chosen: Numbers, key: str) -> Numbers:
        kept = _choose(chosen, np.asarray(self.candidates.numbers), most)
        self._count(f"left out: {key}", chosen & ~kept)
        return kept

    def _in_exact_shares(self, train: Numbers) -> Numbers:
        """Drop examples of the kinds that there are too many of, until the kinds stand as their weights do."""
        kinds_of = np.asarray(self.candidates.kinds)
        of_kind = {kind: train & (kinds_of == KINDS.index(kind)) for kind in KINDS if self.weights[kind] > 0}
        scale = min(chosen.sum() / self.weights[kind] for kind, chosen in of_kind.items())
        kept = train & (kinds_of < 0)
        for kind, chosen in of_kind.items():
            kept |= _choose(chosen, np.asarray(self.candidates.numbers), round(scale * self.weights[kind]))
        self._count("left out: data.exact_weights", train & ~kept)
        return kept

    def _count(self, reason: str, dropped: Numbers) -> None:
        if dropped.any():
            self.report.examples[reason] += int(dropped.sum())

    def _split(self, live: Numbers) -> tuple[Numbers, Numbers]:
        groups = np.asarray(self.candidates.groups)
        target = min(self.config.eval_fraction * int(live.sum()), self.config.max_eval_examples or math.inf)
        held_out = live & np.isin(groups, _groups_to_hold_out(groups[live], target))
        return live & ~held_out, held_out

    def _write(
        self, folder: Path, train: Numbers, held_out: Numbers, sources: list[Source], held_out_sources: list[Source]
    ) -> Dataset:
        numbers, all_lengths = np.asarray(self.candidates.numbers), np.asarray(self.candidates.lengths)
        train_file, judged = ExampleFile(folder / "train.jsonl"), []
        counts = {name: (Counter[str](), Counter[str]()) for name in (TRAIN, HELD_OUT)}
        with (self.work / "train.jsonl").open("wb") as file:
            for example, in_train, in_held_out in zip(self.candidates, train, held_out, strict=True):
                if in_train:
                    train_file.append_to(file, example)
                elif in_held_out:
                    judged.append(continuation(example))
                if in_train or in_held_out:
                    by_kind, by_language = counts[TRAIN if in_train else HELD_OUT]
                    by_kind[example.kind] += 1
                    by_language[example.language] += 1
        judged.sort(key=lambda example: example.number)
        with (self.work / "held_out.jsonl").open("wb") as file:
            file.writelines(map(to_line, judged))
        digests = {TRAIN: digest(numbers[train]), HELD_OUT: digest([item.number for item in judged])}
        for name, chosen in ((TRAIN, train), (HELD_OUT, held_out)):
            self.report.describe_split(name, digests[name], all_lengths[chosen], *counts[name])
        too_long = all_lengths[all_lengths > self.limits.max_length]
        lengths = {TRAIN: all_lengths[train], HELD_OUT: all_lengths[held_out], "too long": too_long}
        histogram(lengths, self.limits.max_length, self.work / "lengths.png")
        report = json.dumps(self.report.to_dict(), indent=2, ensure_ascii=False)
        (self.work / "report.json").write_text(report, encoding="utf-8")
        (self.work / "report.md").write_text(self.report.to_markdown(), encoding="utf-8")
        for name in OUTPUTS:
            (self.work / name).replace(folder / name)  # whole or not at all
        every = [*sources, *held_out_sources]
        return Dataset(
            train=train_file,
            held_out=judged,
            train_lengths=all_lengths[train].copy(),
            train_digest=digests[TRAIN],
            held_out_digest=digests[HELD_OUT],
            report=self.report,
            location=every[0].location,
            eval_location=(held_out_sources or sources)[0].location,
            folders=[source.folder for source in every if source.folder is not None],
            commits=[source.commit for source in every if source.commit is not None],
        )


def _groups_to_hold_out(groups: Numbers, target: float) -> Numbers:
    """Whole groups, in the order of their hash, until so many of their members are held out.

    `groups`: that of each example. Each side gets at least one group where there are two. The order depends on names
    alone, so the held-out files change little while the code grows.
    """
    order, sizes = np.unique(groups, return_counts=True)
    if len(order) < 2:
        return order[:0]
    chosen, total = [], 0
    for number, size in enumerate(sizes):
        if total >= target:
            break
        if total + size <= max(1.5 * target, 1):
            chosen.append(number)
            total += int(size)
    return order[chosen or [int(sizes.argmin())]]  # every group may be large


def _choose(chosen: Numbers, numbers: Numbers, most: int | None) -> Numbers:
    """At most so many, chosen by hash: the same on every machine, and steady while data are added."""
    if most is None or int(chosen.sum()) <= most:
        return chosen
    kept = np.zeros_like(chosen)
    where = np.flatnonzero(chosen)
    kept[where[np.argsort(numbers[where], kind="stable")[:most]]] = True
    return kept
