"""Play: from a task to a group of episodes of an environment, scored. The several-turn twin of `maieutic.rollout`.

    Task ─► Environment.start ─► (Chat.prompt ─► Sampler ─► Episode.step ─► Chat.continuation ─► Sampler ─► …) [G]
         ─► Episode.score, or the run's Reward ─► Score   =►   Group

A `Player` stands wherever a `Roller` may; what comes out is a Group as any other, so no algorithm knows of turns.
Letters: `G` siblings of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from maieutic.clock import beside
from maieutic.environments.episodes import Played, Table, dialogue, turn_limit
from maieutic.environments.inline import interjection
from maieutic.environments.leaving import forfeited
from maieutic.environments.turns import Turns
from maieutic.errors import ConfigError, RewardError
from maieutic.loops import together
from maieutic.protocols import Chat, Environment, Reward, Sampler, Sampling, Tool
from maieutic.rewards.compose import added, judge_group
from maieutic.rollout import in_two_parts
from maieutic.types import Finish, Group, Rollout, Score, Task

#: The name of an episode's own score among rewards.
OWN_SCORE = "environment"


@dataclass(frozen=True)
class Player:
    """Everything that turns a task into a group of episodes, apart from the task. Fields as `maieutic.rollout.Roller`.

    `max_completion_length` bounds all that follows the prompt, what the environment says included.

    The siblings of a group play the same game: an episode's seed is made of `seed`, the visit and the task, so that
    they differ by what the policy chose only. Every turn is sampled with a key of its own, (seed, visit, task, sibling,
    turn).

    An episode that has no score of its own is judged by `reward`, on its transcript. With `own_weight`, every episode
    is: its own score is a reward of that weight among the others, named `OWN_SCORE`, and it has to have one.

    What the environment paid for single turns (times `own_weight`) becomes `Score.step_rewards`, beside the outcome and
    never part of it; what turns would have brought that a game lacks which was left, `Score.forfeits`.
    """

    sampler: Sampler
    chat: Chat
    reward: Reward
    environment: Environment
    max_completion_length: int
    temperature: float = 1.0
    tool: Tool | None = None
    seed: int | str = 0
    first: int | None = None
    decided: Callable[[Group], bool] | None = None
    turns: Turns = field(default_factory=Turns, compare=False)
    own_weight: float | None = None

    def __post_init__(self) -> None:
        dialogue(self.chat)
        if self.environment.max_turns < 1:
            raise ConfigError(
                f"environment {self.environment.name!r}: got max_turns = {self.environment.max_turns}; expected at "
                "least 1"
            )
        limit = turn_limit(self.environment)
        if limit is not None and limit < 1:
            raise ConfigError(
                f"environment {self.environment.name!r}: got max_turn_length = {limit}; expected at least 1 token"
            )

    async def group(self, task: Task, n: int, visit: int) -> Group:
        """`n` episodes of one task and their scores; the group's id is `visit`."""
        return await in_two_parts(self._written, task, n, visit, self.first, self.decided)

    def table(self) -> Table:
        """Where its episodes are played."""
        interject, ids = interjection(self.chat, self.tool)
        sampling = Sampling(
            self.max_completion_length, self.temperature, self.chat.stop_ids, interject=interject, interject_ids=ids
        )
        return Table(self.sampler, dialogue(self.chat), self.environment, sampling, self.turns)

    async def _written(self, task: Task, siblings: range, visit: int) -> Group:
        seed = f"{self.seed}/{visit}/{task.id}"
        table = self.table()
        with self.turns.seats(len(siblings)) as seats:

            async def episode(sibling: int) -> Played:
                try:
                    return await table.episode(task, seed, f"{seed}/{sibling}", (visit, sibling))
                finally:
                    seats.leave()

            played = await together([episode(sibling) for sibling in siblings])
        with beside("reward"):
            scores = await self._judged(task, played)
        return Group(task, tuple(each.rollout for each in played), tuple(scores), id=visit)

    async def _judged(self, task: Task, played: Sequence[Played]) -> list[Score]:
        weight = self.own_weight
        fine = [each for each in played if each.rollout.finish is not Finish.ERROR]
        fine = forfeited(fine if weight is None else [each.weighed(weight) for each in fine])
        asked = [each.rollout for each in fine if weight is not None or each.score is None]
        judged = iter(await judge_group(self.reward, task, asked) if asked else ())
        done = iter(fine)
        return [
            _unscored(each.rollout) if each.rollout.finish is Finish.ERROR else self._score(task, next(done), judged)
            for each in played
        ]

    def _score(self, task: Task, each: Played, judged: Iterator[Score]) -> Score:
        own = each.score
        if self.own_weight is None:
            return each.scored(next(judged) if own is None else own)
        if own is None:
            raise RewardError(
                f"environment {self.environment.name!r}, task {task.id!r}: got no score of an episode, and "
                f"{OWN_SCORE!r} is among the rewards; expected a Score (Score(None) for what cannot be scored). Take "
                f"{OWN_SCORE!r} out of the rewards, or let the environment score its episodes"
            )
        return each.scored(added(OWN_SCORE, own, self.own_weight, next(judged)))


def _unscored(rollout: Rollout) -> Score:
    return Score(None, note=f"the episode failed: {rollout.note}")
