"""Whether the Transformers engine is right on an accelerator, and how fast it is there.

One command checks tokens against recordings, requests beside each other, broken models, the
composite of random logits and draws from it, and takes the figures that decide what is worth
changing: waits of the host, time of a pass and of a block, tokens a second beside Transformers' own
``generate``, a training step, memory. Nothing is fetched: large models have random weights and
agree by construction (``cuda_models``), or are two folders named by ``--pair``. Each check has a
time limit and is independent of the others. ``--json`` is written again after each check, and the
exit code is 1 if one failed.

``--device cpu`` runs the same checks on tiny models.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import transformers
from cuda_checks import check_blocks, check_broken, check_import, check_mixed, check_recorded
from cuda_models import GIB, SIZES, WORKLOADS, Bench, Outcome, forget_peak, peak
from cuda_rows import check_draws, check_rows
from cuda_speed import (
    measure_memory,
    measure_parts,
    measure_passes,
    measure_speed,
    measure_training,
)
from cuda_trees import measure_trees
from cuda_waits import measure_kernels, measure_waits
from transformers.utils import logging

from safedraft.core.errors import first_line
from safedraft.core.files import write_atomically

NEEDED = {("7B", "0.5B"): 40.0, ("1.5B", "0.5B"): 12.0, ("0.5B", "0.5B"): 6.0}
"""GiB of the device's memory that two models and their checks take; the second is the default."""


class Check(NamedTuple):
    """One check or measurement."""

    name: str
    run: Callable[[Bench, Outcome], None]
    limit: float
    """Seconds after which it is stopped and has failed."""


CHECKS = (
    Check("import", check_import, 60),
    Check("recorded", check_recorded, 60),
    Check("blocks", check_blocks, 60),
    Check("mixed", check_mixed, 60),
    Check("broken", check_broken, 30),
    Check("rows", check_rows, 60),
    Check("draws", check_draws, 60),
    Check("passes", measure_passes, 40),
    Check("waits", measure_waits, 60),
    Check("parts", measure_parts, 60),
    Check("training", measure_training, 60),
    Check("memory", measure_memory, 40),
    Check("speed", measure_speed, 120),
    Check("trees", measure_trees, 60),
    Check("kernels", measure_kernels, 40),
)


class TimeLimitError(Exception):
    """A check took too long."""


@contextmanager
def limit_time(seconds: float) -> Iterator[None]:
    """Raise ``TimeLimitError`` in the main thread after some seconds."""

    def stop(number: int, frame: object) -> None:
        raise TimeLimitError(f"stopped after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_check(check: Check, bench: Bench) -> dict[str, Any]:
    """Run one check; whatever it raises is its failure, and its figures so far are kept."""
    outcome = Outcome()
    forget_peak(bench.device)
    started = time.perf_counter()
    try:
        with limit_time(check.limit * bench.patience), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check.run(bench, outcome)
    except Exception as error:  # a check that fails stops no other
        outcome.failures.append(f"{type(error).__name__}: {first_line(error)}")
    return {
        "passed": not outcome.failures,
        "seconds": round(time.perf_counter() - started, 2),
        "peak_gib": round(peak(bench.device), 3),
        "failures": outcome.failures,
        "figures": outcome.figures,
    }


def describe(device: torch.device) -> dict[str, Any]:
    """The device and the versions that the figures were taken with."""
    facts: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "float32_precision": torch.get_float32_matmul_precision(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "device": properties.name,
            "memory_gib": round(properties.total_memory / GIB, 1),
            "cuda": torch.version.cuda,
            "capability": f"{properties.major}.{properties.minor}",
        }
    return facts


def choose_sizes(device: torch.device) -> tuple[str, str]:
    """The largest pair up to 1.5B that the device's free memory has room for."""
    if device.type != "cuda":
        return ("tiny", "tiny")
    free = torch.cuda.mem_get_info(device)[0] / GIB
    fitting = [sizes for sizes, needed in list(NEEDED.items())[1:] if needed <= free]
    return fitting[0] if fitting else ("tiny", "tiny")


def show(value: Any, indent: str = "    ") -> Iterator[str]:
    """Nested figures, one line for each innermost table."""
    if not isinstance(value, dict) or not any(isinstance(one, dict) for one in value.values()):
        yield f"{indent}{json.dumps(value)}"
        return
    for name, one in value.items():
        if isinstance(one, dict) and any(isinstance(inner, dict) for inner in one.values()):
            yield f"{indent}{name}:"
            yield from show(one, indent + "  ")
        else:
            yield f"{indent}{name}: {json.dumps(one)}"


def run_checks(checks: Sequence[Check], bench: Bench, file: Path | None) -> dict[str, Any]:
    """Run checks in order, print each as it ends, and write everything so far to ``file``."""
    measured = "of two folders" if bench.folders else "random weights that agree by construction"
    results: dict[str, Any] = {
        "machine": describe(bench.device),
        "models": {"names": bench.folders or bench.sizes, "measured": measured},
        "checks": {},
    }
    print(json.dumps(results["machine"]))
    print(f"large models: {' + '.join(results['models']['names'])}, {measured}", flush=True)
    for check in checks:
        result = run_check(check, bench)
        results["checks"][check.name] = result
        word = "passed" if result["passed"] else "FAILED"
        print(f"{check.name}: {word} in {result['seconds']} s, peak {result['peak_gib']} GiB")
        for failure in result["failures"][:8]:
            print(f"    {failure}")
        print("\n".join(show(result["figures"])), flush=True)
        if file:
            write_atomically(file, json.dumps(results, indent=1) + "\n")
    return results


def read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [check.name for check in CHECKS]
    parser.add_argument("--device", default="cuda")
    models = parser.add_mutually_exclusive_group()
    models.add_argument("--pair", nargs=2, metavar=("TARGET", "DRAFT"), help="two folders")
    models.add_argument(
        "--sizes", nargs=2, metavar=("TARGET", "DRAFT"), choices=SIZES, help=", ".join(SIZES)
    )
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="checks to run")
    parser.add_argument("--workload", choices=WORKLOADS, help="small on a processor")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks that the command line asks for; return the exit code."""
    given = read_arguments(arguments)
    device = torch.device(given.device)
    if device.type == "cpu":
        torch.set_num_threads(1)  # models are tiny: threads only wait for each other
    if device.type == "cuda":
        if not torch.cuda.is_available():
            sys.exit("CUDA cannot be used here: add --device cpu")
        device = torch.device("cuda", device.index or 0)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    workload = WORKLOADS[given.workload or ("full" if device.type == "cuda" else "small")]
    sizes = tuple(given.sizes) if given.sizes else choose_sizes(device)
    bench = Bench(device, sizes, tuple(given.pair) if given.pair else None, workload)
    checks = [check for check in CHECKS if check.name in given.only]
    results = run_checks(checks, bench, given.json)
    failed = [name for name, result in results["checks"].items() if not result["passed"]]
    print(f"{len(checks) - len(failed)} of {len(checks)} checks passed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
