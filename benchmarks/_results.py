"""What a benchmark found: as a file of JSON, as cells of a table, in a folder of its own.

write_json(given.json, made)            nothing but JSON: what is no number (NaN, infinite) is null
points(difference), percent(share)      "+1.2 (-0.3 to +2.7)", "41.0 (38.2–43.8)"
folder_of(given, "rerank", sizes)       where a study is kept, with a note of its sizes: no other goes on there
made_once(folder, "start", make)        a part of a study, made if it is not there yet
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maieutic.cli.screen import finite
from maieutic.run.durable import write_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def write_json(file: Path, found: Any, indent: int | None = 1) -> None:
    """Write what was found, whole or not at all; the folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(finite(found), indent=indent, allow_nan=False) + "\n")


def percent(share: Mapping[str, Any]) -> str:
    """A share with its interval, in per cent."""
    return f"{100 * share['value']:.1f} ({100 * share['low']:.1f}–{100 * share['high']:.1f})"


def points(difference: Mapping[str, Any], scale: float = 100, digits: int = 1) -> str:
    """A difference with its interval, where it has one (of a single seed it may have none)."""
    middle, low, high = (difference[name] for name in ("value", "low", "high"))
    if low is None:
        return f"{scale * middle:+.{digits}f}"
    return f"{scale * middle:+.{digits}f} ({scale * low:+.{digits}f} to {scale * high:+.{digits}f})"


def study_parser(said: str | None, name: str, quick: str) -> argparse.ArgumentParser:
    """The options of a study over seeds; `said`: its docstring, `quick`: what `--quick` does."""
    parser = argparse.ArgumentParser(description=said, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, help="how many seeds (3; with --quick 1)")
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--runs", type=Path, help=f"where everything is kept (runs/{name}, or runs/{name}-quick)")
    parser.add_argument("--json", type=Path, help="where what was found is written")
    return parser


def folder_of(given: argparse.Namespace, name: str, sizes: DataclassInstance) -> Path | None:
    """Where a study of these sizes is kept; None, with the reason on stderr, where the folder holds one of others."""
    runs = given.runs or Path("runs") / (f"{name}-quick" if given.quick else name)
    runs.mkdir(parents=True, exist_ok=True)
    told, note = json.dumps(asdict(sizes)), runs / "sizes.json"
    if note.exists() and note.read_text() != told:
        print(f"{runs} holds a study of other sizes; give another --runs", file=sys.stderr)
        return None
    write_text(note, told)
    return runs


def made_once(folder: Path, name: str, make: Callable[[Path], Any]) -> float:
    """The part of that name, made if it is not there yet; the processor seconds that it has taken."""
    path, noted = folder / name, folder / f"{name}.seconds"
    if not noted.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".tmp-{name}"
        for old in (path, temporary):
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        begun = time.process_time()
        make(temporary)
        os.rename(temporary, path)
        write_text(noted, f"{time.process_time() - begun:.1f}")
    return float(noted.read_text())
