"""Which system calls a program may make: a seccomp filter, written as BPF by hand.

Whatever is not listed fails with EPERM, so that Python raises PermissionError and the program may go on; a system call
of another architecture (32-bit, x32) kills. `clone3`, whose flags lie in memory where a filter cannot look, fails with
ENOSYS: the C library then takes `clone`, whose flags it can see. Of processes a program may make none, of threads some.

No socket of any kind: not even a local pair, which has had faults of its own. asyncio therefore does not run.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence

from maieutic.sandbox.kernel import PR_SET_SECCOMP, SECCOMP_MODE_FILTER, machine, prctl

#: System calls that are harmless with whatever arguments, since the files they reach are limited elsewhere:
#: name → numbers (x86-64, AArch64; -1 where there is none). Often used ones first: a filter is read from its top.
ALLOWED = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "futex": (202, 98), "mmap": (9, 222), "munmap": (11, 215),
    "brk": (12, 214), "madvise": (28, 233), "mprotect": (10, 226), "mremap": (25, 216), "fstat": (5, 80),
    "newfstatat": (262, 79), "stat": (4, -1), "lstat": (6, -1), "statx": (332, 291), "lseek": (8, 62),
    "openat": (257, 56), "open": (2, -1), "getdents64": (217, 61), "readv": (19, 65), "writev": (20, 66),
    "pread64": (17, 67), "pwrite64": (18, 68), "close_range": (436, 436), "access": (21, -1), "faccessat": (269, 48),
    "faccessat2": (439, 439), "readlink": (89, -1), "readlinkat": (267, 78), "getcwd": (79, 17), "chdir": (80, 49),
    "umask": (95, 166), "statfs": (137, 43), "fstatfs": (138, 44),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "rt_sigpending": (127, 136),
    "rt_sigtimedwait": (128, 137), "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132),
    "restart_syscall": (219, 128), "pipe": (22, -1), "pipe2": (293, 59), "select": (23, -1), "pselect6": (270, 72),
    "poll": (7, -1), "ppoll": (271, 73),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, -1), "epoll_pwait": (281, 22),
    "dup": (32, 23), "dup2": (33, -1), "dup3": (292, 24), "exit": (60, 93), "exit_group": (231, 94),
    "set_robust_list": (273, 99), "rseq": (334, 293), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "membarrier": (324, 283), "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, -1), "times": (100, 153),
    "getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "getuid": (102, 174), "geteuid": (107, 175),
    "getgid": (104, 176), "getegid": (108, 177), "getresuid": (118, 148), "getresgid": (120, 150),
    "getgroups": (115, 158), "getpgrp": (111, -1), "getpgid": (121, 155), "getsid": (124, 156), "uname": (63, 160),
    "getrlimit": (97, 163), "getrusage": (98, 165), "sysinfo": (99, 179), "getrandom": (318, 278),
    "wait4": (61, 260), "waitid": (247, 95), "pause": (34, -1), "alarm": (37, -1), "setitimer": (38, 103),
    "getitimer": (36, 102),
}  # fmt: skip
#: What changes files, for programs that have a folder of their own. No links, no devices, no owners, no modes.
WRITING = {
    "mkdir": (83, -1), "mkdirat": (258, 34), "rmdir": (84, -1), "unlink": (87, -1), "unlinkat": (263, 35),
    "rename": (82, -1), "renameat": (264, 38), "renameat2": (316, 276), "ftruncate": (77, 46), "truncate": (76, 45),
    "fsync": (74, 82), "fdatasync": (75, 83),
}  # fmt: skip
#: System calls of which some first (or second) arguments are harmless: number of the argument, and its harmless values.
SOME = {
    "ioctl": ((16, 29), 1, (0x5401, 0x541B, 0x5450, 0x5451)),  # is it a terminal; bytes waiting; close on exec
    "fcntl": ((72, 25), 1, (0, 1, 2, 3, 4, 1030)),  # copies of file descriptors and their flags
    "prctl": ((157, 167), 0, (15, 16)),  # the name of a thread
    "prlimit64": ((302, 261), 0, (0,)),  # one's own limits, which only go down
}
#: System calls that reach a process: only the program itself.
SIGNALS = {"kill": (62, 129), "tgkill": (234, 131)}
CLONE, CLONE3 = (56, 220), (435, 435)
_CLONE_THREAD, _CLONE_NEW_ANYTHING = 0x10000, 0x7E020080
_ARCHITECTURES = (0xC000003E, 0xC00000B7)
_X32 = 0x40000000

_KILL, _ALLOW, _EPERM, _ENOSYS = 0x80000000, 0x7FFF0000, 0x00050001, 0x00050026
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
#: Where `struct seccomp_data` has the number, the architecture, and the low half of argument n (at + 8n).
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16


def _do(code: int, value: int, true: int = 0, false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, true, false, value)


def _one_of(number: int, argument: int, values: Sequence[int]) -> bytes:
    """For the system call `number`: allowed where the argument is one of the values, else refused."""
    tests = [_do(_LOAD, _ARGUMENTS + 8 * argument)]
    for value in values:
        tests += [_do(_EQUAL, value, 0, 1), _do(_RETURN, _ALLOW)]
    tests.append(_do(_RETURN, _EPERM))
    return _do(_EQUAL, number, 0, len(tests)) + b"".join(tests)


def assemble(column: int, pid: int, writing: bool) -> bytes:
    """The filter of a machine (see `kernel.machine`) for the process `pid`, as `struct sock_filter`s."""
    lines = [_do(_LOAD, _ARCHITECTURE), _do(_EQUAL, _ARCHITECTURES[column], 1, 0), _do(_RETURN, _KILL)]
    lines.append(_do(_LOAD, _NUMBER))
    lines += [_do(_AT_LEAST, _X32, 0, 1), _do(_RETURN, _KILL)]
    for numbers in (ALLOWED | WRITING if writing else ALLOWED).values():
        if numbers[column] >= 0:
            lines += [_do(_EQUAL, numbers[column], 0, 1), _do(_RETURN, _ALLOW)]
    lines += [_one_of(numbers[column], argument, values) for numbers, argument, values in SOME.values()]
    lines += [_one_of(numbers[column], 0, (pid,)) for numbers in SIGNALS.values()]
    lines += [_do(_EQUAL, CLONE3[column], 0, 1), _do(_RETURN, _ENOSYS)]
    lines += [
        _do(_EQUAL, CLONE[column], 0, 4),
        _do(_LOAD, _ARGUMENTS),
        _do(_ANY_BIT, _CLONE_NEW_ANYTHING, 2, 0),
        _do(_ANY_BIT, _CLONE_THREAD, 0, 1),
        _do(_RETURN, _ALLOW),
        _do(_RETURN, _EPERM),
    ]
    return b"".join(lines)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_void_p))


def install(pid: int, writing: bool) -> None:
    """Put this process under the filter, for good. Wants no_new_privs; raises OSError where there is no seccomp."""
    column = machine()
    if column is None:
        raise OSError(38, "the system calls of this machine are not known")
    lines = assemble(column, pid, writing)
    buffer = ctypes.create_string_buffer(lines, len(lines))
    program = _Program(len(lines) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program))
