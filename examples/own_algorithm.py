"""An algorithm of one's own: OPO (arXiv 2505.23585), which the table does not have.

maieutic train my.toml --set stages.1.algorithm=examples/own_algorithm.py:opo
"""

import torch

from maieutic.core.losses import policy_gradient
from maieutic.core.parts import Algorithm, compares, credit
from maieutic.core.select import everything
from maieutic.core.update import sgd
from maieutic.core.weights import sequence_sum


@credit
def length_weighted_baseline():
    """Aᵢ = rᵢ − Σⱼ lⱼ rⱼ / Σⱼ lⱼ over the siblings j, lⱼ their lengths: nearly the baseline of least variance."""

    @compares(2)
    def give(batch):
        length = batch.mask.sum(1).to(batch.rewards.dtype)
        _, member = torch.unique(batch.groups, return_inverse=True)
        zero = length.new_zeros(int(member.max()) + 1)
        baseline = zero.index_add(0, member, length * batch.rewards) / zero.index_add(0, member, length)
        return batch.with_(advantages=(batch.rewards - baseline[member])[:, None] * batch.mask)

    return give


def opo():
    """On-policy RL with an optimal reward baseline: exact on-policy, no clip, no KL."""
    return Algorithm("opo", everything(), length_weighted_baseline(), policy_gradient(), sequence_sum(), sgd())
