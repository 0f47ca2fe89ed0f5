"""What an update does besides products, compiled by Numba: norms, gates, rotations and the softmax, and their slopes.

Each goes through memory once forth and once back; see `passes` and `maieutic.models.softmax` for the equations. Rows
are shared out between torch's threads in pieces of `ROWS`. What is summed over rows is summed within a piece, so that
the caller adds pieces up in their order: numbers do not depend on how many threads there are.

    `N` tokens · `E` width · `F` width of the feed-forward part · `h` heads of size `D`
    `M` predictions · `V` vocabulary · `I` ids that are scored of each
"""

from __future__ import annotations

import numpy as np

from maieutic.backends.local.compiled.attending import attend, attend_slope
from maieutic.backends.local.compiled.parts import (
    FAILURES,
    ONE,
    ZERO,
    called,
    compiled,
    exp,
    largest,
    taken,
    team,
)  # fmt: skip

__all__ = [
    "FAILURES", "ROWS", "attend", "attend_slope", "gate", "gate_slope", "norm", "norm_slope", "score", "score_slope",
    "turn",
]  # fmt: skip

ROWS = 32
"""Rows of a piece."""


@compiled
def _norm(counter, states, weight, epsilon, rates, out):  # type: ignore[no-untyped-def]
    called()
    count, width = states.shape[0], np.float32(states.shape[1])
    while True:
        first = taken(counter) * ROWS
        if first >= count:
            break
        for row in range(first, min(first + ROWS, count)):
            own, made = states[row], out[row]
            squares = ZERO
            for e in range(len(own)):
                squares += own[e] * own[e]
            rate = ONE / np.sqrt(squares / width + epsilon)
            rates[row] = rate
            for e in range(len(own)):
                made[e] = own[e] * rate * weight[e]


_norm_together = team(_norm)


@compiled
def norm(crew, states, weight, epsilon, rates, out):  # type: ignore[no-untyped-def]
    """`states [N, E]` times `rates [N]` (one over the root of their mean square) and `weight [E]`."""
    given = (states, weight, epsilon, rates, out)
    _norm_together(crew, np.zeros(1, np.int64), given)


@compiled
def _norm_slope(counter, slope, states, weight, rates, to_states, to_weight):  # type: ignore[no-untyped-def]
    called()
    count, width = states.shape[0], np.float32(states.shape[1])
    while True:
        piece = taken(counter)
        if piece * ROWS >= count:
            break
        summed = to_weight[piece]
        summed[:] = ZERO
        for row in range(piece * ROWS, min((piece + 1) * ROWS, count)):
            above, own, made, rate = slope[row], states[row], to_states[row], rates[row]
            met = ZERO
            for e in range(len(own)):
                both = above[e] * own[e]
                summed[e] += both * rate
                met += both * weight[e]
            pull = met * rate * rate * rate / width
            for e in range(len(own)):
                made[e] = above[e] * weight[e] * rate - own[e] * pull


_norm_slope_together = team(_norm_slope)


@compiled
def norm_slope(crew, slope, states, weight, rates, to_states, to_weight):  # type: ignore[no-untyped-def]
    """Of `norm`, to the states `[N, E]` and, by pieces, to the weight `[N / ROWS, E]`."""
    given = (slope, states, weight, rates, to_states, to_weight)
    _norm_slope_together(crew, np.zeros(1, np.int64), given)


@compiled
def _share(x):  # type: ignore[no-untyped-def]
    """1 / (1 + exp(−x))."""
    power = exp(-abs(x))
    return (ONE if x >= ZERO else power) / (ONE + power)


@compiled
def _gate(counter, gates, ups, out):  # type: ignore[no-untyped-def]
    called()
    count = gates.shape[0]
    while True:
        first = taken(counter) * ROWS
        if first >= count:
            break
        for row in range(first, min(first + ROWS, count)):
            a, b, made = gates[row], ups[row], out[row]
            for f in range(len(a)):
                made[f] = a[f] * _share(a[f]) * b[f]


_gate_together = team(_gate)


@compiled
def gate(crew, gates, ups, out):  # type: ignore[no-untyped-def]
    """`silu(gates) · ups`, all `[N, F]`."""
    given = (gates, ups, out)
    _gate_together(crew, np.zeros(1, np.int64), given)


