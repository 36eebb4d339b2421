"""Records of a draft's proposals at each decided position, and of the time of passes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from safedraft.core.config import SamplingParams
from safedraft.core.decide import propose
from safedraft.core.rows import rank, wait_for
from safedraft.core.session import Pass, Which
from safedraft.evaluation.trees.drafting import Child, Position

if TYPE_CHECKING:
    from safedraft.core.rule import Rule
    from safedraft.pair import Pair
    from safedraft.text.results import GenerationResult

PROPOSALS = 8
"""Maximum number of children of a node that are recorded."""
TARGET_ROWS, DRAFT_ROWS = 64, 16
"""Largest passes that are timed, if the engine computes so many rows at once."""
EACH = 16
"""Up to so many rows every size of a pass is timed; then every eighth, with the others between."""


def read_positions(
    pair: Pair, text: str, result: GenerationResult, sampling: SamplingParams, rule: str | Rule
) -> list[Position]:
    """Record the draft's proposals at every position of a decoded reply, in one pass.

    Args:
        pair: the pair that decoded it, on an engine with sessions.
        text: the prompt.
        result: the reply, with its trace.
        sampling: sampling parameters of the reply.
        rule: the rule that decoded it, or its name.
    """
    prompts = pair.prompts(text)
    request = pair.request(prompts, pair.fit(prompts, sampling), rule=rule)
    ids = [token.id for token in result.trace]
    engine: Any = pair.engine
    draft = Pass(engine.session("draft"), [*prompts.draft, *ids[:-1]], len(ids))
    (logits,) = engine.forward([draft])
    ranked = rank(logits, [sampling.temperature] * len(ids))
    proposed = propose(ranked, [request] * len(ids), range(len(ids)))
    positions = []
    path_score, block = 1.0, -1
    for row, (token, first) in enumerate(zip(result.trace, proposed, strict=True)):
        best = ranked.tokens[row, :PROPOSALS].tolist()
        children = [first.token, *(other for other in best if other != first.token)][:PROPOSALS]
        ranks = [rank_of(logits[row], one) for one in (token.id, first.token)]
        chances = [first.place.chance(child) for child in children]
        path_score = first.place.chance(token.id) * (path_score if token.block == block else 1.0)
        block = token.block
        positions.append(
            Position(
                token.scheme,
                ranks[0],
                1 if token.id == first.token else ranks[0] + (ranks[1] > ranks[0]),
                first.place.chance(best[0]),
                path_score,
                tuple(map(Child, chances, (child in request.end_tokens for child in children))),
            )
        )
    return positions


def rank_of(logits: Tensor, token: int) -> int:
    """The rank of a token, from 1; ties by id."""
    better = int((logits > logits[token]).sum())
    return 1 + better + int((logits[:token] == logits[token]).sum())


def time_passes(pair: Pair, text: str, rounds: int) -> dict[Which, list[float]]:
    """Median milliseconds of passes over 1, 2, … rows after a prompt, all of them in turn."""
    engine: Any = pair.engine
    prompts = pair.prompts(text)
    actions: dict[str, Callable[[], Any]] = {}
    limit = min(getattr(engine.batch(), "rows_at_once", None) or TARGET_ROWS, TARGET_ROWS)
    most: dict[Which, int] = {"target": limit, "draft": min(limit, DRAFT_ROWS)}
    sizes = {
        which: [n for n in range(1, rows + 1) if n <= EACH or n % 8 == 0 or n == rows]
        for which, rows in most.items()
    }

    def run(session: Any, tokens: Sequence[int]) -> None:
        (logits,) = engine.forward([Pass(session, tokens, len(tokens))])
        wait_for(logits.device)
        session.rewind(len(tokens))

    for which, counts in sizes.items():
        ids = prompts.target if which == "target" else prompts.draft
        session = engine.session(which)
        engine.forward([Pass(session, ids, 1)])
        tokens = (list(ids) * counts[-1])[: counts[-1]]
        for count in counts:
            actions[f"{which} {count}"] = partial(run, session, tokens[:count])
    times = time_in_turn(actions, rounds)
    timed = {which: [times[f"{which} {n}"] for n in counts] for which, counts in sizes.items()}
    return {
        which: np.interp(range(1, rows + 1), sizes[which], timed[which]).tolist()
        for which, rows in most.items()
    }


def time_in_turn(actions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each action, all of them in turn, after one round to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(rounds + 1):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            if turn:
                taken[name].append((time.perf_counter() - started) * 1e3)
    return {name: statistics.median(times) for name, times in taken.items()}
