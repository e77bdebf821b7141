"""A cage of Linux namespaces, for where there is no container: users, processes, network, mounts, IPC, host name.

Inside: a root of its own in memory, with /usr and the Python in use (its virtual environment, wherever that lies)
mounted read-only, empty /dev/shm and /tmp of 64 MB, /proc of the inside alone, no network device but a dead loopback.
Nothing else of the caller's files is there. Needs a kernel of 5.14 or newer that lets users make namespaces; no rights.
As root, programs run as a user without a name.
"""

import ctypes
import os
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from evaluator import program, system_calls

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 4096, 16384, 1 << 18
MNT_DETACH = 2
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID = -100, 0x8000, 1, 2
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
SYS_MOUNT_SETATTR = 442  # the same on every architecture

SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
STRANGER = 0x70000000  # and above: uids that nobody has

_libc = ctypes.CDLL(None, use_errno=True)

# What is done inside, told the uid to run programs as (None: there is no other). Returns an exit code.
Work = Callable[[int | None], int]


class CageError(Exception):
    """No cage can be made on this machine; says why and what to do."""


def in_cage(work: Work) -> int:
    """Do `work` as the first process of a new cage; returns its exit code. Raises CageError."""
    if sys.platform != "linux" or os.uname().machine not in SYS_PIVOT_ROOT:
        raise CageError(_advice(f"{sys.platform} on {os.uname().machine} has no such namespaces"))
    if not system_calls.is_there():
        raise CageError(_advice(system_calls.MISSING))
    stranger = STRANGER + os.getpid() % 65536
    user = stranger if os.geteuid() == 0 and _exists(stranger) else None
    ready, mapped, problem = os.pipe(), os.pipe(), os.pipe()
    outer = os.fork()
    if outer == 0:
        _outer_process(work, user, ready[1], mapped[0], problem[1])
    os.close(ready[1])
    os.close(problem[1])
    reason = ""
    try:
        if os.read(ready[0], 1):
            _map_users(outer, user)
            os.write(mapped[1], b"x")
    except OSError as error:
        reason = str(error)
        os.kill(outer, signal.SIGKILL)
    with os.fdopen(problem[0], "rb") as file:
        reason = reason or file.read().decode()
    for descriptor in (ready[0], *mapped):
        os.close(descriptor)
    code = os.waitstatus_to_exitcode(os.waitpid(outer, 0)[1])
    if reason:
        raise CageError(_advice(reason))
    return code if code >= 0 else 1


def _exists(user: int) -> bool:
    """Whether a uid means anything here: in a rootless container root has few."""
    ranges = [map(int, line.split()) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    return any(first <= user < first + count for first, _, count in ranges)


def _advice(reason: str) -> str:
    return (
        f"Completions cannot be run safely here: {reason}. Expected Linux 5.14 or newer (x86_64, aarch64) whose users "
        "may make namespaces (sysctl kernel.unprivileged_userns_clone=1; on Ubuntu 24.04 and later also "
        "kernel.apparmor_restrict_unprivileged_userns=0). Or use the Compose stack, whose evaluator is a container."
    )


def _outer_process(work: Work, user: int | None, ready: int, mapped: int, problem: int) -> NoReturn:
    """Leave the caller's namespaces, and start the inner process, which is the first of the new one."""
    code = 1
    try:
        _call("prctl", program.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        _call("unshare", CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS)
        os.write(ready, b"x")
        os.close(ready)
        if not os.read(mapped, 1):
            os._exit(1)
        inner = os.fork()
        if inner == 0:
            _call("prctl", program.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            _furnish()
            program.prepare_process()
            os.close(problem)
            problem = -1
            code = work(user)
        else:
            os.close(problem)
            problem = -1
            code = os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1])
    except OSError as error:
        if problem >= 0:
            os.write(problem, str(error).encode())
        else:
            traceback.print_exc()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code if code >= 0 else 1)


