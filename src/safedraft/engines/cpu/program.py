"""One pass of a decoder over some rows, as a program that all threads run.

A row is one token of one request. Every step of the program is split among the threads, by rows or
by panels of weights, and all threads wait for each other between steps. What a row becomes depends
on its own numbers alone: neither on the rows beside it nor on how a prompt was cut into passes.

Addresses and lengths come in records, as the threads share nothing else. Weights are described in
``pack``, the caches in ``decoder``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, cfunc, njit, types

from safedraft.engines.cpu.arithmetic import (
    bytes_at,
    floats,
    gate,
    gather_seen,
    integers,
    inverse_norm,
    multiply_by,
    quantize,
    rotate,
    scale_floats,
    scale_integers,
    scatter_seen,
    softmax,
)
from safedraft.kernels.layout import COLUMNS, GROUP, GROUP_BYTES, INPUTS, LANES, ROWS
from safedraft.kernels.panels import add_float_products, add_grouped_products, add_products
from safedraft.kernels.threads import at, thread_count, thread_number, wait_for_all


def _record(integers: str, floats: str = "") -> np.dtype[Any]:
    fields: list[tuple[str, Any]] = [(name, np.int64) for name in integers.split()]
    return np.dtype(fields + [(name, np.float64) for name in floats.split()])


LINEAR = _record("weights scales biases inputs outputs bits")
"""A layer: addresses of its panels, scales and biases, its size, and the bits of a weight."""

LAYER = _record("input_norm query_norm key_norm attention_norm mlp_norm output_norm")
"""Addresses of one layer's norms; 0 where it has none."""

SEQUENCE = _record("keys values capacity")
"""A request's cache: addresses, and the number of tokens that it has room for."""

ROW = _record("token sequence slot length open mask angles")
"""A token: its id, its request, its place in the cache, and what it sees there: the first ``open``
places, and of those up to ``length`` the ones that the bytes at ``mask`` allow. ``angles`` is the
address of the cosines and sines of its position."""

PASS = _record(
    "layers hidden heads groups head rotated width stride normed "
    "linears norms rows count sequences kept kept_count states logits vocabulary final_norm "
    "residual mixed outputs inputs scales sums parts scratch scratch_size scores scores_size",
    "epsilon attention_scale residual_scale embedding_scale",
)
"""A pass: the model's sizes, what the threads share, and the rows.

``hidden``, ``heads`` (of queries), ``groups`` (heads of keys), ``head`` and ``rotated`` (numbers of
a head, and those that are rotated), ``width`` (``head`` rounded up to panels), ``stride`` (bytes of
a quantized row) and ``normed`` (1: queries and keys are normed by head, 2: as a whole).
"""

QKV, OUTPUT, GATE_UP, DOWN = range(4)
LINEARS = 4
"""Linear layers of a layer; after those of the last one come the embeddings and the output."""

SCRATCH = 4 * (ROWS + 1) * COLUMNS
"""Bytes that a thread needs for the sums of a panel and for one row of outputs."""


