"""The loops of ``avx2``, compiled by Numba and run in torch's own threads.

``W`` is ``[out, in]``, bfloat16 as uint16 or int8; ``X`` is ``[N, in]`` and ``Y`` ``[N, out]``, in
float32. Each thread writes the columns of Y from ``start`` to ``stop``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray, cfunc, njit, types
from numba.extending import overload
from torch import Tensor

from safedraft.kernels.openmp import run_in_threads
from safedraft.kernels.threads import at, thread_count, thread_number

SUMS = {"reassoc", "contract"}
"""Permissions that vectorization needs: reordered sums. NaN and infinity keep their meaning."""


@njit(fastmath=SUMS)
def _multiply_one_row(W: Any, X: Any, Y: Any, start: int, stop: int) -> None:
    """Process one weight row after the other: a single stream has the highest memory bandwidth."""
    for r in range(start, stop):
        y = np.float32(0)
        for k in range(W.shape[1]):
            y += _to_float32(W[r, k]) * X[0, k]
        Y[0, r] = y


@njit(fastmath=SUMS)
def _multiply_few_rows(W: Any, X: Any, Y: Any, start: int, stop: int) -> None:
    """Process four weight rows and three rows of X at a time, with twelve sums in registers.

    Indices past the end are replaced by the last row, whose sum is then written twice.
    """
    last = len(X) - 1
    for r in range(start, stop, 4):
        r1, r2, r3 = min(r + 1, stop - 1), min(r + 2, stop - 1), min(r + 3, stop - 1)
        for n in range(0, len(X), 3):
            n1, n2 = min(n + 1, last), min(n + 2, last)
            a0 = a1 = a2 = b0 = b1 = b2 = c0 = c1 = c2 = d0 = d1 = d2 = np.float32(0)
            for k in range(W.shape[1]):
                x0, x1, x2 = X[n, k], X[n1, k], X[n2, k]
                w = _to_float32(W[r, k])
                a0 += w * x0
                a1 += w * x1
                a2 += w * x2
                w = _to_float32(W[r1, k])
                b0 += w * x0
                b1 += w * x1
                b2 += w * x2
                w = _to_float32(W[r2, k])
                c0 += w * x0
                c1 += w * x1
                c2 += w * x2
                w = _to_float32(W[r3, k])
                d0 += w * x0
                d1 += w * x1
                d2 += w * x2
            Y[n, r], Y[n1, r], Y[n2, r] = a0, a1, a2
            Y[n, r1], Y[n1, r1], Y[n2, r1] = b0, b1, b2
            Y[n, r2], Y[n1, r2], Y[n2, r2] = c0, c1, c2
            Y[n, r3], Y[n1, r3], Y[n2, r3] = d0, d1, d2


def _to_float32(weight):  # type: ignore[no-untyped-def]
    """Convert a stored weight to float32; bfloat16 is the upper half of a float32."""


@overload(_to_float32)
def _to_float32_of_type(weight):  # type: ignore[no-untyped-def]
    if weight == types.uint16:
        return lambda weight: np.uint32(np.uint32(weight) << np.uint32(16)).view(np.float32)
    return lambda weight: np.float32(weight)


JOB = np.dtype([(name, np.int64) for name in ("W", "X", "Y", "outputs", "inputs", "rows", "int8")])
"""The arguments of a product for the threads: addresses, lengths, and whether W is int8."""


@njit
def _multiply(W: Any, X: Any, Y: Any) -> None:
    """Compute this thread's columns of a product."""
    thread, threads = thread_number(), thread_count()
    start, stop = len(W) * thread // threads, len(W) * (thread + 1) // threads
    if len(X) == 1:
        _multiply_one_row(W, X, Y, start, stop)
    else:
        _multiply_few_rows(W, X, Y, start, stop)


@cfunc(types.void(types.voidptr))
def _run_job(address: Any) -> None:
    job = carray(address, 1, JOB)[0]
    X = carray(at(job.X), (job.rows, job.inputs), np.float32)
    Y = carray(at(job.Y), (job.rows, job.outputs), np.float32)
    if job.int8:
        _multiply(carray(at(job.W), (job.outputs, job.inputs), np.int8), X, Y)
    else:
        _multiply(carray(at(job.W), (job.outputs, job.inputs), np.uint16), X, Y)


def multiply(weight: Tensor, rows: Tensor, outputs: Tensor) -> None:
    """Write X W^T into Y, in torch's number of threads.

    Args:
        weight: W, in bfloat16 or int8.
        rows: X, ``[N, in]``.
        outputs: Y, ``[N, out]``.
    """
    addresses = (tensor.data_ptr() for tensor in (weight, rows, outputs))
    job = np.array((*addresses, *weight.shape, len(rows), weight.dtype == torch.int8), JOB)
    run_in_threads(_run_job.address, job.ctypes.data)
