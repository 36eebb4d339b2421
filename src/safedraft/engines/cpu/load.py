"""Loading of a pair with packed weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from safedraft.core.config import SSDConfig
from safedraft.core.errors import SafeDraftError
from safedraft.engines.base import LoadedModel, LoadedPair
from safedraft.engines.cpu.compiled import compile_program, why_not_available
from safedraft.models.fingerprint import digest, fingerprint
from safedraft.models.parts import Parts, fetch_parts
from safedraft.models.pinned import build_once
from safedraft.models.progress import ReportProgress, silent
from safedraft.models.registry import PairSpec, cache_folder

TARGET, DRAFT = range(2)

BITS = {"int8": 8, "int4": 4}
"""Bits of a weight by the name of a dtype."""


def load(
    spec: PairSpec,
    config: SSDConfig | None = None,
    report: ReportProgress = silent,
    *,
    dtype: str = "auto",
    draft_dtype: str | None = None,
) -> LoadedPair:
    """Fetch, check, pack and load a pair; what is packed already is only mapped into memory.

    Args:
        spec: the pair.
        config: constants in place of the pair's own.
        report: called with stage, done and total while models are fetched and packed.
        dtype: type of the target's weights: ``int8``, which is ``auto``, or ``int4`` for layers
            with 4-bit weights in groups of 32.
        draft_dtype: type of the draft's weights, by default the type of the target's weights.

    Raises:
        SafeDraftError: the pair cannot be loaded, or this engine does not run its models.
        IncompatiblePairError: the two models cannot decode together.
    """
    if reason := why_not_available():
        raise SafeDraftError(f"the engine cpu {reason}: use --engine transformers")
    bits = read_bits(dtype, draft_dtype)
    return load_parts(fetch_parts(spec, report), config, report, bits)


def read_bits(dtype: str, draft_dtype: str | None) -> tuple[int, int]:
    """Number of bits of a weight in target and draft, from the options of ``load``.

    Raises:
        SafeDraftError: this engine has no such dtype.
    """
    target = "int8" if dtype == "auto" else dtype
    draft = draft_dtype or target
    for name in (target, draft):
        if name not in BITS:
            raise SafeDraftError(
                f"the engine cpu has {' and '.join(BITS)} and not {name}: use --engine transformers"
            )
    return BITS[target], BITS[draft]


def load_parts(
    parts: Parts, config: SSDConfig | None, report: ReportProgress, bits: tuple[int, int]
) -> LoadedPair:
    """Load a pair that was fetched and checked; ``bits`` are those of a weight in each model."""
    from safedraft.engines.cpu.architecture import read_architecture
    from safedraft.engines.cpu.engine import CPUEngine
    from safedraft.engines.cpu.pack import read

    spec = parts.spec
    for description in parts.descriptions:
        read_architecture(description.name, description.config)
    compile_program()
    from safedraft.engines.cpu.decoder import Decoder

    files = [_find_packed(parts, which, bits[which], report) for which in (TARGET, DRAFT)]
    names = (spec.target, spec.draft)
    vocabulary = parts.compatibility.vocabulary
    engine = CPUEngine(
        *(Decoder(name, read(file), vocabulary) for name, file in zip(names, files, strict=True))
    )
    ids = [description.config.vocab_size for description in parts.descriptions]
    target, draft = (description.tokenizer for description in parts.descriptions)
    return LoadedPair(
        engine=engine,
        target=LoadedModel(spec.target, None, target, spec.target_system, ids[0], files[0].stem),
        draft=LoadedModel(spec.draft, None, draft, spec.draft_system, ids[1], files[1].stem),
        vocabulary=vocabulary,
        context_length=parts.compatibility.context_length,
        end_tokens=parts.compatibility.end_tokens,
        config=config or spec.config,
        spec=spec,
        notes=parts.warnings,
        probe=parts.probe,
    )


def _find_packed(parts: Parts, which: int, bits: int, report: ReportProgress) -> Path:
    """Find a model's packed weights in the cache, or write them there."""
    from safedraft.engines.cpu.pack import FORMAT

    folder = parts.folders[which]
    adapter = parts.adapter if which == DRAFT else None
    files = sorted(adapter.glob("adapter_*")) if adapter else []
    name = digest(
        f"{FORMAT} {bits} {fingerprint(folder)}",
        parts.descriptions[which].config.to_json_string(),
        *(file.read_bytes() for file in files),
        digits=16,
    )
    return build_once(
        cache_folder() / "packed" / f"{name}.pt",
        partial(_pack, parts, which, bits, report),
        is_complete=Path.is_file,
        needed=sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        report=report,
    )


def _pack(parts: Parts, which: int, bits: int, report: ReportProgress, file: Path) -> None:
    import torch

    from safedraft.engines.cpu.pack import pack, save
    from safedraft.models.weights import load_model, merge_adapter

    folder, description = parts.folders[which], parts.descriptions[which]
    report(f"loading {description.name}", 0, 0)
    model = load_model(folder, description, "auto", torch.device("cpu"))
    if which == DRAFT and parts.adapter:
        model = merge_adapter(model, parts.adapter)
    save(pack(description.name, model, report, bits=bits), file)
