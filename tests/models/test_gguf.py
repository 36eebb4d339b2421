"""GGUF files as models: the numbers of the original, the right end tokens, and clear refusals."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from helpers.architectures import PROMPT, SMALL
from helpers.gguf import BYTES, TEMPLATE, add_value, make, tokenizer_of, write_gguf
from test_load import save_adapter
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import safedraft
from safedraft.core.errors import SafeDraftError
from safedraft.engines.vllm.setup import plan
from safedraft.models import doctor
from safedraft.models.convert import convert_gguf
from safedraft.models.description import read_description
from safedraft.models.fetch import fetch
from safedraft.models.fingerprint import FACTS, AdapterFacts, fingerprint
from safedraft.models.gguf import QUANTIZATIONS, read_header, read_tensor
from safedraft.models.gguf_tokenizer import WORDS
from safedraft.models.registry import choose_pair
from safedraft.models.weights import load_model

CPU = torch.device("cpu")

LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.1],
    "long_factor": [2.0, 3.0], "original_max_position_embeddings": 256,
    "partial_rotary_factor": 0.5,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
SCALES = {
    "embedding_multiplier": 2.0, "logits_scaling": 3.0, "residual_multiplier": 0.5,
    "attention_multiplier": 0.2,
}  # fmt: skip
GEMMA = {"tie_word_embeddings": True, "head_dim": 16}
LARGEST = {**GEMMA, "query_pre_attn_scalar": 8}  # the hidden size by the number of heads
LOCAL = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
}

FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "llama", {}),
    "llama, tied": ("llama", "llama", {"tie_word_embeddings": True}),
    "llama 3": ("llama", "llama", {"rope_parameters": LLAMA3, "max_position_embeddings": 16384}),
    "mistral": ("mistral", "llama", {"sliding_window": None}),
    "qwen 2": ("qwen2", "qwen2", {}),
    "qwen 2, yarn": ("qwen2", "qwen2", {"rope_parameters": YARN}),
    "qwen 3": ("qwen3", "qwen3", {"head_dim": 16}),
    "granite": ("granite", "granite", SCALES),
    "olmo 2": ("olmo2", "olmo2", {}),
    "phi 3": ("phi3", "phi3", {}),
    "phi 4": ("phi3", "phi3", {"sliding_window": None}),
    "phi 4 mini": (
        "phi3", "phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 256},
    ),
    "gemma": ("gemma", "gemma", GEMMA),
    "gemma 2": ("gemma2", "gemma2", {**GEMMA, "query_pre_attn_scalar": 16}),
    "gemma 2, largest": ("gemma2", "gemma2", {**LARGEST, "num_hidden_layers": 46}),
    "gemma 3": (
        "gemma3_text", "gemma3", {**GEMMA, "query_pre_attn_scalar": 16, "num_hidden_layers": 7},
    ),
    "gemma 3, largest": (
        "gemma3_text", "gemma3", {**LARGEST, "num_hidden_layers": 62, "rope_parameters": LOCAL},
    ),
}  # fmt: skip


def load(file: Path, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    return load_model(file, read_description(file, "tiny"), dtype, CPU)


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([PROMPT])).logits[0]
    return found.float()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tiny.gguf"


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=[pytest.mark.slow] if "largest" in name else [])
        for name in FAMILIES
    ],
)
def test_every_family_has_the_logits_of_the_original(family: str, file: Path) -> None:
    kind, architecture, settings = FAMILIES[family]
    model = make(kind, **settings)
    write_gguf(file, model, architecture)
    loaded = load(file)
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(logits(loaded), logits(model))


def test_the_factors_of_llama_3_change_the_positions(file: Path) -> None:
    write_gguf(file, make(rope_parameters=LLAMA3, max_position_embeddings=16384), "llama")
    assert load(file).config.rope_parameters == LLAMA3


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "Q6_K"])
def test_a_quantized_model_differs_by_its_rounding(kind: str, file: Path) -> None:
    width = 256 if kind.endswith("K") else 32
    settings = {"hidden_size": width, "intermediate_size": 256, "head_dim": width // 4}
    model = make(**settings, initializer_range=0.02)
    write_gguf(file, model, "llama", kind)
    loaded = load(file, torch.float32)
    step = {"F16": 2**-11, "BF16": 2**-8, "Q8": 1 / 127, "Q6": 1 / 31, "Q5": 1 / 15, "Q4": 1 / 7}
    largest = max(float(weight.detach().abs().max()) for weight in model.parameters())
    for name, weight in loaded.named_parameters():
        error = float((weight - model.get_parameter(name)).detach().abs().max())
        assert error <= step[kind.partition("_")[0]] * largest, name
        assert (error == 0) == ("norm" in name)
    assert load(file).dtype == (torch.float16 if kind == "F16" else torch.bfloat16)


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_k_quantizations_are_unpacked_as_transformers_does(kind: str, file: Path) -> None:
    from transformers.integrations.gguf.dequant import dequantize

    own = gguf.GGMLQuantizationType[kind]
    blocks = np.random.default_rng(0).integers(
        0, 256, (3, 2 * gguf.GGML_QUANT_SIZES[own][1]), np.uint8
    )
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tensor("blk.0.ffn_up.weight", blocks, raw_dtype=own)
    for write in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{write}_to_file")()
    writer.close()
    header = read_header(file)
    (tensor,) = header.tensors.values()
    found = torch.from_numpy(read_tensor(header, tensor))
    assert found.shape == (3, 512)
    torch.testing.assert_close(
        found, dequantize(torch.from_numpy(blocks), own).reshape(3, 512), equal_nan=True
    )


def test_the_tokenizer_template_and_ends_come_from_the_file(file: Path) -> None:
    (file.parent / "tokenizer.json").write_text("{}")  # of another model
    write_gguf(file, make("qwen2"), "qwen2")
    description = read_description(file, "tiny")
    tokenizer = description.tokenizer
    assert tokenizer is not None
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.convert_ids_to_tokens(sorted(description.end_tokens)) == [
        "<|endoftext|>", "<|im_end|>",
    ]  # fmt: skip
    assert len(tokenizer) == len(description.tokens) == len(BYTES) + 4
    assert description.rows == SMALL["vocab_size"]
    text = "the end<|im_end|>\n"
    assert tokenizer.tokenize(text) == ["t", "he", "Ġ", "e", "n", "d", "<|im_end|>", "Ċ"]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("e\u0301") == tokenizer.encode("é")


def test_llama_3_s_end_of_a_turn_ends_replies(file: Path) -> None:
    tokens = [*BYTES, "he", "hel", "lo", "hello", "<|eot_id|>", "<|end_of_text|>"]
    added = {
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 2) + [3, 3],
        "tokenizer.ggml.merges": ["h e", "he l", "l o"],
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
        "tokenizer.ggml.padding_token_id": None,
    }
    write_gguf(file, make(vocab_size=len(tokens)), "llama", **added)
    description = read_description(file, "tiny")
    assert description.end_tokens == {len(tokens) - 2, len(tokens) - 1}
    assert description.tokenizer is not None
    assert description.tokenizer.tokenize("hello") == ["hello"]  # no merge leads there
    assert description.tokenizer.tokenize("hello!") == ["hello", "!"]


def test_digits_stand_alone_in_smollm(file: Path) -> None:
    tokens = [*BYTES, "12", "Ġ1", "<|im_end|>"]
    added = {
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - 1) + [3],
        "tokenizer.ggml.merges": ["1 2", "Ġ 1"],
        "tokenizer.ggml.eos_token_id": len(tokens) - 1,
        "tokenizer.ggml.padding_token_id": None,
    }
    write_gguf(file, make(vocab_size=len(tokens)), "llama", **added)
    tokenizer = read_description(file, "tiny").tokenizer
    assert tokenizer is not None
    assert tokenizer.tokenize("in 12") == ["i", "n", "Ġ", "1", "2"]


def test_words_are_split_as_transformers_does() -> None:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    assert {name: GGUF_PRE_TOKENIZER_SPLITS[name] for name in WORDS} == WORDS


def sentencepiece(**added: Any) -> dict[str, Any]:
    """A SentencePiece tokenizer of a few words."""
    words = ["▁", "a", "b", "▁a", "ab", "▁ab"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{code:02X}>" for code in range(256)), *words]
    kinds = [2, 3, 3] + [6] * 256 + [1] * len(words)
    return {
        **dict.fromkeys(tokenizer_of(300)),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(place) for place in (5, 4, 3, 2, 1, 0)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **added,
    }


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ({}, ["▁ab", "</s>", "▁a"]),
        ({"tokenizer.ggml.add_space_prefix": False}, ["ab", "</s>", "a"]),
    ],
)
def test_sentencepiece_puts_spaces_where_the_file_says(
    added: dict[str, Any], expected: list[str], file: Path
) -> None:
    tokenizer = sentencepiece(**added)
    write_gguf(file, make(vocab_size=len(tokenizer["tokenizer.ggml.tokens"])), "llama", **tokenizer)
    read = read_description(file, "tiny")
    assert read.tokenizer is not None
    assert read.tokenizer.tokenize("ab</s>a") == expected
    assert read.end_tokens == {2}


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "mamba": ("mamba", {}, "the architecture mamba is not read from GGUF files, only gemma"),
    "a part": ("llama", {"split.count": 3}, "one part of a model in several files: join them"),
    "no tokenizer": ("llama", dict.fromkeys(tokenizer_of(300)), "it holds no tokenizer"),
    "unknown words": (
        "llama", {"tokenizer.ggml.pre": "chatglm-bpe"}, r"its tokenizer \(gpt2, chatglm-bpe\) is",
    ),
    "words that are not named": (
        "llama", {"tokenizer.ggml.pre": None}, r"its tokenizer \(gpt2, None\) is not read",
    ),
    "phi 3": ("phi3", sentencepiece(), r"its tokenizer \(llama, None\) is not read from files of"),
    "unknown setting": ("llama", {"llama.expert_count": 8}, "its setting expert_count is not"),
    "missing setting": ("llama", {"llama.block_count": None}, "it lacks the setting block_count"),
    "scaling": ("llama", {"llama.rope.scaling.type": "dynamic"}, r".*positions \(dynamic\) is not"),
    "half a head": ("llama", {"llama.rope.dimension_count": 4}, "it rotates 4 of 8 dimensions"),
    "a merge of nothing": (
        "llama", {"tokenizer.ggml.merges": ["x q"]}, "it cannot be used: .*`xq` out of vocabulary",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_not_read_is_refused_in_one_line(what: str, file: Path) -> None:
    architecture, added, words = REFUSED[what]
    kind = "phi3" if architecture == "phi3" else "llama"
    write_gguf(file, make(kind), architecture, **added)
    with pytest.raises(SafeDraftError, match=f"tiny.gguf: {words}") as caught:
        read_description(file, "tiny")
    assert "\n" not in str(caught.value)


def test_a_quantization_that_is_not_read_is_refused_by_name(file: Path) -> None:
    write_gguf(file, make(), "llama", "Q8_0")
    name = b"blk.0.ffn_up.weight"
    content = bytearray(file.read_bytes())
    at = content.index(name) + len(name) + 4 + 2 * 8
    for number, named in ((23, "IQ4_XS"), (39, "MXFP4"), (250, "type 250")):
        content[at : at + 4] = number.to_bytes(4, "little")
        file.write_bytes(content)
        with pytest.raises(
            SafeDraftError, match=rf"ffn_up.weight is quantized as {named}, which is not .* Q4_K,"
        ):
            read_header(file)
    assert not {23, 39, 250} & QUANTIZATIONS.keys()


@pytest.mark.parametrize("kept", [0, 3, 10, 30, 200, 5000, -1])
def test_a_file_that_ends_early_is_refused(kept: int, file: Path) -> None:
    write_gguf(file, make(), "llama")
    file.write_bytes(file.read_bytes()[:kept])
    words = "not a GGUF file" if 0 <= kept < 4 else "an incomplete or damaged GGUF file: fetch it"
    with pytest.raises(SafeDraftError, match=words):
        read_header(file)


def test_damaged_headers_raise_nothing_but_a_refusal(file: Path) -> None:
    write_gguf(file, make(), "llama")
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(200):
        content = bytearray(whole)
        for at in rng.integers(4, 600, 3):
            content[at] = rng.integers(256)
        file.write_bytes(content)
        with suppress(SafeDraftError):
            read_description(file, "tiny")


def test_other_files_and_versions_are_refused(file: Path) -> None:
    file.touch()
    with pytest.raises(SafeDraftError, match=r"there is no config.json in .*: name .*tiny.gguf"):
        fetch(str(file.parent))
    file.unlink()
    with pytest.raises(SafeDraftError, match="there is no such file"):
        fetch(str(file))
    with pytest.raises(SafeDraftError, match="cannot be read: No such file"):
        read_header(file)
    file.write_bytes(b"PK\3\4 a zip")
    with pytest.raises(SafeDraftError, match="not a GGUF file, although its name says so"):
        read_header(file)
    file.write_bytes(b"GGUF" + (1).to_bytes(4, "little") + bytes(40))
    with pytest.raises(SafeDraftError, match="version 1 of the GGUF format is not read"):
        read_header(file)


def test_without_the_package_it_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safedraft.models.gguf.find_spec", lambda name: None)
    with pytest.raises(SafeDraftError, match="install the package gguf"):
        read_header(file)


def test_weights_without_a_place_and_places_without_weights_are_refused(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(file, make(attention_bias=True), "llama")
    with pytest.raises(SafeDraftError, match=r"no place for 8 of its weights \(blk.0.attn_k.bias"):
        load(file)
    write_gguf(file, make("qwen2"), "qwen2", **{"qwen2.block_count": 3})
    with pytest.raises(SafeDraftError, match=r"lacks 12 weights \(model.layers.2"):
        load(file)
    monkeypatch.setattr("helpers.gguf.rotary_tensors", lambda _: [("rope_freqs.weight", FACTORS)])
    write_gguf(file, make(), "llama")
    with pytest.raises(SafeDraftError, match="rotary frequencies are not those of Llama 3"):
        load(file)


FACTORS = np.float32([1, 2, 3, 4])


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """Paths of a target and a draft."""
    target = make("qwen2")
    write_gguf(tmp_path / "big.gguf", target, "qwen2", "Q8_0")
    with torch.no_grad():
        for weight in target.parameters():
            weight += 0.05 * torch.randn_like(weight)
    write_gguf(tmp_path / "small.gguf", target, "qwen2", "Q4_0")
    return str(tmp_path / "big.gguf"), str(tmp_path / "small.gguf")


def test_a_pair_of_files_decodes(pair: tuple[str, str]) -> None:
    loaded = safedraft.load_pair(*pair, use_adapter=False, engine="transformers")
    assert loaded.vocabulary == len(BYTES) + 4
    sampling = safedraft.SamplingParams(max_new_tokens=12)
    reply = loaded.generate("hi", sampling=sampling)
    alone = loaded.generate("hi", sampling=sampling, rule="target_only")
    lossless = loaded.generate("hi", sampling=sampling, rule="speculative")
    assert reply.to_dict()["statistics"]["tokens"] > 0
    assert lossless.text == alone.text
    assert loaded.target.model.dtype == torch.bfloat16


def test_the_engine_cpu_decodes_files(pair: tuple[str, str]) -> None:
    pytest.importorskip("numba")
    loaded = safedraft.load_pair(*pair, use_adapter=False, engine="cpu", dtype="int8")
    one, other = (loaded.engine.session(which) for which in ("target", "draft"))
    assert one.decoder.packed.linears[0].bits == other.decoder.packed.linears[0].bits == 8
    reply = loaded.generate("hi", max_new_tokens=5)
    assert reply.to_dict()["statistics"]["tokens"] > 0


def test_options_of_loading(pair: tuple[str, str]) -> None:
    loaded = safedraft.load_pair(
        *pair, use_adapter=False, dtype="float32", draft_dtype="int8", device_map="cpu"
    )
    assert loaded.target.model.dtype == torch.float32
    with pytest.raises(SafeDraftError, match="quantization_config is for folders"):
        safedraft.load_pair(*pair, use_adapter=False, quantization_config={"load_in_8bit": True})


def test_the_doctor_and_vllm_say_what_they_do_with_a_file(pair: tuple[str, str]) -> None:
    spec = choose_pair(target=pair[0], draft=pair[1], use_adapter=False)
    report = doctor.examine(spec)
    assert report.compatible
    assert not [check for check in report.checks if check.name == "turn ends"]
    with pytest.raises(SafeDraftError, match="vLLM has a reader of GGUF files of its own"):
        plan(spec)


def test_an_adapter_is_merged_and_its_base_is_another_one(
    pair: tuple[str, str], tmp_path: Path
) -> None:
    lora = tmp_path / "lora"
    folder = tmp_path / "folder"
    convert_gguf(Path(pair[1]), folder)
    save_adapter(lora, folder)
    options: dict[str, Any] = {"target": pair[0], "draft": pair[1], "adapter": lora}
    merged = safedraft.load_pair(**options, engine="transformers").draft.model
    bare = safedraft.load_pair(*pair, use_adapter=False, engine="transformers").draft.model
    changed = [name for name, weight in merged.named_parameters()
               if not weight.equal(bare.get_parameter(name))]  # fmt: skip
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj"}
    facts = AdapterFacts(base=fingerprint(folder), target="", versions={})
    (lora / FACTS).write_text(facts.model_dump_json())
    with pytest.raises(SafeDraftError, match=r"other weights than those in .*small.gguf"):
        safedraft.load_pair(**options)
    with pytest.warns(safedraft.UnguardedWarning, match="was trained on other weights"):
        safedraft.load_pair(**options, other_base=True)
    own = AdapterFacts(base=fingerprint(Path(pair[1])), target="", versions={})
    (lora / FACTS).write_text(own.model_dump_json())
    assert safedraft.load_pair(**options).warnings == ()


def test_a_file_is_converted_to_the_same_model(file: Path, tmp_path: Path) -> None:
    write_gguf(file, make("qwen2"), "qwen2", "Q8_0")
    folder = tmp_path / "folder"
    folder.mkdir()
    convert_gguf(file, folder)
    stored = AutoModelForCausalLM.from_pretrained(folder)
    assert stored.dtype == torch.bfloat16
    torch.testing.assert_close(logits(stored), logits(load(file)))
    tokenizer, own = AutoTokenizer.from_pretrained(folder), read_description(file, "own").tokenizer
    text = "the e\u0301nd<|im_end|>\n"
    assert own is not None
    assert tokenizer.encode(text) == own.encode(text)
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|im_end|>", "<|endoftext|>"]


def test_values_of_every_type_are_read(file: Path) -> None:
    writer = gguf.GGUFWriter(file, "llama")
    values = {"a.text": "é", "a.list": ["x", "y"], "a.flag": True, "a.number": 7, "a.real": 0.5}
    for key, value in values.items():
        add_value(writer, key, value)
    writer.add_int64("a.long", -(2**40))
    writer.add_array("a.numbers", [1, 2, 3])
    for write in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{write}_to_file")()
    writer.close()
    expected = values | {
        "a.long": -(2**40), "a.numbers": [1, 2, 3], "general.architecture": "llama",
    }  # fmt: skip
    assert read_header(file).metadata == expected
