"""From what a search found to groups and rows, and back through the readers."""

from __future__ import annotations

import json

import pytest

from maieutic.algorithms import expert_iteration
from maieutic.backends.toy import STOP, ToyChat
from maieutic.errors import DataError
from maieutic.protocols import Completion
from maieutic.search.data import demonstrations, group_of, preferences, step_labels, waits
from maieutic.search.found import Candidate, Cost, Found
from maieutic.sources import demonstration
from maieutic.tasks.files import file
from maieutic.tasks.judged import layout_of, read_judged
from maieutic.tasks.verify import number_after_marker
from maieutic.types import Finish, Message, Task

CHAT = ToyChat(["Q", "1", "2", "3", "+", "=", ";", "#", "Wait"])
TASK = Task("sums/0", (Message("user", "Q"),), "3")


def candidate(text: str, *, finish: Finish = Finish.STOP, score: float | None = None, tool: int = -1) -> Candidate:
    tokens = CHAT.completion(text)
    mask = tuple(place != tool for place in range(len(tokens)))
    made = Completion(tokens, mask, tuple(-0.5 * m for m in mask), finish, version=4)
    return Candidate(made, text, text[-1:] or None, score)


WRONG, RIGHT, OTHER = "1 + 1 = 2 ; # 2", "1 + 2 = 3 ; # 3", "2 + 1 = 3 ; # 3"


def found(*candidates: Candidate, chosen: int = 0) -> Found:
    return Found(candidates, chosen, Cost())


def the_group(**options):
    made = found(
        candidate(WRONG, score=0.2),
        candidate(RIGHT, score=0.9, tool=4),
        candidate(RIGHT),
        candidate(OTHER, finish=Finish.LENGTH),
        candidate(OTHER),
        chosen=1,
    )
    return group_of(TASK, CHAT.prompt(TASK.prompt), made, number_after_marker, **options)


def test_a_group_holds_the_candidates_the_chosen_one_first():
    group = the_group(number=7, temperature=0.0)
    assert group.id == 7
    assert [r.text for r in group.rollouts] == [RIGHT, WRONG, RIGHT, OTHER, OTHER]
    assert [s.reward for s in group.scores] == [1.0, 0.0, 1.0, 1.0, 1.0]
    assert [s.parts for s in group.scores[:3]] == [{"search": 0.9}, {"search": 0.2}, {}]
    first = group.rollouts[0]
    assert first.tokens == (*CHAT.prompt(TASK.prompt), *CHAT.completion(RIGHT))
    assert first.mask == (False, *(place != 4 for place in range(9)))
    assert [(s.role, s.start, s.stop) for s in first.spans] == [
        ("prompt", 0, 1), ("assistant", 1, 5), ("tool", 5, 6), ("assistant", 6, 10),
    ]  # fmt: skip
    assert (first.version, first.temperature, first.sibling) == (4, 1.0, 0)


def test_what_failed_is_unscorable():
    made = found(candidate("", finish=Finish.ERROR))
    group = group_of(TASK, (1,), made, number_after_marker)
    assert group.scores[0].reward is None
    assert not demonstrations([group])


def test_expert_iteration_learns_what_was_right():
    algorithm = expert_iteration()
    rows = algorithm.select([the_group()])
    assert [row.rollout.text for row in rows] == [RIGHT, OTHER]  # once each, and not the one that was cut
    assert {row.reward for row in rows} == {1.0}


def test_demonstrations_and_preferences_are_read_back(tmp_path):
    group = the_group()
    shown = demonstrations([group])
    assert [(row["id"], row["solution"]) for row in shown] == [("sums/0/0", RIGHT), ("sums/0/1", OTHER)]
    assert [row["solution"] for row in demonstrations([group], cap=1)] == [RIGHT]
    pairs = preferences([group])
    assert [(row["chosen"], row["rejected"]) for row in pairs] == [(RIGHT, WRONG)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in shown))
    tasks = file(path, verifier=number_after_marker)
    assert [task.meta["solution"] for task in tasks] == [RIGHT, OTHER]
    assert tasks[0].answer == "3"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    assert layout_of(path) == "pairs"
    [pair] = read_judged(path)
    assert (pair.prompt, pair.chosen, pair.rejected) == (TASK.prompt, RIGHT, WRONG)


