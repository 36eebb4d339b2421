"""An engine that could bypass the rule does not start."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import CONFORMANCE
from small import SMALL
from widen import widen

import safedraft
from safedraft.core.errors import SafeDraftError, UnguardedWarning
from safedraft.engines.vllm import checks, hooks
from safedraft.engines.vllm.honored import HONORED, require_honored
from safedraft.engines.vllm.options import KEY, Settings
from safedraft.server.vllm.serve import parse_command

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Engine arguments that pass."""
    from safedraft.engines.vllm.setup import plan
    from safedraft.models.registry import choose_pair

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
        ({"additional_config": {KEY: {}}}, "vocabulary: is missing"),
        ({"additional_config": {KEY: {"vocabulary": 512, "off": True}}}, "off: there is nothing"),
        (
            {"additional_config": {KEY: {"vocabulary": 512, "draft_tokens_up_to": {4: 0}}}},
            "draft_tokens_up_to.*at least 1",
        ),
    ],
)
def test_another_way_is_refused(
    arguments: dict[str, Any], given: dict[str, Any], reason: str
) -> None:
    with pytest.raises(SafeDraftError, match=reason):
        checks.require_engine(config_of({**arguments, **given}))


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("speculative_config.rejection_sample_method", "synthetic", "synthetic acceptance"),
        ("speculative_config.parallel_drafting", True, "parallel drafting"),
        ("speculative_config.use_heterogeneous_vocab", True, "two vocabularies"),
        ("speculative_config.draft_model_config.max_model_len", 8, "the draft's context"),
        ("use_v2_model_runner", True, "runner V2"),
        ("scheduler_config.async_scheduling", True, "async scheduling"),
        ("parallel_config.pipeline_parallel_size", 2, "pipeline parallelism"),
        ("parallel_config.decode_context_parallel_size", 2, "context parallelism"),
        ("parallel_config.prefill_context_parallel_size", 2, "context parallelism"),
        ("lora_config", object(), "adapters of the target"),
        ("kv_transfer_config", object(), "transferred caches"),
        ("weight_transfer_config", object(), "weights that change"),
        ("model_config.runner_type", "pooling", "only generating models"),
        ("model_config.is_hybrid", True, "recurrent state"),
        ("model_config.is_attention_free", True, "recurrent state"),
        ("model_config.is_encoder_decoder", True, "encoder-decoders"),
        ("model_config.supports_multimodal_inputs", True, "other inputs than text"),
        ("model_config.enable_sleep_mode", True, "sleeping"),
        ("model_config.enable_prompt_embeds", True, "prompt embeddings"),
        ("model_config.logprobs_mode", "raw_logits", "logprobs_mode"),
        ("model_config.logits_processors", ["mine"], "logits processors of your own"),
    ],
)
def test_whatever_else_goes_by_the_rule_is_refused(
    arguments: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    option: str,
    value: object,
    reason: str,
) -> None:
    config = config_of(arguments)
    path, _, name = option.rpartition(".")
    owner = attrgetter(path)(config) if path else config
    if name in vars(owner):
        object.__setattr__(owner, name, value)
    else:  # what vLLM works out
        monkeypatch.setattr(type(owner), name, value)
    with pytest.raises(SafeDraftError, match=reason):
        checks.require_engine(config)


