"""The decoders that this engine runs: dense, Llama-like ones, recognized by their configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safedraft.core.errors import SafeDraftError
from safedraft.kernels.layout import LANES, round_up

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "granite", "olmo2")
"""Kinds of models, as ``model_type`` names them; SmolLM2 is a ``llama``."""

_ROPE = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose angles do not depend on the length of the text."""


@dataclass(frozen=True)
class Architecture:
    """The properties in which Llama-like decoders differ."""

    layers: int
    hidden: int
    heads: int
    """Heads of queries."""
    groups: int
    """Heads of keys and values."""
    head: int
    """Numbers of a head."""
    rotated: int
    """Numbers of a head that are rotated by position."""
    positions: int
    epsilon: float
    attention_scale: float
    residual_scale: float = 1.0
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    normed: int = 0
    """1 if queries and keys are normed head by head, 2 if as a whole."""
    norms_after: bool = False
    """Whether norms follow attention and feed-forward part, instead of preceding them."""

    @property
    def width(self) -> int:
        """Width of a head, rounded up to whole panels."""
        return round_up(self.head, LANES)


def why_not_supported(config: PreTrainedConfig) -> str | None:
    """Why this engine does not run such a model, or None if it does."""
    kind = config.model_type
    if kind not in FAMILIES:
        return f"the engine cpu has no {kind} models, only {', '.join(FAMILIES)}"
    if getattr(config, "quantization_config", None):
        return "the engine cpu quantizes weights itself, and this checkpoint has quantized ones"
    if getattr(config, "hidden_act", "silu") not in ("silu", "swish"):
        return f"the engine cpu has silu and not {config.hidden_act}"
    if _has_windows(config):
        return f"the engine cpu has no sliding windows, and this {kind} has"
    if (rope := _rope(config).get("rope_type", "default")) not in _ROPE:
        return f"the engine cpu has no rotary positions of type {rope}"
    return None


def read_architecture(name: str, config: PreTrainedConfig) -> Architecture:
    """Read the architecture that a configuration describes.

    Args:
        name: name of the model, for the error.
        config: configuration of the model.

    Raises:
        SafeDraftError: this engine does not run such a model.
    """
    if reason := why_not_supported(config):
        raise SafeDraftError(f"{name}: {reason}: use --engine transformers")
    kind = config.model_type
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    scales: dict[str, float] = {}
    if kind == "granite":
        scales = {
            "attention_scale": config.attention_multiplier,
            "residual_scale": config.residual_multiplier,
            "embedding_scale": config.embedding_multiplier,
            "logit_scale": 1 / config.logits_scaling,
        }
    return Architecture(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        groups=config.num_key_value_heads or config.num_attention_heads,
        head=head,
        rotated=int(head * _rope(config).get("partial_rotary_factor", 1.0)),
        positions=config.max_position_embeddings,
        epsilon=config.rms_norm_eps,
        normed={"qwen3": 1, "olmo2": 2}.get(kind, 0),
        norms_after=kind == "olmo2",
        **{"attention_scale": head**-0.5, **scales},
    )


def _rope(config: PreTrainedConfig) -> dict[str, Any]:
    return getattr(config, "rope_parameters", None) or {}


def _has_windows(config: PreTrainedConfig) -> bool:
    kinds = getattr(config, "layer_types", None) or []
    if kinds:
        return "sliding_attention" in kinds
    window = getattr(config, "sliding_window", None)
    return window is not None and window < config.max_position_embeddings