def test_wrong_then_wait_then_right_with_the_wrong_part_masked(tmp_path):
    [row] = waits([the_group()], "#", "Wait ", cap=1)
    assert row["prompt"] == [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "1 + 1 = 2 ;"},
    ]
    assert row["solution"] in (f"Wait {RIGHT}", f"Wait {OTHER}")
    path = tmp_path / "waits.jsonl"
    path.write_text(json.dumps(row))
    task = file(path, verifier=number_after_marker)[0]
    rollout = demonstration(task, task.meta["solution"], CHAT)
    learned = CHAT.decode([t for t, m in zip(rollout.tokens, rollout.mask, strict=True) if m])
    assert learned.split() == row["solution"].split()
    assert CHAT.decode(rollout.tokens).split() == ["Q", *["1", "+", "1", "=", "2", ";"], *row["solution"].split()]
    assert rollout.tokens[-1] == STOP
    assert rollout.mask[-1]


def test_thoughts_are_opened_once():
    wrong, right = "<think>so 2</think>2", "<think>no, 3</think>3"
    task = Task("t", (Message("user", "?"),), "3")

    def judged(task, text):
        return number_after_marker(task, f"# {text[-1]}")

    pieces = [Candidate(Completion((5,), (True,), (0.0,), Finish.STOP), text, text[-1]) for text in (wrong, right)]
    [row] = waits([group_of(task, (1,), found(*pieces), judged)])
    whole = row["prompt"][-1]["content"] + row["solution"]
    assert whole == "<think>so 2\nWait, no, 3</think>3"


def test_how_many_and_which_are_drawn():
    group = the_group()
    both = waits([group], "#", "Wait ", cap=9)
    assert {row["solution"] for row in both} == {f"Wait {RIGHT}", f"Wait {OTHER}"}
    assert waits([group], "#", "Wait ", seed=3) == waits([group], "#", "Wait ", seed=3)
    only = group_of(TASK, (1,), found(candidate(RIGHT)), number_after_marker)
    with pytest.raises(DataError, match="1 groups, none with a right and a wrong"):
        waits([only], "#")


def node(number: int, parent: int | None, step: str, q: float, visits: int, *, finished: bool = False) -> dict:
    return {"node": number, "parent": parent, "depth": 1, "step": step, "q": q, "visits": visits, "finished": finished}


def test_labels_of_steps_are_the_values_of_nodes(tmp_path):
    log = [
        node(0, None, "1 + 1 = 2 ;", 0.25, 4),
        node(1, None, "1 + 2 = 3 ;", 0.8, 5),
        node(2, 0, " # 2", 0.1, 1, finished=True),
        node(3, 1, " # 3", 0.0, 0, finished=True),
        node(4, 1, " ; ;", 0.5, 2),
    ]
    rows = step_labels(TASK, log, {"1 + 2 = 3 ; # 3": True, "1 + 1 = 2 ; # 2": False})
    assert [(row["steps"], row["labels"], row["label"]) for row in rows] == [
        (["1 + 1 = 2 ;", " # 2"], [0.25, 0.1], 0.0),
        (["1 + 2 = 3 ;", " # 3"], [0.8, None], 1.0),
    ]
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert layout_of(path) == "steps"
    first, second = read_judged(path)
    assert (first.text, first.labels, first.label) == ("1 + 1 = 2 ; # 2", (0.25, 0.1), 0.0)
    assert second.labels == (0.8, None)
    assert [row["labels"] for row in step_labels(TASK, log, {}, signed=True)] == [[0.625, 0.55], [0.9, None]]
    assert [row["labels"] for row in step_labels(TASK, log, {}, least=5)] == [[0.8, None]]
    with pytest.raises(DataError, match="Is it signed"):
        step_labels(TASK, [node(0, None, "x", -0.5, 1, finished=True)], {})
    assert not step_labels(TASK, [{"round": 0}, {"node": 0, "parent": None, "step": "x", "finished": True}], {})
