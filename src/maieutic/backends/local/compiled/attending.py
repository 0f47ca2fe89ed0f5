"""Attention of packed rows and its slope, compiled by Numba; see `segments` for what it computes.

A *bundle* is some completions of one prompt, or one segment by itself. Whoever takes a bundle, for one key-value head,
lays its prompt's keys and values out once, and then those of each completion behind them: a completion's queries see
both in one softmax. In the slope each bundle has sums of its own for its prompt, which the caller adds up in their
order: numbers do not depend on how many threads there are.

    `N` tokens · `H` query heads · `K` key-value heads · `D` size of a head, a multiple of 8
    `U` bundles · `S` segments · `P` tokens of the prompts of all bundles · `C` columns that a segment sees at most
"""

from __future__ import annotations

import numpy as np

from maieutic.backends.local.compiled.parts import (
    FAILURES,
    ONE,
    ZERO,
    across,
    called,
    compiled,
    down,
    exp,
    largest,
    taken,
    team,
)  # fmt: skip

__all__ = ["FAILURES", "attend", "attend_slope"]

QUERIES = 32
"""Queries that are worked on together: their scores stay in the cache."""


@compiled
def _lay_out(flat, first, count, head, at, apart, turned, straight):  # type: ignore[no-untyped-def]
    """`flat [N, K, D]` of one head: `straight [C, D]` from row `at` on, and, unless it is empty, `turned [D, apart]`
    from column `at` on."""
    called()
    size = flat.shape[2]
    for token in range(count):
        own = flat[first + token, head]
        made = straight[(at + token) * size : (at + token + 1) * size]
        for d in range(size):
            made[d] = own[d]
    for start in range(0, count if len(turned) else 0, 16):
        stop = min(start + 16, count)
        for d in range(size):
            place = d * apart + at
            for token in range(start, stop):
                turned[place + token] = straight[(at + token) * size + d]


@compiled
def _columns(bounds, widths, prompts):  # type: ignore[no-untyped-def]
    """`C`, and how far apart rows of so many columns lie."""
    most = 0
    for unit in range(len(prompts)):
        for segment in range(bounds[unit], bounds[unit + 1]):
            most = max(most, prompts[unit] + widths[segment])
    return most, (most + 15) // 16 * 16 + 16


@compiled
def _attend(counter, query, key, value, scaling, bounds, starts, widths, firsts, prompts, out, total):  # type: ignore[no-untyped-def]
    """`attend`: the bundles and heads that `counter` gives."""
    called()
    heads, size = key.shape[1], key.shape[2]
    every = query.shape[1]
    share = every // heads
    most, apart = _columns(bounds, widths, prompts)
    turned, straight = np.zeros(size * apart, np.float32), np.empty(most * size, np.float32)
    values, unread = np.empty(most * size, np.float32), np.empty(0, np.float32)
    scores, read = np.empty(QUERIES * apart, np.float32), np.empty(QUERIES * size, np.float32)
    lanes, parts, asked = np.empty(16, np.float32), np.empty(QUERIES, np.float32), query.reshape(-1)
    while True:
        unit, head = divmod(taken(counter), heads)
        if unit >= len(prompts):
            break
        prompt = prompts[unit]
        _lay_out(key, firsts[unit], prompt, head, 0, apart, turned, straight)
        _lay_out(value, firsts[unit], prompt, head, 0, apart, unread, values)
        for segment in range(bounds[unit], bounds[unit + 1]):
            start, width = starts[segment], widths[segment]
            _lay_out(key, start, width, head, prompt, apart, turned, straight)
            _lay_out(value, start, width, head, prompt, apart, unread, values)
            for begin in range(0, width, QUERIES):
                rows = min(QUERIES, width - begin)
                reach = prompt + begin + rows
                for h in range(head * share, (head + 1) * share):
                    at = ((start + begin) * every + h) * size
                    across(
                        rows, asked, at, every * size, turned, 0, apart, size, scores, 0, apart, (reach + 7) // 8 * 8
                    )
                    for i in range(rows):
                        seen = prompt + begin + i + 1
                        own, beyond = scores[i * apart : i * apart + seen], scores[i * apart + seen : i * apart + reach]
                        top, mass = largest(own, lanes), ZERO
                        for c in range(len(own)):
                            power = exp((own[c] - top) * scaling)
                            own[c] = power
                            mass += power
                        beyond[:] = ZERO
                        total[start + begin + i, h] = top * scaling + np.float32(np.log(mass))
                        parts[i] = ONE / mass
                    across(rows, scores, 0, apart, values, 0, size, reach, read, 0, size, size)
                    for i in range(rows):
                        made, found = out[start + begin + i, h], read[i * size : (i + 1) * size]
                        for d in range(size):
                            made[d] = found[d] * parts[i]


_attend_together = team(_attend)


@compiled
def attend(crew, query, key, value, scaling, bounds, starts, widths, firsts, prompts, out, total):  # type: ignore[no-untyped-def]
    """Each token reads what is before it in its own segment, and its bundle's prompt.

    query [N, H, D], key, value [N, K, D]
    bounds [U + 1]      the segments of bundle u are `bounds[u] … bounds[u + 1] - 1`
    starts, widths [S]  where they begin, and their tokens
    firsts, prompts [U] where each bundle's prompt begins, and its tokens (0: there is none)
    out [N, H, D], total [N, H]     what is read, and the logsumexp of the scores
    """
    given = (query, key, value, scaling, bounds, starts, widths, firsts, prompts, out, total)
    _attend_together(crew, np.zeros(1, np.int64), given)


