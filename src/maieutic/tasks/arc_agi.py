"""ARC-AGI (Chollet 2019, arXiv:1911.01547): find the rule in pairs of grids, and apply it to another.

One task a test input; `meta["puzzle"]` and `meta["test"]` say which, and `maieutic.tasks.grids.score_puzzles` counts
puzzles whose tests are all solved. A folder of JSON files, one a puzzle, as in the repository of the data set:

    data/training/007bbfb7.json     {"train": [{"input": [[0, 7], …], "output": …}, …], "test": [{…}]}
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from maieutic.errors import ConfigError, DataError, UnknownName
from maieutic.protocols import Tool, Verifier
from maieutic.tasks.files import read_text
from maieutic.tasks.grids import (
    Augmentation,
    Pair,
    Puzzle,
    cell_accuracy,
    decode,
    decode_all,
    draw_augmentation,
    encode,
    grid_of,
)
from maieutic.tasks.taskset import Lazy, Tasks
from maieutic.thoughts import outside_thoughts
from maieutic.types import Message, Task, Verdict

logger = logging.getLogger(__name__)

#: Split → the folder that holds it.
SPLITS: Mapping[str, str] = {"train": "training", "test": "evaluation"}
REWARDS = ("share", "all")
OPENING = "Each input grid becomes its output grid by one rule. Find the rule, and give the last output grid."


def arc_agi(
    split: str = "train",
    path: str | Path = "arc_agi",
    *,
    augmentations: int = 0,
    keep_zero: bool = False,
    attempts: int = 1,
    reward: str = "share",
    max_prompt: int | None = None,
    system: str | None = None,
    seed: int = 0,
    verifier: Verifier | None = None,
    tool: Tool | None = None,
) -> Tasks:
    """ARC-AGI puzzles, a test input a task, from a folder with `training` and `evaluation`.

    `augmentations` adds so many changed copies of each (`keep_zero`: colour 0 stays); `meta["augmentation"]` maps
    answers back. `attempts` is how many grids a completion may answer with: the last so many count. `max_prompt` is a
    bound in characters: demonstrations are left out from the end until the prompt keeps to it, and a puzzle that
    cannot, with one, is left out. The reward is the share of right cells where the size is right, for "all" 1 or 0: a
    share pays a copy of the input for the cells that the rule leaves alone.

    Raises UnknownName for another split or reward, DataError for files that are no puzzles.
    """
    if split not in SPLITS:
        raise UnknownName("split of arc_agi", split, SPLITS)
    if reward not in REWARDS:
        raise UnknownName("reward of arc_agi", reward, REWARDS)
    for label, value, least in (("augmentations", augmentations, 0), ("attempts", attempts, 1)):
        if not isinstance(value, int) or value < least:
            raise ConfigError(f"got {label}={value!r}; expected a whole number, at least {least}")
    maker = _Maker(
        f"arc_agi/{split}", read_puzzles(Path(path), split), augmentations + 1, keep_zero, max_prompt, seed, system
    )
    places = [place for place in maker.places() if maker.prompt_of(place) is not None]
    if len(places) < len(maker.places()):
        logger.info(
            "arc_agi: %d of %d tasks do not fit max_prompt", len(maker.places()) - len(places), len(maker.places())
        )
    if not places:
        raise ConfigError(f"got max_prompt={max_prompt}, into which no puzzle fits; expected some thousands")
    make = _At(maker, tuple(places))
    return Tasks(maker.name, Lazy(len(places), make), verifier or ReadsGrid(attempts, reward == "all"), tool)


def prompt_text(
    puzzle: Puzzle, test: int, budget: int | None = None, measure: Callable[[str], int] = len
) -> str | None:
    """The question, with as many demonstrations as keep to the budget; None where one is already too many.

    `measure` says what a text costs: characters, or tokens with `lambda text: len(tokenizer.encode(text))`.
    """
    for count in range(len(puzzle.train), 0, -1):
        shown = [f"Input:\n{encode(pair.input)}\nOutput:\n{encode(pair.output)}" for pair in puzzle.train[:count]]
        text = "\n\n".join([OPENING, *shown, f"Input:\n{encode(puzzle.test[test].input)}\nOutput:"])
        if budget is None or measure(text) <= budget:
            return text
    return None


@dataclass(frozen=True)
class ReadsGrid:
    """Correct when one of the last `attempts` grids of the text, outside of thoughts, is the output, size and all.

    `share` is the best share of right cells, 0 where the size is wrong, and with `all_or_nothing` where any is;
    `answer` is the right grid, else the last.
    """

    attempts: int = 1
    all_or_nothing: bool = False

    def __call__(self, task: Task, text: str) -> Verdict:
        grids, why = decode_all(outside_thoughts(text))
        wanted, _ = decode(task.answer or "")
        if not grids or wanted is None:
            return Verdict(False, None, why, share=0.0, parts={"cells": 0.0, "size": 0.0})
        tried = grids[-self.attempts :]
        cells = [cell_accuracy(grid, wanted) for grid in tried]
        best = max(cells)
        sized = any((len(grid), len(grid[0])) == (len(wanted), len(wanted[0])) for grid in tried)
        right = wanted in tried
        reason = "" if right else f"{best:.0%} of the cells" if sized else "another size"
        parts = {"cells": best, "size": float(sized)}
        share = float(right) if self.all_or_nothing else best
        return Verdict(right, encode(wanted if right else tried[-1]), reason, share=share, parts=parts)


@dataclass(frozen=True)
class _Maker:
    """(puzzle, test, copy) → task; copy 0 is the puzzle as it is."""

    name: str
    puzzles: tuple[Puzzle, ...]
    copies: int
    keep_zero: bool
    max_prompt: int | None
    seed: int
    system: str | None

    def places(self) -> list[tuple[int, int, int]]:
        """All of them: every puzzle once, then every first copy, and so on."""
        tests = [(i, test) for i, puzzle in enumerate(self.puzzles) for test in range(len(puzzle.test))]
        return [(i, test, copy) for copy in range(self.copies) for i, test in tests]

    def changed(self, place: tuple[int, int, int]) -> tuple[Augmentation, Puzzle]:
        """The puzzle of a place, and what was done to it."""
        index, test, copy = place
        puzzle = self.puzzles[index]
        if not copy:
            return Augmentation(), puzzle
        random = Random(f"{self.seed}/{puzzle.id}/{test}/{copy}")
        augmentation = draw_augmentation(random, len(puzzle.train), keep_zero=self.keep_zero)
        return augmentation, augmentation.puzzle(puzzle)

    def prompt_of(self, place: tuple[int, int, int]) -> str | None:
        """The question; None where it does not fit."""
        if self.max_prompt is None:
            return ""  # anything fits, and the text is made when it is asked for
        return prompt_text(self.changed(place)[1], place[1], self.max_prompt)

    def task(self, place: tuple[int, int, int]) -> Task:
        """The task of a place."""
        augmentation, puzzle = self.changed(place)
        _, test, copy = place
        output = encode(puzzle.test[test].output)
        text = prompt_text(puzzle, test, self.max_prompt) or ""
        opening = (Message("system", self.system),) if self.system else ()
        meta = {"puzzle": puzzle.id, "test": test, "copy": copy, "augmentation": augmentation, "solution": output}
        return Task(f"{self.name}/{puzzle.id}/{test}/{copy}", (*opening, Message("user", text)), output, meta)


@dataclass(frozen=True)
class _At:
    """Index → task."""

    maker: _Maker
    places: tuple[tuple[int, int, int], ...]

    def __call__(self, index: int) -> Task:
        return self.maker.task(self.places[index])


def read_puzzles(path: Path, split: str = "train") -> tuple[Puzzle, ...]:
    """The puzzles of a split in the order of their names; `path` is the data set's folder, or the file of one."""
    folder = next((f for f in (path / SPLITS[split], path / "data" / SPLITS[split], path) if f.is_dir()), None)
    files = sorted(folder.glob("*.json")) if folder is not None else [path] if path.is_file() else []
    if not files:
        raise DataError(
            f"{path}: got no puzzles of split {split!r}; expected a folder {SPLITS[split]} of JSON files, as "
            "https://github.com/fchollet/ARC-AGI has in data/: give its path"
        )
    return tuple(_puzzle(file) for file in files)


def _puzzle(file: Path) -> Puzzle:
    try:
        found = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno}: not JSON ({error.msg}); expected a puzzle") from None
    if not isinstance(found, dict) or not {"train", "test"} <= found.keys():
        raise DataError(f"{file}: expected an object with 'train' and 'test'")
    return Puzzle(file.stem, _pairs(found["train"], f"{file}: train"), _pairs(found["test"], f"{file}: test"))


def _pairs(rows: Any, where: str) -> tuple[Pair, ...]:
    if not isinstance(rows, Sequence) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{where}: got {str(rows)[:60]!r}; expected a list of inputs and outputs, at least one")
    return tuple(
        Pair(*(grid_of(row.get(side), f"{where}, pair {i}, {side}") for side in ("input", "output")))
        for i, row in enumerate(rows, 1)
    )
