"""Playing an episode: the model's turns, and between them what the environment says, as one sequence of tokens.

    tokens   prompt   I guess 50 <end>   \n user: too low \n assistant:   I guess 75 <end>   …
    mask     0        1  1    1  1       0                                1  1    1  1
    span     prompt   assistant          environment                      assistant

Tokens in, tokens out: what the model wrote is never rendered again; the next turn is asked for with exactly the tokens
so far. What the environment says is written by the chat format (`continuation`), once, with `mask` False and
log-prob 0.

    how an episode ends                                finish
    the environment says `done`                        ENVIRONMENT
    the model has had `max_turns` turns                ENVIRONMENT
    a turn is cut by its length limit                  LENGTH   (the environment is not asked about half a turn)
    no room is left for another turn                   LENGTH   (what was said last is left out)
    the environment raises, or takes too long          ERROR
    the opening does not fit the model                 ERROR

One that ends with LENGTH was left: the turns that it lacks are counted (`leaving`).
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from maieutic.environments.asking import TIMEOUT, EpisodeFailed, ask
from maieutic.environments.openings import Opening, opening_of
from maieutic.environments.turns import Turns
from maieutic.errors import ModelError, PromptTooLong
from maieutic.protocols import Chat, Completion, Environment, Episode, Reply, Sampler, Sampling
from maieutic.types import Finish, Message, Rollout, Score, Span, Task


class Dialogue(Chat, Protocol):
    """A chat that can write what is said between two turns."""

    def continuation(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Tokens between the end of an assistant's turn and the start of its next one, with `messages` in between."""
        ...


def dialogue(chat: Any) -> Dialogue:
    """The chat, if it can write conversations of several turns; ModelError otherwise."""
    if not callable(getattr(chat, "continuation", None)):
        raise ModelError(
            f"got a chat ({type(chat).__name__}) without `continuation(messages)`, which writes what is said between "
            "two turns; expected one for an environment. A model that is asked with labels cannot be played with"
        )
    found: Dialogue = chat
    return found


