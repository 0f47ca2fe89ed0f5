"""Landlock: which files a process may open, whatever its user may. Once restricted there is no way back.

Rights are added below folders and never taken away again, so a folder of which a part is closed is opened entry by
entry. What a kernel cannot restrict yet (its ABI says what it can) is left to the other layers.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Iterable

from maieutic.sandbox.kernel import call

READ_FILE, READ_FOLDER = 1 << 2, 1 << 3
#: Write, remove and make regular files and folders: no links, sockets, pipes or devices.
WRITE = (1 << 1) | (1 << 4) | (1 << 5) | (1 << 7) | (1 << 8)
_TRUNCATE = 1 << 14
#: All rights over files that an ABI knows, by the first ABI that knows more.
_FILES = {1: (1 << 13) - 1, 2: 1 << 13, 3: _TRUNCATE, 5: 1 << 15}
#: Since ABI 4: to bind and to connect over TCP; since 6: abstract sockets and signals across the border.
_TCP, _SCOPES = 3, 3
#: Above the numbers of a program's own files.
_HIGH = 64
_VERSION, _PATH_BENEATH = 1, 1


def abi() -> int:
    """The version of Landlock in this kernel; 0 where there is none or it is switched off."""
    try:
        return call("landlock_create_ruleset", None, 0, _VERSION)
    except OSError:
        return 0


class Ruleset:
    """Rights being gathered. `restrict` puts them in force; a ruleset may be put in force by many processes."""

    def __init__(self) -> None:
        version = abi()
        self._files = 0
        for first, rights in _FILES.items():
            if version >= first:
                self._files |= rights
        attributes = struct.pack("<Q", self._files)
        if version >= 4:
            attributes += struct.pack("<Q", _TCP)
        if version >= 6:
            attributes += struct.pack("<Q", _SCOPES)
        buffer = ctypes.create_string_buffer(attributes, len(attributes))
        made = call("landlock_create_ruleset", ctypes.byref(buffer), len(attributes), 0)
        self.number = fcntl.fcntl(made, fcntl.F_DUPFD_CLOEXEC, _HIGH)
        os.close(made)

    def allow(self, path: str, rights: int) -> None:
        """Rights over a file, or over a folder and all below it. What is not there is passed over."""
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return
        try:
            rule = ctypes.create_string_buffer(struct.pack("<Qi", rights & self._files, place), 12)
            call("landlock_add_rule", self.number, _PATH_BENEATH, ctypes.byref(rule), 0)
        finally:
            os.close(place)

    def allow_reading(self, folders: Iterable[str], closed: Iterable[str]) -> None:
        """Read below the folders, but for the `closed` ones right inside them."""
        closed = set(closed)
        for folder in folders:
            self.allow(folder, READ_FOLDER)
            for entry in os.scandir(folder) if os.path.isdir(folder) else ():
                if entry.path not in closed:
                    self.allow(entry.path, READ_FILE | READ_FOLDER if entry.is_dir() else READ_FILE)

    def allow_writing(self, folder: str) -> None:
        """Read and write below the folder."""
        self.allow(folder, READ_FILE | READ_FOLDER | WRITE | _TRUNCATE)

    def restrict(self) -> None:
        """From now on this process, and every one it makes, has these rights and no others. Wants no_new_privs."""
        call("landlock_restrict_self", self.number, 0)

    def close(self) -> None:
        """Forget the rules (processes under them stay under them)."""
        os.close(self.number)
