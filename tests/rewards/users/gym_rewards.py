"""Rewards of reasoning-gym: a data set's own scorer, however it is kept."""

import reasoning_gym

dataset = reasoning_gym.create_dataset("chain_sum", size=10, seed=42)
score = dataset.score_answer


def half_for_format(answer, entry):
    """One of one's own, in the same shape."""
    return max(dataset.score_answer(answer, entry), 0.5 * float(answer.isdigit()))
