"""The OpenMP library of torch, in whose threads the kernels run."""

from __future__ import annotations

from pathlib import Path

import torch


def find_openmp() -> Path | None:
    """Find the GNU OpenMP library that torch ships; None if there is none."""
    return next((Path(torch.__file__).parent / "lib").glob("libgomp*"), None)
