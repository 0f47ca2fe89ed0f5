"""The reward of a reinforcement-learned teacher: what an explanation is worth to a student that stays as it is.

    r_SS   = mean_{j∈Sol} lpSⱼ + α · min_{j∈Sol} lpSⱼ        is the solution understood, and no token of it left open?
    klⱼ    = lpTⱼ − lpSⱼ                                      what the teacher says and the student would not
    r_KL   = mean_{j∈Exp} klⱼ + α · max_{j∈Exp} klⱼ           is it natural for the student, and nowhere a leap?
    r      = r_SS − λ · r_KL + r_match                        r_match = −1 where the explanation was not closed

(arXiv 2506.08388, §3; α = 0.01, λ = 3 and the rules for what is empty as in the code released with it, whose run file
sets other coefficients than its defaults.) `Sol` are the solution's tokens, `Exp` those of the explanation. lpS are the
log-probs of a student that has read the question alone before the explanation, lpT those of the teacher, which has read
the solution too; nats. The weight α is small and its terms are not: the worst token may have a log-prob of −20.

Letters: `S` tokens of the solution, `E` tokens of the explanation, `N` candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maieutic.core.kl import k1

#: What a log-prob score is where the solution has no tokens, and a KL score where the explanation has none.
EMPTY_SOLUTION, EMPTY_EXPLANATION = -1.0, 1.0


@dataclass(frozen=True)
class Terms:
    """How the parts are weighed; the defaults are those of the released run.

    solution   weights of mean and min of the solution's log-probs: 1 and α.
    kl         weights of mean and max of the divergence: λ and λα.
    unclosed   added where the closing tag is missing.
    estimator  of the divergence, of (lpT, lpS): `k1` or `k3` of `maieutic.core.kl`.
    entropy    False: klⱼ = −lpSⱼ, without what the teacher thinks of its own words.
    limit      no score is beyond ±limit.

    Raises ValueError for a limit that is not positive.
    """

    solution: tuple[float, float] = (1.0, 0.01)
    kl: tuple[float, float] = (3.0, 0.03)
    unclosed: float = -1.0
    estimator: Callable[[Tensor, Tensor], Tensor] = k1
    entropy: bool = True
    limit: float = 1e5

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ValueError(f"got limit={self.limit}; expected more than 0, beyond which scores are cut")

    def __call__(self, solution: Tensor, student: Tensor, teacher: Tensor, *, closed: bool) -> Worth:
        """What an explanation is worth.

        `solution [S]` and `student [E]` are lpS of solution and explanation, `teacher [E]` lpT of the explanation.
        Raises ValueError for tensors of other shapes. A score that is no number (of an empty span) is
        `EMPTY_SOLUTION` or `EMPTY_EXPLANATION`.
        """
        if solution.dim() != 1 or student.dim() != 1 or student.shape != teacher.shape:
            raise ValueError(
                f"got log-probs of shapes {tuple(solution.shape)}, {tuple(student.shape)}, {tuple(teacher.shape)}; "
                "expected [S], [E] and [E]"
            )
        kl = self.estimator(teacher, student) if self.entropy else -student
        scores = {
            "solution/mean": self._score(solution, torch.mean, EMPTY_SOLUTION),
            "solution/min": self._score(solution, torch.min, EMPTY_SOLUTION),
            "kl/mean": self._score(kl, torch.mean, EMPTY_EXPLANATION),
            "kl/max": self._score(kl, torch.max, EMPTY_EXPLANATION),
        }
        weights = (*self.solution, -self.kl[0], -self.kl[1])
        match = 0.0 if closed else self.unclosed
        return Worth(sum(w * s for w, s in zip(weights, scores.values(), strict=True)) + match, scores, match)

    def _score(self, values: Tensor, reduce: Callable[[Tensor], Tensor], empty: float) -> float:
        value = float(reduce(values)) if values.numel() else float("nan")
        return min(max(value, -self.limit), self.limit) if value == value else empty


@dataclass(frozen=True, slots=True)
class Worth:
    """The reward of an explanation, the four scores that it is a weighted sum of, and what the missing tag adds.

    >>> Worth(-2.0167, {"solution/mean": -0.8667, "solution/min": -2.0, "kl/mean": 0.3667, "kl/max": 1.0}, 0.0)
    """

    reward: float
    scores: Mapping[str, float]
    match: float

    @property
    def parts(self) -> dict[str, float]:
        """All of it, to be recorded."""
        return {**self.scores, "match": self.match}


def choose_explanation(rewards: Sequence[float | None], closed: Sequence[bool], fallback: bool) -> int | None:
    """The candidate `[N]` of the highest reward, the first of equals; None: take the reserved explanation instead.

    As released with arXiv 2506.08388: where the best one was not closed (r_match < 0) and there is a reserved
    explanation (`fallback`), that one is taken. Candidates without a reward are passed over. Raises ValueError for
    lists of different lengths.
    """
    if len(rewards) != len(closed):
        raise ValueError(f"got {len(rewards)} rewards and {len(closed)} closed; expected one of each a candidate")
    scored = [(reward, -i) for i, reward in enumerate(rewards) if reward is not None]
    best = -max(scored)[1] if scored else None
    return None if best is None or (fallback and not closed[best]) else best