def test_no_engine_goes_without_the_plug_in(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.engine.input_processor import InputProcessor

    config = config_of(arguments)
    process: Any = InputProcessor.process_inputs
    monkeypatch.setattr(InputProcessor, "process_inputs", process.__wrapped__)
    with pytest.raises(SafeDraftError, match="VLLM_PLUGINS, where it is set, must name safedraft"):
        checks.require_engine(config)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"sampling_params": None}, "pooling, embeddings and scores"),
        ({"prompt_embeds": object()}, "the draft reads token ids"),
        ({"mm_features": [object()]}, "the draft reads token ids"),
        ({"lora_request": object()}, "an adapter for the target alone"),
        ({"resumable": True}, "a session that is resumed"),
        ({"prompt_token_ids": [5, 512]}, "do not share, such as 512"),
        ({"sampling_params": {"stop_token_ids": [512]}}, "stop_token_ids: 512 is not a token"),
        ({"sampling_params": {"allowed_token_ids": [5, 512]}}, "allowed_token_ids: 512 is not"),
        ({"sampling_params": {"bad_words": ["no"]}}, "bad_words: this engine has no tokenizer"),
    ],
)
def test_a_request_that_goes_by_the_rule_is_refused(given: dict[str, Any], reason: str) -> None:
    from vllm import SamplingParams

    asked: dict[str, Any] = {
        "request_id": "1", "sampling_params": {}, "prompt_embeds": None, "mm_features": [],
        "lora_request": None, "resumable": False, "prompt_token_ids": [5, 6],
    }  # fmt: skip
    config = SimpleNamespace(
        speculative_config=SimpleNamespace(num_speculative_tokens=3),
        model_config=SimpleNamespace(max_model_len=64),
    )
    settings = Settings(vocabulary=512, requests_may_set_constants=True)

    def admit(request: dict[str, Any]) -> None:
        params = request["sampling_params"]
        request["sampling_params"] = params if params is None else SamplingParams(**params)
        checks.admit(SimpleNamespace(**request), config, settings)

    admit(dict(asked))
    with pytest.raises(SafeDraftError, match=reason):
        admit(asked | given)


def test_only_what_is_known_is_honoured() -> None:
    from vllm import SamplingParams

    fields = set(SamplingParams.__struct_fields__)
    assert fields > HONORED
    for name in fields - HONORED:
        params = SamplingParams()
        setattr(params, name, ["anything"])
        with pytest.raises(SafeDraftError, match=f"{name} is not supported with SSD"):
            require_honored(params)


def test_vllms_options_are_written_out(capsys: pytest.CaptureFixture[str]) -> None:
    from vllm.entrypoints.cli.serve import ServeSubcommand

    command = ["serve", "/model", "--max-model-len", "64"]
    assert parse_command(ServeSubcommand(), command).max_model_len == 64
    with pytest.raises(SystemExit):
        parse_command(ServeSubcommand(), [*command, "--speculative-conf", "{}"])
    assert "--speculative-conf" in capsys.readouterr().err


def test_a_table_of_vllms_own_is_refused(arguments: dict[str, Any]) -> None:
    schedule = [[1, 4, 3], [5, 8, 1]]
    speculative = {
        **arguments["speculative_config"], "num_speculative_tokens_per_batch_size": schedule
    }  # fmt: skip
    with pytest.raises(SafeDraftError, match="T by load that vLLM chooses"):
        checks.require_engine(config_of({**arguments, "speculative_config": speculative}))


