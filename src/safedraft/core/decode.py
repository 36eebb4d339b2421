"""The decoding loop: the draft proposes, the target verifies, each position is decided from both.

A block is a tree of drafted tokens, most often a chain. Its positions are decided one after the
other, and the tree only says whether the next one was computed already. Many requests go through
the loop together: the passes of a block are handed to the engine at once.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import get_args

import torch
from torch import Tensor

from safedraft.core.constraint import restrict
from safedraft.core.decide import Candidate, decide, decide_alone, propose
from safedraft.core.decoding import Decoding
from safedraft.core.errors import BrokenModelError, describe_failure
from safedraft.core.generation import Generation, Step
from safedraft.core.request import Request
from safedraft.core.rows import Place, Ranked, rank, require_finite, wait_for
from safedraft.core.session import Pass, SessionEngine, Which
from safedraft.core.tree import Node


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
        self.rows_at_once = rows_at_once
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
        running = [decoding for decoding in running if decoding.carries] or running
        try:
            self._decode_block(running)
        except Exception as error:  # of a rule: the states of the other requests are unknown
            for decoding in [one for one in running if not one.ended]:
                decoding.fail(describe_failure("decoding", error))
            raise
        finally:
            self._running = [decoding for decoding in self._running if not decoding.ended]

    def _decode_block(self, running: Sequence[Decoding]) -> None:
        self._assess([decoding for decoding in running if decoding.wants_risk])
        self._propose(running)
        self._verify([decoding for decoding in running if not decoding.carries])
        while deciding := [decoding for decoding in running if decoding.can_decide]:
            self._decide(deciding)
        for decoding in [one for one in running if not one.error]:
            decoding.settle()

    def _assess(self, reading: Sequence[Decoding]) -> None:
        """Read the risk of requests, after one pass of each model."""
        for which in get_args(Which):
            asked = [one for one in reading if which in one.reading.readings and not one.ended]
            self._run(asked, which, [decoding.risk_pass(which) for decoding in asked])
        for decoding in [one for one in reading if not one.ended]:
            try:
                decoding.assess()
            except BrokenModelError as error:
                decoding.fail(error)

    def _propose(self, running: Sequence[Decoding]) -> None:
        """Draft tokens, one level of every tree at a time; a session never holds its leaves."""
        most = self._most_drafts(len(running))
        for decoding in running:
            decoding.tree.plant(min(decoding.draft_length(), most))
        while drafting := [one for one in running if one.tree.frontier and not one.ended]:
            passes = [decoding.draft.read(decoding.tree.frontier) for decoding in drafting]
            drafting, logits = self._run(drafting, "draft", passes)
            if not drafting:
                continue
            rows = [(decoding, node) for decoding in drafting for node in decoding.tree.frontier]
            ranked = self._rank(torch.cat(logits), rows)
            positions = [decoding.position + node.depth for decoding, node in rows]
            counts = [max(one.drafting.draft_tree, default=1) for one, _ in rows]
            drafts = propose(ranked, [one.request for one, _ in rows], positions, counts)
            for (_, node), draft in zip(rows, drafts, strict=True):
                node.draft = draft
            for decoding in drafting:
                decoding.tree.grow(decoding.drafting, decoding.request.end_tokens)

    def _most_drafts(self, requests: int) -> int:
        """Maximum number of tokens to draft for each of so many requests."""
        if self.rows_at_once is None:
            return sys.maxsize
        return max(1, self.rows_at_once // max(requests, 1) - 1)

    def _verify(self, running: Sequence[Decoding]) -> None:
        """One pass of the target: P after every node and, unless the rule stops, every leaf."""
        running = [decoding for decoding in running if not decoding.ended]
        fed = {}
        for decoding in running:
            stops = decoding.request.rule.after_match == "stop"
            nodes = [node for node in decoding.tree.nodes if node.draft or not stops]
            fed[decoding] = [decoding.tree.root, *nodes]
        passes = [decoding.target.read(fed[decoding]) for decoding in running]
        running, logits = self._run(running, "target", passes)
        for decoding, own in zip(running, logits, strict=True):
            ranked = self._rank(own, [(decoding, node) for node in fed[decoding]])
            for row, node in enumerate(fed[decoding]):
                node.target = Place(ranked, row)
            decoding.block, decoding.decided = decoding.block + 1, 0

    @staticmethod
    def _rank(logits: Tensor, rows: Sequence[tuple[Decoding, Node]]) -> Ranked:
        """Rank the tokens of each row, after its request's constraints were applied.

        Args:
            logits: ``[n, V]``.
            rows: the request of each row, and the node after which it is.
        """
        logits, failed = restrict(logits, [one.constrained(node) for one, node in rows])
        for row, error in failed.items():
            decoding, node = rows[row]
            decoding.note_dead_end(node, error)
        return rank(logits, [decoding.request.sampling.temperature for decoding, _ in rows])

    def _decide(self, deciding: Sequence[Decoding]) -> None:
        """Decide the next position of each request."""
        candidates = []
        for decoding in deciding:
            request, position, node = decoding.request, decoding.position, decoding.tree.last
            assert node.target is not None
            if not node.draft:
                decoding.commit(decide_alone(node.target, request, position))
                continue
            candidate = Candidate(request, decoding.state, position, node.draft, node.target)
            candidates.append((decoding, candidate))
        decisions = decide([candidate for _, candidate in candidates])
        for (decoding, _), decision in zip(candidates, decisions, strict=True):
            decoding.commit(decision)

    def _run(
        self, running: Sequence[Decoding], which: Which, passes: Sequence[Pass]
    ) -> tuple[list[Decoding], list[Tensor]]:
        """Run passes together; a request whose logits are not finite ends, the others continue.

        If the passes fail, all of these requests end: the contents of their sessions are unknown.
        """
        if not passes:
            return [], []
        started = time.perf_counter()
        try:
            logits = self._engine.forward(passes)
            wait_for(logits[0].device)
        except Exception as error:
            for decoding in running:
                decoding.fail(describe_failure("a pass of the models", error))
            return [], []
        seconds = time.perf_counter() - started
        whole: list[tuple[Decoding, Tensor]] = []
        for decoding, rows in zip(running, logits, strict=True):
            model = decoding.model(which)
            model.passes.passes += 1
            model.passes.rows += len(rows)
            model.passes.seconds += seconds
            try:
                require_finite(rows, model.session.name)
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
