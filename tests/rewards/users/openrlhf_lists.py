"""A reward for OpenRLHF that needs no torch."""


def plain_list(queries, prompts, labels):
    """A list, not read as a conversation though it speaks of "content"."""
    return [float("content" not in q[len(p) :]) for q, p in zip(queries, prompts)]
