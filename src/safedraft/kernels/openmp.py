"""The library of torch's own threads, which share the work of the kernels."""

from __future__ import annotations

from pathlib import Path

import torch


def openmp() -> Path | None:
    """GNU's OpenMP library as torch ships it, or None."""
    return next((Path(torch.__file__).parent / "lib").glob("libgomp*"), None)
