"""Loading of a pair with Transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safedraft.core.config import SSDConfig
from safedraft.core.errors import SafeDraftError, first_line
from safedraft.engines.base import LoadedPair
from safedraft.models.parts import Parts, fetch_parts
from safedraft.models.progress import ReportProgress, silent
from safedraft.models.registry import PairSpec

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel

    from safedraft.models.description import ModelDescription

DTYPES = ("auto", "bfloat16", "float16", "float32")

_DTYPES = {
    "half": "float16",
    "fp16": "float16",
    "bf16": "bfloat16",
    "float": "float32",
    "fp32": "float32",
}
"""The name of a dtype by its other names."""

INT8 = "int8"
"""A further dtype of a draft: that of the checkpoint, with 8-bit weights in linear layers."""


def load(
    spec: PairSpec,
    config: SSDConfig | None = None,
    report: ReportProgress = silent,
    *,
    dtype: str | torch.dtype | None = "auto",
    torch_dtype: str | torch.dtype | None = None,
    draft_dtype: str | torch.dtype | None = None,
    device: str = "auto",
    draft_device: str | None = None,
    device_map: Any = None,
    max_memory: Any = None,
    quantization_config: Any = None,
    attn_implementation: str | None = None,
) -> LoadedPair:
    """Fetch, check and load a pair.

    Args:
        spec: the pair.
        config: constants in place of the pair's own.
        report: called with stage, done and total bytes while a model is fetched.
        dtype: ``auto`` (that of the checkpoint), ``bfloat16``, ``float16`` or ``float32``, by name
            or as a dtype of torch.
        torch_dtype: Transformers' older name for ``dtype``.
        draft_dtype: the draft's dtype if it differs; on processors also ``int8``: the checkpoint's
            dtype with 8-bit weights. The pair's own by default, if no dtype is named.
        device: ``auto`` (an accelerator if there is one), or torch's name of a device.
        draft_device: the draft's device if it differs.
        device_map: placement of the target on several devices, as in ``from_pretrained``; the draft
            lies on ``draft_device``, by default where the target begins.
        max_memory: memory of each device that ``device_map`` may use for the target.
        quantization_config: quantization of the target, as in ``from_pretrained``.
        attn_implementation: implementation of attention in both models, as in ``from_pretrained``.

    Raises:
        SafeDraftError: the pair cannot be loaded; one line says what to do.
        IncompatiblePairError: the two models cannot decode together.
    """
    placement = Placement.read(
        spec,
        dtype=dtype,
        torch_dtype=torch_dtype,
        draft_dtype=draft_dtype,
        device=device,
        draft_device=draft_device,
        device_map=device_map,
        max_memory=max_memory,
        quantization_config=quantization_config,
        attn_implementation=attn_implementation,
    )
    return load_parts(fetch_parts(spec, report), config, report, placement)


@dataclass(frozen=True)
class Placement:
    """The devices and types of the two models; ``read`` refuses invalid options."""

    types: tuple[torch.dtype | str, torch.dtype | str]
    devices: tuple[torch.device, torch.device]
    int8_draft: bool
    draft_beside_target: bool
    """Whether the draft lies where the target begins."""
    options: dict[str, Any]
    """Options of the target for ``from_pretrained``."""
    attention: str | None = None
    """The implementation of attention in both models; None: Transformers chooses it."""

    @classmethod
    def read(
        cls,
        spec: PairSpec,
        *,
        dtype: str | torch.dtype | None = "auto",
        torch_dtype: str | torch.dtype | None = None,
        draft_dtype: str | torch.dtype | None = None,
        device: str = "auto",
        draft_device: str | None = None,
        device_map: Any = None,
        max_memory: Any = None,
        quantization_config: Any = None,
        attn_implementation: str | None = None,
    ) -> Placement:
        """Read the options of ``load``, before gigabytes are fetched or loaded.

        Raises:
            SafeDraftError: options contradict each other, or name a device that the machine lacks.
        """
        if torch_dtype is not None and dtype not in (None, "auto"):
            raise SafeDraftError("give dtype or torch_dtype, which mean the same, not both")
        dtype = _name_dtype(torch_dtype or dtype or "auto")
        draft_dtype = None if draft_dtype is None else _name_dtype(draft_dtype)
        if device_map is not None and device != "auto":
            raise SafeDraftError("give device or device_map for the target, not both")
        if max_memory is not None and device_map is None:
            raise SafeDraftError("max_memory limits what device_map uses: add device_map='auto'")
        placed = {
            "device_map": device_map,
            "max_memory": max_memory,
            "quantization_config": quantization_config,
        }
        devices = _find_device(device), _find_device(draft_device or device)
        small = _choose_draft_dtype(spec, dtype, draft_dtype, devices[1])
        return cls(
            (_find_dtype(dtype), _find_dtype("auto" if small == INT8 else small)),
            devices,
            small == INT8,
            device_map is not None and draft_device is None,
            {name: value for name, value in placed.items() if value is not None},
            attn_implementation,
        )


def load_parts(
    parts: Parts, config: SSDConfig | None, report: ReportProgress, placement: Placement
) -> LoadedPair:
    """Load a pair that was fetched and checked."""
    from safedraft.engines.transformers.in_memory import assemble
    from safedraft.kernels.attention import use_stacked_attention
    from safedraft.kernels.avx2 import use_avx2_layers
    from safedraft.kernels.int8 import use_int8_layers
    from safedraft.models.weights import merge_adapter

    chosen = list(
        zip(parts.folders, parts.descriptions, placement.types, placement.devices, strict=True)
    )
    big = _load(chosen[0], report, placement.attention, **placement.options)
    small = _load(chosen[1], report, placement.attention)
    if placement.draft_beside_target:
        small = small.to(big.device)
    for model in (big, small):
        use_stacked_attention(model)
    if parts.adapter:
        small = merge_adapter(small, parts.adapter)
    if placement.int8_draft:
        use_int8_layers(small)
    for model in (big, small):
        use_avx2_layers(model)
    return assemble(
        parts.spec,
        (big, small),
        parts.descriptions,
        parts.compatibility,
        config,
        parts.warnings,
        parts.probe,
    )


def _load(
    model: tuple[Path, ModelDescription, torch.dtype | str, torch.device],
    report: ReportProgress,
    attention: str | None,
    **placed: Any,
) -> PreTrainedModel:
    from safedraft.models.weights import load_model

    report(f"loading {model[1].name}", 0, 0)
    if attention is None:
        return load_model(*model, **placed)
    loaded = load_model(*model, attn_implementation=attention, **placed)
    return loaded if placed else loaded.to(model[3])


def _choose_draft_dtype(spec: PairSpec, dtype: str, named: str | None, device: torch.device) -> str:
    """Choose the dtype named for the draft or for both models, else the pair's own."""
    if named == INT8 and device.type != "cpu":
        raise SafeDraftError(f"draft_dtype int8 is for processors, and the draft is on {device}")
    own = spec.draft_dtype if dtype == "auto" and device.type == "cpu" else None
    return named or own or dtype


def _name_dtype(dtype: str | torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    return _DTYPES.get(name, name)


def _find_dtype(name: str) -> torch.dtype | str:
    import torch

    if name not in DTYPES:
        raise SafeDraftError(f"unknown dtype {name!r}; choose from {', '.join(DTYPES)}")
    return name if name == "auto" else getattr(torch, name)


def _find_device(name: str) -> torch.device:
    import torch

    try:
        if name == "auto":
            return torch.accelerator.current_accelerator(check_available=True) or torch.device(
                "cpu"
            )
        torch.zeros(1, device=name).item()
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SafeDraftError(f"device {name!r} cannot be used: {first_line(error)}") from error
