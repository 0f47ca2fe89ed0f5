"""What a decode step does besides products, compiled by Numba: attention, norms, rotations and the draw.

torch has these as dozens of operations, each of which passes over memory and is called by itself. Here a layer's are
two norms and one attention. Imported by `fused` alone, where the package `numba` is there (`pip install
'maieutic[fast]'`); compiled when first called, in seconds, and kept on disk from then on.

This is one file because what is kept on disk is compiled anew when the file of the function has changed, and not when
that of one which it calls has.

    `R` rows · `U` units: some rows of one prompt · `F` prompts of a shelf, kept once · `P` columns of one
    `H` query heads · `K` key-value heads · `D` size of a head · `W` columns of a page · `V` vocabulary · `E` width
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LOOSE = frozenset({"contract", "reassoc", "nsz", "arcp"})
"""Sums may be taken in another order and products be added without being rounded; no number is taken to be finite."""

FAILURES = (numba.core.errors.NumbaError, OSError)
"""What compiling a function may raise: a version that cannot, a disk that is full."""

BLOCK = 64
"""Tokens whose probabilities are summed up before they are cumulated, as in `rows.draw`."""


def compiled(function: Callable[..., Any], loose: frozenset[str] = LOOSE) -> Callable[..., Any]:
    """`function` by Numba, without Python's lock, kept on disk where there is a folder that can be written to."""
    settings: dict[str, Any] = {"nogil": True, "fastmath": set(loose), "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **settings)(function)
    except RuntimeError:  # neither beside this file nor in the user's own folder
        return numba.njit(**settings)(function)


@intrinsic
def _called(_typing):  # type: ignore[no-untyped-def]
    """Let the function that says this be called where it is used: copies of it there take three times as long to
    compile."""

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate


def _tile(rows: int, width: int) -> Any:
    """`out[j, :width] = Σᵢ left[j, i] · right[i, :width]` for all j of so many rows, each i once, held in registers.

    An array goes with its first element and the elements from one row to the next. Sums go in the order of i.
    """
    number, whole = ir.FloatType(), ir.IntType(64)
    vector = ir.VectorType(number, width)
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), width), [0] * width)

    @intrinsic
    def tile(_typing, left, first, step, right, second, apart, count, out, third, beyond):  # type: ignore[no-untyped-def]
        given = (left, first, step, right, second, apart, count, out, third, beyond)
        placed = types.void(*(each if isinstance(each, types.Array) else types.int64 for each in given))
        return placed, generate

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        arrays = {
            i: context.make_array(kind)(context, builder, arguments[i]).data
            for i, kind in enumerate(signature.args)
            if isinstance(kind, types.Array)
        }
        _, first, step, _, second, apart, count, _, third, beyond = arguments

        def at(array: int, offset: Any, kind: Any) -> Any:
            return builder.bitcast(builder.gep(arrays[array], [offset]), kind.as_pointer())

        def row_of(start: Any, size: Any, j: int) -> Any:
            return builder.add(start, builder.mul(size, ir.Constant(whole, j)))

        def spread(one: Any) -> Any:
            nothing = ir.Constant(vector, ir.Undefined)
            placed = builder.insert_element(nothing, one, ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(placed, nothing, everywhere)

        sums = [cgutils.alloca_once_value(builder, ir.Constant(vector, [0.0] * width)) for _ in range(rows)]
        with cgutils.for_range(builder, count, intp=whole) as loop:
            met = builder.load(at(3, row_of(second, builder.mul(apart, loop.index), 1), vector), align=4)
            for j, kept in enumerate(sums):
                own = builder.load(at(0, builder.add(row_of(first, step, j), loop.index), number), align=4)
                more = builder.fmul(spread(own), met, flags=("contract",))
                builder.store(builder.fadd(builder.load(kept), more, flags=("contract",)), kept)
        for j, kept in enumerate(sums):
            builder.store(builder.load(kept), at(7, row_of(third, beyond, j), vector), align=4)
        return context.get_dummy_value()

    return tile


_four_broad, _two_broad, _one_broad = (_tile(rows, 64) for rows in (4, 2, 1))
_four_wide, _two_wide, _one_wide = (_tile(rows, 32) for rows in (4, 2, 1))
_four_slim, _two_slim, _one_slim = (_tile(rows, 8) for rows in (4, 2, 1))


@compiled
def _broad(rows, left, first, step, right, second, apart, count, out, third, beyond):  # type: ignore[no-untyped-def]
    """A tile of 64 columns and any number of rows."""
    _called()
    j = 0
    while rows - j >= 4:
        _four_broad(left, first + j * step, step, right, second, apart, count, out, third + j * beyond, beyond)
        j += 4
    if rows - j >= 2:
        _two_broad(left, first + j * step, step, right, second, apart, count, out, third + j * beyond, beyond)
        j += 2
    if rows - j >= 1:
        _one_broad(left, first + j * step, step, right, second, apart, count, out, third + j * beyond, beyond)


@compiled
def _wide(rows, left, first, step, right, second, apart, count, out, third, beyond):  # type: ignore[no-untyped-def]
    """A tile of 32 columns and any number of rows."""
    _called()
    j = 0
    while rows - j >= 4:
        _four_wide(left, first + j * step, step, right, second, apart, count, out, third + j * beyond, beyond)
        j += 4
    if rows - j >= 2:
        _two_wide(left, first + j * step, step, right, second, apart, count, out, third + j * beyond, beyond)
        j += 2
    if rows - j >= 1:
        _one_wide(left, first + j * step, step, right, second, apart, count, out, third + j * beyond, beyond)


@compiled
def _slim(rows, left, first, step, right, second, apart, count, out, third, beyond):  # type: ignore[no-untyped-def]
    """A tile of 8 columns and any number of rows."""
    _called()
    j = 0
    while rows - j >= 4:
        _four_slim(left, first + j * step, step, right, second, apart, count, out, third + j * beyond, beyond)
        j += 4
    if rows - j >= 2:
        _two_slim(left, first + j * step, step, right, second, apart, count, out, third + j * beyond, beyond)
        j += 2
    if rows - j >= 1:
        _one_slim(left, first + j * step, step, right, second, apart, count, out, third + j * beyond, beyond)


@compiled
def _across(rows, left, first, step, right, second, apart, count, out, third, beyond, width):  # type: ignore[no-untyped-def]
    """Tiles side by side until `width` columns, a multiple of 8."""
    _called()
    column = 0
    while width - column >= 64:
        _broad(rows, left, first, step, right, second + column, apart, count, out, third + column, beyond)
        column += 64
    while width - column >= 32:
        _wide(rows, left, first, step, right, second + column, apart, count, out, third + column, beyond)
        column += 32
    while column < width:
        _slim(rows, left, first, step, right, second + column, apart, count, out, third + column, beyond)
        column += 8


@intrinsic
def _as_number(_typing, _bits):  # type: ignore[no-untyped-def]
    """The float32 of these 32 bits."""
    return types.float32(types.int32), lambda _c, builder, _s, given: builder.bitcast(given[0], ir.FloatType())


LOWEST = np.float32(-87.0)
PER_LOG2, LOG2_HIGH, LOG2_LOW = np.float32(1.442695041), np.float32(0.693359375), np.float32(-2.12194440e-4)
# A polynomial of the sixth degree for exp on [−ln 2 / 2, ln 2 / 2], Cephes' (Moshier, 1989).
E2, E3, E4, E5, E6, E7 = (
    np.float32(each)
    for each in (5.0000001201e-1, 1.6666665459e-1, 4.1665795894e-2, 8.3334519073e-3, 1.3981999507e-3, 1.9875691500e-4)
)
HALF, ONE, ZERO, INFINITY = np.float32(0.5), np.float32(1), np.float32(0), np.float32(np.inf)


@partial(compiled, loose=frozenset({"contract"}))  # the two parts of ln 2 are to stay apart
def _exp(x):  # type: ignore[no-untyped-def]
    """exp(x) for x <= 0 to two units in the last place; 0 below −87; of what is no number, no number."""
    near = LOWEST if x < LOWEST else x
    whole = np.floor(near * PER_LOG2 + HALF)
    rest = near - whole * LOG2_HIGH - whole * LOG2_LOW
    tail = ((((E7 * rest + E6) * rest + E5) * rest + E4) * rest + E3) * rest + E2
    power = _as_number((np.int32(whole) + np.int32(127)) << np.int32(23))
    return ZERO if x < LOWEST else (tail * rest * rest + rest + ONE) * power


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
    _called()
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
def _largest(numbers, lanes):  # type: ignore[no-untyped-def]
    """Of many numbers, of which `lanes [16]` are compared side by side: one after the other takes twice as long."""
    lanes[:] = -INFINITY
    whole = len(numbers) // 16 * 16
    for start in range(0, whole, 16):
        part = numbers[start : start + 16]
        for lane in range(16):
            lanes[lane] = part[lane] if part[lane] > lanes[lane] else lanes[lane]
    top = -INFINITY
    for lane in lanes:
        top = lane if lane > top else top
    for number in numbers[whole:]:
        top = number if number > top else top
    return top


@compiled
def _powers(numbers, top):  # type: ignore[no-untyped-def]
    """In place, exp(number − top); their sum."""
    total = ZERO
    for c in range(len(numbers)):
        power = _exp(numbers[c] - top)
        numbers[c] = power
        total += power
    return total


@compiled
def _softmax(scores, prompt, start, stop):  # type: ignore[no-untyped-def]
    """In place, over columns `0 … prompt - 1` and `start … stop - 1`: exp(score − largest); their sum is returned."""
    _called()
    shared, own = scores[:prompt], scores[start:stop]
    top = own[0]
    for number in shared:
        top = number if number > top else top
    for number in own:
        top = number if number > top else top
    return _powers(shared, top) + _powers(own, top)


@compiled
def _enter(mixed, head, share, weights, epsilon, scaling, cos, sin, column, keys, values, asked):  # type: ignore[no-untyped-def]
    """A row's queries `[Q D]` of one key-value head, rotated, to `asked`; its key and value to their column.

    `mixed [(H + 2 K) D]` is the row's, `keys [L / W, D, W]` and `values [L, D]` are that head's, `weights` those of
    the norms of queries and of keys.
    """
    _called()
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
def attend(  # type: ignore[no-untyped-def]
    mixed, weights, epsilon, scaling, turns, positions, columns,
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
    for unit in range(len(places)):
        rows, place, prompt = members[starts[unit] : starts[unit + 1]], places[unit], lengths[unit]
        asking = len(rows) * share
        for head in range(heads):
            for m in range(len(rows)):
                row, first = rows[m], m * share * size
                _enter(
                    mixed[row], head, share, weights, epsilon, scaling, turns[0, positions[row]],
                    turns[1, positions[row]], columns[row], keys[row, head], values[row, head], asked[first:],
                )  # fmt: skip
            prompted = (place * heads + head) * size * stored
            for c in range(0, prompt, width):
                _wide(asking, asked, 0, size, prompt_keys, prompted + c, stored, size, scores, c, beyond)
            for m in range(len(rows)):
                row, column, q = rows[m], columns[rows[m]], m * share
                first = (row * heads + head) * pages * width * size
                for page in range(column // width + 1):
                    at = q * beyond + reach + page * width
                    _wide(
                        share, asked, q * size, size, every_key, first + page * width * size, width, size,
                        scores, at, beyond,
                    )  # fmt: skip
                for s in range(q, q + share):
                    totals[s] = _softmax(scores[s * beyond : (s + 1) * beyond], prompt, reach, reach + column + 1)
                _across(
                    share, scores, q * beyond + reach, beyond, every_value, first, size, column + 1,
                    read, q * size, size, size,
                )  # fmt: skip
            _across(
                asking, scores, 0, beyond, prompt_values, prompted, size, prompt, read, most * size, size, size
            )  # fmt: skip
            for q in range(asking):
                first, part = (head * share + q % share) * size, ONE / totals[q]
                made = out[rows[q // share], first : first + size]
                for d in range(size):
                    made[d] = (read[q * size + d] + read[(most + q) * size + d]) * part


@compiled
def draw(logits, temperatures, uniform, tokens, logprobs):  # type: ignore[no-untyped-def]
    """See `rows.draw`, of which this takes the same decisions; tokens and log-probs `[R]` are written."""
    rows, vocabulary = logits.shape
    sums = np.empty(-(-vocabulary // BLOCK), np.float32)
    near, lanes = np.empty(BLOCK, np.float32), np.empty(16, np.float32)
    for row in range(rows):
        own, warmth = logits[row], temperatures[row] if temperatures[row] > 0 else ONE
        top = _largest(own, lanes)
        total = ZERO
        for block in range(len(sums)):
            part = own[block * BLOCK : (block + 1) * BLOCK]
            for v in range(len(part)):
                near[v] = (part[v] - top) / warmth
            total += _powers(near[: len(part)], ZERO)
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
                inside += _exp((part[v] - top) / warmth)
                near[v] = inside
            threshold = min(threshold, np.nextafter(inside, ZERO))
            while drawn < len(part) - 1 and not near[drawn] > threshold:
                drawn += 1
            drawn += block * BLOCK
        tokens[row] = drawn
        logprobs[row] = (own[drawn] - top) / warmth - np.float32(np.log(total))
