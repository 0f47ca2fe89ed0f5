"""ARC-AGI: the codec, augmentations and their inverses, votes, prompts within a budget, and scores."""

from __future__ import annotations

import asyncio
import doctest
import json
from itertools import product
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maieutic.errors import ConfigError, DataError, UnknownName
from maieutic.rewards.compose import answer_reward
from maieutic.tasks import arc_agi, grids
from maieutic.tasks.arc_agi import ReadsGrid, prompt_text, read_puzzles
from maieutic.tasks.grids import (
    Augmentation,
    Pair,
    Puzzle,
    cell_accuracy,
    decode,
    decode_all,
    draw_augmentation,
    encode,
    score_puzzles,
    vote_augmented,
)
from maieutic.types import Finish, Rollout, Task

grid_strategy = st.integers(1, 5).flatmap(
    lambda width: st.lists(
        st.lists(st.integers(0, 9), min_size=width, max_size=width).map(tuple), min_size=1, max_size=5
    ).map(tuple)
)


def test_the_documentation_is_right():
    tried = doctest.testmod(grids)
    assert tried.attempted >= 3
    assert tried.failed == 0


@pytest.fixture(scope="module")
def puzzles(data_dir):
    """Every puzzle of the real data."""
    folder = data_dir / "arc_agi"
    if not folder.is_dir():
        pytest.skip(f"no ARC-AGI puzzles at {folder}: a clone of its repository's data/ goes there")
    return [puzzle for split in ("train", "test") for puzzle in read_puzzles(folder, split)]


def every_grid(puzzle):
    return [grid for pair in (*puzzle.train, *puzzle.test) for grid in (pair.input, pair.output)]


def test_every_real_grid_survives_the_codec(puzzles):
    read = [grid for puzzle in puzzles for grid in every_grid(puzzle)]
    assert len(read) >= 6 * len(puzzles)
    assert all(decode(encode(grid)) == (grid, "") for grid in read)


def test_every_real_puzzle_comes_back_from_its_changes(puzzles):
    for puzzle in puzzles:
        for keep_zero in (False, True):
            change = draw_augmentation(Random(puzzle.id), len(puzzle.train), keep_zero=keep_zero)
            assert change.inverse().puzzle(change.puzzle(puzzle)) == puzzle
            assert change.colours[0] == 0 or not keep_zero


@given(grid_strategy, st.integers(0, 7), st.permutations(range(10)))
def test_a_change_is_undone_exactly(grid, symmetry, colours):
    change = Augmentation(symmetry, tuple(colours))
    assert change.inverse().grid(change.grid(grid)) == grid
    assert change.inverse().inverse() == change
    assert decode(encode(grid)) == (grid, "")


def test_the_symmetries_are_the_eight_of_the_square():
    square = ((0, 1), (2, 3))
    #   0 1   turned clockwise   2 0
    #   2 3                      3 1
    assert Augmentation(1).grid(square) == ((2, 0), (3, 1))
    assert Augmentation(2).grid(square) == ((3, 2), (1, 0))
    assert Augmentation(4).grid(square) == ((0, 2), (1, 3))  # transposed
    assert len({Augmentation(symmetry).grid(square) for symmetry in range(8)}) == 8
    # closed: one after another is one of them
    images = {Augmentation(symmetry).grid(square) for symmetry in range(8)}
    assert {Augmentation(a).grid(Augmentation(b).grid(square)) for a, b in product(range(8), repeat=2)} == images


def test_what_has_no_inverse_is_refused():
    for wrong in ({"symmetry": 8}, {"colours": (0,) * 10}, {"order": (0, 0)}):
        with pytest.raises(ConfigError, match="expected"):
            Augmentation(**wrong)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no grid"),
        ("0 1\n1 0", "no grid"),
        ("<grid>0 1\n1 0", "not closed"),
        ("<grid></grid>", "no rows"),
        ("<grid>0 1\n\n1 0</grid>", "an empty row"),
        ("<grid>0 1\n1</grid>", "row 2 has 1 cells and row 1 has 2"),
        ("<grid>0 a</grid>", "'a' in row 1"),
        ("<grid>0 10</grid>", "'10' in row 1"),
        ("<grid>-1 0</grid>", "'-1' in row 1"),
        ("<grid>٣</grid>", "'٣' in row 1"),
        ("<grid>01</grid>", "'01' in row 1"),
        (f"<grid>{'0 ' * 31}</grid>", "longer than 30"),
        ("<grid>" + "0\n" * 31 + "</grid>", "longer than 30"),
        ("<grid>0</grid><grid>1</grid>", "2 grids"),
    ],
)
def test_what_is_no_grid_is_said(text, why):
    grid, said = decode(text)
    assert grid is None
    assert why in said


