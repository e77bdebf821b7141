"""What code can reach that somebody else has written: each attempt is made, and what came of it is looked at."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contract.errors import InputError
from contract.files import free_port
from promoter import confined_process, confinement, validation
from promoter.confined_process import Answer
from services.tracking.readiness import wait_until

pytestmark = pytest.mark.skipif(bool(confinement.missing()), reason=confinement.missing())
BEGIN = """
import ctypes, errno, json, os, signal, socket, subprocess, sys
request = json.load(open("request.json"))
def answer(**found):
    os.write(int(sys.argv[1]), json.dumps(found).encode() + b"\\n")
def attempt(action):
    try:
        return str(action())
    except OSError as error:
        return errno.errorcode[error.errno]
"""
Run = Callable[..., Answer]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a program in the confinement, with what it needs to report."""

    def run(program: str, limit_s: float = 30, confined: bool = True, **request: Any) -> Answer:
        worker = tmp_path / "worker.py"
        worker.write_text(BEGIN + program)
        readable = tmp_path / "readable"
        readable.mkdir(exist_ok=True)
        return confined_process.run(worker, request | {"folder": str(readable)}, [readable], limit_s, confined)

    return run


def found(answer: Answer) -> dict[str, Any]:
    assert answer.found is not None, answer.why
    return answer.found


def test_nothing_of_our_environment_arrives(run: Run, monkeypatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "ours")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    variables = found(run("answer(variables=dict(os.environ))"))["variables"]
    assert not [name for name, value in variables.items() if value == "ours" or name.startswith(("MLFLOW", "AWS"))]
    assert variables["OMP_NUM_THREADS"] == "1"
    assert variables["HOME"] != os.environ["HOME"]


def test_no_secret_can_be_read_wherever_it_lies(run: Run, tmp_path: Path, monkeypatch) -> None:
    home = tmp_path / "home"
    secrets = [home / ".mlflow" / "credentials", tmp_path / "run" / "secrets" / "token", tmp_path / "work" / ".env"]
    for secret in secrets:
        secret.parent.mkdir(parents=True)
        secret.write_text("secret")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path / "work")
    paths = [*map(str, secrets), "/etc/shadow", f"/proc/{os.getpid()}/environ", f"/proc/{os.getpid()}/cmdline"]
    program = """
answer(
    read=[attempt(lambda: open(path, "rb").read()) for path in request["paths"]],
    listed=attempt(lambda: os.listdir(os.path.dirname(request["paths"][0]))),
    by_a_program=subprocess.run(["/bin/cat", request["paths"][0]], capture_output=True, text=True).stdout,
    linked=attempt(lambda: os.symlink(request["paths"][0], "link") or open("link").read()),
    hard_linked=attempt(lambda: os.link(request["paths"][0], "hard") or open("hard").read()),
)
"""
    seen = found(run(program, paths=paths))
    assert seen["read"] == ["EACCES"] * len(paths)
    assert (seen["listed"], seen["by_a_program"], seen["linked"]) == ("EACCES", "", "EACCES")
    assert seen["hard_linked"] in ("EACCES", "EXDEV", "EPERM")


