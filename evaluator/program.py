"""Runs one program under limits, as the first process (PID 1) of a container or of the cage.

To be that process is what makes it simple. The kernel drops every signal that a process of the same namespace sends
to its first one, SIGKILL included; and `kill(-1)` from there ends all that a program may have left behind.

What is stopped: time, CPU time, memory (of all processes together), number of processes, size and number of files,
output. What is not inherited: environment, open files, working folder, standard input, keys of the kernel's keyring.
After each program every process is killed and everything that can be written is deleted.

What this does not cover:
- A program and its tests share an interpreter. One that sets out to cheat can: it may find the tests, or patch what
  they call. A pass means that the test ran to its end, not that nobody lied.
- In the stack, and for a user who is not root, a program runs as the same user as the evaluator. It cannot signal or
  trace the evaluator or read its memory or files; it can change its limits and its scheduling (prlimit, nice), and so
  end or slow it. The evaluation then fails; no verdict is forged by that.
- Memory that shows in no process and no file: what is in the buffers of sockets and pipes or was sent through them, and
  shared memory that was written and given back (madvise). Only a container's own limit counts that.
- A hole in the kernel: but for keyrings and some kinds of sockets (system_calls.py), only Docker's own filter of
  system calls, in the stack, stands in between.
- Timing: programs share the machine's cores and caches with everything else on it.
"""

import contextlib
import ctypes
import fcntl
import math
import os
import resource
import secrets
import selectors
import signal
import socket
import stat
import sys
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

from evaluator import system_calls

executable = sys.executable  # by which programs are run; the cage may show it elsewhere
WRITABLE = (Path("/dev/shm"), Path("/tmp"))  # all that there is to write to, in container and cage; in memory
MAX_OUTPUT = 64 * 1024  # bytes
MAX_FILE = 16 * 1024 * 1024  # bytes
MAX_PROCESSES = 64  # and threads, of the user
MAX_OPEN_FILES = 128
LOOK_S = 0.02  # how often memory is added up

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_NO_NEW_PRIVS = 1, 4, 15, 38
IPC_RMID = 0
SYS_KEYCTL = {"x86_64": 250, "aarch64": 219}
KEYCTL_JOIN_SESSION_KEYRING, KEYCTL_CLEAR, USER_KEYRING = 1, 7, -4
PAGE = resource.getpagesize()
MARK_IN, MARK_OUT = 3, 4  # file descriptors
# The mark comes back only when the program has run to its end: `sys.exit(0)` before the tests is no pass, nor is the
# end of a process that it forked, nor one behind a failure that unittest only counts (`exit=False`). The program is
# the module `__main__`, as if it had been started by itself: doctest, unittest and pickle look there.
RUNNER = f"""
import os, sys, types
mark, first, failures = os.read({MARK_IN}, 64), os.getpid(), []
os.close({MARK_IN})
def count(kind):
    def counting(result, test, *problem):
        if kind.__name__ != "addSubTest" or problem[-1] is not None:
            failures.append(test)
        return kind(result, test, *problem)
    return counting
module = sys.modules["__main__"] = types.ModuleType("__main__")
module.__file__ = "program.py"
with open(module.__file__, encoding="utf-8") as file:
    source = file.read()
if "unittest" in source:
    from unittest import TestResult
    for kind in ("addError", "addFailure", "addSubTest", "addUnexpectedSuccess"):
        setattr(TestResult, kind, count(getattr(TestResult, kind)))
exec(compile(source, module.__file__, "exec"), module.__dict__)
if failures:
    print("unittest:", len(failures), "failed, the first", failures[0], file=sys.stderr, flush=True)
elif os.getpid() == first:
    os.write({MARK_OUT}, mark)
os._exit(bool(failures))
"""

_libc = ctypes.CDLL(None, use_errno=True)


class Limits(NamedTuple):
    """Of one program: wall-clock seconds, and memory of all its processes together in MB (10^6 bytes)."""

    timeout_s: float
    memory_mb: int


class Verdict(NamedTuple):
    """`outcome`: passed, failed, or the limit that it went over: timeout, memory, output."""

    passed: bool
    outcome: str
    detail: str
    seconds: float


