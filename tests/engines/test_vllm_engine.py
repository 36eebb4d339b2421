"""What vLLM's engine tells the plug-in of a request, and refuses. None of it needs vLLM."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from safedraft.core.config import RiskConfig, SamplingParams, SSDConfig
from safedraft.core.errors import SafeDraftError
from safedraft.core.request import Request
from safedraft.core.rule import Context
from safedraft.engines.base import Capability, LoadedModel
from safedraft.engines.vllm.engine import VllmEngine
from safedraft.engines.vllm.load import load
from safedraft.models.registry import PairSpec
from safedraft.pair import Pair, Prompts
from safedraft.rules import find_rule
from safedraft.rules.ssd import SSD
from safedraft.rules.target_only import TargetOnly


class FakeLlm:
    llm_engine = None


def engine_of(config: SSDConfig | None = None) -> VllmEngine:
    return VllmEngine(FakeLlm(), RiskConfig.extend(config or SSDConfig()))


def request(rule: str = "ssd", config: Any = None, **settings: Any) -> Request:
    decided_by = find_rule(rule)
    constants = (config or SSDConfig()).convert_to(decided_by.config)
    return Request([5], [5], decided_by, constants, SamplingParams(), **settings)


@pytest.mark.parametrize(
    ("asked", "extra"),
    [
        (request(), {}),
        (request(context=Context(turn_begun=True)), {"ssd_turn_begun": True}),
        (request(top_logprobs=3), {"ssd_top_logprobs": 3}),
        (request(config=SSDConfig(alpha_union=2.0)), {"ssd_alpha_union": 2.0}),
        (
            request(config=SSDConfig(prefill_scheme="union")),
            {"ssd_prefill_scheme": "union"},
        ),
        (request("easd"), {"ssd_rule": "easd"}),
        (
            request("risk", RiskConfig(risky_above=0.7)),
            {"ssd_rule": "risk", "ssd_risky_above": 0.7},
        ),
        (
            request("ensemble_weight", find_rule("ensemble_weight").config(weight=0.5)),
            {"ssd_rule": "ensemble_weight", "ssd_weight": 0.5},
        ),
    ],
    ids=str,
)
def test_what_differs_from_the_engines_own_goes_along(
    asked: Request, extra: dict[str, Any]
) -> None:
    assert engine_of()._extra_args(asked) == {"ssd_rule": "ssd"} | extra


def test_a_request_cannot_have_drafts_of_its_own() -> None:
    with pytest.raises(SafeDraftError, match="draft_tokens: vLLM drafts for all requests"):
        engine_of()._extra_args(request(config=SSDConfig(draft_tokens=7)))
    seven = SSDConfig(draft_tokens=7)
    assert engine_of(seven)._extra_args(request(config=seven)) == {"ssd_rule": "ssd"}


@dataclass(frozen=True)
class Impostor(TargetOnly):
    name: str = "ssd"


@pytest.mark.parametrize("rule", [SSD(after_match="bonus"), Impostor()], ids=["changed", "another"])
def test_a_rule_that_the_workers_would_replace_is_refused(rule: Any) -> None:
    asked = replace(request(), rule=rule)
    with pytest.raises(SafeDraftError, match="another rule of that name: register it"):
        engine_of()._extra_args(asked)
    with pytest.raises(SafeDraftError, match="no rule is called 'mine'"):
        engine_of()._extra_args(replace(asked, rule=SSD("mine")))


def pair() -> Pair:
    models = (LoadedModel(name, None, None) for name in ("target", "draft"))
    return Pair(engine_of(), *models, 258, 64, frozenset({256}), SSDConfig())


def test_what_vllm_cannot_do_is_refused_with_its_reason() -> None:
    with pytest.raises(SafeDraftError, match="two prompts: vLLM gives target and draft one"):
        pair().stream_ids(Prompts([5], [6]))
    with pytest.raises(SafeDraftError, match="asking a model about a text: vLLM"):
        pair().reader("target")
    with pytest.raises(SafeDraftError, match="target: its engine gives no access to the model"):
        _ = pair().target.model
    assert Capability.LOG_PROBABILITIES in VllmEngine.capabilities


@pytest.mark.parametrize("name", ["device", "draft_device", "draft_dtype", "trust_remote_code"])
def test_options_that_vllm_cannot_have_are_refused(name: str) -> None:
    with pytest.raises(SafeDraftError, match=f"{name}: .*: leave it out"):
        load(PairSpec(name="p", target="a", draft="b"), **{name: "cpu"})
