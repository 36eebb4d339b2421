"""Products of a few rows with a panel of columns, as instructions of the processor.

A panel holds the columns that are computed together, so that one walk over its memory from the
first byte to the last serves all of them. The sums stay in registers. Integer sums are exact, and
a sum of floats is one chain in the order of its terms, so that no result depends on how many rows
are computed together.

Numba compiles what is written here through LLVM, for the processor that it targets: instructions
that this processor lacks would end the process, so they are chosen by Numba's own list of features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from llvmlite.binding import add_symbol
from numba import cfunc, types
from numba.core import cgutils
from numba.extending import intrinsic

from safedraft.kernels.emit import (
    FLOAT,
    I16,
    I32,
    I64,
    Dot,
    load,
    local,
    make_dot,
    multiply_add,
    offset,
    prefetch,
    splat,
    store,
)
from safedraft.kernels.layout import COLUMNS, GROUP, GROUP_BYTES, INPUTS, LANES, ROWS

_AHEAD = 1024  # bytes of a panel that are asked for before they are needed


def _integer_walk(
    builder: ir.IRBuilder,
    rows: int,
    panel: ir.Value,
    inputs: ir.Value,
    stride: ir.Value,
    steps: ir.Value,
    outputs: ir.Value,
) -> None:
    """Walk over a panel of 8-bit weights, once if all sums fit into registers.

    Otherwise each walk has the sums of half of the columns and of as many rows as fit.
    """
    dot = make_dot(builder)
    halves = range(COLUMNS // LANES)
    walks: list[tuple[Sequence[int], Sequence[int]]] = [(halves, range(rows))]
    if rows * COLUMNS // dot.lanes > dot.sums:
        walks = [((half,), some) for half in halves for some in _divide(rows, dot)]
    for columns, some in walks:
        _sum_columns(builder, dot, columns, some, panel, inputs, stride, steps, outputs)


def _divide(rows: int, dot: Dot) -> list[range]:
    """Rows in groups whose sums of ``LANES`` columns fit into registers."""
    at_once = dot.sums * dot.lanes // LANES
    return [range(first, min(first + at_once, rows)) for first in range(0, rows, at_once)]


def _sum_columns(
    builder: ir.IRBuilder,
    dot: Dot,
    halves: Sequence[int],
    rows: Sequence[int],
    panel: ir.Value,
    inputs: ir.Value,
    stride: ir.Value,
    steps: ir.Value,
    outputs: ir.Value,
) -> None:
    """One walk for some rows and for the ``LANES`` columns of each of some halves."""
    width, registers = dot.lanes * INPUTS, LANES // dot.lanes
    parts = [half * registers + part for half in halves for part in range(registers)]
    zero = ir.Constant(dot.kind, None)
    sums = {(row, part): local(builder, zero) for row in rows for part in parts}
    with cgutils.for_range(builder, steps) as loop:
        here = offset(builder, panel, loop.index, COLUMNS * INPUTS)
        prefetch(builder, builder.add(here, I64(_AHEAD)))
        prefetch(builder, builder.add(here, I64(_AHEAD + 64)))
        weights = {part: dot.load(builder.add(here, I64(part * width))) for part in parts}
        there = offset(builder, inputs, loop.index, INPUTS)
        for row in rows:
            address = offset(builder, there, stride, row)
            spread = dot.spread(load(builder, address, I32))
            for part in parts:
                place = sums[row, part]
                builder.store(dot.add(builder.load(place), weights[part], spread), place)
    for row in rows:
        for half in halves:
            places = [sums[row, half * registers + part] for part in range(registers)]
            total = dot.whole([builder.load(place) for place in places])
            index = 4 * (row * COLUMNS + half * LANES)
            store(builder, total, builder.add(outputs, I64(index)))


def _grouped_walk(
    builder: ir.IRBuilder,
    rows: int,
    panel: ir.Value,
    inputs: ir.Value,
    stride: ir.Value,
    groups: ir.Value,
    group_sums: ir.Value,
    sums_stride: ir.Value,
    outputs: ir.Value,
) -> None:
    """One walk over a panel of 4-bit weights."""
    dot = make_dot(builder)
    numbers, integers = ir.VectorType(FLOAT, LANES), ir.VectorType(I32, LANES)
    halves = range(COLUMNS // LANES)
    zero = ir.Constant(numbers, None)
    totals = [[local(builder, zero) for _ in halves] for _ in range(rows)]
    with cgutils.for_range(builder, groups) as loop:
        here = offset(builder, panel, loop.index, GROUP_BYTES)
        for line in range(0, GROUP_BYTES, 64):
            prefetch(builder, builder.add(here, I64(_AHEAD + line)))
        there = offset(builder, inputs, loop.index, GROUP)
        sum_place = offset(builder, group_sums, loop.index, 4)
        for half in halves:
            scales = _scales(builder, builder.add(here, I64(2 * LANES * half)))
            weights = builder.add(here, I64(2 * COLUMNS + GROUP * LANES // 2 * half))
            found: dict[int, ir.Value] = {}
            for some in _divide(rows, dot):
                found |= _sum_group(builder, dot, some, weights, there, stride)
            for row in range(rows):
                address = builder.add(sum_place, builder.mul(sums_stride, I64(row)))
                eight = builder.mul(load(builder, address, I32), I32(8))
                whole = builder.sub(found[row], splat(builder, eight, integers))
                place = totals[row][half]
                number = builder.sitofp(whole, numbers)
                builder.store(multiply_add(builder, number, scales, builder.load(place)), place)
    for row in range(rows):
        for half in halves:
            index = 4 * (row * COLUMNS + half * LANES)
            total = builder.load(totals[row][half])
            store(builder, total, builder.add(outputs, I64(index)))


def _scales(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    """``LANES`` scales in bfloat16, which are the upper halves of float32."""
    integers = ir.VectorType(I32, LANES)
    short = load(builder, address, ir.VectorType(I16, LANES))
    bits = builder.shl(builder.zext(short, integers), ir.Constant(integers, [16] * LANES))
    return builder.bitcast(bits, ir.VectorType(FLOAT, LANES))


def _sum_group(
    builder: ir.IRBuilder,
    dot: Dot,
    rows: Sequence[int],
    weights: ir.Value,
    inputs: ir.Value,
    stride: ir.Value,
) -> dict[int, ir.Value]:
    """The integer sums of one group for ``LANES`` columns and each of some rows."""
    registers = range(LANES // dot.lanes)
    sums = {row: [ir.Constant(dot.kind, None) for _ in registers] for row in rows}
    for step in range(GROUP // (2 * INPUTS)):
        for part in registers:
            address = builder.add(weights, I64(INPUTS * (step * LANES + part * dot.lanes)))
            for half, numbers in enumerate(dot.load_halves(address)):
                place = builder.add(inputs, I64(INPUTS * (2 * step + half)))
                for row in rows:
                    four = load(builder, offset(builder, place, stride, row), I32)
                    sums[row][part] = dot.add(sums[row][part], numbers, dot.spread(four))
    return {row: dot.whole(parts) for row, parts in sums.items()}


def _float_walk(
    builder: ir.IRBuilder,
    rows: int,
    panel: ir.Value,
    inputs: ir.Value,
    stride: ir.Value,
    steps: ir.Value,
    outputs: ir.Value,
    out_stride: ir.Value,
) -> None:
    """One walk over a panel of floats."""
    kind = ir.VectorType(FLOAT, LANES)
    sums = [local(builder, ir.Constant(kind, None)) for _ in range(rows)]
    with cgutils.for_range(builder, steps) as loop:
        values = load(builder, offset(builder, panel, loop.index, 4 * LANES), kind)
        there = offset(builder, inputs, loop.index, 4)
        for row in range(rows):
            address = builder.add(there, builder.mul(stride, I64(row)))
            spread = splat(builder, load(builder, address, FLOAT), kind)
            total = multiply_add(builder, values, spread, builder.load(sums[row]))
            builder.store(total, sums[row])
    for row in range(rows):
        address = builder.add(outputs, builder.mul(out_stride, I64(row)))
        store(builder, builder.load(sums[row]), address)


_INTEGERS = types.void(*[types.int64] * 6)
_GROUPED = types.void(*[types.int64] * 8)
_FLOATS = types.void(*[types.int64] * 7)


def _for_any_number(walk: Any) -> Any:
    """Return a function that emits a walk for each number of rows, of which one is run."""

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        for rows in range(1, ROWS + 1):
            with builder.if_then(builder.icmp_signed("==", arguments[0], I64(rows))):
                walk(builder, rows, *arguments[1:])
        return context.get_dummy_value()

    return emit


@intrinsic
def _walk_integers(typing, rows, panel, inputs, stride, steps, outputs):  # type: ignore[no-untyped-def]
    return _INTEGERS, _for_any_number(_integer_walk)


@intrinsic
def _walk_groups(typing, rows, panel, inputs, stride, groups, sums, sums_stride, outputs):  # type: ignore[no-untyped-def]
    return _GROUPED, _for_any_number(_grouped_walk)


@intrinsic
def _walk_floats(typing, rows, panel, inputs, stride, steps, outputs, out_stride):  # type: ignore[no-untyped-def]
    return _FLOATS, _for_any_number(_float_walk)


@cfunc(_INTEGERS, cache=True)
def _products(rows, panel, inputs, stride, steps, outputs):  # type: ignore[no-untyped-def]
    _walk_integers(rows, panel, inputs, stride, steps, outputs)


@cfunc(_GROUPED, cache=True)
def _grouped_products(rows, panel, inputs, stride, groups, sums, sums_stride, outputs):  # type: ignore[no-untyped-def]
    _walk_groups(rows, panel, inputs, stride, groups, sums, sums_stride, outputs)


@cfunc(_FLOATS, cache=True)
def _float_products(rows, panel, inputs, stride, steps, outputs, out_stride):  # type: ignore[no-untyped-def]
    _walk_floats(rows, panel, inputs, stride, steps, outputs, out_stride)


# Known by name, so that what calls them is compiled without them.
add_symbol("safedraft_products", _products.address)
add_symbol("safedraft_grouped_products", _grouped_products.address)
add_symbol("safedraft_float_products", _float_products.address)

add_products = types.ExternalFunction("safedraft_products", _INTEGERS)
"""Sum the products of rows with a panel of 8-bit weights.

