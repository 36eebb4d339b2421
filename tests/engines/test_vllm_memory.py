"""What the profiling run allocates is enough for a step of any requests, in bytes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from safedraft.core.config import SamplingParams, SSDConfig
from safedraft.core.request import Request
from safedraft.engines.vllm.batch import DraftedBlocks, ServedRequest, rehearse, verify
from safedraft.rules import find_rule

ROWS = 16
PASSES = 3
V = 12_000
SAID = 3 * torch.randn(V, generator=torch.Generator().manual_seed(1))


class Peak(TorchDispatchMode):
    """The most bytes that tensors made inside of it held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count what an operation makes, until it is freed."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self._now += storage.nbytes()
            self.bytes = max(self.bytes, self._now)
            weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self._known.remove(key)
        self._now -= size


def peak_of(run: Callable[[], object]) -> float:
    """In units of one model's logits for every request, ``[ROWS, V]`` in float32."""
    with Peak() as peak:
        run()
    return peak.bytes / (4 * ROWS * V)


def logits_of(rows: int, dtype: torch.dtype) -> Tensor:
    """Those of either model, in memory of their own; they agree, so that nothing is read whole."""
    return SAID.to(dtype).repeat(rows, 1)


@cache
def profiled(dtype: torch.dtype) -> float:
    logits = partial(logits_of, dtype=dtype)
    return peak_of(lambda: rehearse(logits(ROWS * PASSES), lambda: logits(ROWS), PASSES))


def two_steps(dtype: torch.dtype, prefills: int, **sampling: Any) -> None:
    """Draft, verify, and draft again while the target's logits are held, as vLLM does it.

    Some requests have nothing drafted in the first step, and one row of the target's logits.
    """
    params = [SamplingParams(seed=row, **sampling) for row in range(ROWS)]
    batch = [ServedRequest(Request((), (), find_rule("ssd"), SSDConfig(), p)) for p in params]
    draft([None] * prefills + batch[prefills:], dtype)
    logits = logits_of(prefills + (ROWS - prefills) * PASSES, dtype)
    verify(batch[prefills:], logits, range(prefills, len(logits), PASSES))
    draft(batch, dtype)


def draft(served: Sequence[ServedRequest | None], dtype: torch.dtype) -> None:
    block = DraftedBlocks(served)
    for _ in range(PASSES):
        block.propose(logits_of(ROWS, dtype))
    for one, drafts in zip(served, block.read(), strict=True):
        if one:
            one.drafts = drafts


KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled": {"temperature": 1.3, "top_p": 0.7},
    "penalties": {"presence_penalty": 1.0, "repetition_penalty": 1.2},
    "sampled with a penalty": {"temperature": 0.7, "frequency_penalty": 0.5},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("kind", "prefills"), [*((kind, 0) for kind in KINDS), ("sampled with a penalty", 5)]
)
def test_no_step_takes_more_memory_than_the_profiling_run(
    kind: str, prefills: int, dtype: torch.dtype
) -> None:
    real = peak_of(lambda: two_steps(dtype, prefills, **KINDS[kind]))
    assert 0.5 * profiled(dtype) < real <= profiled(dtype)


def test_the_bytes_of_a_peak_are_counted() -> None:
    def run() -> None:
        first = torch.zeros(ROWS, V)
        first = first + 1
        first.view(-1).add_(2)
        del first
        torch.ones(ROWS, V, dtype=torch.int64)

    assert peak_of(run) == 2
