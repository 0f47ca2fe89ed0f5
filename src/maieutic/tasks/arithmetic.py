"""Procedural word problems: a quantity changes from sentence to sentence; the solution is a chain of small sums.

    prompt     Ann has 10 apples . Ann gives Bob 4 apples . a friend buys 5 apples . Ann keeps half . how many
               apples now ?
    solution   10 - 4 = 6 ; 6 / 2 = 3 ; # 3

All text is words separated by single spaces (numbers are words), so that `arithmetic_vocabulary` is a whole tokenizer.

*The imperfect demonstrator.* Demonstrations may be written by somebody who misreads three kinds of sentence, always the
same way: "gives" as gaining, "keeps half" as losing 2, and the purchases of a friend as the hero's own. A model
fine-tuned on these copies the misreadings, and reinforcement learning on fresh problems removes them. The gap is made
on purpose, to have a problem small enough for one CPU core on which there is something to gain.

*Splits.* A problem belongs to a split by a hash of its content (the start and the events with their numbers; not names
and objects), whatever seed and index it was drawn with: no problem of one split is a problem of another in disguise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from random import Random

from maieutic.errors import ConfigError, UnknownName
from maieutic.protocols import Tool, Verifier
from maieutic.tasks.taskset import Lazy, Tasks
from maieutic.tasks.verify import number_after_marker
from maieutic.types import Message, Task

NAMES = ("Ann", "Bob", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "Jim", "Kay", "Leo", "Mia", "Ned", "Ola", "Pat")
OBJECTS = (
    "apples", "balls", "books", "cards", "coins", "cups", "eggs", "hats", "nuts", "pears", "pens", "plums", "shells",
    "stamps",
)  # fmt: skip

PEOPLE = ("friend", "cousin", "neighbour", "teacher")

#: Of 100 problems by hash: which numbers belong to which split.
SPLITS: Mapping[str, range] = {"train": range(80), "validation": range(80, 90), "test": range(90, 100)}
SIZES: Mapping[str, int] = {"train": 20_000, "validation": 500, "test": 1_000}
DEMONSTRATIONS = ("perfect", "imperfect")


@dataclass(frozen=True, slots=True)
class Level:
    """What problems of one difficulty are like: how many events, the largest quantity, how often each kind occurs."""

    fewest: int
    most: int
    limit: int
    weights: Mapping[str, int]


_PLAIN = {"buys": 9, "loses": 9, "doubles": 4, "bags": 5, "gives": 5, "half": 4, "friend buys": 4}
_DISTRACTING = {**_PLAIN, "other buys": 6, "other loses": 4, "another object": 4}

#: Difficulty → level. Number 2 is the demo's.
LEVELS: Mapping[int, Level] = {
    1: Level(1, 2, 20, _PLAIN),
    2: Level(2, 4, 20, _PLAIN),
    3: Level(3, 5, 50, _DISTRACTING),
    4: Level(4, 7, 50, _DISTRACTING),
    5: Level(5, 9, 100, _DISTRACTING),
    6: Level(8, 12, 100, _DISTRACTING),
}


@dataclass(frozen=True, slots=True)
class Event:
    """One sentence: what happens, and to how many (`amount` bags of `each` for bags)."""

    kind: str
    amount: int = 0
    each: int = 0

    @property
    def number(self) -> int:
        """How many things it concerns."""
        return self.amount * (self.each or 1)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of event: its sentence, what it does to the quantity, and what somebody who misreads it does instead.

    `operator` and `misread` are `+ - * /` or empty (nothing happens, or is never misread); they are applied to the
    event's number, or to `operand` where the sentence names none. Names and objects are filled in by `say`.
    """

    sentence: str
    operator: str
    misread: str = ""
    operand: int = 0


KINDS: Mapping[str, Kind] = {
    "buys": Kind("{name} buys {amount} {thing} .", "+"),
    "bags": Kind("{name} buys {amount} bags of {each} {thing} .", "+"),
    "loses": Kind("{name} loses {amount} {thing} .", "-"),
    "gives": Kind("{name} gives {other} {amount} {thing} .", "-", misread="+"),
    "half": Kind("{name} keeps half .", "/", misread="-", operand=2),
    "doubles": Kind("{name} doubles them .", "*", operand=2),
    "friend buys": Kind("a {person} buys {amount} {thing} .", "", misread="+"),
    "other buys": Kind("{other} buys {amount} {thing} .", "", misread="+"),
    "other loses": Kind("{other} loses {amount} {thing} .", ""),
    "another object": Kind("{name} buys {amount} {another} .", ""),
}

