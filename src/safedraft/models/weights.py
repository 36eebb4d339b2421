"""Weights in memory: loading a model, and merging an adapter into it."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safedraft.core.errors import SafeDraftError, first_line
from safedraft.models.causal import (
    TEXT_WEIGHTS,
    count_weights,
    is_wrapped,
    model_class,
    stored_names,
    unwrapped_config,
)
from safedraft.models.description import ModelDescription
from safedraft.models.fingerprint import digest, fingerprint
from safedraft.models.gguf import is_gguf, read_header
from safedraft.models.parts import Parts
from safedraft.models.pinned import build_once
from safedraft.models.progress import ReportProgress, silent
from safedraft.models.quiet import quiet_transformers
from safedraft.models.registry import cache_folder
from safedraft.models.rewindable import why_not_rewindable

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedConfig, PreTrainedModel


_PROBED = 32
"""Number of tokens after which distributions are compared."""

_ROUNDING = {1: 0.05, 2: 0.05, 4: 1e-3, 8: 1e-6}
"""Total variation that rounding the merged weights may cause, by the bytes of a weight."""


def merged_draft(parts: Parts, report: ReportProgress = silent, *, rows: int | None = None) -> Path:
    """Return a folder with the draft and its adapter merged, for engines that load folders.

    Without an adapter it is the draft's own folder, unless it has another number of rows; otherwise
    one in the cache, written once.

    Args:
        parts: the parts of the pair.
        report: called while it is written.
        rows: number of rows that its embeddings and its output layer are to have; None: as they
            are.
    """
    draft = parts.folders[1]
    rows = rows or parts.descriptions[1].rows
    if parts.adapter is None and rows == parts.descriptions[1].rows:
        return draft
    files = sorted(parts.adapter.glob("adapter_*")) if parts.adapter else []
    name = digest(
        f"{draft} {fingerprint(draft)} {rows}", *(file.read_bytes() for file in files), digits=16
    )
    return build_once(
        cache_folder() / "merged" / name,
        partial(_write_merged, parts, rows, report),
        is_complete=Path.is_dir,
        needed=sum(file.stat().st_size for file in draft.glob("*.safetensors")),
        report=report,
    )


def _write_merged(parts: Parts, rows: int, report: ReportProgress, folder: Path) -> None:
    """Write the merged draft with this many rows and its tokenizer to ``folder``."""
    import torch

    description = parts.descriptions[1]
    load = partial(load_model, dtype="auto", device=torch.device("cpu"))
    merged = load(parts.folders[1], description)
    what = f"rewriting {description.name} with {rows} rows"
    if parts.adapter:
        report(f"merging {parts.adapter.name} into its draft", 0, 0)
        merged = merge_adapter(merged, parts.adapter)
        what = f"the adapter in {parts.adapter} does not fit its model: the merged draft"
    if rows != description.rows:
        report(f"giving the draft {rows} rows, as the target has", 0, 0)
        _set_rows(merged, rows)
    merged.save_pretrained(folder)
    written = load(folder, replace(description, config=merged.config))
    if not _variation(_probabilities(written), _probabilities(merged)) <= _ROUNDING[4]:
        raise SafeDraftError(f"{what} does not survive being saved")
    if description.tokenizer is not None:
        description.tokenizer.save_pretrained(folder)


def _set_rows(model: PreTrainedModel, rows: int) -> None:
    """Resize embeddings and output layer to ``rows``; added rows, for unused ids, are zero."""
    import torch

    before = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[before:] = 0


def load_model(
    folder: Path,
    description: ModelDescription,
    dtype: torch.dtype | str,
    device: torch.device,
    **options: Any,
) -> PreTrainedModel:
    """Load the weights of a model.

    Args:
        folder: holds its files; or the path of a GGUF file, whose weights are unpacked.
        description: the facts that its files state.
        dtype: the dtype of its weights.
        device: where they lie, unless ``options`` place them.
        options: ``device_map`` and ``quantization_config``, as Transformers has them.

    Raises:
        SafeDraftError: they cannot be read, do not belong to its configuration, or are those of a
            model that cannot be decoded here.
    """
    if reason := why_not_rewindable(description.config, model_class(description.config)):
        raise SafeDraftError(f"{description.name}: {reason}")
    try:
        with quiet_transformers():
            _require_weights_for(description, folder)
            model, loading = _read_weights(folder, description.config, dtype, options)
    except SafeDraftError:
        raise
    except Exception as error:  # Transformers and safetensors raise what their readers raise
        raise SafeDraftError(
            f"{description.name} cannot be loaded from {folder}: {first_line(error)}"
        ) from error
    if differing := sorted(loading["mismatched_keys"]):
        name, stored, expected = differing[0]
        raise SafeDraftError(
            f"{description.name}: {name} is {list(stored)} in {folder}, and config.json describes "
            f"{list(expected)}: they do not belong together; fetch both again"
        )
    if missing := sorted(loading["missing_keys"]):
        raise SafeDraftError(
            f"{description.name}: {folder} lacks {len(missing)} weights ({missing[0]}…): "
            "fetch it again"
        )
    loaded: PreTrainedModel = model.eval()
    return loaded if options else loaded.to(device)


def _read_weights(
    folder: Path, config: PreTrainedConfig, dtype: torch.dtype | str, own: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a model and what Transformers says about it; of a wrapped one, its language model."""
    from transformers import AutoModelForCausalLM

    source: Path | None = folder
    options: dict[str, Any] = {
        **own,
        "dtype": dtype,
        "use_safetensors": True,
        "trust_remote_code": False,
        "local_files_only": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # the caller names them
    }
    kind: Any = AutoModelForCausalLM
    if is_gguf(folder):
        source, kind = None, model_class(config)
        options["config"] = config
        options["state_dict"] = _unpack(folder, config, dtype, own)
    elif is_wrapped(config):
        kind = model_class(config)
        options["config"] = unwrapped_config(config, stored_names(folder))
        options["key_mapping"] = TEXT_WEIGHTS
    model, loading = kind.from_pretrained(source, **options)
    return model, loading