def test_nothing_can_be_written_but_its_own_folder(run: Run, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("as it was")
    mine.chmod(0o600)
    program = """
def truncated():
    os.close(os.open(request["mine"], os.O_RDONLY | os.O_TRUNC))
def neither_read_nor_write():
    os.close(os.open(request["mine"], os.O_ACCMODE))
answer(
    written=attempt(lambda: open(request["mine"], "w")), truncated=attempt(truncated),
    by_path=attempt(lambda: os.truncate(request["mine"], 0)), neither=attempt(neither_read_nor_write),
    removed=attempt(lambda: os.unlink(request["mine"])), mode=attempt(lambda: os.chmod(request["mine"], 0o777)),
    version=attempt(lambda: open(request["folder"] + "/new", "w")),
    own=attempt(lambda: open("new", "w").write("12")),
)
"""
    seen = found(run(program, mine=str(mine)))
    assert [seen[name] for name in ("written", "truncated", "by_path", "neither", "removed")] == ["EACCES"] * 5
    assert (seen["version"], seen["own"]) == ("EACCES", "2")
    assert (mine.read_text(), mine.stat().st_mode & 0o777) == ("as it was", 0o600)
    assert list((tmp_path / "readable").iterdir()) == []


def test_no_socket_leads_out(run: Run, tmp_path: Path) -> None:
    port, path = free_port(), str(tmp_path / "socket")
    with socket.create_server(("127.0.0.1", port)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(path)
        local.listen()
        program = """
def reached(family, address):
    with socket.socket(family) as own:
        own.connect(address)
        return "connected"
pair = socket.socketpair()
libc = ctypes.CDLL(None, use_errno=True)
def ring():
    memory = ctypes.create_string_buffer(256)
    if libc.syscall(425, 8, memory) == -1:
        raise OSError(ctypes.get_errno(), "")
answer(
    tcp=attempt(lambda: reached(socket.AF_INET, ("127.0.0.1", request["port"]))),
    unix=attempt(lambda: reached(socket.AF_UNIX, request["path"])),
    pair=attempt(lambda: pair[0].connect(request["path"])), ring=attempt(ring),
    by_a_program=subprocess.run(
        [sys.executable, "-c", "import socket; socket.socket()"], capture_output=True, text=True
    ).stderr.strip().splitlines()[-1:],
)
"""
        seen = found(run(program, port=port, path=path))
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
    assert {name: seen[name] for name in ("tcp", "unix", "pair", "ring")} == dict.fromkeys(
        ("tcp", "unix", "pair", "ring"), "EACCES"
    )
    assert ["PermissionError" in line for line in seen["by_a_program"]] == [True]


def test_nobody_else_can_be_signalled_traced_or_limited(run: Run) -> None:
    program = """
import resource
libc = ctypes.CDLL(None, use_errno=True)
def traced():
    if libc.ptrace(16, request["other"], 0, 0) == -1:
        raise OSError(ctypes.get_errno(), "")
answer(
    killed=attempt(lambda: os.kill(request["other"], 0)), everybody=attempt(lambda: os.kill(-1, 0)),
    traced=attempt(traced), session=attempt(os.setsid),
    limited=attempt(lambda: resource.prlimit(request["other"], resource.RLIMIT_CPU, (1, 1))),
    itself=attempt(lambda: os.kill(os.getpid(), 0)), own=attempt(lambda: resource.prlimit(0, resource.RLIMIT_CPU)),
    user=attempt(lambda: os.setuid(0) if os.getuid() else os.setgroups([1])),
)
"""
    seen = found(run(program, other=os.getpid()))
    assert (seen["killed"], seen["everybody"], seen["limited"], seen["user"]) == ("EPERM",) * 4
    assert (seen["traced"], seen["session"]) == ("EACCES", "EACCES")
    assert (seen["itself"], seen["own"][0]) == ("None", "(")


def test_no_open_file_of_ours_is_there(run: Run, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    with (tmp_path / "secret").open() as file:
        os.set_inheritable(file.fileno(), True)
        program = """
descriptors = os.listdir("/proc/self/fd")
answer(links=[attempt(lambda: os.readlink(f"/proc/self/fd/{number}")) for number in descriptors])
"""
        links = found(run(program))["links"]
    assert links
    assert not [link for link in links if "secret" in link]


def test_what_it_has_started_ends_with_it(run: Run) -> None:
    program = """
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
answer(child=child.pid)
"""
    child = Path("/proc", str(found(run(program))["child"]), "stat")

    def dead() -> bool:
        try:
            return child.read_text().rpartition(")")[2].split()[0] in "ZX"  # its new parent has not noticed yet
        except (FileNotFoundError, ProcessLookupError):
            return True

    assert wait_until(dead, 30, lambda: True)


@pytest.mark.parametrize("confined", [True, False])
def test_it_is_killed_when_its_time_is_over(run: Run, confined: bool) -> None:
    answer = run("import time; time.sleep(1000)", limit_s=0.3, confined=confined)
    assert (answer.found, answer.in_time) == (None, False)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("os.write(int(sys.argv[1]), b'[1]\\n')", "no JSON object"),
        ("os.write(int(sys.argv[1]), b'[' * 100000 + b'\\n')", "no JSON object"),
        ("while True: os.write(int(sys.argv[1]), b'x' * 65536)", "longer than"),
        ("print('one'); print('the last')", "ended with 0: the last"),
        ("print('x' * 10_000_000); raise SystemExit('and the reason')", "ended with 1: and the reason"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", f"ended with -{int(signal.SIGSEGV)}: it said nothing"),
    ],
)
def test_what_is_no_answer_is_told(run: Run, program: str, why: str) -> None:
    answer = run(program)
    assert answer.found is None
    assert why in answer.why


def test_threads_and_programs_of_its_own_work(run: Run) -> None:
    program = """
import asyncio, tempfile, threading
done = []
thread = threading.Thread(target=lambda: done.append(1)); thread.start(); thread.join()
with tempfile.TemporaryDirectory() as folder:
    pass
answer(
    threads=len(done), loop=asyncio.run(asyncio.sleep(0, "ran")), cpus=os.cpu_count(), user=os.path.expanduser("~"),
    program=subprocess.run([sys.executable, "-c", "print(1 + 1)"], capture_output=True, text=True).stdout.strip(),
)
"""
    seen = found(run(program))
    assert (seen["threads"], seen["loop"], seen["program"]) == (1, "ran", "2")


def test_the_filter_is_made_for_both_machines() -> None:
    sizes = {machine: len(confinement._filter(machine, 1)) for machine in confinement.ARCHITECTURES}
    assert all(0 < size // 8 < 4096 for size in sizes.values())
    assert len(set(sizes.values())) == 2  # aarch64 lacks the older calls


def test_a_machine_that_cannot_confine_says_what_it_lacks(monkeypatch) -> None:
    monkeypatch.setattr(confinement, "_landlock_version", lambda: -1)
    assert "lacks Landlock (Linux 5.13" in confinement.missing()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert confinement.missing().startswith("darwin has neither")


def test_the_parent_may_have_threads(run: Run) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        assert found(run("answer(ok=True)")) == {"ok": True}
    finally:
        stop.set()
        thread.join()


def test_where_no_machine_can_confine_it_is_told_and_where_this_one_should_it_is_refused(monkeypatch) -> None:
    assert validation._why_unconfined(confined=False) == "--unconfined was given"
    monkeypatch.setattr(confinement, "_landlock_version", lambda: -1)
    with pytest.raises(InputError, match=r"lacks Landlock .* or, where you trust who trained the version"):
        validation._why_unconfined(confined=True)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "darwin has neither Landlock nor seccomp" in validation._why_unconfined(confined=True)
