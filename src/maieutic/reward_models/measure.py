"""A reward model on judged completions that it has not learned from; see `core.judging` for what the numbers are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from maieutic.core.judging import (
    auc,
    bce,
    brier,
    expected_calibration_error,
    first_error_accuracy,
    pair_accuracy,
)
from maieutic.models.reward_model import RewardModel
from maieutic.types import Group


@dataclass(frozen=True)
class Asked:
    """What a model says of completions (or pairs, chosen first) beside their labels: `said` and `labels` `[R][K]`, one
    number a completion or step (of pairs the two scores, without labels), and `prompts [R]`."""

    kind: str
    said: Sequence[Sequence[float]]
    labels: Sequence[Sequence[float]]
    prompts: Sequence[int]

    def flat(self) -> tuple[list[float], list[float]]:
        """Probabilities and labels of everything that was asked. Of a pair: P(the one with the higher score is better)
        = σ(|Δ|), and whether it is; equal scores are right by half."""
        if self.kind == "pairs":
            apart = [chosen - rejected for chosen, rejected in self.said]
            return [1 / (1 + math.exp(-min(abs(d), 700.0))) for d in apart], [(d > 0) + (d == 0) / 2 for d in apart]
        return [p for row in self.said for p in row], [z for row in self.labels for z in row]


def measure(model: RewardModel, groups: Sequence[Group]) -> dict[str, float]:
    """What the kind of model is for: `count` completions (or pairs, or labelled steps), and its measures.

    outcome   auc, pair_accuracy, bce, brier, ece, accuracy
    pairs     pair_accuracy, margin (the mean of s_c − s_r)
    process   of steps: auc, bce, brier, ece, accuracy; of solutions: first_error/wrong, /right, /f1
    """
    return measures(ask(model, groups))


def ask(model: RewardModel, groups: Sequence[Group]) -> Asked:
    """Ask the model of everything in the groups that has a label; see `reward_models.data` for how they are made."""
    if model.kind == "pairs":
        return _ask_pairs(model, [group for group in groups if all(score.reward is not None for score in group.scores)])
    kept = [(g, i) for g in groups for i, score in enumerate(g.scores) if score.reward is not None]
    rollouts = [group.rollouts[i] for group, i in kept]
    if model.kind == "process":
        ends = [[at + 1 for at, _ in group.scores[i].step_rewards] for group, i in kept]
        labels = [[z for _, z in group.scores[i].step_rewards] for group, i in kept]
    else:
        ends = [[len(rollout.tokens)] for rollout in rollouts]
        labels = [[group.scores[i].reward or 0.0] for group, i in kept]
    said = model.read([rollout.tokens for rollout in rollouts], [r.prompt_length for r in rollouts], ends)
    return Asked(model.kind, said, labels, [group.id for group, _ in kept])


def measures(asked: Asked) -> dict[str, float]:
    """The measures of `measure`, of what was asked already."""
    if asked.kind == "pairs":
        return _of_pairs(asked)
    found = _probabilities(*asked.flat())
    if asked.kind == "process":
        errors = first_error_accuracy(asked.said, asked.labels)
        return {**found, **{f"first_error/{name}": value for name, value in errors.items()}}
    scores, wholes = asked.flat()
    return {**found, "pair_accuracy": pair_accuracy(scores, wholes, asked.prompts)}


def _probabilities(said: Sequence[float], labels: Sequence[float]) -> dict[str, float]:
    right = [(p > 0.5) == (z > 0.5) for p, z in zip(said, labels)]
    return {
        "count": float(len(said)),
        "auc": auc(said, labels),
        "accuracy": sum(right) / len(right) if right else float("nan"),
        "bce": bce(said, labels),
        "brier": brier(said, labels),
        "ece": expected_calibration_error(said, labels),
    }


def _ask_pairs(model: RewardModel, groups: Sequence[Group]) -> Asked:
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    starts = [rollout.prompt_length for rollout in rollouts]
    said = model.read([r.tokens for r in rollouts], starts, [[len(r.tokens)] for r in rollouts])
    pairs = [(chosen[0], rejected[0]) for chosen, rejected in zip(said[::2], said[1::2])]
    return Asked(model.kind, pairs, [], [group.id for group in groups])


def _of_pairs(asked: Asked) -> dict[str, float]:
    apart = [chosen - rejected for chosen, rejected in asked.said]
    if not apart:
        return {"count": 0.0, "pair_accuracy": float("nan"), "margin": float("nan")}
    won = sum((difference > 0) + (difference == 0) / 2 for difference in apart)
    return {
        "count": float(len(apart)),
        "pair_accuracy": won / len(apart),
        "margin": sum(apart) / len(apart),
    }
