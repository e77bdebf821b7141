"""What is kept of completions and of what editors tell: once, in order, whatever is full, killed or away."""

import multiprocessing
import os
import signal
import sqlite3
from collections import Counter
from pathlib import Path

import pytest

from serving.gateway.events.facts import digest, language_of, repository_of, trace_id
from serving.gateway.events.store import LONG_ENOUGH_MS, Event, Store
from tests.support.events import completion


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "events", "here", 1 << 20)


def counted(store: Store) -> Counter[str]:
    found: Counter[str] = Counter()
    for name, _, value in store.counts():
        found[name] += int(value)
    return found


def test_what_is_told_twice_counts_once(store: Store) -> None:
    made = completion()
    store.completed(made)
    for _ in range(2):
        store.told(Event(made.id, viewed=True))
        store.told(Event(made.id, viewed=True, shown_ms=900, accepted=True))
        store.told(Event(made.id, kept=(30, 8)))
        store.told(Event(made.id, kept=(30, 2)))
    assert counted(store) == {
        "completions": 1, "viewed": 1, "shown": 1, "shown_characters": 10, "accepted": 1, "accepted_characters": 10,
        "watched_characters_30": 10, "kept_characters_30": 8,
    }  # fmt: skip
    kinds = [(kind, body.get("kept")) for _, kind, _, body in store.waiting(10)]
    assert kinds == [("trace", None), ("told", None), ("told", None), ("told", [30, 0.8])]


@pytest.mark.parametrize(
    ("events", "shown", "accepted"),
    [
        ([Event("", shown_ms=LONG_ENOUGH_MS - 1, accepted=True)], 0, 0),
        ([Event("", shown_ms=LONG_ENOUGH_MS, accepted=True)], 1, 1),
        ([Event("", shown_ms=2000, accepted=False)], 1, 0),
        ([Event("", shown_ms=2000, accepted=False), Event("", shown_ms=2500, accepted=True)], 1, 1),
        ([Event("", accepted=True), Event("", shown_ms=800)], 1, 1),  # a thumb, and then the editor's word
        ([Event("", accepted=True)], 0, 0),  # nobody says how long it was seen
    ],
)
def test_only_what_was_looked_at_counts(store: Store, events: list[Event], shown: int, accepted: int) -> None:
    made = completion()
    store.completed(made)
    for event in events:
        store.told(Event(made.id, event.viewed, event.shown_ms, event.accepted))
    assert (counted(store)["shown"], counted(store)["accepted"]) == (shown, accepted)


def test_what_is_taken_back_and_again_counts_once(store: Store) -> None:
    made = completion()
    store.completed(made)
    for accepted in (True, False, True, False, True):
        store.told(Event(made.id, shown_ms=1000, accepted=accepted))
    assert (counted(store)["shown"], counted(store)["accepted"], counted(store)["accepted_characters"]) == (1, 1, 10)
    last = [body["accepted"] for _, kind, _, body in store.waiting(10) if kind == "told"][-1]
    assert last == 1


def test_each_choice_has_its_own_characters(store: Store) -> None:
    made = completion(choices=[7, 9])
    store.completed(made)
    store.told(Event(made.id, shown_ms=1000, accepted=True, choice=1))
    store.told(Event(made.id, kept=(30, 100), choice=1))
    assert (counted(store)["accepted_characters"], counted(store)["kept_characters_30"]) == (9, 9)


def test_what_is_left_of_what_was_not_accepted_is_not_asked(store: Store) -> None:
    made = completion()
    store.completed(made)
    store.told(Event(made.id, kept=(30, 5)))
    store.told(Event(made.id, shown_ms=1000, accepted=False))
    store.told(Event(made.id, kept=(30, 5)))
    assert counted(store)["watched_characters_30"] == 0


def test_events_may_come_before_a_stream_ends(store: Store) -> None:
    made = completion()
    store.begun(made.id, "ada", "1", "python", "")
    assert store.known(made.id) is not None
    store.told(Event(made.id, viewed=True))
    store.completed(made)
    store.begun(made.id, "ada", "1", "python", "")  # late
    store.told(Event(made.id, viewed=True, shown_ms=800, accepted=True))
    assert counted(store)["viewed"] == 1
    assert counted(store)["accepted_characters"] == 10


@pytest.mark.parametrize("harm", ["garbage", "deleted", "another"])
def test_a_file_that_is_broken_or_gone_is_made_anew(tmp_path, caplog, harm: str) -> None:
    here, there = Store(tmp_path, "here", 1 << 20), Store(tmp_path, "here", 1 << 20)
    here.completed(completion())
    if harm == "garbage":
        for path in tmp_path.glob("events.db*"):
            path.write_bytes(os.urandom(20_000))
    else:
        for path in tmp_path.glob("events.db*"):
            path.unlink()
        if harm == "another":
            sqlite3.connect(tmp_path / "events.db").executescript("CREATE TABLE t (x)")
    for store in (here, there, Store(tmp_path, "here", 1 << 20)):
        made = completion()
        store.completed(made)
        store.told(Event(made.id, shown_ms=1000, accepted=True))
    assert counted(here) == counted(there)
    assert counted(there)["accepted"] == 3
    assert here.path.stat().st_mode & 0o77 == 0
    assert "lost" in caplog.text
    assert list(tmp_path.glob("*.broken-*")) or harm != "garbage"


