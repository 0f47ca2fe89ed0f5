"""Wordle as an environment: the model guesses, the game tells it the marks, six times at most.

    model   <think>…</think><guess>CRANE</guess>        game   C(✓) R(✓) A(✓) N(x) E(x)
    model   <guess>house</guess>                        game   Not a guess: 'house' is not a word of the list. …
    model   <think>…</think><guess>CRASH</guess>        (the game is won, and over)

A reply that is no guess (none to be read, not five letters, not a word of the list) is told so and uses up a turn, or
ends the game (`invalid`). A word may be guessed twice, which reveals nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from maieutic.errors import ConfigError, DataError, UnknownName
from maieutic.protocols import Episode, Reply
from maieutic.types import Message, Score, Task
from maieutic.wordle.judge import REWARDS, Said, mean
from maieutic.wordle.player import MAX_GUESSES
from maieutic.wordle.rules import LENGTH, Turn, feedback, left
from maieutic.wordle.talk import TAGS, Layout
from maieutic.wordle.words import WordList

INVALID = ("turn", "end")
#: What a game's reward may be made of, beside the means of `REWARDS` over its turns.
OUTCOMES = ("win", "early")


@dataclass(frozen=True)
class Wordle:
    """Games on a list of words. `task.answer` is the secret; every word of the list may be guessed.

    `reward`: what a game is worth, a weighted sum of "win" (1 or 0), "early" (of a win: the share of turns that were
    not needed), and the rewards of `maieutic.wordle.judge`, each the mean over the turns; of a game that stopped short
    of both a win and its last turn, over all that there were to be. Without any, the rewards of the run judge the game.
    `turn_reward` is a weighted sum of the latter, paid turn by turn, for algorithms that credit steps.
    `max_turn_length` is the most tokens of a turn (None: as many as a completion may have).

    Parts of a game's score: `win`, `guesses` (turns used) and `guesses_in_win` (told of wins only, so its mean is that
    over wins), means over turns of `valid_format`, `valid_word`, `violates` (of valid guesses: cannot be the secret)
    and the rewards, and `left_1` … `left_5`, the words that may be the secret after so many turns.
    """

    words: WordList
    layout: Layout = TAGS
    max_turns: int = MAX_GUESSES
    invalid: str = "turn"
    reward: Mapping[str, float] = field(default_factory=lambda: {"win": 1.0})
    turn_reward: Mapping[str, float] = field(default_factory=dict)
    max_turn_length: int | None = None
    at_once: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if self.max_turns < 1:
            raise ConfigError(f"wordle: got max_turns={self.max_turns}; expected at least 1")
        if self.invalid not in INVALID:
            raise UnknownName("way to take an invalid guess", self.invalid, INVALID)
        for name in self.reward:
            if name not in (*OUTCOMES, *REWARDS):
                raise UnknownName("part of a game's reward", name, [*OUTCOMES, *REWARDS])
        for name in self.turn_reward:
            if name not in REWARDS:
                raise UnknownName("part of a turn's reward", name, REWARDS)

    @property
    def scores(self) -> bool:
        """Whether games have scores of their own."""
        return bool(self.reward)

    @property
    def name(self) -> str:
        """For messages."""
        return f"wordle/{self.words.name}"

    async def start(self, task: Task, seed: str) -> Episode:  # noqa: ARG002  (there is no chance in this game)
        """A game whose secret is the task's answer. Raises DataError for one that is not in the list."""
        if task.answer is None or self.words.number(task.answer) is None:
            raise DataError(
                f"task {task.id!r}: got the secret {task.answer!r}, which is not a word of the list "
                f"{self.words.name!r}; expected a task of wordle"
            )
        return Game(self, task, task.answer)


