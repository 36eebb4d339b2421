"""From names to a loaded pair: fetch, check, load, merge the adapter."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from filelock import FileLock

from safedraft.core.config import SSDConfig
from safedraft.core.errors import SafeDraftError, first_line
from safedraft.models.doctor import Anatomy, Examination, examine, read_anatomy
from safedraft.models.fetch import fetch, fetch_adapter
from safedraft.models.fingerprint import fingerprint, require_base
from safedraft.models.progress import Report, silent
from safedraft.models.registry import DEFAULT_PAIR, PairSpec, cache_folder, find_pair, pairs
from safedraft.pair import Member, Pair

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

    from safedraft.engines.vllm.pair import VllmPair

DTYPES = ("auto", "bfloat16", "float16", "float32")
INT8 = "int8"
"""A draft's dtype besides: the checkpoint's, with the weights of linear layers in 8 bits."""


def choose_pair(
    name: str | None = None,
    *,
    target: str | None = None,
    draft: str | None = None,
    adapter: str | None = None,
    use_adapter: bool = True,
) -> PairSpec:
    """The registered pair ``name`` with what was given in its place.

    With both ``target`` and ``draft`` and no name it is the registered pair of these two, or else
    a pair of its own, with nothing of the default pair's. A registered adapter or ``draft_dtype``
    goes with its own draft only.

    Raises:
        SafeDraftError: unknown name, or an adapter that is asked for and refused at once.
    """
    if "" in (name, target, draft, adapter):
        raise SafeDraftError("a pair, target, draft or adapter was named by an empty string")
    if adapter and not use_adapter:
        raise SafeDraftError("give an adapter or refuse one, not both")
    if name is None and target and draft:
        known = (spec for spec in pairs().values() if (spec.target, spec.draft) == (target, draft))
        new = PairSpec(name=f"{target} + {draft}", target=target, draft=draft)
        spec = next(known, new)
    else:
        spec = find_pair(name or DEFAULT_PAIR)
    own = draft in (None, spec.draft)
    return spec.model_copy(
        update={
            "target": target or spec.target,
            "draft": draft or spec.draft,
            "draft_dtype": spec.draft_dtype if own else None,
            "adapter": adapter or (spec.adapter if use_adapter and own else None),
        }
    )


@overload
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
    engine: Literal["transformers"] = "transformers",
    report: Report = silent,
) -> Pair: ...


@overload
def load_pair(
    name: str | None = None,
    *,
    target: str | None = None,
    draft: str | None = None,
    adapter: str | None = None,
    use_adapter: bool = True,
    config: SSDConfig | None = None,
    dtype: str = "auto",
    engine: Literal["vllm"],
    report: Report = silent,
    **options: Any,
) -> VllmPair: ...


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
    engine: Literal["transformers", "vllm"] = "transformers",
    report: Report = silent,
    **options: Any,
) -> Pair | VllmPair:
    """Fetch, check and load a pair.

    Args:
        name: a registered pair; the default one when nothing is given.
        target: in its place, a registered model, a folder, or a hub id ``owner/name[@revision]``.
        draft: likewise.
        adapter: a LoRA adapter for the draft (safetensors), merged into it: one that comes with
            SafeDraft, a folder, or a hub id.
        use_adapter: False for the bare draft of a pair that has an adapter.
        config: in place of the pair's own.
        dtype: ``auto`` (the checkpoint's), ``bfloat16``, ``float16`` or ``float32``.
        draft_dtype: the draft's, if another; also ``int8`` on processors: the checkpoint's, with
            weights in 8 bits. A pair's own holds where no dtype is named.
        device: ``auto`` (an accelerator if there is one), or as torch names it.
        draft_device: the draft's, if another.
        engine: ``transformers``, or ``vllm`` for many requests at once (docs/vllm.md).
        report: called with stage, done and total bytes while a model is fetched.
        options: vLLM's own engine arguments, for that engine alone.

    Raises:
        SafeDraftError: whatever does not fit, in one line that says what to do.
        IncompatiblePair: the two models cannot decode together.
    """
    spec = choose_pair(name, target=target, draft=draft, adapter=adapter, use_adapter=use_adapter)
    if engine == "vllm":
        from safedraft.engines.vllm.pair import load_vllm_pair

        if (device, draft_device, draft_dtype) != ("auto", None, None):
            raise SafeDraftError("device, draft_device and draft_dtype are vLLM's own to choose")
        return load_vllm_pair(spec, config=config, dtype=dtype, report=report, **options)
    if engine != "transformers" or options:
        what = min(options) if options else f"engine {engine!r}"
        raise SafeDraftError(f"{what}: not known to load_pair; engines are transformers and vllm")
    return load_spec(
        spec,
        config=config,
        dtype=dtype,
        draft_dtype=draft_dtype,
        device=device,
        draft_device=draft_device,
        report=report,
    )


def load_spec(
    spec: PairSpec,
    *,
    config: SSDConfig | None = None,
    dtype: str = "auto",
    draft_dtype: str | None = None,
    device: str = "auto",
    draft_device: str | None = None,
    report: Report = silent,
) -> Pair:
    """As ``load_pair`` with Transformers, of a pair that was chosen already."""
    from safedraft.kernels.avx2 import widen_as_multiplied
    from safedraft.kernels.int8 import keep_in_int8

    # What can be refused is refused before gigabytes are fetched or loaded.
    devices = [_device(place) for place in (device, draft_device or device)]
    small_type = _draft_dtype(spec, dtype, draft_dtype, devices[1])
    types = [_dtype(dtype), _dtype("auto" if small_type == INT8 else small_type)]
    parts = fetch_parts(spec, report)
    big, small = map(_load_model, parts.folders, parts.anatomies, types, devices)
    if parts.adapter:
        small = merged(small, parts.adapter)
    if small_type == INT8:
        keep_in_int8(small)
    for model in (big, small):
        widen_as_multiplied(model)
    tokenizers = [anatomy.tokenizer for anatomy in parts.anatomies]
    return Pair(
        target=Member(spec.target, big, tokenizers[0], spec.target_system),
        draft=Member(spec.draft, small, tokenizers[1], spec.draft_system),
        vocabulary=parts.examination.vocabulary,
        context_length=parts.examination.context_length,
        end_tokens=parts.examination.end_tokens,
        config=config or spec.config,
        spec=spec,
    )


class Parts(NamedTuple):
    """A pair on this machine, examined, with no weights in memory."""

    folders: tuple[Path, Path]
    """Of the target and of the draft."""
    adapter: Path | None
    anatomies: tuple[Anatomy, Anatomy]
    examination: Examination


def fetch_parts(spec: PairSpec, report: Report = silent) -> Parts:
    """Fetch what a pair consists of and check that the two fit.

    Raises:
        SafeDraftError: something cannot be had or read.
        IncompatiblePair: the two models cannot decode together.
    """
    target, draft = (fetch(model, report) for model in (spec.target, spec.draft))
    adapter = fetch_adapter(spec.adapter, report) if spec.adapter else None
    if adapter:
        require_base(adapter, draft)
    anatomies = read_anatomy(target, spec.target), read_anatomy(draft, spec.draft)
    examination = examine(*anatomies)
    examination.require()
    return Parts((target, draft), adapter, anatomies, examination)


def merged_draft(parts: Parts, report: Report = silent) -> Path:
    """A folder with the draft and its adapter in one, for engines that load folders themselves.

    Without an adapter it is the draft's own folder; otherwise one in the cache, written once.
    """
    if parts.adapter is None:
        return parts.folders[1]
    digest = hashlib.sha256(f"{parts.folders[1]} {fingerprint(parts.folders[1])}".encode())
    for file in sorted(parts.adapter.glob("adapter_*")):
        digest.update(file.read_bytes())
    folder = cache_folder() / "merged" / digest.hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        if not folder.is_dir():
            report(f"merging {parts.adapter.name} into its draft", 0, 0)
            _write_merged(parts, parts.adapter, folder)
    return folder


def _write_merged(parts: Parts, adapter: Path, folder: Path) -> None:
    """Write the merged draft beside ``folder``, which appears when all of it is there."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    anatomy = parts.anatomies[1]
    model = _load_model(parts.folders[1], anatomy, _dtype("auto"), _device("cpu"))
    merged(model, adapter).save_pretrained(partial)
    if anatomy.tokenizer is not None:
        anatomy.tokenizer.save_pretrained(partial)
    partial.rename(folder)


def _load_model(
    folder: Path, anatomy: Anatomy, dtype: torch.dtype | str, device: torch.device
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    from safedraft.engines.transformers.session import quiet_transformers
    from safedraft.kernels.attention import stack_queries

    try:
        with quiet_transformers():
            _require_weights_for(anatomy, folder)
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
            f"{anatomy.name} cannot be loaded from {folder}: {first_line(error)}"
        ) from error
    if missing := sorted(loading["missing_keys"]):
        raise SafeDraftError(
            f"{anatomy.name}: {folder} lacks {len(missing)} weights ({missing[0]}…): fetch it again"
        )
    loaded: PreTrainedModel = model.to(device).eval()
    stack_queries(loaded)
    return loaded


def _require_weights_for(anatomy: Anatomy, folder: Path) -> None:
    """Refuse a configuration far larger than its weights, before memory is taken for it."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(anatomy.config)
    needed = sum(weight.numel() for weight in model.parameters())
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if needed > 4 * stored:  # not even two bits a weight
        raise SafeDraftError(
            f"{anatomy.name}: config.json describes {needed:,} weights and {folder} holds "
            f"{stored:,} bytes of them: they do not belong together"
        )


def merged(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """``model`` with a LoRA adapter added into its weights.

    Raises:
        SafeDraftError: the adapter does not fit.
    """
    beside = adapted(model, folder)
    try:
        merged: PreTrainedModel = beside.merge_and_unload(safe_merge=True)
    except Exception as error:  # peft raises what its layers raise
        raise _misfit(folder, first_line(error)) from error
    # PEFT froze it, and torch copies a frozen output layer whenever two rows of it are asked for.
    return merged.requires_grad_(True).eval()


def adapted(model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> PeftModel:
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

    from safedraft.engines.transformers.session import quiet_transformers

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
