"""The table: every algorithm is a value made of named parts, readable across.

    name        which rows       credit                    loss                             tokens count      step
    ---------------------------------------------------------------------------------------------------------------
    sft         demonstrations   –                         nll                              token_mean        sgd
    reinforce   everything       discounted | whitened     policy_gradient                  token_mean        sgd
    rloo        everything       leave_one_out             policy_gradient                  sequence_sum      sgd
    grpo        everything       group_normalized          clipped_surrogate (+ β·KL)       sequence_mean     sgd
    dr_grpo     everything       group_centered            clipped_surrogate                constant_length   sgd
    dapo        informative      group_normalized          clipped_surrogate (low, high)    token_mean        sgd
    gspo        everything       group_normalized          clipped_sequence_ratio           sequence_mean     sgd
    cispo       everything       group_normalized          clipped_weight                   token_mean        sgd

`maieutic algorithms` prints it from the values themselves. A new algorithm is one function here; a coefficient of 0
leaves its part out, and a model that only this part would have read is not asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from maieutic.choose import choose
from maieutic.core.credit import (
    discounted,
    group_centered,
    group_normalized,
    kl_in_reward,
    leave_one_out,
    none,
    whitened,
)
from maieutic.core.kl import ESTIMATORS, k3
from maieutic.core.losses import (
    clipped_sequence_ratio,
    clipped_surrogate,
    clipped_weight,
    kl_to_reference,
    nll,
    policy_gradient,
)
from maieutic.core.parts import Algorithm
from maieutic.core.select import demonstrations, everything, informative
from maieutic.core.update import sgd
from maieutic.core.weights import constant_length, sequence_mean, sequence_sum, token_mean
from maieutic.errors import UnknownName

Estimator = Callable[[Tensor, Tensor], Tensor]


def sft() -> Algorithm:
    """Supervised fine-tuning: maximum likelihood of demonstrations."""
    return Algorithm("sft", demonstrations(), none(), nll(), token_mean(), sgd())


def reinforce(gamma: float = 1.0) -> Algorithm:
    """REINFORCE (Williams, 1992) with returns to go, whitened over the batch as the baseline."""
    give = discounted(gamma) | whitened()
    return Algorithm("reinforce", everything(), give, policy_gradient(), token_mean(), sgd())


def rloo(beta: float = 0.0) -> Algorithm:
    """RLOO (arXiv 2402.14740): the other siblings' mean is the baseline; a KL goes into the reward."""
    give = kl_in_reward(beta) | leave_one_out()
    return Algorithm("rloo", everything(), give, policy_gradient(), sequence_sum(), sgd())


def grpo(
    beta: float = 0.0, epsilon: float = 0.2, epsilon_high: float | None = None, kl: Estimator = k3, epochs: int = 1,
    minibatches: int = 1,
) -> Algorithm:  # fmt: skip
    """GRPO (arXiv 2402.03300). The paper has β = 0.04 with k3 in the loss; TRL's default, and ours, is β = 0."""
    loss = clipped_surrogate(epsilon, epsilon_high) + beta * kl_to_reference(kl)
    return Algorithm("grpo", everything(), group_normalized(), loss, sequence_mean(), sgd(epochs, minibatches))


def dr_grpo(max_completion_length: int, epsilon: float = 0.2, epochs: int = 1, minibatches: int = 1) -> Algorithm:
    """Dr. GRPO (arXiv 2503.20783): no division by the deviation, none by a row's length."""
    loss, weigh = clipped_surrogate(epsilon), constant_length(max_completion_length)
    return Algorithm("dr_grpo", everything(), group_centered(), loss, weigh, sgd(epochs, minibatches))


def dapo(epsilon: float = 0.2, epsilon_high: float = 0.28, epochs: int = 1, minibatches: int = 1) -> Algorithm:
    """DAPO (arXiv 2503.14476): clip-higher, token mean, only groups whose rewards differ (the source refills them)."""
    loss = clipped_surrogate(epsilon, epsilon_high)
    return Algorithm("dapo", informative(), group_normalized(), loss, token_mean(), sgd(epochs, minibatches))


def gspo(epsilon: float = 3e-4, epsilon_high: float = 4e-4, epochs: int = 1, minibatches: int = 1) -> Algorithm:
    """GSPO (arXiv 2507.18071): one ratio for a whole completion, clipped tightly. The paper has four minibatches."""
    loss = clipped_sequence_ratio(epsilon, epsilon_high)
    return Algorithm("gspo", everything(), group_normalized(), loss, sequence_mean(), sgd(epochs, minibatches))


def cispo(cap: float = 5.0, epochs: int = 1, minibatches: int = 1) -> Algorithm:
    """CISPO (arXiv 2506.13585): the importance weight is capped, and no token's gradient is clipped away."""
    loss = clipped_weight(cap)
    return Algorithm("cispo", everything(), group_normalized(), loss, token_mean(), sgd(epochs, minibatches))


ALGORITHMS: Mapping[str, Callable[..., Algorithm]] = {
    f.__name__: f for f in (sft, reinforce, rloo, grpo, dr_grpo, dapo, gspo, cispo)
}


def make_algorithm(name: str, options: Mapping[str, Any], **defaults: Any) -> Algorithm:
    """The algorithm of that name: `make_algorithm("grpo", {"beta": 0.04, "kl": "k2"})`.

    `defaults` fill parameters that the options leave open (`max_completion_length`). A KL estimator may be named.
    Raises UnknownName and ConfigError as `choose` does.
    """
    given = dict(options)
    if isinstance(given.get("kl"), str):
        if given["kl"] not in ESTIMATORS:
            raise UnknownName("KL estimator", given["kl"], ESTIMATORS)
        given["kl"] = ESTIMATORS[given["kl"]]
    return choose("algorithm", ALGORITHMS, name, given, defaults)
