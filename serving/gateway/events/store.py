"""One SQLite file for all workers: completions of the last hours, what is on its way to MLflow, and counts.

What the gateway has said yes to is here, whatever is killed afterwards. Nothing stays but counts: what has arrived in
MLflow is deleted, and a completion is forgotten once nobody tells of it any more. /metrics shows the counts since the
file was made, the page those by day.
"""

import collections
import fcntl
import json
import logging
import math
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contract.trials import FAILED, LEFT
from serving.gateway import metrics
from serving.gateway.events.facts import OTHER, Completion

log = logging.getLogger(__name__)
FORGET_S = 3 * 3600.0  # the last that is told of a completion comes ten minutes after it
FORGET_EVERY_S = 300.0
KEEP_DAYS = 400
LONG_ENOUGH_MS = 750  # a completion that was seen for less was not looked at
MOST_SERIES = 2000  # of counts; what comes later is counted as `other`
MOST_HELD = 10_000  # writes in memory while the disk is full
STEP, STEP_RATIO = "@", 1.1  # between a duration's name and its step; how much longer each step is
AFTER_S = (30, 120, 600)  # when it is asked what is left of a completion
Statement = tuple[str, tuple[Any, ...]]
TABLES = """
CREATE TABLE IF NOT EXISTS completion (
  id TEXT PRIMARY KEY, made REAL, user TEXT, labels TEXT, choices TEXT, prompt_hash TEXT, completion_hash TEXT,
  viewed INTEGER DEFAULT 0, shown_ms INTEGER, accepted INTEGER, counted INTEGER DEFAULT 0, kept TEXT DEFAULT '{}');
CREATE INDEX IF NOT EXISTS by_hash ON completion (completion_hash, prompt_hash);
CREATE INDEX IF NOT EXISTS by_age ON completion (made);
CREATE TABLE IF NOT EXISTS outbox (
  number INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT, completion TEXT, body TEXT);
CREATE TABLE IF NOT EXISTS counts (
  host TEXT, name TEXT, version TEXT, language TEXT, user TEXT, repository TEXT, value REAL,
  PRIMARY KEY (host, name, version, language, user, repository));
CREATE TABLE IF NOT EXISTS shadow (id TEXT PRIMARY KEY, made REAL, asked TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS days (
  day TEXT, name TEXT, version TEXT, value REAL, PRIMARY KEY (day, name, version)) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Event:
    """What became of a completion; None and empty for what this event does not tell."""

    completion: str
    viewed: bool = False
    shown_ms: int | None = None
    accepted: bool | None = None
    comment: str | None = None
    kept: tuple[int, int] | None = None  # after so many seconds, so many characters
    choice: int = 0  # of its texts, which
    text: str | None = None  # what stands there now, where it was kept
    trains: bool = False  # whether models may be trained on that


@dataclass(frozen=True)
class Known:
    """A completion that was answered lately."""

    id: str
    user: str


class Store:
    """The file. Its methods block for less than a millisecond, as a rule; call them from a thread."""

    def __init__(self, folder: Path, host: str, most_bytes: int) -> None:
        self.path, self.host, self.most_bytes = folder / "events.db", host, most_bytes
        self._local = threading.local()
        self._held: collections.deque[Callable[[], None]] = collections.deque()
        self._unwritten: dict[str, Known] = {}
        self._lock = threading.Lock()
        self._series: set[tuple[str, ...]] = set()
        self._forgotten = 0.0
        self._inode, self._made = 0, False
        try:
            self._make()
        except (OSError, sqlite3.Error) as error:
            log.warning("%s cannot be written: %s. Events are kept in memory meanwhile.", self.path, error)

    def _make(self) -> None:
        """Create the file and its tables, where they are not there. Raises OSError or sqlite3.Error.

        A file that is no database any more is moved aside: what was on its way is lost, which is counted.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.path.parent / "tables.lock").open("a") as lock:  # of several workers that start at once
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                self._create()
            except sqlite3.DatabaseError as error:
                if not _is_broken(error):
                    raise
                log.error("%s is broken (%s): it is moved aside, and what was on its way is lost", self.path, error)
                metrics.events_lost.labels("broken").inc()
                for left in self.path.parent.glob(f"{self.path.name}*"):
                    if ".broken-" not in left.name:
                        left.rename(left.with_name(f"{left.name}.broken-{int(time.time())}"))
                self._create()
        self._made = True

    def _create(self) -> None:
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))  # and so private, as SQLite's own files beside it
        self.path.chmod(0o600)
        self._inode = self.path.stat().st_ino
        connection = self._connection()
        connection.executescript(TABLES)
        statement = "SELECT DISTINCT version, language, user, repository FROM counts WHERE host = ?"
        self._series.update(connection.execute(statement, (self.host,)))

    def _check_file(self) -> None:
        """Make the file anew where somebody has deleted it, or put another in its place."""
        try:
            same = self.path.stat().st_ino == self._inode
        except FileNotFoundError:
            same = False
        if not same or not self._made:
            if self._made:
                log.error("%s is gone: it is made anew, and what was on its way is lost", self.path)
                metrics.events_lost.labels("broken").inc()
            self._make()

    def completed(self, completion: Completion) -> None:
        """Keep an answered request's facts, and queue its trace."""
        facts = asdict(completion)
        if completion.texts and self._size() > self.most_bytes:
            metrics.texts_dropped.inc()
            facts["texts"] = {}
        labels = self.labels(completion.version, completion.language, completion.user, completion.repository)
        statements = [
            (
                "INSERT INTO completion (id, made, user, labels, choices, prompt_hash, completion_hash) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET choices = excluded.choices, "
                "prompt_hash = excluded.prompt_hash, completion_hash = excluded.completion_hash",
                (
                    *(completion.id, time.time(), completion.user, json.dumps(labels)),
                    *(json.dumps(completion.choices), completion.prompt_hash, completion.completion_hash),
                ),
            ),
            _queued("trace", completion.id, facts),
        ]
        if completion.outcome in (FAILED, LEFT) and not completion.choices:  # no answer: a trial alone has to know
            self._do(lambda: self._execute(statements), Known(completion.id, completion.user))
            return
        now = time.time()
        said = {"completions": True, "empty": not completion.characters, "cut_off": completion.cut_off}
        for name in [name for name, is_so in said.items() if is_so]:
            statements += self._counted(name, labels, 1, now)
        for name, seconds in (("seconds", completion.seconds), ("first_token", completion.first_token_s)):
            statements.append(_of_day(now, f"{name}{STEP}{step_of(seconds)}", completion.version, 1))
        self._do(lambda: self._execute(statements), Known(completion.id, completion.user))
        self._forget()

    def begun(self, id: str, user: str, version: str, language: str, repository: str) -> None:
        """Know a completion whose answer is on its way: events may come before it is whole."""
        labels = json.dumps(self.labels(version, language, user, repository))
        statement = "INSERT OR IGNORE INTO completion (id, made, user, labels, choices) VALUES (?, ?, ?, ?, '[]')"
        self._do(lambda: self._execute([(statement, (id, time.time(), user, labels))]), Known(id, user))

    def shadowed(self, id: str, told: dict[str, Any], asked: Any) -> None:
        """Queue how a challenger in the shadow did; `asked`, if any, is kept until it is told what the user kept."""
        statements = [_queued("told", id, {**told, "user": ""})]
        if asked is not None:
            statement = "INSERT OR REPLACE INTO shadow (id, made, asked) VALUES (?, ?, ?)"
            statements.append((statement, (id, time.time(), json.dumps(asked))))
        self._do(lambda: self._execute(statements))

    def asked(self, id: str) -> Any:
        """What was asked for in a request that had a copy; None for any other."""
        rows = self._read("SELECT asked FROM shadow WHERE id = ?", (id,))
        return json.loads(rows[0][0]) if rows else None

    @property
    def readable(self) -> bool:
        """Whether the file is there, so that what it does not know is not known."""
        return self._made and not self._held

    def known(self, id: str) -> Known | None:
        """A completion of the last hours."""
        row = self._read("SELECT id, user FROM completion WHERE id = ?", (id,))
        return Known(*row[0]) if row else self._unwritten.get(id)

    def by_texts(self, prompt_hash: str, completion_hash: str, user: str) -> Known | None:
        """The user's latest completion with these texts."""
        row = self._read(
            "SELECT id, user FROM completion WHERE completion_hash = ? AND prompt_hash = ? AND user = ? "
            "ORDER BY made DESC LIMIT 1",
            (completion_hash, prompt_hash, user),
        )
        return Known(*row[0]) if row else None

    def adopt(self, id: str, user: str, facts: dict[str, Any]) -> None:
        """Take a completion in that another serving, or an earlier one, has answered."""
        labels = self.labels(facts["version"], facts["language"], user, facts["repository"])
        shown_ms, accepted = facts.get("shown_ms"), facts.get("accepted")
        counted = int(_looked_at(shown_ms) and bool(accepted))
        statement = (
            "INSERT OR IGNORE INTO completion (id, made, user, labels, choices, viewed, shown_ms, accepted, counted, "
            "kept) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        )
        row = (id, time.time(), user, json.dumps(labels), json.dumps([facts["characters"]]))
        said = (facts.get("viewed", 0), shown_ms, accepted, counted, json.dumps(facts.get("kept", {})))
        statements = [(statement, (*row, *said))]
        self._do(lambda: self._execute(statements))

    def told(self, event: Event) -> None:
        """Keep what an event tells of a known completion. What was told before is not kept again."""
        self._do(lambda: self._tell(event))

    def _tell(self, event: Event) -> None:
        with self._write() as connection:
            found = connection.execute(
                "SELECT user, labels, choices, viewed, shown_ms, accepted, counted, kept, made FROM completion "
                "WHERE id = ?",
                (event.completion,),
            ).fetchone()
            if found is not None:
                for statement in self._news(event, found):
                    connection.execute(*statement)

    def _news(self, event: Event, found: Sequence[Any]) -> list[Statement]:
        """The statements for what an event adds to a completion's row."""
        user, labels_json, choices_json, viewed, shown_ms, accepted, counted, kept_json, made = found
        labels: list[str] = json.loads(labels_json)
        choices: list[int] = json.loads(choices_json)
        characters = choices[event.choice] if event.choice < len(choices) else 0
        kept: dict[str, int] = json.loads(kept_json)
        news: dict[str, Any] = {}
        counts: dict[str, int] = {}
        if event.viewed and not viewed:
            news["viewed"] = 1
            counts["viewed"] = 1
        if event.shown_ms is not None and event.shown_ms > (-1 if shown_ms is None else shown_ms):
            news["shown_ms"] = event.shown_ms
        if event.accepted is not None and accepted != int(event.accepted):
            news["accepted"] = int(event.accepted)
        is_accepted = bool(news.get("accepted", accepted))
        is_looked_at = _looked_at(news.get("shown_ms", shown_ms))
        if is_looked_at and not _looked_at(shown_ms):
            counts |= {"shown": 1, "shown_characters": characters}
        if is_looked_at and is_accepted and not counted:  # once, however often it is taken back
            news["counted"] = 1
            counts |= {"accepted": 1, "accepted_characters": characters}
        if event.kept is not None and is_accepted and str(event.kept[0]) not in kept:
            seconds, left = event.kept
            left = min(left, characters)
            news["kept"] = json.dumps(kept | {str(seconds): left})
            counts |= {f"watched_characters_{seconds}": characters, f"kept_characters_{seconds}": left}
        if not news and event.comment is None:
            return []
        told = {name: value for name, value in news.items() if name not in ("kept", "counted")}
        if "shown" in counts or "accepted" in counts:  # so MLflow's mean of it is our acceptance rate
            told["acceptance"] = int(news.get("counted", counted))
        if "kept" in news and event.kept is not None:
            told["kept"] = [event.kept[0], min(event.kept[1], characters) / characters if characters else 0.0]
            if event.text is not None and event.trains:
                told["kept_text"] = event.text
        if event.comment is not None:
            told |= {"comment": event.comment, "accepted": int(bool(news.get("accepted", accepted)))}
        statements = [_queued("told", event.completion, told | {"user": user})]
        if news:
            columns = ", ".join(f"{name} = ?" for name in news)
            statements.append((f"UPDATE completion SET {columns} WHERE id = ?", (*news.values(), event.completion)))
        for name, value in counts.items():
            if value:
                statements += self._counted(name, labels, value, made)
        return statements

    def counts(self) -> Iterator[tuple[str, tuple[str, ...], float]]:
        """(name, labels, value) of all that was counted on this machine."""
        rows: list[Any] = []
        with suppress(sqlite3.Error):
            rows = self._read(
                f"SELECT name, {', '.join(metrics.LABELS)}, value FROM counts WHERE host = ?", (self.host,)
            )
        for name, *labels, value in rows:
            yield name, tuple(labels), value

    def days(self, last: int) -> list[tuple[str, str, str, float]]:
        """(day, name, version, value) of what was counted in the last days, of all replicas that share the file."""
        since = day_of(time.time() - (last - 1) * 86_400)
        return self._read("SELECT day, name, version, value FROM days WHERE day >= ? ORDER BY day", (since,))

    def waiting(self, most: int) -> list[tuple[int, str, str, dict[str, Any]]]:
        """The first (number, kind, completion, body) that are on their way to MLflow."""
        rows = self._read("SELECT number, kind, completion, body FROM outbox ORDER BY number LIMIT ?", (most,))
        return [(number, kind, completion, json.loads(body)) for number, kind, completion, body in rows]

    def length(self) -> int:
        """How many are on their way."""
        with suppress(sqlite3.Error):
            return sum(int(count) for (count,) in self._read("SELECT COUNT(*) FROM outbox")) + len(self._held)
        return len(self._held)

    def free_bytes(self) -> int:
        """What is free on the disk of the file."""
        folder = next(one for one in self.path.parents if one.exists())
        return shutil.disk_usage(folder).free

    def sent(self, numbers: Sequence[int]) -> None:
        """Forget what has arrived."""
        with self._write() as connection:
            connection.executemany("DELETE FROM outbox WHERE number = ?", [(number,) for number in numbers])

    @property
    def holds(self) -> bool:
        """Whether a full disk keeps something in memory."""
        return bool(self._held)

    def write_held(self) -> None:
        """Write what a full disk kept in memory, if it now can be."""
        with self._lock:
            while self._held:
                try:
                    self._check_file()
                    self._held[0]()
                except (OSError, sqlite3.Error):
                    return
                self._held.popleft()
            self._unwritten.clear()

    def _do(self, write: Callable[[], None], made: Known | None = None) -> None:
        """Write now or, where that cannot be, as soon as it can; in order. `made`: the completion that is written."""
        with self._lock:
            if not self._held:
                try:
                    self._check_file()
                    try:
                        write()
                    except sqlite3.DatabaseError as error:
                        if not _is_broken(error):
                            raise
                        self._made = False
                        self._make()
                        write()
                    return
                except (OSError, sqlite3.Error) as error:
                    log.warning("%s cannot be written: %s. It is kept in memory meanwhile.", self.path, error)
            if len(self._held) >= MOST_HELD:
                metrics.events_lost.labels("disk").inc()
                return
            self._held.append(write)
            if made is not None:
                self._unwritten[made.id] = made

    def _execute(self, statements: list[Statement]) -> None:
        with self._write() as connection:
            for statement in statements:
                connection.execute(*statement)

    def _counted(self, name: str, labels: Sequence[str], value: float, made: float) -> list[Statement]:
        """The statements that count something of a completion that was made then: for /metrics, and by day."""
        statement = (
            f"INSERT INTO counts (host, name, {', '.join(metrics.LABELS)}, value) VALUES (?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT DO UPDATE SET value = value + excluded.value"
        )
        return [(statement, (self.host, name, *labels, value)), _of_day(made, name, labels[0], value)]

    def labels(self, version: str, language: str, user: str, repository: str) -> tuple[str, str, str, str]:
        """As labels: once there are many combinations, the repository and the user of new ones are `other`."""
        labels = (version, language, user, repository)
        if labels not in self._series:
            if len(self._series) >= MOST_SERIES:
                return version, language, OTHER, OTHER
            self._series.add(labels)
        return labels

    def _size(self) -> int:
        try:
            return sum(path.stat().st_size for path in (self.path, self.path.with_name(self.path.name + "-wal")))
        except OSError:
            return 0

    def _forget(self) -> None:
        if time.monotonic() > self._forgotten + FORGET_EVERY_S:
            self._forgotten = time.monotonic()
            oldest = day_of(time.time() - KEEP_DAYS * 86_400)
            with suppress(OSError, sqlite3.Error):
                self._execute(
                    [
                        ("DELETE FROM completion WHERE made < ?", (time.time() - FORGET_S,)),
                        ("DELETE FROM shadow WHERE made < ?", (time.time() - FORGET_S,)),
                        ("DELETE FROM days WHERE day < ?", (oldest,)),
                    ]
                )

    def _read(self, statement: str, values: tuple[Any, ...] = ()) -> list[Any]:
        """The rows; none where a full disk has kept the file from being made."""
        return self._connection().execute(statement, values).fetchall() if self._made else []

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def _connection(self) -> sqlite3.Connection:
        """This thread's own, to the file that is there now."""
        found: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if found is None or self._local.inode != self._inode:
            if found is not None:
                found.close()
            self._local.inode = self._inode
            found = sqlite3.connect(self.path, timeout=10, isolation_level=None)
            # What was committed outlives every process; a machine that loses its power may lose the last second.
            found.execute("PRAGMA journal_mode = WAL")
            found.execute("PRAGMA synchronous = NORMAL")
            self._local.connection = found
        return found


def _is_broken(error: sqlite3.Error) -> bool:
    """Whether an error says that the file is not ours, or no database."""
    return any(words in str(error) for words in ("not a database", "malformed", "no such table", "no such column"))


def step_of(seconds: float) -> int:
    """The step of a scale of durations, of which each is a tenth longer than the one before; 0 is 10 ms."""
    return round(math.log(max(seconds, 0.001) / 0.01, STEP_RATIO))


def day_of(seconds: float) -> str:
    """The day, in UTC, of a time since 1970."""
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _of_day(made: float, name: str, version: str, value: float) -> Statement:
    statement = "INSERT INTO days VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET value = value + excluded.value"
    return statement, (day_of(made), name, version, value)


def _looked_at(shown_ms: int | None) -> bool:
    return shown_ms is not None and shown_ms >= LONG_ENOUGH_MS


def _queued(kind: str, completion: str, body: dict[str, Any]) -> Statement:
    statement = "INSERT INTO outbox (kind, completion, body) VALUES (?, ?, ?)"
    return statement, (kind, completion, json.dumps(body))
