"""The choice of one token: its law together with its flag, and what a rule can take apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from helpers.decoding import request_of
from helpers.laws import POINTS, TOLERANCE, law_of, marginal, place_of
from helpers.models import RandomModel, logits_of
from torch import Tensor

from safedraft.core.composite import Scores, Setting, composite
from safedraft.core.config import SSDConfig
from safedraft.core.decide import Candidate, decide, decide_alone, propose
from safedraft.core.reference import composite_distribution
from safedraft.core.rows import Rows, rank
from safedraft.core.rule import AfterMatch, State
from safedraft.rules.ssd import SSD
from safedraft.rules.whole import score_vocabulary

SIZE = 8


def models(levels: int = 0) -> tuple[Tensor, Tensor]:
    target, draft = (RandomModel(seed, SIZE, 0.4, levels=levels)([0]) for seed in (1, 2))
    return target, draft


@pytest.mark.usefixtures("lattice")
@pytest.mark.parametrize("scheme", ["union", "intersection"])
@pytest.mark.parametrize(
    ("alpha", "cuts"),
    [(0.3, {}), (0.8, {"top_p": 0.7}), (2.0, {"top_k": 2}), (0.5, {"min_p": 0.4})],
)
def test_token_and_flag_have_the_law_of_the_method(
    scheme: str, alpha: float, cuts: dict[str, float]
) -> None:
    """Pr(y, match) = min(q(y), F(y)) and Pr(y, no match) = max(F(y) - q(y), 0)."""
    constants = {"sample_space_size": 3, "initial_scheme": scheme}
    constants |= {"alpha_union": alpha, "alpha_intersection": alpha}
    request = request_of(constants=constants, temperature=0.8, **cuts)
    target, draft = models()
    law = law_of(request, target, draft)
    p, q = ((logits / 0.8).softmax(-1).tolist() for logits in (target, draft))
    config = SSDConfig(**constants)  # type: ignore[arg-type]
    f = composite_distribution(p, q, scheme, alpha, config, request.sampling)
    matched = [min(pair) for pair in zip(f, q, strict=True)]
    corrected = [max(x - y, 0.0) for x, y in zip(f, q, strict=True)]
    assert sum(law.values()) == pytest.approx(1)
    assert marginal(law, SIZE) == pytest.approx(f, abs=TOLERANCE)
    assert marginal(law, SIZE, matched=True) == pytest.approx(matched, abs=TOLERANCE)
    assert marginal(law, SIZE, matched=False) == pytest.approx(corrected, abs=TOLERANCE)
    assert all(outcome.followed is outcome.matched for outcome in law)
    if alpha < 1:  # q itself would be seen
        assert max(abs(x - y) for x, y in zip(f, q, strict=True)) > 3 * TOLERANCE


@pytest.mark.usefixtures("lattice")
def test_where_the_target_stands_alone_its_cut_distribution_is_the_law() -> None:
    # The target's best token is the draft's last: SSD falls back to P, over the whole vocabulary.
    target, draft = logits_of([0.6, 0.2, 0.1, 0.1]), logits_of([0.05, 0.5, 0.25, 0.2])
    request = request_of(constants={"sample_space_size": 1}, temperature=1, top_k=2)
    law = law_of(request, target, draft)
    assert marginal(law, 4) == pytest.approx([0.75, 0.25, 0, 0], abs=TOLERANCE)


@pytest.mark.usefixtures("lattice")
@pytest.mark.parametrize("temperature", [0.5, 1.5])
def test_proposals_are_drawn_from_the_draft_whatever_cuts_the_composite(
    temperature: float,
) -> None:
    _, draft = models()
    requests = [
        request_of(temperature=temperature, top_k=1, top_p=0.1, min_p=1.0, seed=i)
        for i in range(POINTS)
    ]
    ranked = rank(draft.expand(POINTS, -1), [temperature] * POINTS)
    drafts = propose(ranked, requests, [0] * POINTS)
    q = (draft / temperature).softmax(-1)
    counts = torch.tensor([proposal.token for proposal in drafts]).bincount(minlength=SIZE)
    assert (counts / POINTS).tolist() == pytest.approx(q.tolist(), abs=2 / POINTS)
    assert [d.probability for d in drafts] == pytest.approx([float(q[d.token]) for d in drafts])


def test_greedy_proposals_are_the_best_tokens_each_row_its_own() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0], [3.0, 1.0, 3.0], [0.0, 0.0, 1.0]])
    drafts = propose(rank(logits, [0.0] * 3), [request_of()] * 3, [0, 5, 9])
    assert [draft.token for draft in drafts] == [1, 0, 2]


@pytest.mark.usefixtures("lattice")
@pytest.mark.parametrize(
    ("cuts", "expected"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_k": 2}, [4 / 7, 3 / 7, 0, 0]),
        ({"top_p": 0.4}, [1, 0, 0, 0]),
        ({"min_p": 0.5}, [4 / 9, 3 / 9, 2 / 9, 0]),
    ],
)
def test_a_position_without_a_draft_is_the_targets(
    cuts: dict[str, float], expected: list[float]
) -> None:
    place = place_of(logits_of([0.4, 0.3, 0.2, 0.1]), 1.0)
    decisions = [
        decide_alone(place, request_of(temperature=1, seed=i, **cuts), 0) for i in range(POINTS)
    ]
    counts = torch.tensor([decision.token for decision in decisions]).bincount(minlength=4)
    assert (counts / POINTS).tolist() == pytest.approx(expected, abs=2 / POINTS)
    assert {(d.followed, d.matched, d.draft_probability) for d in decisions} == {
        (False, False, None)
    }
    assert decide_alone(place, request_of(**cuts), 0).token == 0


@pytest.mark.parametrize("levels", [0, 1])
@pytest.mark.parametrize("union", [True, False])
def test_a_greedy_token_is_the_best_score_with_the_lowest_id(levels: int, union: bool) -> None:
    rule = SSD()
    scheme = "union" if union else "intersection"
    for seed in range(40):
        target, draft = (RandomModel(seed + n, 60, 0.5, levels=levels)([0]) for n in (0, 99))
        request = request_of(rule, {"initial_scheme": scheme, "sample_space_size": 3})
        p, q = place_of(target), place_of(draft)
        (proposal,) = propose(q.ranked, [request], [0])
        state = rule.start(request.config, request.context)
        (decision,) = decide([Candidate(request, state, 0, proposal, p)])
        scores = composite(Rows([p], [q]), [Setting(union, state.alpha, 3)])
        best = scores.values[0].max()
        winners = scores.tokens[0][scores.values[0] == best]
        assert decision.token == int(winners.min())
        assert decision.followed is decision.matched is (decision.token == proposal.token)
        assert decision.draft_probability == pytest.approx(float(draft.softmax(-1)[decision.token]))
        assert decision.target_probability == pytest.approx(
            float(target.softmax(-1)[decision.token])
        )


@dataclass(frozen=True)
class Apart:
    """Chooses from P, and takes its evidence from q."""

    name: str = "apart"
    config: type[SSDConfig] = SSDConfig
    after_match: AfterMatch = "carry"

    def start(self, request: object) -> State:
        return State()

    def scores(self, states: object, rows: Rows) -> Scores:
        evidence = score_vocabulary(rows, [1.0] * len(rows))
        signals = [f"row {row}" for row in range(len(rows))]
        return score_vocabulary(rows, [0.0] * len(rows))._replace(
            evidence=evidence, signals=signals
        )

    def observe(self, state: object, decision: object) -> None:
        """Nothing is learned."""


@pytest.mark.usefixtures("lattice")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_followed_and_what_is_evidence_are_kept_apart(temperature: float) -> None:
    target, draft = logits_of([0.7, 0.2, 0.1]), logits_of([0.1, 0.6, 0.3])
    rule = Apart()
    request = request_of(rule, temperature=temperature, seed=0)
    if temperature:
        law = law_of(request, target, draft, State)
        assert marginal(law, 3) == pytest.approx([0.7, 0.2, 0.1], abs=TOLERANCE)
        followed = marginal(law, 3, followed=True)
        assert followed == pytest.approx([0.1, 0.2, 0.1], abs=TOLERANCE)
        assert all(outcome.matched for outcome in law)  # q accepts each of its own proposals
        return
    p, q = place_of(target), place_of(draft)
    (proposal,) = propose(q.ranked, [request], [0])
    first, second = decide([Candidate(request, State(), 0, proposal, p)] * 2)
    assert (first.token, first.followed, first.matched) == (0, False, True)
    assert (first.signal, second.signal) == ("row 0", "row 1")


@pytest.mark.parametrize("count", [None, 0, 2])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_log_probabilities_are_reported_where_they_are_requested(
    count: int | None, temperature: float
) -> None:
    rule = SSD()
    constants = {"sample_space_size": 3, "initial_scheme": "union", "alpha_union": 0.5}
    asking = request_of(rule, constants, top_logprobs=count, temperature=temperature, seed=1)
    other = request_of(rule, constants)
    p = place_of(logits_of([0.6, 0.3, 0.1]), temperature)
    q = place_of(logits_of([0.2, 0.3, 0.5]), temperature)
    f = [0.4, 0.3, 0.3]
    candidates = [
        Candidate(
            request,
            rule.start(request.config, request.context),
            0,
            propose(q.ranked, [request], [0])[0],
            p,
        )
        for request in (other, asking)
    ]
    silent, decision = decide(candidates)
    assert silent.logprobs is None
    if count is None:
        assert decision.logprobs is None
        return
    assert decision.logprobs is not None
    assert math.exp(decision.logprobs.chosen) == pytest.approx(f[decision.token])
    likely = [(token, pytest.approx(math.log(f[token]))) for token in (0, 1)]
    assert decision.logprobs.most_likely == likely[:count]
