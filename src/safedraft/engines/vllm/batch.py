"""The requests that a worker decodes: their drafts, and the decisions about them.

vLLM provides logits and receives tokens; ``core.decide`` chooses the tokens. A ``ServedRequest``
lives as long as its request. Whatever happens to the caches (chunked prefill, preemption, other
requests that join and leave), its rule's state belongs to its last decided token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from safedraft.core.config import SamplingParams, Scheme, SSDConfig
from safedraft.core.constraint import Constrained, Constraint, restrict
from safedraft.core.decide import Candidate, Draft, choose_drafts, decide
from safedraft.core.errors import BrokenModelError
from safedraft.core.generation import Step, record
from safedraft.core.request import Request
from safedraft.core.rows import Place, Ranked, move, no_numbers, rank
from safedraft.core.rule import Decision, State
from safedraft.core.session import Which
from safedraft.engines.vllm.reading import BothPlaces, read_places
from safedraft.rules import find_rule


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
    states: dict[int, Mapping[Which, Tensor]] = field(default_factory=dict)
    """The states that were read for the risk, by their place in the prompt."""

    def __post_init__(self) -> None:
        self.state = self.request.rule.start(self.request.config, self.request.context)
        self.constraints = self.request.constraints(self.state)

    @property
    def unread(self) -> list[int]:
        """Places in the prompt whose states are still to be read for the risk, if it is due."""
        reading, due = self.state.reading, self.state.reads_risk_at
        if reading is None or due is None or due > self.position or self.ended:
            return []
        return [place for place in reading.places("draft") if place not in self.states]

    def note_states(self, place: int, states: Mapping[Which, Tensor]) -> None:
        """Note the states at a place in the prompt, and hand the risk to the rule after the last.

        The request ends with an error if the risk cannot be read.

        Args:
            place: one of ``unread``.
            states: each model's last hidden state there, ``[H]`` in float32.
        """
        self.states[place] = states
        reading = self.state.reading
        if self.unread or reading is None:
            return
        places = reading.places("draft")  # both models have the same prompt
        parts = [self.states[place][which] for which in reading.probe.reads for place in places]
        self.states.clear()
        try:
            self.state.assess(reading.probe.read(torch.cat(parts)))
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


class _Pass(NamedTuple):
    """One pass of the draft, on its device; each field but the last has an entry for each row."""

    rows: Sequence[int]
    """Numbers of the rows of the block that took part."""
    tokens: Tensor
    chances: Tensor
    """q of each token."""
    finite: Tensor
    """Whether all logits of the row are finite."""
    ranked: Ranked


class DraftedBlocks:
    """The drafts of one block of every row; they stay on the device until they are read.

    Args:
        served: request of each row; None for a row that is not drafted for.
    """

    def __init__(self, served: Sequence[ServedRequest | None]) -> None:
        self._served = served
        self._drafts: list[list[Draft]] = [[] for _ in served]
        self._unread: list[_Pass] = []
        self._passes = 0

    def propose(self, logits: Tensor) -> Tensor:
        """Draft one more token of every row.

        Args:
            logits: logits of the draft, ``[rows, V]``.

        Returns:
            The tokens, ``[rows]`` on the device of the logits; 0 in a row that is not drafted for
            or whose request has ended.
        """
        finite = are_finite(logits)
        if any(one and one.constraints for one in self._served):
            self.read()  # what may come depends on the drafts
        logits = _restrict(logits, self._served, self._drafts)
        rows = [row for row, one in enumerate(self._served) if one and not one.ended]
        chosen = [one for one in self._served if one and not one.ended]
        ahead, self._passes = self._passes, self._passes + 1
        if not chosen:
            return torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        at = move(torch.tensor(rows), logits.device)
        ranked = rank(
            logits if len(rows) == len(logits) else logits[at],
            [one.request.sampling.temperature for one in chosen],
        )
        positions = [one.position + ahead for one in chosen]
        tokens, chances = choose_drafts(ranked, [one.request for one in chosen], positions)
        self._unread.append(_Pass(rows, tokens, chances, finite[at], ranked))
        return torch.zeros(len(logits), dtype=tokens.dtype, device=tokens.device).index_copy_(
            0, at, tokens
        )

    def read(self) -> list[list[Draft]]:
        """The drafts of each row so far, with one copy of all that were not read before.

        A request whose logits are not all finite ends with an error, and has no draft of them.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return self._drafts
        fields = zip(*[(one.tokens, one.chances, one.finite) for one in unread], strict=True)
        table = torch.stack([torch.cat(field).double() for field in fields], dim=-1)
        numbers = iter(table.tolist())
        for one in unread:
            for at, row in enumerate(one.rows):
                token, chance, is_finite = next(numbers)
                served = self._served[row]
                assert served is not None
                if not is_finite and not served.ended:
                    served.fail(no_numbers("the draft"))
                if not served.ended:
                    draft = Draft(int(token), chance, Place(one.ranked, at))
                    self._drafts[row].append(draft)
        return self._drafts


