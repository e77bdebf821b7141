"""Programs that try to get out of the evaluator, one by one, each with what has to become of it.

An escape that is stopped ends with one of the outcomes, and its detail says how; what must not happen is checked inside
the program, by an assertion that fails where the escape was stopped.
"""

from textwrap import dedent
from typing import NamedTuple


class Escape(NamedTuple):
    """What is tried, by which program, the outcomes that it may have, and a part of the detail where it failed."""

    name: str
    program: str
    outcomes: tuple[str, ...]
    detail: str = ""


ESCAPES = tuple(
    escape._replace(program=dedent(escape.program))
    for escape in (
        Escape(
            "fork bomb",
            """
            import os
            while True:
                os.fork()
            """,
            ("failed",),
        ),
        Escape(
            "more processes than allowed",
            """
            import os, time
            for made in range(1000):
                try:
                    child = os.fork()
                except BlockingIOError:
                    raise SystemExit(f"no more than {made}")
                if child == 0:
                    time.sleep(60)
            """,
            ("failed",),
            "no more than",
        ),
        Escape(
            "thread bomb",
            """
            import threading, time
            for _ in range(5000):
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            """,
            ("failed",),
            "can't start new thread",
        ),
        Escape(
            "memory bomb",
            """
            x = []
            while True:
                x.append(bytearray(10**8))
            """,
            ("failed",),
            "MemoryError",
        ),
        Escape(
            "memory bomb of many processes",
            """
            import os, time
            for _ in range(8):
                if not os.fork():
                    break
            x = bytearray(200_000_000)
            time.sleep(60)
            """,
            ("memory",),
        ),
        Escape(
            "memory bomb in files without a name",
            """
            import os, time
            files = [os.memfd_create('x') for _ in range(100)]
            for file in files:
                os.write(file, b'x' * 15_000_000)
            time.sleep(60)
            """,
            ("memory",),
        ),
        Escape(
            "file write outside",
            """
            import pathlib, sys
            written = []
            for folder in ('/', '/usr', '/etc', '/root', '/home', '/var', '/dev', '/proc/sys/kernel', sys.prefix):
                try:
                    pathlib.Path(folder, 'escaped').write_text('x')
                    written.append(folder)
                except OSError:
                    pass
            assert written, 'nothing was written'
            """,
            ("failed",),
            "nothing was written",
        ),
        Escape(
            "memory bomb in System V's shared memory",
            """
            import ctypes, time
            libc = ctypes.CDLL(None)
            libc.shmat.restype = ctypes.c_void_p
            for key in range(1, 40):
                address = libc.shmat(libc.shmget(key, 50_000_000, 0o1666), None, 0)
                ctypes.memset(address, 1, 50_000_000)
                libc.shmdt(ctypes.c_void_p(address))
            time.sleep(60)
            """,
            ("memory",),
        ),
        Escape(
            "disk bomb",
            """
            f = open('/tmp/x', 'wb')
            while True:
                f.write(b'x' * 10**6)
            """,
            ("failed",),
            "too large",
        ),
        Escape(
            "disk bomb of many files",
            """
            for n in range(1000):
                open(f'/tmp/x{n}', 'wb').write(b'x' * 10**7)
            """,
            ("failed",),
            "No space left",
        ),
        Escape(
            "socket",
            """
            import socket
            for address in (('1.1.1.1', 53), ('127.0.0.1', 22), ('172.17.0.1', 2375)):
                try:
                    socket.create_connection(address, timeout=1)
                    break
                except OSError:
                    pass
            else:
                raise SystemExit('no connection')
            """,
            ("failed",),
            "no connection",
        ),
        Escape(
            "reading the environment",
            """
            import os
            open('/proc/1/environ').read()
            """,
            ("failed",),
            "Permission denied",
        ),
        Escape(
            "the environment itself",
            """
            import os
            raise SystemExit(' '.join(sorted(os.environ)))
            """,
            ("failed",),
            "HOME LANG PATH PYTHONHASHSEED",
        ),
        Escape(
            "reading what the user has",
            """
            import os
            found = [p for p in ('/root/.ssh', '/root/.bashrc', '/etc/shadow', '/run/secrets', '/var/lib/ratchet')
                     if os.access(p, os.R_OK) and (not os.path.isdir(p) or os.listdir(p))]
            assert found, 'nothing to read'
            """,
            ("failed",),
            "nothing to read",
        ),
        Escape(
            "signalling the parent",
            """
            import os, signal
            for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM, signal.SIGINT, signal.SIGSEGV):
                try:
                    os.kill(os.getppid(), number)
                    os.kill(1, number)
                except PermissionError:
                    pass
            raise SystemExit('sent')
            """,
            ("failed",),
            "sent",
        ),
        Escape(
            "reading the parent's memory",
            """
            open('/proc/1/mem', 'r+b')
            """,
            ("failed",),
            "Permission denied",
        ),
        Escape(
            "the parent's open files",
            """
            import os
            os.listdir('/proc/1/fd')
            """,
            ("failed",),
            "Permission denied",
        ),
        Escape(
            "tracing the parent",
            """
            import ctypes
            assert ctypes.CDLL(None).ptrace(16, 1, 0, 0) == 0, 'not traced'
            """,
            ("failed",),
            "not traced",
        ),
        Escape(
            "keys of the kernel's keyring",
            """
            import ctypes
            found = ctypes.CDLL(None, use_errno=True).syscall(250, 10, -3, b"user", b"ratchet:escape", 0)
            assert found > 0, "no key"
            """,
            ("failed",),
            "no key",
        ),
        Escape(
            "a keyring of its own",
            """
            import ctypes
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.syscall(248, b"user", b"ratchet:mine", b"x", 1, -2) > 0 or ctypes.get_errno() != 1, "forbidden"
            """,
            ("failed",),
            "forbidden",
        ),
        *(
            Escape(
                f"a socket of {family}",
                f"""
                import socket
                try:
                    socket.socket({number}, socket.SOCK_STREAM if {number} == 40 else socket.SOCK_SEQPACKET)
                except PermissionError:
                    raise SystemExit("forbidden")
                """,
                ("failed",),
                "forbidden",
            )
            for family, number in (("the hypervisor", 40), ("the kernel's cryptography", 38))
        ),
        Escape(
            "namespaces of its own",
            """
            import ctypes
            assert ctypes.CDLL(None).unshare(0x10000000) == 0, 'not made'
            """,
            ("failed",),
            "not made",
        ),
        Escape(
            "endless output",
            """
            while True:
                print('x' * 1000)
            """,
            ("output",),
        ),
        Escape(
            "endless loop",
            """
            while True:
                pass
            """,
            ("timeout",),
        ),
        Escape(
            "sleeping for ever",
            """
            import time
            time.sleep(10**6)
            """,
            ("timeout",),
        ),
        Escape(
            "leaving before the tests",
            """
            import sys
            sys.exit(0)
            assert False
            """,
            ("failed",),
            "before its tests did",
        ),
        Escape(
            "leaving at once",
            """
            import os
            os._exit(0)
            """,
            ("failed",),
            "before its tests did",
        ),
        Escape(
            "waiting for input",
            """
            input()
            """,
            ("failed",),
            "EOF",
        ),
        Escape(
            "open files of the parent",
            """
            import os
            assert os.listdir('/proc/self/fd')[5:], 'none'
            """,
            ("failed",),
            "none",
        ),
    )
)

