"""The loop: the draft proposes, the target verifies, each position is decided from both."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from safedraft.core.composite import composite
from safedraft.core.config import SamplingParams, Scheme, SSDConfig
from safedraft.core.sampling import (
    Draws,
    accept_or_correct,
    distribution,
    draw,
    probabilities,
    require_finite,
)
from safedraft.core.session import Session
from safedraft.core.switch import Switch


@dataclass(frozen=True, slots=True)
class Step:
    """One decided position."""

    token: int
    matched: bool
    """Whether the token is the one the draft proposed here."""
    scheme: Scheme | None
    """None where no draft took part (a baseline)."""
    strength: float
    draft_probability: float | None
    target_probability: float
    block: int
    """Which pass of the target verified it, from 0."""
    scores: Tensor | None = field(default=None, compare=False, repr=False)
    """F of every token, ``[V]``; None from a decoder that chooses from another distribution."""
    more: bool = field(default=False, compare=False, repr=False)
    """Whether no model has to run before the next position is decided, or the reply ends."""


Draft = tuple[int, Tensor]
"""A proposed token and the distribution q, ``[V]``, that it was taken from."""


class Decoder(Protocol):
    """Anything that decodes one request as ``decode`` does: SSD, or what it is compared with."""

    def __call__(
        self,
        target: Session,
        draft: Session,
        target_prompt: Sequence[int],
        draft_prompt: Sequence[int],
        config: SSDConfig,
        sampling: SamplingParams,
        end_tokens: Collection[int] = (),
    ) -> Iterator[Step]:
        """As ``decode``."""
        ...


def decode(
    target: Session,
    draft: Session,
    target_prompt: Sequence[int],
    draft_prompt: Sequence[int],
    config: SSDConfig,
    sampling: SamplingParams,
    end_tokens: Collection[int] = (),
) -> Iterator[Step]:
    """Decode one request with Speculative Safety-Aware Decoding (Algorithm 1).

    Both sessions are fresh; the prompts differ, the tokens that follow are shared. The token that
    ends the reply is the last one yielded. Between blocks each session holds everything but the
    tokens it has not seen (``..._unseen``), which is the last committed one, or none for the target
    when its distribution there is carried over.

    Raises:
        BrokenModel: a model gave NaN or infinite logits.
    """
    switch, draws = Switch(config), Draws(sampling.seed or 0)
    target_unseen, draft_unseen = list(target_prompt), list(draft_prompt)
    drafts: deque[Draft] = deque()  # proposed, not yet decided
    rows: deque[Tensor] = deque()  # the target's P for the positions to come
    block, decided = -1, 0

    for position in range(sampling.max_new_tokens):
        # 1. Propose. A row carried over from a block that matched throughout is decided first,
        #    from one draft: the target alone never chooses a token.
        if not drafts:
            most = 1 if rows else config.draft_length(decided)
            drafts.extend(propose(draft, draft_unseen, most, config, sampling, draws, position))
            draft_unseen = [drafts[-1][0]]

        # 2. Verify: one pass of the target gives P at every drafted position and at the one after.
        if not rows:
            seen = [*target_unseen, *(token for token, _ in drafts)]
            rows.extend(forward(target, seen, len(drafts) + 1, sampling.temperature))
            block, decided = block + 1, 0

        # 3. Decide.
        p, (drafted, q) = rows.popleft(), drafts.popleft()
        scores = composite(p, q, switch.scheme is Scheme.UNION, switch.strength, config)
        token, matched = decide(scores, q, drafted, sampling, draws, position)
        chances = q[token].item(), p[token].item()
        more = (matched and bool(drafts)) or position + 1 == sampling.max_new_tokens
        yield Step(token, matched, switch.scheme, switch.strength, *chances, block, scores, more)
        if token in end_tokens:
            return
        switch.observe(matched)
        decided += 1

        # 4. Commit, and take back what followed a draft that did not match.
        if not matched:
            draft.rewind(len(drafts))
            target.rewind(len(rows))
            drafts.clear()
            rows.clear()
            draft_unseen = [token]
        if not rows:
            target_unseen = [token]


def propose(
    draft: Session,
    unseen: Sequence[int],
    most: int,
    config: SSDConfig,
    sampling: SamplingParams,
    draws: Draws,
    position: int,
) -> list[Draft]:
    """Drafts from ``position`` on, at least one; the session does not hold the last of them."""
    drafts: list[Draft] = []
    for at in range(position, min(position + most, sampling.max_new_tokens)):
        q = forward(draft, unseen, 1, sampling.temperature)[0]
        token = take(q, sampling, draws[at].propose)
        drafts.append((token, q))
        unseen = [token]
        if q[token] < config.draft_confidence:
            break  # what would follow it is likely to be thrown away
    return drafts


def decide(
    scores: Tensor, q: Tensor, drafted: int, sampling: SamplingParams, draws: Draws, position: int
) -> tuple[int, bool]:
    """The token of one position and whether it is the drafted one; ``scores`` and ``q`` are [V]."""
    if sampling.greedy:
        token = int(scores.argmax())
        return token, token == drafted
    _, accept, correct = draws[position]
    chosen, matched = accept_or_correct(
        distribution(scores, sampling), q, torch.tensor(drafted, device=q.device), accept, correct
    )
    return int(chosen), bool(matched)


def take(distribution: Tensor, sampling: SamplingParams, uniform: float) -> int:
    """A token of ``distribution`` [V]: its most likely one, or the one ``uniform`` draws."""
    return int(distribution.argmax() if sampling.greedy else draw(distribution, uniform))


def forward(session: Session, ids: Sequence[int], keep: int, temperature: float) -> Tensor:
    """Probabilities after the last ``keep`` of ``ids``, ``[keep, V]``.

    Raises:
        BrokenModel: the logits are not all finite.
    """
    logits = session.forward(ids, keep)
    require_finite(logits, session.name)
    return probabilities(logits, temperature)
