"""What compiled kernels are made of: tiles held in registers, an exponential, and torch's own threads to work with.

Imported only where the package `numba` is there (`pip install 'maieutic[fast]'`): see
`maieutic.backends.local.kernels`. What is compiled is kept on disk until a file of this folder changes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
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

_FILES = tuple((path.name, path.stat().st_mtime_ns) for path in sorted(Path(__file__).parent.glob("*.py")))


def compiled(function: Callable[..., Any], loose: frozenset[str] = LOOSE) -> Callable[..., Any]:
    """`function` by Numba, without Python's lock, kept on disk where there is a folder that can be written to."""
    settings: dict[str, Any] = {"nogil": True, "fastmath": set(loose), "error_model": "numpy"}
    try:
        made = numba.njit(cache=True, **settings)(function)
    except RuntimeError:  # neither beside this file nor in the user's own folder
        return numba.njit(**settings)(function)
    kept: Any = getattr(getattr(made, "_cache", None), "_cache_file", None)
    if hasattr(kept, "_source_stamp"):  # Numba's own looks at the function's file, not at those it calls into
        kept._source_stamp = (kept._source_stamp, _FILES)
    return made


@intrinsic
def taken(_typing, counter):  # type: ignore[no-untyped-def]
    """The number in `counter [1]`, which becomes one more: no other thread is told the same."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), generate


def team(function: Callable[..., Any]) -> Any:
    """`begin(crew, counter, given)`, for compiled code: `function(counter, *given)` in as many threads at once as the
    crew has. They share the work out by `taken(counter)`.

    A crew is the address of OpenMP's `GOMP_parallel` in the
    library that torch has loaded, and the number of threads (see `kernels.crew`): torch's are there already, and a
    second set would fight them for the cores.
    """

    def unpacked(counter, given):  # type: ignore[no-untyped-def]
        function(counter, *given)

    @intrinsic
    def begin(_typing, crew, counter, given):  # type: ignore[no-untyped-def]
        return types.void(crew, counter, given), generate

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        taking = types.void(*signature.args[1:])
        made = context.compile_subroutine(builder, unpacked, taking)
        given = [cgutils.alloca_once_value(builder, each) for each in arguments[1:]]
        both = cgutils.pack_struct(builder, given)
        shared = cgutils.alloca_once_value(builder, both)
        anything, whole = ir.IntType(8).as_pointer(), ir.IntType(32)
        shape = ir.FunctionType(ir.VoidType(), [anything])
        body = ir.Function(builder.module, shape, name=builder.module.get_unique_name("one_of_a_team"))
        body.linkage = "internal"
        inside = ir.IRBuilder(body.append_basic_block())
        places = cgutils.unpack_tuple(inside, inside.load(inside.bitcast(body.args[0], shared.type)), len(given))
        context.call_internal_no_propagate(inside, made.fndesc, taking, [inside.load(each) for each in places])
        inside.ret_void()
        start, threads = cgutils.unpack_tuple(builder, arguments[0], 2)
        with builder.if_else(builder.icmp_signed(">", threads, threads.type(1))) as (several, one):
            with several:
                entry = ir.FunctionType(ir.VoidType(), [shape.as_pointer(), anything, whole, whole])
                count, flags = builder.trunc(threads, whole), ir.Constant(whole, 0)
                together = builder.inttoptr(start, entry.as_pointer())
                builder.call(together, [body, builder.bitcast(shared, anything), count, flags])
            with one:
                context.call_internal_no_propagate(builder, made.fndesc, taking, list(arguments[1:]))
        return context.get_dummy_value()

    return begin


@intrinsic
def called(_typing):  # type: ignore[no-untyped-def]
    """Let the function that says this be called where it is used: copies of it there take three times as long to
    compile."""

    def generate(context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate


def _tile(rows: int, width: int, down: bool = False) -> Any:
    """`out[j, :width] = Σᵢ left[j, i] · right[i, :width]` for all j of so many rows, each i once, held in registers.

    An array goes with its first element and the elements from one row to the next. Sums go in the order of i. `down`
    takes `left[i, j]` instead, and adds to what `out` holds.
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
        if down:
            for j, kept in enumerate(sums):
                builder.store(builder.load(at(7, row_of(third, beyond, j), vector), align=4), kept)
        with cgutils.for_range(builder, count, intp=whole) as loop:
            met = builder.load(at(3, row_of(second, builder.mul(apart, loop.index), 1), vector), align=4)
            for j, kept in enumerate(sums):
                pair = (row_of(first, step, j), loop.index)
                if down:
                    pair = (builder.add(first, ir.Constant(whole, j)), builder.mul(step, loop.index))
                own = builder.load(at(0, builder.add(*pair), number), align=4)
                more = builder.fmul(spread(own), met, flags=("contract",))
                builder.store(builder.fadd(builder.load(kept), more, flags=("contract",)), kept)
        for j, kept in enumerate(sums):
            builder.store(builder.load(kept), at(7, row_of(third, beyond, j), vector), align=4)
        return context.get_dummy_value()

    return tile


