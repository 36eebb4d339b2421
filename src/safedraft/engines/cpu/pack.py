"""Weights as the program reads them: 8-bit panels, written once and mapped into memory.

A linear layer ``[out, in]`` becomes panels of ``COLUMNS`` outputs, in which ``INPUTS`` inputs of
each output lie beside each other: ``[panels, in / INPUTS, COLUMNS, INPUTS]`` in uint8. Each output
has one scale, and its weights are ``(number - 128) * scale``. With 4-bit weights, every ``GROUP``
inputs of an output have a scale of their own, and lie in the panel as ``kernels.panels`` says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from safedraft.core.errors import SafeDraftError
from safedraft.engines.cpu.architecture import Architecture, read_architecture
from safedraft.kernels.int8 import quantize_int8
from safedraft.kernels.layout import COLUMNS, GROUP, INPUTS, LANES, round_up
from safedraft.models.progress import ReportProgress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_AT_ONCE = 2  # panels that are quantized together: as many as a processor's cache holds

FORMAT = 2
"""Number of the layout; packed files of another one are written anew."""


class Linear(NamedTuple):
    """A packed linear layer."""

    weights: Tensor
    """``[panels, in / INPUTS, COLUMNS, INPUTS]`` in uint8, or panels of 4-bit weights."""
    scales: Tensor
    """``[panels * COLUMNS]`` in float32."""
    biases: Tensor
    """The same."""
    inputs: int
    outputs: int
    bits: int = 8


class Packed(NamedTuple):
    """A packed model."""

    architecture: Architecture
    linears: list[Linear]
    """Four for each layer (queries, keys and values; output; gate and up; down), then the
    embeddings and the output layer, which may be one."""
    norms: dict[str, Tensor]
    """In float32, by the names of ``LAYER`` with the layer's number, and ``final``."""
    frequencies: Tensor
    """Rotations by position, ``[rotated / 2]`` in float32."""
    rotation_scale: float
    """Factor of cosines and sines."""


def pack_linear(
    weight: Tensor, bias: Tensor | None = None, scale: float = 1.0, bits: int = 8
) -> Linear:
    """Pack one layer.

    Args:
        weight: ``[out, in]``, of a float type.
        bias: ``[out]``.
        scale: factor of the layer's outputs.
        bits: number of bits of a weight, 8 or 4.
    """
    outputs, inputs = weight.shape
    panels = round_up(outputs, COLUMNS) // COLUMNS
    if bits == 8:
        numbers, scales = quantize_int8(weight.detach())
        weights = _panels(_pad(numbers, (panels * COLUMNS, round_up(inputs, INPUTS))))
    else:
        weights, scales = _grouped_panels(weight.detach(), panels), torch.ones(outputs)
    biases = torch.zeros(outputs) if bias is None else bias.detach().float()
    scales, biases = (_pad(values * scale, (panels * COLUMNS,)) for values in (scales, biases))
    return Linear(weights, scales, biases, inputs, outputs, bits)


def _panels(numbers: Tensor) -> Tensor:
    """Panels of 8-bit numbers, each 128 larger than in ``[out, in]``."""
    panels = len(numbers) // COLUMNS
    fours = (numbers.view(torch.uint8) ^ 128).view(torch.int32)
    swapped = fours.view(panels, COLUMNS, -1).transpose(1, 2).contiguous()
    return swapped.view(torch.uint8).view(panels, -1, COLUMNS, INPUTS)


def _grouped_panels(weight: Tensor, panels: int) -> Tensor:
    """Panels of 4-bit numbers with the scales of their groups, ``[panels, groups, bytes]``."""
    weight = _pad(weight, (panels * COLUMNS, round_up(weight.shape[1], GROUP)))
    pieces = [_group_panel(piece) for piece in torch.split(weight, COLUMNS * _AT_ONCE)]
    return torch.cat(pieces)


