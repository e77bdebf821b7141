"""Takes a process out of reach of everything, for good: no network, almost nothing to read, nobody to signal.

    python -I -B confinement.py WORKER ANSWER_FD SCRATCH FOLDER…    (started by confined_process.py)

This process confines itself, and runs the file WORKER. Needs no rights, works as root too, and in a container with
Docker's default profile: Landlock says which files there are, seccomp refuses system calls. Imports nothing of ours.

What is left to it: Python and the system's libraries, to be read; FOLDER…, to be read; SCRATCH, to be written; GPUs;
processes of its own, which inherit all this and cannot leave its process group. What this does not cover:
- Whether a file is there, and its size, can be seen (stat); its content cannot.
- It may use up memory, disk and CPUs until its time is over: only a container has limits for those.
- A hole in the kernel.
"""

import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 22, 38
CAPABILITY_VERSION_3 = 0x20080522
SYS_LANDLOCK_CREATE_RULESET, SYS_LANDLOCK_ADD_RULE, SYS_LANDLOCK_RESTRICT_SELF = 444, 445, 446

# Landlock's rights on files, and in which of its versions each came.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
MAKE_CHAR, MAKE_BLOCK, MAKE_SOCK = 1 << 6, 1 << 11, 1 << 9
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
READ = EXECUTE | READ_FILE | READ_DIR
USE_DEVICE = READ_FILE | WRITE_FILE | IOCTL_DEV
SCRATCH = ((1 << 15) - 1) & ~(MAKE_CHAR | MAKE_BLOCK | MAKE_SOCK)
BIND_TCP_CONNECT_TCP, SCOPE_ABSTRACT_SOCKETS_SIGNALS = 3, 3

# Python in use, libraries, and what they ask about the machine. Nothing that holds anybody's secret.
SYSTEM = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store"),
    *("/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/localtime", "/etc/passwd", "/etc/os-release"),
    *("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/version", "/proc/filesystems"),
    *("/proc/sys/vm", "/proc/sys/kernel/osrelease", "/proc/driver/nvidia", "/proc/devices", "/proc/modules"),
    *("/sys/devices", "/sys/bus", "/sys/class", "/sys/module", "/sys/fs/cgroup", "/sys/kernel/mm"),
    *("/dev/zero", "/dev/random", "/dev/urandom"),
)
DEVICES = ("null", "nvidia*", "dri", "kfd")  # in /dev: nothing, and GPUs

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # AUDIT_ARCH_…, column of the tables below
LAST_KNOWN_CALL = 462  # what later kernels add is not there


def _calls(table: str) -> list[tuple[int | None, int | None]]:
    """The numbers of system calls: name, number on x86_64, on aarch64; a dash if it has none."""
    words = table.split()
    numbers = [int(word) if word != "-" else None for place, word in enumerate(words) if place % 3]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


