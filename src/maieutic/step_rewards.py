"""Rewards of steps: how likely the whole is to end correct, estimated at the end of each step.

    prompt  S₁ ▏ S₂ ▏ S₃              MonteCarlo: K continuations from each ▏, the share of them that is correct
            c₁/K  c₂/K  verdict       PrefixScores: what a reward model says of the text up to each ▏

With a reward of 0 or 1 at the end and no discount this is the value of the state. As labels of steps it serves
return-conditioned learning (`rcrl`), and training a process reward model (Math-Shepherd, arXiv 2312.08935: its soft
label is c/K, its hard label c > 0, which is the more optimistic the larger K is: 1 − (1 − q)ᴷ).

Letters: `G` rollouts of a group, `K` continuations of a prefix.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

from maieutic.core.cost import Spent
from maieutic.environments.inline import interjection
from maieutic.errors import ConfigError, RewardError
from maieutic.protocols import Chat, Completion, Reward, Sampler, Sampling, Tool, Verifier
from maieutic.rewards.compose import judge_group
from maieutic.steps import Steps, prompt_end
from maieutic.types import Finish, Rollout, Score, Task

#: (task, prompt tokens, completions up to the end of a step) → for each: P(correct in the end); and what it cost.
Estimate = Callable[[Task, tuple[int, ...], Sequence[tuple[int, ...]]], Awaitable[tuple[list[float], Spent]]]


@dataclass
class StepRewards:
    """A reward that adds step rewards to another one's scores: the estimate at the end of each step but the last, and
    there the verifier's verdict, 1 or 0.

    `spent` counts what estimating has cost so far, in tokens sampled and read (a run adds it to its costs); each
    score's note says what its group has cost. What is asked is asked once: rollouts of a task that begin with the same
    steps share the estimates. A rollout without a reward gets none. Step rewards that `judge` gave are replaced.
    """

    judge: Reward
    verifier: Verifier
    steps: Steps
    estimate: Estimate
    spent: Spent = field(default=Spent(), init=False)
    gives_steps = True

    async def __call__(self, task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        scores = await judge_group(self.judge, task, rollouts)
        ends = [
            [stop - 1 for _, stop in self.steps.of(rollout)] if score.reward is not None else []
            for rollout, score in zip(rollouts, scores)
        ]
        wanted: dict[tuple[int, ...], dict[tuple[int, ...], float]] = {}
        for rollout, places in zip(rollouts, ends):
            for end in places[:-1]:
                prompt, prefix = _cut(rollout, end)
                wanted.setdefault(prompt, {})[prefix] = 0.0
        spent = Spent()
        for prompt, prefixes in wanted.items():
            found, cost = await self.estimate(task, prompt, list(prefixes))
            if len(found) != len(prefixes) or not all(0 <= value <= 1 for value in found):
                raise RewardError(
                    f"estimates of steps on task {task.id!r}: got {found} for {len(prefixes)} prefixes; expected one "
                    "probability each, 0 to 1"
                )
            prefixes.update(zip(list(prefixes), found, strict=True))
            spent = spent.plus(cost)
        self.spent = self.spent.plus(spent)
        verdicts = await asyncio.to_thread(self._verdicts, task, rollouts, ends)
        return [
            self._with(score, rollout, places, wanted, verdict, spent.generated)
            for score, rollout, places, verdict in zip(scores, rollouts, ends, verdicts)
        ]

    def _verdicts(self, task: Task, rollouts: Sequence[Rollout], ends: Sequence[Sequence[int]]) -> list[float]:
        return [float(bool(e) and self.verifier(task, r.text).correct) for r, e in zip(rollouts, ends)]

    def _with(
        self,
        score: Score,
        rollout: Rollout,
        ends: Sequence[int],
        wanted: dict[tuple[int, ...], dict[tuple[int, ...], float]],
        verdict: float,
        cost: int,
    ) -> Score:
        if not ends:
            return score
        found = []
        for end in ends[:-1]:
            prompt, prefix = _cut(rollout, end)
            found.append((end, wanted[prompt][prefix]))
        price = f"{cost} tokens sampled to judge its group's steps" if cost else ""
        note = "; ".join(filter(None, (score.note, price)))
        return replace(score, step_rewards=(*found, (ends[-1], verdict)), note=note)


def _cut(rollout: Rollout, end: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    start = prompt_end(rollout)
    return rollout.tokens[:start], rollout.tokens[start : end + 1]


@dataclass(frozen=True)
class MonteCarlo:
    """P(correct) of a prefix: the share of `continuations` from it that the verifier accepts.

    Continuations are sampled by the policy itself at `temperature`, with the task's tool, and have the room that the
    prefix leaves of `max_completion_length`. All prefixes of a group are asked at once, for the engine to batch. What
    is drawn depends on (seed, task, prefix) only.

    Raises ConfigError unless there is at least one continuation, at a temperature above 0.
    """

    sampler: Sampler
    chat: Chat
    verifier: Verifier
    continuations: int
    max_completion_length: int
    temperature: float = 1.0
    tool: Tool | None = None
    seed: int | str = 0

    def __post_init__(self) -> None:
        if self.continuations < 1 or not self.temperature > 0:
            raise ConfigError(
                f"MonteCarlo: got continuations={self.continuations}, temperature={self.temperature}; expected at "
                "least one continuation, and a temperature above 0: at 0 they would be all the same"
            )

    async def __call__(
        self, task: Task, prompt: tuple[int, ...], prefixes: Sequence[tuple[int, ...]]
    ) -> tuple[list[float], Spent]:
        """The estimates, one a prefix, and the tokens that were chosen and read in the making."""
        made = await asyncio.gather(*(self._continue(task, prompt, prefix) for prefix in prefixes))
        right = await asyncio.to_thread(self._right, task, prefixes, made)
        written = [completion for completions in made for completion in completions]
        chosen = sum(sum(completion.mask) for completion in written)
        given = self.continuations * sum(len(prompt) + len(prefix) for prefix in prefixes)
        return right, Spent(chosen, given + sum(len(completion.mask) for completion in written) - chosen)

    async def _continue(self, task: Task, prompt: tuple[int, ...], prefix: tuple[int, ...]) -> list[Completion]:
        interject, ids = interjection(self.chat, self.tool)
        digest = blake2b(",".join(map(str, prefix)).encode(), digest_size=8).hexdigest()
        sampling = Sampling(
            max_tokens=self.max_completion_length - len(prefix),
            temperature=self.temperature,
            stop_ids=self.chat.stop_ids,
            key=f"{self.seed}/continue/{task.id}/{digest}",
            # a tool is asked with the whole completion, not only with what was continued
            interject=None if interject is None else lambda tokens: interject((*prefix, *tokens)),
            interject_ids=ids,
        )
        return await self.sampler.sample((*prompt, *prefix), sampling, self.continuations)

    def _right(
        self, task: Task, prefixes: Sequence[tuple[int, ...]], made: Sequence[Sequence[Completion]]
    ) -> list[float]:
        def correct(prefix: tuple[int, ...], completion: Completion) -> bool:
            text = self.chat.decode((*prefix, *completion.tokens))
            return completion.finish is not Finish.ERROR and self.verifier(task, text).correct

        return [sum(correct(prefix, c) for c in each) / len(each) for prefix, each in zip(prefixes, made)]


@dataclass(frozen=True)
class PrefixScores:
    """P(correct) of a prefix as a reward model says: `score(task, texts)` → one probability a text, awaited if need be.

    A text is the completion up to the end of a step. What the model spends is not known here, and counts as 0.
    """

    chat: Chat
    score: Callable[[Task, Sequence[str]], Sequence[float] | Awaitable[Sequence[float]]]

    async def __call__(
        self, task: Task, _prompt: tuple[int, ...], prefixes: Sequence[tuple[int, ...]]
    ) -> tuple[list[float], Spent]:
        """The model's scores, one a prefix."""
        said = self.score(task, [self.chat.decode(prefix) for prefix in prefixes])
        return [float(value) for value in (await said if inspect.isawaitable(said) else said)], Spent()


def monte_carlo_steps(judge: Reward, steps: Steps, estimate: MonteCarlo) -> StepRewards:
    """`judge` with Monte-Carlo step rewards; the last step's is the verdict of the same verifier."""
    return StepRewards(judge, estimate.verifier, steps, estimate)
