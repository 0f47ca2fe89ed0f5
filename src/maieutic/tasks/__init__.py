"""What is asked: tasksets by name, and how to make, cut, shuffle and mix them. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from maieutic.choose import choose
from maieutic.protocols import Taskset
from maieutic.tasks.arc_agi import arc_agi
from maieutic.tasks.arithmetic import arithmetic, arithmetic_vocabulary
from maieutic.tasks.code import PassesTests, code
from maieutic.tasks.documents import documents
from maieutic.tasks.episodes import episodes
from maieutic.tasks.files import file
from maieutic.tasks.gsm8k import gsm8k
from maieutic.tasks.guess import guess
from maieutic.tasks.hub import hub
from maieutic.tasks.multiple_choice import ai2_arc, multiple_choice
from maieutic.tasks.number_games import countdown, countdown_vocabulary, game_of_24
from maieutic.tasks.reasoning_gym import PREFIX, gym_taskset
from maieutic.tasks.svamp import mawps_asdiv, svamp
from maieutic.tasks.taskset import Tasks, mixture, shuffled, take
from maieutic.tasks.teaching import teaching
from maieutic.tasks.verify import AnswerAfterMarker, NumberAfterMarker, ProgramValue, number_after_marker
from maieutic.tasks.wordle import wordle, wordle_vocabulary

#: Name → factory. The first line of a factory's docstring is what `maieutic tasks` shows.
TASKSETS: dict[str, Callable[..., Taskset]] = {
    "arithmetic": arithmetic,
    "gsm8k": gsm8k,
    "svamp": svamp,
    "mawps_asdiv": mawps_asdiv,
    "file": file,
    "code": code,
    "documents": documents,
    "episodes": episodes,
    "hub": hub,
    "guess": guess,
    "ai2_arc": ai2_arc,
    "multiple_choice": multiple_choice,
    "arc_agi": arc_agi,
    "countdown": countdown,
    "game_of_24": game_of_24,
    "teaching": teaching,
    "wordle": wordle,
}


def find_taskset(name: str) -> Callable[..., Taskset] | None:
    """What makes the taskset of this name: one of `TASKSETS`, or `reasoning_gym:NAME`; None where there is none.

    Raises UnknownName for a data set that reasoning-gym has not, ConfigError when it is not installed.
    """
    if name.startswith(PREFIX):
        return gym_taskset(name.removeprefix(PREFIX))
    return TASKSETS.get(name)


def make_taskset(name: str, **options: Any) -> Taskset:
    """The taskset of this name with these options: `make_taskset("arithmetic", split="test", difficulty=3)`.

    Raises UnknownName for a name that is not in `TASKSETS`, ConfigError for an option that its factory does not take
    or lacks, and whatever the factory raises.
    """
    found = find_taskset(name)
    return choose("taskset", TASKSETS if found is None else {name: found}, name, options)


__all__ = [
    "TASKSETS",
    "AnswerAfterMarker",
    "NumberAfterMarker",
    "PassesTests",
    "ProgramValue",
    "Tasks",
    "ai2_arc",
    "arc_agi",
    "arithmetic",
    "arithmetic_vocabulary",
    "code",
    "countdown",
    "countdown_vocabulary",
    "documents",
    "episodes",
    "file",
    "find_taskset",
    "game_of_24",
    "gsm8k",
    "guess",
    "hub",
    "make_taskset",
    "mawps_asdiv",
    "mixture",
    "multiple_choice",
    "number_after_marker",
    "shuffled",
    "svamp",
    "take",
    "teaching",
    "wordle",
    "wordle_vocabulary",
]
