"""What the curves say about a run's health, in plain words. Each check is a function of the curves of one stage.

A check returns a sentence with the numbers and a remedy, or None. The thresholds are rules of thumb; the numbers are
in the sentence so that a reader may disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from maieutic.report.curves import Points, ends, finite, percent

Curves = Mapping[str, Points]

#: Largest difference, in nats a token, between sampler and learner that float32 rounding explains with room to spare.
MISMATCH = 1e-3


@dataclass(frozen=True, slots=True)
class Note:
    """One finding: `Note("rl", "truncated", "35.0 % of the completions …")`."""

    stage: str
    kind: str
    text: str


def uniform_groups(curves: Curves) -> str | None:
    """Groups whose rewards are all equal have advantage 0 everywhere."""
    found = ends(curves.get("reward/frac_zero_std", []))
    if found is None or found[1] < 0.5 or found[1] < found[0] + 0.1:
        return None
    return (
        f"groups whose rewards are all equal rose from {percent(found[0])} to {percent(found[1])}: they teach "
        "nothing; take harder tasks, or an algorithm that draws again for them (dapo)"
    )


def truncated(curves: Curves) -> str | None:
    """Completions that the length limit cut."""
    last = _last(curves, "completions/clipped_ratio")
    if last is None or last < 0.1:
        return None
    return (
        f"{percent(last)} of the last completions were cut by the length limit; raise max_completion_length, unless "
        "they ramble"
    )


def unscorable(curves: Curves) -> str | None:
    """Rollouts whose reward failed."""
    failed, all_ = _sum(curves, "rollouts/unscorable"), _sum(curves, "rollouts/count")
    if not failed:
        return None
    return (
        f"{failed:,.0f} of {all_:,.0f} rollouts ({percent(failed / max(all_, 1))}) have no reward; they were left out "
        "of means and updates, and their notes say why"
    )


def failed_rollouts(curves: Curves) -> str | None:
    """Rollouts whose making failed."""
    failed, all_ = _sum(curves, "rollouts/errors"), _sum(curves, "rollouts/count")
    if not failed:
        return None
    share = percent(failed / max(all_, 1))
    return f"{failed:,.0f} of {all_:,.0f} rollouts ({share}) could not be made; their notes say why"


def mismatch(curves: Curves) -> str | None:
    """Sampler and learner must give a token the same log-prob, where the learner's present policy sampled it."""
    stale = {step for step, age in curves.get("policy/staleness", []) if age}
    points = [point for point in finite(curves.get("policy/sampler_mismatch_nats", [])) if point[0] not in stale]
    if not points:
        return None
    step, worst = max(points, key=lambda point: point[1])
    if worst <= MISMATCH:
        return None
    return (
        f"sampler and learner differ by {worst:.2g} nats a token at step {step} (more than {MISMATCH:g}): check the "
        "precision of both, or correct the loss for it"
    )


def skipped(curves: Curves) -> str | None:
    """Steps at which no group carried a signal."""
    points = finite(curves.get("train/skipped", []))
    count = sum(value for _, value in points)
    if not count:
        return None
    return (
        f"{count:,.0f} of {len(points):,} steps made no update because no group carried a signal; the tasks are too "
        "hard or too easy for the model, or num_generations is too small"
    )


def not_finite(curves: Curves) -> str | None:
    """Updates that were skipped because of a gradient, and losses that are no number."""
    updates = _sum(curves, "optim/skipped")
    losses = sum(not math.isfinite(value) for _, value in curves.get("loss", []))
    if not updates and not losses:
        return None
    return (
        f"the gradient was not finite at {updates:,.0f} steps and the loss at {losses:,}; lower the learning rate, or "
        "look at the rollouts of those steps"
    )


def entropy_collapse(curves: Curves) -> str | None:
    """A policy that hardly explores any more."""
    found = ends(curves.get("policy/entropy", []))
    if found is None or found[1] > 0.1 * found[0]:
        return None
    return (
        f"the policy's entropy collapsed from {found[0]:.3g} to {found[1]:.3g} nats a token: it hardly explores any "
        "more; lower the learning rate, raise epsilon_high, or stop here"
    )


def no_reward(curves: Curves) -> str | None:
    """Nothing was ever rewarded."""
    points = finite(curves.get("reward/mean", []))
    if len(points) < 2 or any(value != 0 for _, value in points):
        return None
    return (
        f"no rollout of {len(points):,} steps got a reward: the model solves none of the tasks (train it on "
        "demonstrations first), or the reward does not read its answers (look at the rollouts)"
    )


def reward_without_correctness(curves: Curves) -> str | None:
    """The reward rises while what it stands for falls."""
    reward, correct = ends(curves.get("reward/mean", [])), ends(curves.get("reward/correct", []))
    if reward is None or correct is None or reward[1] < reward[0] + 0.05 or correct[1] > correct[0] - 0.05:
        return None
    return (
        f"the mean reward rose from {reward[0]:.3g} to {reward[1]:.3g} while correct answers fell from "
        f"{percent(correct[0])} to {percent(correct[1])}: the policy may have learnt to please "
        "the reward instead; look at the best rollouts"
    )


#: Checks that hold for demonstrations too, which are there to make the policy surer.
ALWAYS = frozenset({"skipped", "not_finite"})

#: Every check by the name under which it is reported.
CHECKS: Mapping[str, Callable[[Curves], str | None]] = {
    "no_reward": no_reward,
    "uniform_groups": uniform_groups,
    "truncated": truncated,
    "unscorable": unscorable,
    "failed_rollouts": failed_rollouts,
    "mismatch": mismatch,
    "skipped": skipped,
    "not_finite": not_finite,
    "entropy_collapse": entropy_collapse,
    "reward_without_correctness": reward_without_correctness,
}


def health(curves: Mapping[str, Curves], sampled: Collection[str]) -> list[Note]:
    """Every finding, stage by stage. `sampled` are the stages that trained on rollouts, not on demonstrations."""
    found = [
        (stage, kind, check(each))
        for stage, each in curves.items()
        for kind, check in CHECKS.items()
        if stage in sampled or kind in ALWAYS
    ]
    return [Note(stage, kind, text) for stage, kind, text in found if text is not None]


def _last(curves: Curves, name: str) -> float | None:
    points = finite(curves.get(name, []))
    found = ends(points)
    return found[1] if found else (points[-1][1] if points else None)


def _sum(curves: Curves, name: str) -> float:
    return sum(value for _, value in finite(curves.get(name, [])))