def prepare_process() -> None:
    """Make this process one that the programs cannot look into."""
    _libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def set_name(name: str) -> None:
    """Give this process a name, of 15 bytes at most: what a program that runs here can read, and cannot write."""
    _libc.prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()), 0, 0, 0)


def run(program: str, limits: Limits, user: int | None = None) -> Verdict:
    """Run a program to its end or to a limit. `user`: the uid to run it as, where we may choose."""
    assert os.getpid() == 1, "programs are run by the first process of a PID namespace"
    _clean()
    folder = WRITABLE[0] / "run"
    folder.mkdir(mode=0o700)
    (folder / "program.py").write_bytes(program.encode("utf-8", "surrogatepass"))
    if user is not None:
        for path in (folder, folder / "program.py"):
            os.chown(path, user, user)
    mark = secrets.token_hex(16).encode()
    mark_in, mark_out, output = os.pipe(), os.pipe(), os.pipe()
    os.write(mark_in[1], mark)
    started = time.monotonic()
    problem = os.pipe()  # closed where the program begins
    child = os.fork()
    if child == 0:
        _become(folder, (mark_in[0], mark_out[1], output[1], problem[1]), limits, user)
    for descriptor in (*mark_in, mark_out[1], output[1], problem[1]):
        os.close(descriptor)
    with os.fdopen(problem[0], "rb") as file:
        if reason := file.read():
            raise RuntimeError(f"A program could not be started: {reason.decode()}")
    try:
        outcome, printed, returned = _watch(child, output[0], mark_out[0], started + limits.timeout_s, limits)
    finally:
        _kill_all()
        os.close(output[0])
        os.close(mark_out[0])
        _clean()
    seconds = round(time.monotonic() - started, 3)
    if outcome is not None:
        return Verdict(False, outcome, "", seconds)
    if returned == mark:
        return Verdict(True, "passed", "", seconds)
    lines = printed.decode("utf-8", "replace").strip().splitlines()
    detail = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in lines[-1]) if lines else ""
    return Verdict(False, "failed", detail[:300] or "it ended before its tests did", seconds)


def _become(folder: Path, pipes: tuple[int, int, int, int], limits: Limits, user: int | None) -> NoReturn:
    """In the child: give up everything, then become the program. `pipes`: mark in, mark out, output, problem."""
    # Out of the way of the descriptors that the program gets; all close where it begins, but for those.
    mark_in, mark_out, output, problem = (fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, 100) for one in pipes)
    try:
        os.setsid()
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        nothing = fcntl.fcntl(os.open(os.devnull, os.O_RDONLY), fcntl.F_DUPFD_CLOEXEC, 100)
        for target, source in enumerate((nothing, output, output, mark_in, mark_out)):
            os.dup2(source, target)
        os.closerange(MARK_OUT + 1, 100)
        _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # until then the next file is not ours
        Path("/proc/self/oom_score_adj").write_text("1000")
        cpu = (math.ceil(limits.timeout_s) + 1) * (os.cpu_count() or 1)  # of all threads together
        memory = limits.memory_mb * 1_000_000
        for kind, limit in (
            (resource.RLIMIT_CPU, cpu),
            (resource.RLIMIT_AS, memory),
            (resource.RLIMIT_FSIZE, MAX_FILE),
            (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_NPROC, MAX_PROCESSES),
            (resource.RLIMIT_MEMLOCK, 0),
            (resource.RLIMIT_MSGQUEUE, 0),
        ):
            resource.setrlimit(kind, (limit, limit))
        if user is not None:
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if keyctl := SYS_KEYCTL.get(os.uname().machine):  # in a container Docker forbids it to all
            _libc.syscall(keyctl, KEYCTL_JOIN_SESSION_KEYRING, None)  # a new one, without the caller's keys
            _libc.syscall(keyctl, KEYCTL_CLEAR, USER_KEYRING)  # of what an earlier program has put there
        if system_calls.is_there():
            system_calls.load()
        os.chdir(folder)
        places = {"HOME": str(folder), "TMPDIR": str(folder)}
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", **places}
        os.execve(executable, [executable, "-P", "-s", "-B", "-c", RUNNER], environment)
    except BaseException as error:
        os.write(problem, f"{type(error).__name__}: {error}".encode())
    os._exit(1)