# Two programs, one after the other: what the first leaves, the second must not find.
LEGACIES = tuple(
    (what, dedent(first), dedent(second))
    for what, first, second in (
        (
            "a process",
            """
            import os, time
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(100)
                os._exit(0)
            """,
            """
            import os
            assert [p for p in os.listdir('/proc') if p.isdigit() and p not in ('1', str(os.getpid()))] == []
            """,
        ),
        (
            "a file, and a locked folder",
            """
            import os
            open('/tmp/left', 'w')
            os.makedirs('a/b')
            os.chmod('a/b', 0)
            os.chmod('a', 0)
            """,
            """
            import os
            assert os.listdir('/dev/shm') == ['run'] and os.listdir('/tmp') == [] and os.listdir('.') == ['program.py']
            """,
        ),
        (
            "folders in folders, without end",
            """
            import os
            while True:
                try:
                    os.mkdir("a")
                except OSError:
                    break
                os.chdir("a")
            """,
            """
            import os
            assert os.listdir('/dev/shm') == ['run'] and os.listdir('/tmp') == [] and os.listdir('.') == ['program.py']
            """,
        ),
        (
            "shared memory",
            """
            import ctypes
            assert ctypes.CDLL(None).shmget(1234, 50_000_000, 0o1666) >= 0
            """,
            """
            import ctypes
            assert ctypes.CDLL(None).shmget(1234, 50_000_000, 0o666) == -1
            """,
        ),
    )
)
