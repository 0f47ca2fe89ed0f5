"""Wordle as tasks: whole games, played turn by turn, or snapshots of games, answered once.

    wordle()                                  games: the secrets of a split, played in `maieutic.environments.wordle`
    wordle(kind="snapshots")                  the middle of a game that a scripted player played: what is guessed next?
    wordle(kind="snapshots", rows="x.jsonl")  rows with prompt, word_list, past_guess_history, secret

A task's `answer` is the secret; `meta` has `secret`, `layout`, `word_list` (see `maieutic.wordle.words.word_list_at`)
and `past_guess_history`, a list as text, as courses on GRPO write it. Both kinds show how the scripted player goes on:
`meta["solution"]`, and for games `meta["demonstrated_turns"]`, pairs (role, text) of the whole game.

A secret of the split "test" is never one of "train", but is a word that may be guessed: who learns to play meets it in
demonstrations as a guess, never as what is looked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from maieutic.environments.wordle import Wordle
from maieutic.errors import ConfigError, DataError, UnknownName
from maieutic.protocols import Tool, Verifier
from maieutic.tasks.files import existing, messages_of, read_rows
from maieutic.tasks.taskset import Lazy, Tasks
from maieutic.types import Message, Task, Verdict
from maieutic.wordle.player import MAX_GUESSES, Player, play
from maieutic.wordle.rules import LENGTH, MARKS, Turn, is_word, parse_history, rendered
from maieutic.wordle.rules import left as words_left
from maieutic.wordle.talk import COMPACT, LETTERS, PREFILL, TAGS, Layout, begun, layout_of
from maieutic.wordle.words import HELD_OUT, WordList, word_list, word_list_at

KINDS = ("games", "snapshots")
SNAPSHOTS: Mapping[str, int] = {"train": 2_000, "test": 300, "all": 2_000}
COLUMNS = ("prompt", "word_list", "past_guess_history", "secret")


def wordle(
    split: str = "train",
    *,
    kind: str = "games",
    size: int | None = None,
    words: int | None = None,
    word_file: str | None = None,
    held_out: int = HELD_OUT,
    layout: str = "tags",
    rows: str | None = None,
    prefill: bool = False,
    skill: float | Sequence[float] = 0.5,
    demonstrations: float | Sequence[float] = 1.0,
    seed: int = 0,
    max_turns: int = MAX_GUESSES,
    max_turn_length: int | None = None,
    invalid: str = "turn",
    reward: Mapping[str, float] | None = None,
    turn_reward: Mapping[str, float] | None = None,
    verifier: Verifier | None = None,
    tool: Tool | None = None,
) -> Tasks:
    """Wordle: find a secret word in six guesses; whole games, or single guesses in the middle of one.

    `kind` "games" or "snapshots"; `size` tasks (games: by default each secret of the split once). `words`: a shorter
    list, for small models; `word_file`: a list of your own; `held_out` per cent of the secrets are of the split "test".
    `layout` "tags" (<think>, <guess>), "compact" (a word) or "letters" (a word, spelled). `prefill` begins the
    reply of a snapshot with `<think>`.

    `skill` of the scripted player in whose games snapshots lie, 0 to 1, or three numbers for ✓, - and x (see
    `maieutic.wordle.player`); `demonstrations` the same of the one who shows how to go on, or plays the whole game.

    Of games: `max_turns`, `max_turn_length` in tokens, `invalid` guesses ("turn": they use up a turn, "end": they end
    the game), `reward` and `turn_reward` as in `maieutic.environments.wordle`; `reward = {}` leaves it to the run's
    rewards.
    """
    talk = _checked(kind, size, layout, prefill, rows)
    known = word_list(words, word_file, held_out)
    if rows is not None:
        found = rows_of(Path(rows), known if word_file or words else None, size)
        return replace(found, verifier=verifier or found.verifier, tool=tool)
    secrets = known.secrets(split)
    teacher, name = Player.of_skill(demonstrations), f"wordle/{kind}/{known.name}/{split}/{seed}"
    if kind == "snapshots":
        number = SNAPSHOTS[split] if size is None else size
        make = Snapshots(name, known, secrets, talk, Player.of_skill(skill), teacher, seed, prefill, max_turns)
        return Tasks(name, Lazy(number, make), verifier or SecretGuessed(talk), tool)
    game = Wordle(
        known, talk, max_turns, invalid, {"win": 1.0} if reward is None else dict(reward), dict(turn_reward or {}),
        max_turn_length,
    )  # fmt: skip
    games = Games(name, known, secrets, talk, teacher, seed, max_turns)
    return Tasks(
        name,
        Lazy(len(secrets) if size is None else size, games),
        verifier or SecretGuessed(talk),
        tool,
        environment=game,
    )


def _checked(kind: str, size: int | None, layout: str, prefill: bool, rows: str | None) -> Layout:
    """The layout; raises ConfigError for options that contradict each other."""
    if kind not in KINDS:
        raise UnknownName("kind of wordle tasks", kind, KINDS)
    if size is not None and size < 1:
        raise ConfigError(f"wordle: got size={size!r}; expected at least one task")
    talk = layout_of(layout)
    if prefill and (kind == "games" or not talk.thinks):
        raise ConfigError(
            'wordle: got prefill = true; expected it with kind = "snapshots" and layout = "tags" only: in a game '
            "every turn begins by itself, and a compact reply has no <think>"
        )
    if rows is not None and kind == "games":
        raise ConfigError('wordle: got rows with kind = "games"; rows are snapshots, expected kind = "snapshots"')
    return talk


@dataclass(frozen=True)
class SecretGuessed:
    """Whether the guess with which a text ends is the secret. Of a whole game: the last guess."""

    layout: Layout

    def __call__(self, task: Task, text: str) -> Verdict:
        tail = {COMPACT.name: 1, LETTERS.name: LENGTH}.get(self.layout.name)
        guess = self.layout.read(begun(task) + text if tail is None else " ".join(text.split()[-tail:]))
        if guess is None:
            return Verdict(False, why="no guess at the end")
        return Verdict(guess == task.answer, guess)


def _meta(words: WordList, history: Sequence[Turn], secret: str, layout: Layout) -> dict[str, Any]:
    told = str([[guess, rendered(guess, marks)] for guess, marks in history])
    return {"word_list": words.reference, "past_guess_history": told, "secret": secret, "layout": layout.name}


@dataclass(frozen=True)
class Games:
    """Index → a game. The secrets come in turn, in an order by `seed`; the game that is shown is drawn for it."""

    name: str
    words: WordList
    secrets: tuple[str, ...]
    layout: Layout
    teacher: Player
    seed: int
    max_turns: int

    def __call__(self, index: int) -> Task:
        lap, place = divmod(index, len(self.secrets))
        secret = Random(f"{self.seed}/secrets/{lap}").sample(self.secrets, len(self.secrets))[place]
        history = play(secret, self.teacher, self.words, Random(f"{self.name}/{index}"), self.max_turns)
        # A game ends with its last guess: what is told after it is not shown.
        turns = [
            (m.role, m.content)
            for i, turn in enumerate(history)
            for m in (
                Message("assistant", demonstrated(self.layout, turn[0], self.words, history[:i])),
                Message("user", self.layout.answer(turn)),
            )
        ][:-1]
        shown = {"solution": "\n".join(text for _, text in turns), "demonstrated_turns": tuple(turns)}
        return Task(
            f"{self.name}/{index}",
            self.layout.opening(),
            secret,
            {**_meta(self.words, (), secret, self.layout), **shown},
        )


@dataclass(frozen=True)
class Snapshots:
    """Index → the state of a game that `player` played, before one of its guesses, and what `teacher` would say."""

    name: str
    words: WordList
    secrets: tuple[str, ...]
    layout: Layout
    player: Player
    teacher: Player
    seed: int
    prefill: bool
    max_turns: int

    def __call__(self, index: int) -> Task:
        random = Random(f"{self.name}/{index}")
        secret = random.choice(self.secrets)
        game = play(secret, self.player, self.words, random, self.max_turns)
        history = game[: random.randrange(len(game))]
        guess = self.teacher.guess(self.words, history, random)
        reply = demonstrated(self.layout, guess, self.words, history)
        prompt = self.layout.opening(history)
        if self.prefill:
            prompt = (*prompt, Message("assistant", PREFILL))
            reply = reply.removeprefix("<think>")
        meta = {**_meta(self.words, history, secret, self.layout), "solution": reply}
        return Task(f"{self.name}/{index}", prompt, secret, meta)


def demonstrated(layout: Layout, guess: str, words: WordList, history: Sequence[Turn]) -> str:
    """A scripted player's reply, with a thought where the layout has room for one."""
    return layout.write(guess, thought(words, history) if layout.thinks else "")


