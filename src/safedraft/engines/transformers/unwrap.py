"""The causal language model inside what wraps it: adapters, compiled and parallel modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from safedraft.core.errors import SafeDraftError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WRAPPED = ("_orig_mod", "module")
"""Names of the module inside torch's compiled module, and inside its parallel ones."""

_ADAPTED = ("base_model", "model")
"""Names of the module inside PEFT's models and tuners."""

_PROBED = 16
"""Number of tokens after which an adapted model and the one inside it have to agree."""


def unwrap(model: Any, name: str) -> PreTrainedModel:
    """Return the model that ``model`` wraps; PEFT's adapters stay in its layers and take part.

    A compiled model is returned as it was before it was compiled: its tokens are the same.

    Args:
        model: a causal language model of Transformers, perhaps wrapped several times.
        name: its name in error messages.

    Raises:
        SafeDraftError: it is not such a model, it is in training mode, its weights are not in
            memory, or an adapter acts elsewhere than in its layers.
    """
    from transformers import PreTrainedModel

    inner, adapted = model, None
    while isinstance(inner, nn.Module) and not isinstance(inner, PreTrainedModel):
        children = dict(inner.named_children())
        child = next((part for part in (*_WRAPPED, *_ADAPTED) if part in children), None)
        if child is None:
            break
        if child in _ADAPTED and adapted is None:
            adapted = inner
        inner = children[child]
    if not isinstance(inner, PreTrainedModel):
        given = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise SafeDraftError(
            f"{name} must be a loaded model, not {given}: load it with "
            "AutoModelForCausalLM.from_pretrained(…)"
        )
    if not inner.can_generate():
        raise SafeDraftError(
            f"{name} is a {type(inner).__name__}, which gives no logits of tokens: load it with "
            "AutoModelForCausalLM.from_pretrained(…)"
        )
    require_in_memory(inner, name)
    if inner.training or any(map(_drops, inner.modules())):
        raise SafeDraftError(f"{name} is in training mode: call {name}.eval() first")
    require_adapters_in_layers(inner, name)
    _count_embeddings(inner)
    if adapted is not None and not _agree(adapted, inner, name):
        raise _outside(adapted, name)
    return inner


def require_in_memory(model: PreTrainedModel, name: str) -> None:
    """Check that a model was not offloaded by accelerate.

    Raises:
        SafeDraftError: its first weights are on no device.
    """
    if model.device.type == "meta":
        raise SafeDraftError(
            f"{name} is offloaded, and SSD keeps both models in memory: load it without offloading "
            "(no cpu_offload, no disk in device_map)"
        )


def require_adapters_in_layers(model: PreTrainedModel, name: str) -> None:
    """Check that no adapter of PEFT is lost when the model's layers run without PEFT's model.

    Raises:
        SafeDraftError: an adapter prepares inputs, as prompt tuning does, or needs PEFT to
            say from which token on it is active (aLoRA).
    """
    configs = getattr(model, "peft_config", None) or {}
    activated = any(getattr(one, "alora_invocation_tokens", None) for one in configs.values())
    # PEFT replaces the method on the instance while a model with prompt learning generates.
    if activated or "prepare_inputs_for_generation" in vars(model):
        raise _outside(model, name)


def _drops(module: nn.Module) -> bool:
    return isinstance(module, nn.Dropout) and module.training and module.p > 0


def _count_embeddings(model: PreTrainedModel) -> None:
    """Give embeddings inside a layer of PEFT's the number of ids, which such layers leave out."""
    embeddings = model.get_input_embeddings()
    if not hasattr(embeddings, "num_embeddings"):
        embeddings.num_embeddings = len(embeddings.weight)


@torch.inference_mode()
def _agree(adapted: nn.Module, inner: PreTrainedModel, name: str) -> bool:
    """Whether both give the same logits after tokens from the whole vocabulary."""
    rows = inner.get_input_embeddings().num_embeddings
    ids = torch.linspace(0, rows - 1, _PROBED, device=inner.device).long()[None]

    def compute_logits(model: nn.Module) -> Tensor:
        logits: Tensor = model(input_ids=ids, use_cache=False).logits
        return logits.float()

    try:
        one, other = compute_logits(adapted), compute_logits(inner)
    except (TypeError, ValueError) as error:  # PEFT's own checks of what a model is given
        reason = first_line(error)
        raise SafeDraftError(f"{name} does not run on token ids alone: {reason}") from error
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-3, atol=1e-3)


def _outside(model: Any, name: str) -> SafeDraftError:
    configs = (getattr(model, "peft_config", None) or {}).values()
    kinds = ", ".join(sorted({str(getattr(one.peft_type, "value", "")) for one in configs}))
    return SafeDraftError(
        f"{name} has an adapter{kinds and f' ({kinds})'} that acts outside of the model's layers, "
        "which SSD would leave out: train a plain LoRA adapter"
    )