def verify(
    served: Sequence[ServedRequest], logits: Tensor, firsts: Sequence[int]
) -> list[list[Step]]:
    """Decide the drafted positions of every request from both models, left to right.

    A request's block ends after its first token that is not the drafted one, at an end token, and
    at its length limit; it holds no more than its drafts. The position after the last of them stays
    undecided until the draft has a distribution there. A request whose logits are not all finite
    ends with an error.

    Args:
        served: each with at least one draft.
        logits: logits of the target, ``[n, V]``; those at a request's drafted positions follow one
            another. Rows of no request may hold anything: leaving them out would take a copy.
        firsts: the row of each request's first drafted position.

    Returns:
        The steps of each request: at least one, unless it has ended.

    Raises:
        BrokenModelError: a request has no draft, so that its draft's distribution is missing.
    """
    for one in served:
        if one.unread:
            unread = "a reply began before the risk of its request was read: nothing decided"
            one.fail(BrokenModelError(unread))
    places = _read(served, logits, firsts)
    decided: list[list[Step]] = [[] for _ in served]
    ahead = 0
    deciding = [at for at, one in enumerate(served) if not one.ended]
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


def _read(
    served: Sequence[ServedRequest], logits: Tensor, firsts: Sequence[int]
) -> list[list[BothPlaces]]:
    """Both models' places at the drafted positions of each request, read with one copy.

    A request whose logits are not all finite ends with an error; one that had ended has no places.
    The arguments are those of ``verify``.
    """
    counts = [0 if one.ended else len(one.drafts) for one in served]
    if any(not count and not one.ended for count, one in zip(counts, served, strict=True)):
        raise BrokenModelError("a position came without the draft's distribution: nothing decided")
    drafted: dict[int, tuple[ServedRequest, int]] = {
        first + ahead: (one, ahead)
        for one, count, first in zip(served, counts, firsts, strict=True)
        for ahead in range(count)
    }
    if not drafted:
        return [[] for _ in served]
    owners = [drafted[row][0] if row in drafted else None for row in range(len(logits))]
    before = [one.drafts[: drafted[row][1]] if one else () for row, one in enumerate(owners)]
    finite = are_finite(logits)
    logits = _restrict(logits, owners, before)
    ranked = rank(logits, [one.request.sampling.temperature if one else 0.0 for one in owners])
    places = [
        BothPlaces(Place(ranked, row), one.drafts[ahead].place)
        for row, (one, ahead) in drafted.items()
    ]
    found, flags = read_places(places, finite)
    for owner, is_finite in zip(owners, flags, strict=True):
        if owner and not is_finite and not owner.ended:
            owner.fail(no_numbers("the target"))
    read = iter(found)
    return [[next(read) for _ in range(count)] for count in counts]


def _restrict(
    logits: Tensor, owners: Sequence[ServedRequest | None], before: Sequence[Sequence[Draft]]
) -> Tensor:
    """Apply the constraints of each row's request; a request without a possible token ends.

    Args:
        logits: ``[rows, V]``.
        owners: the request of each row; None for a row without a request.
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


def rehearse(logits: Tensor, propose: Callable[[], Tensor], passes: int) -> None:
    """Decide a block of requests of the kind that takes the most memory, so that it is measured.

    They are sampled and have penalties, for which both models' logits are copied. Everything goes
    the way of a step: the target's logits are held while the draft proposes, as in vLLM.

    Args:
        logits: logits of the target at ``passes`` positions of each request, one request after the
            other, ``[requests * passes, V]``.
        propose: makes the draft's logits in one of its passes, ``[requests, V]``.
        passes: number of drafts of each request.
    """
    sampling = SamplingParams(
        temperature=0.8, top_p=0.9, frequency_penalty=0.1, repetition_penalty=1.1, seed=0
    )
    request = Request((), (), find_rule("ssd"), SSDConfig(), sampling)
    served = [ServedRequest(request) for _ in range(len(logits) // passes)]
    block = DraftedBlocks(served)
    for _ in range(passes):
        block.propose(propose())
    for one, drafts in zip(served, block.read(), strict=True):
        one.drafts = drafts
    verify(served, logits, range(0, len(logits), passes))


def are_finite(logits: Tensor) -> Tensor:
    """Whether all logits of each row are, ``[rows]``; their sum is finite only if they are."""
    return logits.sum(-1, dtype=torch.float32).isfinite()


def _candidate(one: ServedRequest, ahead: int, places: Sequence[BothPlaces]) -> Candidate:
    target, draft = places[ahead]
    drafted = one.drafts[ahead]._replace(place=draft)
    return Candidate(one.request, one.state, one.position, drafted, target)
