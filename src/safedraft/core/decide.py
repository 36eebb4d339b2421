"""The only place where a token is chosen: it proposes drafts, and accepts or corrects them.

Greedy decoding takes the best token, ties by id. Sampling draws with numbers that depend on the
request's seed and the position alone (``random.uniform``), so that neither the batch around a
request nor the length of its blocks changes its reply.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from safedraft.core.composite import Scores, Whole
from safedraft.core.random import Use, uniform
from safedraft.core.request import Request
from safedraft.core.rows import Place, Ranked, Rows, move
from safedraft.core.rule import Decision, Rule, State
from safedraft.core.sampling import (
    LogProbabilities,
    accept,
    choose_by_rounds,
    correct,
    distribution,
    draw,
    draw_others,
    log_probabilities,
)

_AT_ONCE = 8  # rows drawn from at once; with more, the memory they take slows them down


class Draft(NamedTuple):
    """A proposed token."""

    token: int
    probability: float
    """q of the token."""
    place: Place
    """The distribution q that it was taken from."""
    siblings: tuple[int, ...] = ()
    """Further tokens that were drawn from q without replacement, where a reply with a fixed tree is
    sampled: one less than the most children that a node of the tree has, whatever this node has."""

    def proposals(self) -> Iterator[tuple[int, float]]:
        """The token, and then its siblings or, where none were drawn, the best other tokens."""
        yield self.token, self.probability
        for token in self.siblings:
            yield token, self.place.chance(token)
        if not self.siblings:
            yield from self.others(0.0)

    def others(self, least: float) -> Iterator[tuple[int, float]]:
        """The best other tokens of q with at least this probability, the most likely first."""
        ranked, row = self.place
        if 1 - self.probability < least:
            return
        tokens = ranked.tokens[row]
        chances = ranked.probability(row, tokens)
        for token, chance in zip(tokens.tolist(), chances.tolist(), strict=True):
            if not chance or chance < least:
                return
            if token != self.token:
                yield token, chance


class Candidate(NamedTuple):
    """A drafted position that waits for its decision."""

    request: Request
    state: State
    position: int
    """Position in the reply, from 0."""
    draft: Draft
    target: Place
    """The target's distribution P at the position."""


def propose(
    ranked: Ranked,
    requests: Sequence[Request],
    positions: Sequence[int],
    counts: Sequence[int] | None = None,
) -> list[Draft]:
    """The draft's token in every row: its best token, or a draw from q.

    Args:
        ranked: the draft's logits, a row for each request.
        requests: the request of each row, which has the sampling parameters.
        positions: positions of the tokens in their replies.
        counts: number of tokens to draw in each row where decoding is sampled; None: one.
    """
    tokens, chances = choose_drafts(ranked, requests, positions)
    drafts = []
    for row, (token, chance) in enumerate(zip(tokens.tolist(), chances.tolist(), strict=True)):
        place, request = Place(ranked, row), requests[row]
        siblings: tuple[int, ...] = ()
        if counts and counts[row] > 1 and not request.sampling.greedy:
            numbers = [
                uniform(request.seed, positions[row], Use.PROPOSE, number)
                for number in range(1, counts[row])
            ]
            siblings = draw_others(place.distribution(), token, numbers)
        drafts.append(Draft(token, chance, place, siblings))
    return drafts