@pytest.mark.parametrize("alone", [False, True])
def test_a_multimodal_target_is_served_only_if_it_reads_text_alone(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    """Its configuration is put together here: vLLM looks at such models with what sees images."""
    from vllm.config.multimodal import MultiModalConfig
    from vllm.multimodal import MULTIMODAL_REGISTRY

    config = config_of({**arguments, "language_model_only": alone})
    model = config.model_config
    model.multimodal_config = MultiModalConfig(language_model_only=alone)
    monkeypatch.setattr(type(model), "is_multimodal_model", True)
    seen = SimpleNamespace(supported_mm_limits={"image": None})
    monkeypatch.setattr(MULTIMODAL_REGISTRY, "get_processing_info", lambda _: seen)
    if alone:
        checks.require_engine(config)
    else:
        with pytest.raises(SafeDraftError, match="other inputs than text"):
            checks.require_engine(config)


def test_another_vllm_is_refused(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = {**hooks.HOOKS["0.32.0"], "GPUModelRunner._sample": "another"}
    monkeypatch.setattr(hooks, "HOOKS", {"0.32.0": changed})
    with pytest.raises(SafeDraftError, match=r"GPUModelRunner\._sample differ from 0\.32\.0"):
        checks.require_engine(config_of(arguments))


def test_a_vllm_that_was_only_read_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnguardedWarning)
        hooks.require_known_hooks()
    monkeypatch.setattr(hooks, "HOOKS", {"0.99.0": hooks.HOOKS["0.32.0"]})
    with pytest.warns(UnguardedWarning, match=r"code of vLLM 0\.99\.0 was read .* never run"):
        hooks.require_known_hooks()


def test_a_hook_is_read_from_a_file_as_from_the_module() -> None:
    for name in hooks.HOOKS["0.32.0"]:
        module = import_module(hooks.HOMES[name.partition(".")[0]])
        code = hooks.read_hook(name, Path(module.__file__ or "").read_text("utf-8"))
        assert hooks.fingerprint(code or "") == hooks.HOOKS["0.32.0"][name]
    assert hooks.read_hook("Scheduler.gone", "class Scheduler:\n    pass\n") is None


def test_what_is_the_engines_to_set_is_refused(tmp_path: Path) -> None:
    from safedraft.engines.vllm.setup import EnginePlan

    options = EnginePlan.options
    with pytest.raises(SafeDraftError, match="worker_cls is set by"):
        options(None, {"worker_cls": "auto"})  # type: ignore[arg-type]


PATCHED = """
import torch
import vllm.v1.worker.gpu_worker

def state():
    cuda, accelerator = torch.cuda, torch.accelerator
    return [cuda.Event, cuda.Stream, cuda.set_stream, cuda.current_stream, accelerator.synchronize,
            accelerator.empty_cache, torch.Event, torch.Tensor.pin_memory]

before = state()
import safedraft.engines.vllm.{module}
print(sum(one is not other for one, other in zip(before, state(), strict=True)))
"""


@pytest.mark.parametrize(("module", "changes"), [("worker_cuda", False), ("worker_cpu", True)])
def test_the_worker_on_cuda_changes_no_more_of_torch_than_vllms_own(
    module: str, changes: bool
) -> None:
    code = PATCHED.format(module=module)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert bool(int(run.stdout.split()[-1])) is changes


def test_rocm_is_refused_although_vllm_takes_it_for_cuda(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rocm = SimpleNamespace(is_rocm=lambda: True, device_type="cuda")
    config = config_of(arguments)
    checks.require_engine(config)
    monkeypatch.setattr("vllm.platforms.current_platform", rocm)
    with pytest.raises(SafeDraftError, match="the platform rocm is not supported"):
        checks.require_engine(config)


def test_what_vllm_would_refuse_is_moved_and_the_rest_stays() -> None:
    from vllm import PoolingParams, SamplingParams

    from safedraft.engines.vllm.parameters import carry

    for untouched in (SamplingParams(top_p=0.5, temperature=0.7), PoolingParams()):
        assert carry(untouched) is untouched
    given = SamplingParams(min_p=0.25, logit_bias={5: 2.0}, extra_args={"ssd_alpha_union": 1.0})
    carried = carry(given)
    assert (carried.min_p, carried.logit_bias) == (0.0, None)
    moved = {"ssd_alpha_union": 1.0, "ssd_min_p": 0.25, "ssd_logit_bias": {5: 2.0}}
    assert carried.extra_args == moved
    assert (given.min_p, given.logit_bias) == (0.25, {5: 2.0})  # the caller's are left as they are


@pytest.mark.parametrize("own", [True, False])
def test_the_plug_in_moves_them_in_safedrafts_own_engines_alone(
    monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    from vllm import SamplingParams
    from vllm.v1.engine.input_processor import InputProcessor

    from safedraft.engines.vllm.options import KEY
    from safedraft.engines.vllm.plugin import register

    def process(self: Any, request_id: str, prompt: Any, params: Any) -> Any:
        return params

    monkeypatch.setattr(InputProcessor, "__init__", InputProcessor.__init__)
    monkeypatch.setattr(InputProcessor, "process_inputs", process)
    monkeypatch.setattr(checks, "admit", lambda *_: None)
    register()
    extra = {KEY: {"vocabulary": 8}} if own else {}
    engine: Any = SimpleNamespace(vllm_config=SimpleNamespace(additional_config=extra))
    given = SamplingParams(min_p=0.25)
    processed = InputProcessor.process_inputs(engine, "1", "a prompt", params=given)
    assert (processed.extra_args == {"ssd_min_p": 0.25}) is own
    assert (processed is given) is not own
