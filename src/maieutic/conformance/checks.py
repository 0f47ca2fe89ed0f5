"""The checks. Each takes a trainer and its claims, returns quietly, or raises `Differs` with got / expected / remedy.

    invariance    padding, order of rows, micro-batches, tokens that the policy did not choose
    signal        equal rewards teach nothing; the ratio is 1 at the first step; PPO's clip
    expectation   over every group that the policy could have sampled: the direction of −∇E[r] and its scale, and what
                  the KL term pulls towards

Gradients are compared in float64. Letters as in `maieutic.conformance.subject`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from maieutic.conformance.rows import VOCABULARY, ragged, rows_of
from maieutic.conformance.subject import Claims, Differs, TableModel, Trainer, gradient_of

TOLERANCE = 1e-6
"""Of relative differences: float64 with a little room for trainers that keep float32 somewhere."""

Check = Callable[[Trainer, Claims], None]


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))


def _same(found: Tensor, expected: Tensor, what: str, remedy: str) -> None:
    if not float(expected.norm()) > 1e-9:
        raise Differs(f"{what}: the gradient is 0 before anything was changed, so nothing can be compared. {remedy}")
    apart = _distance(found, expected)
    if not apart < TOLERANCE:
        raise Differs(f"{what}: got a gradient that differs by {apart:.2g} of its length, expected none. {remedy}")


def padding(trainer: Trainer, _: Claims) -> None:
    """Columns of padding change nothing."""
    model = TableModel()
    rows = ragged(model)
    _same(
        gradient_of(trainer, model, rows.padded(5)),
        gradient_of(trainer, model, rows),
        "5 more columns of padding",
        "A denominator that is the batch's width, or a term that is not masked, does this",
    )


def order(trainer: Trainer, _: Claims) -> None:
    """The order of rows changes nothing."""
    model = TableModel()
    rows = ragged(model)
    shuffled = rows.take(torch.randperm(len(rows.rewards), generator=torch.Generator().manual_seed(3)))
    _same(
        gradient_of(trainer, model, shuffled),
        gradient_of(trainer, model, rows),
        "the rows in another order",
        "Group rows by `groups`, not by their place",
    )


def micro_batches(trainer: Trainer, _: Claims) -> None:
    """Splitting an optimiser batch changes nothing: denominators are those of the whole batch."""
    model = TableModel()
    rows = ragged(model)
    whole = gradient_of(trainer, model, rows)
    for count in (2, 3, 5):
        _same(
            gradient_of(trainer, model, rows, count),
            whole,
            f"{count} micro-batches",
            "Count tokens, rows and groups over the whole optimiser batch before the first backward pass",
        )


def unchosen_tokens(trainer: Trainer, _: Claims) -> None:
    """What stands in columns off the mask reaches nothing, and tokens after a row are no context."""
    model = TableModel()
    rows = ragged(model)
    junk = torch.randn(rows.mask.shape, generator=torch.Generator().manual_seed(9)).double()
    names = ("old_logprobs", "sampler_logprobs", "ref_logprobs")
    spoiled = {name: torch.where(rows.mask, getattr(rows, name), junk) for name in names}
    beyond = torch.arange(rows.tokens.shape[1]) >= rows.lengths[:, None]
    tokens = torch.where(beyond, VOCABULARY - 1, rows.tokens)
    _same(
        gradient_of(trainer, model, rows.with_(tokens=tokens, **spoiled)),
        gradient_of(trainer, model, rows),
        "other numbers off the mask",
        "Mask every term before it is summed, the KL term too, and take sequence sums over chosen tokens only",
    )


def stop_token(trainer: Trainer, _: Claims) -> None:
    """The last chosen token, the stop token, is an action: it is learned."""
    model = TableModel()
    rows = rows_of(model, [[1]] * 2, [[2, 3], [3, 2]], [1.0, 0.0], [0, 0])
    found = gradient_of(trainer, model, rows).reshape(model.table.shape)
    # the last token of row 0 is predicted at position 1 from token 2, that of row 1 from token 3
    if not (found[1, 2].abs().sum() > 1e-9 and found[1, 3].abs().sum() > 1e-9):
        raise Differs("the last chosen token of a row: got no gradient, expected one. The stop token is an action")


def prompt(trainer: Trainer, _: Claims) -> None:
    """The prompt is not learned."""
    model = TableModel()
    rows = rows_of(model, [[1, 2, 3]] * 2, [[2], [3]], [1.0, 0.0], [0, 0])
    found = gradient_of(trainer, model, rows).reshape(model.table.shape)
    if found[:2].abs().sum() > 1e-12:
        raise Differs("tokens of the prompt: got a gradient, expected none. Leave them out of loss and denominator")


def equal_rewards(trainer: Trainer, claims: Claims) -> None:
    """A group whose rewards are all equal moves nothing (0.1 + 0.2 is not quite 0.3: no division by what is left)."""
    if claims.kl is not None:
        return
    model = TableModel()
    rows = rows_of(model, [[1]] * 3, [[2, 3], [3], [0, 1]], [0.1 + 0.2] * 3, [0] * 3)
    length = float(gradient_of(trainer, model, rows).norm())
    if length > 1e-9:
        raise Differs(
            f"equal rewards: got a gradient of length {length:.2g}, expected none. Give advantage 0 where all rewards "
            "are the same, before dividing by a deviation that is only rounding"
        )


def first_step(trainer: Trainer, claims: Claims) -> None:
    """At ratio 1 the gradient is that of the score function: it does not depend on clipping.

    (k1 in the loss adds noise to every batch, which only its mean does not have.)
    """
    if claims.kl == "nothing":
        return
    model = TableModel()
    rows = rows_of(model, [[1]] * 4, [[2, 3], [3, 3], [0, 1], [1, 2]], [1.0, 0.0, 0.0, 0.0], [0] * 4)
    plain = model.logprobs(rows.tokens) * rows.mask
    centred = rows.rewards - (rows.rewards.mean() if claims.baseline else 0.0)
    (expected,) = torch.autograd.grad(-(centred[:, None] * plain).sum(), model.table)
    _parallel(
        gradient_of(trainer, model, rows),
        expected.flatten(),
        "the first optimiser step",
        "With one update a batch the ratio is exactly 1; detach the old log-probs, not the new ones",
    )


def _parallel(found: Tensor, expected: Tensor, what: str, remedy: str) -> float:
    """The scale of `found` in units of `expected`; raises unless it points the same way."""
    cosine = float(found @ expected / (found.norm() * expected.norm()).clamp(min=1e-300))
    if not 1.0 - cosine < TOLERANCE:
        raise Differs(f"{what}: got a gradient at cosine {cosine:.4f} to the exact one, expected 1. {remedy}")
    return float(found @ expected / (expected @ expected))


def clipping(trainer: Trainer, claims: Claims) -> None:
    """PPO's clip, arXiv 1707.06347: a good token beyond 1 + ε and a bad one below 1 − ε teach nothing; others do."""
    if claims.clip is None:
        return
    low, high = claims.clip
    model = TableModel()
    rows = rows_of(model, [[1]] * 2, [[2], [3]], [1.0, 0.0], [0, 0])
    for good, bad, taught in (
        (1 + 2 * high, 1.0, (False, True)),
        (1 - low / 2, 1.0, (True, True)),
        (1.0, 1 - 2 * low, (True, False)),
        (1.0, 1 + 2 * high, (True, True)),
    ):
        shift = torch.zeros_like(rows.old_logprobs)
        shift[0, 1], shift[1, 1] = torch.tensor(good).log(), torch.tensor(bad).log()
        moved = rows.with_(old_logprobs=rows.old_logprobs - shift)
        # of token a's and b's shares in the logits' gradient: only a row that teaches moves its own token
        found = gradient_of(trainer, model, moved).reshape(model.table.shape)[0, 1]
        policy = torch.softmax(model.table[0, 1].detach(), -1)
        axes = torch.stack([torch.eye(VOCABULARY, dtype=torch.float64)[token] - policy for token in (2, 3)])
        shares = torch.linalg.lstsq(axes.T, -found[:, None]).solution[:, 0]
        got = tuple(bool(share.abs() > 1e-9) for share in shares)
        if got != taught:
            raise Differs(
                f"ratios {good:.2f} of a good and {bad:.2f} of a bad token: got gradients {got}, expected {taught}"
            )