class Game:
    """One game. `history` has the valid guesses, `said` every reply."""

    def __init__(self, rules: Wordle, task: Task, secret: str) -> None:
        self.rules, self.task, self.secret = rules, task, secret
        self.history: tuple[Turn, ...] = ()
        self.said: list[Said] = []

    @property
    def opening(self) -> tuple[Message, ...]:
        """The task's prompt."""
        return self.task.prompt

    @property
    def won(self) -> bool:
        """Whether the secret was guessed."""
        return bool(self.history) and self.history[-1][0] == self.secret

    async def step(self, message: Message) -> Reply:
        """Take a guess, and answer with its marks."""
        rules, text = self.rules, message.content
        said = Said(rules.layout.read(text), rules.layout.formed(text), self.history, self.secret, rules.words)
        self.said.append(said)
        if said.valid:
            guess = str(said.guess)
            self.history += ((guess, feedback(self.secret, guess)),)
        over = self.won or len(self.said) >= rules.max_turns or (rules.invalid == "end" and not said.valid)
        parts = turn_parts(said)
        parts[f"left_{len(self.said)}"] = float(len(left(rules.words, self.history)))
        return Reply(
            (Message("user", self._answer(said)),),
            done=over,
            reward=sum(w * parts[name] for name, w in rules.turn_reward.items()) if rules.turn_reward else None,
            parts=parts,
            note=self._end() if over else "",
            lacking=0 if self.won else rules.max_turns - len(self.said),
        )

    def _answer(self, said: Said) -> str:
        if said.valid:
            return self.rules.layout.answer(self.history[-1])
        return refusal(said, self.rules.layout)

    def _end(self) -> str:
        if self.won:
            return f"won with guess {len(self.said)}"
        return f"lost: the secret was {self.secret}"

    async def score(self) -> Score | None:
        """The game's reward and parts; None where the run's rewards judge it."""
        rules = self.rules
        if not rules.reward:
            return None
        parts = {"win": float(self.won), "guesses": float(len(self.said))}
        # A game that was cut off, by a turn that ran on, is not to be worth more than one that was played to its end.
        unplayed = [0.0] * (0 if self.won else rules.max_turns - len(self.said))
        if self.won:
            parts["guesses_in_win"] = parts["guesses"]
        worth = {
            "win": parts["win"],
            "early": parts["win"] * (rules.max_turns - len(self.said)) / max(1, rules.max_turns - 1),
            **{name: mean([judge(said) for said in self.said] + unplayed) for name, judge in REWARDS.items()},
        }
        total = sum(weight * worth[name] for name, weight in rules.reward.items())
        last = next((said.guess for said in reversed(self.said)), None)
        return Score(total, correct=self.won, parts=parts, answer=last)

    async def close(self) -> None:
        """Nothing to give back."""


def turn_parts(said: Said) -> dict[str, float]:
    """What is recorded of one reply: its form, whether it is a word and heeds what was said, and its rewards."""
    parts = {"valid_format": float(said.formed), "valid_word": float(said.valid)}
    if said.valid:
        parts["violates"] = float(said.violates)
    return parts | {name: judge(said) for name, judge in REWARDS.items()}


def refusal(said: Said, layout: Layout) -> str:
    """What is said of a reply that is no guess, in the layout's own brevity."""
    if layout is not TAGS:
        return "invalid"
    if said.guess is None:
        return "Not a guess: end your reply with <guess>WORD</guess>, after </think>. This used up a turn."
    shown = said.guess[:40]
    if len(said.guess) != LENGTH:
        return f"Not a guess: {shown!r} has {len(said.guess)} letters, not {LENGTH}. This used up a turn."
    return f"Not a guess: {shown!r} is not a word of the list (upper case). This used up a turn."


def game_measures(scores: Sequence[Score]) -> dict[str, float]:
    """Of games that were scored here: `win_rate`, `mean_guesses` of the wins (none without a win), `valid_format`,
    `valid_word`, `violations` (of valid guesses), and `left_1` … after so many turns; means over the games that tell of
    each. Raises DataError without games.
    """
    games = [score for score in scores if "win" in score.parts]
    if not games:
        raise DataError("got no games of wordle; expected scores of `Game.score`, with a part named win")
    names = {"win": "win_rate", "guesses_in_win": "mean_guesses", "violates": "violations"}
    names |= {name: name for name in ("valid_format", "valid_word", *(f"left_{i}" for i in range(1, MAX_GUESSES)))}
    told = {shown: [score.parts[name] for score in games if name in score.parts] for name, shown in names.items()}
    return {shown: mean(values) for shown, values in told.items() if values}
