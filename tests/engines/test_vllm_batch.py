"""The served batch says what the loop says, request by request, and draws from the composite."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pytest
import torch
from helpers.models import RandomModel

from safedraft.core.composite import Setting, composite
from safedraft.core.config import RiskConfig, SamplingParams, Scheme, SSDConfig
from safedraft.core.constraint import forbid
from safedraft.core.decode import decode
from safedraft.core.errors import BrokenModelError
from safedraft.core.generation import Step
from safedraft.core.request import Request
from safedraft.core.risk import Reading, RiskContext, RiskProbe
from safedraft.core.rows import Place, Rows, rank
from safedraft.core.rule import Context
from safedraft.core.sampling import distribution
from safedraft.core.session import Which
from safedraft.engines.scripted import ScriptedEngine
from safedraft.engines.vllm.batch import DraftedBlocks, ServedRequest, verify
from safedraft.rules import RULES as RULE_REGISTRY
from safedraft.rules import find_rule

V = 24
CONFIGS = [SSDConfig(), SSDConfig(bin_size=3, sample_space_size=5), SSDConfig(threshold=1.0)]
SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 4, "frequency_penalty": 0.5},
    {"temperature": 1.5, "top_p": 0.7, "presence_penalty": -0.5},
]


RULES = ("ssd", "ssd", "easd", "speculative", "ssd_easd")


def request_of(config: SSDConfig, sampling: SamplingParams, **settings: Any) -> Request:
    rule = find_rule(settings.pop("rule", "ssd"))
    return Request((), (), rule, config.convert_to(rule.config), sampling, **settings)


def requests(count: int) -> list[ServedRequest]:
    return [
        ServedRequest(
            request_of(
                CONFIGS[at % 3],
                SamplingParams(max_new_tokens=30 + at, seed=at, **SAMPLINGS[at % 4]),
                end_tokens=frozenset({7}) if at % 2 else frozenset(),
                context=Context(refusal_tokens=frozenset({3})),
                rule=RULES[at % len(RULES)],
            )
        )
        for at in range(count)
    ]


def serve(
    target: RandomModel,
    draft: RandomModel,
    prompts: list[list[int]],
    batch: list[ServedRequest],
    first: int = 0,
) -> list[list[Step]]:
    """All requests at once, as an engine would have it; their blocks have different lengths.

    Those are up to 1 + (``first`` + index) % 4. Before the target's rows of each request there is
    one of no request.
    """
    stray = torch.full_like(target(prompts[0]), torch.nan)
    said: list[list[Step]] = [[] for _ in batch]
    while going := [at for at, one in enumerate(batch) if not one.ended]:
        texts = {at: prompts[at] + [step.token for step in said[at]] for at in going}
        block = DraftedBlocks([one if at in going else None for at, one in enumerate(batch)])
        drafted = [texts.get(at, [0]) for at in range(len(batch))]
        for _ in range(4):
            tokens = block.propose(torch.stack([draft(ids) for ids in drafted])).tolist()
            drafted = [[*ids, token] for ids, token in zip(drafted, tokens, strict=True)]
        for at, (one, drafts) in enumerate(zip(batch, block.read(), strict=True)):
            one.drafts = drafts[: 1 + (first + at) % 4]
        logits = [
            torch.stack(
                [stray]
                + [
                    target(texts[at] + [proposed.token for proposed in batch[at].drafts[:ahead]])
                    for ahead in range(len(batch[at].drafts))
                ]
            )
            for at in going
        ]
        firsts = [1 + start for start in accumulate(map(len, logits[:-1]), initial=0)]
        decided = verify([batch[at] for at in going], torch.cat(logits), firsts)
        for at, steps in zip(going, decided, strict=True):
            assert 1 <= len(steps) <= 1 + (first + at) % 4
            said[at] += steps
    return said


@pytest.mark.slow
def test_a_mixed_batch_says_what_each_says_alone() -> None:
    target, draft = RandomModel(1, V), RandomModel(2, V, shared=0.7, family=1)
    prompts = [[at % V, (3 * at + 1) % V] for at in range(24)]
    batch = requests(24)
    said = serve(target, draft, prompts, batch)
    for prompt, one, steps in zip(prompts, batch, said, strict=True):
        request = replace(one.request, target_prompt=prompt, draft_prompt=prompt)
        alone = [step for _, step in decode(ScriptedEngine(target, draft), [request])]
        if one.request.rule.after_match == "carry":
            expected = [(s.token, s.matched, s.scheme, s.alpha, s.match_ratio) for s in alone]
            found = [(s.token, s.matched, s.scheme, s.alpha, s.match_ratio) for s in steps]
            assert found == expected
        elif one.request.sampling.greedy:
            assert [step.token for step in steps] == [step.token for step in alone]
        unions = sum(step.scheme is Scheme.UNION for step in steps)
        matches = sum(step.matched for step in steps)
        assert one.statistics() == {
            "tokens": len(steps), "blocks": steps[-1].block + 1, "matches": matches,
            "match_ratio": matches / len(steps), "union_share": unions / len(steps),
        }  # fmt: skip
    assert any(0 < one.statistics()["union_share"] < 1 for one in batch)


@pytest.mark.slow
@pytest.mark.parametrize("union", [False, True])
def test_sampled_and_greedy_rows_of_one_batch_come_from_the_composite(union: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    p_logits, q_logits = (2 * torch.randn(V, generator=generator) for _ in range(2))
    config = SSDConfig(sample_space_size=6, initial_scheme="union" if union else "intersection")
    warm = SamplingParams(temperature=0.9, top_p=0.9, max_new_tokens=9)
    batch = [
        ServedRequest(request_of(config, warm.replace(seed=seed) if seed % 5 else SamplingParams()))
        for seed in range(10_000)
    ]
    block = DraftedBlocks(batch)
    block.propose(q_logits.expand(len(batch), V))
    for one, drafts in zip(batch, block.read(), strict=True):
        one.drafts = drafts
    steps = verify(batch, p_logits.expand(len(batch), V), range(len(batch)))
    for is_greedy in (True, False):
        chosen = Counter(
            said[0].token
            for said, one in zip(steps, batch, strict=True)
            if one.request.sampling.greedy is is_greedy
        )
        temperature = 0.0 if is_greedy else 0.9
        p, q = (Place(rank(row[None], [temperature]), 0) for row in (p_logits, q_logits))
        alpha = config.alpha_union if union else config.alpha_intersection
        scores = composite(Rows([p], [q]), [Setting(union, alpha, 6)])
        tokens = scores.tokens[0].tolist()
        if is_greedy:
            assert list(chosen) == [tokens[int(scores.values[0].argmax())]]
            continue
        expected = distribution(scores.values, [warm])[0].tolist()
        drawn = [chosen[token] / chosen.total() for token in tokens]
        assert sum(chosen[token] for token in tokens) == chosen.total()
        # Half of it is the total variation.
        assert sum(abs(one - other) for one, other in zip(drawn, expected, strict=True)) < 0.05


def test_kept_drafts_do_not_keep_the_whole_batch() -> None:
    batch = requests(5)
    logits = torch.rand(5, V)
    block = DraftedBlocks(batch)
    block.propose(logits)
    batch[2].drafts = block.read()[2]
    (draft,) = batch[2].drafts
    batch[2].keep_drafts()
    (kept,) = batch[2].drafts
    assert (kept.token, kept.probability) == (draft.token, draft.probability)
    row = kept.place.ranked.logits
    assert row.equal(logits[2:3])
    assert row.untyped_storage().nbytes() == 4 * V
    assert kept.place.distribution().equal(draft.place.distribution())


def read_by(probe: RiskProbe, **constants: Any) -> ServedRequest:
    """A request of the rule ``risk`` whose question is one token, for both models."""
    context = RiskContext(probe, dict.fromkeys(probe.reads, Reading((2, 3), (5, 4, 2, 3))))
    config = RiskConfig(**constants)
    sampling = SamplingParams(max_new_tokens=30)
    return ServedRequest(request_of(config, sampling, rule="risk", context=Context(risk=context)))


@pytest.mark.parametrize(
    ("reads", "risk"),
    [(("draft", "target"), 0.982), (("target", "draft"), 0.018), (("draft",), 0.953)],
)
def test_the_states_are_put_in_the_order_of_the_probe(
    reads: tuple[Which, ...], risk: float
) -> None:
    one = read_by(RiskProbe(torch.tensor([1.0, -1.0])[: len(reads)], 0.0, reads))
    assert one.unread == [3]
    one.note_states(3, {"target": torch.tensor([-1.0]), "draft": torch.tensor([3.0])})
    assert one.state.risk == pytest.approx(risk, abs=1e-3)
    assert not one.unread


def test_the_states_at_two_places_are_joined_whichever_is_read_first() -> None:
    probe = RiskProbe(torch.tensor([1.0, 0.1, 10.0, 0.01]), 0.0, ("draft", "target"), None, True)
    states = {
        3: {"draft": torch.tensor([1.0]), "target": torch.tensor([-0.2])},
        1: {"draft": torch.tensor([5.0]), "target": torch.tensor([30.0])},
    }
    for order in ((1, 3), (3, 1)):
        one = read_by(probe)
        assert one.unread == [3, 1]
        one.note_states(order[0], states[order[0]])
        assert one.state.risk is None
        assert one.unread == [order[1]]
        one.note_states(order[1], states[order[1]])
        assert one.state.risk == pytest.approx(1 / (1 + math.exp(0.2)), abs=1e-3)


def test_a_risk_that_is_overdue_ends_its_request() -> None:
    one = read_by(RiskProbe(torch.zeros(1), 0.0), reading_bins=1, bin_size=2)
    one.note_states(3, {"draft": torch.zeros(1)})  # which is due again after two tokens
    one.position = 1
    assert not one.unread
    one.position = 3
    assert verify([one], torch.zeros(1, V), [0]) == [[]]
    assert "before the risk of its request was read" in str(one.error)


def test_a_position_without_a_draft_decides_nothing() -> None:
    one = ServedRequest(request_of(SSDConfig(), SamplingParams()))
    with pytest.raises(BrokenModelError, match="without the draft's distribution"):
        verify([one], torch.zeros(1, V), [0])
    assert one.position == 0


@pytest.mark.parametrize("model", ["draft", "target"])
def test_logits_that_are_no_numbers_end_their_own_request_alone(model: str) -> None:
    p, q = torch.rand(3, 2, V), torch.rand(3, V)
    expected = step_once(requests(3), p, q)
    (q if model == "draft" else p[:, 1])[1, 4] = torch.nan
    batch = requests(3)
    steps = step_once(batch, p, q)
    assert [steps[0], steps[2]] == [expected[0], expected[2]]
    assert steps[1] == []
    assert [one.ended for one in batch] == [False, True, False]
    assert [one.error is None for one in batch] == [True, False, True]
    assert f"the {model} gave NaN" in str(batch[1].error)
    block = DraftedBlocks(batch)
    assert block.propose(q)[1] == 0
    assert [len(drafts) for drafts in block.read()] == [1, 0, 1]


def step_once(batch: list[ServedRequest], p: torch.Tensor, q: torch.Tensor) -> list[list[Step]]:
    """Two drafts of each request, and what becomes of them."""
    block = DraftedBlocks(batch)
    for _ in range(2):
        block.propose(q)
    for one, drafts in zip(batch, block.read(), strict=True):
        one.drafts = drafts
    return verify(batch, p.flatten(0, 1), range(0, 2 * len(batch), 2))


def test_a_row_of_no_request_may_hold_anything() -> None:
    one = ServedRequest(request_of(SSDConfig(), SamplingParams()))
    rows = torch.tensor([[0.0] * V, [torch.nan] * V])
    block = DraftedBlocks([one, None])
    assert block.propose(rows).tolist() == [0, 0]
    assert [len(drafts) for drafts in block.read()] == [1, 0]
    assert one.error is None


KINDS: list[dict[str, Any]] = [
    {"frequency_penalty": 0.5, "repetition_penalty": 1.3},
    {"temperature": 1.0, "presence_penalty": 1.0},
    {"temperature": 0.8, "top_k": 4},
    {"temperature": 1.5, "top_p": 0.7},
    {"temperature": 0.3, "top_k": 1},
    {"temperature": 2.0, "top_k": 9, "top_p": 0.5},
    {"temperature": 0.05},
    {"temperature": 5.0, "top_p": 0.9},
]


def one_of_each(offset: int) -> list[ServedRequest]:
    """Eight requests with eight rules, and samplings that are moved on by ``offset``."""
    return [
        ServedRequest(
            request_of(
                SSDConfig(bin_size=3 + at, kappa=1 + at % 3, sample_space_size=4 + at),
                SamplingParams(max_new_tokens=20, seed=at, **KINDS[(at + offset) % 8]),
                context=Context(refusal_tokens=frozenset({3})),
                rule=rule,
            )
        )
        for at, rule in enumerate(RULES_OF_ALL_KINDS)
    ]


# vLLM reads no hidden states, and so no risk.
RULES_OF_ALL_KINDS = sorted(set(RULE_REGISTRY.names()) - {"risk"})


@pytest.mark.parametrize(
    "offset", [0, *(pytest.param(offset, marks=pytest.mark.slow) for offset in range(1, 8))]
)
def test_rules_and_samplings_of_all_kinds_decide_in_one_batch_as_alone(offset: int) -> None:
    assert len(RULES_OF_ALL_KINDS) == 8
    target, draft = RandomModel(1, V), RandomModel(2, V, shared=0.7, family=1)
    prompts = [[at, 3 * at + 1] for at in range(8)]
    together = serve(target, draft, prompts, one_of_each(offset))
    for at, steps in enumerate(together):
        alone = serve(target, draft, [prompts[at]], [one_of_each(offset)[at]], first=at)
        assert alone == [steps]
    assert any(step.matched for steps in together for step in steps)
    assert any(not step.matched for steps in together for step in steps)


def best_of_ties_by_the_number_of_rows(logits: torch.Tensor, width: int) -> Any:
    """The best tokens; of those that tie, the first or the last ones, as kernels differ."""
    order = torch.arange(logits.shape[-1])
    if len(logits) > 8:
        order = order.flip(0)
    best = logits[:, order].sort(dim=-1, descending=True, stable=True)
    return best.values[:, :width], order[best.indices[:, :width]]


def test_sixty_four_mixed_requests_decide_as_each_alone_where_logits_tie(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Logits of few levels tie at every border: of the best tokens, the sample space, the cuts."""
    monkeypatch.setattr("safedraft.core.rows._best", best_of_ties_by_the_number_of_rows)
    target = RandomModel(1, 64, levels=2)
    draft = RandomModel(2, 64, shared=0.7, family=1, levels=2)

    def mixed() -> list[ServedRequest]:
        return [
            ServedRequest(
                request_of(
                    SSDConfig(
                        bin_size=2,
                        initial_scheme=list(Scheme)[at % 2],
                        kappa=1 + at % 3,
                        sample_space_size=(24, 28, 40)[at % 3],
                    ),
                    SamplingParams(max_new_tokens=3, seed=at, **KINDS[at // 8]),
                    rule=RULES_OF_ALL_KINDS[at % 8],
                    top_logprobs=64,
                )
            )
            for at in range(64)
        ]

    prompts = [[at, 3 * at] for at in range(64)]
    together, alone = serve(target, draft, prompts, mixed()), mixed()
    for at, steps in enumerate(together):
        (own,) = serve(target, draft, [prompts[at]], [alone[at]], first=at)
        assert own == steps
        assert possible(own) == possible(steps)
    assert {step.matched for steps in together for step in steps} == {True, False}


def possible(steps: list[Step]) -> list[set[int]]:
    """The tokens that were possible at each position."""
    return [{token for token, _ in step.logprobs.most_likely} for step in steps if step.logprobs]


class Steps:
    """Allows few tokens, which depend on the two before."""

    def __init__(self) -> None:
        self.decided: list[int] = []

    def apply(self, drafts: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        return logits + forbid(allowed_after([*self.decided, *drafts]))

    def decide(self, token: int) -> None:
        assert bool(allowed_after(self.decided)[token])
        self.decided.append(token)


def allowed_after(reply: Sequence[int]) -> torch.Tensor:
    step = 1 + sum(reply[-2:]) % 5
    return torch.arange(V) % step == len(reply) % step


def test_a_constrained_reply_is_that_of_models_that_know_nothing_else() -> None:
    """Drafts are never forbidden, and what is drawn is drawn from the allowed tokens."""
    target, draft = RandomModel(1, V), RandomModel(2, V, shared=0.7, family=1)
    prompts = [[at % V, (3 * at + 1) % V] for at in range(12)]

    def restricted(model: RandomModel) -> Any:
        def logits(ids: list[int]) -> torch.Tensor:
            return model(ids).masked_fill(~allowed_after(ids[2:]), -torch.inf)

        return logits

    def batch() -> list[ServedRequest]:
        return [
            ServedRequest(
                request_of(
                    CONFIGS[at % 3], SamplingParams(max_new_tokens=30, seed=at, **KINDS[at % 8])
                )
            )
            for at in range(12)
        ]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "safedraft.engines.vllm.batch.are_finite",
            lambda logits: torch.ones(len(logits), dtype=torch.bool),
        )
        expected = serve(restricted(target), restricted(draft), prompts, batch())
    constrained = batch()
    for one in constrained:
        one.constraints.append(Steps())
    assert serve(target, draft, prompts, constrained) == expected
    assert any(step.matched for steps in expected for step in steps)
    assert any(not step.matched for steps in expected for step in steps)


def test_a_request_that_may_say_nothing_ends_alone() -> None:
    class Nothing(Steps):
        def apply(self, drafts: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
            return torch.full_like(logits, -torch.inf)

    p, q = torch.rand(3, 2, V), torch.rand(3, V)
    expected, batch = step_once(requests(3), p, q), requests(3)
    batch[1].constraints.append(Nothing())
    steps = step_once(batch, p, q)
    assert [steps[0], [], steps[2]] == [expected[0], steps[1], expected[2]]
    assert "leaves no token" in str(batch[1].error)
