"""vLLM's profiling run decides a block as a step does, of as many requests as there may be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small import engine, runner_of

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize(("device", "requests"), [("cuda", 6), ("cpu", 1)])
def test_the_profiling_run_decides_a_block_of_every_request(
    device: str, requests: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safedraft.engines.vllm import batch

    seen: dict[str, Any] = {}

    def verify(served: Any, logits: Any, firsts: Any) -> Any:
        seen["drafts"] = [len(one.drafts) for one in served]
        seen["steps"] = decide(served, logits, firsts)
        return seen["steps"]

    decide = batch.verify
    monkeypatch.setattr(batch, "verify", verify)
    with engine("near") as pair:
        runner = runner_of(pair)
        hidden = torch.zeros(6, runner.model_config.get_hidden_size())
        monkeypatch.setattr(runner, "device", SimpleNamespace(type=device))
        runner._dummy_sampler_run(hidden_states=hidden)
        assert not runner._served
    assert seen["drafts"] == [4] * requests
    assert all(seen["steps"])
