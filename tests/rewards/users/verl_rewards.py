"""Rewards as people write them for verl: `custom_reward_function.path` and `.name`."""

import re


def extract_solution(solution_str, method="strict"):
    found = re.findall(r"#### (\-?[0-9\.\,]+)" if method == "strict" else r"(\-?[0-9\.\,]+)", solution_str)
    return found[-1].replace(",", "") if found else None


def compute_score(solution_str, ground_truth, method="strict", format_score=0.0, score=1.0):
    """The shape of the scorers that come with it: no data source, options with defaults."""
    answer = extract_solution(solution_str=solution_str, method=method)
    if answer is None:
        return 0
    return score if answer == ground_truth else format_score


def my_reward_fn(data_source, solution_str, ground_truth, extra_info=None):
    """The shape of the documentation."""
    if data_source == "openai/gsm8k" and extra_info["split"] == "train":
        return len(solution_str) / 100
    return 1.0 if solution_str.strip() == ground_truth else 0.0


def with_details(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    """A dict with the score, and what else is to be logged."""
    correct = solution_str.strip().endswith(ground_truth)
    return {"score": 1.0 if correct else -1.0, "acc": correct, "pred": solution_str[-8:]}


async def judged(data_source, solution_str, ground_truth, extra_info=None):
    """Awaited."""
    return float(ground_truth in solution_str)


def batched(data_sources, solution_strs, ground_truths, extra_infos):
    """For the batch reward manager."""
    return [float(t in s) for s, t in zip(solution_strs, ground_truths, strict=True)]
