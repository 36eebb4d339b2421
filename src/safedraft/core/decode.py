"""The decoding loop: the draft proposes, the target verifies, each position is decided from both.

Many requests go through the loop together: the passes of a block are handed to the engine at once.
One request is the same loop.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from safedraft.core.config import DraftingConfig
from safedraft.core.constraint import Constrained, restrict
from safedraft.core.decide import Candidate, Draft, decide, decide_alone, propose
from safedraft.core.errors import BrokenModelError, FormError, describe_failed_pass
from safedraft.core.generation import Generation, Passes, Step, record
from safedraft.core.pauses import Pauses
from safedraft.core.request import Request
from safedraft.core.risk import RiskContext
from safedraft.core.rows import Place, rank, require_finite
from safedraft.core.rule import Decision
from safedraft.core.session import Pass, Session, SessionEngine, Which, rewind_to


class ReadModel(NamedTuple):
    """One of the two models of a request: its session, unseen tokens and passes."""

    session: Session
    unseen: list[int]
    """Tokens that the session has not seen."""
    passes: Passes


class Decoding(Generation):
    """One request on its way through the loop.

    Between blocks each session holds every token but those it has not seen (``…_unseen``): the last
    committed one, or none for the target when its distribution there is carried over.
    """

    def __init__(self, request: Request, engine: SessionEngine) -> None:
        super().__init__(request)
        self.state = request.rule.start(request.config, request.context)
        self.constraints = request.constraints(self.state)
        self.dead_ends: dict[int, FormError] = {}  # positions at which no token can be chosen
        config = request.config
        self.drafting = config if isinstance(config, DraftingConfig) else DraftingConfig()
        self.target, self.draft = engine.session("target"), engine.session("draft")
        self.target_unseen, self.draft_unseen = [*request.target_prompt], [*request.draft_prompt]
        self.drafts: deque[Draft] = deque()  # proposed, not yet decided
        self.rows: deque[Place] = deque()  # P at the positions to come
        self.pauses = Pauses()
        self.position = self.decided = 0
        self.block = -1

    @property
    def paused(self) -> bool:
        """Whether the next token is the target's, without a draft."""
        greedy = self.request.sampling.greedy and self.request.top_logprobs is None
        return greedy and self.state.follows_target and self.pauses.active

    def draft_length(self) -> int:
        """Maximum number of tokens to draft now."""
        if self.paused:
            return 0
        if self.rows:  # carried over: decided as soon as the draft proposes a token there
            return 1
        limit = self.state.draft_limit
        length = self.drafting.draft_length(self.decided) if limit is None else limit
        last = self.request.sampling.max_new_tokens
        if (reading := self.state.reads_risk_at) is not None:  # blocks end where the risk is read
            last = min(last, reading)
        return min(length, last - self.position)

    def drafts_more(self, length: int) -> bool:
        """Whether one more token is drafted for a block of at most ``length``."""
        if len(self.drafts) >= length or self.dead_ends:
            return False
        last = self.drafts[-1] if self.drafts else None
        unsure = last and last.probability < self.drafting.draft_confidence
        return not (last and (unsure or last.token in self.request.end_tokens))

    @property
    def can_decide(self) -> bool:
        """Whether the next position can be decided without another pass."""
        bonus = self.request.rule.after_match == "bonus"
        alone = bonus or self.state.draft_limit == 0 or self.paused
        return not self.ended and bool(self.rows) and (bool(self.drafts) or alone)

    @property
    def wants_risk(self) -> bool:
        """Whether the risk is read before the next position is drafted."""
        return self.state.reads_risk_at == self.position and not self.ended

    @property
    def reading(self) -> RiskContext:
        """What is needed to read the risk of the request."""
        assert self.state.reading is not None
        return self.state.reading

    def read_model(self, which: Which) -> ReadModel:
        """One of the two models, as the risk is read from it."""
        if which == "target":
            unseen = [] if self.rows else self.target_unseen
            return ReadModel(self.target, unseen, self.target_passes)
        return ReadModel(self.draft, self.draft_unseen, self.draft_passes)

    def risk_tokens(self, which: Which) -> Sequence[int]:
        """The tokens after which a model's last hidden state shows the risk."""
        header, question = self.reading.readings[which]
        if question and not self.position:
            return question
        return [*self.read_model(which).unseen, *header]

    def assess(self) -> None:
        """Pass the risk to the rule, and rewind the tokens that were added only to read it.

        Called after the passes over ``risk_tokens`` of each model that is read.
        """
        states = []
        for which in self.reading.probe.reads:
            model = self.read_model(which)
            states.append(model.session.hidden[-1].cpu())
            model.unseen[:] = rewind_to(model.session, self.risk_tokens(which), model.unseen)
        self.state.assess(self.reading.probe.read(torch.cat(states)))

    def constrained(self, drafts: int) -> Constrained:
        """The constraints at the position after the first ``drafts`` drafts."""
        before = islice(self.drafts, drafts) if self.constraints else ()
        return Constrained(self.constraints, [draft.token for draft in before])

    def fail(self, error: BrokenModelError) -> None:
        """End the request with an error; the others continue."""
        self.error, self.ended = error, True

    def note_dead_end(self, position: int, error: FormError) -> None:
        """Note a position at which no token can be chosen: the request ends if it gets there."""
        self.dead_ends[position] = error
        if position == self.position:
            self.fail(error)

    def commit(self, decision: Decision) -> None:
        """Record one decided position, and rewind what followed a rejected draft."""
        drafted = decision.draft_probability is not None
        try:
            for constraint in self.constraints:
                constraint.decide(decision.token)
        except FormError as error:
            return self.fail(error)
        self.steps.append(record(self.request, self.state, decision, self.block))
        self.pauses.note(drafted=drafted, followed=decision.followed, first=not self.decided)
        self.ended = self.request.ends(decision.token, self.position)
        self.position += 1
        self.decided += 1
        if not decision.followed:
            self.draft.rewind(len(self.drafts))
            self.target.rewind(len(self.rows))
            self.drafts.clear()
            self.rows.clear()
            self.dead_ends.clear()
            self.draft_unseen = [*([] if drafted else self.draft_unseen), decision.token]
        if not self.rows:
            self.target_unseen = [decision.token]
        if self.position in self.dead_ends and not self.ended:
            self.fail(self.dead_ends[self.position])
        return None