def _group_panel(weight: Tensor) -> Tensor:
    numbers, scales = quantize_groups(weight.float())
    panels, groups = len(weight) // COLUMNS, scales.shape[1]
    # [panel, half, column, group, step, lower or upper, input]
    shape = (panels, COLUMNS // LANES, LANES, groups, GROUP // (2 * INPUTS), 2, INPUTS)
    ordered = numbers.view(shape).permute(0, 3, 1, 4, 2, 6, 5)
    both = (ordered[..., 0] | (ordered[..., 1] << 4)).reshape(panels, groups, -1)
    by_group = scales.view(panels, COLUMNS, groups).transpose(1, 2).contiguous()
    return torch.cat([by_group.view(torch.uint8), both], dim=-1)


def quantize_groups(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize weights to 4 bits, with one scale for ``GROUP`` inputs of an output.

    Each scale is the one of several that leaves the smallest squared error.

    Args:
        weight: ``[out, in]`` in float32; in is a multiple of ``GROUP``.

    Returns:
        Numbers from 0 to 15, 8 too large, ``[out, in]`` in uint8; and the scales, ``[out, in /
        GROUP]`` in bfloat16.
    """
    groups = weight.view(len(weight), -1, GROUP)
    place = groups.abs().argmax(-1, keepdim=True)
    largest = groups.gather(-1, place)
    best = torch.full_like(largest, torch.inf)
    numbers, scales = torch.zeros_like(groups), torch.zeros_like(largest)
    for divisor in (-8.0, -7.25, -8.75, 7.25):
        scale = (largest / divisor).bfloat16().float()
        rounded = (groups / scale).nan_to_num_(0).round_().clamp_(-8, 7)
        error = (rounded * scale - groups).square_().sum(-1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        scales = torch.where(better, scale, scales)
        numbers = torch.where(better, rounded, numbers)
    scales = torch.where(largest.isfinite(), scales, torch.nan)
    return (numbers + 8).to(torch.uint8).view(weight.shape), scales[..., 0].bfloat16()


def pack(
    name: str, model: PreTrainedModel, report: ReportProgress = silent, *, bits: int = 8
) -> Packed:
    """Pack a model, which is not changed.

    Args:
        name: name of the model, for errors.
        model: the model.
        report: called with the bytes of the weights that are packed and of all.
        bits: number of bits of a weight in its layers; embeddings and output layer have 8.

    Raises:
        SafeDraftError: this engine does not run such a model.
    """
    architecture = read_architecture(name, model.config)
    parts = cast("Any", model)
    layers = parts.model.layers
    linears: list[Linear] = []
    norms = {"final": parts.model.norm.weight}
    total = sum(weight.nbytes for weight in parts.parameters())
    for index, layer in enumerate(layers):
        report(f"packing {name}", total * index // (len(layers) + 1), total)
        linears += _pack_layer(layer, architecture, bits)
        norms |= _norms(layer, index, architecture)
    embedding, output = parts.model.embed_tokens, parts.lm_head
    tied = torch.equal(embedding.weight, output.weight) and architecture.logit_scale == 1
    linears.append(pack_linear(embedding.weight))
    linears.append(
        linears[-1]
        if tied and output.bias is None
        else pack_linear(output.weight, output.bias, architecture.logit_scale)
    )
    report(f"packing {name}", total, total)
    return Packed(
        architecture,
        linears,
        {key: norm.detach().float().contiguous() for key, norm in norms.items()},
        parts.model.rotary_emb.inv_freq.float(),
        float(parts.model.rotary_emb.attention_scaling),
    )


def _pack_layer(layer: Any, architecture: Architecture, bits: int) -> Iterator[Linear]:
    attention, feed = layer.self_attn, layer.mlp
    mixed = [attention.q_proj, attention.k_proj, attention.v_proj]
    output, down = attention.o_proj, feed.down_proj
    yield pack_linear(
        torch.cat([part.weight.detach() for part in mixed]),
        torch.cat(list(map(_bias, mixed))),
        bits=bits,
    )
    yield pack_linear(_widen_heads(output.weight, architecture), output.bias, bits=bits)
    yield pack_linear(*_interleave(feed.gate_proj, feed.up_proj), bits=bits)
    yield pack_linear(down.weight, down.bias, bits=bits)


def _widen_heads(weight: Tensor, architecture: Architecture) -> Tensor:
    """Give each head of the inputs room for whole panels of values."""
    head, heads = architecture.head, architecture.heads
    wide = weight.new_zeros(len(weight), heads, architecture.width)
    wide[..., :head] = weight.detach().view(len(weight), heads, head)
    return wide.flatten(1)


def _interleave(gate: nn.Linear, up: nn.Linear) -> tuple[Tensor, Tensor]:
    """Put outputs of the gate and those that they gate into the same panels, half and half."""
    half = COLUMNS // 2

    def merge(one: Tensor, other: Tensor) -> Tensor:
        rows = round_up(len(one), half)
        both = one.new_zeros(2, rows, *one.shape[1:])
        both[0, : len(one)], both[1, : len(one)] = one, other
        pieces = both.view(2, rows // half, half, *one.shape[1:])
        return pieces.transpose(0, 1).flatten(0, 2)

    return merge(gate.weight.detach(), up.weight.detach()), merge(_bias(gate), _bias(up))


def _norms(layer: Any, index: int, architecture: Architecture) -> dict[str, Tensor]:
    before = not architecture.norms_after
    found = {"mlp_norm": layer.post_attention_layernorm} if before else {}
    if before:
        found["input_norm"] = layer.input_layernorm
    else:
        found["attention_norm"] = layer.post_attention_layernorm
        found["output_norm"] = layer.post_feedforward_layernorm
    if architecture.normed:
        found["query_norm"], found["key_norm"] = layer.self_attn.q_norm, layer.self_attn.k_norm
    return {f"{index}.{name}": norm.weight for name, norm in found.items()}


def _bias(layer: nn.Linear) -> Tensor:
    bias = layer.bias
    return torch.zeros(layer.out_features) if bias is None else bias.detach().float()


def _pad(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    padded = values.new_zeros(shape)
    padded[tuple(map(slice, values.shape))] = values
    return padded


def save(packed: Packed, file: Path) -> None:
    """Write a packed model."""
    content = {
        "architecture": asdict(packed.architecture),
        "linears": [tuple(linear) for linear in packed.linears],
        "norms": packed.norms,
        "frequencies": packed.frequencies,
        "rotation_scale": packed.rotation_scale,
    }
    torch.save(content, file)


def read(file: Path) -> Packed:
    """Map a packed model into memory.

    Raises:
        SafeDraftError: the file is damaged.
    """
    try:
        content = torch.load(file, mmap=True, weights_only=True)
    except Exception as error:  # torch raises what its readers raise
        raise SafeDraftError(f"{file} is damaged: delete it and load the pair again") from error
    return Packed(
        Architecture(**content["architecture"]),
        [Linear(*linear) for linear in content["linears"]],
        content["norms"],
        content["frequencies"],
        content["rotation_scale"],
    )
