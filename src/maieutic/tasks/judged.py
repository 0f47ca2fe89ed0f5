"""Completions that somebody has judged: what reward models learn from, in the layouts in which such data are given.

    layout          a row
    -----------------------------------------------------------------------------------------------------------------
    pairs           {"prompt": …, "chosen": …, "rejected": …, "margin": 1.5}            margin may be left out
    pointwise       {"prompt": …, "completion": …, "label": true}                       or 0 to 1, or "correct"
    steps           {"prompt": …, "steps": ["3 + 4 = 7 ;", " # 7"], "labels": [1, 0.4]} joined, the steps are the text
    stepwise        {"prompt": …, "completions": ["…", "…"], "labels": [true, false]}   TRL's, without separators
    math_shepherd   {"input": "… Step 1: … ки\\n…", "label": "… Step 1: … +\\n…"}         peiyi9979/Math-Shepherd
    prm800k         {"question": {…}, "label": {"steps": […], "finish_reason": …}, …}   openai/prm800k
    sample          what `maieutic sample --json` writes: a completion is right or wrong by its verdict

A label of None is no label: a step that nobody looked at is not a wrong one. What a prompt is, text or messages, is as
in `maieutic.tasks.files`.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maieutic.errors import DataError, UnknownName
from maieutic.tasks.files import Row, existing, messages_of, read_rows, read_text
from maieutic.types import Message


@dataclass(frozen=True, slots=True)
class Judged:
    """A completion in steps, and what is known of it.

    >>> Judged((Message("user", "3 + 4, doubled?"),), ("3 + 4 = 7 ;", " 7 * 2 = 15 ;", " # 15"), 0.0, (1.0, 0.0, None))

    `label` is of the whole, `labels` of the steps; each from 0 (wrong) to 1 (right), None where unknown. `finished`:
    whether the completion ended by itself, so that a stop token follows.
    """

    prompt: tuple[Message, ...]
    steps: tuple[str, ...]
    label: float | None = None
    labels: tuple[float | None, ...] = ()
    finished: bool = True

    def __post_init__(self) -> None:
        if self.labels and len(self.labels) != len(self.steps):
            raise DataError(f"got {len(self.steps)} steps and {len(self.labels)} labels; expected one label a step")

    @property
    def text(self) -> str:
        """The completion."""
        return "".join(self.steps)


@dataclass(frozen=True, slots=True)
class Preference:
    """Two completions, one better by `margin` (None: nobody said by how much)."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    margin: float | None = None


Reader = Callable[[Mapping[str, Any], str], "Judged | Preference | None"]


def read_judged(path: str | Path, layout: str = "auto", **options: Any) -> list[Judged] | list[Preference]:
    """Everything usable in a file, by the layout named at the top ("auto": by the columns of the first row).

    `options` go to the layout: `neutral` (PRM800K's rating 0 as a label, default 1), `separator` (stepwise, PRM800K).
    Raises UnknownName, and DataError with file and line for a row that is not as its layout says.
    """
    from maieutic.tasks.judged_steps import STEPWISE

    path = existing(Path(path))
    layout = layout_of(path) if layout == "auto" else layout
    readers: Mapping[str, Callable[..., Reader]] = {**PLAIN, **STEPWISE}
    if layout not in (*readers, SAMPLE):
        raise UnknownName("layout of judged completions", layout, [*readers, SAMPLE])
    if layout == SAMPLE:
        return _sampled(_written_by_sample(path) or {}, str(path))
    rows = read_rows(path)
    read = readers[layout](**options)
    found = [made for where, row in rows if (made := read(row, where)) is not None]
    if not found:
        raise DataError(f"{path}: none of its {len(rows)} rows can be learned from (layout {layout!r})")
    return found  # type: ignore[return-value]


def layout_of(path: str | Path) -> str:
    """The layout of a file, by the columns of its first row. Raises DataError for columns of none."""
    path = existing(Path(path))
    if path.suffix == ".json" and _written_by_sample(path) is not None:
        return SAMPLE
    return _guess(read_rows(path)[0])


def _guess(row: Row) -> str:
    where, columns = row
    known = (
        ("prm800k", {"question", "label"}),
        ("pairs", {"chosen", "rejected"}),
        ("stepwise", {"prompt", "completions", "labels"}),
        ("steps", {"prompt", "steps", "labels"}),
        ("math_shepherd", {"input", "label"}),
        ("pointwise", {"prompt", "completion"}),
    )
    for layout, needed in known:
        if needed <= columns.keys():
            return layout
    wanted = "; ".join(f"{name}: {', '.join(sorted(needed))}" for name, needed in known)
    raise DataError(f"{where}: got the columns {', '.join(columns)}; expected those of a layout ({wanted})")


def label_of(value: Any, where: str) -> float | None:
    """A label as a number from 0 to 1: true, false, a number, "+" or "-", or None."""
    if value is None or isinstance(value, bool):
        return None if value is None else float(value)
    if isinstance(value, str) and value.strip() in ("+", "-"):
        return float(value.strip() == "+")
    if isinstance(value, int | float) and 0 <= value <= 1:
        return float(value)
    raise DataError(f"{where}: got the label {value!r}; expected true, false, null or a number from 0 to 1")


