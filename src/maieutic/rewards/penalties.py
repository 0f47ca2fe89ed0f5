"""Penalties on ways of getting rewarded without being right: rewards between `penalty` and 0, as in `rewards.shaping`.

    rewards = { answer = 1.0, copied = 0.5, several_answers = 0.5 }

A verifier that reads strictly needs none of them. They are for rewards that a text can please by its form: a judge, a
quiz about the prompt, a reward model, a verifier that looks for the answer anywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence

from maieutic.errors import ConfigError
from maieutic.protocols import Reward
from maieutic.rewards import traits
from maieutic.rewards.lift import unscorable
from maieutic.types import Finish, Rollout, Score, Task


def _each(name: str, penalty: float, share: Callable[[Task, Rollout], float]) -> Reward:
    """`penalty` · share, a share between 0 and 1 of each rollout."""
    if not -math.inf < penalty <= 0:
        raise ConfigError(f"{name}: got penalty={penalty}; expected a finite number, 0 or less")

    async def penalise(task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        return [unscorable(r) if r.finish is Finish.ERROR else Score(penalty * share(task, r)) for r in rollouts]

    return penalise


def copied(n: int = 4, free: float = 0.3, penalty: float = -1.0) -> Reward:
    """`penalty` · max(0, c − free) / (1 − free) for a completion of whose n-grams the share c stands in the prompt.

    Of tokens; what quotes a little goes free. 0 for fewer than n tokens.
    """
    if n < 1 or not 0 <= free < 1:
        raise ConfigError(f"copied: got n={n}, free={free}; expected n ≥ 1 and free at least 0 and below 1")

    def share(task: Task, rollout: Rollout) -> float:  # noqa: ARG001  (a penalty's signature)
        found = traits.copied(traits.chosen(rollout), rollout.tokens[: rollout.prompt_length], n)
        return max(0.0, (found or 0.0) - free) / (1 - free)

    return _each("copied", penalty, share)


def several_answers(penalty: float = -1.0) -> Reward:
    """`penalty` · (1 − 1/k) for a text whose markers state k different answers: "#### 1 #### 2" costs half of it."""
    return _each("several_answers", penalty, lambda _, r: 1 - 1 / max(1, traits.listed_answers(r.text)))


def enumerated_answer(penalty: float = -1.0) -> Reward:
    """`penalty` · (1 − g/m) for a marked answer that holds m alternatives ("70, 71 or 72") where the gold holds g < m.

    The gold is counted in the same way, so that a task whose answer is a list may be answered by one.
    """

    def share(task: Task, rollout: Rollout) -> float:
        allowed = max(1, traits.alternatives(task.answer or ""))
        return 1 - allowed / max(allowed, traits.enumerated(rollout.text))

    return _each("enumerated_answer", penalty, share)


def unclosed_tags(tags: Sequence[str] = ("think", "answer"), penalty: float = -1.0) -> Reward:
    """`penalty` · u / |tags|, where u of the tags are opened and not closed, or closed and not opened before.

    A tag that does not occur is no fault here (`rewards.format.required` asks for it). Raises ConfigError for tags
    that are none.
    """
    names = tuple(dict.fromkeys(tags))
    if not names or not all(re.fullmatch(r"[A-Za-z_][\w-]*", tag) for tag in names):
        raise ConfigError(f"unclosed_tags: got {tags!r}; expected names of tags, such as think")
    return _each("unclosed_tags", penalty, lambda _, r: traits.open_tags(r.text, names) / len(names))


def language_switch(free: float = 0.1, penalty: float = -1.0) -> Reward:
    """`penalty` · max(0, f − free) / (1 − free), f the share of letters in scripts that the prompt does not use."""
    if not 0 <= free < 1:
        raise ConfigError(f"language_switch: got free={free}; expected at least 0 and below 1")

    def share(task: Task, rollout: Rollout) -> float:
        asked = " ".join(message.content for message in task.prompt)
        return max(0.0, (traits.foreign(rollout.text, asked) or 0.0) - free) / (1 - free)

    return _each("language_switch", penalty, share)


#: Names of a config → what makes them.
PENALTIES: Mapping[str, Callable[..., Reward]] = {
    f.__name__: f for f in (copied, several_answers, enumerated_answer, unclosed_tags, language_switch)
}
