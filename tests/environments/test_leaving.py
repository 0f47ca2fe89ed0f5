"""A game that is left is worth no more than one that is played on badly, where turns are paid."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
import torch

from maieutic.ahead.messages import Drawn, keep, kept
from maieutic.backends.toy import STOP, ScriptedSampler, ToyChat
from maieutic.core.credit import discounted
from maieutic.core.select import everything
from maieutic.core.stepwise import steps_normalized
from maieutic.environments.episodes import Played
from maieutic.environments.leaving import forfeited
from maieutic.environments.rules import EachInItsOwn
from maieutic.environments.wordle import Wordle
from maieutic.pack import pack
from maieutic.play import Player
from maieutic.protocols import Reply
from maieutic.rewards.compose import nothing
from maieutic.tasks.wordle import wordle
from maieutic.types import Finish, Group, Message, Rollout, Score, Span, Task
from maieutic.wordle import word_list

CHAT = ToyChat(["ask", "win", "on", "bad", "stay", "go"])
TASK = Task("t", (Message("user", "ask"),), "win")
#: What a turn pays.
PAY = {"win": 3.0, "on": 1.0, "bad": 0.0, "stay": -1.0}


class Paying:
    """Four turns, each paid by its word; "win" ends it, and "go" as a game that is left by its own rules."""

    name, max_turns, max_turn_length, at_once = "paying", 4, 2, True

    async def start(self, task, seed):
        return Game(task)


class Game:
    def __init__(self, task):
        self.opening, self.turns = task.prompt, 0

    async def step(self, message):
        self.turns += 1
        if message.content == "go":
            return Reply(done=True, reward=-1.0, lacking=4 - self.turns)
        return Reply((Message("user", "ask"),), done=message.content == "win", reward=PAY[message.content])

    async def score(self):
        return Score(0.0)

    async def close(self):
        pass


def group_of(*games: str, environment=None, task=TASK, most=40):
    """Each game is what is said turn by turn; "…" runs on until it is cut."""

    def script(prompt, sibling):
        word = games[sibling].split()[list(prompt).count(CHAT.ids["ask"]) - 1]
        return (CHAT.ids["on"],) * 9 if word == "…" else (CHAT.ids[word], STOP)

    class BySibling:
        """The episodes of a group ask one by one: which it is the key says."""

        async def sample(self, prompt, params, n):
            sibling = int(params.key.split("/")[-2])
            found = await ScriptedSampler(lambda tokens, _: script(tokens, sibling)).sample(prompt, params, n)
            return list(found)

    made = Player(BySibling(), CHAT, nothing, environment or Paying(), max_completion_length=most)
    return asyncio.run(made.group(task, len(games), 0))


def advantages(group: Group, credit=None):
    """Of each row, the advantages of its chosen tokens."""
    batch = (credit or steps_normalized(eps=0.0))(pack(everything()([group])))
    return [row[mask].tolist() for row, mask in zip(batch.advantages, batch.mask)]


def test_by_hand():
    """Three games of four turns: 1 0 0 0 to the end; 1 and then left; 1 3 and won.

    Left lacks three turns, each paid min(0, 0, 1, 3) = 0. All steps: 1 0 0 0, 1 0 0 0, 1 3: mean 6/10 = 0.6, squares of
    the deviations 3 · 0.16 + 6 · 0.36 + 5.76 = 8.4, deviation √(8.4 / 9) = 0.96609.
    """
    group = group_of("on bad bad bad", "on …", "on win")
    badly, left, won = advantages(group)
    deviation = (8.4 / 9) ** 0.5
    assert badly[0] == pytest.approx((0.4 - 3 * 0.6) / deviation)
    assert left[0] == pytest.approx(badly[0])  # as good as playing on as badly as can be, and no better
    assert left[-1] == pytest.approx(-3 * 0.6 / deviation)
    assert left[-1] == pytest.approx(badly[2])  # from the turn on in which it was left
    assert won[0] == pytest.approx((0.4 + 2.4) / deviation)  # an early win is not charged for the turns that it spared
    assert [score.forfeits for score in group.scores] == [(), (0.0, 0.0, 0.0), ()]
    assert group.scores[1].note == "left with 3 turns to come, 0 each"
    assert group.rollouts[1].finish is Finish.LENGTH
    # as it was: mean 6/7, and who left was better than the mean while who stayed lost three times by it
    before = replace(group, scores=tuple(replace(score, forfeits=()) for score in group.scores))
    assert advantages(before)[1][0] > 0 > advantages(before)[0][0]


def test_sums_over_turns_are_charged_too():
    """Every turn costs 1: to leave spares none of it. Nothing is expected after it: no bootstrap."""
    group = group_of("stay stay stay stay", "stay …", "…")
    assert [score.forfeits for score in group.scores] == [(), (-1.0,) * 3, (-1.0,) * 4]
    batch = pack(everything()([group]))
    assert batch.token_rewards.sum(1).tolist() == [-4.0, -4.0, -4.0]
    assert batch.terminated.tolist() == [True, True, True]
    assert [row[0] for row in advantages(group, discounted(1.0))] == [-4.0, -4.0, -4.0]
    assert batch.rows(torch.tensor([2])).forfeits.tolist() == [[-1.0] * 4]


def test_leaving_never_scores_above_playing_on_badly():
    draw = random.Random(3)
    words = list(PAY)
    for _ in range(40):
        begun = draw.choices([word for word in words if word != "win"], k=draw.randrange(4))
        others = [" ".join(draw.choices(words, k=4)) for _ in range(3)]
        badly = " ".join([*begun, *["stay"] * (4 - len(begun))])
        found = advantages(group_of(" ".join([*begun, "…"]), badly, *others))
        assert found[0][0] <= found[1][0] + 1e-6
        stopped = advantages(group_of(" ".join([*begun, "go"]), badly, *others))  # by a turn that its rules forbid
        assert stopped[0][0] <= stopped[1][0] + 1e-6
        assert found[0][0] == pytest.approx(found[1][0], abs=1e-5) or len(begun) == 4


def test_every_way_to_leave():
    def lacking(group):
        return [len(score.forfeits) for score in group.scores]

    # a turn that was cut is one of them; one that its rules ended was paid itself
    assert lacking(group_of("… ", "on …", "on on on …", "go", "on on go")) == [4, 3, 1, 3, 1]
    # no room for another turn: 1 + 2 + 1 + 2 tokens of 7, of which what is said and a word would be 3
    assert lacking(group_of("on on on", "on win", most=6)) == [2, 0]
    # a game that ended, by its rules or by its last turn, lacks nothing
    assert lacking(group_of("win", "on on on on", "bad bad bad win")) == [0, 0, 0]
    # in a mixture the turns are those of its own environment
    longer = Paying()
    longer.max_turns = 9
    task = replace(TASK, meta={"mixture": ("short",)})
    mixed = EachInItsOwn({"short": Paying(), "long": longer})
    assert lacking(group_of("on …", "on on on on", environment=mixed, task=task)) == [3, 0]


def test_where_no_turn_is_paid_nothing_is_forfeited():
    blank = Rollout("t", (1, 2), (False, True), (0.0, -1.0), Finish.LENGTH)
    assert forfeited([Played(blank, lacking=3)])[0].forfeits == ()
    assert "forfeits" not in pack(everything()([Group(TASK, (blank,), (Score(1.0),), id=0)])).columns


def test_an_invalid_guess_that_ends_the_game():
    """Wordle says how many turns it takes away, under its own limit of turns."""
    tasks = wordle(words=60, layout="compact", size=1)
    game = Wordle(word_list(60), tasks.environment.layout, 5, "end", {}, {"consistent": 1.0})

    async def said(*guesses):
        episode = await game.start(tasks[0], "0")
        return [await episode.step(Message("assistant", guess)) for guess in guesses]

    other = next(word for word in word_list(60).all if word != tasks[0].answer)
    valid, invalid = asyncio.run(said(other, "?"))
    assert (valid.done, invalid.done, invalid.lacking) == (False, True, 3)
    assert asyncio.run(said(tasks[0].answer))[0].lacking == 0


def test_it_survives_a_file(tmp_path):
    """What another process drew is kept with its forfeits, and with who said what."""
    group = group_of("on …", "on win")
    told = replace(group.rollouts[0], spans=(Span("prompt", 0, 1, "", (Message("system", "a"), Message("user", "b"))),))
    group = replace(group, rollouts=(told, group.rollouts[1]))
    keep(Drawn((group,), {}, 2), tmp_path / "drawn")
    (read,) = kept(tmp_path / "drawn").groups
    assert read == group
