"""The compiled program, kept between processes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safedraft.models.fingerprint import digest
from safedraft.models.registry import cache_folder


def why_not_available() -> str | None:
    """Why the program does not run on this machine, or None if it does."""
    from safedraft.kernels.openmp import find_openmp

    if find_openmp() is None:
        return "needs the OpenMP library that torch has on Linux"
    try:
        from safedraft.kernels.instructions import find_instructions
    except ImportError:
        return "needs Numba: pip install 'safedraft[cpu]'"
    return None if find_instructions() else "needs a processor with AVX2"


def compile_program() -> None:
    """Compile the program, or read it from the cache."""
    with _kept():
        import safedraft.engines.cpu.program  # noqa: F401


@contextmanager
def _kept() -> Iterator[None]:
    """Let Numba keep what is compiled in SafeDraft's cache, which an installation may not be.

    Numba looks for changes in the file of a function, and not in those that it is compiled with:
    the folder is named after the contents of all of them.
    """
    from numba import config

    before = config.CACHE_DIR
    config.CACHE_DIR = before or str(_folder())
    try:
        yield
    finally:
        config.CACHE_DIR = before


def _folder() -> Path:
    here = Path(__file__)
    kernels = here.parents[2].joinpath("kernels").glob("*.py")
    sources = [here.with_name("program.py"), here.with_name("arithmetic.py"), *kernels]
    name = digest(*(source.read_bytes() for source in sorted(sources)), digits=16)
    folder = cache_folder() / "compiled" / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.mkdtemp(prefix="safedraft-"))
    return folder if os.access(folder, os.W_OK) else Path(tempfile.mkdtemp(prefix="safedraft-"))
