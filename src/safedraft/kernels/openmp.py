"""The OpenMP library of torch, in whose threads the kernels run."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch


@cache
def find_openmp() -> Path | None:
    """Find the GNU OpenMP library that torch ships; None if there is none."""
    return next((Path(torch.__file__).parent / "lib").glob("libgomp*"), None)


def run_in_threads(function: int, argument: int) -> None:
    """Run a compiled function in as many threads as torch uses, and wait for all of them.

    Args:
        function: its address.
        argument: the address that each thread calls it with.
    """
    _parallel()(function, argument, torch.get_num_threads(), 0)


@cache
def _parallel() -> ctypes._NamedFuncPointer:
    parallel = ctypes.CDLL(str(find_openmp())).GOMP_parallel
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    return parallel
