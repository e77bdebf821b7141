"""What becomes examples of the candidates, and on which side of the split.

    train, held_out = Choosing(config, limits, candidates, report, times).sides(first_of_train, has_eval_source=False)

No file of code is on both sides, nor is a near duplicate or a twin; tests, files and kinds have their shares. The
report says what was left out, and why.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data import filters
from trainer.data.candidates import Candidates
from trainer.data.example import KINDS, hash64
from trainer.data.limits import Limits
from trainer.data.report import Report
from trainer.data.settings import DataConfig
from trainer.data.split import capped, choose, groups_to_hold_out, in_shares, turns
from trainer.data.writing import NOT_GIVEN_BACK, TOO_LONG

PLACES_PER_EXAMPLE = 4  # about, by the time that kinds stand as their weights and files have their share
MOST_BY_MODELS = 0.2  # share of the characters to learn
TRIES = 4  # of holding out files that have something to judge by
ROUNDS = 20  # of trimming, by when nothing more goes

Numbers = npt.NDArray[Any]


class Choosing:
    """`times` is that of each file's last change, where that decides on the split; else empty.

    All arrays of the methods are bool, (len(candidates),): whether each candidate is meant.
    """

    def __init__(
        self, config: DataConfig, limits: Limits, candidates: Candidates, report: Report, times: Sequence[int]
    ) -> None:
        self.config, self.limits, self.candidates, self.report, self.times = config, limits, candidates, report, times
        self.tests_per_other = config.max_test_share / max(1 - config.max_test_share, 1e-9)
        self.weights = [getattr(config, f"{kind}_weight") for kind in KINDS]
        self.dropped_files: set[int] = set()  # as copies of others

    def sides(self, first_of_train: int, has_eval_source: bool) -> tuple[Numbers, Numbers]:
        """What to train on, and what to judge by. Candidates before `first_of_train` are from data.eval_source."""
        config = self.config
        is_eval = np.arange(len(self.candidates)) < first_of_train
        live = self._without_duplicates(self._usable(is_eval))
        if has_eval_source:
            train, held_out = self._without_twins(live & ~is_eval, live & is_eval)
        else:
            train, held_out = self._split_without_twins(live)
        held_out = self._at_most_of_each_file(self._in_shares(held_out, exact=False))
        held_out = self._at_most(config.max_eval_examples, held_out, "data.max_eval_examples", by_file=True)
        train = self._in_shares(self._capped(train), exact=config.exact_weights)
        if not config.exact_weights:
            train = self._trimmed(train)
        train = self._at_most(config.max_train_examples, train, "data.max_train_examples")
        return self._at_most_by_models(train), held_out

    def _at_most_by_models(self, train: Numbers) -> Numbers:
        """No more than MOST_BY_MODELS of what is learnt was written by a model: what users have changed least goes."""
        by_model, written = np.asarray(self.candidates.by_model), np.asarray(self.candidates.written, dtype=float)
        kept = np.flatnonzero(train & (by_model >= 0))
        models, all_ = float(by_model[kept].sum()), float(written[train].sum())
        train = train.copy()
        share = by_model[kept] / np.maximum(written[kept], 1)
        for number in kept[np.lexsort((np.asarray(self.candidates.number)[kept], -share))]:
            if models <= MOST_BY_MODELS * all_:
                break
            train[number] = False
            models, all_ = models - by_model[number], all_ - written[number]
        gone = np.zeros_like(train)
        gone[kept] = ~train[kept]
        self._count("left out: too much of it was written by a model", gone)
        return train

    def _usable(self, is_eval: Numbers) -> Numbers:
        lengths = np.asarray(self.candidates.length)
        short = lengths <= np.where(is_eval, self.limits.max_eval_length, self.limits.max_length)
        self._count(f"dropped: {TOO_LONG}", ~short)
        self._count(f"dropped: {NOT_GIVEN_BACK}", lengths == 0)
        return np.asarray(short & (lengths > 0))

    def _without_duplicates(self, live: Numbers) -> Numbers:
        """First whole files, then units; so no near-duplicate file's remains stay behind."""
        candidates = self.candidates
        generated = candidates.file_twins.generated()
        for number, original in sorted(generated.items()):
            path, from_path = candidates.files.path(number), candidates.files.path(original)
            self.report.drop_file(f"{path} from {from_path}", "dropped: generated from another")
        written = np.ones(len(candidates.files), dtype=bool)
        written[list(generated)] = False
        exact, near = candidates.whole_files.duplicates(written)
        for reason, found in (("exact", exact), ("near", near)):
            for duplicate in np.flatnonzero(found):
                self.report.drop_file(candidates.files.path(int(duplicate)), f"dropped: {reason} duplicate")
        self.report.files["read"] -= int((exact | near | ~written).sum())
        self.dropped_files = set(np.flatnonzero(exact | near | ~written).tolist())
        in_duplicate = np.append(exact | near | ~written, False)[np.asarray(candidates.file)]
        self._count("dropped: in a file that is a duplicate", live & in_duplicate)
        live = live & ~in_duplicate
        exact, near = candidates.prints.duplicates(candidates.units(live))
        self._count("dropped: exact duplicate", live & candidates.of_units(exact))
        self._count("dropped: near duplicate", live & candidates.of_units(near))
        return np.asarray(live & ~candidates.of_units(exact | near))

    def _split_without_twins(self, live: Numbers) -> tuple[Numbers, Numbers]:
        """Both sides; with more files held out where some have nothing left to judge by."""
        groups, counted = np.asarray(self.candidates.group), self.report.examples.copy()
        wanted, more = 0, 0
        for _ in range(TRIES):
            self.report.examples = counted.copy()
            train, held_out = self._split(live, more)
            wanted = wanted or len(np.unique(groups[held_out]))
            train, judged = self._without_twins(train, held_out)
            if (lacking := wanted - len(np.unique(groups[judged]))) <= 0:
                break
            more += lacking
        return train, judged

    def _split(self, live: Numbers, more: int) -> tuple[Numbers, Numbers]:
        """Files held out of the library and of its tests, by their share of the examples; `more` than are asked for.

        What users kept of completions is none to judge by: a model wrote most of it.
        """
        config, groups = self.config, self._sides
        tests, most = self._tests, config.max_eval_examples or math.inf
        if len(self.candidates.files):
            most *= PLACES_PER_EXAMPLE
        age = self._age() if self.times else None
        held_out = np.zeros_like(live)
        own = np.asarray(self.candidates.by_model) < 0
        for part in (live & own & ~tests, live & own & tests):
            if part.any():
                share = part.sum() / live.sum()
                chosen = groups_to_hold_out(
                    groups[part],
                    config.eval_fraction,
                    max(1, most * share),
                    max(1, round((config.min_eval_files + more) * share)),
                    age[part] if age is not None else None,
                )
                held_out |= part & np.isin(groups, chosen)
        return live & ~held_out, held_out

    @cached_property
    def _sides(self) -> Numbers:
        """What each candidate shares its side of the split with, as a hash: its file, and others that go with that."""
        files, groups = self.candidates.files, np.asarray(self.candidates.group)
        together = [hash64(files.group(number)) for number in self.candidates.file_twins.groups()]
        of_files = np.append(np.asarray(together, dtype=np.uint64), np.uint64(0))
        file = np.asarray(self.candidates.file)
        sides: Numbers = np.where(file >= 0, of_files[file], groups)
        return sides

    def _without_twins(self, train: Numbers, held_out: Numbers) -> tuple[Numbers, Numbers]:
        """No code to train on is nearly the code to judge by; where so short that much is like it, that is left out."""
        candidates = self.candidates
        if not train.any() or not held_out.any():
            return train, held_out
        limit = self.config.near_duplicate_threshold
        _, hits = candidates.twins.similar(candidates.units(held_out), candidates.units(train), limit)
        without = train & ~candidates.of_units(hits)
        self._count("dropped: a twin of code to judge by", train & ~without)
        units = candidates.units(held_out)
        best, _ = candidates.twins.similar(units, candidates.units(without), limit)
        alike = np.zeros(len(units), dtype=bool)
        alike[units] = best >= limit
        judged = held_out & ~candidates.of_units(alike)
        self._count("dropped: too short to judge by, and like others", held_out & ~judged)
        return without, judged

    @cached_property
    def _tests(self) -> Numbers:
        """Whether each candidate is from a test, by its file's name."""
        files = self.candidates.files
        is_test = [filters.is_test(files.path(number)) for number in range(len(files))]
        tests: Numbers = np.append(np.asarray(is_test, dtype=bool), False)[np.asarray(self.candidates.file)]
        return tests

    def _age(self) -> Numbers:
        """Seconds between the last change of each candidate's file and the newest of all: the smallest goes first."""
        times = np.asarray([*self.times, 0])
        age: Numbers = (times.max() - times)[np.asarray(self.candidates.file)]
        return age

    def _capped(self, train: Numbers) -> Numbers:
        """So many of each kind that neither the tests nor one file have more than their share."""
        config, candidates = self.config, self.candidates
        numbers, groups = np.asarray(candidates.number), np.asarray(candidates.group)
        kinds, tests = np.asarray(candidates.kind), self._tests
        within_files, kept = train.copy(), train.copy()
        for kind in range(len(KINDS)):
            of_kind = train & (kinds == kind) & (np.asarray(candidates.file) >= 0)
            others = int((of_kind & ~tests).sum())
            total = (
                min(int(of_kind.sum()), math.floor(others * (1 + self.tests_per_other)))
                if others
                else int(of_kind.sum())
            )
            within_files[of_kind] = capped(numbers[of_kind], groups[of_kind], round(config.max_file_share * total))
            of_tests = of_kind & within_files & tests
            if others := int((of_kind & within_files & ~tests).sum()):
                kept[of_tests] = choose(numbers[of_tests], math.floor(others * self.tests_per_other), groups[of_tests])
        self._count("left out: data.max_file_share", train & ~within_files)
        self._count("left out: data.max_test_share", within_files & ~kept)
        return within_files & kept

    def _trimmed(self, train: Numbers) -> Numbers:
        """The same shares where they have grown a little, since the kinds were put into those of their weights."""
        config, candidates = self.config, self.candidates
        numbers, groups = np.asarray(candidates.number), np.asarray(candidates.group)
        places, tests = np.asarray(candidates.file) >= 0, self._tests
        kept = train.copy()
        for _ in range(ROUNDS):
            before = int(kept.sum())
            of_files, of_tests = kept & places, kept & places & tests
            if others := int((of_files & ~tests).sum()):
                kept[of_tests] = choose(numbers[of_tests], math.floor(others * self.tests_per_other), groups[of_tests])
            of_files = kept & places
            most = math.floor(config.max_file_share * of_files.sum())
            kept[of_files] = capped(numbers[of_files], groups[of_files], most)
            if int(kept.sum()) == before:
                break
        self._count("left out: data.max_file_share or data.max_test_share", train & ~kept)
        return kept

    def _in_shares(self, chosen: Numbers, exact: bool) -> Numbers:
        """Of the places among the chosen as many of each kind as their weights say."""
        places = chosen & (np.asarray(self.candidates.file) >= 0)
        kept = chosen.copy()
        if places.any():
            numbers, of_kind = np.asarray(self.candidates.number)[places], np.asarray(self.candidates.kind)[places]
            kept[places] = in_shares(numbers, of_kind, self.weights, exact)
        self._count("left out: for the kinds to stand as their weights", chosen & ~kept)
        return kept

    def _at_most_of_each_file(self, held_out: Numbers) -> Numbers:
        chosen = held_out & (np.asarray(self.candidates.file) >= 0)
        kept = held_out.copy()
        numbers, groups = np.asarray(self.candidates.number)[chosen], np.asarray(self.candidates.group)[chosen]
        kept[chosen] = turns(numbers, groups) < self.config.max_eval_examples_per_file
        self._count("left out: data.max_eval_examples_per_file", held_out & ~kept)
        return kept

    def _at_most(self, most: int | None, chosen: Numbers, key: str, by_file: bool = False) -> Numbers:
        numbers, groups = np.asarray(self.candidates.number)[chosen], np.asarray(self.candidates.group)[chosen]
        kept = chosen.copy()
        kept[chosen] = choose(numbers, most, groups if by_file else None)
        self._count(f"left out: {key}", chosen & ~kept)
        return kept

    def _count(self, reason: str, dropped: Numbers) -> None:
        if dropped.any():
            self.report.examples[reason] += int(dropped.sum())
