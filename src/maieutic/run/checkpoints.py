"""Where a run can go on from: `checkpoints/<stage>/step-NNNNNN/`, whole and checked, or not there at all.

A checkpoint is filled under a temporary name, described by `checkpoint.json` (stage, step, the caller's state and the
SHA-256 of every file), flushed to the disk and renamed. It counts only when every file is as described.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maieutic.errors import RunError
from maieutic.run.durable import room_for, size, sync, sync_tree

log = logging.getLogger(__name__)

DESCRIPTION = "checkpoint.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint as its `checkpoint.json` describes it: `Checkpoint(path, "rl", 40, {"source": {…}}, 3, {…})`.

    `state` is what the caller gave; `order` counts the checkpoints of a run, over all stages; `files` holds the
    SHA-256 of each file by its path within the folder. `path / "model"` is a plain model folder.
    """

    path: Path
    stage: str
    step: int
    state: Mapping[str, Any]
    order: int
    files: Mapping[str, str] = field(repr=False)

    def damage(self) -> str | None:
        """What is wrong with the files; None when each is as it was written. Reads all of them."""
        for name, expected in self.files.items():
            try:
                with (self.path / name).open("rb") as stream:
                    got = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                return f"{name}: {error.strerror}"
            if got != expected:
                return f"{name}: got SHA-256 {got[:12]}…, expected {expected[:12]}…"
        return None


class Checkpoints:
    """The checkpoints of a run. Only the process that holds the run may `write`.

    The newest `keep` stay, and the last of every stage.
    """

    def __init__(self, folder: Path | str, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep: got {keep}, expected at least 1 checkpoint")
        self.folder = Path(folder)
        self.keep = keep

    def write(self, stage: str, step: int, fill: Callable[[Path], None], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint and return its folder: `fill(folder)` puts the files there, `state` is JSON.

        One that exists for the same step is replaced. Older ones are then removed as `keep` says. Raises RunError,
        saying how much room is needed, when the disk is full; what was there before is then still there.
        """
        if not stage or Path(stage).name != stage or stage.startswith("."):
            raise ValueError(f"stage {stage!r}: its name must do for a folder (no slash, no dot in front)")
        self.clear()
        before = self.all()
        temporary = self.folder / f".tmp-{stage}-{step:06d}"
        target = self.folder / stage / f"step-{step:06d}"

        def needed() -> int:
            return max([size(temporary), *(size(checkpoint.path) for checkpoint in before[:1])])

        try:
            with room_for(target, needed):
                temporary.mkdir(parents=True)
                fill(temporary)
                order = 1 + max((checkpoint.order for checkpoint in before), default=0)
                _describe(temporary, {"stage": stage, "step": step, "order": order, "state": dict(state)})
                sync_tree(temporary)
                target.parent.mkdir(exist_ok=True)
                if target.exists():
                    os.rename(target, self.folder / f".tmp-replaced-{stage}-{step:06d}")
                os.rename(temporary, target)
                sync(target.parent)
                sync(self.folder)
        finally:
            self.clear()
        self._retain()
        return target

    def clear(self) -> None:
        """Remove what a killed process left half written, or half removed."""
        for left in self.folder.glob(".tmp-*"):
            shutil.rmtree(left)

    def all(self, stage: str | None = None) -> list[Checkpoint]:
        """The checkpoints (of a stage), the newest first, their files unread. One without a description is not one."""
        wanted = "[!.]*" if stage is None else glob.escape(stage)
        found = [_read(path) for path in self.folder.glob(f"{wanted}/step-*")]
        return sorted((each for each in found if each is not None), key=lambda each: each.order, reverse=True)

    def latest(self, stage: str | None = None) -> Checkpoint | None:
        """The newest checkpoint (of a stage) whose files are all as they were written; damaged ones are passed over."""
        for checkpoint in self.all(stage):
            wrong = checkpoint.damage()
            if wrong is None:
                return checkpoint
            log.warning("checkpoint %s is damaged and passed over: %s", checkpoint.path, wrong)
        return None

    def rewind(self, to: Checkpoint | None) -> None:
        """Remove what was written after `to` (None: every checkpoint), because the run goes on from there."""
        for checkpoint in self.all():
            if to is None or checkpoint.order > to.order:
                self._remove(checkpoint)

    def _retain(self) -> None:
        checkpoints = self.all()
        final = {checkpoint.stage: checkpoint.order for checkpoint in reversed(checkpoints)}
        for checkpoint in checkpoints[self.keep :]:
            if checkpoint.order != final[checkpoint.stage]:
                self._remove(checkpoint)

    def _remove(self, checkpoint: Checkpoint) -> None:
        # renamed first: killed in the middle of the removal, it must not look like a damaged checkpoint
        gone = self.folder / f".tmp-gone-{checkpoint.order}"
        os.rename(checkpoint.path, gone)
        shutil.rmtree(gone)


def _describe(folder: Path, about: dict[str, Any]) -> None:
    if (folder / DESCRIPTION).exists():
        raise RunError(f"a checkpoint's own {DESCRIPTION} was written by what fills it; expected any other name")
    files = {}
    for inside, _, names in os.walk(folder):
        for path in (Path(inside) / name for name in sorted(names)):
            with path.open("rb") as stream:
                files[path.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    described = {**about, "files": files}
    (folder / DESCRIPTION).write_text(
        json.dumps({"sha256": _digest(described), **described}, indent=1) + "\n", encoding="utf-8", newline="\n"
    )


def _digest(described: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> Checkpoint | None:
    try:
        described = json.loads((path / DESCRIPTION).read_text(encoding="utf-8"))
        expected = described.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        log.warning("checkpoint %s is passed over: its %s cannot be read (%s)", path, DESCRIPTION, error)
        return None
    if _digest(described) != expected:
        log.warning("checkpoint %s is passed over: its %s was changed", path, DESCRIPTION)
        return None
    return Checkpoint(
        path, described["stage"], described["step"], described["state"], described["order"], described["files"]
    )
