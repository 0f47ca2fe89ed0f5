"""Rewards as courses on reinforcement fine-tuning write them: the prompt, the completion, the row as a dict."""

import re


def output_format_check(prompt: str, completion: str, example: dict) -> int:
    """A point for thinking, a point for a guess of five letters."""
    reward = 0
    completion = "<think>" + completion
    match = re.search(r"<think>.*?</think>.*?<guess>\s*(.*?)\s*</guess>$", completion, re.DOTALL)
    if match is None:
        return reward
    reward += 1
    return reward + int(len(match.group(1).strip()) == 5)


def uses_the_word(prompt, completion, example):
    """Of a column of the row."""
    return 1.0 if example["word"].lower() in completion.lower() else 0.0


def sum_reward(prompt, completion, example):
    """Of numbers in the row; None where there are none."""
    if "numbers" not in example:
        return None
    found = re.findall(r"-?\d+", completion)
    return {"right": float(bool(found) and int(found[-1]) == sum(example["numbers"])), "brief": -len(completion) / 1000}
