"""The ledger of tries: every version that was judged has a share, and all shares together are one at most."""

import json
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contract.errors import InputError
from promoter import ledger
from promoter.ledger import Entry, Judged

ON, BY = "0123456789abcdef", "eval/nll_per_token"


def judged(*numbers: int, deleted: tuple[int, ...] = (), runs: int = 0) -> Judged:
    return Judged(frozenset(map(str, numbers)), frozenset(map(str, deleted)), runs)


def test_versions_that_were_tried_together_share_in_equal_parts_and_keep_it() -> None:
    first = ledger.share([], "3", judged(2, 3, 4), ON, BY)
    assert first.entry is not None
    assert (first.entry.versions, first.entry.tries) == ("2-4", 3)
    for number in ("2", "3", "4"):
        again = ledger.share([first.entry], number, judged(2, 3, 4, 5), ON, BY)
        assert (again.of_alpha, again.entry) == (first.of_alpha, None)
    later = ledger.share([first.entry], "5", judged(2, 3, 4, 5), ON, BY)
    assert later.entry is not None
    assert (later.entry.versions, later.entry.tries) == ("5", 1)
    assert later.of_alpha < first.of_alpha


def test_what_was_deleted_before_anybody_asked_counts_too() -> None:
    alone = ledger.share([], "9", judged(9), ON, BY)
    for of_twenty in (judged(9, runs=20), judged(29, deleted=tuple(range(10, 29)))):
        found = ledger.share([], "9" if of_twenty.runs else "29", of_twenty, ON, BY)
        assert found.entry is not None
        assert found.entry.tries == 20
        assert found.of_alpha < alone.of_alpha / 5


def test_what_was_deleted_counts_once_and_not_on_each_new_data_again() -> None:
    first = ledger.share([], "9", judged(9, deleted=(5, 6, 7)), ON, BY)
    assert first.entry is not None
    later = ledger.share([first.entry], "12", judged(12, deleted=(5, 6, 7)), ON.replace("0", "1"), BY)
    assert later.entry is not None
    assert (first.entry.tries, later.entry.tries) == (4, 1)


def test_other_data_and_another_metric_are_other_tries() -> None:
    first = ledger.share([], "2", judged(2), ON, BY)
    assert first.entry is not None
    for ground in ((ON.replace("0", "1"), BY), (ON, "eval/passed")):
        other = ledger.share([first.entry], "2", judged(2), *ground)
        assert other.entry is not None
        assert other.of_alpha < first.of_alpha


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60), st.sampled_from("ab")), max_size=40))
def test_all_shares_together_are_one_at_most(asked: list[tuple[int, int, str]]) -> None:
    entries: list[Entry] = []
    for version, in_all, data in asked:
        found = ledger.share(entries, str(version), judged(version, version + 1, runs=in_all), data * 32, BY)
        entries += [found.entry] if found.entry is not None else []
    assert sum(entry.tries * entry.each for entry in entries) <= 1


def test_entries_are_read_over_as_many_tags_as_they_need() -> None:
    entries = [Entry("a" * 12, BY, str(number), 1, 0.1) for number in range(5)]
    text = [json.dumps([asdict(entry) for entry in part]) for part in (entries[:3], entries[3:])]
    tags = {"tried_against_7": text[0], "tried_against_7_2": text[1], "tried_against_71": "[]", "other": "x"}
    assert ledger.read(tags, "7") == entries
    assert ledger.read(tags, "71") == ledger.read(tags, "8") == []


@pytest.mark.parametrize(
    "text",
    ["nonsense", "7", "[1]", '[{"on": 1}]', "{", "[" * 5000, json.dumps([asdict(Entry("a", BY, "x-y", 1, 0.1))])],
)
def test_a_tag_that_somebody_has_broken_is_named(text: str) -> None:
    for read, key in ((lambda tags: ledger.read(tags, "7"), "tried_against_7"), (broken_best, "best_on_0123456789ab")):
        with pytest.raises(InputError, match=f"The registered model's tag {key} is "):
            read({key: text})


def broken_best(tags: dict[str, str]) -> object:
    return ledger.best_on(tags, ON)


@pytest.mark.parametrize(("numbers", "text"), [([1, 2, 3, 7], "1-3,7"), ([5], "5"), ([], ""), ([10, 9, 2], "2,9-10")])
def test_ranges_are_short_and_give_back_what_they_were_given(numbers: list[int], text: str) -> None:
    names = {str(number) for number in numbers}
    assert ledger.to_ranges(names) == text
    assert ledger.from_ranges(text) == names


def test_ranges_that_would_be_too_long_count_rather_too_many() -> None:
    odd = {str(number) for number in range(1, 4001, 2)}
    assert odd < ledger.from_ranges(ledger.to_ranges(odd))
    assert len(ledger.to_ranges(odd)) < ledger.LONGEST
