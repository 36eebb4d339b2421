"""Requests as the worker decodes them: what the draft proposed, and what becomes of it.

vLLM brings logits and takes tokens back; ``core.decide`` chooses the tokens. A ``ServedRequest``
lives as long as its request: whatever happens to the caches (chunked prefill, preemption, a batch
that others join and leave), its rule's state stands at its last decided token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from safedraft.core.config import Scheme
from safedraft.core.decide import Candidate, Draft, decide
from safedraft.core.decide import propose as propose_tokens
from safedraft.core.errors import BrokenModelError
from safedraft.core.generation import Step
from safedraft.core.request import Request
from safedraft.core.rows import Place, rank, require_finite
from safedraft.core.rule import Decision, Rule, State


@dataclass(slots=True)
class ServedRequest:
    """One request's side of the decoding in a worker."""

    request: Request
    state: State = field(init=False)
    position: int = 0
    """Number of tokens decided so far."""
    blocks: int = 0
    """Number of the target's passes that decided at least one of them."""
    matches: int = 0
    """Number of decided tokens that are the draft's own first proposal."""
    union_tokens: int = 0
    """Number of tokens decided in union."""
    ended: bool = False
    drafts: list[Draft] = field(default_factory=list)
    """Proposed for the next positions."""

    def __post_init__(self) -> None:
        self.state = self.request.rule.start(self.request.config, self.request.context)

    def keep_drafts(self) -> None:
        """Hold the drafts in memory of their own while the other rows of their pass are freed."""
        self.drafts = [
            draft._replace(place=Place(draft.place.ranked.detach(draft.place.row), 0))
            for draft in self.drafts
        ]

    def statistics(self) -> dict[str, float]:
        """What was decided so far, by the names that ``Statistics`` has for it."""
        decided = max(self.position, 1)
        return {
            "tokens": self.position,
            "blocks": self.blocks,
            "matches": self.matches,
            "match_ratio": self.matches / decided,
            "union_share": self.union_tokens / decided,
        }

    def commit(self, decision: Decision) -> Step:
        """Write down one decided position."""
        state, request = self.state, self.request
        scheme, alpha, threshold = state.scheme, state.alpha, state.threshold
        ends = decision.token in request.end_tokens
        step = Step(
            decision.token,
            decision.matched,
            scheme,
            alpha,
            threshold,
            None if ends else request.rule.observe(state, decision),
            decision.draft_probability,
            decision.target_probability,
            self.blocks,
            decision.logprobs,
            decision.signal,
        )
        self.position += 1
        self.matches += decision.matched
        self.union_tokens += scheme is Scheme.UNION
        self.ended = ends or self.position >= request.sampling.max_new_tokens
        return step


def propose(
    served: Sequence[ServedRequest | None], logits: Tensor, ahead: int
) -> list[Draft | None]:
    """One drafted token of every row.

    Args:
        served: whose row it is; None for a row that is not drafted for.
        logits: the draft's, ``[rows, V]``.
        ahead: which of the block's drafts this is, from 0.

    Raises:
        BrokenModelError: logits of a row that is drafted for are not all finite.
    """
    rows = [row for row, one in enumerate(served) if one is not None]
    chosen = [one for one in served if one is not None]
    drafts: list[Draft | None] = [None] * len(served)
    if not chosen:
        return drafts
    logits = logits if len(rows) == len(served) else logits[rows]
    require_finite(logits, "the draft")
    ranked = rank(logits, [one.request.sampling.temperature for one in chosen])
    positions = [one.position + ahead for one in chosen]
    proposed = propose_tokens(ranked, [one.request for one in chosen], positions)
    for row, draft in zip(rows, proposed, strict=True):
        drafts[row] = draft
    return drafts


def verify(served: Sequence[ServedRequest], logits: Sequence[Tensor]) -> list[list[Step]]:
    """Decide the drafted positions of every request from both models, left to right.

    A request's block ends after its first token that is not the drafted one, at an end token, and
    at its length limit; it holds no more than its drafts. What the target says after the last of
    them decides nothing: that position waits for the draft's word.

    Args:
        served: each with at least one draft.
        logits: the target's at the drafted positions of each request, ``[len(drafts), V]``.

    Returns:
        The steps of each request, at least one of each that has not ended.

    Raises:
        BrokenModelError: the target's logits are not all finite.
    """
    decided: list[list[Step]] = [[] for _ in served]
    places = _rank_target(served, logits)
    ahead = 0
    going = [index for index, one in enumerate(served) if not one.ended]
    while going:
        by_rule: dict[Rule, list[int]] = {}
        for index in going:
            by_rule.setdefault(served[index].request.rule, []).append(index)
        followed: set[int] = set()
        for rule, group in by_rule.items():
            candidates = [_candidate(served[index], ahead, places[index]) for index in group]
            for index, decision in zip(group, decide(rule, candidates), strict=True):
                decided[index].append(served[index].commit(decision))
                if decision.followed:
                    followed.add(index)
        ahead += 1
        going = [
            index
            for index in going
            if index in followed and not served[index].ended and ahead < len(served[index].drafts)
        ]
    for one, steps in zip(served, decided, strict=True):
        one.blocks += bool(steps)
        one.drafts = []
    return decided


def _rank_target(served: Sequence[ServedRequest], logits: Sequence[Tensor]) -> list[list[Place]]:
    """The target's rows of every request, ranked in one pass over all of them."""
    if not logits:
        return []
    rows = torch.cat(list(logits)) if len(logits) > 1 else logits[0]
    require_finite(rows, "the target")
    temperatures = [
        one.request.sampling.temperature
        for one, own in zip(served, logits, strict=True)
        for _ in range(len(own))
    ]
    ranked, places, start = rank(rows, temperatures), [], 0
    for own in logits:
        places.append([Place(ranked, start + row) for row in range(len(own))])
        start += len(own)
    return places


def _candidate(one: ServedRequest, ahead: int, target: Sequence[Place]) -> Candidate:
    if not one.drafts:
        raise BrokenModelError("a position came without the draft's distribution: nothing decided")
    return Candidate(one.request, one.state, one.position, one.drafts[ahead], target[ahead])
