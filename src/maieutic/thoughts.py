"""What a text says outside of its `<think>` blocks: only that is an answer, whoever reads it."""

from __future__ import annotations


def outside_thoughts(text: str) -> str:
    """What follows the last `</think>` (all of the text when there is none), up to a `<think>` that opens there."""
    close = text.rfind("</think>")
    begin = 0 if close < 0 else close + len("</think>")
    opened = text.find("<think>", begin)
    return text[begin:] if opened < 0 else text[begin:opened]