def expected_gradient(trainer: Trainer, claims: Claims) -> None:
    """Over every group of three that the policy could sample, the mean gradient is −∇E[r], scaled as claimed.

    Rewards are 0 and 1, so dividing by a group's deviation does not turn the direction either; completions have two
    tokens each.
    """
    model = TableModel(vocabulary=3, positions=3, seed=4)
    reward = {c: float(sum(c) % 3 == 1) for c in itertools.product(range(3), repeat=2)}
    completions = list(reward)
    everything = rows_of(
        model, [[1]] * len(completions), completions, list(reward.values()), list(range(len(completions)))
    )
    probability = (model.logprobs(everything.tokens) * everything.mask).sum(1).exp()
    (exact,) = torch.autograd.grad(-(probability * everything.rewards).sum(), model.table)
    size = 3
    mean = torch.zeros_like(exact).flatten()
    for chosen in itertools.product(range(len(completions)), repeat=size):
        rows = rows_of(
            model,
            [[1]] * size,
            [completions[i] for i in chosen],
            [reward[completions[i]] for i in chosen],
            [0] * size,
        )
        share = float(torch.stack([probability[i].detach() for i in chosen]).prod())
        mean += share * gradient_of(trainer, model, rows)
    scale = _parallel(mean, exact.flatten(), "the expected gradient", "A biased baseline or weighting turns it")
    if claims.scale is not None and abs(scale - claims.scale) > TOLERANCE:
        raise Differs(
            f"the scale of the expected gradient: got {scale:.6f}, expected {claims.scale:.6f} times −∇E[r]. A "
            "baseline that holds the row's own reward shrinks it by (G − 1)/G, a mean over tokens by their number"
        )


