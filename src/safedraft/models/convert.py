"""Converts a GGUF file to a folder that loads in a second or two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safedraft.core.errors import SafeDraftError
from safedraft.models.causal import model_class
from safedraft.models.gguf import read_header
from safedraft.models.gguf_model import read_config, read_weights
from safedraft.models.gguf_tokenizer import read_generation, read_tokenizer
from safedraft.models.quiet import quiet_transformers


def convert_gguf(file: Path, folder: Path) -> None:
    """Write the model of a GGUF file to ``folder``: bfloat16 safetensors, tokenizer, chat template.

    Raises:
        SafeDraftError: the file is not read, or a weight is not a finite bfloat16 number.
    """
    with quiet_transformers():
        _convert(file, folder)
    # save_pretrained makes the weights readable by their owner alone, whatever the umask is.
    mode = (folder / "config.json").stat().st_mode
    for saved in folder.iterdir():
        saved.chmod(mode)


def _convert(file: Path, folder: Path) -> None:
    import torch

    header = read_header(file)
    config = read_config(header)
    config.dtype = torch.bfloat16
    weights = read_weights(header, config, torch.bfloat16)
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise SafeDraftError(f"{file.name}: {name} is not finite bfloat16 numbers: not used")
    kind: Any = model_class(config)
    model = kind.from_pretrained(None, config=config, state_dict=weights, dtype=torch.bfloat16)
    model.generation_config = read_generation(header)
    model.save_pretrained(folder)
    read_tokenizer(header).save_pretrained(folder)