# Whatever leads to others: sockets, other processes, their files and memory, the machine. Groups of processes too: all
# end with theirs.
REFUSED = _calls("""
    socket 41 198  connect 42 203  bind 49 200  listen 50 201  io_uring_setup 425 425  io_uring_enter 426 426
    io_uring_register 427 427  ptrace 101 117  process_vm_readv 310 270  process_vm_writev 311 271
    kcmp 312 272  process_madvise 440 440  process_mrelease 448 448  perf_event_open 298 241  tkill 200 130
    rt_sigqueueinfo 129 138  rt_tgsigqueueinfo 297 240  pidfd_send_signal 424 424  pidfd_open 434 434
    pidfd_getfd 438 438  setsid 112 157  setpgid 109 154  truncate 76 45  open_by_handle_at 304 265
    fanotify_init 300 262  unshare 272 97  setns 308 268  chroot 161 51  pivot_root 155 41  mount 165 40
    umount2 166 39  open_tree 428 428  move_mount 429 429  fsopen 430 430  fsconfig 431 431  fsmount 432 432
    fspick 433 433  mount_setattr 442 442  swapon 167 224  swapoff 168 225  acct 163 89  quotactl 179 60
    quotactl_fd 443 443  syslog 103 116  reboot 169 142  keyctl 250 219  add_key 248 217  request_key 249 218
    bpf 321 280  init_module 175 105  finit_module 313 273  delete_module 176 106  kexec_load 246 104
    kexec_file_load 320 294  userfaultfd 323 282  shmget 29 194  shmat 30 196  shmctl 31 195  semget 64 190
    semop 65 193  semctl 66 191  semtimedop 220 192  msgget 68 186  msgsnd 69 189  msgrcv 70 188
    msgctl 71 187  mq_open 240 180  mq_unlink 241 181
""")
# Landlock lets the owner of a file change these of it. Libraries do so with their own: they are told that it is done.
PRETENDED = _calls("""
    chmod 90 -  fchmod 91 52  fchmodat 268 53  fchmodat2 452 452  chown 92 -  fchown 93 55
    lchown 94 -  fchownat 260 54  utime 132 -  utimes 235 -  futimesat 261 -  utimensat 280 88
    setxattr 188 5  lsetxattr 189 6  fsetxattr 190 7  removexattr 197 14  lremovexattr 198 15
    fremovexattr 199 16
""")
# Their flags lie in memory, where no filter sees them; the C library then takes the older ones.
NOT_THERE = _calls("clone3 435 435  openat2 437 437")
# Allowed with no other process than itself.
OF_ITSELF = _calls("kill 62 129  tgkill 234 131  prlimit64 302 261")
OPEN, OPENAT, CLONE = (2, None), (257, 56), (56, 220)
NEW_NAMESPACES = 0x7E020000
O_TRUNC, O_ACCMODE = 0o1000, 0o3

ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000  # SECCOMP_RET_…
EPERM, EACCES, ENOSYS = 1, 13, 38
LOAD, JUMP_EQUAL, JUMP_AT_LEAST, JUMP_ANY, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06  # BPF's operations
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # places in struct seccomp_data

_libc = ctypes.CDLL(None, use_errno=True)


def missing() -> str:
    """What this machine lacks for a confinement, in words; empty where it has all."""
    machine = os.uname().machine
    if sys.platform != "linux":
        return f"{sys.platform} has neither Landlock nor seccomp, which confine on Linux"
    if machine not in ARCHITECTURES or sys.byteorder != "little" or sys.maxsize < 2**32:
        return f"it is made for {' and '.join(ARCHITECTURES)}, and this machine is {machine}"
    lacks = []
    if _landlock_version() < 1:
        lacks.append("Landlock (Linux 5.13 or newer with `landlock` in its list of `lsm`; in Docker 23 or newer)")
    # Asked to load no filter at all: where it could, it faults at the address.
    if _libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(2), None, 0, 0) == -1 and ctypes.get_errno() != 14:
        lacks.append("seccomp filters (CONFIG_SECCOMP_FILTER)")
    return f"the kernel {os.uname().release} lacks {' and '.join(lacks)}" if lacks else ""


def confine(scratch: Path, folders: Sequence[Path]) -> None:
    """Confine this process and all that it will start. Raises OSError; call it before there are threads."""
    parts = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    libraries = [folder for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder.startswith("/")]
    devices = [path for pattern in DEVICES for path in Path("/dev").glob(pattern)]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _call("prctl", PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0)
    header, nothing = struct.pack("Ii", CAPABILITY_VERSION_3, 0), bytes(24)
    _call("capset", header, nothing)
    _restrict_files(
        [
            *((Path(path), READ) for path in (*SYSTEM, *sorted(parts), *libraries)),
            *((folder, READ) for folder in folders),
            *((path, USE_DEVICE | READ_DIR) for path in devices),
            (scratch, SCRATCH),
        ]
    )
    program = _filter(os.uname().machine, os.getpid())
    memory = ctypes.create_string_buffer(program, len(program))
    loaded = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(memory))
    _call("prctl", PR_SET_SECCOMP, ctypes.c_ulong(2), loaded, 0, 0)


