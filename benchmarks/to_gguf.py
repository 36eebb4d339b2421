"""Write a Qwen2 model's folder of safetensors as GGUF files, one of each type, with llama.cpp.

Runs in ``.venv-llama`` (``make llama``): ``python benchmarks/to_gguf.py FOLDER OUTPUT Q4_K_M Q8_0``
writes ``OUTPUT/Q4_K_M.gguf`` and ``OUTPUT/Q8_0.gguf``. The weights go through a file of bfloat16,
which is removed at the end.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
from gguf.utility import LocalTensor, SafetensorsLocal

ARCHITECTURE = gguf.MODEL_ARCH.QWEN2
STORED = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}
"""How numpy holds the types of safetensors that are read; it has no bfloat16 of its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of config.json, safetensors and tokenizer.json")
    parser.add_argument("output", type=Path)
    parser.add_argument("types", nargs="+", help="as llama.cpp names them: Q4_K_M, Q8_0")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    plain = given.output / "plain.gguf"
    write(given.folder, plain)
    for name in given.types:
        quantize(plain, given.output / f"{name}.gguf", name)
    plain.unlink()


def write(folder: Path, file: Path) -> None:
    """Write a model with its tokenizer and chat template, in the types that its weights have."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "qwen2":
        raise SystemExit(
            f"{folder}: the model is {config['model_type']}, and only qwen2 is written"
        )
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[ARCHITECTURE])
    add_sizes(writer, config)
    add_vocabulary(writer, folder, config["vocab_size"])
    names = gguf.get_tensor_name_map(ARCHITECTURE, config["num_hidden_layers"])
    for name, tensor in tensors(folder):
        add_tensor(writer, names.get_name(name, try_suffixes=(".weight", ".bias")), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_sizes(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_name(config.get("_model_name_or_path") or "qwen2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or config  # older files have it at the top
    writer.add_rope_freq_base(rope["rope_theta"])


def add_vocabulary(writer: gguf.GGUFWriter, folder: Path, size: int) -> None:
    """Add every id's text and kind, the merges, the special tokens and the chat template."""
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    texts = {id: text for text, id in stored["model"]["vocab"].items()}
    kinds = dict.fromkeys(texts, gguf.TokenType.NORMAL)
    for added in stored["added_tokens"]:
        texts[added["id"]] = added["content"]
        control = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        kinds[added["id"]] = control
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([texts.get(id, f"[PAD{id}]") for id in range(size)])
    writer.add_token_types([kinds.get(id, gguf.TokenType.UNUSED) for id in range(size)])
    writer.add_add_bos_token(False)
    gguf.SpecialVocab(folder, load_merges=True, n_vocab=size).add_to_gguf(writer, quiet=True)


def tensors(folder: Path) -> Iterator[tuple[str, LocalTensor]]:
    for file in sorted(folder.glob("*.safetensors")):
        yield from SafetensorsLocal(file).tensors.items()


def add_tensor(writer: gguf.GGUFWriter, name: str, tensor: LocalTensor) -> None:
    """Add a tensor as it is stored; llama.cpp takes norms and biases in float32 alone."""
    values = tensor.mmap_bytes().view(STORED[tensor.dtype]).reshape(tensor.shape)
    bfloat16 = tensor.dtype == "BF16"
    if len(tensor.shape) == 1:
        shifted = (values.astype(np.uint32) << 16).view(np.float32)
        writer.add_tensor(name, shifted if bfloat16 else values.astype(np.float32))
    elif bfloat16:
        raw = gguf.GGMLQuantizationType.BF16
        writer.add_tensor(name, values.view(np.uint8), raw_dtype=raw)
    else:
        writer.add_tensor(name, values)


def quantize(source: Path, file: Path, name: str) -> None:
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
    failed = llama_cpp.llama_model_quantize(
        str(source).encode(), str(file).encode(), llama_cpp.ctypes.byref(parameters)
    )
    if failed:
        raise SystemExit(f"llama.cpp could not write {file}")


if __name__ == "__main__":
    main()
