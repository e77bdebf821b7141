"""The evaluator without a container: every escape is tried, as root and as an ordinary user, and is stopped."""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from contract.errors import InputError, RatchetError
from tests.support.escapes import ESCAPES, LEGACIES, Escape
from tests.support.images import ROOT
from trainer.evaluation import sandbox as client
from trainer.evaluation.sandbox import Sandbox

pytestmark = pytest.mark.integration

SYS_ADD_KEY, SESSION_KEYRING = 248, -3
SYSTEM_PYTHON = Path("/usr/bin/python3")
CASE = """\
import unittest
class T(unittest.TestCase):
    def test_it(self):
        self.assertEqual(1, 2)
    @unittest.expectedFailure
    def test_no(self):
        self.assertEqual(1, 2)
    def test_sub(self):
        for n in (1, 2):
            with self.subTest(n):
                self.assertEqual(n, 1)
"""
SOUND_CASE = CASE.replace("(1, 2)\n    @", "(1, 1)\n    @").replace("in (1, 2)", "in (1, 1)")


@pytest.fixture(scope="module", params=["whoever runs the tests", "an ordinary user"])
def sandbox(request) -> Iterator[Sandbox]:
    """The evaluator as the trainer starts it, or as `nobody` would, from a copy that `nobody` may read."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        if request.param == "an ordinary user":
            if os.geteuid() != 0 or not SYSTEM_PYTHON.exists():
                pytest.skip("only root can become another user, who needs a Python that all may read")
            Path(folder).chmod(0o755)
            shutil.copytree(ROOT / "evaluator", Path(folder, "evaluator"), ignore=shutil.ignore_patterns("__pycache__"))

            command = [str(SYSTEM_PYTHON), "-m", "evaluator"]
            real = subprocess.Popen
            start = lambda _, **options: real(command, user="nobody", cwd=folder, **options)  # noqa: E731
            patch.setattr(client.subprocess, "Popen", start)
        # A key that an escape looks for, and must not find.
        added = ctypes.CDLL(None).syscall(SYS_ADD_KEY, b"user", b"ratchet:escape", b"secret", 6, SESSION_KEYRING)
        assert added > 0
        with Sandbox(timeout_s=5, memory_mb=1000) as opened:
            patch.undo()
            yield opened


@pytest.mark.parametrize("escape", ESCAPES, ids=lambda escape: escape.name)
def test_escape_is_stopped(sandbox: Sandbox, escape: Escape) -> None:
    verdict = sandbox.run(escape.program)
    assert not verdict.passed
    assert verdict.outcome in escape.outcomes, verdict
    assert escape.detail in verdict.detail or verdict.outcome != "failed", verdict
    assert verdict.seconds < 10
    assert sandbox.run("assert 1 + 1 == 2").passed  # and the evaluator is well


@pytest.mark.parametrize(("what", "first", "second"), LEGACIES, ids=lambda text: text if len(text) < 40 else "")
def test_nothing_is_left_behind(sandbox: Sandbox, what: str, first: str, second: str) -> None:
    assert sandbox.run(first).passed
    verdict = sandbox.run(second)
    assert verdict.passed, (what, verdict)


@pytest.mark.parametrize(
    ("program", "detail"),
    [
        ("assert 1 + 1 == 3, 'bad sum'", "AssertionError: bad sum"),
        ("def f(:", "SyntaxError: invalid syntax"),
        ("x = '\ud800'", "UnicodeDecodeError"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("import os\nif os.fork():\n    os.wait()\n    assert False, 'parent'", "AssertionError: parent"),
        ("import os, time\nif os.fork():\n    time.sleep(0.3)\n    os._exit(0)", "it ended before its tests did"),
        ("import os, signal\nif os.fork():\n    os.kill(os.getpid(), 9)", "it ended before its tests did"),
        (f"{CASE}unittest.main(exit=False)", "unittest: 2 failed, the first test_it"),
        (f"{CASE}unittest.TextTestRunner(open('/dev/null', 'w')).run(T('test_sub'))", "unittest: 1 failed"),
        ("raise ValueError('\x1b[31mred\x07')", "ValueError: \ufffd[31mred\ufffd"),
    ],
)
def test_failure_says_why(sandbox: Sandbox, program: str, detail: str) -> None:
    verdict = sandbox.run(program)
    assert (verdict.passed, verdict.outcome) == (False, "failed")
    assert detail in verdict.detail


@pytest.mark.parametrize(
    "program",
    [
        "import pickle\nclass A: pass\nassert isinstance(pickle.loads(pickle.dumps(A())), A)",
        "assert __file__ == 'program.py' and __name__ == '__main__'",
        "import os, tempfile\nwith tempfile.NamedTemporaryFile() as file:\n    file.write(b'x')",
        "import multiprocessing\nwith multiprocessing.Pool(2) as pool:\n    assert pool.map(abs, [-1, 2]) == [1, 2]",
        "import os\nos.fork()",
        "import os\nif not os.fork():\n    os._exit(3)\nos.wait()",
        CASE.replace("(1, 2)\n    @", "(1, 1)\n    @").replace("for n in (1, 2)", "for n in (1, 1)")
        + "unittest.main(exit=False)",
    ],
)
def test_program_runs_as_one_by_itself(sandbox: Sandbox, program: str) -> None:
    verdict = sandbox.run(program)
    assert verdict.passed, verdict


@pytest.mark.parametrize(
    "test",
    [
        "import doctest\nassert doctest.testmod().failed == 0",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(add(1, 2), 3)\n"
        "assert unittest.main(exit=False).result.wasSuccessful()",
    ],
)
@pytest.mark.parametrize("operator", ["+", "-"])
def test_frameworks_find_the_program_s_tests(sandbox: Sandbox, test: str, operator: str) -> None:
    program = f'def add(a, b):\n    """\n    >>> add(1, 2)\n    3\n    """\n    return a {operator} b\n\n{test}\n'
    assert sandbox.run(program).passed == (operator == "+")


def test_memory_of_others_is_nobody_s_fault(sandbox: Sandbox) -> None:
    """A Postgres or a data loader beside us may take shared memory; a program pays for its own."""
    with Sandbox(timeout_s=5, memory_mb=100) as narrow, tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        threading.Timer(0.5, lambda: file.write(b"x" * 300_000_000)).start()
        assert narrow.run("import time\ntime.sleep(1.5)").passed


def test_files_that_circle_in_a_socket_hold_nothing_up_and_are_freed(sandbox: Sandbox) -> None:
    """Both ends of a pair of sockets, sent through it with a file and the program's output, and never taken out."""
    program = dedent(
        """
        import array, os, socket
        one, other = socket.socketpair()
        file = os.memfd_create("x")
        os.write(file, b"x" * 15_000_000)
        numbers = array.array("i", [1, 2, file, one.fileno(), other.fileno()])
        one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
        """
    )

    def shared_memory_kb() -> int:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Shmem:"))

    before = shared_memory_kb()
    verdicts = [sandbox.run(program) for _ in range(20)]
    assert all(verdict.passed and verdict.seconds < 3 for verdict in verdicts), verdicts
    assert shared_memory_kb() - before < 150_000  # of 300,000 that were written