def thought(words: WordList, history: Sequence[Turn]) -> str:
    """A scripted player's reasoning: how many words are left, and some of them."""
    left = [words.all[number] for number in words_left(words, history)]
    if not history:
        return f"Nothing is known yet: {len(left)} words are left."
    if len(left) == 1:
        return f"Only {left[0]} is left."
    return f"{len(left)} words are left: {', '.join(left[:8])}{' and others' if len(left) > 8 else ''}."


def rows_of(path: Path, words: WordList | None, size: int | None = None) -> Tasks:
    """Snapshots from a file (.jsonl, .json, .csv, .parquet) with the columns `COLUMNS`, as courses on GRPO have them.

    `words` is taken in place of the lists that the rows name, which are looked for beside the file. Raises DataError,
    with the line, for what cannot be used.
    """
    path = existing(path)
    tasks = [
        _task(row, where, f"{path.stem}/{number}", path.parent, words)
        for number, (where, row) in enumerate(read_rows(path)[:size])
    ]
    if not tasks:
        raise DataError(f"{path}: got no rows; expected at least one with {', '.join(COLUMNS)}")
    return Tasks(path.stem, tasks, SecretGuessed(TAGS))


def _task(row: Mapping[str, Any], where: str, name: str, folder: Path, words: WordList | None) -> Task:
    missing = [column for column in COLUMNS if row.get(column) is None and (column != "word_list" or words is None)]
    if missing:
        raise DataError(f"{where}: no {missing[0]!r}; expected the columns {', '.join(COLUMNS)}")
    secret = str(row["secret"]).strip().upper()
    if not is_word(secret):
        raise DataError(f"{where}: got the secret {row['secret']!r}; expected a word of five letters A to Z")
    history = parse_history(row["past_guess_history"], where)
    if words is None:
        words = _named_list(str(row["word_list"]), where, folder)
    meta = {**row, **_meta(words, history, secret, TAGS)}
    return Task(name, messages_of(row["prompt"], where), secret, meta)


def _named_list(said: str, where: str, folder: Path) -> WordList:
    for place in (Path(said), folder / said, folder / Path(said).name):
        if place.is_file():
            return word_list_at(str(place))
    raise DataError(
        f"{where}: the word list {said!r} is not there, nor beside the file; put it there, or give a list of your own "
        "(word_file), or words = 1551 for the one that comes along"
    )


def wordle_vocabulary(words: WordList, layout: str = "compact") -> list[str]:
    """Every word that can occur in a layout for small models with this list, sorted: a whole tokenizer."""
    letters = sorted({letter for word in words.all for letter in word})
    placed = {f"{place}{letter}{mark}" for place in range(1, LENGTH + 1) for letter in letters for mark in MARKS}
    replies = {part for word in words.all for part in layout_of(layout).write(word, "").split()}
    return sorted({"guess", "invalid", *placed, *replies})