@njit(error_model="numpy")
def _quantize(job, values, row):  # type: ignore[no-untyped-def]
    """Quantize what a linear layer reads of one row."""
    size = (len(values) + GROUP - 1) // GROUP * GROUP
    quantized = bytes_at(job.inputs + row * job.stride, size)
    parts = integers(job.parts + row * job.stride // GROUP * 4, size // GROUP)
    scale, total = quantize(values, quantized, parts)
    floats(job.scales + 4 * row, 1)[0] = scale
    integers(job.sums + 4 * row, 1)[0] = total


@njit(error_model="numpy")
def _multiply(job, linear, rows, outputs, out_stride, columns, gated, thread, threads):  # type: ignore[no-untyped-def]
    """Multiply the quantized rows with this thread's panels.

    Args:
        outputs: address of ``rows`` rows of float32, ``out_stride`` numbers apart.
        columns: outputs that are wanted.
        gated: whether the first half of each panel is the gate of the second.
    """
    steps = (linear.inputs + INPUTS - 1) // INPUTS
    groups = (linear.inputs + GROUP - 1) // GROUP
    size = steps * COLUMNS * INPUTS if linear.bits == 8 else groups * GROUP_BYTES
    panels = (columns + COLUMNS - 1) // COLUMNS
    scratch = job.scratch + thread * job.scratch_size
    values = floats(scratch + 4 * ROWS * COLUMNS, COLUMNS)
    parts_stride = job.stride // GROUP * 4
    for panel in range(panels * thread // threads, panels * (thread + 1) // threads):
        weights, first = linear.weights + panel * size, panel * COLUMNS
        scales = floats(linear.scales + 4 * first, COLUMNS)
        biases = floats(linear.biases + 4 * first, COLUMNS)
        for row in range(0, rows, ROWS):
            together = min(ROWS, rows - row)
            inputs = job.inputs + row * job.stride
            if linear.bits == 8:
                add_products(together, weights, inputs, job.stride, steps, scratch)
            else:
                parts = job.parts + row * parts_stride
                add_grouped_products(
                    together, weights, inputs, job.stride, groups, parts, parts_stride, scratch
                )
            for r in range(together):
                row_scale = floats(job.scales + 4 * (row + r), 1)[0]
                if linear.bits == 8:
                    sums = integers(scratch + 4 * r * COLUMNS, COLUMNS)
                    offset = np.int32(128) * integers(job.sums + 4 * (row + r), 1)[0]
                    scale_integers(sums, offset, row_scale, scales, biases, values)
                else:
                    numbers = floats(scratch + 4 * r * COLUMNS, COLUMNS)
                    scale_floats(numbers, row_scale, scales, biases, values)
                place = outputs + 4 * ((row + r) * out_stride + (first // 2 if gated else first))
                if gated:
                    gate(values, floats(place, COLUMNS // 2))
                else:
                    wanted = min(COLUMNS, columns - first)
                    floats(place, wanted)[:] = values[:wanted]


@njit(error_model="numpy")
def _embed(job, linear, row, token):  # type: ignore[no-untyped-def]
    """Read a token's row of the embeddings into the residual stream."""
    steps = (linear.inputs + INPUTS - 1) // INPUTS
    start = linear.weights + token // COLUMNS * steps * COLUMNS * INPUTS
    panel = carray(at(start), (steps, COLUMNS, INPUTS), np.uint8)
    scale = floats(linear.scales + 4 * token, 1)[0] * np.float32(job.embedding_scale)
    values = floats(job.residual + 4 * row * job.hidden, job.hidden)
    for k in range(job.hidden):
        weight = np.int32(panel[k // INPUTS, token % COLUMNS, k % INPUTS]) - np.int32(128)
        values[k] = np.float32(weight) * scale


@njit(error_model="numpy")
def _place(job, layer, norms, row, record, sequence):  # type: ignore[no-untyped-def]
    """Norm and rotate a row's queries and keys; write its keys and values into the cache."""
    D, H, G = job.head, job.heads, job.groups
    mixed = floats(job.mixed + 4 * row * (H + 2 * G) * D, (H + 2 * G) * D)
    half = job.rotated // 2
    angles = floats(record.angles, 2 * half)
    queries, keys = mixed[: H * D], mixed[H * D : (H + G) * D]
    if job.normed == 2:
        weights = floats(norms.query_norm, H * D)
        multiply_by(queries, inverse_norm(queries, job.epsilon), weights)
        weights = floats(norms.key_norm, G * D)
        multiply_by(keys, inverse_norm(keys, job.epsilon), weights)
    for h in range(H + G):
        values = mixed[h * D : (h + 1) * D]
        if job.normed == 1:
            weights = floats(norms.query_norm if h < H else norms.key_norm, D)
            multiply_by(values, inverse_norm(values, job.epsilon), weights)
        factor = np.float32(job.attention_scale) if h < H else np.float32(1)
        rotate(values, angles, half, factor)
    C, W = sequence.capacity, job.width
    slot = record.slot
    key_cache = carray(
        at(sequence.keys + 4 * layer * G * C * D), (G, C // LANES, D, LANES), np.float32
    )
    value_cache = carray(
        at(sequence.values + 4 * layer * G * C * W), (G, W // LANES, C, LANES), np.float32
    )
    for g in range(G):
        for d in range(D):
            key_cache[g, slot // LANES, d, slot % LANES] = mixed[(H + g) * D + d]
            value_cache[g, d // LANES, slot, d % LANES] = mixed[(H + G + g) * D + d]


@njit(error_model="numpy")
def _attend(job, layer, row, group, record, sequence, thread):  # type: ignore[no-untyped-def]
    """Attention of the heads of one row that share a head of keys."""
    D, W, C = job.head, job.width, sequence.capacity
    shared = job.heads // job.groups
    queries = job.mixed + 4 * (row * (job.heads + 2 * job.groups) + group * shared) * D
    keys = sequence.keys + 4 * (layer * job.groups + group) * C * D
    values = sequence.values + 4 * (layer * job.groups + group) * C * W
    outputs = job.outputs + 4 * (row * job.heads + group * shared) * W
    length = record.length
    padded = (length + LANES - 1) // LANES * LANES
    scores = job.scores + thread * job.scores_size
    mask = bytes_at(record.mask, length - record.open)
    for first in range(0, shared, ROWS):
        heads = min(ROWS, shared - first)
        for block in range(padded // LANES):
            add_float_products(
                heads,
                keys + 4 * block * LANES * D,
                queries + 4 * first * D,
                4 * D,
                D,
                scores + 4 * block * LANES,
                4 * padded,
            )
        for head in range(heads):
            own = floats(scores + 4 * head * padded, length)
            seen = gather_seen(own, length, record.open, mask)
            softmax(own, seen)
            scatter_seen(own, length, record.open, mask, seen)
        for part in range(W // LANES):
            add_float_products(
                heads,
                values + 4 * part * C * LANES,
                scores,
                4 * padded,
                length,
                outputs + 4 * (first * W + part * LANES),
                4 * W,
            )


@njit(error_model="numpy")
def _add(job, row, norm):  # type: ignore[no-untyped-def]
    """Add a sublayer's outputs, normed if ``norm`` is an address, to the residual stream."""
    outputs = floats(job.outputs + 4 * row * job.hidden, job.hidden)
    residual = floats(job.residual + 4 * row * job.hidden, job.hidden)
    if norm != 0:
        multiply_by(outputs, inverse_norm(outputs, job.epsilon), floats(norm, job.hidden))
    scale = np.float32(job.residual_scale)
    for k in range(job.hidden):
        residual[k] += outputs[k] * scale


@njit(error_model="numpy")
def _read(job, row, norm):  # type: ignore[no-untyped-def]
    """Quantize the residual stream, normed if ``norm`` is an address."""
    values = floats(job.outputs + 4 * row * job.hidden, job.hidden)
    values[:] = floats(job.residual + 4 * row * job.hidden, job.hidden)
    if norm != 0:
        multiply_by(values, inverse_norm(values, job.epsilon), floats(norm, job.hidden))
    _quantize(job, values, row)


@njit(error_model="numpy")
def _layer(job, layer, linears, norms, rows, sequences, thread, threads):  # type: ignore[no-untyped-def]
    """One layer; its rows are quantized when it begins, and the residual stream is whole after."""
    count = job.count
    first = layer * LINEARS
    wide = (job.heads + 2 * job.groups) * job.head
    _multiply(job, linears[first + QKV], count, job.mixed, wide, wide, False, thread, threads)
    wait_for_all()
    for row in range(thread, count, threads):
        _place(job, layer, norms[layer], row, rows[row], sequences[rows[row].sequence])
    wait_for_all()
    units = count * job.groups
    for unit in range(units * thread // threads, units * (thread + 1) // threads):
        row, group = unit // job.groups, unit % job.groups
        _attend(job, layer, row, group, rows[row], sequences[rows[row].sequence], thread)
    wait_for_all()
    for row in range(thread, count, threads):
        seen = job.heads * job.width
        _quantize(job, floats(job.outputs + 4 * row * seen, seen), row)
    wait_for_all()
    linear = linears[first + OUTPUT]
    _multiply(job, linear, count, job.outputs, job.hidden, job.hidden, False, thread, threads)
    wait_for_all()
    for row in range(thread, count, threads):
        _add(job, row, norms[layer].attention_norm)
        _read(job, row, norms[layer].mlp_norm)
    wait_for_all()
    linear = linears[first + GATE_UP]
    inner = linear.outputs // 2
    _multiply(job, linear, count, job.mixed, inner, 2 * inner, True, thread, threads)
    wait_for_all()
    used = linears[first + DOWN].inputs
    for row in range(thread, count, threads):
        _quantize(job, floats(job.mixed + 4 * row * inner, used), row)
    wait_for_all()
    linear = linears[first + DOWN]
    _multiply(job, linear, count, job.outputs, job.hidden, job.hidden, False, thread, threads)
    wait_for_all()
    for row in range(thread, count, threads):
        _add(job, row, norms[layer].output_norm)
        if layer + 1 < job.layers:
            _read(job, row, norms[layer + 1].input_norm)
    wait_for_all()


@njit(error_model="numpy")
def _finish_pass(job, linears, thread, threads):  # type: ignore[no-untyped-def]
    """The last hidden states and the logits of the rows that are kept."""
    kept = carray(at(job.kept), (job.kept_count,), np.int64)
    norm = floats(job.final_norm, job.hidden)
    for index in range(thread, job.kept_count, threads):
        residual = floats(job.residual + 4 * kept[index] * job.hidden, job.hidden)
        states = floats(job.states + 4 * index * job.hidden, job.hidden)
        states[:] = residual
        multiply_by(states, inverse_norm(states, job.epsilon), norm)
        _quantize(job, states, index)
    wait_for_all()
    linear = linears[job.layers * LINEARS + 1]
    wanted = job.vocabulary
    _multiply(job, linear, job.kept_count, job.logits, wanted, wanted, False, thread, threads)


@njit(error_model="numpy")
def _run(job):  # type: ignore[no-untyped-def]
    thread, threads = thread_number(), thread_count()
    linears = carray(at(job.linears), (job.layers * LINEARS + 2,), LINEAR)
    norms = carray(at(job.norms), (job.layers,), LAYER)
    rows = carray(at(job.rows), (job.count,), ROW)
    sequences = carray(at(job.sequences), (job.count,), SEQUENCE)
    for row in range(thread, job.count, threads):
        _embed(job, linears[job.layers * LINEARS], row, rows[row].token)
        _read(job, row, norms[0].input_norm)
    wait_for_all()
    for layer in range(job.layers):
        _layer(job, layer, linears, norms, rows, sequences, thread, threads)
    if job.kept_count:
        _finish_pass(job, linears, thread, threads)


@cfunc(types.void(types.voidptr), cache=True, error_model="numpy")
def _run_pass(address):  # type: ignore[no-untyped-def]
    _run(carray(address, 1, PASS)[0])


RUN = _run_pass.address
"""Address of the program; it takes the address of a ``PASS`` and is run by every thread."""
