"""Namespaces, and a root folder in which there is nothing but Python's standard library.

Entered once by the zygote; every program that it forks is inside. As root the namespaces are made directly, and
programs get a user of their own; an ordinary user makes a user namespace first, in which it may make the others.
What a machine refuses is left out and said, so that the caller can judge whether the rest is enough.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from maieutic.sandbox import kernel

#: Where a program may write, where it may write at all: the working folder of every program.
SCRATCH = "/tmp"
#: Users for programs begin here, far above those that people and services have; and one that every system has.
_OWN_USERS, _NOBODY = 1_879_048_192, 65534
#: Namespaces by the word for what is private in them.
_PRIVATE = {
    "mounts": kernel.CLONE_NEWNS, "network": kernel.CLONE_NEWNET, "ipc": kernel.CLONE_NEWIPC,
    "host name": kernel.CLONE_NEWUTS, "control groups": kernel.CLONE_NEWCGROUP, "processes": kernel.CLONE_NEWPID,
}  # fmt: skip


@dataclass
class Rooms:
    """What the zygote is in. `layers`: name → (in force, a word about it)."""

    layers: dict[str, tuple[bool, str]] = field(default_factory=dict)
    user: int | None = None
    """Which user programs become; None: the one they are."""
    own_count: bool = False
    """Whether a limit of processes counts those of this sandbox only."""

    def has(self, layer: str) -> bool:
        """Whether a layer is in force."""
        return self.layers.get(layer, (False, ""))[0]

    def attempt(self, layer: str, enter: Callable[[], str]) -> bool:
        """Enter a layer, and note whether that went well: `enter` returns a word about it."""
        try:
            self.layers[layer] = (True, enter())
        except OSError as error:
            self.layers[layer] = (False, error.strerror or str(error))
        return self.layers[layer][0]


def enter(folders: Sequence[str], closed: Sequence[str], without: frozenset[str]) -> Rooms:
    """Enter whatever this machine grants. Of the old root only `folders` remain, to read, without the `closed` ones."""
    rooms = Rooms()
    direct = os.geteuid() == 0 and _can_unshare()
    if os.geteuid() == 0:
        rooms.user = _user_for_programs()
        if rooms.user is not None:
            rooms.layers["user"] = (True, f"programs run as user {rooms.user}")
            rooms.own_count = rooms.user != _NOBODY
        if not direct and rooms.user is not None:  # as in many containers: go on as an ordinary user does
            _become(rooms.user)
            rooms.user = None
    if not direct and "namespaces" not in without:
        rooms.own_count |= rooms.attempt("user", _own_user_namespace)
    if "namespaces" in without:
        rooms.layers |= {name: (False, "left out") for name in ("user", *_PRIVATE) if name not in rooms.layers}
    elif direct or rooms.has("user"):
        for name, flag in _PRIVATE.items():
            rooms.attempt(name, _left(flag))
    if rooms.has("mounts"):
        rooms.attempt("root", lambda: _own_root(folders, closed))
    if rooms.user is not None and not rooms.has("root") and not _can_read(rooms.user, folders):
        few = f"{', '.join(folders)} is closed to them, so that they can import only what is loaded beforehand"
        rooms.layers["user"] = (True, f"programs run as user {rooms.user}; {few}")
    return rooms


def _can_read(user: int, folders: Sequence[str]) -> bool:
    """Whether that user may read the folders: tried in a process of its own."""

    def read() -> None:
        os.setresuid(user, user, user)
        for folder in folders:
            os.listdir(folder)

    return _in_a_child(read)


def _in_a_child(attempt: Callable[[], object]) -> bool:
    """Whether this goes well, in a process that ends afterwards."""
    child = os.fork()
    if child == 0:
        try:
            attempt()
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def _can_unshare() -> bool:
    """Whether namespaces may be made without a user namespace."""
    return _in_a_child(lambda: kernel.unshare(kernel.CLONE_NEWNS))


def _user_for_programs() -> int | None:
    """A user whom nobody else is, so that limits count and signals reach only this sandbox; else nobody.

    None for a root in name only, who can become nobody else.
    """
    wanted = _OWN_USERS + os.getpid() % (1 << 22)
    if _in_a_child(lambda: _become(wanted)):
        return wanted
    return _NOBODY if _in_a_child(lambda: _become(_NOBODY)) else None


def _become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # or its own files in /proc would be root's


def _own_user_namespace() -> str:
    user, group = os.geteuid(), os.getegid()
    kernel.unshare(kernel.CLONE_NEWUSER)
    for name, text in (
        ("setgroups", "deny"), ("uid_map", f"{_NOBODY} {user} 1"), ("gid_map", f"{_NOBODY} {group} 1"),
    ):  # fmt: skip
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    return "a user namespace, where programs are nobody"


def _left(flag: int) -> Callable[[], str]:
    def leave() -> str:
        kernel.unshare(flag)
        return "a namespace of its own"

    return leave


def _locked(path: str) -> int:
    """The flags of a mount that must be kept when it is mounted once more."""
    kept = {os.ST_NOSUID: kernel.MS_NOSUID, os.ST_NODEV: kernel.MS_NODEV, os.ST_NOEXEC: kernel.MS_NOEXEC}
    flags = os.statvfs(path).f_flag
    kept |= {1024: 1024, 2048: 2048, 4096: 1 << 21}  # noatime, nodiratime, relatime
    return sum(mount for stat, mount in kept.items() if flags & stat)


def _own_root(folders: Sequence[str], closed: Sequence[str]) -> str:
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    sources = {folder: os.open(folder, os.O_PATH | os.O_CLOEXEC) for folder in folders}
    kernel.mount("tmpfs", SCRATCH, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=755")
    for folder, source in sources.items():
        place = SCRATCH + folder
        os.makedirs(place, exist_ok=True)
        kernel.mount(f"/proc/self/fd/{source}", place, None, kernel.MS_BIND | kernel.MS_REC)
        os.close(source)
        for each in closed:
            if os.path.dirname(each) == folder and os.path.isdir(SCRATCH + each):
                kernel.mount("tmpfs", SCRATCH + each, "tmpfs", kernel.MS_RDONLY, "size=4k,mode=755")
        only_read = kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
        kernel.mount("none", place, None, only_read | _locked(place))
    os.makedirs(SCRATCH + SCRATCH, exist_ok=True)
    os.chdir(SCRATCH)
    kernel.call("pivot_root", b".", b".")
    kernel.unmount(".")
    os.chdir("/")
    kernel.mount(
        "none", "/", None, kernel.MS_REMOUNT | kernel.MS_BIND | kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV
    )
    return "a root with Python's standard library and nothing else"


def mount_scratch(size: int, user: int | None) -> None:
    """An empty folder of `size` bytes at `SCRATCH`, in memory, for one program."""
    owner = _NOBODY if user is None else user
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("tmpfs", SCRATCH, "tmpfs", flags, f"size={size},nr_inodes=1024,mode=700,uid={owner},gid={owner}")


def unmount_scratch() -> None:
    """Take the program's folder away, with whatever is in it."""
    kernel.unmount(SCRATCH)