class Batch:
    """Requests that are decoded together on an engine with sessions.

    Args:
        engine: runs the passes.
        rows_at_once: number of positions in a pass of the target above which another one costs more
            than it gains. Where many requests are decoded, each drafts fewer tokens, so that
            together they stay below it; None sets no such limit. It changes no token.
    """

    def __init__(self, engine: SessionEngine, rows_at_once: int | None = None) -> None:
        self._engine = engine
        self._rows_at_once = rows_at_once
        self._running: list[Decoding] = []

    def add(self, request: Request) -> Decoding:
        """Add a request, which ``step`` decodes from now on."""
        decoding = Decoding(request, self._engine)
        self._running.append(decoding)
        return decoding

    def remove(self, generation: Generation) -> None:
        """Stop decoding a request."""
        generation.ended = True
        self._running = [decoding for decoding in self._running if decoding is not generation]

    def step(self) -> None:
        """Decode one block of every request.

        A request whose last block was accepted throughout has one distribution of the target left.
        It is decided first, from one draft, so that the target alone never chooses a token.
        """
        running = [one for one in self._running if not (one.ended or one.held)]
        running = [decoding for decoding in running if decoding.rows] or running
        self._assess([decoding for decoding in running if decoding.wants_risk])
        self._propose(running)
        self._verify([decoding for decoding in running if not decoding.rows])
        while deciding := [decoding for decoding in running if decoding.can_decide]:
            self._decide(deciding)
        self._running = [decoding for decoding in self._running if not decoding.ended]

    def _assess(self, reading: Sequence[Decoding]) -> None:
        """Read the risk of requests, after one pass of each model over their ``risk_tokens``."""
        for which in get_args(Which):
            asked = [one for one in reading if which in one.reading.readings and not one.ended]
            models = [decoding.read_model(which) for decoding in asked]
            tokens = [decoding.risk_tokens(which) for decoding in asked]
            passes = [Pass(m.session, ids, 1) for m, ids in zip(models, tokens, strict=True)]
            self._run(asked, passes, [model.passes for model in models])
        for decoding in [one for one in reading if not one.ended]:
            try:
                decoding.assess()
            except BrokenModelError as error:
                decoding.fail(error)

    def _propose(self, running: Sequence[Decoding]) -> None:
        """Draft tokens until no request wants another; a session never holds its last draft."""
        most = self._most_drafts(len(running))
        lengths = {id(decoding): min(decoding.draft_length(), most) for decoding in running}
        while drafting := [d for d in running if d.drafts_more(lengths[id(d)]) and not d.ended]:
            passes = [Pass(d.draft, d.draft_unseen, 1) for d in drafting]
            drafting, logits = self._run(drafting, passes, [d.draft_passes for d in drafting])
            if not drafting:
                continue
            rows = self._restrict(torch.cat(logits), [(d, len(d.drafts)) for d in drafting])
            ranked = rank(rows, [d.request.sampling.temperature for d in drafting])
            positions = [d.position + len(d.drafts) for d in drafting]
            drafts = propose(ranked, [d.request for d in drafting], positions)
            for decoding, draft in zip(drafting, drafts, strict=True):
                decoding.drafts.append(draft)
                decoding.draft_unseen = [draft.token]

    def _most_drafts(self, requests: int) -> int:
        """Maximum number of tokens to draft for each of so many requests."""
        if self._rows_at_once is None:
            return sys.maxsize
        return max(1, self._rows_at_once // max(requests, 1) - 1)

    def _verify(self, running: Sequence[Decoding]) -> None:
        """One pass of the target: P at every drafted position and, unless the rule stops, after."""
        running = [decoding for decoding in running if not decoding.ended]
        passes = []
        for decoding in running:
            fed = [draft.token for draft in decoding.drafts]
            if decoding.request.rule.after_match == "stop":
                fed = fed[:-1]
            passes.append(Pass(decoding.target, [*decoding.target_unseen, *fed], len(fed) + 1))
        running, logits = self._run(running, passes, [d.target_passes for d in running])
        for decoding, own in zip(running, logits, strict=True):
            rows = self._restrict(own, [(decoding, row) for row in range(len(own))])
            ranked = rank(rows, [decoding.request.sampling.temperature] * len(rows))
            decoding.rows.extend(Place(ranked, row) for row in range(len(rows)))
            decoding.block, decoding.decided = decoding.block + 1, 0

    @staticmethod
    def _restrict(logits: Tensor, rows: Sequence[tuple[Decoding, int]]) -> Tensor:
        """Apply its request's constraints to each row.

        Args:
            logits: ``[n, V]``.
            rows: the request of each row, and how many of its drafts come before it.
        """
        logits, failed = restrict(logits, [one.constrained(drafts) for one, drafts in rows])
        for row, error in failed.items():
            one, drafts = rows[row]
            one.note_dead_end(one.position + drafts, error)
        return logits

    def _decide(self, deciding: Sequence[Decoding]) -> None:
        """Decide the next position of each request."""
        candidates = []
        for decoding in deciding:
            target = decoding.rows.popleft()
            if not decoding.drafts:
                decoding.commit(decide_alone(target, decoding.request, decoding.position))
                continue
            request, state, position = decoding.request, decoding.state, decoding.position
            candidate = Candidate(request, state, position, decoding.drafts.popleft(), target)
            candidates.append((decoding, candidate))
        decisions = decide([candidate for _, candidate in candidates])
        for (decoding, _), decision in zip(candidates, decisions, strict=True):
            decoding.commit(decision)

    def _run(
        self, running: Sequence[Decoding], passes: Sequence[Pass], counters: Sequence[Passes]
    ) -> tuple[list[Decoding], list[Tensor]]:
        """Run passes together; a request whose logits are not finite ends, the others continue.

        If the passes fail, all of these requests end: what their sessions hold is not known.
        """
        if not passes:
            return [], []
        started = time.perf_counter()
        try:
            logits = self._engine.forward(passes)
            if logits[0].device.type != "cpu":
                torch.accelerator.synchronize(logits[0].device)
        except Exception as error:
            for decoding in running:
                decoding.fail(describe_failed_pass(error))
            return [], []
        seconds = time.perf_counter() - started
        whole: list[tuple[Decoding, Tensor]] = []
        for decoding, one, rows, counter in zip(running, passes, logits, counters, strict=True):
            counter.passes += 1
            counter.seconds += seconds
            try:
                require_finite(rows, one.session.name)
            except BrokenModelError as error:
                decoding.fail(error)
            else:
                whole.append((decoding, rows))
        return [decoding for decoding, _ in whole], [rows for _, rows in whole]


def decode(engine: SessionEngine, requests: Sequence[Request]) -> Iterator[tuple[int, Step]]:
    """Decode requests together with the rule of each (SSD: Algorithm 1).

    Yields:
        The index of a request and its next step, in the order in which they are decided. The token
        that ends a reply is its last one.

    Raises:
        BrokenModelError: a model gave NaN or infinite logits, once every other request has ended.
    """
    batch = Batch(engine)
    decodings = [batch.add(request) for request in requests]
    while not all(decoding.ended for decoding in decodings):
        batch.step()
        for index, decoding in enumerate(decodings):
            while decoding.steps:
                yield index, decoding.steps.popleft()
    for decoding in decodings:
        if decoding.error:
            raise decoding.error