def _map_users(process: int, user: int | None) -> None:
    """Say which users there are inside: us, and the stranger where there is one."""
    folder = Path(f"/proc/{process}")
    if user is None:
        (folder / "setgroups").write_text("deny")
    for name, own in (("uid_map", os.geteuid()), ("gid_map", os.getegid())):
        (folder / name).write_text(f"{own} {own} 1\n" + (f"{user} {user} 1\n" if user is not None else ""))


def _furnish() -> None:
    """Make the cage's file system, and go there."""
    os.umask(0o022)  # whatever the caller's is: who runs the programs has to find them
    root = "/sys"  # a folder that is always there, and that nobody in here needs: it is covered by the new root
    new = Path(root)
    folders = _python_folders()
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    _mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    moved = _moved(folders)
    for path in (*SYSTEM, *(folder for folder in folders if folder not in moved), *DEVICES):
        _show(Path(path), new)
    for folder, place in moved.items():
        (new / place[1:]).mkdir()
        _mount(folder, f"{root}{place}", None, MS_BIND | MS_REC)
        if sys.executable.startswith(f"{folder}/"):
            program.executable = place + sys.executable.removeprefix(folder)
    # No /tmp where the base interpreter itself lies below it.
    writable = ["dev/shm", *(["tmp"] if not (new / "tmp").exists() else [])]
    for name in ("proc", *writable):
        (new / name).mkdir()
    attributes = struct.pack("QQQQ", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID, 0, 0, 0)
    _call("syscall", SYS_MOUNT_SETATTR, AT_FDCWD, os.fsencode(root), AT_RECURSIVE, attributes, len(attributes))
    _mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for name in writable:
        _mount("tmpfs", f"{root}/{name}", "tmpfs", MS_NOSUID | MS_NODEV, "size=64m,nr_inodes=4096,mode=1777")
    # A program may make no namespaces of its own: in one it could mount memory that nobody counts.
    Path(root, "proc/sys/user/max_user_namespaces").write_text("0")
    os.chdir(root)
    _call("syscall", SYS_PIVOT_ROOT[os.uname().machine], b".", b".")
    _call("umount2", b".", MNT_DETACH)
    os.chdir("/")


def _python_folders() -> list[str]:
    """Where the Python in use lies, by every name that it has."""
    folders = {sys.prefix, sys.base_prefix, sys.exec_prefix, str(Path(sys.executable).resolve().parent.parent)}
    folders |= {os.path.realpath(folder) for folder in folders}
    system = tuple(f"{folder}/" for folder in SYSTEM)
    return sorted(folder for folder in folders if folder != "/" and not f"{folder}/".startswith(system))


def _moved(folders: list[str]) -> dict[str, str]:
    """Where in the cage a virtual environment below /tmp is to be seen instead: /tmp is a program's to write to."""
    if any(os.path.realpath(sys.base_prefix).startswith(f"{folder}/") for folder in ("/tmp", os.path.realpath("/tmp"))):
        return {}  # a base interpreter cannot be moved
    below = [folder for folder in folders if folder.startswith("/tmp/")]
    return {folder: f"/python-{number}" for number, folder in enumerate(below)}


def _show(path: Path, new: Path) -> None:
    """Have a path of the outside in the new root: a link as a link, all else mounted."""
    target = new / path.relative_to("/")
    if target.exists() or not path.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        target.symlink_to(path.readlink())
        return
    target.mkdir() if path.is_dir() else target.touch()
    _mount(str(path), str(target), None, MS_BIND | MS_REC)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [os.fsencode(text) if text is not None else None for text in (source, target, kind)]
    _call("mount", *encoded, ctypes.c_ulong(flags), os.fsencode(options) if options is not None else None)


def _call(name: str, *arguments: object) -> None:
    """Call the C library. Raises OSError, naming the function."""
    if getattr(_libc, name)(*arguments) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
