"""Loading a pair with Transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from safedraft.core.config import SSDConfig
from safedraft.core.errors import SafeDraftError, first_line
from safedraft.engines.base import LoadedModel, LoadedPair
from safedraft.models.parts import fetch_parts
from safedraft.models.progress import Report, silent
from safedraft.models.registry import PairSpec

if TYPE_CHECKING:
    import torch

DTYPES = ("auto", "bfloat16", "float16", "float32")
INT8 = "int8"
"""One more dtype of a draft: the checkpoint's, with the weights of linear layers in 8 bits."""


def load(
    spec: PairSpec,
    config: SSDConfig | None = None,
    report: Report = silent,
    *,
    dtype: str = "auto",
    draft_dtype: str | None = None,
    device: str = "auto",
    draft_device: str | None = None,
) -> LoadedPair:
    """Fetch, check and load a pair.

    Args:
        spec: the pair.
        config: constants in place of the pair's own.
        report: called with stage, done and total bytes while a model is fetched.
        dtype: ``auto`` (the checkpoint's), ``bfloat16``, ``float16`` or ``float32``.
        draft_dtype: the draft's, if another; also ``int8`` on processors: the checkpoint's, with
            weights in 8 bits. The pair's own is used where no dtype is named.
        device: ``auto`` (an accelerator if there is one), or as torch names it.
        draft_device: the draft's, if another.

    Raises:
        SafeDraftError: whatever does not fit, in one line that says what to do.
        IncompatiblePairError: the two models cannot decode together.
    """
    from safedraft.engines.transformers.engine import TransformersEngine
    from safedraft.kernels.attention import stack_queries
    from safedraft.kernels.avx2 import widen_as_multiplied
    from safedraft.kernels.int8 import keep_in_int8
    from safedraft.models.weights import load_model, merge_adapter

    # What can be refused is refused before gigabytes are fetched or loaded.
    devices = [_device(place) for place in (device, draft_device or device)]
    small_type = _draft_dtype(spec, dtype, draft_dtype, devices[1])
    types = [_dtype(dtype), _dtype("auto" if small_type == INT8 else small_type)]
    parts = fetch_parts(spec, report)
    big, small = map(load_model, parts.folders, parts.descriptions, types, devices)
    for model in (big, small):
        stack_queries(model)
    if parts.adapter:
        small = merge_adapter(small, parts.adapter)
    if small_type == INT8:
        keep_in_int8(small)
    for model in (big, small):
        widen_as_multiplied(model)
    tokenizers = [description.tokenizer for description in parts.descriptions]
    compatibility = parts.compatibility
    return LoadedPair(
        engine=TransformersEngine(big, small, compatibility.vocabulary, (spec.target, spec.draft)),
        target=LoadedModel(spec.target, big, tokenizers[0], spec.target_system),
        draft=LoadedModel(spec.draft, small, tokenizers[1], spec.draft_system),
        vocabulary=compatibility.vocabulary,
        context_length=compatibility.context_length,
        end_tokens=compatibility.end_tokens,
        config=config or spec.config,
    )


def _draft_dtype(spec: PairSpec, dtype: str, named: str | None, device: torch.device) -> str:
    """What is named for the draft or for both, else the pair's own."""
    if named == INT8 and device.type != "cpu":
        raise SafeDraftError(f"draft_dtype int8 is for processors, and the draft is on {device}")
    own = spec.draft_dtype if dtype == "auto" and device.type == "cpu" else None
    return named or own or dtype


def _dtype(name: str) -> torch.dtype | str:
    import torch

    if name not in DTYPES:
        raise SafeDraftError(f"unknown dtype {name!r}; choose from {', '.join(DTYPES)}")
    return name if name == "auto" else getattr(torch, name)


def _device(name: str) -> torch.device:
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
