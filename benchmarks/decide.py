"""How long it takes to decide one position of many requests, by how many temperatures they have.

Prints one JSON object: median milliseconds of ``core.decide.decide`` for 32 requests with one
temperature and with eight, and their ratio. Both are timed in turn, since a machine's speed drifts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch

from safedraft.core.config import SamplingParams, SSDConfig
from safedraft.core.decide import Candidate, decide, propose
from safedraft.core.request import Request
from safedraft.core.rows import Place, rank
from safedraft.evaluation.benchmark import machine
from safedraft.rules.ssd import SSD

VOCABULARY = 151_936


def candidates(count: int, temperatures: list[float]) -> list[Candidate]:
    """One drafted position of each of ``count`` requests, whose temperatures alternate."""
    generator = torch.Generator().manual_seed(0)
    target, noise = (torch.randn(count, VOCABULARY, generator=generator) for _ in range(2))
    target, draft = 4 * target, 4 * target + 0.5 * noise  # models that mostly agree
    requests = [
        Request(
            (),
            (),
            SSD(),
            SSDConfig(),
            SamplingParams(temperature=temperatures[at % len(temperatures)], top_p=0.9, seed=at),
        )
        for at in range(count)
    ]
    each = [request.sampling.temperature for request in requests]
    proposed = propose(rank(draft, each), requests, [0] * count)
    ranked = rank(target, each)
    return [
        Candidate(
            request,
            request.rule.start(request.config, request.context),
            0,
            proposed[row],
            Place(ranked, row),
        )
        for row, request in enumerate(requests)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    groups = {
        "one": candidates(arguments.requests, [0.8]),
        "eight": candidates(arguments.requests, [0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in groups}
    for turn in range(arguments.rounds + 2):
        for name, group in groups.items():
            started = time.perf_counter()
            decide(group)
            if turn >= 2:
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times) * 1000 for name, times in seconds.items()}
    print(
        json.dumps(
            {
                "requests": arguments.requests,
                "milliseconds_one_temperature": round(medians["one"], 3),
                "milliseconds_eight_temperatures": round(medians["eight"], 3),
                "ratio": round(medians["eight"] / medians["one"], 3),
                "machine": machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
