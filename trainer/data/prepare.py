"""From sources to a prepared data set: train.jsonl, held_out.jsonl and a report, in a folder.

    dataset = prepare(config.data, limits, folder)     # Dataset(train, held_out, report, …)

Two passes. The first (`reading`) reads every source, redacts, and keeps files and rows with their fingerprints, and the
places in files that may become examples. Then it is decided which do, and on which side of the split (`choosing`): no
file of code is on both, nor is a near duplicate. The second (`writing`) makes the prompts of those, and writes them.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from contract.errors import InputError
from contract.files import try_lock
from contract.secrets import Redactor
from trainer.data.candidates import Candidates
from trainer.data.choosing import Choosing
from trainer.data.example import Example, ExampleFile
from trainer.data.limits import Limits
from trainer.data.pathspec import Selection
from trainer.data.reading import EVAL_SOURCE, Progress, Reader
from trainer.data.report import Report
from trainer.data.settings import DataConfig
from trainer.data.sources import EXPECTED, Source, open_source
from trainer.data.writing import Writer

REPORTS = ("report.json", "report.md", "lengths.png")
WORK = ".work-"  # how the folder's name begins in which it is made
OUTPUTS = ("train.jsonl", "held_out.jsonl", *REPORTS)

Numbers = npt.NDArray[Any]


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
    sources: list[Source]  # to train on
    folders: list[Path]  # of the sources that are folders, where git may know the commit
    commits: list[str]  # of those that name one


def source_names(source: Any) -> list[str]:
    """`data.source` as a list, whichever of the two it is."""
    return [source] if isinstance(source, str) else list(source or [])


def check_sources(config: DataConfig) -> None:
    """Raise InputError for a source that is not there, or a pathspec that git would refuse, before anything is read."""
    Selection.of(config.include, config.exclude)
    _check_sides(config)
    for key in ("eval_source", "source"):
        for name in source_names(getattr(config, key)):
            open_source(name, f"data.{key}")


def _check_sides(config: DataConfig) -> None:
    """Raise InputError where something is both to train on and to judge by, or nothing is that shall be newer."""
    if config.eval_since is not None and not source_names(config.eval_source):
        raise InputError(
            f"data.eval_since is '{config.eval_since}', and data.eval_source is not set. Expected both, such as "
            "data.source=git:PATH@v1 data.eval_source=git:PATH data.eval_since=v1."
        )
    if both := set(source_names(config.eval_source)) & set(source_names(config.source)):
        raise InputError(
            f"data.source and data.eval_source both have '{min(both)}'. Expected other code to judge by, or no "
            "data.eval_source: then a part of data.source is held out."
        )


def prepare(
    config: DataConfig,
    limits: Limits,
    folder: Path,
    progress: Progress = lambda count: None,
    writing: Callable[[int], Progress] = lambda total: lambda count: None,
) -> Dataset:
    """Read, redact, deduplicate, split and make prompts as configured, into a folder that exists.

    Writes train.jsonl, held_out.jsonl, report.json, report.md and lengths.png there. `writing` is called with the
    number of examples to make, and gives what to call with the number just made. Raises InputError for a source that is
    missing, unreadable or leaves nothing to train or to evaluate on; then nothing is left in the folder.
    """
    with (
        _alone_in(folder),
        tempfile.TemporaryDirectory(dir=folder, prefix=WORK) as work,
        contextlib.closing(_Preparation(config, limits, Path(work))) as preparation,
    ):
        return preparation.run(folder, progress, writing)


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Without another preparation in the folder meanwhile, and without what one that was killed has left."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        if not try_lock(handle):
            raise InputError(f"Another process is preparing data in '{folder}'. Wait for it, or name another folder.")
        for left in folder.glob(f"{WORK}*"):
            shutil.rmtree(left, ignore_errors=True)
        yield
    finally:
        os.close(handle)


class _Preparation:
    def __init__(self, config: DataConfig, limits: Limits, work: Path) -> None:
        self.config, self.limits, self.work = config, limits, work
        self.report = Report()
        self.candidates = Candidates(work, config.near_duplicate_threshold)

    def run(self, folder: Path, progress: Progress, writing: Callable[[int], Progress]) -> Dataset:
        config, candidates = self.config, self.candidates
        _check_sides(config)
        selection = Selection.of(config.include, config.exclude)
        # The held-out examples go first: of two that are alike, it is the one to train on that is dropped.
        held_out_sources = [open_source(name, EVAL_SOURCE, selection) for name in source_names(config.eval_source)]
        sources = [open_source(name, "data.source", selection) for name in source_names(config.source)]
        if not sources and not held_out_sources:
            raise InputError(f"data.source is {config.source!r}. Expected {EXPECTED}, or a list of them.")
        candidates.files.several = len(sources) > 1 or len(held_out_sources) > 1
        by_age = config.split == "newest" and not held_out_sources
        changed = [_last_changed(source) if by_age else {} for source in sources]
        times: list[int] = []  # of each file's last change, where that decides on the split
        reader = Reader(config, self.limits, selection, candidates, self.report, progress)
        with Redactor() as redactor:
            for source in held_out_sources:
                reader.read(source, redactor)
            first_of_train = len(candidates)
            for source, known_times in zip(sources, changed, strict=True):
                known = len(candidates.files)
                reader.read(source, redactor)
                if by_age:
                    times += [known_times.get(candidates.files.path(n), 0) for n in range(known, len(candidates.files))]
        choosing = Choosing(config, self.limits, candidates, self.report, times)
        train, held_out = choosing.sides(first_of_train, bool(held_out_sources))
        self._check(sources, int(train.sum()), int(held_out.sum()))
        writer = Writer(candidates, self.limits, self.report, self.work, writing(int((train | held_out).sum())))
        judged = writer.write(train, held_out, choosing.dropped_files)
        self._check(sources, len(writer.train_lengths), len(judged))
        for name in OUTPUTS:
            (self.work / name).replace(folder / name)  # whole or not at all
        every = [*sources, *held_out_sources]
        return Dataset(
            train=ExampleFile.open(folder / "train.jsonl"),
            held_out=judged,
            train_lengths=writer.train_lengths,
            train_digest=writer.train_digest,
            held_out_digest=writer.held_out_digest,
            report=self.report,
            location=every[0].location,
            eval_location=(held_out_sources or sources)[0].location,
            sources=sources,
            folders=[source.folder for source in every if source.folder is not None],
            commits=[source.commit for source in every if source.commit is not None],
        )

    def close(self) -> None:
        self.candidates.close()

    def _check(self, sources: list[Source], train: int, held_out: int) -> None:
        """Raise InputError where nothing is left to train on, or to judge by."""
        if held_out and (train or not sources):
            return
        if not sources:
            raise InputError(
                f"Of '{self.config.eval_source}' nothing is left to judge by ({self.report.in_words()}). "
                f"Expected examples of at most {self.limits.max_eval_length} tokens."
            )
        raise InputError(
            f"data.source '{self.config.source}' gives {train} examples to train on and "
            f"{held_out} to hold out ({self.report.in_words()}). Expected at least one of each: give more "
            "files, name held-out ones with data.eval_source, take a larger trainer.max_length, or keep more of "
            "what is alike with a higher data.near_duplicate_threshold."
        )


def _last_changed(source: Source) -> dict[str, int]:
    """When each of a source's files was last changed. Raises InputError for a source without a git history."""
    changed = source.last_changed()
    if changed is None:
        raise InputError(
            f"data.split is newest, and data.source is '{source.name}', which has no git history, or in a "
            "shallow clone only its end. Expected a folder in a git work tree (git fetch --unshallow) or "
            "git:PATH[@REVISION], or data.split=hash."
        )
    return changed
