"""Games of users: a class with a `step`, in a process of its own or cancelled in time, and all that can be wrong."""

from __future__ import annotations

import asyncio
import math
import re
import tokenize
from pathlib import Path

import pytest

from maieutic.backends.toy import STOP, ScriptedSampler, ToyChat
from maieutic.errors import ConfigError
from maieutic.own_environment import environment_of_games, load_environment
from maieutic.play import Player
from maieutic.run.played import named_environment
from maieutic.types import Finish, Group, Message, Score, Task

ROOT = Path(__file__).parents[2]
CHAT = ToyChat(["ask", *"123456789", "higher", "lower", "pardon", "told", "hang", "break", "again"])

GAMES = '''
import asyncio, os, random, time
from maieutic.protocols import Reply
from maieutic.types import Message, Score

class Plain:
    """Counts what it hears; `hang` never comes back, `break` raises."""
    max_turns = 3
    def __init__(self, task, seed, most=9):
        self.heard, self.most, self.luck = [], most, random.Random(seed).random()
    def step(self, message):
        self.heard.append(message.content)
        if message.content == "hang":
            time.sleep(3600)
        if message.content == "break":
            raise ValueError("it broke")
        return "told" if len(self.heard) < self.most else Reply(done=True, note="enough")
    def score(self):
        return Score(float(len(self.heard)), parts={"luck": self.luck, "process": float(os.getpid())})

class Waiting(Plain):
    timeout_seconds = 0.2
    async def step(self, message):
        if message.content == "hang":
            await asyncio.sleep(3600)
        return Plain.step(self, message)

class Wrong:
    def step(self, message):
        return 7

class Opened:
    opening = "ask 1"
    max_turns = 1
    closed = 0
    def __init__(self, answer, prompt): self.answer, self.prompt = answer, prompt
    def step(self, message): return (Message("user", "told"), Message("user", "again"))
    def score(self): return self.answer == "5" and self.prompt == "ask"

def make(turns): return Made(turns)

class Made:
    name = "made"
    def __init__(self, turns): self.max_turns = turns
    async def start(self, task, seed): return None

number = 3
'''


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "games.py"
    path.write_text(GAMES)
    return path


def said(*turns: str):
    """A sampler whose sibling says `turns[sibling]` in every turn; a text of several words is one for each turn."""

    def script(prompt, sibling):
        return ()

    class Siblings:
        async def sample(self, prompt_tokens, params, n):
            who = int(params.key.split("/")[-2])
            words = turns[who].split()
            word = words[min(int(params.key.split("/")[-1]), len(words) - 1)]
            inner = ScriptedSampler(lambda *_: (CHAT.ids[word], STOP))
            return await inner.sample(prompt_tokens, params, n)

    return Siblings()


def play(environment, *turns: str, answer: str = "5") -> Group:
    async def judged(task, rollouts):
        return [Score(-1.0) for _ in rollouts]

    player = Player(said(*turns), CHAT, judged, environment, max_completion_length=30, seed=3)
    return asyncio.run(player.group(Task("t", (Message("user", "ask"),), answer), len(turns), 0))


def test_the_example_is_a_game_in_twenty_lines_of_code() -> None:
    path = ROOT / "examples" / "own_environment.py"
    with path.open("rb") as file:
        tokens = [
            t for t in tokenize.tokenize(file.readline) if t.type in (tokenize.NAME, tokenize.OP, tokenize.NUMBER)
        ]
    assert len({t.start[0] for t in tokens}) <= 20
    group = play(load_environment(f"{path}:Guess"), "5", "4 8 5", "higher", "1 2 3 4 5")
    assert [r.text for r in group.rollouts] == [
        "5", "4 higher 8 lower 5", "higher pardon higher pardon higher pardon higher", "1 higher 2 higher 3 higher 4",
    ]  # fmt: skip
    assert [(s.reward, s.correct) for s in group.scores] == [(1.0, True), (1.0, True), (0.0, False), (0.0, False)]
    assert {r.finish for r in group.rollouts} == {Finish.ENVIRONMENT}


def test_a_game_that_hangs_is_killed_and_the_others_go_on(file: Path) -> None:
    """They are played again in a fresh process from their seed and what was said, and say the same."""
    undisturbed = play(load_environment(f"{file}:Plain", {"most": 4}), "1 2 3", "1 2 3")
    environment = load_environment(f"{file}:Plain", {"most": 4}).with_timeout(2.0)
    group = play(environment, "1 2 3", "1 hang", "1 break", "1 2 3")
    good, hung, broken, _ = group.rollouts
    assert [r.finish for r in group.rollouts] == [Finish.ENVIRONMENT, Finish.ERROR, Finish.ERROR, Finish.ENVIRONMENT]
    assert "no result within 2 s" in hung.note
    assert broken.note.endswith("ValueError: it broke")
    assert [s.reward for s in group.scores] == [3.0, None, None, 3.0]
    assert good.tokens == undisturbed.rollouts[0].tokens
    assert group.scores[0].parts["luck"] == undisturbed.scores[0].parts["luck"] == group.scores[3].parts["luck"]
    assert group.scores[0].parts["process"] != undisturbed.scores[0].parts["process"]


def test_an_async_game_is_cancelled_in_time(file: Path) -> None:
    group = play(load_environment(f"{file}:Waiting"), "1 2 3", "1 hang")
    assert [r.finish for r in group.rollouts] == [Finish.ENVIRONMENT, Finish.ERROR]
    assert "no answer within 0.2 s" in group.rollouts[1].note


def test_what_a_game_may_say(file: Path) -> None:
    group = play(load_environment(f"{file}:Opened"), "1")
    assert CHAT.decode(group.rollouts[0].tokens) == "ask 1 1"
    assert (group.scores[0].reward, group.scores[0].correct) == (1.0, True)
    group = play(load_environment(f"{file}:Opened"), "1", answer="6")
    assert (group.scores[0].reward, group.scores[0].correct) == (0.0, False)
    wrong = play(load_environment(f"{file}:Wrong"), "1")
    assert "got int; expected text, a Message, several, or a Reply" in wrong.rollouts[0].note


def test_a_class_at_hand_is_played_in_this_process() -> None:
    class Echo:
        max_turns = 2

        def __init__(self) -> None:
            self.last = ""

        def step(self, message: Message) -> str:
            self.last = message.content
            return self.last

    group = play(environment_of_games(Echo), "3")
    assert group.rollouts[0].text == "3 3 3"
    assert group.scores[0].reward == -1.0  # it has no score: the run's reward judges


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("Plain", {"least": 1}, "has no option 'least'. It takes: task, seed, most"),
        ("make", {}, "needs turns"),
        ("number", {}, "got int; expected a class whose objects have `step(message)`"),
        ("Gone", {}, "the file has no 'Gone'"),
    ],
)
def test_what_is_no_environment_is_refused(file: Path, name: str, options: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_environment(f"{file}:{name}", options)


def test_an_environment_as_it_stands_and_one_by_name(file: Path) -> None:
    made = load_environment(f"{file}:make", {"turns": 4})
    assert (made.name, made.max_turns) == ("made", 4)
    assert named_environment("guess", {"highest": 15}).max_turns == math.log2(16)
    with pytest.raises(ConfigError, match="did you mean 'guess'"):
        named_environment("gues", {})