def _watch(child: int, output: int, mark_out: int, deadline: float, limits: Limits) -> tuple[str | None, bytes, bytes]:
    """(the limit that was passed if any, the end of what was printed, the mark if the program came to its end)."""
    printed, total = bytearray(), 0
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while True:
            began = time.monotonic()  # it had not ended then
            for _ in selector.select(LOOK_S):
                piece = os.read(output, 65536)
                if not piece:
                    selector.unregister(output)
                total += len(piece)
                printed = (printed + piece)[-4096:]
            if total > MAX_OUTPUT:
                return "output", bytes(printed), b""
            ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if began > deadline or (ended is None and time.monotonic() > deadline):
                return "timeout", bytes(printed), b""
            if ended is not None:
                break
            if _memory_in_use() > limits.memory_mb * 1_000_000:
                return "memory", bytes(printed), b""
    _kill_all()  # now, so that nothing holds the pipes open; but for one that was sent through a socket
    well = ended.si_code == os.CLD_EXITED and ended.si_status == 0
    return None, bytes(printed + _what_is_there(output))[-4096:], _what_is_there(mark_out) if well else b""


def _what_is_there(pipe: int) -> bytes:
    """What can be read from a pipe without waiting."""
    os.set_blocking(pipe, False)
    pieces = []
    with contextlib.suppress(BlockingIOError):
        while piece := os.read(pipe, 65536):
            pieces.append(piece)
    return b"".join(pieces)


def _memory_in_use() -> int:
    """Bytes that all processes but this one have in memory, and what lies in files, which are memory here."""
    total = 0
    nameless: dict[int, int] = {}  # files without a name (memfd): bytes by inode
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == "1":
            continue
        with contextlib.suppress(OSError, IndexError):  # it has ended
            total += int((process / "statm").read_text().split()[1]) * PAGE
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):  # it was closed
                    if str(descriptor.readlink()).startswith("/memfd:"):
                        found = descriptor.stat()
                        nameless[found.st_ino] = found.st_blocks * 512
    for folder in _writable():
        space = os.statvfs(folder)
        total += (space.f_blocks - space.f_bfree) * space.f_frsize
    shared = Path("/proc/sysvipc/shm")  # its 15th column: bytes in memory
    segments = shared.read_text().splitlines()[1:] if shared.exists() else []
    return total + sum(nameless.values()) + sum(int(segment.split()[14]) for segment in segments)


def _writable() -> list[Path]:
    return [folder for folder in WRITABLE if folder.is_dir() and os.access(folder, os.W_OK)]


def _kill_all() -> None:
    """End every process but this one, and wait until they are gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:  # until there is none; orphans are ours too
            os.waitpid(-1, 0)
    # Files that were sent through sockets in a circle, and never taken out: the kernel frees them when one is closed.
    socket.socket(socket.AF_UNIX).close()


def _clean() -> None:
    """Delete everything that a program may have left: files, and System V's shared memory, semaphores and queues."""
    for kind, remove in (("shm", _libc.shmctl), ("msg", _libc.msgctl)):
        for number in _system_v(kind):
            remove(number, IPC_RMID, None)
    for number in _system_v("sem"):
        _libc.semctl(number, 0, IPC_RMID)
    for root in _writable():
        left = list(root.iterdir())
        while left:  # not by recursion, which folders in folders could exhaust
            path = left.pop()
            if path.is_symlink() or not path.is_dir():
                path.unlink()
                continue
            path.chmod(stat.S_IRWXU)  # its program may have locked it
            for child in path.iterdir():
                if child.is_dir() and not child.is_symlink():
                    child.chmod(stat.S_IRWXU)
                left.append(child.rename(root / secrets.token_hex(16)))
            path.rmdir()


def _system_v(kind: str) -> list[int]:
    listed = Path(f"/proc/sysvipc/{kind}")
    return [int(line.split()[1]) for line in listed.read_text().splitlines()[1:]] if listed.exists() else []
