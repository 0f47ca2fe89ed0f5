"""Writing that survives a crash: a file is written whole under a temporary name, flushed to the disk, then renamed.

A rename within a file system is atomic, and flushing the folder makes it last: whoever looks, at any instant and after
any crash, finds the old file or the new one.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from maieutic.errors import RunError

#: What the system says when there is no room: the disk, a quota, or the limit on a file's size.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def sync(path: Path) -> None:
    """Flush a file, or the list of names of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder under `folder`, and the folder itself."""
    for inside, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(inside) / name)
        sync(Path(inside))


def write_text(path: Path, text: str) -> None:
    """Write a small UTF-8 file whole or not at all. Raises RunError when there is no room."""
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    with room_for(path, needed=lambda: len(text.encode())):
        try:
            temporary.write_text(text, encoding="utf-8", newline="\n")
            sync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(path.parent)


def size(folder: Path) -> int:
    """Bytes of the files under `folder`."""
    return sum((Path(inside) / name).stat().st_size for inside, _, names in os.walk(folder) for name in names)


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is that there is no room.

    Writers in other languages carry no `errno`: safetensors says "No space left on device (os error 28)", and torch's
    archive writer only that it stands at an "unexpected pos", which means that a write came out short.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in FULL:
            return True
        said = str(error)
        if "unexpected pos" in said or any(os.strerror(code) in said for code in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def room_for(path: Path, needed: Callable[[], int]) -> Iterator[None]:
    """Turn a full disk into a RunError that says how much is `needed` (bytes) and how much there is."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_full(error):
            raise
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        free = shutil.disk_usage(folder).free / 2**20
        raise RunError(
            f"no room to write {path}: {error}; at least {needed() / 2**20:.1f} MiB are needed, and this disk has "
            f"{free:.1f} MiB (a quota or a limit on file sizes may allow less). What was written before is intact: "
            "make room and go on with --resume."
        ) from error
