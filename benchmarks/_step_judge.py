"""A process reward model for the sums of `_step_worlds`, trained by the library on what the first policy writes.

It learns from rollouts whose steps the checker has labelled, and is asked about texts that it has not seen. (There is
one right text a sum, so those it has seen.)
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import _step_worlds as worlds
from maieutic.algorithms import grpo
from maieutic.backends.local import LocalBackend, Optimiser
from maieutic.backends.local.judging import JudgeHead, quick
from maieutic.core.reward_modelling import process_model
from maieutic.models.causal import load_causal
from maieutic.models.reward_model import RewardModel, Settings, from_policy
from maieutic.models.small import SmallModel, build_small
from maieutic.protocols import Chat, Reward
from maieutic.reward_models.data import JudgedSource, process_groups
from maieutic.rewards.compose import judge_group
from maieutic.steps import Steps, split_steps
from maieutic.tasks.judged import Judged
from maieutic.train import train
from maieutic.types import Group, Rollout, Score, Task

DELIMITER = " ;"


def judged(groups: Sequence[Group]) -> list[Judged]:
    """Different completions with the checker's labels."""
    seen = {(g.task.id, r.text): (g.task, r.text) for g in groups for r in g.rollouts if r.text}
    return [
        Judged(task.prompt, tuple(split_steps(text, DELIMITER)), labels=tuple(worlds.checked(task, text)))
        for task, text in seen.values()
    ]


def taught(groups: Sequence[Group], seed: int, *, steps: int) -> RewardModel:
    """A decoder of 2 layers and width 32, trained from nothing on these rollouts."""
    with tempfile.TemporaryDirectory() as folder:
        shape = SmallModel(layers=2, width=32, heads=4, kv_heads=2, context=32)
        build_small(Path(folder) / "m", shape, vocabulary=[*worlds.NUMBERS, "+", "=", ";", "#"], seed=seed)
        base = load_causal(Path(folder) / "m")
    model = from_policy(base, Settings("process", "tokens", DELIMITER))
    assert model.head is not None
    source = JudgedSource(process_groups(model, judged(groups)), prompts=27, seed=seed)
    learner = LocalBackend(threads=1).policy(base, Optimiser(learning_rate=3e-3), critic=JudgeHead(model.head))
    for _ in train(source, learner, process_model(), steps=steps):
        pass
    return quick(model)


def scores_of(model: RewardModel, task: Task, texts: Sequence[str]) -> list[list[float]]:
    """P(right) of each step of each text."""
    prompts, completions, ends = [], [], []
    for text in texts:
        prompt, _ = model.encode(task.prompt, "")
        pieces = [model.chat.encode(step) for step in split_steps(text, DELIMITER)]
        prompts.append(prompt)
        completions.append(tuple(t for piece in pieces for t in piece))
        ends.append([sum(map(len, pieces[: k + 1])) for k in range(len(pieces))])
    return model.steps(prompts, completions, ends)


def judge_reward(model: RewardModel, chat: Chat) -> Reward:
    """The outcome, and the model's score at the end of each step."""
    outcome, steps = worlds.trace_reward(chat), Steps(chat, DELIMITER)

    async def judge(task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        scores = await judge_group(outcome, task, rollouts)
        said = scores_of(model, task, [r.text or "#" for r in rollouts])
        made = []
        for rollout, score, values in zip(rollouts, scores, said):
            places = [stop - 1 for _, stop in steps.of(rollout)]
            values = [*values, *[0.0] * len(places)][: len(places)]  # the stop token alone is no step of a text
            made.append(Score(score.reward, correct=score.correct, step_rewards=tuple(zip(places, values))))
        return made

    return judge


def seen_by(model: RewardModel, groups: Sequence[Group], known: Sequence[Group]) -> dict[str, float]:
    """Of right answers by wrong steps that are not among the `known`: how often it says less than .5 at the first wrong
    step, and the mean of what it says there. Of those without a wrong step: how often it says so of no step."""
    taught_on = {(g.task.id, r.text) for g in known for r in g.rollouts}
    caught: list[float] = []
    passed: list[bool] = []
    for group in groups:
        texts = [r.text for r, s in zip(group.rollouts, group.scores) if s.correct]
        for text, said in zip(texts, scores_of(model, group.task, texts)):
            labels = worlds.checked(group.task, text)
            if 0.0 in labels and (group.task.id, text) not in taught_on:
                caught.append(said[labels.index(0.0)])
            elif 0.0 not in labels:
                passed.append(min(said) >= 0.5)
    return {
        "caught": sum(p < 0.5 for p in caught) / max(1, len(caught)),
        "at_first_wrong": sum(caught) / max(1, len(caught)),
        "passed": sum(passed) / max(1, len(passed)),
        "wrong_traces": float(len(caught)),
    }


def judge_study(seed: int, *, steps: int, imitation: int, n: int, teaching: int = 120) -> dict[str, Any]:
    """What the judge sees in texts that it was not taught; and what a policy learns of it, with the outcome or not."""
    policy = worlds.trace_start(seed, imitation)
    known, asked = (
        worlds.groups_of(
            policy,
            worlds.sums(),
            worlds.trace_reward(policy.chat),
            length=worlds.TRACE_LENGTH,
            n=n,
            seed=f"{seed}/{why}",
        )
        for why in ("taught", "asked")
    )
    model = taught(known, seed, steps=teaching)
    found: dict[str, Any] = {**seen_by(model, asked, known), "before": worlds.traces(policy, f"{seed}/before", n)}
    for supervision in ("both", "process"):
        policy, curve = worlds.trace_start(seed, imitation), []
        for step in worlds.learn(
            policy, worlds.sums(), judge_reward(model, policy.chat), grpo(supervision=supervision),
            steps=steps, length=worlds.TRACE_LENGTH, prompts=27, rollouts=8, seed=seed,
        ):  # fmt: skip
            curve.append((step.index, step.metrics["reward/correct"], worlds.wrong_share(step)))
        found[supervision] = {"after": worlds.traces(policy, f"{seed}/after", n), "curve": curve}
    return found
