"""vLLM engines of the tiny models, one after the other in this process."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytest
import torch
from conftest import CONFORMANCE, save_pair
from widen import widen

import safedraft
from safedraft.models.registry import choose_pair
from safedraft.pair.load import load_spec

SMALL: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 256,
    "kv_cache_memory_bytes": 64 * 2**20,
    "block_size": 32,
    "max_num_seqs": 8,
}


@contextmanager
def engine(
    draft: str,
    config: safedraft.SSDConfig | None = None,
    draft_dtype: Literal["int8"] | None = None,
    **options: Any,
) -> Iterator[Any]:
    """A pair in vLLM: the tiny target with the draft of that name, T of 3 if none is given."""
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="ERROR")
    torch.set_num_threads(1)  # more wait for each other longer than these models take
    if config is None and "draft_tokens_up_to" not in options:
        config = safedraft.SSDConfig(draft_tokens=3)
    with TemporaryDirectory() as name:
        folders = [
            str(widen(CONFORMANCE / f"tiny-{model}", Path(name) / model))
            for model in ("target", draft)
        ]
        spec = choose_pair(target=folders[0], draft=folders[1])
        pair = load_spec(
            spec.model_copy(update={"draft_dtype": draft_dtype}),
            config=config,
            engine="vllm",
            **{**SMALL, **options},
        )
        with closing(pair):
            yield pair


@contextmanager
def speaking(folder: Path, **options: Any) -> Iterator[Any]:
    """Two models that speak bytes, with grammars."""
    folders = save_pair(folder, hidden_size=128, head_dim=32)
    pair = load_spec(
        choose_pair(target=str(folders[0]), draft=str(folders[1]), use_adapter=False),
        config=safedraft.SSDConfig(draft_tokens=3),
        engine="vllm",
        **{**SMALL, **options},
        skip_tokenizer_init=False,
        structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
    )
    with closing(pair):
        yield pair


@contextmanager
def closing(pair: Any) -> Iterator[None]:
    """Afterwards another engine can start in this process."""
    try:
        yield
    finally:
        from vllm.distributed import cleanup_dist_env_and_memory

        pair.close()
        cleanup_dist_env_and_memory()


def transformers_pair(draft: str) -> safedraft.Pair:
    """The same models, not widened, in the first engine."""
    return safedraft.load_pair(
        target=str(CONFORMANCE / "tiny-target"),
        draft=str(CONFORMANCE / f"tiny-{draft}"),
        config=safedraft.SSDConfig(),
        dtype="float32",
        device="cpu",
    )


@contextmanager
def watched(pair: Any) -> Iterator[Counter[str]]:
    """What happens to the rows of the steps that vLLM's scheduler plans, counted."""
    scheduler, seen = scheduler_of(pair), Counter[str]()
    schedule = scheduler.schedule

    def watch(*args: Any) -> Any:
        drafts = {request.request_id: len(request.spec_token_ids) for request in scheduler.running}
        plan = schedule(*args)
        for request in scheduler.running:
            name = request.request_id
            scheduled = plan.num_scheduled_tokens.get(name, 0)
            ran = plan.scheduled_spec_decode_tokens.get(name, [])
            begun = request.num_output_tokens > 0
            resumed = begun and name in plan.scheduled_cached_reqs.resumed_req_ids
            seen["resumed in a reply"] += resumed
            seen["resumed, all cached but one token"] += resumed and scheduled - len(ran) == 1
            seen["placeholders"] += -1 in ran
            seen["placeholders of a reply"] += begun and -1 in ran
            seen["left out"] += drafts.get(name, 0) > 0 and not scheduled
            seen["drafts cut"] += scheduled > 0 and len(ran) < drafts.get(name, 0)
        return plan

    scheduler.schedule = watch
    try:
        yield seen
    finally:
        del scheduler.schedule


def break_logits(
    patch: pytest.MonkeyPatch, model: Literal["draft", "target"], breaks: Callable[[Any], bool]
) -> None:
    """Give NaN to a model's logits of the requests for which ``breaks`` is true."""
    from safedraft.engines.vllm import runner
    from safedraft.engines.vllm.batch import DraftedBlocks

    def spoil(served: Sequence[Any], logits: Any, firsts: Sequence[int]) -> None:
        for row, one in zip(firsts, served, strict=True):
            if one and breaks(one):
                logits[row, 5] = float("nan")

    def propose_broken(block: Any, logits: Any) -> Any:
        spoil(block._served, logits, range(len(logits)))
        return propose(block, logits)

    def verify_broken(served: Any, logits: Any, firsts: Any) -> Any:
        spoil(served, logits, firsts)
        return verify(served, logits, firsts)

    propose, verify = DraftedBlocks.propose, runner.verify
    if model == "draft":
        patch.setattr(DraftedBlocks, "propose", propose_broken)
    else:
        patch.setattr(runner, "verify", verify_broken)


def scheduler_of(pair: Any) -> Any:
    """vLLM's scheduler, which runs in this process."""
    return pair.engine._engine.engine_core.engine_core.scheduler


def runner_of(pair: Any) -> Any:
    """vLLM's model runner, which runs in this process."""
    return pair.engine._engine.model_executor.driver_worker.worker.model_runner
