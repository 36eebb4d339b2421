"""An engine that could go by the rule does not start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import CONFORMANCE
from small import SMALL
from widen import widen

import safedraft
from safedraft.engines.vllm import checks
from safedraft.engines.vllm.options import KEY
from safedraft.errors import SafeDraftError

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Engine arguments that pass."""
    from safedraft.engines.vllm.setup import plan
    from safedraft.pairs.load import choose_pair

    folder = tmp_path_factory.mktemp("wide")
    target, draft = (
        str(widen(CONFORMANCE / f"tiny-{name}", folder / name)) for name in ("target", "near")
    )
    chosen = plan(choose_pair(target=target, draft=draft), safedraft.SSDConfig())
    return chosen.options({**SMALL, "skip_tokenizer_init": True})


def config_of(arguments: dict[str, Any]) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(**arguments).create_engine_config()


def test_the_engines_own_arguments_pass(arguments: dict[str, Any]) -> None:
    assert checks.require_engine(config_of(arguments)).vocabulary == 512


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"speculative_config": None}, "only method draft_model"),
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 3}}, "draft_model"),
        ({"scheduler_cls": None}, "scheduler_cls must be"),
        ({"worker_cls": "auto"}, "worker_cls must be"),
        ({"max_num_batched_tokens": 32}, "max_num_batched_tokens must be at least"),
        ({"additional_config": {}}, "needs its settings"),
        ({"additional_config": {KEY: {}}}, "vocabulary: Field required"),
        ({"additional_config": {KEY: {"vocabulary": 512, "off": True}}}, "off: Extra inputs"),
    ],
)
def test_another_way_is_refused(
    arguments: dict[str, Any], given: dict[str, Any], reason: str
) -> None:
    with pytest.raises(SafeDraftError, match=reason):
        checks.require_engine(config_of({**arguments, **given}))


def test_a_schedule_without_drafts_is_refused(arguments: dict[str, Any]) -> None:
    schedule = [[1, 4, 3], [5, 8, 0]]
    speculative = {
        **arguments["speculative_config"], "num_speculative_tokens_per_batch_size": schedule
    }  # fmt: skip
    with pytest.raises(SafeDraftError, match="a schedule without drafts"):
        checks.require_engine(config_of({**arguments, "speculative_config": speculative}))


def test_another_vllm_is_refused(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(checks.HOOKS, "GPUModelRunner._sample", "another")
    with pytest.raises(SafeDraftError, match=r"GPUModelRunner\._sample differ"):
        checks.require_engine(config_of(arguments))


def test_what_is_the_engines_to_set_is_refused(tmp_path: Path) -> None:
    from safedraft.engines.vllm.setup import Plan

    options = Plan.options
    with pytest.raises(SafeDraftError, match="worker_cls is set by"):
        options(None, {"worker_cls": "auto"})  # type: ignore[arg-type]
