"""Weights in memory: loading a model, and merging an adapter into it."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from safedraft.core.errors import SafeDraftError, first_line
from safedraft.models.compatibility import ModelDescription
from safedraft.models.fingerprint import digest, fingerprint
from safedraft.models.parts import Parts
from safedraft.models.pinned import build_once
from safedraft.models.progress import ReportProgress, silent
from safedraft.models.quiet import quiet_transformers
from safedraft.models.registry import cache_folder

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel


def merged_draft(parts: Parts, report: ReportProgress = silent) -> Path:
    """Return a folder with the draft and its adapter merged, for engines that load folders.

    Without an adapter it is the draft's own folder; otherwise one in the cache, written once.
    """
    if parts.adapter is None:
        return parts.folders[1]
    draft = parts.folders[1]
    files = sorted(parts.adapter.glob("adapter_*"))
    name = digest(
        f"{draft} {fingerprint(draft)}", *(file.read_bytes() for file in files), digits=16
    )
    return build_once(
        cache_folder() / "merged" / name,
        partial(_write_merged, parts, parts.adapter, report),
        is_complete=Path.is_dir,
        needed=sum(file.stat().st_size for file in draft.glob("*.safetensors")),
        report=report,
    )


def _write_merged(parts: Parts, adapter: Path, report: ReportProgress, folder: Path) -> None:
    """Write the merged draft and its tokenizer to ``folder``."""
    import torch

    report(f"merging {adapter.name} into its draft", 0, 0)
    description = parts.descriptions[1]
    model = load_model(parts.folders[1], description, "auto", torch.device("cpu"))
    merge_adapter(model, adapter).save_pretrained(folder)
    if description.tokenizer is not None:
        description.tokenizer.save_pretrained(folder)


def load_model(
    folder: Path, description: ModelDescription, dtype: torch.dtype | str, device: torch.device
) -> PreTrainedModel:
    """Load the weights of a model.

    Raises:
        SafeDraftError: they cannot be read, or do not belong to its configuration.
    """
    from transformers import AutoModelForCausalLM

    try:
        with quiet_transformers():
            _require_weights_for(description, folder)
            model, loading = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except SafeDraftError:
        raise
    except Exception as error:  # Transformers and safetensors raise what their readers raise
        raise SafeDraftError(
            f"{description.name} cannot be loaded from {folder}: {first_line(error)}"
        ) from error
    if missing := sorted(loading["missing_keys"]):
        raise SafeDraftError(
            f"{description.name}: {folder} lacks {len(missing)} weights ({missing[0]}…): "
            "fetch it again"
        )
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def _require_weights_for(description: ModelDescription, folder: Path) -> None:
    """Refuse a configuration far larger than its weights, before memory is taken for it."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(description.config)
    needed = sum(weight.numel() for weight in model.parameters())
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if needed > 4 * stored:  # not even two bits a weight
        raise SafeDraftError(
            f"{description.name}: config.json describes {needed:,} weights and {folder} holds "
            f"{stored:,} bytes of them: they do not belong together"
        )


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """``model`` with a LoRA adapter added into its weights.

    Raises:
        SafeDraftError: the adapter does not fit.
    """
    adapted = attach_adapter(model, folder)
    try:
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    except Exception as error:  # peft raises what its layers raise
        raise _misfit(folder, first_line(error)) from error
    # PEFT froze it, and torch copies a frozen output layer whenever two rows of it are asked for.
    return merged.requires_grad_(True).eval()


def attach_adapter(model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
    """``model`` with a LoRA adapter beside its weights, every one of which it must have.

    Args:
        model: its own weights are frozen.
        folder: the adapter's.
        trainable: whether its matrices are to learn; they are float32 then.

    Raises:
        SafeDraftError: the adapter does not fit.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    try:
        with quiet_transformers(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they warn of is checked below
            beside: PeftModel = PeftModel.from_pretrained(
                model, str(folder), is_trainable=trainable, use_safetensors=True
            )
            expected = set(get_peft_model_state_dict(beside))
            with safe_open(folder / "adapter_model.safetensors", framework="pt") as stored:
                differing = expected ^ set(stored.keys())
    except Exception as error:  # peft raises what its readers raise
        raise _misfit(folder, first_line(error)) from error
    if differing:
        raise _misfit(folder, f"{len(differing)} weights have no counterpart ({min(differing)})")
    return beside


def _misfit(folder: Path, why: str) -> SafeDraftError:
    return SafeDraftError(f"the adapter in {folder} does not fit its model: {why}")
