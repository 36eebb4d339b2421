"""The language model inside of a model for images is found, loaded alone, and is the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_model
from helpers.architectures import (
    PROMPT,
    SMALL,
    load_twice,
    own_tokens,
    save_tiny,
    ssd_tokens,
    tiny_config,
)
from transformers import AutoModelForImageTextToText

from safedraft.core.errors import SafeDraftError
from safedraft.models.compatibility import check_compatibility
from safedraft.models.description import read_description
from safedraft.models.weights import load_model

TEXT = {name: value for name, value in SMALL.items() if "expert" not in name} | {"pad_token_id": 0}
VISION = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 16, "patch_size": 8, "projection_dim": 32,
}  # fmt: skip
ALTERNATING = {"layer_types": ["sliding_attention", "full_attention"]}

WRAPPED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "aya_vision": ("Cohere2ForCausalLM", {**ALTERNATING, "logit_scale": 1.0}, {}),
    "cohere2_vision": ("Cohere2ForCausalLM", {**ALTERNATING, "logit_scale": 1.0}, {}),
    "gemma3": ("Gemma3ForCausalLM", ALTERNATING, {}),
    "got_ocr2": ("Qwen2ForCausalLM", {}, {}),
    "idefics3": ("LlamaForCausalLM", {"sliding_window": None}, {}),
    "internvl": ("Qwen2ForCausalLM", {}, {}),
    "llama4": ("Llama4ForCausalLM", {"attention_chunk_size": 16, "intermediate_size_mlp": 64}, {}),
    "llava": ("LlamaForCausalLM", {"sliding_window": None}, {}),
    "llava_next": ("LlamaForCausalLM", {"sliding_window": None}, {}),
    "mistral3": ("MistralForCausalLM", {}, {}),
    "mistral3, tied": ("MistralForCausalLM", {}, {"tie_word_embeddings": True}),
    "smolvlm": ("LlamaForCausalLM", {"sliding_window": None}, {}),
}
"""Class of the language model inside, settings of its configuration, settings of the whole's."""


def save_wrapped(folder: Path, name: str) -> None:
    from transformers import AutoConfig

    _, settings, outer = WRAPPED[name]
    kind = name.partition(",")[0]
    parts = AutoConfig.for_model(kind)
    text = {**TEXT, **settings, "model_type": parts.get_text_config().model_type}
    vision = {**VISION, "model_type": parts.vision_config.model_type}
    outer = {"tie_word_embeddings": False, **outer}
    config = AutoConfig.for_model(kind, text_config=text, vision_config=vision, **outer)
    save_tiny(folder, config, AutoModelForImageTextToText)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRAPPED)
def test_the_language_model_inside_continues_like_the_whole(name: str, tmp_path: Path) -> None:
    save_wrapped(tmp_path, name)
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).eval()
    pair = load_twice(tmp_path)
    inside = pair.target.model
    assert type(inside).__name__ == WRAPPED[name][0]
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        expected, found = (model(input_ids=ids).logits for model in (whole, inside))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    tokens = own_tokens(tmp_path, AutoModelForImageTextToText)
    assert tokens == ssd_tokens(pair, 1) == ssd_tokens(pair, 4)


def test_a_wrapped_model_is_loaded_without_what_sees(tmp_path: Path) -> None:
    save_wrapped(tmp_path, "mistral3")
    description = read_description(tmp_path, "big")
    assert check_compatibility(description, description).compatible
    model = load_model(tmp_path, description, "auto", torch.device("cpu"))
    assert type(model).__name__ == "MistralForCausalLM"
    assert not any("vision" in name for name, _ in model.named_parameters())


def set_in_config(folder: Path, **settings: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


@pytest.mark.parametrize(
    ("tied", "weight"), [(False, "lm_head.weight"), (True, "model.embed_tokens.weight")]
)
@pytest.mark.parametrize("rows", [250, 280])
def test_a_vocabulary_that_is_not_the_stored_one_names_the_weight(
    tmp_path: Path, tied: bool, weight: str, rows: int
) -> None:
    save_model(tmp_path, tie_word_embeddings=tied)
    set_in_config(tmp_path, vocab_size=rows)
    words = rf"big: {weight} is \[264, 32\] in .*, and config.json describes \[{rows}, 32\]"
    with pytest.raises(SafeDraftError, match=words):
        load_model(tmp_path, read_description(tmp_path, "big"), "auto", torch.device("cpu"))


@pytest.mark.parametrize(
    ("kind", "stored", "words"),
    [
        ("llama", "LlamaForSequenceClassification", "is a classifier here"),
        (
            "qwen2_vl",
            "Qwen2VLForConditionalGeneration",
            r"wraps a language model \(qwen2_vl_text\)",
        ),
        ("moshi", "MoshiForConditionalGeneration", "which needs more than the tokens of a text"),
        ("cpmant", "CpmAntForCausalLM", "lacks the interface of a causal language model"),
    ],
)
def test_the_checks_and_loading_refuse_alike(
    tmp_path: Path, kind: str, stored: str, words: str
) -> None:
    tiny_config(kind).save_pretrained(tmp_path)
    set_in_config(tmp_path, architectures=[stored])
    description = read_description(tmp_path, "big")
    failures = [
        check.detail
        for check in check_compatibility(description, description).checks
        if check.status == "failure"
    ]
    assert len(failures) == 2
    assert re.search(words, failures[0])
    with pytest.raises(SafeDraftError, match=words) as caught:
        load_model(tmp_path, description, "auto", torch.device("cpu"))
    assert str(caught.value) == failures[0]
