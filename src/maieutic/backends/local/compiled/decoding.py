"""What a decode step does besides products, compiled by Numba: attention, norms, rotations and the draw.

torch has these as dozens of operations, each of which passes over memory and is called by itself. Here a layer's are
two norms and one attention. Used by `fused` alone; compiled when first called, in seconds, and kept on disk from then
on. A `crew` is what `kernels.crew` says: with whose threads, and how many, to work.

    `R` rows · `U` units: some rows of one prompt · `F` prompts of a shelf, kept once · `P` columns of one
    `H` query heads · `K` key-value heads · `D` size of a head · `W` columns of a page · `V` vocabulary · `E` width
"""

from __future__ import annotations

import numpy as np

from maieutic.backends.local.compiled.parts import (
    ONE,
    ZERO,
    across,
    called,
    compiled,
    exp,
    largest,
    powers,
    taken,
    team,
    wide,
)  # fmt: skip

BLOCK = 64
"""Tokens whose probabilities are summed up before they are cumulated, as in `rows.draw`."""


@compiled
def rms_norm(states, weight, epsilon, out):  # type: ignore[no-untyped-def]
    """`states [R, E]` over the root of their mean square, times `weight [E]`."""
    width = np.float32(states.shape[1])
    for row in range(states.shape[0]):
        own, made = states[row], out[row]
        squares = ZERO
        for e in range(len(own)):
            squares += own[e] * own[e]
        factor = ONE / np.sqrt(squares / width + epsilon)
        for e in range(len(own)):
            made[e] = own[e] * factor * weight[e]


@compiled
def _turned(head, weight, epsilon, cos, sin, factor, out):  # type: ignore[no-untyped-def]
    """One head `[D]`, with a norm where there is a `weight [D]`, rotated by `cos`, `sin [D / 2]`, times `factor`."""
    called()
    half = len(cos)
    before, after = head[:half], head[half:]
    if len(weight):
        squares = ZERO
        for d in range(len(head)):
            squares += head[d] * head[d]
        root = ONE / np.sqrt(squares / np.float32(len(head)) + epsilon)
        for d in range(half):
            x, y = before[d] * root * weight[d], after[d] * root * weight[half + d]
            out[d] = (x * cos[d] - y * sin[d]) * factor
            out[half + d] = (y * cos[d] + x * sin[d]) * factor
    else:
        for d in range(half):
            out[d] = (before[d] * cos[d] - after[d] * sin[d]) * factor
            out[half + d] = (after[d] * cos[d] + before[d] * sin[d]) * factor


@compiled
def _softmax(scores, prompt, start, stop):  # type: ignore[no-untyped-def]
    """In place, over columns `0 … prompt - 1` and `start … stop - 1`: exp(score − largest); their sum is returned."""
    called()
    shared, own = scores[:prompt], scores[start:stop]
    top = own[0]
    for number in shared:
        top = number if number > top else top
    for number in own:
        top = number if number > top else top
    return powers(shared, top) + powers(own, top)


