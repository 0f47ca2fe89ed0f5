"""System calls that Python has no function for, by way of ctypes. Linux only; nothing here is used elsewhere."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct

_libc = ctypes.CDLL(None, use_errno=True)

#: Numbers of the system calls that are made by number: (x86-64, AArch64).
_NUMBERS = {
    "pivot_root": (155, 41), "capset": (126, 91), "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445), "landlock_restrict_self": (446, 446),
}  # fmt: skip
#: Machines whose system calls are known here, and the column of tables like the one above.
MACHINES = {"x86_64": 0, "aarch64": 1}

#: Flags of `unshare`.
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
#: Flags of `mount` and `umount`.
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1, 2, 4, 8, 0x20, 0x1000, 0x4000, 0x40000,
)  # fmt: skip
MNT_DETACH = 2
#: Options of `prctl`.
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 1, 4, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 36, 38, 47
PR_CAP_AMBIENT_CLEAR_ALL, SECCOMP_MODE_FILTER = 4, 2
_LAST_CAPABILITY = 63
_CAPABILITIES_V3 = 0x20080522


def machine() -> int | None:
    """The column of this machine in tables of system calls; None where its numbers are not known."""
    return MACHINES.get(platform.machine())


def _checked(what: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def call(name: str, *arguments: object) -> int:
    """A system call of `_NUMBERS`; raises OSError where it fails."""
    column = machine()
    if column is None:
        raise OSError(38, f"{name}: not known on {platform.machine()}")
    given = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(name, _libc.syscall(ctypes.c_long(_NUMBERS[name][column]), *given))


def prctl(option: int, first: int = 0, second: object = 0) -> int:
    """`prctl(option, first, second, 0, 0)`."""
    pointer = ctypes.c_ulong(second) if isinstance(second, int) else second
    zero = ctypes.c_ulong(0)
    return _checked(f"prctl {option}", _libc.prctl(option, ctypes.c_ulong(first), pointer, zero, zero))


def unshare(flags: int) -> None:
    """Leave namespaces."""
    _checked("unshare", _libc.unshare(flags))


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, data: str = "") -> None:
    """`mount(2)`."""
    _checked(
        f"mount {target}",
        _libc.mount(
            source.encode(), target.encode(), kind.encode() if kind else None, ctypes.c_ulong(flags), data.encode()
        ),
    )


def unmount(target: str) -> None:
    """Take a mount away at once, whoever still uses it."""
    _checked(f"umount {target}", _libc.umount2(target.encode(), MNT_DETACH))


def close_bounding_set() -> None:
    """See that no program started from here on can gain a capability."""
    for number in range(_LAST_CAPABILITY + 1):
        try:
            prctl(PR_CAPBSET_DROP, number)
        except OSError:  # beyond the last one that this kernel knows, or not ours to drop
            return


def drop_capabilities() -> None:
    """Give up every capability that this process has."""
    with contextlib.suppress(OSError):  # before Linux 4.3 there are no ambient ones
        prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = ctypes.create_string_buffer(struct.pack("<Ii", _CAPABILITIES_V3, 0))
    none = ctypes.create_string_buffer(24)
    call("capset", ctypes.byref(header), ctypes.byref(none))