def _landlock_version() -> int:
    return int(_libc.syscall(ctypes.c_long(SYS_LANDLOCK_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint(1)))


def _restrict_files(rules: Iterable[tuple[Path, int]]) -> None:
    """Let this process do with files what the rules say, and nothing else; no TCP, no signals to others."""
    version = _landlock_version()
    handled = RIGHTS[max(number for number in RIGHTS if number <= version)]
    attributes = struct.pack("QQQ", handled, BIND_TCP_CONNECT_TCP, SCOPE_ABSTRACT_SOCKETS_SIGNALS)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = _system_call(SYS_LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(size), ctypes.c_uint(0))
    for path, rights in rules:
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:  # not on this machine
            continue
        rights &= handled if path.is_dir() else handled & ON_FILES
        _system_call(
            SYS_LANDLOCK_ADD_RULE,
            ctypes.c_int(ruleset),
            ctypes.c_int(1),
            struct.pack("=Qi", rights, handle),
            ctypes.c_uint(0),
        )
        os.close(handle)
    _system_call(SYS_LANDLOCK_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))
    os.close(ruleset)


def _filter(machine: str, process: int) -> bytes:
    """The seccomp program for a machine and a process id: refusals one by one, all else is allowed."""
    architecture, column = ARCHITECTURES[machine]
    program = [
        *(_step(LOAD, ARCHITECTURE), _step(JUMP_EQUAL, architecture, 1, 0), _step(RETURN, KILL)),
        *(_step(LOAD, NUMBER), _step(JUMP_AT_LEAST, LAST_KNOWN_CALL + 1, 0, 1), _step(RETURN, ERRNO | ENOSYS)),
    ]
    for table, answer in ((REFUSED, ERRNO | EACCES), (PRETENDED, ERRNO), (NOT_THERE, ERRNO | ENOSYS)):
        for numbers in table:
            program += _case(numbers[column], [_step(RETURN, answer)])
    for numbers in OF_ITSELF:
        program += _case(
            numbers[column],
            [
                *(_step(LOAD, ARGUMENTS), _step(JUMP_EQUAL, 0, 2, 0), _step(JUMP_EQUAL, process, 1, 0)),
                *(_step(RETURN, ERRNO | EPERM), _step(RETURN, ALLOW)),
            ],
        )
    program += _case(
        CLONE[column],
        [
            *(_step(LOAD, ARGUMENTS), _step(JUMP_ANY, NEW_NAMESPACES, 0, 1)),
            *(_step(RETURN, ERRNO | EPERM), _step(RETURN, ALLOW)),
        ],
    )
    # Early Landlock knows no truncating, and no version looks at a file that is opened for neither reading nor writing.
    for numbers, flags in ((OPEN, ARGUMENTS + 8), (OPENAT, ARGUMENTS + 16)):
        program += _case(
            numbers[column],
            [
                *(_step(LOAD, flags), _step(AND, O_ACCMODE), _step(JUMP_EQUAL, O_ACCMODE, 3, 0)),
                *(_step(LOAD, flags), _step(AND, O_TRUNC | O_ACCMODE), _step(JUMP_EQUAL, O_TRUNC, 0, 1)),
                *(_step(RETURN, ERRNO | EACCES), _step(RETURN, ALLOW)),
            ],
        )
    return b"".join([*program, _step(RETURN, ALLOW)])


def _case(number: int | None, steps: list[bytes]) -> list[bytes]:
    """Steps for one system call, which all end in a return."""
    return [] if number is None else [_step(JUMP_EQUAL, number, 0, len(steps)), *steps]


def _step(operation: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
    return struct.pack("HBBI", operation, if_so, if_not, value)


def _system_call(number: int, *arguments: object) -> int:
    return _call("syscall", ctypes.c_long(number), *arguments)


def _call(name: str, *arguments: object) -> int:
    """Call the C library. Raises OSError, naming the function."""
    found = int(getattr(_libc, name)(*arguments))
    if found == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return found


def main(worker: str, answer: str, scratch: str, *folders: str) -> None:
    """Run a worker's file in this process, which can do nothing else any more."""
    program = compile(Path(worker).read_bytes(), worker, "exec")
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    confine(Path(scratch), [Path(folder) for folder in folders])
    sys.argv = [worker, answer, scratch]
    exec(program, {"__name__": "__main__", "__file__": worker})  # nosec B102


if __name__ == "__main__":
    main(*sys.argv[1:])
