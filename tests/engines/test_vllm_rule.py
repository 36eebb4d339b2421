"""The batched rule says what the loop says, request by request, and draws from the composite."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from conftest import RandomModel

from safedraft.core.composite import composite
from safedraft.core.config import SamplingParams, Scheme, SSDConfig
from safedraft.core.decode import Step, decode
from safedraft.core.errors import BrokenModel
from safedraft.core.sampling import distribution, probabilities
from safedraft.engines.vllm.rule import Request, propose, verify

V = 24
CONFIGS = [SSDConfig(), SSDConfig(bin_size=3, sample_space_size=5), SSDConfig(threshold=1.0)]
SAMPLINGS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 4},
    {"temperature": 1.5, "top_p": 0.7},
]


def requests(count: int) -> list[Request]:
    return [
        Request(
            CONFIGS[at % 3],
            SamplingParams(max_new_tokens=30 + at, seed=at, **SAMPLINGS[at % 4]),
            frozenset({7}) if at % 2 else frozenset(),
        )
        for at in range(count)
    ]


def served(
    target: RandomModel, draft: RandomModel, prompts: list[list[int]], batch: list[Request]
) -> list[list[Step]]:
    """All requests at once, as an engine would have it; their blocks have different lengths."""
    said: list[list[Step]] = [[] for _ in batch]
    while going := [at for at, request in enumerate(batch) if not request.ended]:
        texts = {at: prompts[at] + [step.token for step in said[at]] for at in going}
        for at in going:
            batch[at].drafts, rows = [], []
            for ahead in range(1 + at % 4):
                logits = draft(texts[at] + batch[at].drafts)[None]
                tokens, q = propose([batch[at]], logits, ahead)
                batch[at].drafts.append(int(tokens))
                rows.append(q[0])
            batch[at].draft_rows = rows
        logits_of = [
            torch.stack(
                [target(texts[at] + batch[at].drafts[:ahead]) for ahead in range(1 + at % 4)]
            )
            for at in going
        ]
        for at, steps in zip(going, verify([batch[at] for at in going], logits_of), strict=True):
            assert 1 <= len(steps) <= 1 + at % 4
            said[at] += steps
    return said


def test_a_mixed_batch_says_what_each_says_alone() -> None:
    target, draft = RandomModel(1, V), RandomModel(2, V, shared=0.7, family=1)
    prompts = [[at % V, (3 * at + 1) % V] for at in range(12)]
    batch = requests(12)
    for prompt, request, steps in zip(
        prompts, batch, served(target, draft, prompts, batch), strict=True
    ):
        alone = decode(
            target.session(), draft.session(), prompt, prompt,
            request.config, request.sampling, request.end_tokens,
        )  # fmt: skip
        expected = [(s.token, s.matched, s.scheme, s.strength) for s in alone]
        assert [(s.token, s.matched, s.scheme, s.strength) for s in steps] == expected
        unions = sum(step.scheme is Scheme.UNION for step in steps)
        matches = sum(step.matched for step in steps)
        assert request.statistics() == {
            "tokens": len(steps), "blocks": steps[-1].block + 1, "matches": matches,
            "match_ratio": matches / len(steps), "union_share": unions / len(steps),
        }  # fmt: skip
    assert any(0 < request.statistics()["union_share"] < 1 for request in batch)


@pytest.mark.parametrize("union", [False, True])
def test_sampled_and_greedy_rows_of_one_batch_come_from_the_composite(union: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    p_logits, q_logits = (2 * torch.randn(V, generator=generator) for _ in range(2))
    config = SSDConfig(sample_space_size=6, initial_scheme="union" if union else "intersection")
    warm = SamplingParams(temperature=0.9, top_p=0.9, max_new_tokens=9)
    batch = [
        Request(config, warm.model_copy(update={"seed": seed}) if seed % 5 else SamplingParams())
        for seed in range(10_000)
    ]
    tokens, q = propose(batch, q_logits.expand(len(batch), V), 0)
    for request, token, row in zip(batch, tokens.tolist(), q, strict=True):
        request.drafts, request.draft_rows = [token], [row]
    steps = verify(batch, [p_logits[None]] * len(batch))
    for request_greedy in (True, False):
        chosen = Counter(
            said[0].token
            for said, request in zip(steps, batch, strict=True)
            if request.sampling.greedy is request_greedy
        )
        temperature = 0.0 if request_greedy else 0.9
        p, row = (probabilities(logits, temperature) for logits in (p_logits, q_logits))
        scores = composite(p, row, union, batch[0].switch.strength, config)
        if request_greedy:
            assert list(chosen) == [int(scores.argmax())]
            continue
        expected = distribution(scores, warm)
        drawn = torch.zeros(V)
        for token, number in chosen.items():
            drawn[token] = number / chosen.total()
        assert (drawn - expected).abs().sum() < 0.05  # half of it is the total variation


def drafted_for(request: Request, **given: Any) -> Request:
    request.drafts, request.draft_rows = [3], [torch.full((V,), 1 / V)]
    for name, value in given.items():
        setattr(request, name, value)
    return request


def test_kept_drafts_do_not_keep_the_whole_batch() -> None:
    batch = torch.rand(5, V)
    alone = torch.rand(V)
    request = drafted_for(requests(1)[0], draft_rows=[batch[2], alone])
    request.keep_drafts()
    row, same = request.draft_rows
    assert row.equal(batch[2])
    assert row.untyped_storage().nbytes() == 4 * V
    assert same is alone


def test_a_draft_without_its_distribution_decides_nothing() -> None:
    request = drafted_for(Request(SSDConfig(), SamplingParams()), draft_rows=[])
    with pytest.raises(BrokenModel, match="without the draft's distribution"):
        verify([request], [torch.zeros(1, V)])
    assert request.position == 0


def test_logits_that_are_no_numbers_decide_nothing() -> None:
    broken = torch.zeros(2, V)
    broken[1, 4] = torch.nan
    with pytest.raises(BrokenModel, match="the draft gave NaN"):
        propose([Request(SSDConfig(), SamplingParams())] * 2, broken, 0)
    propose([Request(SSDConfig(), SamplingParams()), None], broken, 0)  # nobody's row
    with pytest.raises(BrokenModel, match="the target gave NaN"):
        verify([drafted_for(Request(SSDConfig(), SamplingParams()))], [broken[1:]])
