"""Unbiased estimates, from n samples a problem, of what k samples would have done.

Letters: `N` problems, `n` samples of one problem, `c` of them correct, `k <= n` drawn without replacement, `C` clusters
of equal answers.

    pass@k      at least one of k is correct                               Chen et al., arXiv 2107.03374
    strict@k    more than half of k are correct (5 of 8; 4 of 8 is not)
    vote@k      the most frequent answer of k is correct (maj@k of Havrilla et al., arXiv 2403.04642; cons@k)
    best-of-k   the highest-scored of k is correct

Every function returns one number a problem; the metric is their mean over problems. "Majority" has two meanings in the
literature, hence two functions: strict@k never looks at which wrong answers agree, vote@k does, and
vote@k >= strict@k for every problem.

All are exact expectations over the C(n, k) subsets (not resampled with replacement, which is biased low), computed
from ratios of binomials, so that nothing overflows at n = 10^4.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Elements of the largest temporary array of `vote_at_k`.
_CHUNK = 4_000_000


class Ties(Enum):
    """What a vote is worth when the correct answer shares first place with others."""

    EXPECTED = "expected"
    """1 / (answers in first place): the tie is broken at random."""
    OPTIMISTIC = "optimistic"
    """1."""
    PESSIMISTIC = "pessimistic"
    """0."""


class Nulls(Enum):
    """What a sample without an answer does in a vote. It never wins."""

    ABSTAIN = "abstain"
    """It takes a place among the k and casts no vote."""
    WRONG_ANSWER = "wrong_answer"
    """All of them together vote for one answer, which is wrong."""


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> Floats:
    """Probability that at least one of k samples is correct: `1 - C(n-c, k) / C(n, k)`, `[N]`.

    Computed as `1 - exp(sum over j < k of log(1 - c / (n - j)))`, and 1 where n - c < k. Chen et al.,
    arXiv 2107.03374, equation 1. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.

    >>> round(float(pass_at_k(10, 3, 5)), 6)
    0.916667
    """
    samples, correct = _counts(n, c, k)
    certain = samples - correct < k
    remaining = np.where(certain, 0, correct)  # their logarithm would be of 0; they are 1 below
    log_none = np.zeros(samples.shape)
    for j in range(k):
        log_none += np.log1p(-remaining / (samples - j))
    return np.where(certain, 1.0, -np.expm1(log_none))


def strict_majority_at_k(n: ArrayLike, c: ArrayLike, k: int) -> Floats:
    """Probability that more than half of k samples are correct, `[N]`.

    `sum over j >= floor(k/2) + 1 of C(c, j) C(n-c, k-j) / C(n, k)`, the tail of a hypergeometric distribution. Its
    terms come from the ratio of neighbours, `p(j+1) / p(j) = (c-j)(k-j) / ((j+1)(n-c-k+j+1))`, and are normalised by
    their sum. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.

    >>> strict_majority_at_k([8, 8], [5, 4], 8).tolist()
    [1.0, 0.0]
    """
    samples, correct = (x[..., None] for x in _counts(n, c, k))
    j = np.arange(k + 1)
    possible = (j <= correct) & (k - j <= samples - correct)
    step = possible[..., :-1] & possible[..., 1:]
    above = np.where(step, (correct - j[:-1]) * (k - j[:-1]), 1).astype(float)
    below = np.where(step, (j[:-1] + 1) * (samples - correct - k + j[:-1] + 1), 1).astype(float)
    logs = np.concatenate([np.zeros((*above.shape[:-1], 1)), np.cumsum(np.log(above) - np.log(below), -1)], -1)
    logs = np.where(possible, logs, -np.inf)
    terms = np.exp(logs - logs.max(-1, keepdims=True))
    return terms[..., k // 2 + 1 :].sum(-1) / terms.sum(-1)


def vote_at_k(
    correct: ArrayLike,
    others: Sequence[int] | Sequence[Sequence[int]] | NDArray[np.integer],
    k: int,
    *,
    ties: Ties = Ties.EXPECTED,
    nulls: ArrayLike = 0,
    null_votes: Nulls = Nulls.ABSTAIN,
) -> Floats:
    """Probability that the most frequent answer among k samples is the correct one, `[N]`.

    `correct [N]` counts the samples with the correct answer, `others` (N sequences of any lengths) those of each wrong
    answer, `nulls [N]` those without an answer, so that n is their sum. One problem may be given as `correct` an
    integer and `others` a flat sequence. If none of the k has an answer, the vote is wrong.

    With m votes for the correct answer, every other answer may have up to m, and t of them exactly m:

        sum over m = 1..k of  C(n_0, m) E_x [z^(k-m)]  C-fold product over i of (sum over j < m of C(n_i, j) z^j
                                                                                 + x C(n_i, m) z^m)   /  C(n, k)

    where x marks a tie: x = 1 makes ties count fully, x = 0 not at all, and the mean over x in [0, 1] gives
    `integral of x^t = 1 / (t+1)`; Gauss-Legendre nodes compute that integral exactly, x^t being a polynomial.
    Binomials are replaced by binomial probabilities at p about k/n, a factor that cancels, so nothing overflows.

    Raises ValueError for negative counts, lengths that differ, and k outside 1..n.

    >>> round(float(vote_at_k(3, [2, 1], 4)), 6)
    0.7
    """
    scalar = np.ndim(correct) == 0
    right = np.atleast_1d(np.asarray(correct, dtype=np.int64))
    rows = [others] if scalar else others
    wrong = _clusters(cast(Sequence[Sequence[int]], rows), right)
    silent = np.broadcast_to(np.asarray(nulls, dtype=np.int64), right.shape).copy()
    if null_votes is Nulls.WRONG_ANSWER:
        wrong = np.concatenate([wrong, silent[:, None]], 1)
        silent = np.zeros_like(silent)
    if min(right.min(initial=0), wrong.min(initial=0), silent.min(initial=0)) < 0:
        raise ValueError("vote@k: got a negative count; expected how many samples gave each answer")
    _counts(right + wrong.sum(1) + silent, right, k)
    wrong = -np.sort(-wrong, axis=1)[:, : max(1, int((wrong > 0).sum(1).max(initial=0)))]
    # Problems with the same counts have the same vote, to the last bit, and are computed once.
    distinct, place = np.unique(np.column_stack([right, silent, wrong]), axis=0, return_inverse=True)
    size = max(1, _CHUNK // (wrong.shape[1] * (k + 1)))
    values = [_vote(distinct[i : i + size], k, ties) for i in range(0, len(distinct), size)]
    result = np.concatenate([np.zeros(0), *values])[place.reshape(-1)]
    return result[0] if scalar else result


def best_of_k(scores: ArrayLike, correct: ArrayLike, k: int) -> Floats:
    """Expected correctness of the highest-scored of k samples; `scores`, `correct` `[N, n]` or `[n]`, result `[N]`.

    With samples ranked by score, i = 1 the lowest: `sum over i of correct_(i) C(i-1, k-1) / C(n, k)`; within a block
    of equal scores correctness is averaged, which is a tie broken at random. `correct` may be any number (a reward).
    Raises ValueError for shapes that differ, a score that is not a number, and k outside 1..n.

    >>> best_of_k([0.2, 0.3, 0.1, 0.9, 0.4], [1, 1, 1, 0, 0], 5).item()
    0.0
    """
    s, right = np.asarray(scores, dtype=float), np.asarray(correct, dtype=float)
    if s.shape != right.shape or s.ndim not in (1, 2):
        raise ValueError(f"best-of-k: got scores {s.shape} and correct {right.shape}; expected both [N, n] or both [n]")
    if np.isnan(s).any():
        raise ValueError("best-of-k: got a score that is not a number; score every sample or leave it out")
    flat = s.ndim == 1
    s, right = np.atleast_2d(s), np.atleast_2d(right)
    n = s.shape[1]
    _check_k(k, n)
    order = np.argsort(s, axis=1, kind="stable")
    s, right = np.take_along_axis(s, order, 1), np.take_along_axis(right, order, 1)
    rank = np.arange(n, 0, -1)
    # w(n) = k/n and w(i) / w(i+1) = C(i-1, k-1) / C(i, k-1) = (i+1-k) / i, from the top rank down.
    ratios = np.concatenate([[k / n], np.maximum(rank[1:] + 1 - k, 0) / rank[1:]])
    weights = np.broadcast_to(np.cumprod(ratios)[::-1], s.shape)
    starts = np.concatenate([np.ones((len(s), 1), dtype=bool), s[:, 1:] != s[:, :-1]], 1)
    block = np.cumsum(starts.reshape(-1)) - 1
    mean = np.bincount(block, right.reshape(-1)) / np.maximum(np.bincount(block), 1)
    result = (weights * mean[block].reshape(s.shape)).sum(1)
    return result[0] if flat else result


def _vote(rows: Ints, k: int, ties: Ties) -> Floats:
    """`vote_at_k` of checked rows `[N, 2 + C]`: correct, null, and wrong answers in falling order."""
    right, silent, wrong = rows[:, 0], rows[:, 1], rows[:, 2:]
    n = rows.sum(1)
    result = np.zeros(len(rows))
    whole = n == k
    # Nothing is left to chance when all samples are drawn: no rounding error either.
    level = (wrong == right[:, None]).sum(1)
    won = (wrong <= right[:, None]).all(1) & (right > 0)
    result[whole] = (won * _worth(level, ties))[whole]
    drawn = ~whole
    if drawn.any():
        result[drawn] = _vote_drawn(right[drawn], silent[drawn], wrong[drawn], n[drawn], k, ties)
    return result


def _vote_drawn(right: Ints, silent: Ints, wrong: Ints, n: Ints, k: int, ties: Ties) -> Floats:
    """The generating function of `vote_at_k`, for k < n."""
    p = (k + 0.5) / (n + 1)
    first = _binomial(right, p, k)
    quiet = _binomial(silent, p, k)
    rest = _binomial(wrong, p[:, None], k)
    most = wrong.max(0).tolist()
    total = np.zeros(len(n))
    for m in range(1, min(k, int(right.max())) + 1):
        room = k - m
        at, weight = _tie_nodes(room // m, ties)
        ways = np.repeat(quiet[:, None, : room + 1], len(at), 1)  # [N, X, used]
        for i in range(wrong.shape[1]):
            grown = np.zeros_like(ways)
            for j in range(min(m, room, most[i]) + 1):
                factor = rest[:, i, j, None] * (at if j >= m else np.ones_like(at))
                grown[..., j:] += factor[..., None] * ways[..., : room + 1 - j]
            ways = grown
        total += first[:, m] * (ways[..., room] @ weight)
    all_k = _binomial(n, p, k)[:, k]
    return np.clip(total / all_k, 0.0, 1.0)


def _tie_nodes(most: int, ties: Ties) -> tuple[Floats, Floats]:
    """Nodes and weights `[X]` at which the tie marker x is evaluated; exact for up to `most` ties."""
    if ties is Ties.OPTIMISTIC:
        return np.ones(1), np.ones(1)
    if ties is Ties.PESSIMISTIC:
        return np.zeros(1), np.ones(1)
    # X nodes integrate polynomials of degree 2 X - 1 exactly.
    at, weight = np.polynomial.legendre.leggauss(most // 2 + 1)
    return (at + 1) / 2, weight / 2


def _worth(level: Ints, ties: Ties) -> Floats:
    """What a first place shared with `level` other answers is worth."""
    worth = {Ties.EXPECTED: 1 / (level + 1), Ties.OPTIMISTIC: np.ones(level.shape), Ties.PESSIMISTIC: level < 1}
    return np.asarray(worth[ties], dtype=float)


def _binomial(n: Ints, p: Floats, k: int) -> Floats:
    """`C(n, j) p^j (1-p)^(n-j)` for j = 0..k: `[..., k+1]`, 0 where j > n."""
    j = np.arange(k)
    left = n[..., None] - j
    steps = np.log(np.maximum(left, 1) / (j + 1)) + (np.log(p) - np.log1p(-p))[..., None]
    start = np.broadcast_to(n * np.log1p(-p), n.shape)[..., None]
    logs = np.concatenate([start, start + np.cumsum(np.where(left > 0, steps, -np.inf), -1)], -1)
    return np.exp(logs)


def _clusters(others: Sequence[Sequence[int]], right: Ints) -> Ints:
    """Ragged counts as `[N, C]`, filled up with zeros (an answer nobody gave)."""
    if len(others) != len(right):
        raise ValueError(f"vote@k: got {len(right)} correct counts and {len(others)} lists of others; expected as many")
    width = max([1, *(len(row) for row in others)])
    table = np.zeros((len(others), width), dtype=np.int64)
    for i, row in enumerate(others):
        table[i, : len(row)] = row
    return table


def _counts(n: ArrayLike, c: ArrayLike, k: int) -> tuple[Ints, Ints]:
    samples, correct = np.broadcast_arrays(np.asarray(n), np.asarray(c))
    if samples.dtype.kind not in "iu" or correct.dtype.kind not in "iu":
        raise ValueError(f"got n of {samples.dtype} and c of {correct.dtype}; expected whole numbers of samples")
    if samples.size and (int(correct.min()) < 0 or (correct > samples).any()):
        raise ValueError("got a problem with fewer samples than correct samples; expected 0 <= c <= n")
    _check_k(k, int(samples.min()) if samples.size else k)
    return samples.astype(np.int64), correct.astype(np.int64)


def _check_k(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(
            f"got k = {k} with {n} samples of a problem; expected 1 <= k <= {n}; draw more samples a problem"
        )