def test_sides_may_be_thirty_and_spaces_any():
    assert decode(f"<grid>{'0 ' * 30}</grid>")[0] == ((0,) * 30,)
    assert decode("<grid>" + "0\n" * 30 + "</grid>")[0] == ((0,),) * 30
    assert decode("<grid>  0   1\r\n1 0  </grid>")[0] == ((0, 1), (1, 0))


@given(st.text(alphabet="<grid>/ 0123\n", max_size=120))
def test_any_text_is_read(text):
    grid, why = decode(text)
    assert (grid is None) == bool(why)


def test_long_texts_are_read_in_passing():
    """Quadratic, any of these would take minutes."""
    for text in ("<grid>" * 50_000, "<grid>" + "0 " * 300_000 + "</grid>", "<grid>x</grid>" * 20_000):
        assert decode_all(text)[0] == ()


def task_of(output, attempts=1):
    return Task("t", (), encode(output)), ReadsGrid(attempts)


WANTED = ((1, 2), (3, 4))


@pytest.mark.parametrize(
    ("grid", "share"),
    [(WANTED, 1.0), (((1, 2), (3, 0)), 0.75), (((0, 0), (0, 0)), 0.0), (((1, 2),), 0.0), (((1, 2, 0), (3, 4, 0)), 0.0)],
)
def test_the_reward_is_the_share_of_cells_and_1_for_the_very_grid_only(grid, share):
    task, verifier = task_of(WANTED)
    verdict = verifier(task, f"so\n{encode(grid)}")
    assert verdict.share == share == cell_accuracy(grid, WANTED)
    assert verdict.correct == (share == 1.0) == (grid == WANTED)


@given(grid_strategy, grid_strategy)
def test_the_share_is_1_iff_exact(one, other):
    assert (cell_accuracy(one, other) == 1.0) == (one == other)


def test_a_reward_pays_the_share():
    task, verifier = task_of(WANTED)

    rollout = Rollout("t", (1, 2), (False, True), (0.0, 0.0), Finish.STOP, encode(((1, 2), (3, 0))))
    (score,) = asyncio.run(answer_reward(verifier)(task, [rollout]))
    assert score.reward == 0.75
    assert score.correct is False


def test_attempts_are_the_last_grids_outside_of_thoughts():
    task, one = task_of(WANTED)
    _, two = task_of(WANTED, attempts=2)
    wrong = ((0, 0), (0, 0))
    text = f"{encode(WANTED)} or {encode(wrong)}"
    assert not one(task, text).correct
    assert two(task, text).correct
    assert not two(task, f"{text} {encode(wrong)}").correct
    assert not one(task, f"<think>{encode(WANTED)}</think>").correct
    assert one(task, f"<think>{encode(wrong)}</think>{encode(WANTED)}").correct