def kl_direction(trainer: Trainer, claims: Claims) -> None:
    """With equal rewards only the KL term is left: its expected gradient is that of the divergence claimed."""
    if claims.kl is None:
        return
    model = TableModel(vocabulary=3, positions=2, seed=4)
    reference = TableModel(vocabulary=3, positions=2, seed=5)
    tokens = torch.tensor([[1, c] for c in range(3)])
    logp, ref = model.logprobs(tokens)[:, 1], reference.logprobs(tokens)[:, 1].detach()
    divergence = {
        "reverse": (logp.exp() * (logp - ref)).sum(),
        "forward": (ref.exp() * (ref - logp)).sum(),
        "nothing": (0.0 * logp).sum(),
    }[claims.kl]
    (exact,) = torch.autograd.grad(claims.beta * divergence, model.table)
    mean = torch.zeros_like(exact).flatten()
    size = 2
    for chosen in itertools.product(range(3), repeat=size):
        rows = rows_of(model, [[1]] * size, [[c] for c in chosen], [1.0] * size, [0] * size)
        seen = torch.zeros_like(rows.old_logprobs)
        seen[:, 1] = ref[list(chosen)]
        share = float(logp.detach()[list(chosen)].sum().exp())
        mean += share * gradient_of(trainer, model, rows.with_(ref_logprobs=seen))
    apart = float((mean - exact.flatten()).norm())
    if apart > TOLERANCE:
        raise Differs(
            f"the KL term's expected gradient: got one that is {apart:.2g} away from that of the {claims.kl} KL "
            f"(length {float(exact.norm()):.2g}). k1 in the loss has none, k2 pulls towards the reverse KL, k3 towards "
            "the forward KL; in the reward, k1 is the exact one"
        )


#: name → check, for trainers that follow the rewards of single rows.
OF_ROWS: Mapping[str, Check] = {
    check.__name__: check
    for check in (
        padding, order, micro_batches, unchosen_tokens, stop_token, prompt, equal_rewards, first_step, clipping,
        expected_gradient, kl_direction,
    )
}  # fmt: skip

#: … for losses of pairs, and for imitation.
OF_PAIRS: Mapping[str, Check] = {
    check.__name__: check for check in (padding, order, micro_batches, unchosen_tokens, stop_token, prompt)
}
CHECKS: Mapping[str, Mapping[str, Check]] = {"rows": OF_ROWS, "pairs": OF_PAIRS, "none": OF_PAIRS}
