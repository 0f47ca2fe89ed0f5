"""Penalties on the form of a completion, whatever it answers: rewards of 0 or less, to add to one of correctness.

    rewards = { answer = 1.0, soft_overlong = 1.0 }

Weigh them so that no penalty can pay: a wrong answer without a penalty must stay below a right one with it, or the
policy learns to say little and nothing. A rollout that failed is unscorable. Counted in tokens, which need no
tokenizer here: a rollout has them.

DAPO's two answers to length (arXiv 2503.14476) are `soft_overlong`, which tells the policy before the limit
that it is near, and leaving out what the limit cut (`skip_truncated` of a select).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from maieutic.errors import ConfigError
from maieutic.protocols import Reward
from maieutic.rewards import traits
from maieutic.rewards.lift import unscorable
from maieutic.types import Finish, Rollout, Score, Task


def _each(penalty: Callable[[Rollout], float]) -> Reward:
    async def penalise(task: Task, rollouts: Sequence[Rollout]) -> list[Score]:  # noqa: ARG001  (a reward's signature)
        return [unscorable(r) if r.finish is Finish.ERROR else Score(penalty(r)) for r in rollouts]

    return penalise


def _check(what: str, good: bool, expected: str) -> None:
    if not good:
        raise ConfigError(f"{what}; expected {expected}")


def soft_overlong(max_completion_length: int, cache: int | None = None) -> Reward:
    """0 up to L − C tokens, ((L − C) − n) / C up to L, −1 beyond, for a completion of n tokens.

    L is `max_completion_length`; C, the `cache`, is where it grows: a fifth of L by default, which is DAPO's 4096 of
    20480 (arXiv 2503.14476). What a tool wrote counts, as it does for the limit.
    """
    cache = max(1, max_completion_length // 5) if cache is None else cache
    _check(
        f"soft_overlong: got max_completion_length={max_completion_length}, cache={cache}",
        1 <= cache <= max_completion_length,
        "1 ≤ cache ≤ max_completion_length",
    )

    def penalty(rollout: Rollout) -> float:
        over = len(rollout.tokens) - rollout.prompt_length - (max_completion_length - cache)
        return -min(1.0, max(0, over) / cache) if over > 0 else 0.0

    return _each(penalty)


def repetition(n: int = 3, penalty: float = -1.0) -> Reward:
    """`penalty` · (1 − different n-grams / n-grams), over the ids of the tokens that the model chose.

    0 for fewer than n tokens. After arXiv 2502.03373; of tokens and not of words, so that languages without spaces are
    treated alike. The stop token is one of them.
    """
    _check(f"repetition: got n={n}, penalty={penalty}", n >= 1 and -math.inf < penalty <= 0, "n ≥ 1, penalty ≤ 0")

    def repeated(rollout: Rollout) -> float:
        return penalty * (traits.repeated(traits.chosen(rollout), n) or 0.0)

    return _each(repeated)


def missing_eos(penalty: float = -1.0) -> Reward:
    """`penalty` where the length limit cut the completion, 0 where it came to an end (TRL's `missing_eos_penalty`)."""
    _check(f"missing_eos: got penalty={penalty}", -math.inf < penalty <= 0, "a finite number, 0 or less")
    return _each(lambda rollout: penalty if rollout.finish is Finish.LENGTH else 0.0)


def too_long(limit: int = 1024, floor: float = -10.0) -> Reward:
    """max((limit − n) / limit, floor) for a text of n > `limit` characters, else 0.

    For a task that copying everything would solve (a summary, judged by a quiz about the original).
    """
    _check(f"too_long: got limit={limit}, floor={floor}", limit >= 1 and -math.inf < floor <= 0, "limit ≥ 1, floor ≤ 0")
    return _each(lambda rollout: min(0.0, max((limit - len(rollout.text)) / limit, floor)))


#: Names of a config → what makes them.
SHAPING: Mapping[str, Callable[..., Reward]] = {
    f.__name__: f for f in (soft_overlong, repetition, missing_eos, too_long)
}
