"""What the rule decided, in the counters that vLLM's server shows under ``/metrics``.

They are counted in the worker, which is another process than the server: Prometheus adds up the
processes of an engine by files, for which ``safedraft serve`` names a folder.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Counter

from safedraft.core.generation import Step

TOKENS = Counter(
    "safedraft_tokens",
    "Tokens decided by SSD, by the scheme they were decided in and whether they are the draft's",
    ["scheme", "matched"],
)
BLOCKS = Counter("safedraft_blocks", "Blocks of drafts that the target verified")


def count(blocks: Iterable[list[Step]]) -> None:
    """Count the steps of one pass over a batch, row by row."""
    for steps in blocks:
        for step in steps:
            TOKENS.labels(str(step.scheme), str(step.matched).lower()).inc()
        if steps:
            BLOCKS.inc()