def test_a_puzzle_is_solved_when_all_its_tests_are():
    right = {("a", 0): [False, True], ("a", 1): [True, False], ("b", 0): [True], ("b", 1): [False, False, True]}
    two, three, one = score_puzzles(right, 2), score_puzzles(right, 3), score_puzzles(right, 1)
    assert (two.solved, two.puzzles, two.tests_solved, two.tests) == (1, 2, 3, 4)
    assert (three.share, three.share_of_tests) == (1.0, 1.0)
    assert (one.share, one.share_of_tests) == (0.0, 0.5)
    for wrong in ({"attempts": {}, "allowed": 2}, {"attempts": right, "allowed": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            score_puzzles(**wrong)


def test_answers_under_changes_are_mapped_back_and_counted():
    changes = [draw_augmentation(Random(seed)) for seed in range(5)]
    other = ((9, 9), (9, 9))
    answers = [(change, change.grid(WANTED)) for change in changes[:3]]
    answers += [(changes[3], changes[3].grid(other)), (changes[4], None)]
    assert vote_augmented(answers) == [(WANTED, 3), (other, 1)]
    assert vote_augmented([(changes[0], None)]) == []
    assert vote_augmented([(Augmentation(), other), (Augmentation(), WANTED)])[0] == (other, 1)  # the first of equals


def own_puzzle(folder, tests=1, name="p1"):
    pairs = [{"input": [[n, 0]], "output": [[0, n]]} for n in range(1, 4)]
    content = {"train": pairs, "test": [{"input": [[n, 0]], "output": [[0, n]]} for n in range(5, 5 + tests)]}
    place = folder / "training"
    place.mkdir(exist_ok=True)
    (place / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_a_task_shows_every_pair_and_asks_for_the_output(tmp_path):
    tasks = arc_agi("train", own_puzzle(tmp_path, tests=2))
    assert [task.id for task in tasks] == ["arc_agi/train/p1/0/0", "arc_agi/train/p1/1/0"]
    text = tasks[1].prompt[0].content
    assert text.count("Output:") == 4
    assert text.endswith("Input:\n<grid>\n6 0\n</grid>\nOutput:")
    assert tasks[1].answer == encode(((0, 6),))
    assert (tasks[1].meta["puzzle"], tasks[1].meta["test"]) == ("p1", 1)


def test_copies_are_changed_and_their_answers_can_be_mapped_back(tmp_path):
    tasks = arc_agi("train", own_puzzle(tmp_path), augmentations=6, keep_zero=True)
    assert len(tasks) == 7
    assert len({task.prompt[0].content for task in tasks}) > 4
    answers = [(task.meta["augmentation"], decode(task.answer)[0]) for task in tasks]
    assert vote_augmented(answers) == [(((0, 5),), 7)]
    assert all(tasks.verifier(task, task.meta["solution"]).correct for task in tasks)


def test_a_prompt_keeps_to_its_budget_by_leaving_out_the_last_pairs(tmp_path):
    puzzle = Puzzle("p", (Pair(((1,),), ((2,),)), Pair(((3,),), ((4,),))), (Pair(((5,),), ((6,),)),))
    whole, one = prompt_text(puzzle, 0), prompt_text(Puzzle("p", puzzle.train[:1], puzzle.test), 0)
    assert prompt_text(puzzle, 0, len(whole)) == whole
    assert prompt_text(puzzle, 0, len(whole) - 1) == one
    assert prompt_text(puzzle, 0, len(one) - 1) is None
    assert prompt_text(puzzle, 0, 2, measure=lambda text: text.count("Output:") - 1) == whole  # of another currency
    assert prompt_text(puzzle, 0, 1, measure=lambda text: text.count("Output:") - 1) == one
    assert len(arc_agi("train", own_puzzle(tmp_path), max_prompt=300)) == 1
    with pytest.raises(ConfigError, match="into which no puzzle fits"):
        arc_agi("train", tmp_path, max_prompt=20)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[1]", "with 'train' and 'test'"),
        ("{", "not JSON"),
        ('{"train": [], "test": []}', "at least one"),
        ('{"train": [{"input": [[1]]}], "test": [{}]}', "pair 1, output: got 'None'"),
        ('{"train": [{"input": [[1], [1, 2]], "output": [[1]]}], "test": [{}]}', "rows of equal length"),
        ('{"train": [{"input": [[true]], "output": [[1]]}], "test": [{}]}', "got the cell True"),
        ('{"train": [{"input": [[10]], "output": [[1]]}], "test": [{}]}', "got the cell 10"),
        ('{"train": [{"input": [[' + "0," * 30 + '0]], "output": [[1]]}], "test": [{}]}', "sides of at most 30"),
    ],
)
def test_a_file_that_is_no_puzzle_is_said(content, why, tmp_path):
    folder = own_puzzle(tmp_path)
    (folder / "training" / "q.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"q\.json") as said:
        arc_agi("train", folder)
    assert why in str(said.value)


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match="expected a folder evaluation of JSON files"):
        arc_agi("test", own_puzzle(tmp_path) / "nowhere")
    with pytest.raises(UnknownName, match="train"):
        arc_agi("training", tmp_path)
    with pytest.raises(ConfigError, match="attempts=0"):
        arc_agi("train", tmp_path, attempts=0)
    with pytest.raises(UnknownName, match="share"):
        arc_agi("train", tmp_path, reward="cells")
