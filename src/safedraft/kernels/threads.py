"""Functions for compiled kernels: the threads that run them, and pointers into their memory."""

from __future__ import annotations

from llvmlite.binding import load_library_permanently
from numba import types
from numba.extending import intrinsic

from safedraft.kernels.openmp import find_openmp

load_library_permanently(str(find_openmp()))

thread_number = types.ExternalFunction("omp_get_thread_num", types.int32())
"""The number of the calling thread, from 0."""
thread_count = types.ExternalFunction("omp_get_num_threads", types.int32())
"""The number of threads that run the same function."""
wait_for_all = types.ExternalFunction("GOMP_barrier", types.void())
"""Wait until all of them have come to this place."""


@intrinsic
def at(typing, address):  # type: ignore[no-untyped-def]
    """The pointer to an address."""

    def cast(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), cast
