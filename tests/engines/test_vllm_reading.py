"""How often a step of the served batch reads from the device, and that this changes no number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.device import OnDevice
from torch import Tensor

from safedraft.core.config import SamplingParams, SSDConfig
from safedraft.core.generation import Step
from safedraft.core.request import Request
from safedraft.core.rows import Place, Rows, rank
from safedraft.engines.vllm.batch import DraftedBlocks, ServedRequest, verify
from safedraft.engines.vllm.reading import BothPlaces, read_places
from safedraft.rules import find_rule

V = 3000
T = 3
KINDS: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 20},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.9, "min_p": 0.1},
]


def step(p: Tensor, q: Tensor, kinds: list[dict[str, Any]], count: int) -> list[list[Step]]:
    """T + 1 drafts of each request, and what becomes of them.

    Args:
        p: the target's logits at every position, ``[V]``.
        q: the draft's.
        kinds: sampling parameters of the requests, in turn.
        count: number of requests.
    """
    rule, config = find_rule("ssd"), SSDConfig()
    batch = [
        ServedRequest(Request((), (), rule, config, SamplingParams(seed=at, **kinds[at % 5])))
        for at in range(count)
    ]
    block = DraftedBlocks(batch)
    for _ in range(T + 1):
        block.propose(q.repeat(count, 1))
    for one, drafts in zip(batch, block.read(), strict=True):
        one.drafts = drafts
    return verify(batch, p.repeat(count * (T + 1), 1), range(0, count * (T + 1), T + 1))


def reads_of(decide: Callable[[], list[list[Step]]]) -> tuple[int, list[list[Step]]]:
    before = OnDevice.reads
    steps = decide()
    return OnDevice.reads - before, steps


def on_device(*logits: Tensor) -> list[Tensor]:
    return [one.as_subclass(OnDevice) for one in logits]


def similar() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    p = 3 * torch.randn(V, generator=generator)
    return p, p + 0.3 * torch.randn(V, generator=generator)


def target_alone() -> tuple[Tensor, Tensor]:
    """The target's best token is the draft's last one, so that P replaces F."""
    p = -0.1 * torch.arange(V)
    q = p.clone()
    q[0] = -500.0
    return p, q


def nothing_common() -> tuple[Tensor, Tensor]:
    """The best tokens of one model are the last ones of the other."""
    p = -0.001 * torch.arange(V)
    return p, p.flip(0)


@pytest.mark.parametrize("kinds", [KINDS, KINDS[:1] * 5], ids=["all kinds", "greedy"])
@pytest.mark.parametrize("count", [1, 20])
def test_a_step_reads_the_drafts_once_and_the_decisions_once(
    kinds: list[dict[str, Any]], count: int
) -> None:
    p, q = similar()
    reads, steps = reads_of(lambda: step(*on_device(p, q), kinds, count))
    assert reads == 2
    assert steps == step(p, q, kinds, count)
    assert any(len(said) > 1 for said in steps)


def test_where_the_target_stands_alone_a_sampled_position_is_read_whole() -> None:
    p, q = target_alone()
    reads, steps = reads_of(lambda: step(*on_device(p, q), KINDS, 20))
    sampled = sum(len(said) for at, said in enumerate(steps) if KINDS[at % 5])
    assert reads == 2 + sampled
    assert steps == step(p, q, KINDS, 20)


def test_a_position_without_enough_common_tokens_is_read_whole_once() -> None:
    p, q = nothing_common()
    reads, steps = reads_of(lambda: step(*on_device(p, q), KINDS, 10))
    assert reads == 2 + sum(len(said) for said in steps)
    assert steps == step(p, q, KINDS, 10)


def test_penalties_are_read_for_all_requests_together() -> None:
    """Each draft's logits depend on the drafts before it, and a row may lose its last token."""
    p, q = similar()
    kinds = [{**kind, "frequency_penalty": 0.5} for kind in KINDS]
    for count in (1, 20):
        reads, steps = reads_of(lambda count=count: step(*on_device(p, q), kinds, count))
        assert reads == 2 * (T + 1) + 2
        assert steps == step(p, q, kinds, count)


def test_what_was_read_is_what_the_device_has() -> None:
    logits = torch.randn(12, V, generator=torch.Generator().manual_seed(2))
    target = rank(logits[:6], [0.0, 0.7, 1.3] * 2)
    drafts = [rank(logits[6:9], [0.0, 0.7, 1.3]), rank(logits[9:], [0.0, 0.7, 1.3])]
    places = [
        BothPlaces(Place(target, row), Place(drafts[row % 2], row // 2))
        for row in (4, 1, 0, 5, 2, 3)
    ]
    read, flags = read_places(places, torch.tensor([True, False]))
    assert flags == [True, False]
    for both, copy in zip(places, read, strict=True):
        for place, other in zip(both, copy, strict=True):
            for name in ("tokens", "known", "possible", "temperatures", "maxima", "log_sums"):
                one, two = (getattr(p.ranked, name)[p.row] for p in (place, other))
                assert one.dtype == two.dtype
                assert one.equal(two)
            assert place.distribution().equal(other.distribution())
    before, after = (Rows(*map(list, zip(*some, strict=True))) for some in (places, read))
    tokens = torch.cat([before.target_tokens, before.draft_tokens, torch.tensor([[7]] * 6)], -1)
    for one, two in zip(before.probabilities(tokens), after.probabilities(tokens), strict=True):
        assert one.equal(two)
    assert after.vocabulary == V


@pytest.mark.parametrize(
    "read",
    [
        lambda one: one.tolist(),
        lambda one: one.sum().item(),
        lambda one: bool((2 * one > 3).any()),
        lambda one: float(one[0]),
        lambda one: one[one > 0],
        lambda one: one.to("cpu"),
        lambda one: torch.stack([one, one]).cpu(),
    ],
)
def test_reads_are_counted(read: Callable[[Tensor], object]) -> None:
    (one,) = on_device(torch.tensor([1.0, 2.0]))
    before = OnDevice.reads
    torch.cat([one, torch.zeros(3)]).topk(2)
    assert OnDevice.reads == before
    read(one)
    assert OnDevice.reads == before + 1
