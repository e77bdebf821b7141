"""Threads beside a neighbour: as many as there are cores that others leave."""

from pathlib import Path

import pytest

from code_model import threads
from code_model.threads import WINDOW_S, Threads


class Machine:
    """Cores whose use is told, second by second."""

    def __init__(self, folder: Path, monkeypatch, cores: int = 2, quota: str = "max 100000") -> None:
        self.file, self.cores, self.now, self.own = folder / "stat", cores, 100.0, 0.0
        self.ticks = {"others": 0.0, "nice": 0.0}
        (folder / "cpu.max").write_text(quota)
        monkeypatch.setattr(threads, "STAT", self.file)
        monkeypatch.setattr(threads, "QUOTA", folder / "cpu.max")
        monkeypatch.setattr(threads, "_cores", lambda: set(range(cores)))
        monkeypatch.setattr(threads, "_own", lambda: self.own)
        monkeypatch.setattr(threads.os, "sysconf", lambda name: 100)
        monkeypatch.setattr(threads.time, "monotonic", lambda: self.now)
        self.write()

    def write(self) -> None:
        user = int(100 * (self.ticks["others"] + self.own))
        lines = ["cpu  1 2 3 4 5 6 7 8 0 0", f"cpu0 {user} {int(100 * self.ticks['nice'])} 0 9 9 0 0 0 0 0"]
        lines += [f"cpu{number} 0 0 0 9 9 0 0 0 0 0" for number in range(1, self.cores + 2)]  # one that is not ours
        self.file.write_text("\n".join([*lines, "intr 1 2 3"]))

    def run(self, own: float, others: float = 0.0, nice: float = 0.0, seconds: float = WINDOW_S) -> None:
        """So many cores busy by us, others, and others of low priority, for some seconds."""
        self.own += own * seconds
        self.ticks["others"] += others * seconds
        self.ticks["nice"] += nice * seconds
        self.now += seconds
        self.write()


def test_a_neighbour_costs_a_thread_and_gives_it_back(tmp_path, monkeypatch) -> None:
    machine, chosen = Machine(tmp_path, monkeypatch), Threads()
    assert chosen.look() is None  # nothing to compare with yet
    machine.run(own=2)
    assert chosen.look() == 2
    machine.run(own=1.3, others=0.7)  # the neighbour gets what our threads leave it
    assert chosen.look() == 1
    machine.run(own=1, others=1)
    assert chosen.look() is None  # it stays so
    machine.run(own=1)
    assert chosen.look() == 2


@pytest.mark.parametrize(("others", "expected"), [(0.3, 4), (1.0, 3), (3.2, 1), (4.0, 1)])
def test_as_many_threads_as_cores_are_left(tmp_path, monkeypatch, others: float, expected: int) -> None:
    machine, chosen = Machine(tmp_path, monkeypatch, cores=4), Threads()
    chosen.look()
    machine.run(own=4 - others, others=others)
    assert chosen.look() == expected


def test_who_steps_back_does_not_count(tmp_path, monkeypatch) -> None:
    machine, chosen = Machine(tmp_path, monkeypatch), Threads()
    chosen.look()
    machine.run(own=1.8, nice=0.2)
    assert chosen.look() == 2


def test_a_pause_is_not_looked_at(tmp_path, monkeypatch) -> None:
    machine, chosen = Machine(tmp_path, monkeypatch), Threads()
    chosen.look()
    machine.run(own=2)
    assert chosen.look() == 2
    machine.run(own=0, others=2, seconds=60)  # nobody asked meanwhile
    assert chosen.look() is None
    machine.run(own=0.1, seconds=WINDOW_S / 5)
    assert chosen.look() is None  # too short to tell


@pytest.mark.parametrize(("quota", "expected"), [("150000 100000", 1), ("300000 100000", 3), ("max 100000", None)])
def test_a_container_s_limit_counts_from_the_start(tmp_path, monkeypatch, quota: str, expected: int | None) -> None:
    """On a machine with 64 cores, 64 threads that share one and a half would wait for each other all the time."""
    machine, chosen = Machine(tmp_path, monkeypatch, cores=8, quota=quota), Threads()
    assert chosen.look() == expected
    chosen.look()
    machine.run(own=1)
    assert chosen.look() == (None if expected else 8)


@pytest.mark.parametrize(("others", "expected"), [(0.0, threads.SPIN), (0.2, threads.SPIN), (1.0, "0")])
def test_a_process_that_begins_beside_a_neighbour_does_not_spin(
    tmp_path, monkeypatch, others: float, expected: str
) -> None:
    machine = Machine(tmp_path, monkeypatch)
    monkeypatch.setattr(threads.time, "sleep", lambda seconds: machine.run(own=0, others=others, seconds=seconds))
    assert threads.rounds() == expected


def test_where_the_system_does_not_say_nothing_changes(tmp_path, monkeypatch) -> None:
    Machine(tmp_path, monkeypatch)
    monkeypatch.setattr(threads, "STAT", tmp_path / "nowhere")
    assert Threads().look() is None
    assert threads.rounds() == threads.SPIN