def choose_drafts(
    ranked: Ranked, requests: Sequence[Request], positions: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The tokens that ``propose`` proposes, ``[n]``, and q of each, on the device of the logits."""
    tokens = ranked.best()
    sampled = [row for row, one in enumerate(requests) if not one.sampling.greedy]
    for start in range(0, len(sampled), _AT_ONCE):
        rows = sampled[start : start + _AT_ONCE]
        numbers = [uniform(requests[row].seed, positions[row], Use.PROPOSE) for row in rows]
        drawn = draw(ranked.distributions(rows), numbers)
        at = move(torch.tensor(rows), tokens.device)
        tokens[at] = drawn.clamp(max=ranked.logits.shape[-1] - 1)  # beyond it if logits are NaN
    return tokens, ranked.chances(tokens)


def decide(candidates: Sequence[Candidate]) -> list[Decision]:
    """Decide one drafted position of each of n requests; those with equal rules are one group."""
    by_rule: dict[Rule, list[int]] = {}
    for at, candidate in enumerate(candidates):
        by_rule.setdefault(candidate.request.rule, []).append(at)
    decisions: dict[int, Decision] = {}
    for rule, group in by_rule.items():
        decided = _decide_group(rule, [candidates[at] for at in group])
        decisions.update(zip(group, decided, strict=True))
    return [decisions[at] for at in range(len(candidates))]


def _decide_group(rule: Rule, candidates: Sequence[Candidate]) -> list[Decision]:
    rows = Rows(
        [candidate.target for candidate in candidates],
        [candidate.draft.place for candidate in candidates],
        [_needs_whole(candidate.request) for candidate in candidates],
    )
    scores = rule.scores([candidate.state for candidate in candidates], rows)
    chosen = _choose(scores, candidates)
    matched = chosen.followed
    if scores.evidence is not None:
        matched = _choose(scores.evidence, candidates).followed
    return [
        Decision(
            token,
            chosen.followed[row],
            matched[row],
            candidate.draft.place.chance(token),
            candidate.target.chance(token),
            _report(candidate.request, scores, row, token),
            scores.signals[row] if scores.signals else None,
        )
        for row, (candidate, token) in enumerate(zip(candidates, chosen.tokens, strict=True))
    ]


def decide_alone(place: Place, request: Request, position: int) -> Decision:
    """Decide a position for which nothing was drafted from the target's distribution alone."""
    token = _choose_alone(place, request, position)
    report = None
    if request.top_logprobs is not None:
        p = place.distribution()
        ids, count = torch.arange(len(p)), request.top_logprobs
        report = log_probabilities(ids, p, token, request.sampling, count)
    return Decision(token, False, False, None, place.chance(token), report)


class _Choices(NamedTuple):
    tokens: list[int]
    followed: list[bool]


def _choose(scores: Scores, candidates: Sequence[Candidate]) -> _Choices:
    """The token of each row and whether it is the drafted one."""
    best = scores.values.argmax(-1, keepdim=True)  # the first of several, which has the lowest id
    tokens = scores.tokens.gather(-1, best)[:, 0].tolist()
    followed = [t == c.draft.token for t, c in zip(tokens, candidates, strict=True)]
    sampled = [row for row, c in enumerate(candidates) if not c.request.sampling.greedy]
    narrow = [row for row in sampled if scores.whole[row] is None]
    if narrow:
        table = scores.tokens[narrow], scores.values[narrow], scores.draft[narrow]
        _sample(*table, narrow, candidates, tokens, followed)
    for row in sampled:
        if whole := scores.whole[row]:
            ids = torch.arange(len(whole.values))
            table = ids[None], whole.values[None], whole.draft[None]
            _sample(*table, [row], candidates, tokens, followed)
            if scores.rounds and candidates[row].draft.siblings and not followed[row]:
                tokens[row] = _try_siblings(whole, candidates[row])
    return _Choices(tokens, followed)


def _sample(
    space: Tensor,
    values: Tensor,
    q: Tensor,
    rows: Sequence[int],
    candidates: Sequence[Candidate],
    tokens: list[int],
    followed: list[bool],
) -> None:
    """Accept or correct the drafted token of some rows, and record the outcome."""
    chosen = [candidates[row] for row in rows]
    f = distribution(values, [candidate.request.sampling for candidate in chosen])
    drafted = torch.tensor([candidate.draft.token for candidate in chosen])
    same = space == drafted[:, None]
    places = torch.where(same.any(-1), same.int().argmax(-1), -1)
    chances = [candidate.draft.probability for candidate in chosen]
    accepted = accept(f, chances, places, _uniforms(chosen, Use.ACCEPT))
    for row, candidate, is_accepted in zip(rows, chosen, accepted.tolist(), strict=True):
        tokens[row], followed[row] = candidate.draft.token, is_accepted
    if rejected := (~accepted).nonzero().flatten().tolist():
        numbers = _uniforms([chosen[at] for at in rejected], Use.CORRECT)
        corrected = correct(f[rejected], q[rejected], numbers)
        corrections = space[rejected].gather(-1, corrected[:, None])[:, 0].tolist()
        for at, correction in zip(rejected, corrections, strict=True):
            tokens[rows[at]] = correction


def _try_siblings(scores: Whole, candidate: Candidate) -> int:
    """The token of a position whose drafted token was rejected, if siblings were drawn too.

    All siblings are tried, including those for which the block's tree has no room. So the token
    does not depend on the shape of the tree, or on the other requests that are decoded.
    """
    request, position, draft = candidate.request, candidate.position, candidate.draft
    siblings = draft.siblings
    return choose_by_rounds(
        distribution(scores.values[None], [request.sampling])[0],
        scores.draft,
        (draft.token, *siblings),
        [
            uniform(request.seed, position, Use.ACCEPT, number)
            for number in range(1, len(siblings) + 1)
        ],
        uniform(request.seed, position, Use.CORRECT),
    )


def _choose_alone(place: Place, request: Request, position: int) -> int:
    """The token that one model chooses: its best token, or a draw from its distribution."""
    if request.sampling.greedy:
        return place.best()
    mass = distribution(place.distribution()[None], [request.sampling])
    return int(draw(mass, [uniform(request.seed, position, Use.PROPOSE)])[0])


def _uniforms(candidates: Sequence[Candidate], use: Use) -> list[float]:
    return [uniform(c.request.seed, c.position, use) for c in candidates]


def _needs_whole(request: Request) -> bool:
    return not request.sampling.greedy or request.top_logprobs is not None


def _report(request: Request, scores: Scores, row: int, token: int) -> LogProbabilities | None:
    """The log probabilities that a request wants of its position."""
    if request.top_logprobs is None:
        return None
    tokens, values = scores.tokens[row], scores.values[row]
    if whole := scores.whole[row]:
        tokens, values = torch.arange(len(whole.values)), whole.values
    chosen = int((tokens == token).int().argmax())
    return log_probabilities(tokens, values, chosen, request.sampling, request.top_logprobs)