@dataclass(frozen=True)
class Played:
    """An episode as it went.

    `score` is the environment's own (None: it has none). `turn_rewards` are pairs (index of the turn's last chosen
    token, what it was paid); `parts` the means over the turns that told of each; `note` what was said at the end.
    `lacking`: turns that there were still to be when it was left, one that was cut among them; `forfeits`: what these
    are paid (see `leaving`).
    """

    rollout: Rollout
    score: Score | None = None
    turn_rewards: tuple[tuple[int, float], ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    lacking: int = 0
    forfeits: tuple[float, ...] = ()

    def weighed(self, weight: float) -> Played:
        """The same with so many times the pay for its turns; without any for a weight of 0."""
        paid = tuple((at, weight * reward) for at, reward in self.turn_rewards) if weight else ()
        return replace(self, turn_rewards=paid)

    def scored(self, score: Score) -> Score:
        """`score`, the environment's or a reward's, with what the turns brought. One that is unscorable stays so."""
        known = score.reward is not None
        steps, forfeits = ((*score.step_rewards, *self.turn_rewards), self.forfeits) if known else ((), ())
        missing = f"left with {len(forfeits)} turns to come, {forfeits[0]:g} each" if forfeits else ""
        note = "; ".join(filter(None, (score.note, self.note, missing)))
        return replace(
            score, step_rewards=steps, parts={**self.parts, **score.parts}, note=note, forfeits=forfeits
        )  # fmt: skip


def turn_limit(environment: Environment) -> int | None:
    """Tokens of one turn at most, where the environment says so (`max_turn_length`)."""
    return getattr(environment, "max_turn_length", None)


def answer_limit(environment: Environment) -> float | None:
    """Seconds for each answer of an environment (`timeout_seconds`); None for one that answers `at_once`."""
    if getattr(environment, "at_once", False):
        return None
    return float(getattr(environment, "timeout_seconds", None) or TIMEOUT)


class Transcript:
    """What was said so far, as tokens with masks, log-probs and spans, and what the turns brought."""

    def __init__(self, prompt: tuple[int, ...], text: str = "", messages: tuple[Message, ...] = ()) -> None:
        self.tokens = list(prompt)
        self.mask = [False] * len(prompt)
        self.logprobs = [0.0] * len(prompt)
        self.spans = [Span("prompt", 0, len(prompt), text, messages)]
        self.version: int | None = None
        self.turns, self.lacking = 0, 0
        self.rewards: list[tuple[int, float]] = []
        self.parts: dict[str, list[float]] = defaultdict(list)
        self.totals: dict[str, float] = {}
        self.note = ""

    def turn(self, completion: Completion, chat: Chat) -> str:
        """The model's turn is over; its text."""
        start = len(self.tokens)
        self._add(completion.tokens, completion.mask, completion.logprobs)
        self.turns += 1
        if self.version is None:
            self.version = completion.version  # of the oldest weights that took part
        cuts = [i for i in range(1, len(completion.mask)) if completion.mask[i] != completion.mask[i - 1]]
        shown = ""
        for begin, end in zip([0, *cuts], [*cuts, len(completion.mask)]):
            text = chat.decode(completion.tokens[:end])
            role = "assistant" if completion.mask[begin] else "tool"
            self.spans.append(Span(role, start + begin, start + end, text.removeprefix(shown)))
            shown = text
        return shown

    def reply(self, tokens: Sequence[int], messages: Sequence[Message]) -> None:
        """What the environment said after it."""
        start = len(self.tokens)
        self._add(tokens, (False,) * len(tokens), (0.0,) * len(tokens))
        text, told = said(messages), tuple(messages)
        plain = told == (Message("user", text),)
        self.spans.append(Span("environment", start, len(self.tokens), text, () if plain else told))

    def unsaid(self) -> None:
        """Leave out what the environment said last: there is no room for an answer to it."""
        start = self.spans.pop().start
        for column in (self.tokens, self.mask, self.logprobs):
            del column[start:]

    def brought(self, reply: Reply) -> None:
        """What the turn was paid, and the numbers told of it."""
        if reply.reward is not None:
            last = len(self.mask) - 1 - self.mask[::-1].index(True)
            self.rewards.append((last, float(reply.reward)))
        for name, value in reply.parts.items():
            self.parts[name].append(float(value))
        if reply.done or reply.note:  # what was shown last is shown to people only
            self.note = reply.note or said(reply.messages)

    @property
    def last_turn(self) -> str:
        """The text of the model's last turn."""
        begin = max(i for i, span in enumerate(self.spans) if span.role in ("prompt", "environment"))
        return "".join(span.text for span in self.spans[begin + 1 :])

    def _add(self, tokens: Sequence[int], mask: Sequence[bool], logprobs: Sequence[float]) -> None:
        self.tokens += tokens
        self.mask += mask
        self.logprobs += logprobs


def said(messages: Sequence[Message]) -> str:
    """What was said, without who said it."""
    return "\n".join(message.content for message in messages)


@dataclass(frozen=True)
class Table:
    """Where a model plays: everything but the task.

    `sampling` says how turns are written; its `max_tokens` are those of a whole completion, what the environment says
    included, and its `key` is not read. Everybody at one table takes turns together.
    """

    sampler: Sampler
    chat: Dialogue
    environment: Environment
    sampling: Sampling
    turns: Turns = field(default_factory=Turns)

    async def episode(self, task: Task, seed: str, key: str, place: tuple[int, int]) -> Played:
        """One attempt at a task. `seed` is the environment's, `key` with the number of a turn is the sampler's.

        `place`, (visit, sibling), says when it is this episode's turn; the caller holds a seat for it. Raises what the
        sampler raises, but for an opening that does not fit the model.
        """
        environment, limit = self.environment, answer_limit(self.environment)
        made, episode, score = Transcript(()), None, None
        try:
            episode, opening = await ask(f"{environment.name}.start", lambda: _begun(environment, task, seed), limit)
            made = Transcript(*_shown(self.chat, opening_of(self.chat, opening, episode), task))
            finish = await self._turns(episode, made, key, place, limit)
            score = await ask(f"{environment.name}.score", episode.score, limit)
            _check_score(environment.name, score)
            made.totals = dict(getattr(episode, "parts", {}))
        except (EpisodeFailed, PromptTooLong) as error:
            finish, made.note, score = Finish.ERROR, str(error), None
        finally:
            if episode is not None:
                await _surely(_closed(environment.name, episode, limit))
        return self._played(task, made, finish, score, place[1], getattr(episode, "judges_last_turn", False))

    async def _turns(
        self, episode: Episode, made: Transcript, key: str, place: tuple[int, int], limit: float | None
    ) -> Finish:
        end = len(made.tokens) + self.sampling.max_tokens
        name = self.environment.name
        turns = min(self.environment.max_turns, getattr(episode, "max_turns", self.environment.max_turns))
        while True:
            made.lacking = turns - made.turns
            room = end - len(made.tokens)
            params = replace(
                self.sampling, max_tokens=min(room, turn_limit(self.environment) or room), key=f"{key}/{made.turns}"
            )
            await self.turns.turn(place)
            try:
                (completion,) = await self.sampler.sample(tuple(made.tokens), params, 1)
            except PromptTooLong:
                if not made.turns:
                    raise
                made.unsaid()
                return Finish.LENGTH
            text = made.turn(completion, self.chat)
            if completion.finish is not Finish.STOP:
                return completion.finish
            step = partial(episode.step, Message("assistant", text))
            reply = _checked(name, await ask(f"{name}.step", step, limit))
            made.brought(reply)
            made.lacking = min(reply.lacking, turns - made.turns) if reply.done else turns - made.turns
            if reply.done or made.turns >= self.environment.max_turns:
                return Finish.ENVIRONMENT
            tokens = self.chat.continuation(reply.messages)
            if len(made.tokens) + len(tokens) >= end:
                return Finish.LENGTH
            made.reply(tokens, reply.messages)

    def _played(
        self, task: Task, made: Transcript, finish: Finish, score: Score | None, sibling: int, last_only: bool
    ) -> Played:
        start = made.spans[0].stop
        rollout = Rollout(
            task_id=task.id,
            tokens=tuple(made.tokens),
            mask=tuple(made.mask),
            logprobs=tuple(made.logprobs),
            finish=finish,
            text=made.last_turn if last_only else self.chat.decode(made.tokens[start:]),
            spans=tuple(made.spans),
            sibling=sibling,
            version=made.version or 0,
            temperature=self.sampling.temperature or 1.0,
            note=made.note if finish is Finish.ERROR else "",
        )
        if finish is Finish.ERROR:
            return Played(rollout)
        parts = {name: sum(values) / len(values) for name, values in made.parts.items()}
        return Played(rollout, score, tuple(made.rewards), {**parts, **made.totals}, made.note, made.lacking)


def _shown(chat: Chat, opening: Opening, task: Task) -> tuple[tuple[int, ...], str, tuple[Message, ...]]:
    """An opening's tokens, and what the model is shown where that is not the task's prompt: the messages, or, where its
    template says more than these, the text that it made."""
    if opening.messages is None:
        return opening.tokens, chat.decode(opening.tokens), ()
    return opening.tokens, "", () if opening.messages == task.prompt else opening.messages


async def _begun(environment: Environment, task: Task, seed: str) -> tuple[Episode, tuple[Message, ...]]:
    episode = await environment.start(task, seed)
    return episode, tuple(episode.opening)


async def _closed(name: str, episode: Episode, limit: float | None) -> None:
    with suppress(EpisodeFailed):  # it was told once, and the episode is over
        await ask(f"{name}.close", episode.close, limit)


async def _surely(work: Coroutine[Any, Any, None]) -> None:
    """Do it to its end, also where whoever waits is cancelled meanwhile."""
    job = asyncio.ensure_future(work)
    try:
        await asyncio.shield(job)
    except asyncio.CancelledError:
        await job
        raise


def _checked(name: str, reply: Any) -> Reply:
    if not isinstance(reply, Reply):
        raise EpisodeFailed(f"{name}.step: got {type(reply).__name__}; expected a maieutic.protocols.Reply")
    if not 0 <= reply.lacking < math.inf:
        raise EpisodeFailed(f"{name}.step: got lacking = {reply.lacking}; expected a number of turns")
    numbers = {"reward": reply.reward, **reply.parts}
    for what, value in numbers.items():
        if value is not None and not math.isfinite(value):
            raise EpisodeFailed(f"{name}.step: got {value} for {what!r}; expected a finite number")
    return reply


def _check_score(name: str, score: Any) -> None:
    if score is not None and not isinstance(score, Score):
        raise EpisodeFailed(f"{name}.score: got {type(score).__name__}; expected a maieutic.types.Score or None")
    if score is not None and score.reward is not None and not math.isfinite(score.reward):
        raise EpisodeFailed(f"{name}.score: got a reward of {score.reward}; expected a finite number, or None")


def turns_of(rollout: Rollout) -> tuple[Message, ...]:
    """What was said after the opening, turn by turn: the model's turns (role "assistant") and what was said between
    them, by whom it was ("user", "tool"). A rollout of one turn is that turn.

    >>> turns_of(rollout)
    (Message(role='assistant', content='50'), Message(role='user', content='too low'), …)

    What a tool wrote within a turn is part of the turn.
    """
    if not any(span.role == "environment" for span in rollout.spans):
        return (Message("assistant", rollout.text),)
    found, begins = list[Message](), True
    for span in rollout.spans:
        if span.role == "environment":
            found += span.messages or (Message("user", span.text),)
            begins = True
        elif span.role in ("assistant", "tool"):
            if begins:
                found.append(Message("assistant", ""))
            found[-1] = Message("assistant", found[-1].content + span.text)
            begins = False
    return tuple(found)


def turn_count(rollout: Rollout) -> int:
    """How many turns the model had: those that the environment answered, and the last one."""
    return sum(message.role == "assistant" for message in turns_of(rollout)) if rollout.completion_length else 0
