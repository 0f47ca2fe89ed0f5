"""The folder of a run.

runs/<name>/
  config.toml        the resolved config: everything that the run was told
  run.db             what happened (`store`)
  checkpoints/       where to go on from (`checkpoints`)
  best/              the best evaluated models, of stages that keep them
  run.complete       the final summary (JSON); there when the run came to its end
  run.lock           which process is writing
  report.html        made by `maieutic train`, `demo` and `show`
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from maieutic.errors import RunError
from maieutic.run.durable import sync, write_text
from maieutic.run.lock import RunLock


class RunDirectory:
    """A run's folder, held for writing (`create`) or looked at (`open`). `with RunDirectory.create(...) as run:`"""

    def __init__(self, path: Path, lock: RunLock | None = None) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def create(
        cls, path: Path | str, resolved_config_toml: str, *, resume: bool, allow_config_change: bool = False
    ) -> Self:
        """Begin a run in an empty folder, or take up an existing one.

        Raises RunError when a folder that is to be new holds something, a run that is to be resumed is missing or was
        told something else (unless `allow_config_change`: then the old config stays beside as `config.1.toml`, …),
        or another process is writing it.
        """
        path = Path(path)
        run = cls(path)
        if resume:
            run._check_exists()
        else:
            run._check_empty()
            path.mkdir(parents=True, exist_ok=True)
        run._lock = RunLock(path / "run.lock")
        try:
            if resume:
                run._take_config(resolved_config_toml, allow_config_change)
            else:
                run._check_empty()  # another process may have begun it in between
                write_text(run.config, resolved_config_toml)
            run.checkpoints.mkdir(exist_ok=True)
            sync(path)
            sync(path.parent)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Look at a run without holding it. Raises RunError when there is none."""
        run = cls(Path(path))
        run._check_exists()
        return run

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.toml"

    @property
    def database(self) -> Path:
        """What `Store` opens."""
        return self.path / "run.db"

    @property
    def checkpoints(self) -> Path:
        """What `Checkpoints` opens."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """What `Checkpoints` opens for the best evaluated model of each stage that keeps one."""
        return self.path / "best"

    @property
    def report(self) -> Path:
        """Where the report goes."""
        return self.path / "report.html"

    @property
    def _marker(self) -> Path:
        return self.path / "run.complete"

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Mark the run as complete, with its final summary (JSON)."""
        write_text(self._marker, json.dumps(dict(summary), indent=2) + "\n")

    def summary(self) -> dict[str, Any] | None:
        """The final summary of a complete run; None while it is not."""
        try:
            return json.loads(self._marker.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def close(self) -> None:
        """Let another process write the run; closing twice is harmless."""
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_empty(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise RunError(f"{self.path} is a file; expected a folder for the run: choose another --run")
        # a process killed before it wrote the config leaves these two, and nothing was lost
        inside = sorted(p.name for p in self.path.iterdir() if p.name != "run.lock" and not p.name.startswith(".tmp-"))
        if not inside:
            return
        if self.config.exists():
            raise RunError(f"the run {self.path} exists: go on with it by --resume, or choose another --run")
        raise RunError(f"{self.path} is not empty (it holds {', '.join(inside[:5])}): choose another --run")

    def _check_exists(self) -> None:
        if self.config.is_file():
            return
        folder = self.path.parent
        names = sorted(p.parent.name for p in folder.glob("*/config.toml")) if folder.is_dir() else []
        near = difflib.get_close_matches(self.path.name, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"runs in {folder}: {', '.join(names[:10]) or 'none'}."
        raise RunError(
            f"no run at {self.path}: expected a folder with a config.toml; {hint} `maieutic train CONFIG` begins one."
        )

    def _take_config(self, config: str, allow_change: bool) -> None:
        before = self.config.read_text(encoding="utf-8")
        changes = [
            line
            for line in difflib.unified_diff(
                before.splitlines(), config.splitlines(), "before", "now", lineterm="", n=0
            )
            if not line.startswith(("---", "+++", "@@"))
        ]
        if not changes:
            return
        if not allow_change:
            raise RunError(
                f"the run {self.path} was begun with another config (- before, + now):\n  "
                + "\n  ".join(changes)
                + "\nResume it with the config it was begun with, or begin another --run."
            )
        kept = next(
            self.path / f"config.{n}.toml" for n in range(1, 10**6) if not (self.path / f"config.{n}.toml").exists()
        )
        write_text(kept, before)
        write_text(self.config, config)
        self._marker.unlink(missing_ok=True)  # told something else, the run is not at its end any more
