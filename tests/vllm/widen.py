"""The tiny models of the conformance cases with heads as wide as vLLM's kernels want them.

A head of 12 becomes one of 32 whose further numbers are all zero: no score and no value changes.
Rotary positions turn the first 12 as before; the queries make up for the other scale.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WIDE = 32


def widen(source: Path, folder: Path) -> Path:
    """Write the model of ``source`` to ``folder`` with wider heads."""
    config = json.loads((source / "config.json").read_text())
    narrow = config["head_dim"]
    weights = load_file(source / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            scale = math.sqrt(WIDE / narrow) if "q_proj" in name else 1.0
            heads = weight.unflatten(0, (-1, narrow)) * scale
            filled = torch.zeros(heads.shape[0], WIDE, heads.shape[2], dtype=heads.dtype)
            filled[:, :narrow] = heads
            weights[name] = filled.flatten(0, 1)
        elif name.endswith("o_proj.weight"):
            heads = weight.unflatten(1, (-1, narrow))
            filled = torch.zeros(*heads.shape[:2], WIDE, dtype=heads.dtype)
            filled[..., :narrow] = heads
            weights[name] = filled.flatten(1)
    config["head_dim"] = WIDE
    config["rope_parameters"]["partial_rotary_factor"] = narrow / WIDE
    folder.mkdir(parents=True)
    save_file(
        {name: weight.contiguous() for name, weight in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text((source / "generation_config.json").read_text())
    return folder