def _pairs() -> Reader:
    def read(row: Mapping[str, Any], where: str) -> Preference:
        sides = {side: row.get(side) for side in ("chosen", "rejected")}
        before: dict[str, tuple[Message, ...]] = {}
        texts = {}
        for side, value in sides.items():
            if value is None or value == "":
                raise DataError(f"{where}: no {side} completion; expected text or messages in {side!r}")
            whole = messages_of(value, where)
            before[side] = whole[:-1] if isinstance(value, list) else ()
            texts[side] = whole[-1].content
        if before["chosen"] != before["rejected"]:
            raise DataError(f"{where}: the conversations differ before their last messages; expected the same ones")
        given = messages_of(row["prompt"], where) if row.get("prompt") else ()
        prompt = given or before["chosen"]
        if not prompt:
            raise DataError(f"{where}: no prompt; expected one in 'prompt', or conversations in 'chosen', 'rejected'")
        margin = row.get("margin")
        if margin is not None and not (isinstance(margin, int | float) and margin >= 0):
            raise DataError(f"{where}: got the margin {margin!r}; expected a number of 0 or more")
        return Preference(prompt, texts["chosen"], texts["rejected"], None if margin is None else float(margin))

    return read


def _pointwise() -> Reader:
    def read(row: Mapping[str, Any], where: str) -> Judged | None:
        label = label_of(row["label"] if "label" in row else row.get("correct"), where)
        completion = row.get("completion")
        if completion is None:
            raise DataError(f"{where}: no completion; expected text or messages in 'completion'")
        text = messages_of(completion, where)[-1].content
        return None if label is None else Judged(messages_of(row.get("prompt"), where), (text,), label)

    return read


#: Layouts without steps.
PLAIN: Mapping[str, Callable[..., Reader]] = {"pairs": _pairs, "pointwise": _pointwise}


#: The layout of what `maieutic sample --json` writes.
SAMPLE = "sample"


def _written_by_sample(path: Path) -> dict[str, Any] | None:
    """The content of such a file; None where it is something else."""
    try:
        said = json.loads(read_text(path))
    except json.JSONDecodeError:
        return None
    return said if isinstance(said, dict) and isinstance(said.get("tasks"), list) else None


def _sampled(said: Mapping[str, Any], where: str) -> list[Judged]:
    found = []
    for task in said.get("tasks", ()):
        prompt = messages_of(task["prompt"], where)
        for made in task["completions"]:
            if made["finish"] != "error":
                label, ended = float(made["correct"]), made["finish"] != "length"
                found.append(Judged(prompt, (made["text"],), label, finished=ended))
    if not found:
        raise DataError(f"{where}: no completions; expected what `maieutic sample … --json FILE` writes")
    return found


def prompt_key(prompt: Sequence[Message]) -> str:
    """What two completions of one prompt have in common: a digest of its messages."""
    text = json.dumps([[message.role, message.content] for message in prompt])
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def by_prompt(judged: Iterable[Judged]) -> dict[str, list[Judged]]:
    """Completions by their prompt, in the order in which they came."""
    found: dict[str, list[Judged]] = {}
    for each in judged:
        found.setdefault(prompt_key(each.prompt), []).append(each)
    return found


def distinct(judged: Iterable[Judged]) -> list[Judged]:
    """Of completions that say the same to one prompt (white space aside), the first."""
    first: dict[tuple[str, ...], Judged] = {}
    for each in judged:
        first.setdefault((prompt_key(each.prompt), *each.text.split()), each)
    return list(first.values())


def balanced(judged: Iterable[Judged], cap: int | None = 4, equal: bool = True, seed: int = 0) -> list[Judged]:
    """Of each prompt at most `cap` different right and `cap` different wrong completions, drawn at random; `equal`: as
    many of either, so that a prompt whose completions are all right, or all wrong, gives none.

    A model that sees each prompt as often right as wrong cannot learn which prompts are hard instead of which answers
    are right; its probabilities are then those of a world in which half of the completions are right. Completions
    without a label are left out. The draw is a function of (seed, prompt).
    """
    kept: list[Judged] = []
    for key, members in by_prompt(distinct(judged)).items():
        sides = [[m for m in members if m.label is not None and (m.label > 0.5) is side] for side in (True, False)]
        most = min(len(side) for side in sides) if equal else max(len(side) for side in sides)
        draw = random.Random(f"{seed}/{key}")
        for side in sides:
            count = min(len(side), most, len(side) if cap is None else cap)
            kept += draw.sample(side, count)
    return kept


def held_out(key: str, share: float, seed: int = 0) -> bool:
    """Whether a prompt is held out: the same for all its completions, whatever else is in the data."""
    return random.Random(f"{seed}/held out/{key}").random() < share
