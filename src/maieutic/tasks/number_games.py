"""Countdown and the game of 24 as tasksets: numbers, a target, and a chain of moves as the solution.

    prompt     make 24 from 4 6 6 8 , each once
    solution   4 + 6 = 10 left 6 8 10 ; 6 + 8 = 14 left 10 14 ; 10 + 14 = 24 left 24 ;

Every problem can be solved. All text is words separated by single spaces, so that `countdown_vocabulary` is a whole
tokenizer. A completion is judged by the expression in its last `<answer>` tag, else by the one after its only `#`, else
as a chain, of which every step must be a legal move.

*Splits.* A problem belongs to a split by a hash of its numbers and target, whatever seed it was drawn with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from itertools import combinations_with_replacement
from random import Random

from maieutic.errors import ConfigError, UnknownName
from maieutic.protocols import Tool, Verifier
from maieutic.tasks.countdown import (
    Rules,
    Term,
    check,
    finished,
    join,
    moves,
    read_step,
    solvable,
    state,
)
from maieutic.tasks.taskset import Lazy, Tasks
from maieutic.tasks.verify import last_tagged
from maieutic.thoughts import outside_thoughts
from maieutic.types import Message, Task, Verdict

#: Of 100 problems by hash: which numbers belong to which split.
SPLITS: Mapping[str, range] = {"train": range(80), "validation": range(80, 90), "test": range(90, 100)}
SIZES: Mapping[str, int] = {"train": 20_000, "validation": 500, "test": 1_000}
DEMONSTRATIONS = ("first", "any")
#: The most numbers of a problem: brute force takes minutes beyond.
MOST_NUMBERS = 6
#: Draws after which there is no such problem.
PATIENCE = 10_000
#: What a model that was not trained on these problems must be told.
INSTRUCTIONS = (
    "Combine the numbers with + - * / and parentheses to make the target. Think step by step, then give the whole "
    "expression in tags, such as <answer>(8 - 4) * 6</answer>."
)


@dataclass(frozen=True)
class MakesTarget:
    """Correct when the text makes `meta["target"]` of `meta["numbers"]`. `answer` is the expression, spelled one way.

    A chain that miscalculates is wrong, and its answer is the expression that its steps describe.
    """

    def __call__(self, task: Task, text: str) -> Verdict:
        text = outside_thoughts(text)
        numbers, target = task.meta["numbers"], task.meta["target"]
        rules = Rules(every=task.meta["every"])
        said = last_tagged(text)
        if said is None and "#" in text:
            if text.count("#") > 1:
                return Verdict(False, None, "more than one # marker")
            said = text.partition("#")[2].strip().partition("\n")[0]
        if said is not None:
            return check(said.partition("=")[0], numbers, target, rules)
        return check_chain(text, numbers, target, rules)


def check_chain(text: str, numbers: Sequence[int | Fraction], target: int | Fraction, rules: Rules) -> Verdict:
    """Whether a chain of written moves, between `;` or on lines, makes the target; `answer` spells it as a term.

    >>> check_chain("2 * 6 = 12 left 4 12 ; 4 + 12 = 16 left 16 ;", [2, 4, 6], 16, Rules()).answer
    '4 + 2 * 6'
    """
    held = [(value, Term(value)) for value in state(numbers)]  # as written, and as it was made
    why, term = "", None
    for text_of_step in filter(str.strip, re.split("[;\n]", text)):
        shown, step = text_of_step.strip()[:40], read_step(text_of_step)
        if step is None:
            return Verdict(False, None, f"{shown!r} is no move")
        operands = []
        for operand in (step.left, step.right):
            found = next((each for each in held if each[0] == operand), None)
            if found is None:
                return Verdict(False, None, f"{shown!r}: there is no {operand}")
            held.remove(found)
            operands.append(found[1])
        term = join(operands[0], step.sign, operands[1])
        if term is None:
            return Verdict(False, None, f"{shown!r} divides by zero")
        held.append((step.result, term))
        why = why or step.mistake([value for value, _ in held])
    if term is None:
        return Verdict(False, None, "no move")
    left = state(value for value, _ in held)
    if not why and not finished(left, target, rules):
        why = f"it ends with {' '.join(map(str, left))}, expected {target}"
    return Verdict(not why, str(term), why)


@dataclass(frozen=True)
class Game:
    """What problems are like: so many numbers of 1..`largest`, a target in `targets`, and the rules."""

    numbers: int
    largest: int
    targets: tuple[int, int]
    rules: Rules

    @property
    def name(self) -> str:
        low, high = self.targets
        rules = [word for word in ("every", "whole") if getattr(self.rules, word)]
        limit = [] if self.rules.limit is None else [f"limit-{self.rules.limit}"]
        return "-".join(
            [f"{self.numbers}-of-{self.largest}-to-{low if low == high else f'{low}..{high}'}", *rules, *limit]
        )

    def draw(self, random: Random) -> tuple[tuple[int, ...], int] | None:
        """Rising numbers and a target that can be made of them; None where this draw has none."""
        numbers = tuple(sorted(random.randint(1, self.largest) for _ in range(self.numbers)))
        low, high = self.targets
        if low == high:
            return (numbers, low) if solvable(numbers, low, self.rules) else None
        left = state(numbers)
        for _ in range(self.numbers - 1 if self.rules.every else random.randint(1, self.numbers - 1)):
            choices = moves(left, self.rules)
            if not choices:
                return None
            left = random.choice(choices)[1]
        made = [v for v in left if v.denominator == 1 and low <= v <= high and v not in numbers]
        return (numbers, int(random.choice(made))) if made else None


def split_of(numbers: Sequence[int], target: int) -> str:
    """The split of a problem, by a hash of its content."""
    content = f"{target}|{' '.join(map(str, sorted(numbers)))}"
    number = int.from_bytes(blake2b(content.encode(), digest_size=8).digest(), "big") % 100
    return next(split for split, own in SPLITS.items() if number in own)


def demonstrate(
    numbers: Sequence[int | Fraction], target: int | Fraction, rules: Rules, random: Random | None = None
) -> str:
    """A chain that solves the problem: the first, or with `random` one of moves drawn among those that can still."""
    now, chain = state(numbers), list[str]()
    while not finished(now, target, rules):
        choices = [move for move in moves(now, rules) if solvable(move[1], target, rules)]
        words, now = random.choice(choices) if random else choices[0]
        chain.append(f"{words} ;")
    return " ".join(chain)


@dataclass(frozen=True)
class Maker:
    """Index → task. Everything random about task `i` comes from `Random(f"{seed}/{split}/{i}")`.

    `problems`, where there are any, come one after the other and then again; else each is drawn.
    """

    label: str
    split: str
    game: Game
    seed: int
    demonstrations: str
    system: str | None
    instructed: bool
    problems: tuple[tuple[tuple[int, ...], int], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.label}/{self.split}/{self.seed}"

    def __call__(self, index: int) -> Task:
        random = Random(f"{self.seed}/{self.split}/{index}")
        numbers, target = self.problems[index % len(self.problems)] if self.problems else self.drawn(random)
        rules = self.game.rules
        solution = demonstrate(numbers, target, rules, random if self.demonstrations == "any" else None)
        meta = {"numbers": numbers, "target": target, "every": rules.every, "solution": solution}
        opening = (Message("system", self.system),) if self.system else ()
        use = "each once" if rules.every else "each at most once"
        text = f"make {target} from {' '.join(map(str, numbers))} , {use}"
        asked = Message("user", f"{text}\n\n{INSTRUCTIONS}" if self.instructed else text)
        answer = check_chain(solution, numbers, target, rules).answer
        return Task(f"{self.name}/{index}", (*opening, asked), answer, meta)

    def drawn(self, random: Random) -> tuple[tuple[int, ...], int]:
        """Numbers and a target of this split."""
        for _ in range(PATIENCE):
            drawn = self.game.draw(random)
            if drawn is not None and split_of(*drawn) == self.split:
                return drawn
        raise ConfigError(
            f"{self.name}: got no problem in {PATIENCE} draws; expected some that can be solved: give larger numbers, "
            "other targets or a larger largest_result"
        )


def countdown(
    split: str = "train",
    *,
    size: int | None = None,
    numbers: int = 4,
    largest: int = 20,
    target: int | Sequence[int] = (10, 100),
    every: bool = False,
    whole: bool = True,
    largest_result: int | None = None,
    demonstrations: str = "any",
    instructed: bool = False,
    system: str | None = None,
    seed: int = 0,
    verifier: Verifier | None = None,
    tool: Tool | None = None,
) -> Tasks:
    """Countdown: make a target of a few numbers, with a worked chain of moves; nothing to download.

    `numbers` of 1..`largest`; `target` is one number or (lowest, highest); `every` number must be used, or each at most
    once; results stay `whole`, and at most `largest_result`. `demonstrations="first"` shows always the first solution
    that a search finds, "any" one drawn among all. `instructed` tells a model that was not trained on this what to
    do. `solvable`, `moves` and `after` of `maieutic.tasks.countdown` serve a search.

    Raises UnknownName for an unknown split or demonstrations, ConfigError for what makes no game.
    """
    bounds = (target, target) if isinstance(target, int) else tuple(target)
    game = _game(numbers, largest, bounds, Rules(every, whole, largest_result))
    _check(split, demonstrations, size)
    maker = Maker(f"countdown/{game.name}", split, game, seed, demonstrations, system, instructed)
    return Tasks(maker.name, Lazy(size or SIZES[split], maker), verifier or MakesTarget(), tool)


def game_of_24(
    split: str = "train",
    *,
    size: int | None = None,
    target: int = 24,
    numbers: int = 4,
    largest: int = 13,
    whole: bool = False,
    largest_result: int | None = None,
    demonstrations: str = "any",
    instructed: bool = False,
    system: str | None = None,
    seed: int = 0,
    verifier: Verifier | None = None,
    tool: Tool | None = None,
) -> Tasks:
    """The game of 24: make 24 of four numbers, each used once; every problem that can be solved, once.

    1,362 problems of four numbers of 1..13. A `size` beyond those of the split repeats them, with other demonstrations.
    `whole=True` keeps those that have a solution without fractions and negative results, none above `largest_result`,
    and shows such solutions. The rest is as in `countdown`.
    """
    game = _game(numbers, largest, (target, target), Rules(True, whole, largest_result))
    _check(split, demonstrations, size)
    problems = [(drawn, target) for drawn in solvable_draws(game) if split_of(drawn, target) == split]
    if not problems:
        raise ConfigError(f"game_of_24: got no problem that can be solved in split {split!r} ({game.name})")
    Random(f"{seed}/{split}").shuffle(problems)
    maker = Maker(f"game_of_24/{game.name}", split, game, seed, demonstrations, system, instructed, tuple(problems))
    return Tasks(maker.name, Lazy(size or len(problems), maker), verifier or MakesTarget(), tool)


@lru_cache(maxsize=8)
def solvable_draws(game: Game) -> tuple[tuple[int, ...], ...]:
    """Every multiset of the game's numbers that makes its lowest target, in order."""
    draws = combinations_with_replacement(range(1, game.largest + 1), game.numbers)
    return tuple(draw for draw in draws if solvable(draw, game.targets[0], game.rules))


