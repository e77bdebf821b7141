"""A filter of system calls for programs, by libseccomp: no keyrings, and no sockets that lead past every namespace.

In the stack Docker's own filter refuses the same, and more.
"""

import ctypes
import errno
import os

ALLOW, ERROR = 0x7FFF0000, 0x00050000  # SCMP_ACT_ALLOW, and SCMP_ACT_ERRNO with its number in the last 16 bits
EQUAL = 4  # SCMP_CMP_EQ
AF_ALG, AF_VSOCK = 38, 40  # the kernel's cryptography; the hypervisor, which no network namespace knows
KEYRINGS = (b"add_key", b"request_key", b"keyctl")
MISSING = "there is no libseccomp.so.2 (Debian: apt install libseccomp2)"

try:
    _library: ctypes.CDLL | None = ctypes.CDLL("libseccomp.so.2", use_errno=True)
except OSError:
    _library = None


class _Compared(ctypes.Structure):
    """struct scmp_arg_cmp"""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


def is_there() -> bool:
    """Whether libseccomp is."""
    return _library is not None


def load() -> None:
    """Filter the calls of this process, and of what it becomes, from here on. Raises OSError."""
    if _library is None:
        raise OSError(errno.ENOSYS, MISSING)
    _library.seccomp_init.restype = ctypes.c_void_p
    made = ctypes.c_void_p(_library.seccomp_init(ctypes.c_uint32(ALLOW)))
    refused = ctypes.c_uint32(ERROR | errno.EPERM)
    for name in KEYRINGS:
        _check(_library.seccomp_rule_add_array(made, refused, _library.seccomp_syscall_resolve_name(name), 0, None))
    socket = _library.seccomp_syscall_resolve_name(b"socket")
    for family in (AF_ALG, AF_VSOCK):
        first = _Compared(0, EQUAL, family, 0)
        _check(_library.seccomp_rule_add_array(made, refused, socket, 1, ctypes.byref(first)))
    _check(_library.seccomp_load(made))


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, f"libseccomp: {os.strerror(-result)}")