@compiled
def _gate_slope(counter, slope, gates, ups, to_gates, to_ups):  # type: ignore[no-untyped-def]
    called()
    count = gates.shape[0]
    while True:
        first = taken(counter) * ROWS
        if first >= count:
            break
        for row in range(first, min(first + ROWS, count)):
            above, a, b, to_a, to_b = slope[row], gates[row], ups[row], to_gates[row], to_ups[row]
            for f in range(len(a)):
                share = _share(a[f])
                to_a[f] = above[f] * b[f] * share * (ONE + a[f] * (ONE - share))
                to_b[f] = above[f] * a[f] * share


_gate_slope_together = team(_gate_slope)


@compiled
def gate_slope(crew, slope, gates, ups, to_gates, to_ups):  # type: ignore[no-untyped-def]
    """Of `gate`, to both."""
    given = (slope, gates, ups, to_gates, to_ups)
    _gate_slope_together(crew, np.zeros(1, np.int64), given)


@compiled
def _turn(counter, heads, cos, sin, sign, out):  # type: ignore[no-untyped-def]
    called()
    count, half = heads.shape[0], cos.shape[1]
    while True:
        first = taken(counter) * ROWS
        if first >= count:
            break
        for row in range(first, min(first + ROWS, count)):
            c, s = cos[row], sin[row]
            for h in range(heads.shape[1]):
                before, after = heads[row, h, :half], heads[row, h, half:]
                low, high = out[row, h, :half], out[row, h, half:]
                for d in range(half):
                    low[d] = before[d] * c[d] - sign * after[d] * s[d]
                    high[d] = after[d] * c[d] + sign * before[d] * s[d]


_turn_together = team(_turn)


@compiled
def turn(crew, heads, cos, sin, sign, out):  # type: ignore[no-untyped-def]
    """`heads [N, h, D]` rotated by `cos`, `sin [N, D / 2]`; with a `sign` of −1 back again."""
    given = (heads, cos, sin, sign, out)
    _turn_together(crew, np.zeros(1, np.int64), given)


@compiled
def _score(counter, logits, ids, warmth, found, spread, total):  # type: ignore[no-untyped-def]
    called()
    lanes = np.empty(16, np.float32)
    while True:
        row = taken(counter)
        if row >= logits.shape[0]:
            break
        own = logits[row]
        top = largest(own, lanes)
        mass, met = ZERO, ZERO
        for v in range(len(own)):
            below = (own[v] - top) * warmth
            power = exp(below)
            mass += power
            met += power * below
        rest = np.float32(np.log(mass))
        total[row] = top * warmth + rest
        spread[row] = rest - met / mass
        for i in range(ids.shape[1]):
            found[row, i] = (own[ids[row, i]] - top) * warmth - rest


_score_together = team(_score)


@compiled
def score(crew, logits, ids, warmth, found, spread, total):  # type: ignore[no-untyped-def]
    """Of the softmax of `logits [M, V]` times `warmth`: log-probs of `ids [M, I]`, entropy `[M]`, logsumexp `[M]`."""
    given = (logits, ids, warmth, found, spread, total)
    _score_together(crew, np.zeros(1, np.int64), given)


@compiled
def _score_slope(counter, logits, ids, warmth, spread, total, to_found, to_spread):  # type: ignore[no-untyped-def]
    called()
    while True:
        row = taken(counter)
        if row >= logits.shape[0]:
            break
        own, pull, whole, rest = logits[row], to_spread[row], ZERO, total[row]
        for i in range(ids.shape[1]):
            whole += to_found[row, i]
        if pull == ZERO:
            for v in range(len(own)):
                own[v] = -whole * warmth * exp(own[v] * warmth - rest)
        else:
            for v in range(len(own)):
                below = own[v] * warmth - rest
                own[v] = -((below + spread[row]) * pull + whole) * warmth * exp(below)
        for i in range(ids.shape[1]):
            own[ids[row, i]] += to_found[row, i] * warmth


_score_slope_together = team(_score_slope)


@compiled
def score_slope(crew, logits, ids, warmth, spread, total, to_found, to_spread):  # type: ignore[no-untyped-def]
    """Of `score`, to the logits, in their place, from slopes to the log-probs `[M, I]` and to the entropies `[M]`."""
    given = (logits, ids, warmth, spread, total, to_found, to_spread)
    _score_slope_together(crew, np.zeros(1, np.int64), given)
