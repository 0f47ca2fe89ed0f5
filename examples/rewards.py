"""Rewards of one's own: plain functions of any of prompt, completion, answer and task.

rewards = { answer = 1.0, "examples/rewards.py:short" = 0.1 }
"""


def short(completion: str) -> float:
    """1 for an empty completion, falling to 0 at 200 words: a mild push against rambling."""
    return max(0.0, 1.0 - len(completion.split()) / 200)


def close(completion: str, answer: str) -> float | None:
    """How near the last number comes to a numeric answer; None (unscorable) where the answer is no number."""
    try:
        gold = float(answer)
    except ValueError:
        return None
    for word in reversed(completion.replace(",", "").split()):
        try:
            return 1.0 / (1.0 + abs(float(word.strip(".$")) - gold))
        except ValueError:
            continue
    return 0.0
