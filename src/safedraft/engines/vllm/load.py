"""Loading a pair with vLLM."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from safedraft.core.config import SSDConfig
from safedraft.core.errors import SafeDraftError, first_line
from safedraft.engines.base import LoadedModel, LoadedPair
from safedraft.engines.vllm.engine import VllmEngine
from safedraft.engines.vllm.options import count_room
from safedraft.engines.vllm.setup import plan, prepare_environment, refuse_options, require_vllm
from safedraft.models.fingerprint import digest, fingerprint
from safedraft.models.progress import ReportProgress, silent
from safedraft.models.registry import PairSpec

_ON_PROCESSORS = {"enforce_eager": True, "kv_cache_memory_bytes": 2 << 30, "max_model_len": 4096}
"""Options on processors that the user can override: compilation takes minutes and makes no step
faster, and vLLM would take most of the memory."""


def load(
    spec: PairSpec,
    config: SSDConfig | None = None,
    report: ReportProgress = silent,
    *,
    dtype: str = "auto",
    draft_tokens_up_to: Mapping[int, int] | None = None,
    **options: Any,
) -> LoadedPair:
    """Start vLLM with a pair.

    Args:
        spec: the pair.
        config: constants in place of the pair's own.
        report: called with stage, done and total bytes while a model is fetched.
        dtype: ``auto`` (that of the checkpoint), ``bfloat16``, ``float16`` or ``float32``.
        draft_tokens_up_to: T by how many requests run, as in ``EnginePlan.options``; without it,
            T is that of ``config`` at any load, if that names one.
        options: vLLM's own engine arguments.

    Raises:
        SafeDraftError: vLLM is not installed, the pair does not suit it, or it does not start.
    """
    refuse_options(options)  # before anything is fetched
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    prepare_environment()
    require_vllm()
    chosen = plan(spec, config, report)
    context = chosen.parts.compatibility.context_length
    arguments = chosen.options(
        {
            "dtype": dtype,
            "skip_tokenizer_init": True,
            "disable_log_stats": True,
            **_defaults(context),
            **options,
        },
        requests_may_set_constants=True,
        traces=True,
        draft_tokens_up_to=draft_tokens_up_to,
    )
    ahead = arguments["speculative_config"]["num_speculative_tokens"]
    with _hide_numba():
        engine = VllmEngine(_start(arguments), chosen.config)
    target, draft = (description.tokenizer for description in chosen.parts.descriptions)
    # Replies differ with the type in the last bits of logits, and so does the cache of replies.
    identities = [
        digest(f"vllm {dtype} {fingerprint(one)}", digits=16) for one in chosen.parts.folders
    ]
    return LoadedPair(
        engine=engine,
        target=LoadedModel(spec.target, None, target, spec.target_system, identity=identities[0]),
        draft=LoadedModel(spec.draft, None, draft, spec.draft_system, identity=identities[1]),
        vocabulary=chosen.parts.compatibility.vocabulary,
        context_length=count_room(0, engine.context_length, ahead),
        end_tokens=chosen.parts.compatibility.end_tokens,
        config=chosen.config,
        spec=chosen.parts.spec,
        notes=chosen.parts.warnings,
        probe=chosen.parts.probe,
    )


def _defaults(context_length: int) -> dict[str, Any]:
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return {}
    limit = min(context_length, _ON_PROCESSORS["max_model_len"])
    return {**_ON_PROCESSORS, "max_model_len": limit}


@contextmanager
def _hide_numba() -> Iterator[None]:
    """Keep numba's modules from vLLM's walk over all modules, which fails on llvmlite's wrappers.

    It happens where the engine cpu was used in this process before; the walk imports nothing.
    """
    try:
        from vllm.triton_utils import dispatcher

        walk = dispatcher._rebind_kernels
    except (ImportError, AttributeError):  # another version of vLLM
        yield
        return

    def walk_others(*arguments: Any) -> None:
        names = [name for name in sys.modules if name.partition(".")[0] in ("numba", "llvmlite")]
        hidden = {name: sys.modules.pop(name) for name in names}
        try:
            walk(*arguments)
        finally:
            sys.modules.update(hidden)

    dispatcher._rebind_kernels = walk_others
    try:
        yield
    finally:
        dispatcher._rebind_kernels = walk


def _start(arguments: dict[str, Any]) -> Any:
    from vllm import LLM

    try:
        return LLM(**arguments)
    except (ValueError, RuntimeError, NotImplementedError) as error:
        raise SafeDraftError(f"vLLM does not start: {first_line(error)}") from error
