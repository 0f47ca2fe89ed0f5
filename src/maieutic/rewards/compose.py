"""Rewards of rewards: a verifier's verdict as a reward, weighted sums, gates.

A reward is `async (task, rollouts [G]) -> [Score] [G]`.

    weighted({"answer": answer_reward(AnswerVerifier()), "format": think_format()}, {"answer": 1.0, "format": 0.1})

Keep the weight of format at a tenth of correctness or less, so that form can never pay for being wrong. A part that
cannot be scored makes the whole unscorable: a sum without one of its parts is another reward.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence

from maieutic.errors import ConfigError, RewardError
from maieutic.protocols import Reward, Verifier
from maieutic.rewards.lift import FailureBudget, PlainReward, load_reward, reward, unscorable
from maieutic.types import Finish, Rollout, Score, Task

__all__ = [
    "FailureBudget", "PlainReward", "added", "answer_reward", "gate", "judge_group", "load_reward", "nothing", "reward",
    "weighted",
]  # fmt: skip


def _name(judge: Reward) -> str:
    return getattr(judge, "name", None) or getattr(judge, "__name__", None) or type(judge).__name__


def gives_steps(judge: Reward) -> bool:
    """Whether a reward says of itself that it gives rewards of steps. One that is not known to may give them too."""
    return getattr(judge, "gives_steps", False)


def _finite(what: str, value: float) -> float:
    if not math.isfinite(value):
        raise ConfigError(f"{what}: got {value}; expected a finite number")
    return value


async def judge_group(judge: Reward, task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
    """The scores `[G]` of a group. Raises `RewardError` unless there is exactly one a rollout, each finite or None."""
    scores = await judge(task, rollouts)
    if len(scores) != len(rollouts):
        raise RewardError(
            f"reward {_name(judge)!r} on task {task.id!r}: got {len(scores)} scores for {len(rollouts)} rollouts; "
            "expected exactly one a rollout, in order. Remedy: return Score(None) for what cannot be scored"
        )
    for score in scores:
        if score.reward is not None and not math.isfinite(score.reward):
            raise RewardError(
                f"reward {_name(judge)!r} on task {task.id!r}: got {score.reward}; expected a finite number, or None "
                "for a rollout that cannot be scored"
            )
    return scores


def answer_reward(
    verifier: Verifier, *, correct: float = 1.0, wrong: float = 0.0, truncated: float | None = None
) -> Reward:
    """`correct` or `wrong`, by the verifier's verdict on `rollout.text`; between them where it gives a share.

    A rollout that failed is unscorable. One that the length limit cut is judged like the others (its note says that
    it was cut), unless `truncated` gives all of these one reward.
    """
    for what, value in (("correct", correct), ("wrong", wrong), ("truncated", truncated or 0.0)):
        _finite(f"answer_reward({what}=...)", value)

    def score(task: Task, rollout: Rollout) -> Score:
        if rollout.finish is Finish.ERROR:
            return unscorable(rollout)
        cut = rollout.finish is Finish.LENGTH
        verdict = verifier(task, rollout.text)
        share = float(verdict.correct) if verdict.share is None else verdict.share
        value = wrong + (correct - wrong) * share if 0 < share < 1 else correct if share else wrong
        if cut and truncated is not None:
            value = truncated
        note = "; ".join(filter(None, ("cut by the length limit" if cut else "", verdict.why)))
        parts = {"answer": value, **verdict.parts}
        return Score(value, correct=verdict.correct, parts=parts, note=note, answer=verdict.answer)

    def score_all(task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        return [score(task, rollout) for rollout in rollouts]

    async def answer(task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        # In a thread: a verifier may wait for its LaTeX worker, and the event loop has samplers to serve.
        return await asyncio.to_thread(score_all, task, rollouts)

    return answer


def weighted(rewards: Mapping[str, Reward], weights: Mapping[str, float]) -> Reward:
    """Σ weights[name] · rewards[name]. `parts` holds each reward unweighted, and the parts of a part as "name/part".

    `correct` and `answer` are the first that a part gives. Step rewards are weighted like the rest. A part of weight 0
    is watched: it is recorded, and what it cannot score has a reward all the same. Raises `ConfigError` unless both
    name the same rewards and weights are finite.
    """
    if not rewards or set(rewards) != set(weights):
        raise ConfigError(
            f"weighted: got rewards {', '.join(sorted(rewards)) or 'none'} and weights for "
            f"{', '.join(sorted(weights)) or 'none'}; expected one weight for each reward"
        )
    for name, weight in weights.items():
        _finite(f"weighted: weight of {name!r}", weight)

    async def sum_of_rewards(task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        judged = await asyncio.gather(*(judge_group(judge, task, rollouts) for judge in rewards.values()))
        return [_sum({name: scores[i] for name, scores in zip(rewards, judged)}, weights) for i in range(len(rollouts))]

    sum_of_rewards.gives_steps = any(gives_steps(rewards[name]) for name in rewards if weights[name])  # type: ignore[attr-defined]
    return sum_of_rewards


def _sum(scores: Mapping[str, Score], weights: Mapping[str, float]) -> Score:
    total: float | None = 0.0
    parts: dict[str, float] = {}
    steps: list[tuple[int, float]] = []
    for name, score in scores.items():
        if not weights[name]:  # only watched: what it cannot score is scored all the same
            pass
        elif score.reward is None or total is None:
            total = None
        else:
            total += weights[name] * score.reward
        if score.reward is not None:
            parts[name] = score.reward
        if list(score.parts.values()) != [score.reward]:
            parts |= {f"{name}/{part}": value for part, value in score.parts.items()}
        steps += [(token, weights[name] * value) for token, value in score.step_rewards if weights[name]]
    return Score(
        total,
        correct=next((score.correct for score in scores.values() if score.correct is not None), None),
        parts=parts,
        step_rewards=tuple(steps) if total is not None else (),
        note="; ".join(f"{name}: {score.note}" for name, score in scores.items() if score.note),
        answer=next((score.answer for score in scores.values() if score.answer is not None), None),
        asked=_asked(*scores.values()),
    )


async def nothing(task: Task, rollouts: Sequence[Rollout]) -> list[Score]:  # noqa: ARG001
    """0 for each: the sum of no rewards, to which another one is added."""
    return [Score(0.0) for _ in rollouts]


def added(name: str, own: Score, weight: float, others: Score) -> Score:
    """weight · own + others, `others` being such a sum already. `own` is the part of that name; its own parts keep
    their names. What cannot be scored, and weights of 0, as in `weighted`."""
    both = (own, others) if weight else (others,)
    known = all(score.reward is not None for score in both)
    total = (weight * (own.reward or 0.0) if weight else 0.0) + (others.reward or 0.0)
    steps = tuple((token, weight * value) for token, value in own.step_rewards if weight)
    return Score(
        total if known else None,
        correct=own.correct if own.correct is not None else others.correct,
        parts={**own.parts, **({} if own.reward is None else {name: own.reward}), **others.parts},
        step_rewards=(*steps, *others.step_rewards) if known else (),
        note="; ".join(filter(None, (own.note, others.note))),
        answer=own.answer if own.answer is not None else others.answer,
        asked=_asked(own, others),
    )


def _asked(*scores: Score) -> dict[str, float]:
    """What was asked of other models for any of the scores."""
    names = dict.fromkeys(name for score in scores for name in score.asked)
    return {name: sum(score.asked.get(name, 0.0) for score in scores) for name in names}


def gate(gating: Reward, judge: Reward) -> Reward:
    """gating · judge: a gate of 0 takes everything, a gate of 1 lets everything through.

    The gate must lie in [0, 1] (`RewardError` otherwise). Its value is recorded as the part "gate". A negative reward
    is softened by a closed gate; gate rewards that are not negative.
    """

    async def gated(task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        gates, scores = await asyncio.gather(
            judge_group(gating, task, rollouts), judge_group(judge, task, rollouts)
        )  # fmt: skip
        return [_gated(_name(gating), opened, score) for opened, score in zip(gates, scores)]

    gated.gives_steps = gives_steps(judge)  # type: ignore[attr-defined]
    return gated


def _gated(name: str, opened: Score, score: Score) -> Score:
    note = "; ".join(filter(None, (opened.note and f"gate: {opened.note}", score.note)))
    if opened.reward is None:
        return Score(None, score.correct, score.parts, note=note, answer=score.answer, asked=_asked(opened, score))
    if not 0 <= opened.reward <= 1:
        raise RewardError(f"gate {name!r}: got {opened.reward}; expected a value between 0 and 1")
    return Score(
        None if score.reward is None else opened.reward * score.reward,
        correct=score.correct if score.correct is not None else opened.correct,
        parts={"gate": opened.reward, **score.parts},
        step_rewards=tuple((token, opened.reward * value) for token, value in score.step_rewards),
        note=note,
        answer=score.answer if score.answer is not None else opened.answer,
        asked=_asked(opened, score),
    )