Its arguments are the number of rows, from 1 to ``ROWS``; the address of the panel, ``[steps,
COLUMNS, INPUTS]`` in uint8; the address of the rows, of ``steps * INPUTS`` int8 each; bytes from
one row to the next; steps; and the address of the sums, ``[rows, COLUMNS]`` in int32.
"""

add_grouped_products = types.ExternalFunction("safedraft_grouped_products", _GROUPED)
"""Sum the products of rows with a panel of 4-bit weights, scaled group by group.

Its arguments are the number of rows, from 1 to ``ROWS``; the address of the panel, for each group
``COLUMNS`` scales in bfloat16 and then for each half of the columns ``[GROUP / 8, LANES, INPUTS]``
bytes, whose lower halves are four inputs and whose upper ones the next four, each 8 too large; the
address of the rows, in int8; bytes from one row to the next; groups; the address of the sums of
each row's groups, in int32; bytes from one row of those to the next; and the address of the sums,
``[rows, COLUMNS]`` in float32.
"""

add_float_products = types.ExternalFunction("safedraft_float_products", _FLOATS)
"""Sum the products of rows with a panel of floats.

Its arguments are the number of rows, from 1 to ``ROWS``; the address of the panel, ``[steps,
LANES]`` in float32; the address of the rows, of ``steps`` float32 each; bytes from one row to the
next; steps; the address of the sums, rows of ``LANES`` float32; and bytes from one to the next.
"""
