"""The requests that a worker decodes: their drafts, and the decisions about them.

vLLM provides logits and receives tokens; ``core.decide`` chooses the tokens. A ``ServedRequest``
lives as long as its request. Whatever happens to the caches (chunked prefill, preemption, other
requests that join and leave), its rule's state belongs to its last decided token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from safedraft.core.config import Scheme
from safedraft.core.constraint import Constrained, Constraint, restrict
from safedraft.core.decide import Candidate, Draft, decide
from safedraft.core.decide import propose as propose_tokens
from safedraft.core.errors import BrokenModelError
from safedraft.core.generation import Step, record
from safedraft.core.request import Request
from safedraft.core.rows import Place, rank, require_finite
from safedraft.core.rule import Decision, State
from safedraft.core.session import Which


@dataclass(slots=True)
class ServedRequest:
    """The state of one request in a worker."""

    request: Request
    state: State = field(init=False)
    constraints: list[Constraint] = field(init=False)
    position: int = 0
    """Number of tokens decided so far."""
    blocks: int = 0
    """Number of the target's passes that decided at least one of them."""
    matches: int = 0
    """Number of decided tokens that are the draft's own first proposal."""
    union_tokens: int = 0
    """Number of tokens decided in union."""
    ended: bool = False
    error: BrokenModelError | None = None
    """Why it ended early, if it did."""
    drafts: list[Draft] = field(default_factory=list)
    """Proposed for the next positions."""

    def __post_init__(self) -> None:
        self.state = self.request.rule.start(self.request.config, self.request.context)
        self.constraints = self.request.constraints(self.state)

    @property
    def unread_question(self) -> int:
        """Length of the question at whose end the risk is still to be read; 0 if it need not be."""
        reading = self.state.reading
        due = self.state.reads_risk_at
        if reading is None or due is None or due > self.position or self.ended:
            return 0
        return len(reading.readings["draft"].question)  # both models have the same prompt

    def assess(self, states: Mapping[Which, Tensor]) -> None:
        """Hand the risk to the rule; the request ends with an error if it cannot be read.

        Args:
            states: each model's last hidden state at the end of the question, ``[H]`` in float32.
        """
        assert self.state.reading is not None
        probe = self.state.reading.probe
        try:
            self.state.assess(probe.read(torch.cat([states[which] for which in probe.reads])))
        except BrokenModelError as error:
            self.fail(error)

    def fail(self, error: BrokenModelError) -> None:
        """End the request with an error; the others continue."""
        self.error, self.ended = error, True

    def keep_drafts(self) -> None:
        """Hold the drafts in memory of their own while the other rows of their pass are freed."""
        self.drafts = [
            draft._replace(place=Place(draft.place.ranked.detach(draft.place.row), 0))
            for draft in self.drafts
        ]

    def statistics(self) -> dict[str, float]:
        """Figures of the reply so far, with the names of ``Statistics`` where it has them."""
        decided = max(self.position, 1)
        return {
            "tokens": self.position,
            "blocks": self.blocks,
            "matches": self.matches,
            "match_ratio": self.matches / decided,
            "union_share": self.union_tokens / decided,
        }

    def commit(self, decision: Decision) -> Step:
        """Record one decided position."""
        step = record(self.request, self.state, decision, self.blocks)
        self.ended = self.request.ends(step.token, self.position)
        try:
            for constraint in self.constraints:
                constraint.decide(step.token)
        except BrokenModelError as error:
            self.fail(error)
        self.position += 1
        self.matches += step.matched
        self.union_tokens += step.scheme is Scheme.UNION
        return step