_four_broad, _two_broad, _one_broad = (_tile(rows, 64) for rows in (4, 2, 1))
_four_wide, _two_wide, _one_wide = (_tile(rows, 32) for rows in (4, 2, 1))
_four_slim, _two_slim, _one_slim = (_tile(rows, 8) for rows in (4, 2, 1))
_four_down, _one_down = (_tile(rows, 64, down=True) for rows in (4, 1))
_four_down_slim, _one_down_slim = (_tile(rows, 8, down=True) for rows in (4, 1))


@compiled
def broad(rows, left, first, step, right, second, apart, count, out, third, beyond):  # type: ignore[no-untyped-def]
    """A tile of 64 columns and any number of rows."""
    called()
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
def wide(rows, left, first, step, right, second, apart, count, out, third, beyond):  # type: ignore[no-untyped-def]
    """A tile of 32 columns and any number of rows."""
    called()
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
def slim(rows, left, first, step, right, second, apart, count, out, third, beyond):  # type: ignore[no-untyped-def]
    """A tile of 8 columns and any number of rows."""
    called()
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
def across(rows, left, first, step, right, second, apart, count, out, third, beyond, width):  # type: ignore[no-untyped-def]
    """Tiles side by side until `width` columns, a multiple of 8."""
    called()
    column = 0
    while width - column >= 64:
        broad(rows, left, first, step, right, second + column, apart, count, out, third + column, beyond)
        column += 64
    while width - column >= 32:
        wide(rows, left, first, step, right, second + column, apart, count, out, third + column, beyond)
        column += 32
    while column < width:
        slim(rows, left, first, step, right, second + column, apart, count, out, third + column, beyond)
        column += 8


@compiled
def down(rows, left, first, step, right, second, apart, count, out, third, beyond, width):  # type: ignore[no-untyped-def]
    """`out[j, :width] += Σᵢ left[i, j] · right[i, :width]` for any number of rows j, and `width` a multiple of 8."""
    called()
    column = 0
    while width - column >= 64:
        j = 0
        while rows - j >= 4:
            at = third + column + j * beyond
            _four_down(left, first + j, step, right, second + column, apart, count, out, at, beyond)
            j += 4
        while j < rows:
            at = third + column + j * beyond
            _one_down(left, first + j, step, right, second + column, apart, count, out, at, beyond)
            j += 1
        column += 64
    while column < width:
        j = 0
        while rows - j >= 4:
            at = third + column + j * beyond
            _four_down_slim(left, first + j, step, right, second + column, apart, count, out, at, beyond)
            j += 4
        while j < rows:
            at = third + column + j * beyond
            _one_down_slim(left, first + j, step, right, second + column, apart, count, out, at, beyond)
            j += 1
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
def exp(x):  # type: ignore[no-untyped-def]
    """exp(x) for x <= 0 to two units in the last place; 0 below −87; of what is no number, no number."""
    near = LOWEST if x < LOWEST else x
    whole = np.floor(near * PER_LOG2 + HALF)
    rest = near - whole * LOG2_HIGH - whole * LOG2_LOW
    tail = ((((E7 * rest + E6) * rest + E5) * rest + E4) * rest + E3) * rest + E2
    power = _as_number((np.int32(whole) + np.int32(127)) << np.int32(23))
    return ZERO if x < LOWEST else (tail * rest * rest + rest + ONE) * power


@compiled
def largest(numbers, lanes):  # type: ignore[no-untyped-def]
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
def powers(numbers, top):  # type: ignore[no-untyped-def]
    """In place, exp(number − top); their sum."""
    total = ZERO
    for c in range(len(numbers)):
        power = exp(numbers[c] - top)
        numbers[c] = power
        total += power
    return total
