"""Rewards as people write them for OpenRLHF: `--remote_rm_url reward_func.py`."""

import torch


def reward_func(queries, prompts, labels, **kwargs):
    """A dict of tensors."""
    rewards = []
    for query, prompt, label in zip(queries, prompts, labels):
        response = query[len(prompt) :]
        rewards.append(1.0 if response.strip().endswith(str(label)) else 0.0)
    rewards = torch.tensor(rewards, dtype=torch.float)
    return {"rewards": rewards, "scores": rewards, "extra_logs": {"accuracy": rewards.mean(), "hits": rewards}}


def tensor_only(queries, prompts, labels):
    """A tensor with a column."""
    return torch.tensor([[float(len(q) - len(p))] for q, p in zip(queries, prompts)])
