"""The state of one request in the decoding loop, and the passes that it needs next."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from safedraft.core.config import DraftingConfig
from safedraft.core.constraint import Constrained
from safedraft.core.errors import BrokenModelError, FormError
from safedraft.core.generation import Generation, record
from safedraft.core.pauses import Pauses
from safedraft.core.request import Request
from safedraft.core.risk import RiskContext, pick_states
from safedraft.core.rule import Decision
from safedraft.core.session import Pass, SessionEngine, Which, rewind_to
from safedraft.core.tree import ModelProgress, Node, Tree


class Decoding(Generation):
    """The state of one request in the loop.

    Between blocks each session holds every decided token that it has seen: all but the last token,
    or all tokens for the target if its distribution there is carried over.
    """

    def __init__(self, request: Request, engine: SessionEngine) -> None:
        super().__init__(request)
        self.state = request.rule.start(request.config, request.context)
        self.constraints = request.constraints(self.state)
        config = request.config
        self.drafting = config if isinstance(config, DraftingConfig) else DraftingConfig()
        target, draft = engine.session("target"), engine.session("draft")
        self.target = ModelProgress(target, request.target_prompt, self.target_passes)
        self.draft = ModelProgress(draft, request.draft_prompt, self.draft_passes)
        self.tree = Tree(request.target_prompt[-1])
        self.pauses = Pauses()
        self.position = self.decided = 0
        self.block = -1

    @property
    def paused(self) -> bool:
        """Whether the target decides the next token alone, without a draft."""
        greedy = self.request.sampling.greedy and self.request.top_logprobs is None
        return greedy and self.state.follows_target and self.pauses.active

    def draft_length(self) -> int:
        """Maximum number of tokens to draft now."""
        if self.paused:
            return 0
        if self.carries:
            return 1
        limit = self.state.draft_limit
        length = self.drafting.draft_length(self.decided) if limit is None else limit
        last = self.request.sampling.max_new_tokens
        if (reading := self.state.reads_risk_at) is not None:  # blocks end where the risk is read
            last = min(last, reading)
        return min(length, last - self.position)

    @property
    def carries(self) -> bool:
        """Whether the target's distribution at the next position is carried over.

        It is decided as soon as the draft proposes a token there.
        """
        return bool(self.tree.root.target)

    @property
    def can_decide(self) -> bool:
        """Whether the next position can be decided without another pass."""
        last = self.tree.last
        if self.ended or not last.target:
            return False
        bonus = self.request.rule.after_match == "bonus"
        return bool(last.draft) or bonus or self.state.draft_limit == 0 or self.paused

    @property
    def wants_risk(self) -> bool:
        """Whether the risk is read before the next position is drafted."""
        return self.state.reads_risk_at == self.position and not self.ended

    @property
    def reading(self) -> RiskContext:
        """The probe and the tokens with which the risk of the request is read."""
        assert self.state.reading is not None
        return self.state.reading

    def model(self, which: Which) -> ModelProgress:
        """One of the two models."""
        return self.target if which == "target" else self.draft

    def risk_pass(self, which: Which) -> Pass:
        """The pass after which a model's last hidden states show the risk."""
        model = self.model(which)
        if self.reading.probe.reads_text:  # the end of the text is one of the places
            model.take_back(self.tree.root.token)
        return Pass(model.session, self._risk_tokens(which), 1 + max(self.reading.offsets(which)))

    def _risk_tokens(self, which: Which) -> Sequence[int]:
        header, question = self.reading.readings[which]
        if question and not self.position:
            return question
        return [*self.model(which).unseen, *header]

    def assess(self) -> None:
        """Pass the risk to the rule, and rewind the tokens that were added only to read it.

        Called after the ``risk_pass`` of each model that is read.
        """
        states = []
        for which in self.reading.probe.reads:
            model = self.model(which)
            states.append(pick_states(model.session.hidden, self.reading.offsets(which)).cpu())
            model.unseen[:] = rewind_to(model.session, self._risk_tokens(which), model.unseen)
        self.state.assess(self.reading.probe.read(torch.cat(states)))

    def constrained(self, node: Node) -> Constrained:
        """The constraints of the request at the position after a node."""
        return Constrained(self.constraints, node.path() if self.constraints else ())

    def fail(self, error: BrokenModelError) -> None:
        """End the request with an error; the others continue."""
        self.error, self.ended = error, True

    def note_dead_end(self, node: Node, error: FormError) -> None:
        """Note that no token can be chosen after a node: a request that reaches it fails."""
        node.dead_end = error
        if node is self.tree.last:
            self.fail(error)

    def commit(self, decision: Decision) -> None:
        """Record one decided position, and continue at the node of its token."""
        try:
            for constraint in self.constraints:
                constraint.decide(decision.token)
        except FormError as error:
            return self.fail(error)
        self.steps.append(record(self.request, self.state, decision, self.block))
        drafted, first = bool(self.tree.last.draft), not self.decided
        self.tree.advance(decision.token)
        last = self.tree.last
        self.pauses.note(drafted=drafted, followed=last in self.tree.nodes, first=first)
        self.ended = self.request.ends(decision.token, self.position)
        self.position += 1
        self.decided += 1
        if last.dead_end and not self.ended:
            self.fail(last.dead_end)
        return None

    def settle(self) -> None:
        """Make the last decided token the root of the next block's tree."""
        for model in (self.target, self.draft):
            model.settle(self.tree.path)
        self.tree.restart()
