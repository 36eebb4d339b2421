"""Counters of decisions, which vLLM's server publishes under ``/metrics``.

The worker counts, and it is another process than the server: Prometheus adds up the processes of an
engine from files, for which ``safedraft serve`` sets a folder.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Counter

from safedraft.core.generation import Step

TOKENS = Counter(
    "safedraft_tokens",
    "Decided tokens, by the scheme in force and whether the draft's own proposal was accepted",
    ["scheme", "matched"],
)
BLOCKS = Counter("safedraft_blocks", "Blocks of drafts that the target verified")


def count(blocks: Iterable[list[Step]]) -> None:
    """Count the steps of one pass over a batch, a list for each row."""
    for steps in blocks:
        for step in steps:
            TOKENS.labels(str(step.scheme), str(step.matched).lower()).inc()
        if steps:
            BLOCKS.inc()
