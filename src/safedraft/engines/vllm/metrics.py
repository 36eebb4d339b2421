"""Counters of decisions and replies, which vLLM's server publishes under ``/metrics``.

The worker counts tokens and blocks, and it is another process than the server, which counts
replies: Prometheus adds up the processes from files, for which ``safedraft serve`` sets a folder.
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
REPLIES = Counter("safedraft_replies", "Replies ended", ["finish_reason", "guarded", "refused"])


def count(blocks: Iterable[list[Step]]) -> None:
    """Count the steps of one pass over a batch, a list for each row."""
    for steps in blocks:
        for step in steps:
            TOKENS.labels(str(step.scheme), str(step.matched).lower()).inc()
        if steps:
            BLOCKS.inc()


def count_reply(finish_reason: str, *, guarded: bool, refused: bool) -> None:
    """Count a reply that ended for any reason."""
    REPLIES.labels(finish_reason, str(guarded).lower(), str(refused).lower()).inc()