OPERATORS: Mapping[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a // b,
}

START, QUESTION = "{name} has {start} {thing} .", "how many {thing} now ?"


@dataclass(frozen=True, slots=True)
class Problem:
    """What a problem says, without names: `start`, then `events`. `content` is what its split is decided by."""

    start: int
    events: tuple[Event, ...]

    @property
    def content(self) -> str:
        return f"{self.start}|" + "|".join(f"{event.kind},{event.amount},{event.each}" for event in self.events)

    @property
    def split(self) -> str:
        number = int.from_bytes(blake2b(self.content.encode(), digest_size=8).digest(), "big") % 100
        return next(split for split, numbers in SPLITS.items() if number in numbers)


def draw_event(random: Random, name: str, x: int, limit: int) -> Event | None:
    """An event of this kind that keeps the quantity `x` a whole number within 0..limit; None if there is none."""
    kind = KINDS[name]
    if kind.operand:
        exact = x % kind.operand == 0 if kind.operator == "/" else x * kind.operand <= limit
        return Event(name) if exact and x > 0 else None
    if "{each}" in kind.sentence:
        sizes = [(bags, each) for bags in range(2, 6) for each in range(2, 6) if x + bags * each <= limit]
        return Event(name, *random.choice(sizes)) if sizes else None
    highest = min(limit // 2 - 1, {"+": limit - x, "-": x, "": limit}[kind.operator])
    return Event(name, random.randint(2, highest)) if highest >= 2 else None  # from 2, as there is no singular here


def draw_problem(random: Random, level: Level) -> Problem:
    """A problem of this level whose quantity stays a whole number within 0..limit."""
    start = x = random.randint(2, level.limit)
    events: list[Event] = []
    names, weights = list(level.weights), list(level.weights.values())
    count = random.randint(level.fewest, level.most)
    while len(events) < count:
        event = draw_event(random, random.choices(names, weights)[0], x, level.limit)
        if event is not None:
            events.append(event)
            x = apply(event, KINDS[event.kind].operator, x)
    return Problem(start, tuple(events))


def apply(event: Event, operator: str, x: int) -> int:
    """The quantity after the event, read with this operator (none: it stays)."""
    return OPERATORS[operator](x, KINDS[event.kind].operand or event.number) if operator else x


def demonstrate(
    problem: Problem, limit: int, random: Random | None = None, misreading: float = 0.0, slip: float = 0.0
) -> str:
    """The chain that a demonstrator writes: perfect when `misreading` and `slip` are 0.

    With probability `misreading` a sentence of a kind that can be misread is misread, unless that would leave
    0..limit. With probability `slip` a result is off by one. After a mistake a step may have become impossible
    (more lost than there is, half of an odd number): the demonstrator then writes the nearest number that exists.
    """
    random = random or Random(0)
    x, steps = problem.start, []

    def write(left: int, operator: str, right: int) -> int:
        result = min(max(OPERATORS[operator](left, right), 0), limit)
        if random.random() < slip:
            result = random.choice([n for n in (result - 1, result + 1) if 0 <= n <= limit])
        steps.append(f"{left} {operator} {right} = {result} ;")
        return result

    for event in problem.events:
        kind = KINDS[event.kind]
        operator = kind.operator
        if kind.misread and random.random() < misreading and 0 <= apply(event, kind.misread, x) <= limit:
            operator = kind.misread
        if operator:
            number = write(event.amount, "*", event.each) if event.each else kind.operand or event.amount
            x = write(x, operator, number)
    return " ".join([*steps, f"# {x}"])


def say(problem: Problem, random: Random) -> str:
    """The problem in words, with names and objects drawn."""
    name, *others = random.sample(NAMES, 3)
    thing, another = random.sample(OBJECTS, 2)
    words = [START.format(name=name, start=problem.start, thing=thing)]
    for event in problem.events:
        other, person = random.choice(others), random.choice(PEOPLE)
        sentence = KINDS[event.kind].sentence
        words.append(
            sentence.format(
                name=name,
                other=other,
                person=person,
                thing=thing,
                another=another,
                amount=event.amount,
                each=event.each,
            )
        )
    return " ".join([*words, QUESTION.format(thing=thing)])


@dataclass(frozen=True)
class Maker:
    """Index → task. Everything random about task `i` comes from `Random(f"{seed}/{split}/{i}")` and its extensions."""

    split: str
    difficulty: int
    level: Level
    seed: int
    misreading: float
    slip: float

    @property
    def name(self) -> str:
        own = "" if self.level == LEVELS[self.difficulty] else f":{self.level.fewest}-{self.level.most}"
        return f"arithmetic/{self.difficulty}{own}/{self.split}/{self.seed}"

    def __call__(self, index: int) -> Task:
        level, key = self.level, f"{self.seed}/{self.split}/{index}"
        random = Random(key)
        problem = draw_problem(random, level)
        while problem.split != self.split:
            problem = draw_problem(random, level)
        text = say(problem, random)
        write = partial(demonstrate, problem, limit=level.limit)
        reference = write()
        solution = write(random=Random(f"{key}/demonstration"), misreading=self.misreading, slip=self.slip)
        meta = {
            "solution": solution,
            "reference": reference,
            "kinds": tuple(event.kind for event in problem.events),
            "difficulty": self.difficulty,
        }
        return Task(f"{self.name}/{index}", (Message("user", text),), reference.rpartition(" ")[2], meta)


def arithmetic(
    split: str = "train",
    *,
    size: int | None = None,
    difficulty: int = 2,
    events: Sequence[int] | None = None,
    seed: int = 0,
    demonstrations: str = "perfect",
    misreading: float = 0.7,
    slip: float = 0.03,
    verifier: Verifier | None = None,
    tool: Tool | None = None,
) -> Tasks:
    """Procedural multi-step word problems with worked solutions; nothing to download.

    `difficulty` 1 to 6 (see `LEVELS`); `events = (fewest, most)` in place of its own, to make chains of another length
    from the same sentences; `demonstrations="imperfect"` makes `meta["solution"]` the work of a
    demonstrator who misreads three kinds of sentence with probability `misreading` and slips with probability `slip` a
    step; `meta["reference"]` is always the perfect chain. The default verifier reads the number after the only `#`.

    Raises UnknownName for an unknown split or demonstrations, ConfigError for a value out of range.
    """
    if split not in SPLITS:
        raise UnknownName("split of arithmetic", split, SPLITS)
    if demonstrations not in DEMONSTRATIONS:
        raise UnknownName("demonstrations of arithmetic", demonstrations, DEMONSTRATIONS)
    level = _level(difficulty)
    if events is not None:
        if len(events) != 2 or not 1 <= events[0] <= events[1]:
            raise ConfigError(f"got events={events!r}; expected the fewest and the most events, such as [3, 6]")
        level = replace(level, fewest=events[0], most=events[1])
    size = SIZES[split] if size is None else size
    if not isinstance(size, int) or size < 1:
        raise ConfigError(f"got size={size!r}; expected a whole number, at least one task")
    for label, value in (("misreading", misreading), ("slip", slip)):
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ConfigError(f"got {label}={value!r}; expected a probability, 0 to 1")
    if demonstrations == "perfect":
        misreading = slip = 0.0
    maker = Maker(split, difficulty, level, seed, misreading, slip)
    return Tasks(maker.name, Lazy(size, maker), verifier or number_after_marker, tool)


def _level(difficulty: int) -> Level:
    if difficulty not in LEVELS:
        raise ConfigError(f"got difficulty={difficulty!r}; expected one of {', '.join(map(str, LEVELS))}")
    return LEVELS[difficulty]


def arithmetic_vocabulary(difficulty: int = 2) -> list[str]:
    """Every word that prompts and solutions of this difficulty can contain, sorted: a whole tokenizer.

    Raises ConfigError for a difficulty that does not exist.
    """
    level = _level(difficulty)
    sentences = [START, QUESTION, *(KINDS[kind].sentence for kind in level.weights)]
    fixed = {word for sentence in sentences for word in sentence.split() if not word.startswith("{")}
    numbers = {str(n) for n in range(level.limit + 1)}
    return sorted({*fixed, *NAMES, *PEOPLE, *OBJECTS, *numbers, *OPERATORS, "=", ";", "#"})
