"""vLLM reads the risk of a request from the draft, as the first engine does."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small import engine, runner_of, transformers_pair, watched
from test_engine import samplings

from safedraft import GenerationResult, RiskConfig, SamplingParams
from safedraft.core.errors import BrokenModelError, SafeDraftError
from safedraft.core.risk import RiskProbe
from safedraft.engines.vllm import options as vllm_options
from safedraft.engines.vllm.batch import ServedRequest
from safedraft.engines.vllm.options import KEY, Settings
from safedraft.models.probe_file import PROBE, ProbeFile, write_probe
from safedraft.pair import Prompts

pytestmark = pytest.mark.vllm

HEADER = [7, 9]
CONFIG = RiskConfig(draft_tokens=3, risky_above=0.6, harmless_below=0.4)
"""Bounds that leave some of the random risks on each side and some in between."""


def write_random_probe(folder: Path, width: int) -> RiskProbe:
    """A probe of random weights, whose risks lie on both sides of one half."""
    probe = RiskProbe(torch.randn(width, generator=torch.Generator().manual_seed(3)) / 2, 0.0)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    write_probe(folder, ProbeFile(probe))
    return probe


def give_probe(pair: Any, folder: Path) -> Any:
    """The pair, its vLLM engine included, as if its adapter had a probe."""
    runner = runner_of(pair)
    probe = write_random_probe(folder, runner.drafter.model.config.hidden_size)
    settings = runner.vllm_config.additional_config[KEY]
    settings.update(probe=str(folder / PROBE), generation_prompt=HEADER)
    vllm_options._read_probe.cache_clear()
    runner._settings = Settings.of(runner.vllm_config)
    return with_probe(pair, probe)


def with_probe(pair: Any, probe: RiskProbe) -> Any:
    changed = replace(pair, probe=probe)
    changed.__dict__["turn_headers"] = {"draft": tuple(HEADER)}  # there is no tokenizer to ask
    return changed


def conversations(count: int, seed: int, longest: int) -> list[Prompts]:
    """Prompts of random ids that end with the header; every second one goes on with a reply."""
    draw = random.Random(seed)

    def text(length: int) -> list[int]:
        return [draw.randrange(10, 512) for _ in range(length)]

    made = []
    for at in range(count):
        question = [*text(draw.randint(1, longest)), *HEADER]
        ids = question + text(draw.randint(1, longest) if at % 2 else 0)
        made.append(Prompts(ids, ids, {"draft": question}))
    return made


def decode(pair: Any, asked: Sequence[Prompts], given: Sequence[SamplingParams]) -> list[Any]:
    """Replies of the rule ``risk``, one after the other."""
    return [
        pair.stream_ids(one, sampling=each, config=CONFIG, turn_begun=None).drain()
        for one, each in zip(asked, given, strict=True)
    ]


def facts(reply: GenerationResult) -> list[tuple[Any, ...]]:
    return [(token.id, token.matched, token.scheme, token.alpha) for token in reply.trace]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_gpu_blocks_override": 14, "max_num_batched_tokens": 48},
        {"enable_prefix_caching": False, "max_num_batched_tokens": 48},
    ],
    ids=["prefix caching", "preempted, in chunks", "in chunks"],
)
def test_risk_and_tokens_are_those_of_the_first_engine(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    asked, given = conversations(16, 4, 60), samplings(16)
    with engine("near", config=CONFIG, **options) as started, watched(started) as seen:
        pair = give_probe(started, tmp_path)
        assert pair.rule == "risk"
        first = with_probe(transformers_pair("near"), pair.probe)
        expected = decode(first, asked, given)
        said = pair.generate_many_ids(asked, sampling=given)
        again = decode(pair, asked[:4], given[:4])  # whose prompts may be cached by now
    risks = [reply.statistics.risk for reply in expected]
    assert min(risks) < CONFIG.harmless_below
    assert max(risks) > CONFIG.risky_above
    assert any(CONFIG.harmless_below < risk < CONFIG.risky_above for risk in risks)
    assert [reply.statistics.risk for reply in said] == pytest.approx(risks, abs=1e-3)
    assert [facts(reply) for reply in said] == [facts(reply) for reply in expected]
    assert [facts(reply) for reply in again] == [facts(reply) for reply in expected[:4]]
    assert bool(seen["resumed in a reply"]) is ("num_gpu_blocks_override" in options)


def test_what_cannot_be_read_is_refused_and_never_decided_without(tmp_path: Path) -> None:
    with engine("near", config=CONFIG) as started:
        pair = give_probe(started, tmp_path)
        with pytest.raises(SafeDraftError, match="no beginning of an assistant's turn"):
            pair.stream_ids([5, 6])
        assert pair.stream_ids([5, 6], rule="ssd").drain().trace  # which needs no risk
        with pytest.raises(SafeDraftError, match="reading_bins"):
            pair.stream_ids([5, *HEADER], config=CONFIG.replace(reading_bins=2))
        runner_of(started).drafter._find_questions = lambda bounds: None
        with pytest.raises(BrokenModelError, match="before the risk of its request was read"):
            pair.stream_ids([5, *HEADER], config=CONFIG).drain()


def test_a_state_that_is_no_number_ends_its_request_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assess = ServedRequest.assess

    def spoil(request: ServedRequest, hidden: torch.Tensor) -> None:
        first = request.request.context.risk.readings["draft"].question == (20, *HEADER)
        assess(request, hidden * torch.nan if first else hidden)

    monkeypatch.setattr(ServedRequest, "assess", spoil)
    with engine("near", config=CONFIG) as started:
        pair = give_probe(started, tmp_path)
        broken, whole = (
            pair.stream_ids([at, *HEADER], sampling=samplings(1)[0], config=CONFIG)
            for at in (20, 30)
        )
        assert len(whole.drain().trace) == 40
        with pytest.raises(BrokenModelError, match="hidden state is not finite"):
            broken.drain()
        assert not broken.result.trace
