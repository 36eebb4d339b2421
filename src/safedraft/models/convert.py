"""Converts a GGUF file to a folder that loads in a second or two."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from safedraft.core.errors import SafeDraftError

_END_TOKENS = ("<|im_end|>", "<|endoftext|>")
"""Tokens that end a reply if the vocabulary has them; a GGUF file names only one end token."""


def convert_gguf(file: Path, folder: Path) -> None:
    """Write the model of a GGUF file to ``folder``: bfloat16 safetensors, tokenizer, chat template.

    Raises:
        SafeDraftError: a weight is not a finite bfloat16 number.
    """
    with _silence_transformers():
        _convert(file, folder)
    # save_pretrained makes the weights readable by their owner alone, whatever the umask is.
    mode = (folder / "config.json").stat().st_mode
    for saved in folder.iterdir():
        saved.chmod(mode)


def _convert(file: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    source = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    model = AutoModelForCausalLM.from_pretrained(**source, **_plain_weights(), dtype=torch.bfloat16)
    for name, weight in model.named_parameters():
        if weight.dtype != torch.bfloat16 or not weight.isfinite().all():
            raise SafeDraftError(f"{file.name}: {name} is not finite bfloat16 numbers: not used")
    model.generation_config = GenerationConfig(
        eos_token_id=_end_tokens(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _plain_weights() -> dict[str, Any]:
    """Return the arguments that dequantize the weights; older Transformers always does so."""
    import transformers

    config = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": config(dequantize=True)} if config else {}


def _end_tokens(tokenizer: Any) -> list[int]:
    vocabulary = tokenizer.get_vocab()
    ids = [tokenizer.eos_token_id, *(vocabulary.get(token) for token in _END_TOKENS)]
    return [id for id in dict.fromkeys(ids) if id is not None]


@contextmanager
def _silence_transformers() -> Iterator[None]:
    """Hide the library's notices and bars, some of which only a redirected stderr hides."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
