"""The model of inspect_ai: what it takes, what it refuses, what it reports."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageUser,
    ContentImage,
    ContentText,
    GenerateConfig,
    ModelOutput,
    ResponseSchema,
    get_model,
)
from inspect_ai.tool import ToolInfo
from inspect_ai.util import JSONSchema
from stage import use_pair

import safedraft.evaluation.registry
from safedraft.core.config import SamplingParams, StructuredOutputs
from safedraft.core.errors import BrokenModelError, SafeDraftError
from safedraft.engines.scripted import ScriptedSession
from safedraft.evaluation import ahead, pair_arguments
from safedraft.evaluation.pair_arguments import PairArguments
from safedraft.evaluation.provider import SafeDraftAPI, to_sampling_params
from safedraft.evaluation.suites import STEPS, SUITES
from safedraft.evaluation.tasks import build_task

assert safedraft.evaluation.registry.safedraft  # registers the provider


def api(name: str = "qwen2.5-coder", **arguments: Any) -> SafeDraftAPI:
    return SafeDraftAPI(name, **arguments)


def ask(api: SafeDraftAPI, *messages: Any, **config: Any) -> ModelOutput:
    settings = GenerateConfig(**{"max_tokens": 80, **config})
    return asyncio.run(api.generate(list(messages), [], "auto", settings))


ASKED = ChatMessageUser(content="How do kites fly?")


def test_a_reply_and_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_pair(tmp_path, monkeypatch, lambda prompt: "On the wind, mostly.")
    output = ask(api(), ASKED)
    assert (output.completion, output.stop_reason) == ("On the wind, mostly.", "stop")
    figures = output.metadata["safedraft"]  # type: ignore[index]
    assert figures["tokens"] == 21
    assert figures["match_ratios"] == [1.0, 1.0]  # the 21st is the end token, which is in no bin
    assert output.usage is not None
    assert output.usage.output_tokens == 21
    assert output.usage.input_tokens == figures["prompt_tokens"]
    cut = ask(api(defense="target_only"), ASKED, max_tokens=5)
    assert (cut.completion, cut.stop_reason) == ("On th", "max_tokens")
    assert cut.metadata["safedraft"]["match_ratios"] == []  # type: ignore[index]


def test_a_prefilled_turn_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_pair(tmp_path, monkeypatch, lambda prompt: "On the wind.")
    begun = ChatMessageAssistant(content=[ContentText(text="On the ")])
    assert ask(api(), ASKED, begun).completion == "wind."


def test_a_constant_reaches_the_defense_and_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_pair(tmp_path, monkeypatch, lambda prompt: "On the wind, mostly.")
    model = api(alpha_union=2.0, initial_scheme="union", bin_size=10)
    assert model.pair().config.alpha_union == 2.0
    figures = ask(model, ASKED).metadata["safedraft"]  # type: ignore[index]
    assert figures["match_ratios"] == [1.0, 1.0]  # two bins of ten
    assert api().pair().config.alpha_union == 0.8


@pytest.mark.parametrize(
    ("arguments", "constants"),
    [
        ({}, (0.6, 0.8, 4)),
        ({"defense": "target_only"}, (0.6, 0.8, 4)),
        ({"defense": "target_only", "alpha_union": 2.0}, (0.6, 2.0, 4)),
        ({"defense": "risk", "alpha_union": 2.0}, (0.6, 2.0, 4)),
        ({"defense": "ssd_paper"}, (0.3, 0.8, 1)),
        ({"defense": "ssd_paper", "alpha_union": 2.0}, (0.3, 2.0, 1)),
        ({"defense": "ada_rethinking", "check_interval": 5}, (0.6, 0.8, 4)),
    ],
)
def test_attacks_see_the_constants_of_the_defense(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Any, constants: Any
) -> None:
    pair = use_pair(tmp_path, monkeypatch, lambda prompt: "On the wind, mostly.")
    own = pair.config.replace(alpha_intersection=0.6, union_bins=4)
    monkeypatch.setattr(pair_arguments, "load_spec", lambda *_, **__: replace(pair, config=own))
    config = api(**arguments).pair().config
    assert (config.alpha_intersection, config.alpha_union, config.union_bins) == constants


def test_constants_of_a_defense_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = use_pair(tmp_path, monkeypatch, lambda prompt: "On the wind, mostly.")
    ask(api(defense="ada_rethinking", check_interval=7), ASKED)
    assert len(pair.prompts_seen) == 3  # the request, and checks after 7 and 14 tokens
    with pytest.raises(SafeDraftError, match="check_interval: must be at least"):
        api(defense="ada_rethinking", check_interval=0)
    with pytest.raises(SafeDraftError, match="guard_filter:endpoint=URL,guard=NAME"):
        api(defense="guard_filter", guard="a-guard")
    with pytest.raises(SafeDraftError, match="no model argument 'endpoint'"):
        api(defense="ssd", endpoint="http://here/v1")


def test_equal_pairs_are_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = use_pair(tmp_path, monkeypatch, lambda prompt: "Yes.")
    loaded: list[Any] = []
    monkeypatch.setattr(pair_arguments, "load_spec", lambda *a, **k: loaded.append((a, k)) or pair)
    for model in (api(), api(defense="target_only", alpha_union=1.0), api(no_adapter=True)):
        ask(model, ASKED)
        ask(model, ASKED)
    assert [spec.bare_draft for (spec,), _ in loaded] == [False, True]


def test_what_is_said_of_templates_reaches_the_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = use_pair(tmp_path, monkeypatch, lambda prompt: "Yes.")
    loaded: list[Any] = []
    monkeypatch.setattr(pair_arguments, "load_spec", lambda spec, **_: loaded.append(spec) or pair)
    ask(
        api(template="enable_thinking=false,year=2024", template_from="target", other_base=True),
        ASKED,
    )
    (spec,) = loaded
    assert spec.template == {"enable_thinking": False, "year": 2024}
    assert (spec.template_from, spec.other_base) == ("target", True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"defence": "ssd"}, "no model argument 'defence'; it has defense, label"),
        ({"defense": "none"}, "no defense is called 'none'; known are ada_probe"),
        ({"alpha_union": -1}, "alpha_union: must be at least 0, not -1"),
        ({"bin_size": 2.5}, "bin_size"),
        ({"no_adapter": "yes"}, "no_adapter is true or false"),
        ({"other_base": "yes"}, "other_base is true or false"),
        ({"template": "thinking"}, "template"),
        ({"template_from": "both"}, "template_from"),
        ({"model_name": "nothing"}, "no pair is called 'nothing'"),
        ({"base_url": "http://here"}, "takes no URL"),
        ({"adapter": "a/b", "no_adapter": True}, "not both"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(SafeDraftError, match=message):
        SafeDraftAPI(**{"model_name": "qwen2.5-coder", **arguments})


@pytest.mark.parametrize(
    "config",
    [
        {"temperature": 0.5},
        {"stop_seqs": ["x"]},
        {"frequency_penalty": 0.5},
        {"logit_bias": {1: 1.0}},
        {"extra_body": {"repetition_penalty": 1.1}},
        {"extra_body": {"stop_token_ids": [1]}},
    ],
)
def test_what_is_not_drawn_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Any
) -> None:
    use_pair(tmp_path, monkeypatch, lambda prompt: "Yes.")
    monkeypatch.setattr(ahead, "draw_replies", lambda *_, **__: pytest.fail("drawn"))
    assert ask(api(defense="target_only"), ASKED, batch=True, **config).completion == "Yes."


def test_a_pair_of_its_own_is_named_by_arguments() -> None:
    found = api("custom", target="a/b", draft="c/d", dtype="float32").pair_arguments
    assert found == PairArguments(None, "a/b", "c/d", engine_options=(("dtype", "float32"),))


def test_the_configuration_is_supported() -> None:
    config = GenerateConfig(
        max_tokens=9, temperature=0.5, top_p=0.9, top_k=4, seed=3, stop_seqs=["x"]
    )
    expected = SamplingParams(
        max_new_tokens=9, temperature=0.5, top_p=0.9, top_k=4, seed=3, stop=("x",)
    )
    assert to_sampling_params(config) == expected
    schema = ResponseSchema(name="n", json_schema=JSONSchema(type="integer"))
    form = to_sampling_params(GenerateConfig(response_schema=schema)).structured_outputs
    assert form == StructuredOutputs(json_schema={"type": "integer"})
    for name, refusal in (("json_schema", True), ("json_schema_only", False)):
        suite = build_task(SUITES[name], source="harmful_plain_words", control="ordinary")
        assert to_sampling_params(suite.config).structured_outputs == StructuredOutputs(
            json_schema=STEPS, refusal=refusal
        )
    shifts = {"presence_penalty": 0.5, "frequency_penalty": -0.5, "logit_bias": {7: 2.0}}
    assert to_sampling_params(GenerateConfig(**shifts)) == SamplingParams(**shifts)
    others = {"min_p": 0.1, "repetition_penalty": 1.2, "stop_token_ids": (3,)}
    assert to_sampling_params(GenerateConfig(extra_body=others)) == SamplingParams(**others)
    ignored = GenerateConfig(max_connections=1, max_retries=0, system_message="s")
    assert to_sampling_params(ignored) == SamplingParams()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"extra_body": {"temperature": 1.0}}, "does not support temperature"),
        ({"extra_body": {"min_p": 2.0}}, "min_p: must be at most 1"),
        ({"frequency_penalty": 3.0}, "frequency_penalty: must be at most 2"),
        ({"logprobs": True, "num_choices": 2}, "does not support logprobs, num_choices"),
        ({"temperature": -1.0}, "temperature: must be at least"),
        ({"max_tokens": 0}, "max_new_tokens"),
    ],
)
def test_settings_that_are_not_supported_are_refused(config: Any, message: str) -> None:
    with pytest.raises(SafeDraftError, match=message):
        to_sampling_params(GenerateConfig(**config))


def test_tools_and_pictures_are_refused() -> None:
    tool = ToolInfo(name="t", description="d")
    with pytest.raises(SafeDraftError, match="calls no tools"):
        asyncio.run(api().generate([ASKED], [tool], "auto", GenerateConfig()))
    with pytest.raises(SafeDraftError, match="more than text"):
        ask(api(), ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AA==")]))


def test_a_broken_model_is_an_error_and_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_pair(tmp_path, monkeypatch, lambda prompt: "Yes.")
    monkeypatch.setattr(
        ScriptedSession, "forward", lambda *_: torch.full((1, 258), torch.nan), raising=True
    )
    with pytest.raises(BrokenModelError, match="NaN"):
        ask(api(), ASKED)


def test_inspect_finds_it_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_pair(tmp_path, monkeypatch, lambda prompt: "On the wind.")
    model = get_model("safedraft/qwen2.5-coder", memoize=False, defense="target_only")
    output = asyncio.run(model.generate("How do kites fly?", config=GenerateConfig(max_tokens=30)))
    assert output.completion == "On the wind."
    assert str(model) == "safedraft/qwen2.5-coder"


def test_samples_are_decoded_together_where_the_engine_does(
    tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba")
    from safedraft.engines.cpu.engine import CPUEngine

    models = {"target": str(tiny_pair[0]), "draft": str(tiny_pair[1]), "no_adapter": True}
    model = api("custom", engine="cpu", **models)
    passes: list[int] = []
    forward = CPUEngine.forward

    def counting(self: Any, items: Any) -> Any:
        passes.append(len(items))
        return forward(self, items)

    monkeypatch.setattr(CPUEngine, "forward", counting)
    questions = [ChatMessageUser(content=f"question {n}") for n in range(4)]

    async def ask_all(**config: Any) -> list[str]:
        settings = GenerateConfig(max_tokens=20, **config)
        asked = (model.generate([question], [], "auto", settings) for question in questions)
        return [output.completion for output in await asyncio.gather(*asked)]

    together = asyncio.run(ask_all(batch=True))
    assert max(passes) > 1
    passes.clear()
    assert asyncio.run(ask_all()) == together
    assert max(passes) == 1  # speed is measured on these