def test_a_completion_keeps_its_labels(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("serving.gateway.events.store.MOST_SERIES", 3)
    first = Store(tmp_path, "here", 1 << 20)
    made = [completion(repository=f"r{number}") for number in range(6)]
    for one in made:
        first.completed(one)
    second = Store(tmp_path, "here", 1 << 20)  # another worker, or a restart
    for one in made:
        second.told(Event(one.id, shown_ms=900, accepted=True))
    by_name: dict[str, set[tuple[str, ...]]] = {}
    for name, labels, _ in second.counts():
        by_name.setdefault(name, set()).add(labels)
    assert by_name["accepted"] == by_name["completions"]


def test_a_completion_is_found_again_by_its_texts(store: Store) -> None:
    made = completion()
    store.completed(made)
    found = store.by_texts(digest("  def f(\r\n"), digest("x): pass\n"), "ada")
    assert found is not None
    assert found.id == made.id
    assert store.by_texts(digest("def f("), digest("x): pass"), "bob") is None
    assert store.by_texts(digest("def g("), digest("x): pass"), "ada") is None


def test_a_full_disk_delays_and_loses_nothing(store: Store) -> None:
    first, second = completion(), completion()
    store.completed(first)
    pages = store._connection().execute("PRAGMA page_count").fetchone()[0]
    store._connection().execute(f"PRAGMA max_page_count = {pages}")
    for _ in range(20):
        store.completed(completion(texts={"inputs": "x" * 2000, "outputs": ""}))
    store.completed(second)
    store.told(Event(second.id, viewed=True, shown_ms=900, accepted=True))
    assert store.holds
    assert store.known(second.id) is not None
    assert counted(store)["accepted"] == 0
    store._connection().execute("PRAGMA max_page_count = 1000000")
    store.write_held()
    assert not store.holds
    assert (counted(store)["completions"], counted(store)["accepted"]) == (22, 1)
    assert [kind for _, kind, _, _ in store.waiting(100)] == ["trace"] * 22 + ["told"]


def test_a_disk_that_is_full_from_the_beginning(tmp_path, monkeypatch) -> None:
    (tmp_path / "events").touch()  # in the way of the folder
    store = Store(tmp_path / "events", "here", 1 << 20)
    made = completion()
    store.completed(made)
    store.told(Event(made.id, shown_ms=900, accepted=True))
    assert store.known(made.id) is not None
    assert (store.holds, store.length(), list(store.counts())) == (True, 2, [])
    (tmp_path / "events").unlink()
    store.write_held()
    assert counted(store)["accepted"] == 1


def write_for_ever(folder: Path, ready: "multiprocessing.connection.Connection") -> None:
    store = Store(folder, "here", 1 << 20)
    while True:
        made = completion()
        store.completed(made)
        store.told(Event(made.id, viewed=True, shown_ms=900, accepted=True))
        ready.send(made.id)


def test_what_was_said_yes_to_outlives_a_kill(tmp_path) -> None:
    """Killed at any moment: what was counted is what is in the outbox, no more and no less."""
    sent = []
    for _ in range(4):
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("fork").Process(
            target=write_for_ever, args=(tmp_path, there), daemon=True
        )
        process.start()
        sent += [here.recv() for _ in range(25)]
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        while here.poll():
            sent.append(here.recv())
    store = Store(tmp_path, "here", 1 << 20)
    waiting = store.waiting(100_000)
    traces = {completion for _, kind, completion, _ in waiting if kind == "trace"}
    told = [completion for _, kind, completion, _ in waiting if kind == "told"]
    assert set(sent) <= traces
    assert (counted(store)["completions"], counted(store)["accepted"]) == (len(traces), len(told))
    assert len(set(told)) == len(told)


def test_two_workers_count_together_and_two_machines_apart(tmp_path) -> None:
    stores = [Store(tmp_path, host, 1 << 20) for host in ("here", "here", "there")]
    made = completion()
    stores[0].completed(made)
    stores[1].told(Event(made.id, shown_ms=1000, accepted=True))
    stores[2].completed(completion())
    assert counted(stores[0])["accepted"] == 1
    assert (counted(stores[0])["completions"], counted(stores[2])["completions"]) == (1, 1)


def test_texts_are_left_out_once_much_waits(tmp_path) -> None:
    store = Store(tmp_path, "here", 1 << 20)
    for _ in range(40):
        store.completed(completion(texts={"inputs": "x" * 40_000, "outputs": "y"}))
    bodies = [body for _, _, _, body in store.waiting(100)]
    assert bodies[0]["texts"]
    assert not bodies[-1]["texts"]
    assert len(bodies) == 40


def test_labels_stay_few(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("serving.gateway.events.store.MOST_SERIES", 5)
    store = Store(tmp_path, "here", 1 << 20)
    for number in range(20):
        store.completed(completion(repository=f"git@host:{number}.git"))
    repositories = {labels[3] for _, labels, _ in store.counts()}
    assert len(repositories) == 6
    assert "other" in repositories


def test_the_file_is_private_and_nothing_stays_in_it(store: Store) -> None:
    assert store.path.stat().st_mode & 0o77 == 0
    store.completed(completion())
    [(number, *_)] = store.waiting(10)
    store.sent([number])
    assert store.waiting(10) == []
    assert sqlite3.connect(store.path).execute("SELECT COUNT(*) FROM outbox").fetchone() == (0,)


def test_facts() -> None:
    urls = {
        "https://ada:ghp_x@example.org:8443/a/b.git?token=x#y": "https://example.org:8443/a/b.git",
        "git@example.org:a/b.git": "git@example.org:a/b.git",
        "ada:pw@example.org:a/b.git": "example.org:a/b.git",
        "/srv/git/a": "/srv/git/a",
        "": "",
    }
    assert {url: repository_of(url) for url in urls} == urls
    assert trace_id("cmpl-" + "a" * 32) == "tr-" + "a" * 32
    names = [language_of("src/a.py"), language_of("C:\\x\\b.TSX"), language_of("x", "typescriptreact")]
    assert names == ["python", "typescript", "typescript"]
    assert [language_of("a.zig"), language_of("", "brainfuck"), language_of("")] == ["other", "other", ""]
