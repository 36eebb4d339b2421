"""Arithmetic of a decoder on the numbers of one row, compiled.

Every function gives the same bits for the same numbers, wherever they lie.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from safedraft.kernels.layout import GROUP
from safedraft.kernels.threads import at

_ROUND = np.float32(12582912.0)
"""Added to a number of at most 2 ** 22, it leaves the nearest whole number in the lowest bits."""
_SMALLEST = np.float32(1.1754944e-38)

_I32, _FLOAT = ir.IntType(32), ir.FloatType()

_SUMS = {"reassoc", "contract"}
"""Permissions that vectorization needs: reordered sums. NaN and infinity keep their meaning."""


@intrinsic
def _size_bits(typing, number):  # type: ignore[no-untyped-def]
    """The bits of a float32 without its sign, which order numbers by size, and NaN above all."""

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.and_(builder.bitcast(arguments[0], _I32), _I32(0x7FFFFFFF))

    return types.int32(types.float32), emit


@intrinsic
def _from_bits(typing, bits):  # type: ignore[no-untyped-def]
    """The float32 with these bits."""

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], _FLOAT)

    return types.float32(types.int32), emit


@intrinsic
def _rounded_byte(typing, shifted):  # type: ignore[no-untyped-def]
    """The integer that adding ``_ROUND`` left in the low bits of a float32, as an int8."""

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.trunc(builder.bitcast(arguments[0], _I32), ir.IntType(8))

    return types.int8(types.float32), emit


@intrinsic
def _power_of_two(typing, shifted):  # type: ignore[no-untyped-def]
    """2 to the power of the integer that adding ``_ROUND`` left in the low bits of a float32."""

    def emit(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        exponent = builder.shl(builder.bitcast(arguments[0], _I32), _I32(23))
        return builder.bitcast(builder.add(exponent, _I32(0x3F800000)), _FLOAT)

    return types.float32(types.float32), emit


@njit(error_model="numpy")
def floats(address, count):  # type: ignore[no-untyped-def]
    """The array of ``count`` float32 at an address."""
    return carray(at(address), (count,), np.float32)


@njit(error_model="numpy")
def bytes_at(address, count):  # type: ignore[no-untyped-def]
    """The array of ``count`` int8 at an address."""
    return carray(at(address), (count,), np.int8)


@njit(error_model="numpy")
def integers(address, count):  # type: ignore[no-untyped-def]
    """The array of ``count`` int32 at an address."""
    return carray(at(address), (count,), np.int32)


@njit(inline="always", fastmath={"contract"}, error_model="numpy")
def exp(x):  # type: ignore[no-untyped-def]
    """exp(x) in float32, to 2 units of the last place; a NaN stays one."""
    x = np.float32(-87.0) if x < np.float32(-87.0) else x
    x = np.float32(88.0) if x > np.float32(88.0) else x
    shifted = x * np.float32(1.44269504) + _ROUND
    whole = shifted - _ROUND
    r = x - whole * np.float32(0.693359375)
    r = r - whole * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    return p * _power_of_two(shifted)


@njit(fastmath=_SUMS, error_model="numpy")
def inverse_norm(values, epsilon):  # type: ignore[no-untyped-def]
    """1 divided by the root of the mean square."""
    total = np.float32(0)
    for k in range(len(values)):
        total += values[k] * values[k]
    return np.float32(1) / np.sqrt(total / np.float32(len(values)) + np.float32(epsilon))


@njit(error_model="numpy")
def multiply_by(values, factor, weights):  # type: ignore[no-untyped-def]
    """Multiply numbers in place by a factor and by one weight each."""
    for k in range(len(values)):
        values[k] = values[k] * factor * weights[k]


@njit(error_model="numpy")
def quantize(values, quantized, parts):  # type: ignore[no-untyped-def]
    """Round numbers to 8-bit ones with one scale.

    The largest is found among the bits, where NaN is larger than every number: of numbers with a
    NaN among them it is the scale.

    Args:
        values: ``[n]`` float32.
        quantized: ``[m]`` int8, m >= n; zero from n on afterwards.
        parts: ``[m / GROUP]`` int32: the sum of each group of numbers afterwards.

    Returns:
        The scale, and the sum of all numbers.
    """
    count = len(values)
    largest = np.int32(0)
    for k in range(count):
        largest = max(largest, _size_bits(values[k]))
    top = _from_bits(largest)
    scale = (_SMALLEST if top < _SMALLEST else top) / np.float32(127)
    inverse = np.float32(1) / scale
    for k in range(count):
        quantized[k] = _rounded_byte(values[k] * inverse + _ROUND)
    for k in range(count, len(quantized)):
        quantized[k] = 0
    total = np.int32(0)
    for g in range(len(parts)):
        part = np.int32(0)
        for k in range(g * GROUP, (g + 1) * GROUP):
            part = np.int32(part + quantized[k])
        parts[g] = part
        total = np.int32(total + part)
    return scale, total


@njit(error_model="numpy")
def rotate(values, angles, half, factor):  # type: ignore[no-untyped-def]
    """Rotate the first ``2 * half`` numbers by their angles, and multiply all by a factor."""
    for d in range(half):
        first, second = values[d], values[d + half]
        cosine, sine = angles[d], angles[d + half]
        values[d] = (first * cosine - second * sine) * factor
        values[d + half] = (second * cosine + first * sine) * factor
    for d in range(2 * half, len(values)):
        values[d] *= factor


@njit(error_model="numpy")
def gather_seen(scores, length, open_places, mask):  # type: ignore[no-untyped-def]
    """Move the scores of the places that are seen together; return how many these are.

    They come in the order of their text, as those of a text without other continuations do, so that
    the sums over them have the same bits.

    Args:
        scores: of the places in the order of the cache.
        length: number of places.
        open_places: how many of the first places are seen.
        mask: for each of the other places, 0 if it is not seen.
    """
    seen = open_places
    for s in range(open_places, length):
        if mask[s - open_places] != 0:
            scores[seen] = scores[s]
            seen += 1
    return seen


@njit(error_model="numpy")
def scatter_seen(scores, length, open_places, mask, seen):  # type: ignore[no-untyped-def]
    """Move numbers back to where ``gather_seen`` took them from, and fill the others with 0."""
    for s in range(length - 1, open_places - 1, -1):
        is_seen = mask[s - open_places] != 0
        seen -= is_seen
        scores[s] = scores[seen] if is_seen else np.float32(0)


@njit(fastmath=_SUMS, error_model="numpy")
def softmax(scores, length):  # type: ignore[no-untyped-def]
    """Turn scores into a distribution, in place."""
    largest = np.float32(-np.inf)
    for s in range(length):
        largest = scores[s] if scores[s] > largest else largest
    total = np.float32(0)
    for s in range(length):
        scores[s] = exp(scores[s] - largest)
        total += scores[s]
    inverse = np.float32(1) / total
    for s in range(length):
        scores[s] *= inverse


@njit(error_model="numpy")
def scale_integers(sums, offset, row_scale, scales, biases, values):  # type: ignore[no-untyped-def]
    """Turn integer sums of weights that are 128 too large into a row's outputs."""
    for c in range(len(values)):
        values[c] = np.float32(np.int32(sums[c] - offset)) * row_scale * scales[c] + biases[c]


@njit(error_model="numpy")
def scale_floats(sums, row_scale, scales, biases, values):  # type: ignore[no-untyped-def]
    """Turn sums that are scaled by group into a row's outputs."""
    for c in range(len(values)):
        values[c] = sums[c] * row_scale * scales[c] + biases[c]


@njit(fastmath={"contract"}, error_model="numpy")
def gate(values, outputs):  # type: ignore[no-untyped-def]
    """Multiply the second half of some numbers with the silu of the first."""
    half = len(outputs)
    for c in range(half):
        outputs[c] = values[c] / (np.float32(1) + exp(-values[c])) * values[c + half]
