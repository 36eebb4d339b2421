"""What the host waits for, and what it launches: reads from the device, and kernels of a pass."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from cuda_models import Bench, Outcome, make_request, synchronize
from cuda_speed import run_pass
from torch.overrides import TorchFunctionMode

from safedraft.core.decode import Batch

READS = {
    "item", "tolist", "cpu", "numpy", "nonzero",
    "__bool__", "__int__", "__float__", "__index__",
}  # fmt: skip
"""Functions of tensors for which the host waits."""


class _Reads(TorchFunctionMode):
    """Counts, on a processor, where the host would wait for an accelerator to read from it."""

    def __init__(self, places: Counter[str]) -> None:
        super().__init__()
        self._places = places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        moved = name == "to" and any(str(value) == "cpu" for value in args[1:])
        if name in READS or moved:
            self._places[_find_caller()] += 1
        return func(*args, **(kwargs or {}))


def _find_caller() -> str:
    frame = sys._getframe(2)
    while frame.f_back and "/torch/" in frame.f_code.co_filename:
        frame = frame.f_back
    return _name_place(frame.f_code.co_filename, frame.f_lineno)


def _name_place(file: str, line: int) -> str:
    return "/".join(Path(file).parts[-3:]) + f":{line}"


@contextmanager
def count_waits(device: torch.device) -> Iterator[Counter[str]]:
    """Count where the host waits: CUDA's own warnings, or reads from tensors on a processor.

    Waits for the whole device are counted as ``synchronize``.
    """
    places: Counter[str] = Counter()
    if device.type != "cuda":
        with _Reads(places):
            yield places
        return
    whole = torch.accelerator.synchronize

    def counted(*arguments: Any) -> None:
        places["synchronize"] += 1
        whole(*arguments)

    torch.accelerator.synchronize = counted
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")
            torch.accelerator.synchronize = whole
    for one in caught:
        if "called a synchronizing" in str(one.message):
            places[_name_place(one.filename, one.lineno)] += 1


def measure_waits(bench: Bench, outcome: Outcome) -> None:
    """How often the host waits in a step of the loop, and for each token, and where."""
    pair = bench.large
    if pair.shares:
        pair.agree(pair.shares[0])
    kinds = (("target_only", 0.0), ("speculative", 0.0), ("ssd", 0.0), ("ssd", 0.8))
    for rule, temperature in kinds:
        for count in (1, 4):
            batch = Batch(pair.engine())
            decodings = [
                batch.add(
                    make_request(rule, prompt, max_new_tokens=200, temperature=temperature, seed=at)
                )
                for at, prompt in enumerate(pair.prompts(count, 16))
            ]
            for _ in range(3):  # the prompts are read first
                batch.step()
            tokens, steps = sum(len(one.steps) for one in decodings), 8
            with count_waits(bench.device) as places:
                for _ in range(steps):
                    batch.step()
            tokens = sum(len(one.steps) for one in decodings) - tokens
            waits = places.total()
            outcome.figures[f"{rule}, temperature {temperature:g}, {count} together"] = {
                "waits_per_step": round(waits / steps, 2),
                "waits_per_token": round(waits / max(tokens, 1), 2),
                "tokens_per_step": round(tokens / steps, 2),
                "places": dict(places.most_common(12)),
            }
            outcome.require(tokens > 0, f"{rule} decided nothing")


def measure_kernels(bench: Bench, outcome: Outcome) -> None:
    """Kernels of a pass of each model and their time, which no launch from the host can be below.

    On a processor the calls of operators are counted.
    """
    from torch.profiler import ProfilerActivity, profile

    on_cuda = bench.device.type == "cuda"
    engine = bench.large.engine()
    for which in ("target", "draft"):
        session = engine.session(which)
        (prompt,) = bench.large.prompts(1, bench.workload.prompt)
        session.forward(prompt, 1)
        run_pass(session, prompt[:1], 1, 1)
        activity = ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU
        synchronize(bench.device)
        with profile(activities=[activity], acc_events=True) as profiler:
            run_pass(session, prompt[:1], 1, 1)
            synchronize(bench.device)
        events = [event for event in profiler.events() if _counts(event, on_cuda)]
        name = "device_time_total" if on_cuda else "self_cpu_time_total"
        outcome.figures[which] = {
            "kernels" if on_cuda else "operators": len(events),
            "ms": round(sum(getattr(event, name) for event in events) / 1000, 3),
        }


def _counts(event: Any, on_cuda: bool) -> bool:
    return not on_cuda or str(event.device_type).endswith("CUDA")
