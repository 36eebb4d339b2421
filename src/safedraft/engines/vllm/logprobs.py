"""Log probabilities of decided tokens in vLLM's form, from which its server makes OpenAI's."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
from vllm.v1.outputs import LogprobsLists

from safedraft.core.generation import Step


def tabulate(rows: Sequence[Sequence[Step]]) -> LogprobsLists | None:
    """Make vLLM's table of the log probabilities of the tokens that one step decided.

    Each token has as many entries as the one with the most, its own first; vLLM leaves out those
    that a request did not ask for. The last entry is repeated where fewer tokens can be chosen.

    Args:
        rows: the steps of each row of the batch; a row without log probabilities has none in the
            table.

    Returns:
        None if no row has any.
    """
    reported = [[step for step in steps if step.logprobs] for steps in rows]
    steps = [step for row in reported for step in row]
    if not steps:
        return None
    entries = [_entries(step) for step in steps]
    width = max(map(len, entries))
    table = np.array([one + one[-1:] * (width - len(one)) for one in entries])
    return LogprobsLists(
        table[..., 0].astype(np.int64),
        table[..., 1],
        np.array([_rank(step) for step in steps]),
        list(accumulate(map(len, reported), initial=0)),
    )


def _entries(step: Step) -> list[tuple[int, float]]:
    """The token itself and the most likely ones, with their log probabilities."""
    assert step.logprobs
    return [(step.token, step.logprobs.chosen), *step.logprobs.most_likely]


def _rank(step: Step) -> int:
    """The place of the token among the most likely ones, from 1; 0 if it is not one of them."""
    assert step.logprobs
    likely = [token for token, _ in step.logprobs.most_likely]
    return likely.index(step.token) + 1 if step.token in likely else 0
