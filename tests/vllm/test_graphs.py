"""Which steps vLLM would run as one CUDA graph, by its own dispatcher; none is captured here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy
import pytest
from small import engine, runner_of

pytestmark = pytest.mark.vllm


class Attention:
    """An attention whose graphs need rows of one length, as those of vLLM on CUDA do."""

    @staticmethod
    def get_builder_cls() -> type[Attention]:
        return Attention

    @staticmethod
    def get_cudagraph_support(*_: Any) -> Any:
        from vllm.v1.attention.backend import AttentionCGSupport

        return AttentionCGSupport.UNIFORM_BATCH


def prepare_graphs(runner: Any) -> None:
    """Choose the graphs to capture as on CUDA, where vLLM compiles the target in pieces."""
    from vllm.config import CUDAGraphMode

    config = runner.vllm_config
    compilation = config.compilation_config
    config.model_config.enforce_eager = False
    compilation.cudagraph_mode = CUDAGraphMode.FULL_AND_PIECEWISE
    compilation.cudagraph_capture_sizes = compilation.max_cudagraph_capture_size = None
    config._set_cudagraph_sizes()
    group = SimpleNamespace(kv_cache_spec=None)
    runner._check_and_update_cudagraph_mode([{Attention}], [group])


def mode_of(runner: Any, lengths: list[int]) -> tuple[str, int]:
    """How a step over rows of these lengths would run, and over how many tokens."""
    mode, batch, *_ = runner._determine_batch_execution_and_padding(
        num_tokens=sum(lengths),
        num_reqs=len(lengths),
        num_scheduled_tokens_np=numpy.array(lengths, dtype=numpy.int32),
        max_num_scheduled_tokens=max(lengths),
    )
    return mode.name, batch.num_tokens


def test_every_step_of_whole_blocks_is_one_graph() -> None:
    with engine("near", draft_tokens_up_to={4: 3, 8: 1}) as pair:
        runner = runner_of(pair)
        prepare_graphs(runner)
        sizes = runner.compilation_config.cudagraph_capture_sizes
        assert all(size % 4 == 0 for size in sizes)
        for rows in range(1, 9):
            mode, tokens = mode_of(runner, [4] * rows)
            assert mode == "FULL"
            assert tokens == next(size for size in sizes if size >= 4 * rows)
        for lengths in ([4, 3], [2] * 8, [4, 30], [5, 4]):
            assert mode_of(runner, lengths)[0] == "PIECEWISE"
