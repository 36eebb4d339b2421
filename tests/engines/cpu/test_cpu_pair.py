"""Pairs on the engine cpu: the loop against the reference, loading, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("numba")

from conftest import save_model, save_pair, save_tokenizer

import safedraft
from safedraft.core.config import SamplingParams, SSDConfig
from safedraft.core.decode import decode
from safedraft.core.errors import BrokenModelError, SafeDraftError
from safedraft.core.reference import reference_decode
from safedraft.core.request import Request
from safedraft.engines.cpu.compiled import why_not_available
from safedraft.rules.ssd import SSD

if why_not_available():
    pytest.skip("the engine cpu does not run here", allow_module_level=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    target, draft = save_pair(tmp_path_factory.mktemp("pair"), initializer_range=0.15)
    return str(target), str(draft)


@pytest.fixture(scope="module")
def pair(folders: tuple[str, str]) -> safedraft.Pair:
    return safedraft.load_pair(*folders, use_adapter=False, engine="cpu")


PROMPTS = ([5, 7, 9], [4, 7, 9, 200])


def logits_of(pair: safedraft.Pair, which: Any) -> Any:
    """The engine's logits after all tokens, computed anew each time."""

    def ask(tokens: Any) -> torch.Tensor:
        from safedraft.core.session import Pass

        (logits,) = pair.engine.forward([Pass(pair.engine.session(which), tokens, 1)])
        return logits[0]

    return ask


@pytest.mark.parametrize(("drafted", "threshold"), [(1, 1.0), (3, 1.0), (9, 1.0), (12, 0.001)])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_loop_equals_the_reference_whatever_runs_beside_it(
    pair: safedraft.Pair, drafted: int, threshold: float, temperature: float
) -> None:
    config = SSDConfig(draft_tokens=drafted, draft_tree_threshold=threshold, bin_size=4)
    sampling = SamplingParams(max_new_tokens=30, temperature=temperature, seed=3)
    models = logits_of(pair, "target"), logits_of(pair, "draft")
    slow = list(reference_decode(*models, *PROMPTS, config, sampling))
    requests = [
        Request(*PROMPTS, SSD(), config, sampling),
        Request([1] * 40, [1] * 40, SSD(), SSDConfig(draft_tokens=2), sampling),
        Request([2, 3], [2, 3], SSD(), SSDConfig(draft_tokens=5), SamplingParams(max_new_tokens=9)),
    ]
    replies: dict[int, list[Any]] = {0: [], 1: [], 2: []}
    for index, step in decode(pair.engine, requests):
        replies[index].append((step.scheme, step.alpha, step.token, step.matched))
    assert replies[0] == slow
    for index, request in enumerate(requests):
        alone = [
            (step.scheme, step.alpha, step.token, step.matched)
            for _, step in decode(pair.engine, [request])
        ]
        assert alone == replies[index]


def test_it_is_the_default_on_processors(
    folders: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    reported: list[str] = []
    loaded = safedraft.load_pair(
        *folders, use_adapter=False, report=lambda *w: reported.append(w[0])
    )
    assert loaded.engine.name == "cpu"
    assert "engine cpu" in reported
    other = safedraft.load_pair(*folders, use_adapter=False, dtype="float32")
    assert other.engine.name == "transformers"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hidden_act": "gelu"}, "the engine cpu has silu and not gelu"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "the engine cpu has no rotary positions of type dynamic",
        ),
    ],
)
def test_what_it_does_not_run_is_decoded_with_transformers(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    for name in ("target", "draft"):
        save_model(tmp_path / name, **settings)
        save_tokenizer(tmp_path / name)
    names = str(tmp_path / "target"), str(tmp_path / "draft")
    reported: list[str] = []
    loaded = safedraft.load_pair(*names, use_adapter=False, report=lambda *w: reported.append(w[0]))
    assert loaded.engine.name == "transformers"
    assert f"engine transformers: {said}" in reported
    with pytest.raises(SafeDraftError, match=f"{said}: use --engine transformers"):
        safedraft.load_pair(*names, use_adapter=False, engine="cpu")


def test_without_numba_transformers_decodes(
    folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "needs Numba: pip install 'safedraft[cpu]'"
    monkeypatch.setattr("safedraft.engines.auto.why_not_available", lambda: reason)
    monkeypatch.setattr("safedraft.engines.cpu.load.why_not_available", lambda: reason)
    reported: list[str] = []
    loaded = safedraft.load_pair(
        *folders, use_adapter=False, report=lambda *w: reported.append(w[0])
    )
    assert loaded.engine.name == "transformers"
    assert f"engine transformers: the engine cpu {reason}" in reported
    with pytest.raises(SafeDraftError, match="the engine cpu needs Numba"):
        safedraft.load_pair(*folders, use_adapter=False, engine="cpu")


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ({}, [8, 8]),
        ({"dtype": "int8"}, [8, 8]),
        ({"dtype": "int4"}, [4, 4]),
        ({"draft_dtype": "int4"}, [8, 4]),
    ],
)
def test_bits_of_a_weight(
    folders: tuple[str, str], options: dict[str, str], bits: list[int]
) -> None:
    loaded = safedraft.load_pair(*folders, use_adapter=False, engine="cpu", **options)
    sessions = (loaded.engine.session(which) for which in ("target", "draft"))
    assert [session.decoder.packed.linears[0].bits for session in sessions] == bits
    assert loaded.generate("hi", max_new_tokens=3).trace


def test_a_dtype_that_it_does_not_have(folders: tuple[str, str]) -> None:
    with pytest.raises(SafeDraftError, match="has int8 and int4 and not bfloat16"):
        safedraft.load_pair(*folders, use_adapter=False, engine="cpu", dtype="bfloat16")


def test_weights_that_are_no_numbers_end_the_request(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    target, draft = save_pair(tmp_path)
    model = LlamaForCausalLM.from_pretrained(target)
    model.model.layers[1].self_attn.o_proj.weight.data[0, 0] = float("nan")
    model.save_pretrained(target)
    loaded = safedraft.load_pair(target, draft, use_adapter=False, engine="cpu")
    with pytest.raises(BrokenModelError, match="gave NaN or infinite logits"):
        loaded.generate("hi", max_new_tokens=5)


def test_packed_weights_are_found_again(
    folders: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = safedraft.load_pair(*folders, use_adapter=False, engine="cpu")
    monkeypatch.setattr("safedraft.models.weights.load_model", None)
    again = safedraft.load_pair(*folders, use_adapter=False, engine="cpu")
    replies = (pair.generate("hi", max_new_tokens=9).text for pair in (first, again))
    assert next(replies) == next(replies)


def test_an_adapter_is_part_of_the_packed_draft(folders: tuple[str, str], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    options = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = get_peft_model(LlamaForCausalLM.from_pretrained(folders[1]), options)
    adapted.save_pretrained(tmp_path / "adapter")
    ids = [5, 6, 7]
    bare = safedraft.load_pair(*folders, use_adapter=False, engine="cpu")
    merged = safedraft.load_pair(*folders, adapter=str(tmp_path / "adapter"), engine="cpu")
    plain, other = (logits_of(loaded, "draft")(ids) for loaded in (bare, merged))
    assert not torch.allclose(plain, other, atol=1e-2)
    assert torch.equal(logits_of(bare, "target")(ids), logits_of(merged, "target")(ids))
