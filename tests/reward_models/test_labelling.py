"""Labels by continuations: searches worked by hand, a toy whose chances are known, and a file that goes on."""

from __future__ import annotations

import json
import math
import random

import pytest

from maieutic.backends.toy import ToyChat
from maieutic.core.cost import Spent
from maieutic.errors import ConfigError
from maieutic.loops import run_async
from maieutic.protocols import Completion
from maieutic.reward_models.labelling import SEARCHES, Labeller, hard_labels, soft_labels
from maieutic.run.reward_labels import write_labels
from maieutic.run.runner import Interrupted
from maieutic.step_rewards import MonteCarlo
from maieutic.steps import Steps
from maieutic.tasks.judged import read_judged
from maieutic.tasks.taskset import Tasks
from maieutic.types import Finish, Message, Task, Verdict

CHAT = ToyChat(["a", "b", "c", ";", "yes", "no"])
STOP, A, B, C, SEMI, YES, NO = range(7)


def verifier(task, text):
    """Right when the last word is the answer."""
    return Verdict(text.split()[-1:] == [task.answer])


class Chances:
    """Solutions are written as told; from "a ;", "b ;", "c ;" a continuation is right with a known chance, drawn by the
    key and the sibling."""

    def __init__(self, chances, solutions):
        self.chances, self.solutions, self.asked = chances, solutions, []

    async def sample(self, prompt_tokens, params, n):
        """As a real sampler."""
        if "/solve/" in params.key:
            return [completion(*tokens) for tokens in self.solutions[:n]]
        self.asked.append(tuple(prompt_tokens[2:]))  # the prompt is two tokens long
        draw = random.Random(params.key)
        right = [draw.random() < self.chances[prompt_tokens[-2]] for _ in range(n)]
        return [completion(YES if each else NO, STOP) for each in right]


def completion(*tokens):
    return Completion(tokens, (True,) * len(tokens), (-1.0,) * len(tokens), Finish.STOP)


def tasks(count=1):
    return Tasks("t", [Task(f"t/{i}", (Message("user", "a b"),), answer="yes") for i in range(count)], verifier)


def labeller(sampler, count=1, continuations=4, samples=1, **options):
    asked = tasks(count)
    estimate = MonteCarlo(sampler, CHAT, verifier, continuations, max_completion_length=12)
    return Labeller(asked, estimate, Steps(CHAT, " ;"), samples, **options)


def searched(how, shares, right):
    """What a search asks, one round after the other, and what it ends with, where the prefixes have these shares."""
    search, asked = SEARCHES[how](len(shares) + 1, right), []
    wanted = next(search)
    try:
        while True:
            asked += wanted
            wanted = search.send([shares[k] for k in wanted])
    except StopIteration as ending:
        return asked, *ending.value


def test_all_prefixes_are_asked():
    assert searched("all", [1.0, 0.5, 0.0, 0.25], False) == ([0, 1, 2, 3], [1.0, 0.5, 0.0, 0.25, 0.0], 2)


def test_until_the_first_error():
    """The fourth prefix is not asked, and the last step has the verdict."""
    asked, shares, first = searched("first", [1.0, 0.5, 0.0, 0.25], False)
    assert (asked, shares, first) == ([0, 1, 2], [1.0, 0.5, 0.0, None, 0.0], 2)
    assert hard_labels(shares, first) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert hard_labels(shares, first, after=None) == [1.0, 1.0, 0.0, None, 0.0]
    assert soft_labels(shares, first) == [1.0, 0.5, 0.0, 0.0, 0.0]
    assert soft_labels(shares, first, after=None) == [1.0, 0.5, 0.0, None, 0.0]


def test_bisection_asks_as_many_prefixes_as_the_logarithm():
    """Of sixteen steps the tenth is the first wrong one: 8 right, 12 wrong, 10 wrong, 9 right (counted from 1)."""
    shares = [0.5] * 9 + [0.0] * 6
    with pytest.raises(StopIteration) as ending:
        next(SEARCHES["halving"](16, True))  # a right solution asks nothing
    assert ending.value.value == ([None] * 15 + [1.0], None)
    search = SEARCHES["halving"](16, False)
    asked = next(search)
    seen = list(asked)
    try:
        while True:
            asked = search.send([shares[k] for k in asked])
            seen += asked
    except StopIteration as ending:
        found, first = ending.value
    assert (seen, first) == ([7, 11, 9, 8], 9)
    assert hard_labels(found, first) == [1.0] * 9 + [0.0] * 7
    assert soft_labels(found, first)[:9] == [None] * 7 + [0.5, 0.5]


