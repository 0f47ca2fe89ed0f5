"""Grids of colours: the codec, the changes that a puzzle survives, and votes over them. Pure; `arc_agi` uses them.

    <grid>                 a grid is rows of colours 0 to 9, both sides 1 to 30 long
    0 0 3
    0 3 0
    </grid>

An `Augmentation` changes a whole puzzle in a way that keeps its rule: one of the eight symmetries of the square, a
permutation of colours, and another order of its demonstrations. Each has an exact inverse, so a model can be asked
under many of them and its answers mapped back and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from maieutic.errors import ConfigError, DataError

Grid = tuple[tuple[int, ...], ...]
"""Rows of colours; rectangular."""

OPEN, CLOSE = "<grid>", "</grid>"
#: The longest side, and how many colours there are.
LONGEST_SIDE, COLOURS = 30, 10
#: The symmetries of the square: turns by 0, 90, 180, 270 degrees clockwise, then the same after a transposition.
SYMMETRIES = 8


def encode(grid: Grid) -> str:
    """A grid as text, a row a line.

    >>> encode(((0, 3), (3, 0)))
    '<grid>\\n0 3\\n3 0\\n</grid>'
    """
    return "\n".join([OPEN, *(" ".join(map(str, row)) for row in grid), CLOSE])


def decode(text: str) -> tuple[Grid | None, str]:
    """The grid between the only tags of a text, or None and what is wrong. Never raises.

    >>> decode("<grid>\\n0 3\\n3 0\\n</grid>"), decode("<grid>0 3\\n3</grid>")
    ((((0, 3), (3, 0)), ''), (None, 'row 2 has 1 cells and row 1 has 2'))
    """
    found, why = decode_all(text)
    if found and len(found) > 1:
        return None, f"{len(found)} grids, expected one"
    return (found[0], "") if found else (None, why)


def decode_all(text: str) -> tuple[tuple[Grid, ...], str]:
    """Every readable grid of a text in order, and what is wrong with the last one that is not (empty: nothing)."""
    grids, why, position = [], "no grid", 0
    while (begin := text.find(OPEN, position)) >= 0:
        end = text.find(CLOSE, begin)
        if end < 0:
            why = "a grid is not closed"
            break
        begin = text.rfind(OPEN, begin, end)  # a tag that is opened twice begins at the second
        grid, wrong = read_rows_of(text[begin + len(OPEN) : end])
        why = wrong or ("" if grid else why)
        grids += [grid] if grid is not None else []
        position = end + len(CLOSE)
    return tuple(grids), why


def read_rows_of(text: str) -> tuple[Grid | None, str]:
    """The grid that lines of digits are, or None and what is wrong."""
    rows: list[tuple[int, ...]] = []
    for line in text.strip().split("\n", LONGEST_SIDE):
        cells = line.split(None, LONGEST_SIDE)
        if not cells:
            return None, "an empty row" if text.strip() else "no rows"
        if len(rows) == LONGEST_SIDE or len(cells) > LONGEST_SIDE:
            return None, f"a side is longer than {LONGEST_SIDE}"
        strange = next((cell for cell in cells if cell not in _DIGITS), None)
        if strange is not None:
            return None, f"{strange[:20]!r} in row {len(rows) + 1} is no colour 0 to 9"
        if rows and len(cells) != len(rows[0]):
            return None, f"row {len(rows) + 1} has {len(cells)} cells and row 1 has {len(rows[0])}"
        rows.append(tuple(_DIGITS[cell] for cell in cells))
    return tuple(rows), ""


_DIGITS = {str(colour): colour for colour in range(COLOURS)}


def grid_of(rows: Any, where: str) -> Grid:
    """The grid that a JSON list of lists is. Raises DataError, which begins with `where`, for anything else."""
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) and row for row in rows):
        raise DataError(f"{where}: got {str(rows)[:60]!r}; expected a list of rows of colours")
    if len({len(row) for row in rows}) > 1:
        raise DataError(f"{where}: rows of {sorted({len(row) for row in rows})} cells; expected rows of equal length")
    if len(rows) > LONGEST_SIDE or len(rows[0]) > LONGEST_SIDE:
        raise DataError(f"{where}: a grid of {len(rows)} by {len(rows[0])}; expected sides of at most {LONGEST_SIDE}")
    strange = [cell for row in rows for cell in row if type(cell) is not int or not 0 <= cell < COLOURS]
    if strange:
        raise DataError(f"{where}: got the cell {strange[0]!r}; expected a whole number, 0 to 9")
    return tuple(tuple(row) for row in rows)


def cell_accuracy(found: Grid, wanted: Grid) -> float:
    """The share of cells that are right, 0 where the sizes differ: 1 for the very grid and nothing else."""
    if len(found) != len(wanted) or len(found[0]) != len(wanted[0]):
        return 0.0
    right = sum(a == b for one, other in zip(found, wanted) for a, b in zip(one, other))
    return right / (len(wanted) * len(wanted[0]))


@dataclass(frozen=True, slots=True)
class Pair:
    """An input and its output."""

    input: Grid
    output: Grid


@dataclass(frozen=True, slots=True)
class Puzzle:
    """Demonstrations of a rule, and the pairs on which it is to be applied."""

    id: str
    train: tuple[Pair, ...]
    test: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """A change that keeps a puzzle's rule: a symmetry, where each colour goes, and the order of demonstrations.

    `colours[c]` is what colour c becomes; `order[i]` is the demonstration that is shown as number i (None: as it is).
    Raises ConfigError for what has no inverse.
    """

    symmetry: int = 0
    colours: tuple[int, ...] = tuple(range(COLOURS))
    order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.symmetry not in range(SYMMETRIES):
            raise ConfigError(f"got symmetry {self.symmetry}; expected 0 to {SYMMETRIES - 1}")
        for what, given, count in (("colours", self.colours, COLOURS), ("order", self.order, len(self.order or ()))):
            if given is not None and sorted(given) != list(range(count)):
                raise ConfigError(f"got {what} {given}; expected a permutation of 0 to {count - 1}")

    def grid(self, grid: Grid) -> Grid:
        """The grid, changed."""
        if self.symmetry >= 4:
            grid = tuple(zip(*grid))
        for _ in range(self.symmetry % 4):
            grid = tuple(zip(*grid[::-1]))
        return tuple(tuple(self.colours[cell] for cell in row) for row in grid)

    def puzzle(self, puzzle: Puzzle) -> Puzzle:
        """Every grid changed, and the demonstrations in their order."""
        order = range(len(puzzle.train)) if self.order is None else self.order
        if len(order) != len(puzzle.train):
            raise ConfigError(
                f"puzzle {puzzle.id}: got {len(puzzle.train)} demonstrations and an order of {len(order)}"
            )
        train = tuple(self._pair(puzzle.train[i]) for i in order)
        return Puzzle(puzzle.id, train, tuple(map(self._pair, puzzle.test)))

    def _pair(self, pair: Pair) -> Pair:
        return Pair(self.grid(pair.input), self.grid(pair.output))

    def inverse(self) -> Augmentation:
        """What undoes it exactly."""
        turned = self.symmetry if self.symmetry >= 4 else -self.symmetry % 4  # a reflection undoes itself
        return Augmentation(turned, _inverted(self.colours), None if self.order is None else _inverted(self.order))


def _inverted(permutation: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(permutation.index(i) for i in range(len(permutation)))


def draw_augmentation(random: Random, demonstrations: int = 0, *, keep_zero: bool = False) -> Augmentation:
    """One of all, each as likely; `keep_zero` leaves colour 0, the background of most puzzles, where it is."""
    colours, order = list(range(COLOURS)), list(range(demonstrations))
    moved = colours[1:] if keep_zero else colours
    random.shuffle(moved)
    random.shuffle(order)
    return Augmentation(
        random.randrange(SYMMETRIES), (0, *moved) if keep_zero else tuple(moved), tuple(order) if order else None
    )


def vote_augmented(answers: Iterable[tuple[Augmentation, Grid | None]]) -> list[tuple[Grid, int]]:
    """Answers to one test under augmentations, mapped back and counted: (grid, votes), most first.

    Of equally many the one that came first precedes; None casts no vote. The first 2 or 3 are the attempts.
    """
    votes = Counter(augmentation.inverse().grid(grid) for augmentation, grid in answers if grid is not None)
    return votes.most_common()


@dataclass(frozen=True, slots=True)
class PuzzleScore:
    """How many puzzles are solved, all tests of them, and how many tests."""

    solved: int
    puzzles: int
    tests_solved: int
    tests: int

    @property
    def share(self) -> float:
        """Of puzzles: the benchmark's number."""
        return self.solved / self.puzzles

    @property
    def share_of_tests(self) -> float:
        """Of tests."""
        return self.tests_solved / self.tests


def score_puzzles(attempts: Mapping[tuple[str, int], Sequence[bool]], allowed: int = 2) -> PuzzleScore:
    """From (puzzle, test) → whether each attempt in turn was right, of which the first `allowed` count.

    A test is solved by any of them, a puzzle when all its tests are. The ARC Prize allows 2, the data set's README 3.

    >>> score_puzzles({("a", 0): [False, True], ("b", 0): [True], ("b", 1): [False, False, True]}).share
    0.5
    """
    if allowed < 1 or not attempts:
        raise ConfigError(f"got allowed={allowed} and {len(attempts)} tests; expected at least 1 of both")
    puzzles: dict[str, list[bool]] = {}
    for (puzzle, _), right in attempts.items():
        puzzles.setdefault(puzzle, []).append(any(right[:allowed]))
    tests = [solved for each in puzzles.values() for solved in each]
    return PuzzleScore(sum(map(all, puzzles.values())), len(puzzles), sum(tests), len(tests))
