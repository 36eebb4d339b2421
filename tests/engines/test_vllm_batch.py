"""The served batch says what the loop says, request by request, and draws from the composite."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.models import RandomModel

from safedraft.core.composite import Setting, composite
from safedraft.core.config import SamplingParams, Scheme, SSDConfig
from safedraft.core.decode import decode
from safedraft.core.errors import BrokenModelError
from safedraft.core.generation import Step
from safedraft.core.request import Request
from safedraft.core.rows import Place, Rows, rank
from safedraft.core.rule import Context
from safedraft.core.sampling import distribution
from safedraft.engines.scripted import ScriptedEngine
from safedraft.engines.vllm.batch import ServedRequest, propose, verify
from safedraft.rules import constants_for, find_rule

V = 24
CONFIGS = [SSDConfig(), SSDConfig(bin_size=3, sample_space_size=5), SSDConfig(threshold=1.0)]
SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 4},
    {"temperature": 1.5, "top_p": 0.7},
]


RULES = ("ssd", "ssd", "easd", "speculative", "ssd_easd", "ssd_risk")


def request_of(config: SSDConfig, sampling: SamplingParams, **settings: Any) -> Request:
    rule = find_rule(settings.pop("rule", "ssd"))
    return Request((), (), rule, constants_for(rule, config), sampling, **settings)


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
    target: RandomModel, draft: RandomModel, prompts: list[list[int]], batch: list[ServedRequest]
) -> list[list[Step]]:
    """All requests at once, as an engine would have it; their blocks have different lengths."""
    said: list[list[Step]] = [[] for _ in batch]
    while going := [at for at, one in enumerate(batch) if not one.ended]:
        texts = {at: prompts[at] + [step.token for step in said[at]] for at in going}
        for ahead in range(4):
            drafting = [one if at % 4 >= ahead else None for at, one in enumerate(batch)]
            drafting = [one if at in going else None for at, one in enumerate(drafting)]
            rows = [
                draft(texts.get(at, [0]) + [proposed.token for proposed in one.drafts])
                for at, one in enumerate(batch)
            ]
            proposals = propose(drafting, torch.stack(rows), ahead)
            for one, proposal in zip(batch, proposals, strict=True):
                if proposal is not None:
                    one.drafts.append(proposal)
        logits = [
            torch.stack(
                [
                    target(texts[at] + [proposed.token for proposed in batch[at].drafts[:ahead]])
                    for ahead in range(1 + at % 4)
                ]
            )
            for at in going
        ]
        for at, steps in zip(going, verify([batch[at] for at in going], logits), strict=True):
            assert 1 <= len(steps) <= 1 + at % 4
            said[at] += steps
    return said


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
    drafts = propose(batch, q_logits.expand(len(batch), V), 0)
    for one, draft in zip(batch, drafts, strict=True):
        assert draft is not None
        one.drafts = [draft]
    steps = verify(batch, [p_logits[None]] * len(batch))
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
    (draft,) = [propose(batch, logits, 0)[2]]
    assert draft is not None
    batch[2].drafts = [draft]
    batch[2].keep_drafts()
    (kept,) = batch[2].drafts
    assert (kept.token, kept.probability) == (draft.token, draft.probability)
    row = kept.place.ranked.logits
    assert row.equal(logits[2:3])
    assert row.untyped_storage().nbytes() == 4 * V
    assert kept.place.distribution().equal(draft.place.distribution())


def test_a_position_without_a_draft_decides_nothing() -> None:
    one = ServedRequest(request_of(SSDConfig(), SamplingParams()))
    with pytest.raises(BrokenModelError, match="without the draft's distribution"):
        verify([one], [torch.zeros(1, V)])
    assert one.position == 0


def test_logits_that_are_no_numbers_decide_nothing() -> None:
    broken = torch.zeros(2, V)
    broken[1, 4] = torch.nan
    one = ServedRequest(request_of(SSDConfig(), SamplingParams()))
    with pytest.raises(BrokenModelError, match="the draft gave NaN"):
        propose([one] * 2, broken, 0)
    (draft, nobodys) = propose([one, None], broken, 0)
    assert draft is not None
    assert nobodys is None
    one.drafts = [draft]
    with pytest.raises(BrokenModelError, match="the target gave NaN"):
        verify([one], [broken[1:]])
