"""The instructions of the processor that the kernels use.

Instructions that the processor lacks would end the process, so they are chosen by Numba's own list
of the features for which it compiles.
"""

from __future__ import annotations

from enum import StrEnum

from numba.core.registry import cpu_target


class Instructions(StrEnum):
    """The instructions by which 8-bit products are summed."""

    AVX512_VNNI = "AVX-512 VNNI"
    AVX_VNNI = "AVX-VNNI"
    AVX2 = "AVX2"


def find_instructions() -> Instructions | None:
    """The fastest instructions of the processor that Numba compiles for; None if it has none."""
    features = set(cpu_target.target_context.codegen().magic_tuple()[2].split(","))
    for needed, instructions in (
        ({"+avx512vnni", "+avx512f"}, Instructions.AVX512_VNNI),
        ({"+avxvnni", "+avx2"}, Instructions.AVX_VNNI),
        ({"+avx2"}, Instructions.AVX2),
    ):
        if needed <= features:
            return instructions
    return None
