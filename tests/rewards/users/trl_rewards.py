"""Rewards as people write them for TRL's GRPOTrainer."""

import asyncio
import re


def accuracy_reward(completions, solution, **kwargs):
    """Conversational, with a column of the data set."""
    rewards = []
    for completion, sol in zip(completions, solution):
        content = completion[0]["content"]
        match = re.search(r"<answer>(.*?)</answer>", content)
        student = match.group(1).strip() if match else content.strip()
        truth = re.search(r"<answer>(.*?)</answer>", sol)
        truth = truth.group(1).strip() if truth else sol.strip()
        rewards.append(1.0 if student == truth else 0.0)
    return rewards


def _contents(completions):
    return [completion[0]["content"] for completion in completions]


def format_reward(completions, **kwargs):
    """Conversational by way of a function beside it."""
    pattern = r"^<think>.*?</think>\s*<answer>.*?</answer>$"
    return [1.0 if re.match(pattern, text, re.DOTALL) else 0.0 for text in _contents(completions)]


def reward_num_unique_chars(completions: list[str], **kwargs) -> list[float]:
    """Plain text, as in the trainer's quick start."""
    return [float(len(set(c))) for c in completions]


def reward_by_tokens(completion_ids, **kwargs):
    """By the number of tokens."""
    return [-0.5 * len(ids) for ids in completion_ids]


def math_only(prompts, completions, task, answer, **kwargs):
    """None where it does not apply, as for data of several tasks."""
    return [(1.0 if a in c else -1.0) if t == "math" else None for c, t, a in zip(completions, task, answer)]


async def async_reward(prompts, completions, answer, trainer_state=None, log_extra=None, log_metric=None, **kwargs):
    """Awaited, and logging as newer versions let it."""
    await asyncio.sleep(0.001)
    found = [c.rsplit(" ", 1)[-1].rstrip(".") for c in completions]
    hits = [float(f == a) for f, a in zip(found, answer)]
    if log_extra:
        log_extra("extracted", found)
    if log_metric:
        log_metric("accuracy", sum(hits) / len(hits))
    return hits