def propose(
    served: Sequence[ServedRequest | None],
    logits: Tensor,
    ahead: int,
    before: Sequence[Sequence[Draft]],
) -> list[Draft | None]:
    """One drafted token of every row; a request whose logits are not all finite ends with an error.

    Args:
        served: request of each row; None for a row that is not drafted for.
        logits: logits of the draft, ``[rows, V]``.
        ahead: which of the block's drafts this is, from 0.
        before: the block's earlier drafts of each row.

    Returns:
        A draft for each row; None for a row that is not drafted for or whose request has ended.
    """
    _end_broken(served, logits, "the draft")
    logits = _restrict(logits, served, before)
    rows = [row for row, one in enumerate(served) if one and not one.ended]
    chosen = [one for one in served if one and not one.ended]
    drafts: list[Draft | None] = [None] * len(served)
    if not chosen:
        return drafts
    logits = logits if len(rows) == len(served) else logits[rows]
    ranked = rank(logits, [one.request.sampling.temperature for one in chosen])
    positions = [one.position + ahead for one in chosen]
    proposed = propose_tokens(ranked, [one.request for one in chosen], positions)
    for row, draft in zip(rows, proposed, strict=True):
        drafts[row] = draft
    return drafts


def verify(served: Sequence[ServedRequest], logits: Sequence[Tensor]) -> list[list[Step]]:
    """Decide the drafted positions of every request from both models, left to right.

    A request's block ends after its first token that is not the drafted one, at an end token, and
    at its length limit; it holds no more than its drafts. The position after the last of them stays
    undecided until the draft has a distribution there. A request whose logits are not all finite
    ends with an error.

    Args:
        served: each with at least one draft.
        logits: logits of the target at the drafted positions of each request, ``[len(drafts), V]``.

    Returns:
        The steps of each request: at least one, unless it has ended.

    Raises:
        BrokenModelError: a request has no draft, so that its draft's distribution is missing.
    """
    for one in served:
        if one.unread_question:
            unread = "a reply began before the risk of its request was read: nothing decided"
            one.fail(BrokenModelError(unread))
    places = _rank_target(served, logits)
    decided: list[list[Step]] = [[] for _ in served]
    ahead = 0
    deciding = [index for index, one in enumerate(served) if not one.ended]
    while deciding:
        decisions = decide([_candidate(served[at], ahead, places[at]) for at in deciding])
        followed: set[int] = set()
        for at, decision in zip(deciding, decisions, strict=True):
            decided[at].append(served[at].commit(decision))
            if decision.followed:
                followed.add(at)
        ahead += 1
        deciding = [
            index
            for index in deciding
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
    owners = [one for one, own in zip(served, logits, strict=True) for _ in range(len(own))]
    _end_broken(owners, rows, "the target")
    before = [
        one.drafts[:at] for one, own in zip(served, logits, strict=True) for at in range(len(own))
    ]
    rows = _restrict(rows, owners, before)
    ranked, start = rank(rows, [one.request.sampling.temperature for one in owners]), 0
    places = []
    for own in logits:
        places.append([Place(ranked, start + row) for row in range(len(own))])
        start += len(own)
    return places


def _restrict(
    logits: Tensor, owners: Sequence[ServedRequest | None], before: Sequence[Sequence[Draft]]
) -> Tensor:
    """Apply its request's constraints to each row; a request left without a token ends.

    Args:
        logits: ``[rows, V]``.
        owners: the request of each row; None for a row of none.
        before: the drafts of each row between the decided tokens and its position.
    """
    rows = [
        Constrained(one.constraints if one and not one.ended else (), [d.token for d in drafts])
        for one, drafts in zip(owners, before, strict=True)
    ]
    logits, failed = restrict(logits, rows)
    for row, error in failed.items():
        one = owners[row]
        assert one is not None
        one.fail(error)
    return logits


def _end_broken(owners: Sequence[ServedRequest | None], logits: Tensor, model: str) -> None:
    """End the requests whose logits are not all finite with an error; the others are unaffected.

    Args:
        owners: the request of each row; None for a row of none.
        logits: ``[rows, V]``.
        model: its name, for the error.
    """
    finite = logits.sum(-1, dtype=torch.float32).isfinite()
    if bool(finite.all()):
        return
    for row in (~finite).nonzero().flatten().tolist():
        if (one := owners[row]) and not one.ended:
            try:
                require_finite(logits[row], model)
            except BrokenModelError as error:
                one.fail(error)


def _candidate(one: ServedRequest, ahead: int, target: Sequence[Place]) -> Candidate:
    if not one.drafts:
        raise BrokenModelError("a position came without the draft's distribution: nothing decided")
    return Candidate(one.request, one.state, one.position, one.drafts[ahead], target[ahead])