@compiled
def _pull(scores, pulls, above, read, seen, reach, scaling, total):  # type: ignore[no-untyped-def]
    """Of one query: its scores become their softmax, and its `pulls` (slope to what each column gave) the slope to the
    scores before scaling; both 0 from `seen` to `reach`."""
    called()
    met = ZERO
    for d in range(len(above)):
        met += above[d] * read[d]
    own, other = scores[:seen], pulls[:seen]
    for c in range(len(own)):
        share = exp(min(own[c] * scaling - total, ZERO))
        own[c] = share
        other[c] = share * (other[c] - met) * scaling
    scores[seen:reach] = ZERO
    pulls[seen:reach] = ZERO


@compiled
def _hand_over(sums, at, count, head, first, flat):  # type: ignore[no-untyped-def]
    """`sums [C, D]` from row `at` on to `flat [N, K, D]` of one head, from token `first` on."""
    size = flat.shape[2]
    for token in range(count):
        made, own = flat[first + token, head], sums[(at + token) * size : (at + token + 1) * size]
        for d in range(size):
            made[d] = own[d]


@compiled
def _attend_slope(  # type: ignore[no-untyped-def]
    counter, slope, query, key, value, out, total, scaling, bounds, starts, widths, firsts, prompts, places,
    to_query, to_key, to_value, prompt_key, prompt_value,
):  # fmt: skip
    """`attend_slope`: the bundles and heads that `counter` gives."""
    called()
    heads, size = key.shape[1], key.shape[2]
    every = query.shape[1]
    share, step = every // heads, every * size
    most, apart = _columns(bounds, widths, prompts)
    keys_turned, keys = np.zeros(size * apart, np.float32), np.empty(most * size, np.float32)
    values_turned, values = np.zeros(size * apart, np.float32), np.empty(most * size, np.float32)
    key_sums, value_sums = np.empty(most * size, np.float32), np.empty(most * size, np.float32)
    scores, pulls = np.empty(QUERIES * apart, np.float32), np.empty(QUERIES * apart, np.float32)
    asked, above, made = query.reshape(-1), slope.reshape(-1), to_query.reshape(-1)
    while True:
        unit, head = divmod(taken(counter), heads)
        if unit >= len(prompts):
            break
        prompt = prompts[unit]
        _lay_out(key, firsts[unit], prompt, head, 0, apart, keys_turned, keys)
        _lay_out(value, firsts[unit], prompt, head, 0, apart, values_turned, values)
        key_sums[: prompt * size] = ZERO
        value_sums[: prompt * size] = ZERO
        for segment in range(bounds[unit], bounds[unit + 1]):
            start, width = starts[segment], widths[segment]
            _lay_out(key, start, width, head, prompt, apart, keys_turned, keys)
            _lay_out(value, start, width, head, prompt, apart, values_turned, values)
            key_sums[prompt * size : (prompt + width) * size] = ZERO
            value_sums[prompt * size : (prompt + width) * size] = ZERO
            for begin in range(0, width, QUERIES):
                rows = min(QUERIES, width - begin)
                reach = prompt + begin + rows
                whole = (reach + 7) // 8 * 8
                for h in range(head * share, (head + 1) * share):
                    at = ((start + begin) * every + h) * size
                    across(rows, asked, at, step, keys_turned, 0, apart, size, scores, 0, apart, whole)
                    across(rows, above, at, step, values_turned, 0, apart, size, pulls, 0, apart, whole)
                    for i in range(rows):
                        token = start + begin + i
                        _pull(
                            scores[i * apart : (i + 1) * apart], pulls[i * apart : (i + 1) * apart], slope[token, h],
                            out[token, h], prompt + begin + i + 1, reach, scaling, total[token, h],
                        )  # fmt: skip
                    across(rows, pulls, 0, apart, keys, 0, size, reach, made, at, step, size)
                    down(reach, pulls, 0, apart, asked, at, step, rows, key_sums, 0, size, size)
                    down(reach, scores, 0, apart, above, at, step, rows, value_sums, 0, size, size)
            _hand_over(key_sums, prompt, width, head, start, to_key)
            _hand_over(value_sums, prompt, width, head, start, to_value)
        _hand_over(key_sums, 0, prompt, head, places[unit], prompt_key)
        _hand_over(value_sums, 0, prompt, head, places[unit], prompt_value)


_attend_slope_together = team(_attend_slope)


@compiled
def attend_slope(  # type: ignore[no-untyped-def]
    crew, slope, query, key, value, out, total, scaling, bounds, starts, widths, firsts, prompts, places,
    to_query, to_key, to_value, prompt_key, prompt_value,
):  # fmt: skip
    """Of `attend`, with what it gave, from the slope `[N, H, D]` to what is read.

    to_query [N, H, D], to_key, to_value [N, K, D]      without what bundles add to their prompts:
    prompt_key, prompt_value [P, K, D]                  that, of bundle u from row `places[u]` on
    """
    given = (
        slope, query, key, value, out, total, scaling, bounds, starts, widths, firsts, prompts,
        places, to_query, to_key, to_value, prompt_key, prompt_value,
    )  # fmt: skip
    _attend_slope_together(crew, np.zeros(1, np.int64), given)