@pytest.mark.parametrize("first", range(8))
def test_bisection_finds_every_first_error(first):
    shares = [0.25] * first + [0.0] * (7 - first)
    asked, _, found = searched("halving", shares, False)
    assert found == first
    assert len(asked) == 3  # log₂ 8


def test_soft_labels_estimate_the_chance_and_hard_ones_the_chance_of_any():
    """E[soft] = q and E[hard] = 1 − (1 − q)ᴺ, at q = .1, N = 8: .5695. 400 tasks: within four standard errors."""
    q, n, count = 0.1, 8, 400
    made = labeller(Chances({A: q}, [(A, SEMI, NO, STOP)]), count, n)
    found = [run_async(made(task))[0] for task in made.taskset]
    soft = sum(each.soft[0] for each in found) / count
    hard = sum(each.hard[0] for each in found) / count
    chance = 1 - (1 - q) ** n
    assert chance == pytest.approx(0.5695, abs=1e-4)
    assert abs(soft - q) < 4 * math.sqrt(q * (1 - q) / n / count)
    assert abs(hard - chance) < 4 * math.sqrt(chance * (1 - chance) / count)
    assert {each.soft[1] for each in found} == {0.0}  # the verdict


def test_solutions_that_begin_alike_share_what_is_asked_and_its_cost():
    """a ; b ; no    a ; c ; yes    the same again: prefixes "a ;", "a ; b ;" and "a ; c ;"."""
    solutions = [(A, SEMI, B, SEMI, NO, STOP), (A, SEMI, C, SEMI, YES, STOP), (A, SEMI, B, SEMI, NO, STOP)]
    sampler = Chances({A: 1.0, B: 0.0, C: 1.0}, solutions)
    made = labeller(sampler, samples=3)
    first, second = run_async(made(made.taskset[0]))
    assert sampler.asked == [(A, SEMI), (A, SEMI, B, SEMI), (A, SEMI, C, SEMI)]
    assert (first.steps, first.soft, first.first) == (("a ;", " b ;", " no"), (1.0, 0.0, 0.0), 1)
    assert (second.soft, second.correct, second.first) == ((1.0, 1.0, 1.0), True, None)
    # 18 tokens of three solutions, which read the prompt of 2 thrice; 3 prefixes × 4 continuations × 2 tokens, which
    # read 4 × (4 + 6 + 6) tokens
    assert (made.cost.solutions, made.cost.labels) == (Spent(18, 6), Spent(24, 64))
    assert (made.cost.asked, made.cost.prefixes) == (3, 3)


def test_bisection_spends_less():
    solutions = [(A, SEMI, A, SEMI, A, SEMI, A, SEMI, NO, STOP), (A, SEMI, YES, STOP)]
    costs = {}
    for search in SEARCHES:
        made = labeller(Chances({A: 0.0}, solutions), samples=2, search=search)
        run_async(made(made.taskset[0]))
        costs[search] = (made.cost.asked, made.cost.labels.generated)
    # the wrong one's four prefixes; its first alone; its third, second and first. "a ;" is the right one's too
    assert costs == {"all": (4, 32), "first": (1, 8), "halving": (3, 24)}


def test_a_file_that_was_stopped_goes_on_to_the_same_bytes(tmp_path):
    def made():
        return labeller(Chances({A: 0.5}, [(A, SEMI, NO, STOP), (A, SEMI, YES, STOP)]), 70, samples=2)

    whole = write_labels(made(), tmp_path / "whole.jsonl", {"seed": 0}, tasks=70)
    part = tmp_path / "part.jsonl"
    with pytest.raises(Interrupted, match="32 of 70"):
        write_labels(made(), part, {"seed": 0}, tasks=70, stop=lambda: True)
    with part.open("a") as torn:
        torn.write('{"task": "t/33", "pro')  # what a kill leaves behind
    again = write_labels(made(), part, {"seed": 0}, tasks=70, resume=True)
    assert part.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert again | {"file": ""} == whole | {"file": ""}
    assert (whole["solutions"], whole["correct"], whole["steps"]) == (140, 70, 280)
    with pytest.raises(ConfigError, match="there already"):
        write_labels(made(), part, {"seed": 0}, tasks=70)
    with pytest.raises(ConfigError, match="begun with"):
        write_labels(made(), part, {"seed": 1}, tasks=70, resume=True)
    # and it is what `maieutic reward train --kind process` reads
    judged = read_judged(part)
    assert [each.text for each in judged[:2]] == ["a ; no", "a ; yes"]
    assert [each.label for each in judged[:2]] == [0.0, 1.0]
    assert judged[0].labels == tuple(json.loads(part.read_text().splitlines()[0])["soft"])


def test_what_cannot_be_asked_is_refused():
    with pytest.raises(ConfigError, match="all, first, halving"):
        labeller(Chances({}, []), search="thirds")
