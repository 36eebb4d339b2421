"""The verification rule over a batch of requests: knows tensors and the algorithm, no engine.

The engine brings logits and takes tokens back. Each request has a ``Request`` that lives as long as
it does: whatever happens to its caches (chunked prefill, preemption, a batch that others join and
leave), its switch and its draws stand at its last decided token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from safedraft.core.composite import composite
from safedraft.core.config import SamplingParams, Scheme, SSDConfig
from safedraft.core.decode import Step
from safedraft.core.errors import BrokenModel
from safedraft.core.sampling import (
    Draws,
    accept_or_correct,
    distribution,
    draw,
    probabilities,
    require_finite,
)
from safedraft.core.switch import Switch


@dataclass(slots=True)
class Request:
    """One request's side of the rule."""

    config: SSDConfig
    sampling: SamplingParams
    """With a seed unless it is greedy."""
    end_tokens: frozenset[int] = frozenset()
    switch: Switch = field(init=False)
    draws: Draws = field(init=False)
    position: int = 0
    """Tokens decided so far."""
    blocks: int = 0
    """Passes of the target that decided at least one of them."""
    matches: int = 0
    """Decided tokens that are the draft's."""
    union_tokens: int = 0
    """Decided tokens whose scheme was union."""
    ended: bool = False
    drafts: list[int] = field(default_factory=list)
    """Proposed for the positions to come."""
    draft_rows: Sequence[Tensor] = ()
    """q of each of them, ``[V]``."""

    def __post_init__(self) -> None:
        self.switch = Switch(self.config)
        self.draws = Draws(self.sampling.seed or 0)

    def keep_drafts(self) -> None:
        """Hold q in memory of its own while others go on: a row of a batch's keeps all of it."""
        self.draft_rows = [
            row if row.untyped_storage().nbytes() == row.nbytes else row.clone()
            for row in self.draft_rows
        ]

    def statistics(self) -> dict[str, float]:
        """What was decided so far, by the names of ``chat.Statistics`` where it has them."""
        decided = max(self.position, 1)
        return {
            "tokens": self.position,
            "blocks": self.blocks,
            "matches": self.matches,
            "match_ratio": self.matches / decided,
            "union_share": self.union_tokens / decided,
        }


def propose(
    requests: Sequence[Request | None], logits: Tensor, ahead: int
) -> tuple[Tensor, Tensor]:
    """One drafted token of every row and the distribution q that it was drawn from.

    Args:
        requests: whose row it is; None for a row that is not drafted for.
        logits: the draft's, ``[rows, V]``.
        ahead: which of the block's drafts this is, from 0.

    Returns:
        Tokens ``[rows]`` and q ``[rows, V]`` in float32. Greedy rows have a q as well.

    Raises:
        BrokenModel: logits of a row that is drafted for are not all finite.
    """
    used = [row for row, request in enumerate(requests) if request]
    require_finite(logits if len(used) == len(requests) else logits[used], "the draft")
    q = probabilities(logits, _column([r.sampling.temperature if r else 0.0 for r in requests]))
    tokens = q.argmax(-1)
    sampled = [row for row in used if not _of(requests, row).sampling.greedy]
    if sampled:
        uniforms = [
            _of(requests, row).draws[_of(requests, row).position + ahead].propose for row in sampled
        ]
        tokens[sampled] = draw(q[sampled], _column(uniforms))
    return tokens, q


def verify(requests: Sequence[Request], logits: Sequence[Tensor]) -> list[list[Step]]:
    """Decide the drafted positions of every request from both models, left to right.

    A request's block ends after its first token that is not the drafted one, at an end token, and
    at its length limit; it holds no more than its drafts. What the target says after the last of
    them decides nothing: that position waits for the draft's word.

    Args:
        requests: each with at least one draft.
        logits: the target's at the drafted positions of each request, ``[len(drafts), V]``.

    Returns:
        The steps of each request, at least one.

    Raises:
        BrokenModel: the target's logits are not all finite.
    """
    decided: list[list[Step]] = [[] for _ in requests]
    going = [index for index, request in enumerate(requests) if not request.ended]
    ahead = 0
    while going:
        for group in _alike(going, requests):
            members = [requests[index] for index in group]
            rows = torch.stack([logits[index][ahead] for index in group])
            for index, step in zip(group, _decide(members, rows, ahead), strict=True):
                decided[index].append(step)
        ahead += 1
        going = [index for index in going if _goes_on(requests[index], decided[index], ahead)]
    for request, steps in zip(requests, decided, strict=True):
        request.blocks += bool(steps)
        request.drafts, request.draft_rows = [], ()
    return decided


def _decide(requests: Sequence[Request], logits: Tensor, ahead: int) -> list[Step]:
    """One position of requests that are decided alike; ``logits`` is [rows, V]."""
    require_finite(logits, "the target")
    sampling, config = requests[0].sampling, requests[0].config
    p = probabilities(logits, sampling.temperature)
    q = torch.stack([_rows(request)[ahead] for request in requests])
    union = torch.tensor([request.switch.scheme is Scheme.UNION for request in requests])
    strength = _column([request.switch.strength for request in requests])
    scores = composite(p, q, union, strength, config)
    drafted = torch.tensor([request.drafts[ahead] for request in requests], device=p.device)
    if sampling.greedy:
        tokens = scores.argmax(-1)
        matched = tokens == drafted
    else:
        draws = [request.draws[request.position] for request in requests]
        tokens, matched = accept_or_correct(
            distribution(scores, sampling),
            q,
            drafted,
            _column([one.accept for one in draws]),
            _column([one.correct for one in draws]),
        )
    said = [rows.gather(-1, tokens[:, None])[:, 0].tolist() for rows in (q, p)]
    return [
        _commit(*one)
        for one in zip(requests, tokens.tolist(), matched.tolist(), *said, strict=True)
    ]


def _commit(request: Request, token: int, matched: bool, q: float, p: float) -> Step:
    """Write one decided position into the request's state."""
    switch = request.switch
    step = Step(token, matched, switch.scheme, switch.strength, q, p, request.blocks)
    request.position += 1
    request.matches += matched
    request.union_tokens += switch.scheme is Scheme.UNION
    request.ended = (
        token in request.end_tokens or request.position >= request.sampling.max_new_tokens
    )
    if token not in request.end_tokens:
        switch.observe(matched)
    return step


def _alike(going: Sequence[int], requests: Sequence[Request]) -> list[list[int]]:
    """Groups of requests that share the constants and the sampling that one call can take."""
    groups: defaultdict[object, list[int]] = defaultdict(list)
    for index in going:
        request = requests[index]
        config, sampling = request.config, request.sampling
        spaces = (config.sample_space_size, config.kappa)
        cuts = (sampling.temperature, sampling.top_k, sampling.top_p)
        groups[spaces + cuts].append(index)
    return list(groups.values())


def _goes_on(request: Request, steps: Sequence[Step], ahead: int) -> bool:
    return steps[-1].matched and not request.ended and ahead < len(request.drafts)


def _rows(request: Request) -> Sequence[Tensor]:
    if not request.draft_rows:
        raise BrokenModel("a drafted token came without the draft's distribution; nothing decided")
    return request.draft_rows


def _of(requests: Sequence[Request | None], row: int) -> Request:
    request = requests[row]
    assert request is not None
    return request


def _column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
