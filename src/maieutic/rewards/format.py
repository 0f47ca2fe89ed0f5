"""Is a completion laid out as asked? Rewards for `<think>…</think>` and other blocks.

Scanned by hand in linear time: the regular expressions that are usual here (`^<think>(?!.*<think>)(.*?)</think>.*$`)
take quadratic time on a completion made of opening tags.

Differs from that expression on purpose: the thought and the answer after it must not be blank, and there is exactly
one closing tag too, since an empty `<think></think>` has the form and none of the sense.

Weigh these at a tenth of correctness or less (see `maieutic.rewards.compose`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from maieutic.errors import ConfigError
from maieutic.protocols import Reward
from maieutic.rewards.lift import unscorable
from maieutic.types import Finish, Rollout, Score, Task


def has_think_format(text: str, *, prefilled: bool = False) -> bool:
    """Whether the text starts with `<think>`, holds exactly one such block, and says something in it and after it.

    `prefilled`: the chat template ends the prompt with `<think>`, so the completion lacks it; it is put back.
    """
    text = "<think>" + text if prefilled else text
    if not text.startswith("<think>") or text.count("<think>") != 1 or text.count("</think>") != 1:
        return False
    thought, _, rest = text.removeprefix("<think>").partition("</think>")
    return not (thought.isspace() or not thought or rest.isspace() or not rest)


def blocks(text: str, tags: Sequence[str]) -> dict[str, bool]:
    """For each tag, whether the text has exactly one block of it, with something in it."""
    found = {}
    for tag in tags:
        start, stop = text.find(f"<{tag}>"), text.find(f"</{tag}>")
        alone = text.count(f"<{tag}>") == text.count(f"</{tag}>") == 1
        found[tag] = alone and start < stop and bool(text[start + len(tag) + 2 : stop].strip())
    return found


def has_blocks(text: str, tags: Sequence[str], *, prefilled: bool = False) -> bool:
    """Whether the text is these blocks, once each, in this order, not blank, with only white space between them.

    >>> has_blocks("<think>3 + 4</think>\\n<answer>7</answer>", ("think", "answer"))
    True

    `prefilled`: the prompt already opened the first block. White space may follow the last block.
    """
    text = f"<{tags[0]}>{text}" if prefilled else text
    if not all(blocks(text, tags).values()):
        return False
    at = 0
    for tag in tags:
        if not text.startswith(f"<{tag}>", at):
            return False
        at = text.find(f"</{tag}>", at) + len(tag) + 3
        after = text.find("<", at)
        if text[at : after if after >= 0 else None].strip():
            return False
        at = after
    return at < 0


def _format_reward(value: float, judge: Callable[[str], tuple[bool, dict[str, float]]]) -> Reward:
    if not math.isfinite(value):
        raise ConfigError(f"a format reward: got value={value}; expected a finite number")

    async def layout(task: Task, rollouts: Sequence[Rollout]) -> list[Score]:  # noqa: ARG001  (a reward's signature)
        scores = []
        for rollout in rollouts:
            if rollout.finish is Finish.ERROR:
                scores.append(unscorable(rollout))
                continue
            kept, parts = judge(rollout.text)
            scores.append(Score(value if kept else 0.0, parts=parts))
        return scores

    return layout


def think_format(*, prefilled: bool = False, value: float = 1.0) -> Reward:
    """`value` for a completion that thinks in exactly one leading `<think>` block and then answers, else 0."""

    def judge(text: str) -> tuple[bool, dict[str, float]]:
        kept = has_think_format(text, prefilled=prefilled)
        return kept, {"think": float(kept)}

    return _format_reward(value, judge)


def required(*tags: str, prefilled: bool = False, value: float = 1.0) -> Reward:
    """`value` for a completion that is exactly these blocks in this order (see `has_blocks`), else 0.

    `required("think", "answer")` asks for a thought and then an answer tag at the end. Each block that is there and
    not blank is a part with value 1, so that a run shows which one is missing; the reward is all or nothing. Raises
    `ConfigError` for tags that are none.
    """
    if not tags or len(set(tags)) != len(tags) or not all(re.fullmatch(r"[A-Za-z_][\w-]*", tag) for tag in tags):
        raise ConfigError(f"required{tags}: expected different tag names, e.g. required('think', 'answer')")

    def judge(text: str) -> tuple[bool, dict[str, float]]:
        whole = f"<{tags[0]}>{text}" if prefilled else text
        parts = {tag: float(found) for tag, found in blocks(whole, tags).items()}
        return has_blocks(text, tags, prefilled=prefilled), parts

    return _format_reward(value, judge)
