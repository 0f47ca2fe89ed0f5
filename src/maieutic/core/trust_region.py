"""Trust regions: the largest step that changes the policy by no more than so much.

    maximise E[ρ A]   subject to   mean KL(π_old(·|s) ‖ π(·|s)) ≤ δ   over the states in which tokens were chosen

To second order the KL is ½ dᵀF d with the Fisher matrix F, so the best direction is F⁻¹g: it is found without F, from
products F·v alone, and tried at falling lengths until the *true* KL and the *true* objective agree with what was
promised (TRPO, arXiv 1502.05477). Whatever is tried and refused leaves the weights as they were, to the bit.

Vectors are the trainable weights end to end. Letters: `n` weights, `M` tokens at which policies are compared, `V`
vocabulary, `δ` the bound `max_kl`, `g` the gradient of what is maximised, `F` the Fisher matrix, `λ` damping.
Divergences in nats a token.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from maieutic.core.parts import Algorithm, Update
from maieutic.protocols import Learner, LossTerms, Neighbourhood, TrustRegionLearner
from maieutic.types import Batch


@dataclass(frozen=True)
class Solution:
    """`x [n]` with F x = b − residual, after so many iterations."""

    x: Tensor
    residual: Tensor
    iterations: int


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], b: Tensor, iterations: int = 10, tolerance: float = 1e-10
) -> Solution:
    """Solve F x = b `[n]` for a symmetric F ≥ 0 that is known by its products `v ↦ F v` only.

    Stops when ‖b − F x‖² ≤ tolerance · ‖b‖², after `iterations` products, or at a direction in which F does not curve
    upwards (pᵀFp ≤ 0, or not finite), with what was found until then. From x = 0, so that of a singular but consistent
    system it is the shortest solution. Hestenes and Stiefel (1952).
    """
    x, residual = torch.zeros_like(b), b.clone()
    direction, squared = b.clone(), b.dot(b)
    enough = tolerance * float(squared)
    done = 0
    while done < iterations and float(squared) > enough:
        image = product(direction)
        curvature = direction.dot(image)
        if not 0.0 < float(curvature) < math.inf:
            break
        length = squared / curvature
        x, residual = x + length * direction, residual - length * image
        before, squared = squared, residual.dot(residual)
        direction = residual + (squared / before) * direction
        done += 1
    return Solution(x, residual, done)


def fisher_product(logits: Tensor, weights: list[Tensor], vector: Tensor) -> Tensor:
    """F v = Σ_M Jᵀ (diag π − π πᵀ) J v `[n]`, J the slope of `logits [M, V]` in the weights: a sum, not a mean.

    As ∇(∇KL(π_now ‖ π)·v), the KL over the whole vocabulary; at π = π_now its Hessian is F itself, and nothing of it
    is left but this. Differentiates twice, so everything between the weights and the logits must allow it. `vector`
    `[n]`; linear in the rows of `logits`, so micro-batches add. TRPO, arXiv 1502.05477.
    """
    now = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)
    kept = now.detach()
    divergence = (kept.exp() * (kept - now)).sum()
    slopes = torch.autograd.grad(divergence, weights, create_graph=True, allow_unused=True)
    along = [
        (slope * part).sum()
        for slope, part in zip(slopes, unflatten(vector, weights), strict=True)
        if slope is not None and slope.requires_grad
    ]
    if not along:
        return torch.zeros_like(vector)
    images = torch.autograd.grad(torch.stack(along).sum(), weights, allow_unused=True)
    return flatten([w.new_zeros(w.shape) if image is None else image for image, w in zip(images, weights, strict=True)])


def flatten(parts: list[Tensor]) -> Tensor:
    """All of them end to end, `[n]`, a copy, in float32 at least (so that bfloat16 weights come back unchanged)."""
    wide = torch.float32
    for part in parts:
        wide = torch.promote_types(wide, part.dtype)
    return torch.cat([part.detach().reshape(-1).to(wide) for part in parts])


def unflatten(vector: Tensor, like: list[Tensor]) -> list[Tensor]:
    """`[n]` cut into the shapes and precisions of `like`. Raises ValueError where it does not fit."""
    sizes = [part.numel() for part in like]
    if vector.shape != (sum(sizes),):
        raise ValueError(f"got a vector of shape {tuple(vector.shape)}; expected ({sum(sizes)},), one entry a weight")
    return [piece.view(part.shape).to(part.dtype) for piece, part in zip(vector.split(sizes), like, strict=True)]


@dataclass(frozen=True)
class Search:
    """What a line search found: how much of the step was taken (0: none), what it gained, how far it went.

    `improvement` and `kl` are those of the last try; `backtracks` is how often the step was halved.
    """

    fraction: float
    improvement: float
    kl: float
    backtracks: int

    @property
    def accepted(self) -> bool:
        """Whether any of the tries was good."""
        return self.fraction > 0.0


def line_search(
    attempt: Callable[[float], tuple[float, float]], expected: float, bound: float, accept: float, backtracks: int
) -> Search:
    """Try 1, ½, ¼, … of a step: the first with improvement ≥ accept · fraction · expected and KL ≤ bound.

    `attempt(fraction)` goes there and returns (improvement, KL in nats); what is not finite is refused. `backtracks`
    is how many fractions are tried at most. The caller goes back when none was accepted. The paper
    (TRPO, arXiv 1502.05477) asks for any improvement at all; a share of what was promised is Armijo's condition.
    """
    improvement = kl = 0.0
    for halvings in range(backtracks):
        fraction = 0.5**halvings
        improvement, kl = attempt(fraction)
        if math.isfinite(improvement) and improvement >= accept * fraction * expected and kl <= bound:
            return Search(fraction, improvement, kl, halvings)
    return Search(0.0, improvement, kl, backtracks)


def trust_region(
    max_kl: float = 0.01,
    damping: float = 0.05,
    cg_iterations: int = 10,
    cg_tolerance: float = 1e-10,
    backtracks: int = 10,
    accept: float = 0.1,
    kl_slack: float = 1.5,
    kl_share: float = 0.2,
    seed: int = 0,
) -> Update:
    """One natural step of length β = √(2δ / xᵀ(F + λ)x) along x = (F + λ)⁻¹ g, shortened until it is believed.

    TRPO, arXiv 1502.05477. `g` is minus the gradient of sum(weights · loss) over all chosen tokens; F and the KL are
    means over those of a share `kl_share` of the rows (drawn anew each step, from `seed` and the steps so far; only
    these go through the model for a product), over the whole vocabulary at each. The damping is part of the length,
    so with much of it steps fall short of δ. A step counts when it gains `accept` of what the gradient promised and
    goes no farther than `kl_slack · max_kl`, as the quadratic model is off by some; 1 makes `max_kl` a hard bound. No
    learning rate, no optimiser state, one step a batch.

    Watches `WATCHED`: `trpo/kl`, `trpo/improvement` and `trpo/expected` of what was last tried, `trpo/step_fraction`
    (0 where the search failed), and `trpo/cg_residual` = ‖g − (F + λ)x‖ / ‖g‖. Raises ValueError for impossible
    settings, NumericalError after too many gradients in a row that were not finite.
    """
    _check_step(max_kl, damping, cg_iterations, cg_tolerance)
    _check_search("trust_region", backtracks, accept, kl_slack, kl_share)

    def run(learner: Learner, batch: Batch, algorithm: Algorithm) -> dict[str, float]:
        able = cast(TrustRegionLearner, learner)
        loss, batch = algorithm.loss.terms, batch.with_(weights=algorithm.weigh(batch))
        slope, metrics = able.gradient(batch, loss)
        metrics |= dict.fromkeys(WATCHED, 0.0)
        squared = float(slope.dot(slope))
        if squared == 0.0 or not math.isfinite(squared):  # nothing to learn here, or nothing that can be trusted
            return metrics
        near = able.neighbourhood(batch, some_tokens(batch.mask, kl_share, f"{seed}/{learner.version}"))
        solution = conjugate_gradient(
            lambda v: near.fisher_product(v) + damping * v, -slope, cg_iterations, cg_tolerance
        )
        metrics["trpo/cg_residual"] = math.sqrt(float(solution.residual.dot(solution.residual)) / squared)
        metrics["trpo/cg_iterations"] = float(solution.iterations)
        curvature = float(solution.x.dot(-slope - solution.residual))
        if not 0.0 < curvature < math.inf:
            return metrics
        step = math.sqrt(2.0 * max_kl / curvature) * solution.x
        found, expected = _walk(near, loss, step, -float(slope.dot(step)), kl_slack * max_kl, accept, backtracks)
        if found.accepted:
            able.count_step()
        return {**metrics, **_report(found, expected)}

    label = f"trust_region(max_kl={max_kl:g}, damping={damping:g})"
    asked, able = frozenset({"old_logprobs"}), frozenset({"trust_region"})
    # the gradient is one, a product with F as much as two of its share of the rows, and what is tried at the end some
    # forward ones: one more
    passes = 2.0 + 2.0 * cg_iterations * kl_share
    return Update(label, run, needs=asked, requires=able, uses_optimiser=False, passes=passes)


def backtracked(
    update: Update, max_kl: float = 0.01, backtracks: int = 10, kl_share: float = 0.2, seed: int = 0
) -> Update:
    """Let `update` move the weights, then halve the way that they went until mean KL(π_old ‖ π) ≤ `max_kl`.

    A trust region around any optimiser, without curvature: `backtracked(sgd())`. Where no fraction is near enough, the
    weights go back to where they were. The optimiser's own state (moments, schedule) keeps the steps that it made.
    Watches `trust_region/accepted`, `trust_region/kl`, `trust_region/step_fraction`. Raises ValueError for impossible
    settings.
    """
    if max_kl <= 0:
        raise ValueError(f"backtracked: got max_kl={max_kl}; expected more than 0")
    _check_search("backtracked", backtracks, 0.0, 1.0, kl_share)

    def run(learner: Learner, batch: Batch, algorithm: Algorithm) -> dict[str, float]:
        tokens = some_tokens(batch.mask, kl_share, f"{seed}/{learner.version}")
        near = cast(TrustRegionLearner, learner).neighbourhood(batch, tokens)
        start = near.parameters()
        metrics = update(learner, batch, algorithm)
        way = near.parameters() - start

        def attempt(fraction: float) -> tuple[float, float]:
            if fraction < 1.0:
                near.move(start + fraction * way)
            return 0.0, near.kl()

        found = line_search(attempt, 0.0, max_kl, 0.0, backtracks)
        if not found.accepted:
            near.move(start)
        return {
            **metrics,
            "trust_region/accepted": float(found.accepted),
            "trust_region/kl": found.kl,
            "trust_region/step_fraction": found.fraction,
        }

    label = f"backtracked({update.label}, max_kl={max_kl:g})"
    asked = update.requires | {"trust_region"}
    passes = None if update.passes is None else update.passes + 1.0  # to compare is forward only, a few times
    return replace(update, label=label, function=run, requires=asked, passes=passes)


def some_tokens(mask: Tensor, share: float, seed: str) -> Tensor:
    """`[B, T]`: the chosen tokens of a share of the rows that have any, at least one row, drawn by `seed`.

    Whole rows, so that only these go through the model for a product with F.
    """
    rows = mask.any(1).nonzero().flatten()
    count = min(len(rows), max(1, round(share * len(rows))))
    drawn = rows[sorted(random.Random(seed).sample(range(len(rows)), count))]
    kept = torch.zeros_like(mask)
    kept[drawn] = mask[drawn]
    return kept


def _walk(
    near: Neighbourhood, loss: LossTerms, step: Tensor, expected: float, bound: float, accept: float, backtracks: int
) -> tuple[Search, float]:
    """Go as far along `step` as is believed, or stay to the bit; with what the gradient promises of the last try."""
    start, before = near.parameters(), near.objective(loss)

    def attempt(fraction: float) -> tuple[float, float]:
        near.move(start + fraction * step)
        return before - near.objective(loss), near.kl()

    found = line_search(attempt, expected, bound, accept, backtracks)
    if not found.accepted:
        near.move(start)
    tried = found.fraction if found.accepted else 0.5 ** (backtracks - 1)
    return found, tried * expected


def _report(found: Search, expected: float) -> dict[str, float]:
    return {
        "trpo/accepted": float(found.accepted),
        "trpo/kl": found.kl,
        "trpo/improvement": found.improvement,
        "trpo/expected": expected,
        "trpo/step_fraction": found.fraction,
        "trpo/backtracks": float(found.backtracks),
    }


#: What a trust region watches; all 0 where no step was tried.
WATCHED = (
    "trpo/accepted", "trpo/kl", "trpo/improvement", "trpo/expected", "trpo/step_fraction", "trpo/backtracks",
    "trpo/cg_residual", "trpo/cg_iterations",
)  # fmt: skip


def _check_step(max_kl: float, damping: float, iterations: int, tolerance: float) -> None:
    if max_kl <= 0 or iterations < 1 or damping < 0 or tolerance < 0:
        raise ValueError(
            f"trust_region: got max_kl={max_kl}, cg_iterations={iterations}, damping={damping}, cg_tolerance="
            f"{tolerance}; expected max_kl > 0, at least one iteration, damping ≥ 0 and cg_tolerance ≥ 0"
        )


def _check_search(name: str, backtracks: int, accept: float, slack: float, share: float) -> None:
    if backtracks < 1 or not 0 <= accept < 1 or slack < 1 or not 0 < share <= 1:
        raise ValueError(
            f"{name}: got backtracks={backtracks}, accept={accept}, kl_slack={slack}, kl_share={share}; expected "
            "backtracks ≥ 1, 0 ≤ accept < 1, kl_slack ≥ 1 and 0 < kl_share ≤ 1"
        )