def countdown_vocabulary(limit: int = 100) -> list[str]:
    """Every word of prompts and chains whose numbers are whole and at most `limit`, sorted: a whole tokenizer.

    For `countdown` and `game_of_24(whole=True)` with this `largest_result`, targets and numbers no larger.
    """
    words = ["make", "from", ",", "each", "at", "most", "once", "left", "=", ";", "+", "-", "*", "/"]
    return sorted({*words, *(str(n) for n in range(limit + 1))})


def _game(numbers: int, largest: int, targets: Sequence[int], rules: Rules) -> Game:
    if not isinstance(numbers, int) or not 2 <= numbers <= MOST_NUMBERS:
        raise ConfigError(f"got numbers={numbers!r}; expected a whole number, 2 to {MOST_NUMBERS}")
    if not isinstance(largest, int) or largest < 1:
        raise ConfigError(f"got largest={largest!r}; expected a whole number, at least 1")
    if len(targets) != 2 or not all(isinstance(n, int) for n in targets) or not 0 <= targets[0] <= targets[1]:
        raise ConfigError(f"got target={list(targets)!r}; expected one whole number, or the lowest and the highest")
    if rules.limit is not None and rules.limit < max(largest, targets[0]):
        raise ConfigError(
            f"got largest_result={rules.limit} with numbers up to {largest} and targets from {targets[0]}; "
            "expected at least these"
        )
    return Game(numbers, largest, (targets[0], targets[1]), rules)


def _check(split: str, demonstrations: str, size: int | None) -> None:
    if split not in SPLITS:
        raise UnknownName("split", split, SPLITS)
    if demonstrations not in DEMONSTRATIONS:
        raise UnknownName("demonstrations of number games", demonstrations, DEMONSTRATIONS)
    if size is not None and (not isinstance(size, int) or size < 1):
        raise ConfigError(f"got size={size!r}; expected a whole number, at least one task")
