"""The engine: cached and rewound equals computed afresh; what cannot be rewound is refused."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from helpers.trees import TREE, path_to
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    GraniteMoeHybridConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Olmo2Config,
    OPTConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    T5Config,
)

from safedraft.core.config import SamplingParams, SSDConfig
from safedraft.core.decode import decode
from safedraft.core.errors import BrokenModelError, SafeDraftError
from safedraft.core.reference import reference_decode
from safedraft.core.request import Request
from safedraft.engines.base import Capability
from safedraft.engines.transformers import session as engine
from safedraft.engines.transformers.engine import TransformersEngine
from safedraft.engines.transformers.session import TransformersSession
from safedraft.kernels.attention import use_stacked_attention
from safedraft.models.rewindable import model_class, why_no_trees, why_not_rewindable
from safedraft.rules.ssd import SSD

SMALL: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "pad_token_id": None,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "qwen3": Qwen3Config(**SMALL),
    "sliding window": MistralConfig(**SMALL, sliding_window=9),
    "alternating window": Gemma2Config(**SMALL, sliding_window=9, query_pre_attn_scalar=8),
    "gpt2": GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3),
    "gpt-neox": GPTNeoXConfig(**{**SMALL, "num_key_value_heads": None}),
    "opt": OPTConfig(
        vocab_size=96, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=512, word_embed_proj_dim=32, init_std=0.3,
    ),
    "hybrid of attention alone": GraniteMoeHybridConfig(
        **{**SMALL, "layer_types": ["full_attention"] * 2}, num_local_experts=0,
        shared_intermediate_size=64, mamba_n_heads=4, mamba_d_head=16,
        position_embedding_type="rope",
    ),
}  # fmt: skip


FULL_ATTENTION = {
    **{name: CONFIGS[name] for name in ("llama", "qwen3", "gpt2", "gpt-neox", "opt")},
    "qwen2": Qwen2Config(**SMALL),
    "gemma": GemmaConfig(**SMALL),
    "gemma3 without windows": Gemma3TextConfig(**SMALL, layer_types=["full_attention"] * 2),
    "granite": GraniteConfig(**SMALL),
    "olmo2": Olmo2Config(**SMALL),
    "hybrid of attention alone": CONFIGS["hybrid of attention alone"],
}
HEADS = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def model_of(config: PreTrainedConfig, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_cached_and_rewound_equals_computed_afresh(config: PreTrainedConfig) -> None:
    model = model_of(config)
    session = TransformersSession(model, "model", 96)
    generator = torch.Generator().manual_seed(1)
    ids: list[int] = []
    for count, back in [(7, 0), (4, 3), (1, 0), (5, 2), (1, 1), (12, 4), (1, 0), (1, 0), (4, 4)]:
        new = torch.randint(96, (count,), generator=generator).tolist()
        logits = session.forward(new, keep=min(count, 5))
        ids += new
        with torch.inference_mode():
            afresh = model(torch.tensor([ids])).logits[0, -len(logits) :]
        torch.testing.assert_close(logits, afresh.float(), rtol=1e-4, atol=1e-4)
        session.rewind(back)
        ids = ids[: len(ids) - back]
        assert session.length == len(ids)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_hidden_states_are_what_the_output_layer_is_given(config: PreTrainedConfig) -> None:
    model = model_of(config)
    session = TransformersSession(model, "model", 96)
    for ids, keep in (([1, 2, 3, 4, 5], 3), ([6], 1), ([7, 8], 1)):
        logits = session.forward(ids, keep)
        assert session.hidden.dtype == torch.float32
        assert session.hidden.shape == (keep, 32)
        with torch.inference_mode():
            again = model.get_output_embeddings()(session.hidden.double())
        if limit := getattr(config, "final_logit_softcapping", None):
            again = torch.tanh(again / limit) * limit
        scale = getattr(config, "logits_scaling", 1.0)
        torch.testing.assert_close((again / scale).float(), logits, rtol=1e-4, atol=1e-4)


def test_a_model_without_an_output_layer_shows_no_hidden_state(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of(CONFIGS["llama"])
    monkeypatch.setattr(type(model), "get_output_embeddings", lambda _: None)
    session = TransformersSession(model, "model", 96)
    session.forward([1, 2], 1)
    with pytest.raises(BrokenModelError, match="does not show its last hidden state"):
        _ = session.hidden


def test_long_prompts_go_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(CONFIGS["llama"])
    ids = torch.randint(96, (50,)).tolist()
    whole = TransformersSession(model, "model", 96).forward(ids, 4)
    monkeypatch.setattr(engine, "PREFILL_CHUNK", 8)
    torch.testing.assert_close(TransformersSession(model, "model", 96).forward(ids, 4), whole)


@pytest.mark.parametrize("attention", ["sdpa", "stacked", "eager"])
@pytest.mark.parametrize("name", FULL_ATTENTION)
def test_nodes_of_a_tree_are_computed_as_their_own_texts(name: str, attention: str) -> None:
    model = model_of(FULL_ATTENTION[name]).float()
    if attention == "stacked":
        use_stacked_attention(model)
    else:
        model.set_attn_implementation(attention)
    assert why_no_trees(model) is None
    ids, nodes = [5, 17, 3, 80, 9], [11, 12, 13, 14, 15, 16, 18]

    def afresh(tokens: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            return model(torch.tensor([tokens])).logits[0, -1]

    for start in (0, 2):  # the nodes in one pass after the text, and in two
        session = TransformersSession(model, "model", 96)
        head = [] if start else ids
        if start:
            session.forward(ids, 1)
            session.forward(nodes[:start], 1, TREE[:start])
        logits = session.forward(
            [*head, *nodes[start:]], len(nodes) - start, TREE[start : len(nodes)]
        )
        for node, found in enumerate(logits, start):
            text = [*ids, *(nodes[at] for at in path_to(node))]
            torch.testing.assert_close(found, afresh(text), rtol=1e-5, atol=1e-5)
        path = path_to(6 if start else 5)
        session.keep(path)
        text = [*ids, *(nodes[at] for at in path), 42]
        assert session.length == len(text) - 1
        torch.testing.assert_close(session.forward([42], 1)[0], afresh(text), rtol=1e-5, atol=1e-5)


def test_a_chain_of_nodes_is_read_by_every_model() -> None:
    for config in CONFIGS.values():
        model = model_of(config)
        session, plain = (TransformersSession(model, "model", 96) for _ in range(2))
        ids = list(range(20))
        session.forward(ids, 1)
        found = session.forward([31, 32, 33], 3, [-1, 0, 1])
        torch.testing.assert_close(found, plain.forward([*ids, 31, 32, 33], 3))
        session.keep([0])
        plain.rewind(2)
        torch.testing.assert_close(session.forward([34], 1), plain.forward([34], 1))


@pytest.mark.parametrize(
    ("config", "attention", "reason"),
    [
        (CONFIGS["sliding window"], "sdpa", "mistral has layers that do not keep every position"),
        (CONFIGS["alternating window"], "sdpa", "gemma2 has layers that do not keep every"),
        (FalconConfig(**HEADS, alibi=True), "sdpa", "falcon derives positions from its mask"),
        (BloomConfig(**HEADS), "sdpa", "bloom is given no positions"),
        (CONFIGS["llama"], "flex_attention", "flex_attention takes no mask of a tree: use sdpa"),
    ],
)
def test_models_that_read_no_tree(config: PreTrainedConfig, attention: str, reason: str) -> None:
    model = model_of(deepcopy(config))
    model.config._attn_implementation = attention
    engine = TransformersEngine(model, model_of(CONFIGS["llama"]), 96)
    with pytest.raises(SafeDraftError, match=reason):
        engine.capabilities.require(Capability.TREES, "draft_tree_threshold")
    session = engine.session("target")
    with pytest.raises(SafeDraftError, match=reason):
        session.forward([1, 2, 3], 2, [-1, -1])


def test_padding_rows_are_masked() -> None:
    session = TransformersSession(model_of(CONFIGS["llama"]), "model", vocabulary=90)
    assert session.forward([1, 2, 3], 2).shape == (2, 90)


@pytest.mark.parametrize(
    ("names", "threshold"),
    [(("llama", "qwen3"), 1.0), (("llama", "qwen3"), 0.01), (("sliding window", "gpt2"), 1.0)],
)
def test_decoding_equals_the_reference(names: tuple[str, str], threshold: float) -> None:
    models = [model_of(CONFIGS[name], seed) for seed, name in enumerate(names)]

    def afresh(model: Any) -> Any:
        return lambda ids: model(torch.tensor([ids])).logits[0, -1]

    prompts = [1, 2, 3], [4, 5]
    config = SSDConfig(draft_tokens=4, draft_tree_threshold=threshold)
    sampling = SamplingParams(max_new_tokens=60)
    request = Request(*prompts, SSD(), config, sampling)
    steps = decode(TransformersEngine(*models, 96), [request])
    fast = [(step.scheme, step.alpha, step.token, step.matched) for _, step in steps]
    with torch.inference_mode():
        slow = list(reference_decode(*map(afresh, models), *prompts, config, sampling))
    assert fast == slow


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2), "mamba .*rewound"),
        (AutoConfig.for_model("qwen3_next", num_hidden_layers=4), "qwen3_next .*LinearAttention"),
        (T5Config(vocab_size=96), "t5 is an encoder-decoder"),
    ],
    ids=["mamba", "qwen3-next", "t5"],
)
def test_what_cannot_be_rewound_is_refused_by_name(config: PreTrainedConfig, reason: str) -> None:
    import re

    assert re.match(reason, why_not_rewindable(config) or "")


@pytest.mark.parametrize(("other", "fits"), [("full_attention", True), ("mamba", False)])
def test_hybrids_are_judged_by_their_layers(other: str, fits: bool) -> None:
    config = GraniteMoeHybridConfig(
        **{**SMALL, "layer_types": ["full_attention", other]}, mamba_n_heads=4, mamba_d_head=16
    )
    assert (why_not_rewindable(config, model_class(config)) is None) is fits


def test_a_session_refuses_a_recurrent_model() -> None:
    config = MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=2, state_size=4)
    with pytest.raises(SafeDraftError, match="big: mamba has"):
        TransformersSession(AutoModelForCausalLM.from_config(config), "big", 96)