def _unpack(
    file: Path, config: PreTrainedConfig, dtype: torch.dtype | str, options: dict[str, Any]
) -> dict[str, torch.Tensor]:
    """Read the weights in a GGUF file, in the type in which they are loaded."""
    from safedraft.models.gguf_model import read_weights

    if "quantization_config" in options:
        raise SafeDraftError(f"{file}: quantization_config is for folders: leave it out")
    wanted: Any = config.dtype if dtype == "auto" else dtype
    return read_weights(read_header(file), config, wanted)


def _require_weights_for(description: ModelDescription, folder: Path) -> None:
    """Refuse a configuration far larger than its weights, before memory is taken for it."""
    needed = count_weights(description.config)
    files = [folder] if is_gguf(folder) else folder.glob("*.safetensors")
    stored = sum(file.stat().st_size for file in files)
    if needed > 4 * stored:  # not even two bits a weight
        raise SafeDraftError(
            f"{description.name}: config.json describes {needed:,} weights and {folder} holds "
            f"{stored:,} bytes of them: they do not belong together"
        )


def merge_adapter(model: PreTrainedModel, folder: Path | str) -> PreTrainedModel:
    """Add an adapter into the weights of its model, which is changed and returned.

    Distributions over the next token are compared before and after, so that the model
    that was trained is the one that decodes. Tied layers are untied if the adapter changes only one
    of them.

    Args:
        model: the model that the adapter was trained on.
        folder: a folder with a LoRA adapter, as ``safedraft train-draft`` writes it.

    Raises:
        SafeDraftError: the adapter does not fit, or cannot be added into weights.
    """
    folder = Path(folder)
    adapted = attach_adapter(model, folder)
    if adapted.active_peft_config.is_prompt_learning:
        kind = adapted.active_peft_config.peft_type.value
        raise _misfit(folder, f"{kind} has no weights to add to the model's: train a LoRA adapter")
    _untie(model)
    trained = _probabilities(adapted)
    with adapted.disable_adapter():
        effect = _variation(_probabilities(adapted), trained)
    try:
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    except Exception as error:  # peft raises what its layers raise
        raise _misfit(folder, first_line(error)) from error
    error_of_merge = _variation(_probabilities(merged), trained)
    if not error_of_merge <= 0.1 * effect + _ROUNDING[merged.dtype.itemsize]:
        raise _misfit(
            folder,
            f"merging it changes the next token's distribution by {error_of_merge:.3f} (total "
            f"variation), and all that it learned is {effect:.3f}",
        )
    # PEFT froze it, and torch copies a frozen output layer whenever two rows of it are asked for.
    return merged.requires_grad_(True).eval()


def attach_adapter(model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
    """``model`` with a LoRA adapter beside its weights, every one of which it must have.

    Args:
        model: its own weights are frozen.
        folder: folder of the adapter.
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


def _untie(model: PreTrainedModel) -> None:
    """Give the output layer weights of its own if an adapter changes it or the embeddings.

    Tied layers share one tensor, and a merge would add what one of them learned to both.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from torch.nn import Parameter

    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    adapted = isinstance(embedding, BaseTunerLayer) or isinstance(output, BaseTunerLayer)
    if not adapted or embedding.weight is not output.weight:
        return
    base = output.get_base_layer() if isinstance(output, BaseTunerLayer) else output
    base.weight = Parameter(base.weight.detach().clone(), requires_grad=False)
    model.config.get_text_config().tie_word_embeddings = False
    model.config.tie_word_embeddings = False


def _probabilities(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    """Distributions after each of ``_PROBED`` tokens from the whole vocabulary: ``[n, V]``."""
    import torch

    rows = model.config.get_text_config().vocab_size
    ids = torch.linspace(0, rows - 1, _PROBED, device=model.device).long()[None]
    with torch.inference_mode():
        logits: torch.Tensor = model.eval()(input_ids=ids, use_cache=False).logits[0]
    return logits.float().softmax(-1)


def _variation(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean total variation between distributions: ``[n, V]`` each."""
    return float((one - other).abs().sum(-1).mean()) / 2


def _misfit(folder: Path, why: str) -> SafeDraftError:
    return SafeDraftError(f"the adapter in {folder} does not fit its model: {why}")