def test_caller_is_not_touched(sandbox: Sandbox) -> None:
    """No program has left a file or a process outside."""
    assert not list(Path("/").glob("escaped"))
    assert not Path(sys.prefix, "escaped").exists()
    sleepers = subprocess.run(["pgrep", "-f", "program.py"], capture_output=True, text=True).stdout.split()
    assert sleepers == []


def test_where_no_cage_can_be_made_nothing_is_run(monkeypatch) -> None:
    """A kernel without namespaces for users: refused with what to do, exit code 2."""
    limit = "import os; os.environ; from evaluator import cage; cage.SYS_PIVOT_ROOT = {}; import runpy; "
    command = [sys.executable, "-c", limit + "runpy.run_module('evaluator', run_name='__main__')"]
    real = subprocess.Popen
    monkeypatch.setattr(client.subprocess, "Popen", lambda _, **options: real(command, **options))
    with pytest.raises(InputError, match=r"cannot be run safely here.*Compose stack"), Sandbox(1, 100):
        pass


def test_evaluator_that_dies_is_an_error_and_no_verdict(monkeypatch) -> None:
    command = [sys.executable, "-c", "import sys; sys.stdin.readline(); sys.exit('out of order')"]
    real = subprocess.Popen
    monkeypatch.setattr(client.subprocess, "Popen", lambda _, **options: real(command, **options))
    with pytest.raises(RatchetError, match="ended in the middle: out of order"), Sandbox(1, 100):
        pass


def test_check_and_plain_pipe() -> None:
    checked = subprocess.run([sys.executable, "-m", "evaluator", "--check"], capture_output=True, text=True)
    assert (checked.returncode, "passed" in checked.stdout) == (0, True)
    requests = [{"timeout_s": 5, "memory_mb": 500}, {"program": "x = 1"}, {"program": "x"}]
    piped = subprocess.run(
        [sys.executable, "-m", "evaluator"],
        input="".join(json.dumps(request) + "\n" for request in requests),
        capture_output=True,
        text=True,
    )
    assert [json.loads(line)["passed"] for line in piped.stdout.splitlines()] == [True, False]
    assert piped.returncode == 0


def test_a_virtual_environment_below_tmp_leaves_tmp_to_the_programs() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        shutil.copytree(ROOT / "evaluator", Path(folder, "code", "evaluator"))
        programs = [
            "import os, sys; assert sys.prefix != sys.base_prefix and os.listdir('/tmp') == []",
            "open('/tmp/left', 'w').close()",
            "import os; assert os.listdir('/tmp') == []",
        ]
        requests = [{"timeout_s": 10, "memory_mb": 512}, *({"program": program} for program in programs)]
        answer = subprocess.run(
            [f"{folder}/bin/python", "-m", "evaluator"],
            cwd=Path(folder, "code"),
            input="".join(json.dumps(request) + "\n" for request in requests),
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert answer.returncode == 0, answer.stderr
    assert [json.loads(line)["outcome"] for line in answer.stdout.splitlines()] == ["passed"] * 3, answer.stdout


def test_a_private_umask_keeps_no_program_out() -> None:
    before = os.umask(0o077)
    try:
        with Sandbox(5, 512) as sandbox:
            assert sandbox.run("import os, tempfile\nwith tempfile.TemporaryFile(): pass").passed
    finally:
        os.umask(before)


def test_setting_tracking_up_leaves_the_umask_alone(tmp_path: Path, monkeypatch) -> None:
    from services.tracking.__main__ import set_up
    from services.tracking.settings import TrackingSettings

    monkeypatch.setattr("services.tracking.__main__.migrate", lambda *_: None)
    before = os.umask(0o022)
    try:
        set_up(TrackingSettings(ratchet_home=tmp_path / "home"))
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    assert (tmp_path / "home" / "artifacts").stat().st_mode & 0o077 == 0
