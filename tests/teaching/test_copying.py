"""An explanation that is the solution itself makes the solution likelier, and is worth less than a derivation.

The student is a small language model whose probabilities are written down here: it goes on with a sum as sums go on,
and says the last number of its thoughts as the solution.
"""

from __future__ import annotations

import math

import pytest
import torch

from maieutic.core.teaching import Terms
from maieutic.loops import run_async
from maieutic.tasks import Tasks, number_after_marker, teaching
from maieutic.tasks.teaching import TAGS
from maieutic.teaching.reward import Student, TeachingReward
from maieutic.types import Finish, Message, Rollout, Task

WORDS = ["<stop>", "+", "=", "#", ";", "?", *TAGS["words"].words, *map(str, range(40))]


class Words:
    """A chat of words."""

    stop_ids = frozenset({0})

    def prompt(self, messages):
        return self.encode(" ".join(message.content for message in messages))

    def encode(self, text):
        return tuple(WORDS.index(word) for word in text.split())

    def completion(self, text):
        return (*self.encode(text), 0)

    def decode(self, tokens):
        return " ".join(WORDS[token] for token in tokens if token)


class Reader:
    """The student: P(next word | what it has read), 0.7 where it knows what comes, a little elsewhere."""

    def logprobs(self, batch):
        made = torch.zeros(batch.tokens.shape)
        for i, row in enumerate(batch.tokens.tolist()):
            words = [WORDS[token] for token in row]
            for j in batch.mask[i].nonzero().flatten().tolist():
                made[i, j] = math.log(0.7 if words[j] == self.expects(words[:j]) else 0.004)
        return made

    def expects(self, read):
        thought = read[read.index("<think>") + 1 :]
        if "</think>" in thought:  # the solution: the last number that was thought, or a guess
            numbers = [word for word in thought[: thought.index("</think>")] if word.isdigit()]
            return {"#": numbers[-1] if numbers else "0"}.get(read[-1], "#")
        a, b = read[0], read[2]
        return [a, "+", b, "=", str(int(a) + int(b)), ";"][len(thought)] if len(thought) < 6 else "</think>"


TASKS = teaching(
    Tasks("sums", [Task("sums/0", (Message("user", "12 + 7 ?"),), "19")], number_after_marker),
    tags="words", solution="# {answer}",
)  # fmt: skip


def worth(*texts, **terms):
    chat, task = Words(), TASKS[0]
    prompt = chat.prompt(task.prompt)
    rollouts = []
    for text in texts:
        said = chat.completion(TAGS["words"].taught(text))
        tokens, mask = (*prompt, *said), (False,) * len(prompt) + (True,) * len(said)
        # whatever it writes, the teacher was sure of it: klⱼ = 0 − lpSⱼ
        rollouts.append(Rollout(task.id, tokens, mask, (0.0,) * len(tokens), Finish.STOP))
    reward = TeachingReward(Student(Reader(), chat), chat, terms=Terms(**terms))
    return run_async(reward(task, rollouts))


def test_a_copied_solution_is_likely_unnatural_and_worth_less():
    derived, copied, empty, wrong = worth("12 + 7 = 19 ;", "# 19", "", "12 + 7 = 20 ;")
    # copying raises r_SS from that of nothing to that of a derivation …
    assert copied.parts["solution/mean"] == pytest.approx(derived.parts["solution/mean"])
    assert copied.parts["solution/mean"] > empty.parts["solution/mean"]
    # … and r_KL: the student, who has not seen the solution, would never begin so
    assert derived.parts["kl/mean"] == pytest.approx(-math.log(0.7), abs=1e-6)
    assert copied.parts["kl/mean"] == pytest.approx(-math.log(0.004), abs=1e-6)
    assert copied.reward < derived.reward
    # without the divergence nothing tells them apart
    blind = worth("12 + 7 = 19 ;", "# 19", kl=(0.0, 0.0))
    assert blind[0].reward == pytest.approx(blind[1].reward)
    # a wrong derivation is one unnatural word, and no solution
    assert wrong.reward < derived.reward
    assert wrong.parts["kl/max"] == pytest.approx(-math.log(0.004), abs=1e-6)
