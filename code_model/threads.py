"""How many threads the engine computes with: as many as there are cores that nobody else keeps busy.

The threads of one matrix product wait for each other, spinning. With a thread for each core and a neighbour on one of
them, one thread is always off its core, and all others wait for it: a decoding step that takes 35 ms takes 140, and
with OpenMP's default of a millisecond's spinning up to ten times as long. One thread fewer costs a core, and no more.

What others use is read from /proc/stat, by the cores that this process may run on; processes of lower priority (`nice`,
such as Ratchet's trainer) do not count, since they give way. Where there is no such file, nothing changes.

Training and evaluation keep their number of threads, for the same numbers in each run. They only spin less, or not at
all where somebody is busy when they begin (`rounds`).
"""

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")
QUOTA = Path("/sys/fs/cgroup/cpu.max")
LOOK_S = 0.2  # of looking before a process begins
WINDOW_S = 0.5  # of looking, while there is work: 50 ticks of a core
# GOMP_SPINCOUNT: rounds that a thread waits for the others before it gives its core away. 10,000 are some 30 µs, as
# long as the pauses between the products of one step; the default waits many times longer.
SPIN = "10000"


def rounds() -> str:
    """GOMP_SPINCOUNT for a process that keeps its number of threads: 0 where others are busy on its cores just now."""
    cores = _cores()
    before = _used(cores)
    if before is None:
        return SPIN
    time.sleep(LOOK_S)  # what others use in this time is the question
    return "0" if ((_used(cores) or before) - before) / LOOK_S > 0.5 else SPIN


class Threads:
    """Chooses the number of threads while there is work. For one thread, the one that computes."""

    def __init__(self) -> None:
        self.cores = _cores()
        self.most = max(1, int(min(len(self.cores), _quota())))
        self.count = 0  # none chosen yet
        self._since: tuple[float, float, float] | None = None  # when; seconds that all, and we, have used

    def look(self) -> int | None:
        """The number of threads from here on, where it has changed; to be called between any two steps."""
        if not self.count and self.most < len(self.cores):  # torch sees the cores, and not the container's limit
            self.count = self.most
            return self.count
        if self.most < 2:
            return None
        now = time.monotonic()
        if self._since is not None and now - self._since[0] < WINDOW_S:
            return None
        used = _used(self.cores)
        if used is None:
            return None
        before, self._since = self._since, (now, used, _own())
        if before is None or now - before[0] > 2 * WINDOW_S:  # there was nothing to do meanwhile
            return None
        others = max(0.0, (used - before[1] - (self._since[2] - before[2])) / (now - before[0]))
        count = max(1, min(self.most, round(len(self.cores) - others)))
        if count == self.count:
            return None
        self.count = count
        return count


def _cores() -> set[int]:
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def _quota() -> float:
    """Cores' worth of time that this container may use; infinite where there is no limit."""
    try:
        quota, period = QUOTA.read_text().split()
        return float("inf") if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return float("inf")


def _used(cores: set[int]) -> float | None:
    """Seconds that these cores were busy with work of ordinary priority; None where the system does not say."""
    try:
        lines = STAT.read_text().splitlines()
    except OSError:
        return None
    total = 0
    for line in lines:
        name, *values = line.split()
        if name[3:].isdigit() and name.startswith("cpu") and int(name[3:]) in cores:
            user, _nice, system, _idle, _iowait, irq, softirq, steal = (int(value) for value in values[:8])
            total += user + system + irq + softirq + steal
    return total / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    """Seconds that this process has used."""
    return time.process_time()
