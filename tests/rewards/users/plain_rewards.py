"""Rewards in a few lines, for a library that asks for nothing."""

import numpy


def right(completion, answer):
    """A bool."""
    return completion.strip() == answer


def short(completion: str) -> numpy.floating:
    """A scalar of numpy."""
    return numpy.float64(max(0.0, 1 - len(completion) / 10))


def similar(prompt, completion, answer):
    """A tensor without dimensions."""
    import torch

    return torch.tensor(float(len(set(completion) & set(answer))))


async def parts(completion, answer):
    """Awaited, in parts."""
    return {"right": float(completion == answer), "brief": numpy.float32(0.25)}
