"""From names to a loaded pair: fetch, check, load, merge the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from safedraft.config import SSDConfig
from safedraft.errors import SafeDraftError
from safedraft.pairs.doctor import Anatomy, examine, read_anatomy
from safedraft.pairs.fetch import Report, fetch, fetch_adapter, silent
from safedraft.pairs.pair import Member, Pair
from safedraft.pairs.registry import DEFAULT_PAIR, PairSpec, find_pair

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DTYPES = ("auto", "bfloat16", "float16", "float32")


def choose_pair(
    name: str | None = None,
    *,
    target: str | None = None,
    draft: str | None = None,
    adapter: str | None = None,
    use_adapter: bool = True,
) -> PairSpec:
    """The registered pair ``name`` with what was given in its place.

    With both ``target`` and ``draft`` and no name it is a pair of its own, with nothing of the
    default pair's. A registered adapter goes with its own draft only.

    Raises:
        SafeDraftError: unknown name, or an adapter that is asked for and refused at once.
    """
    if adapter and not use_adapter:
        raise SafeDraftError("give an adapter or refuse one, not both")
    if name is None and target and draft:
        spec = PairSpec(name=f"{target} + {draft}", target=target, draft=draft)
    else:
        spec = find_pair(name or DEFAULT_PAIR)
    kept = spec.adapter if use_adapter and draft in (None, spec.draft) else None
    return spec.model_copy(
        update={
            "target": target or spec.target,
            "draft": draft or spec.draft,
            "adapter": adapter or kept,
        }
    )


def load_pair(
    name: str | None = None,
    *,
    target: str | None = None,
    draft: str | None = None,
    adapter: str | None = None,
    use_adapter: bool = True,
    config: SSDConfig | None = None,
    dtype: str = "auto",
    draft_dtype: str | None = None,
    device: str = "auto",
    draft_device: str | None = None,
    report: Report = silent,
) -> Pair:
    """Fetch, check and load a pair.

    Args:
        name: a registered pair; the default one when nothing is given.
        target: in its place, a registered model, a folder, or a hub id ``owner/name[@revision]``.
        draft: likewise.
        adapter: a LoRA adapter for the draft (safetensors; folder or hub id), merged into it.
        use_adapter: False for the bare draft of a pair that has an adapter.
        config: in place of the pair's own.
        dtype: ``auto`` (the checkpoint's), ``bfloat16``, ``float16`` or ``float32``.
        draft_dtype: the draft's, if another.
        device: ``auto`` (an accelerator if there is one), or as torch names it.
        draft_device: the draft's, if another.
        report: called with stage, done and total bytes while a model is fetched.

    Raises:
        SafeDraftError: whatever does not fit, in one line that says what to do.
        IncompatiblePair: the two models cannot decode together.
    """
    spec = choose_pair(name, target=target, draft=draft, adapter=adapter, use_adapter=use_adapter)
    target_folder, draft_folder = fetch(spec.target, report), fetch(spec.draft, report)
    anatomies = read_anatomy(target_folder, spec.target), read_anatomy(draft_folder, spec.draft)
    examination = examine(*anatomies)
    examination.require()
    big = _load_model(target_folder, anatomies[0], dtype, device)
    small = _load_model(draft_folder, anatomies[1], draft_dtype or dtype, draft_device or device)
    if spec.adapter:
        small = _merged(small, fetch_adapter(spec.adapter, report))
    return Pair(
        target=Member(spec.target, big, anatomies[0].tokenizer, spec.target_system),
        draft=Member(spec.draft, small, anatomies[1].tokenizer, spec.draft_system),
        vocabulary=examination.vocabulary,
        context_length=examination.context_length,
        end_tokens=examination.end_tokens,
        config=config or spec.config,
    )


def _load_model(folder: Path, anatomy: Anatomy, dtype: str, device: str) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    from safedraft.engines.transformers import quiet_transformers

    try:
        with quiet_transformers():
            model, loading = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=_dtype(dtype),
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SafeDraftError(f"{anatomy.name} cannot be loaded from {folder}: {reason}") from error
    if missing := sorted(loading["missing_keys"]):
        raise SafeDraftError(
            f"{anatomy.name}: {folder} lacks {len(missing)} weights ({missing[0]}…): fetch it again"
        )
    loaded: PreTrainedModel = model.to(_device(device)).eval()
    return loaded


def _merged(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """``model`` with a LoRA adapter added into its weights."""
    from peft import PeftModel

    try:
        adapted = PeftModel.from_pretrained(model, str(folder), use_safetensors=True)
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    except Exception as error:  # peft raises what its readers raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SafeDraftError(f"the adapter in {folder} does not fit its model: {reason}") from error
    return merged.eval()


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
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise SafeDraftError(f"device {name!r} cannot be used: {reason}") from error