@compiled
def _enter(mixed, head, share, weights, epsilon, scaling, cos, sin, column, keys, values, asked):  # type: ignore[no-untyped-def]
    """A row's queries `[Q D]` of one key-value head, rotated, to `asked`; its key and value to their column.

    `mixed [(H + 2 K) D]` is the row's, `keys [L / W, D, W]` and `values [L, D]` are that head's, `weights` those of
    the norms of queries and of keys.
    """
    called()
    size, width = keys.shape[1], keys.shape[2]
    heads = len(mixed) // ((share + 2) * size)
    for s in range(share):
        first = (head * share + s) * size
        own = mixed[first : first + size]
        _turned(own, weights[0], epsilon, cos, sin, scaling, asked[s * size : (s + 1) * size])
    fresh = np.empty(size, np.float32)
    first = (heads * share + head) * size
    _turned(mixed[first : first + size], weights[1], epsilon, cos, sin, ONE, fresh)
    page, inside = keys[column // width], column % width
    first += heads * size
    for d in range(size):
        page[d, inside] = fresh[d]
        values[column, d] = mixed[first + d]


@compiled
def _attend(  # type: ignore[no-untyped-def]
    counter, mixed, weights, epsilon, scaling, turns, positions, columns,
    starts, members, places, lengths, prompt_keys, prompt_values, keys, values, out,
):  # fmt: skip
    """`attend`: the units and heads that `counter` gives."""
    called()
    _, heads, size, stored = prompt_keys.shape
    pages, width = keys.shape[2], keys.shape[4]
    share = mixed.shape[1] // (heads * size) - 2
    most = (starts[1:] - starts[:-1]).max() * share
    reach = -(-lengths.max() // width) * width
    beyond = reach + (columns[members].max() // width + 1) * width
    asked, read = np.empty(most * size, np.float32), np.empty(2 * most * size, np.float32)
    scores, totals = np.empty(most * beyond, np.float32), np.empty(most, np.float32)
    prompt_keys, prompt_values = prompt_keys.reshape(-1), prompt_values.reshape(-1)
    every_key, every_value = keys.reshape(-1), values.reshape(-1)
    while True:
        unit, head = divmod(taken(counter), heads)
        if unit >= len(places):
            break
        rows, place, prompt = members[starts[unit] : starts[unit + 1]], places[unit], lengths[unit]
        asking = len(rows) * share
        for m in range(len(rows)):
            row, first = rows[m], m * share * size
            _enter(
                mixed[row], head, share, weights, epsilon, scaling, turns[0, positions[row]],
                turns[1, positions[row]], columns[row], keys[row, head], values[row, head], asked[first:],
            )  # fmt: skip
        prompted = (place * heads + head) * size * stored
        for c in range(0, prompt, width):
            wide(asking, asked, 0, size, prompt_keys, prompted + c, stored, size, scores, c, beyond)
        for m in range(len(rows)):
            row, column, q = rows[m], columns[rows[m]], m * share
            first = (row * heads + head) * pages * width * size
            for page in range(column // width + 1):
                at = q * beyond + reach + page * width
                wide(
                    share, asked, q * size, size, every_key, first + page * width * size, width, size,
                    scores, at, beyond,
                )  # fmt: skip
            for s in range(q, q + share):
                totals[s] = _softmax(scores[s * beyond : (s + 1) * beyond], prompt, reach, reach + column + 1)
            across(
                share, scores, q * beyond + reach, beyond, every_value, first, size, column + 1,
                read, q * size, size, size,
            )  # fmt: skip
        across(
            asking, scores, 0, beyond, prompt_values, prompted, size, prompt, read, most * size, size, size
        )  # fmt: skip
        for q in range(asking):
            first, part = (head * share + q % share) * size, ONE / totals[q]
            made = out[rows[q // share], first : first + size]
            for d in range(size):
                made[d] = (read[q * size + d] + read[(most + q) * size + d]) * part


_attend_together = team(_attend)


@compiled
def attend(  # type: ignore[no-untyped-def]
    crew, mixed, weights, epsilon, scaling, turns, positions, columns,
    starts, members, places, lengths, prompt_keys, prompt_values, keys, values, out,
):  # fmt: skip
    """Rotate the queries and keys of some rows, write their keys and values where they belong, and attend.

    mixed [R, (H + 2 K) D]      queries, keys and values as the product of a layer gives them
    weights ([D], [D])          of the norms of queries and of keys, or `[0]` where there are none
    turns [2, T, D / 2]         cosines and sines of each position; `positions [R]`
    columns [R]                 the own column that each row's token takes; it attends up to there
    starts [U + 1], members     the rows of unit u are `members[starts[u]:starts[u + 1]]`
    places, lengths [U]         where on the shelf its prompt lies, and its tokens (0: there is none)
    prompt_keys [F, K, D, P], prompt_values [F, K, P, D]; keys [S, K, L / W, D, W], values [S, K, L, D]; out [R, H D]
    """
    given = (
        mixed, weights, epsilon, scaling, turns, positions, columns,
        starts, members, places, lengths, prompt_keys, prompt_values, keys, values, out,
    )  # fmt: skip
    _attend_together(crew, np.zeros(1, np.int64), given)


@compiled
def _draw(counter, logits, temperatures, uniform, tokens, logprobs):  # type: ignore[no-untyped-def]
    """`draw`: the rows that `counter` gives."""
    called()
    rows, vocabulary = logits.shape
    sums = np.empty(-(-vocabulary // BLOCK), np.float32)
    near, lanes = np.empty(BLOCK, np.float32), np.empty(16, np.float32)
    while True:
        row = taken(counter)
        if row >= rows:
            break
        own, warmth = logits[row], temperatures[row] if temperatures[row] > 0 else ONE
        top = largest(own, lanes)
        total = ZERO
        for block in range(len(sums)):
            part = own[block * BLOCK : (block + 1) * BLOCK]
            for v in range(len(part)):
                near[v] = (part[v] - top) / warmth
            total += powers(near[: len(part)], ZERO)
            sums[block] = total
        drawn = 0
        if temperatures[row] == 0:
            while drawn < vocabulary - 1 and not own[drawn] >= top:
                drawn += 1
        else:
            threshold = min(uniform[row] * total, np.nextafter(total, ZERO))
            block = 0
            while block < len(sums) - 1 and not sums[block] > threshold:
                block += 1
            inside = sums[block - 1] if block else ZERO
            part = own[block * BLOCK : (block + 1) * BLOCK]
            for v in range(len(part)):
                inside += exp((part[v] - top) / warmth)
                near[v] = inside
            threshold = min(threshold, np.nextafter(inside, ZERO))
            while drawn < len(part) - 1 and not near[drawn] > threshold:
                drawn += 1
            drawn += block * BLOCK
        tokens[row] = drawn
        logprobs[row] = (own[drawn] - top) / warmth - np.float32(np.log(total))


_draw_together = team(_draw)


@compiled
def draw(crew, logits, temperatures, uniform, tokens, logprobs):  # type: ignore[no-untyped-def]
    """See `rows.draw`, of which this takes the same decisions; tokens and log-probs `[R]` are written."""
    given = (logits, temperatures, uniform, tokens, logprobs)
    _draw_together(crew, np.zeros(1, np.int64), given)
