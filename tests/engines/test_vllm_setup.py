"""What is refused before vLLM is asked, and what it is asked for. None of it needs vLLM."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from inspect import isclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import TEMPLATE, save_model, save_pair, save_tokenizer
from installed import install
from test_load import save_adapter

import safedraft
from safedraft import RiskConfig
from safedraft.core.errors import IncompatiblePairError, SafeDraftError
from safedraft.core.plugins import Registry
from safedraft.core.risk import Reading, RiskContext, RiskProbe
from safedraft.core.rule import Context, State
from safedraft.defenses.ada_probe import ReadTarget
from safedraft.engines.vllm.options import Settings, _read_probe, count_room, wants_statistics
from safedraft.engines.vllm.setup import MAX_DRAFT_TOKENS, EnginePlan, plan
from safedraft.models.fingerprint import fingerprint
from safedraft.models.probe_file import PROBE, ProbeFile, write_probe
from safedraft.models.registry import PairSpec
from safedraft.rules.risk import Risk
from safedraft.server.vllm.gate import middleware_arguments
from safedraft.server.vllm.operator import Operator
from safedraft.server.vllm.serve import build_command, parse_options, serve_pair, write_options


def spec(models: tuple[Path, Path], **given: Any) -> PairSpec:
    return PairSpec(name="tiny", target=str(models[0]), draft=str(models[1]), **given)


def test_a_prompt_of_the_drafts_own_is_refused(tiny_pair: tuple[Path, Path]) -> None:
    with pytest.raises(SafeDraftError, match="gives both one prompt"):
        plan(spec(tiny_pair, draft_system="Refuse."))
    both = spec(tiny_pair, draft_system="Be safe.", target_system="Be safe.")
    assert plan(both).draft == tiny_pair[1]
    with pytest.raises(SafeDraftError, match="has a system prompt, and vLLM's server"):
        serve_pair(both, None, [])


def test_a_header_that_could_be_wrong_is_refused(tiny_pair: tuple[Path, Path]) -> None:
    with pytest.raises(SafeDraftError, match="leave out --allow constants"):
        serve_pair(spec(tiny_pair), None, [], True, guard_header=True)


def test_vllms_processes_know_what_the_operator_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEDRAFT_OPERATOR", "")
    for shown, header in ((True, (b"x-safedraft-guarded", b"false")), (False, None)):
        Operator(name="tiny", guarded=False, guard_header=shown).put_in_environment()
        assert Operator.from_environment().header == header
        assert Operator.from_environment().name == "tiny"


def test_another_chat_template_is_refused(tiny_pair: tuple[Path, Path], tmp_path: Path) -> None:
    save_model(tmp_path)
    save_tokenizer(tmp_path, "{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(IncompatiblePairError, match="chat templates"):
        plan(spec((tiny_pair[0], tmp_path)))


def test_a_draft_that_nobody_can_compare_is_refused(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    save_model(tmp_path)
    with pytest.raises(IncompatiblePairError, match="only one of the models has a tokenizer"):
        plan(spec((tiny_pair[0], tmp_path)))


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE,
        None,
    ],
    ids=["no system turn", "none"],
)
def test_templates_without_a_system_turn_may_fit(tmp_path: Path, template: str | None) -> None:
    models = save_pair(tmp_path)
    for folder in models:
        (folder / "chat_template.jinja").unlink()
        save_tokenizer(folder, template)
    assert plan(spec(models)).draft == models[1]


def test_drafts_end_early_but_do_not_grow(tiny_pair: tuple[Path, Path]) -> None:
    early = safedraft.SSDConfig(draft_confidence=0.4, draft_tokens=2)
    growing = early.replace(draft_growth=2.0)
    assert plan(spec(tiny_pair, config=growing)).config == RiskConfig.extend(early)
    registered = spec(tiny_pair, config=growing.replace(draft_tokens=12))
    assert plan(registered).config.draft_tokens == MAX_DRAFT_TOKENS
    whole = spec(tiny_pair, config=safedraft.SSDConfig(draft_tokens=12))
    assert plan(whole).config == RiskConfig(draft_tokens=12)
    with pytest.raises(SafeDraftError, match="draft_growth"):
        plan(registered, safedraft.SSDConfig(draft_growth=2.0))


def test_drafts_are_chains(tiny_pair: tuple[Path, Path]) -> None:
    grown = safedraft.SSDConfig(draft_tree_threshold=0.1, draft_tree_stop=0.2)
    for trees in (grown, safedraft.SSDConfig(draft_tree=(2, 1))):
        assert plan(spec(tiny_pair, config=trees)).config == RiskConfig()
    chosen: list[dict[str, Any]] = [
        {"draft_tree_threshold": 0.1},
        {"draft_tree_stop": 0.2},
        {"draft_tree": (2, 1)},
    ]
    for constants in chosen:
        with pytest.raises(SafeDraftError, match=f"{min(constants)}: vLLM drafts chains"):
            plan(spec(tiny_pair), safedraft.SSDConfig(**constants))


def settings_of(chosen: EnginePlan, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of a pair, as vLLM's processes read them."""
    monkeypatch.setattr("safedraft.engines.vllm.setup.name_platform", lambda: "cpu")
    written = json.dumps(chosen.options({})["additional_config"])
    settings = Settings.of(SimpleNamespace(additional_config=json.loads(written)))
    assert settings is not None
    return settings


def test_the_adapter_is_merged_into_a_folder_of_the_cache_once(
    tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_pair[1])
    lora = get_peft_model(
        model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    )
    lora.save_pretrained(tmp_path / "lora")
    merged = plan(spec(tiny_pair, adapter=str(tmp_path / "lora"))).draft
    assert merged != tiny_pair[1]
    name = "model.layers.0.self_attn.q_proj.weight"
    before, after = (
        load_file(folder / "model.safetensors")[name] for folder in (tiny_pair[1], merged)
    )
    assert not before.equal(after)
    written = (merged / "model.safetensors").stat().st_mtime_ns
    assert plan(spec(tiny_pair, adapter=str(tmp_path / "lora"))).draft == merged
    assert (merged / "model.safetensors").stat().st_mtime_ns == written
    (tmp_path / "lora" / "adapter_model.safetensors").touch()  # the same bytes
    assert plan(spec(tiny_pair, adapter=str(tmp_path / "lora"))).draft == merged
    assert plan(spec(tiny_pair, adapter=str(tmp_path / "lora"))).probe is None
    alone = RiskProbe(torch.zeros(model.config.hidden_size), 0.0)
    write_probe(tmp_path / "lora", ProbeFile(alone))
    read = plan(spec(tiny_pair, adapter=str(tmp_path / "lora")))
    assert (read.draft, read.probe) == (merged, tmp_path / "lora" / PROBE)
    assert settings_of(read, monkeypatch).probe_reads == ("draft",)

    both = RiskProbe(torch.zeros(2 * model.config.hidden_size), 0.0)
    own = {"target": fingerprint(tiny_pair[0])}
    write_probe(tmp_path / "lora", ProbeFile(alone, both, own))
    read = plan(spec(tiny_pair, adapter=str(tmp_path / "lora")))
    assert settings_of(read, monkeypatch).probe_reads == ("draft", "target")
    other, _ = save_pair(tmp_path / "other", seed=9)
    read = plan(spec((other, tiny_pair[1]), adapter=str(tmp_path / "lora")))
    assert settings_of(read, monkeypatch).probe_reads == ("draft",)
    assert any("trained with another target" in note for note in read.parts.warnings)


def test_a_draft_with_other_padding_gets_the_targets_rows(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    save_model(tmp_path, vocabulary=320)
    save_tokenizer(tmp_path)
    chosen = plan(spec((tmp_path, tiny_pair[1])))
    assert chosen.draft != tiny_pair[1]
    assert json.loads((chosen.draft / "config.json").read_text())["vocab_size"] == 320
    assert chosen.parts.compatibility.vocabulary == 258


def test_a_draft_that_cannot_be_run_as_the_target_is_refused(
    tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safedraft.engines.vllm.setup.name_platform", lambda: "cuda")
    chosen = plan(spec(tiny_pair))
    assert chosen.options({"tensor_parallel_size": 4})
    with pytest.raises(SafeDraftError, match=r"4 attention heads, 2 of .* 1 or 2 or 4 devices"):
        chosen.options({"tensor_parallel_size": 8})
    target = shutil.copytree(tiny_pair[0], tmp_path / "half")
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "dtype": "float16"}))
    half = plan(spec((target, tiny_pair[1])))
    with pytest.raises(SafeDraftError, match=r"dtype: .* is stored in float16, .* choose bfloat16"):
        half.options({})
    for dtype in ("bfloat16", "float16"):
        assert half.options({"dtype": dtype})


def test_what_the_engine_sets_is_not_the_users_to_set(
    tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safedraft.engines.vllm.setup.name_platform", lambda: "cpu")
    chosen = plan(spec(tiny_pair))
    for name in ("scheduler_cls", "spec_method"):
        with pytest.raises(SafeDraftError, match=f"{name} is set by"):
            chosen.options({name: "another"})
    options = chosen.options({"max_num_seqs": 4}, draft_tokens_up_to={8: 2, 2: 5})
    speculative = options["speculative_config"]
    assert speculative["num_speculative_tokens"] == 6
    assert table_of(options) == {2: 5, 8: 2}
    assert options["additional_config"]["safedraft"]["vocabulary"] == 258
    assert not options["additional_config"]["safedraft"]["requests_may_set_constants"]
    with pytest.raises(SafeDraftError, match="at least 1"):
        chosen.options({}, draft_tokens_up_to={8: 0})
    with pytest.raises(SafeDraftError, match="data-parallel engines have one T"):
        chosen.options({"data_parallel_size": 2}, draft_tokens_up_to={8: 2})
    named = plan(spec(tiny_pair), safedraft.SSDConfig(draft_tokens=4))
    with pytest.raises(SafeDraftError, match="draft_tokens or draft_tokens_up_to, not both"):
        named.options({}, draft_tokens_up_to={8: 2})


REGISTERED = safedraft.SSDConfig(draft_tokens=12, draft_confidence=0.4, draft_growth=2.0)


@pytest.mark.parametrize(
    ("config", "given", "passes", "table"),
    [
        (None, {}, 6, {2: 5, 4: 3, 8: 2}),
        (REGISTERED.replace(bin_size=5), {}, 6, {2: 5, 4: 3, 8: 2}),
        (safedraft.SSDConfig(bin_size=5), {}, 4, {2: 3, 4: 3, 8: 2}),
        (REGISTERED.replace(draft_tokens=9), {}, 10, {}),
        (safedraft.SSDConfig(draft_tokens=4), {}, 5, {}),
        (None, {"data_parallel_size": 2}, 6, {}),
    ],
    ids=[
        "the pair's", "another constant", "a config without T", "--set", "a config with T",
        "data parallel",
    ],
)  # fmt: skip
def test_unless_the_user_names_t_it_falls_with_load(
    tiny_pair: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    config: safedraft.SSDConfig | None,
    given: dict[str, Any],
    passes: int,
    table: dict[int, int],
) -> None:
    monkeypatch.setattr("safedraft.engines.vllm.setup.name_platform", lambda: "cpu")
    monkeypatch.setattr(
        "safedraft.engines.vllm.setup.DRAFT_TOKENS_UP_TO", {"cpu": {2: None, 4: 3, 8: 2}}
    )
    chosen = plan(spec(tiny_pair, config=REGISTERED), config)
    assert chosen.config.draft_growth == 0
    options = chosen.options(given)
    assert options["speculative_config"]["num_speculative_tokens"] == passes
    assert table_of(options) == table


def table_of(options: dict[str, Any]) -> dict[int, int]:
    """T by load, as the processes of vLLM read it."""
    settings = json.loads(json.dumps(options["additional_config"]["safedraft"]))
    return Settings.model_validate(settings).draft_tokens_up_to


def test_a_small_t_is_the_same_at_any_load(
    tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safedraft.engines.vllm.setup.name_platform", lambda: "cpu")
    small = plan(spec(tiny_pair, config=safedraft.SSDConfig(draft_tokens=1)))
    assert table_of(small.options({})) == {}


@pytest.mark.parametrize(
    ("config", "given", "passes", "table", "confidence"),
    [
        (None, {}, 4, {64: 3, 128: 2, 256: 1}, 0.0),
        (None, {"data_parallel_size": 2}, 4, {64: 3}, 0.0),
        (REGISTERED.replace(draft_tokens=5), {}, 6, {}, 0.0),
        (REGISTERED.replace(draft_confidence=0.4), {}, 4, {64: 3, 128: 2, 256: 1}, 0.4),
    ],
    ids=["the pair's", "data parallel", "T is named", "an early end is named"],
)
def test_on_cuda_t_is_small_and_rows_have_equally_many_drafts(
    tiny_pair: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    config: safedraft.SSDConfig | None,
    given: dict[str, Any],
    passes: int,
    table: dict[int, int],
    confidence: float,
) -> None:
    monkeypatch.setattr("safedraft.engines.vllm.setup.name_platform", lambda: "cuda")
    options = plan(spec(tiny_pair, config=REGISTERED), config).options(given)
    assert options["worker_cls"].endswith("worker_cuda.SSDCUDAWorker")
    assert options["speculative_config"]["num_speculative_tokens"] == passes
    assert table_of(options) == table
    settings = options["additional_config"]["safedraft"]
    assert settings["config"]["draft_confidence"] == confidence


def test_the_last_entry_of_a_table_holds_for_more_requests() -> None:
    settings = Settings(vocabulary=9, draft_tokens_up_to={4: 2, 2: 3})
    assert settings.passes_by_load(6) == [4, 4, 4, 3, 3, 3, 3]
    assert Settings(vocabulary=9).passes_by_load(6) is None


def test_the_command_line_of_vllms_server() -> None:
    arguments = ["--port", "8000", "-tp", "2", "--max-model-len=512"]
    given = parse_options(arguments)
    assert given == {"port": 8000, "tensor_parallel_size": 2, "max_model_len": 512}
    wanted = {"model": "/m", "max_model_len": 512, "async_scheduling": False, "x_y": {"a": 1}}
    assert build_command(wanted, "pair", arguments) == [
        "serve", "/m", "--no-async-scheduling", "--x-y", '{"a": 1}',
        "--served-model-name", "pair", *arguments,
    ]  # fmt: skip
    assert parse_options(["--speculative-x.y.z", "1"]) == {"speculative_x": 1}
    assert write_options({"enforce_eager": True, "max_num_seqs": 4}) == [
        "--enforce-eager", "--max-num-seqs", "4",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("--config", "--config: give the options one by one"),
        ("--speculative_config={}", "--speculative_config: give the options"),
        ("--speculative-config.method", "--speculative-config: give the options"),
        ("-sc", "-sc: give the options"),
        ("-sc.model", "-sc: give the options"),
        ("--api-key", "--api-key: set SAFEDRAFT_API_KEY"),
        ("--trust-remote-code", "--trust-remote-code: models that bring their own code"),
        ("--grpc", "--grpc: the middleware"),
        ("--grpc-port=1", "--grpc-port: the middleware"),
    ],
)
def test_options_that_go_by_the_checks_are_refused(argument: str, reason: str) -> None:
    with pytest.raises(SafeDraftError, match=reason):
        parse_options([argument, "another"])


def test_vllms_server_takes_no_constants_of_a_risk_that_is_not_read(
    tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safedraft.server.vllm.serve.require_vllm", lambda: None)
    given = safedraft.RiskConfig().replace(risky_above=0.2)
    with pytest.raises(SafeDraftError, match="risky_above: the risk of requests is not read"):
        serve_pair(spec(tiny_pair), given, [])


def test_vllms_server_knows_that_constants_turn_the_guard_off(
    tiny_pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_adapter(tmp_path / "lora", tiny_pair[1])
    monkeypatch.setattr("safedraft.server.vllm.serve.require_vllm", lambda: None)
    monkeypatch.setattr(EnginePlan, "options", lambda *given, **more: {"model": "tiny"})
    own = spec(tiny_pair, adapter=str(tmp_path / "lora"))
    for alpha in (0.0, 0.8):
        monkeypatch.setenv("SAFEDRAFT_OPERATOR", "")
        serve_pair(own, safedraft.RiskConfig(alpha_union=alpha), [])
        assert Operator.from_environment().guarded is (alpha > 0)


def test_vllms_rust_server_is_refused(
    tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_USE_RUST_FRONTEND", "1")
    with pytest.raises(SafeDraftError, match=r"VLLM_USE_RUST_FRONTEND: .*unset it"):
        serve_pair(spec(tiny_pair), None, [])


def test_something_stands_before_every_route_of_vllms_server() -> None:
    for key, name in (("secret", "RequireEnvironmentKey"), (None, "RequireLocalName")):
        option, path = middleware_arguments(key)
        assert option == "--middleware"
        module, _, found = path.rpartition(".")
        assert found == name
        assert isclass(getattr(import_module(module), found))


def test_settings_are_found_and_checked() -> None:
    assert Settings.of(SimpleNamespace(additional_config={})) is None
    wrong = SimpleNamespace(additional_config={"safedraft": {"vocabulary": 0}})
    with pytest.raises(SafeDraftError, match="additional_config: safedraft: vocabulary"):
        Settings.of(wrong)


HEADER = (9, 8)


def params(**extra: Any) -> Any:
    return SimpleNamespace(
        extra_args=extra, seed=None, max_tokens=9, temperature=0.0, top_k=0, top_p=1.0,
        presence_penalty=0.0, frequency_penalty=0.0, repetition_penalty=1.0,
        allowed_token_ids=None, bad_words=[], bad_words_token_ids=None,
        stop_token_ids=[], eos_token_id=None, logprobs=None, detokenize=True, __struct_fields__=(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("extra", "prompt", "begun"),
    [
        ({}, [5, 9, 8], False),
        ({}, [5, 9, 8, 3], True),
        ({}, [8], True),
        ({"ssd_turn_begun": False}, [5], False),
        ({"ssd_turn_begun": True}, [5, 9, 8], True),
    ],
)
def test_whether_the_turn_has_begun_follows_from_the_prompt(
    extra: dict[str, Any], prompt: list[int], begun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safedraft.engines.vllm.options.require_honored", lambda params: None)
    config = RiskConfig(prefill_scheme="union")
    settings = Settings(
        config=config, vocabulary=99, generation_prompt=HEADER, requests_may_set_constants=True
    )
    request = settings.request(params(**extra), "1", prompt)
    assert request.context.turn_begun is begun
    assert request.rule.start(request.config, request.context).scheme == (
        "union" if begun else "intersection"
    )


@pytest.mark.parametrize(
    "extra", [{"ssd_rule": "target_only"}, {"ssd_turn_begun": False}, {"ssd_alpha_union": 0.0}]
)
def test_what_weakens_the_defense_needs_the_operators_word(extra: dict[str, Any]) -> None:
    with pytest.raises(SafeDraftError, match="the operator does not let requests change"):
        Settings(vocabulary=9).request(params(**extra), "1", [5])


def test_penalties_are_those_of_the_request() -> None:
    asked = params()
    asked.presence_penalty, asked.frequency_penalty = 0.5, -1.0
    sampling = Settings(vocabulary=9).request(asked, "1", [5]).sampling
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.5, -1.0)
    asked.repetition_penalty = 1.2
    with pytest.raises(SafeDraftError, match="repetition_penalty: the operator does not let"):
        Settings(vocabulary=9).request(asked, "1", [5])
    request = Settings(vocabulary=9, requests_may_set_constants=True).request(asked, "1", [5])
    assert (request.sampling.repetition_penalty, request.target_prompt) == (1.2, [5])


def test_what_vllm_refuses_together_with_drafts_is_that_of_the_request() -> None:
    extra = {"ssd_min_p": 0.1, "ssd_logit_bias": {"5": 2.0}}  # the names of JSON's are strings
    open_to_all = Settings(vocabulary=9, requests_may_set_constants=True)
    sampling = open_to_all.request(params(**extra), "1", [5]).sampling
    assert (sampling.min_p, sampling.logit_bias) == (0.1, {5: 2.0})
    with pytest.raises(SafeDraftError, match="logit_bias: 9: ids end at 8"):
        open_to_all.request(params(ssd_logit_bias={8: 1, 9: 1}), "1", [5])
    with pytest.raises(SafeDraftError, match="min_p: must be at most 1"):
        open_to_all.request(params(ssd_min_p=1.5), "1", [5])
    with pytest.raises(SafeDraftError, match=r"logit_bias\.8: must be at most 100"):
        open_to_all.request(params(ssd_logit_bias={8: 101}), "1", [5])
    closed = Settings(vocabulary=9)
    assert closed.request(params(ssd_min_p=0.1), "1", [5]).sampling.min_p == 0.1
    with pytest.raises(SafeDraftError, match="logit_bias: the operator does not let"):
        closed.request(params(**extra), "1", [5])


@pytest.mark.parametrize(("asked", "count"), [(None, None), (0, 0), (3, 3), (-1, 9)])
def test_alternatives_are_as_many_as_vllm_is_asked_for(
    asked: int | None, count: int | None
) -> None:
    given = params()
    given.logprobs = asked
    assert Settings(vocabulary=9).request(given, "1", [5]).top_logprobs == count
    given.detokenize = False
    if asked is not None:
        with pytest.raises(SafeDraftError, match="beam search is not supported"):
            Settings(vocabulary=9).request(given, "1", [5])


def test_the_tokens_that_a_request_allows_and_the_words_that_it_forbids() -> None:
    open_to_all = Settings(vocabulary=9, requests_may_set_constants=True)
    asked = params()
    assert open_to_all.request(asked, "1", [5]).constrain is None
    for name, value in (("allowed_token_ids", [0, 3, 8]), ("bad_words", ["a", "bc", "d"])):
        asked = params()
        setattr(asked, name, value)
        with pytest.raises(SafeDraftError, match=f"{name}: the operator does not let"):
            Settings(vocabulary=9).request(asked, "1", [5])
    asked.allowed_token_ids, asked.bad_words_token_ids = [0, 3, 8], [[3], [0, 8], [3, 9], [9]]
    request = open_to_all.request(asked, "1", [5])
    state = request.rule.start(request.config, request.context)
    (words,) = request.constraints(state)
    logits = torch.zeros(9)
    assert words.apply([], logits).isfinite().nonzero().flatten().tolist() == [0, 8]
    assert words.apply([0], logits).isfinite().nonzero().flatten().tolist() == [0]
    words.decide(0)
    assert words.apply([], logits).isfinite().nonzero().flatten().tolist() == [0]
    assert words.apply([8], logits).isfinite().nonzero().flatten().tolist() == [0, 8]
    assert logits.isfinite().all()  # they are left as they are


def test_a_flag_is_true_or_false(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safedraft.engines.vllm.options.require_honored", lambda params: None)
    settings = Settings(vocabulary=9, requests_may_set_constants=True)
    with pytest.raises(SafeDraftError, match="ssd_turn_begun: 'false' is neither true nor false"):
        settings.request(params(ssd_turn_begun="false"), "1", [5])


def test_a_request_names_its_rule_and_the_rules_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safedraft.engines.vllm.options.require_honored", lambda params: None)
    settings = Settings(vocabulary=9, requests_may_set_constants=True)
    asked = params(ssd_rule="easd", ssd_entropy_threshold=1.5)
    request = settings.request(asked, "1", [5])
    assert request.rule.name == "easd"
    assert request.config.model_dump()["entropy_threshold"] == 1.5
    with pytest.raises(SafeDraftError, match="ssd_alpha_union: not known"):
        settings.request(params(ssd_rule="easd", ssd_alpha_union=1.0), "1", [5])
    with pytest.raises(SafeDraftError, match="no rule is called 'x'"):
        settings.request(params(ssd_rule="x"), "1", [5])


def test_a_pair_knows_how_its_turns_begin(tiny_pair: tuple[Path, Path]) -> None:
    chosen = plan(spec(tiny_pair, config=safedraft.SSDConfig(prefill_scheme="union")))
    tokenizer = chosen.parts.descriptions[0].tokenizer
    assert tokenizer is not None
    assert tokenizer.decode(list(chosen.generation_prompt)) == "<|start|>assistant\n"


@pytest.mark.parametrize(
    "template",
    [
        TEMPLATE.partition("{% if add_generation_prompt %}")[0],
        "{% if add_generation_prompt %}<|start|>{% endif %}" + TEMPLATE,
    ],
    ids=["no header", "another beginning"],
)
def test_a_prefill_scheme_needs_a_template_that_begins_turns(
    tmp_path: Path, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = save_pair(tmp_path)
    for folder in models:
        (folder / "chat_template.jinja").unlink()
        save_tokenizer(folder, template)
    begun = spec(models, config=safedraft.SSDConfig(prefill_scheme="union"))
    assert plan(begun).generation_prompt == ()
    with pytest.raises(SafeDraftError, match="prefill_scheme: token ids do not say"):
        plan(begun, from_ids=True)
    monkeypatch.setattr("safedraft.server.vllm.serve.require_vllm", lambda: None)
    with pytest.raises(SafeDraftError, match="prefill_scheme: token ids do not say"):
        serve_pair(begun, None, [])


def test_a_prefill_scheme_needs_a_template(tmp_path: Path) -> None:
    models = save_pair(tmp_path)
    for folder in models:
        (folder / "chat_template.jinja").unlink()
        save_tokenizer(folder, None)
    with pytest.raises(SafeDraftError, match="prefill_scheme: token ids do not say"):
        plan(spec(models, config=safedraft.SSDConfig(prefill_scheme="union")))


RULE = """
from safedraft.rules.ssd import SSD

class Mine(SSD):
    pass

def make():
    return Mine("mine")
"""


def test_the_rule_of_another_distribution_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safedraft.engines.vllm.options.require_honored", lambda params: None)
    groups = {"safedraft.rules": {"mine": "their_rules:make"}}
    install(tmp_path, "theirs", groups, {"their_rules": RULE})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("safedraft.rules.RULES", Registry("safedraft.rules", "rule"))
    settings = Settings(vocabulary=9, requests_may_set_constants=True)
    request = settings.request(params(ssd_rule="mine", ssd_bin_size=3), "1", [5])
    assert (request.rule.name, type(request.rule).__name__) == ("mine", "Mine")
    assert request.config == safedraft.SSDConfig(bin_size=3)


@pytest.fixture
def reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a pair whose adapter has a probe."""
    monkeypatch.setattr("safedraft.engines.vllm.options.require_honored", lambda params: None)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    alone, both = RiskProbe(torch.tensor([1.0, 2.0]), 0.0), RiskProbe(torch.zeros(4), 0.0)
    write_probe(tmp_path, ProbeFile(alone, both))
    return Settings(
        vocabulary=9,
        generation_prompt=(7, 8),
        turn_header=(6, 7, 8),
        probe=tmp_path / PROBE,
        probe_reads=("draft",),
        requests_may_set_constants=True,
    )


@pytest.mark.parametrize(
    ("prompt", "length", "begun"),
    [
        ([5, 7, 8], 3, False),
        ([5, 7, 8, 1, 2], 3, True),
        ([5, 7, 8, 1, 6, 7, 8], 7, False),
        ([5, 7, 8, 1, 6, 7, 8, 1, 7], 7, True),
    ],
)
def test_the_risk_is_read_where_the_last_turn_begins(
    reading: Settings, prompt: list[int], length: int, begun: bool
) -> None:
    request = reading.request(params(), "1", prompt)
    assert request.rule.name == reading.rule == "risk"
    assert request.context.turn_begun is begun
    assert request.context.risk is not None
    assert list(request.context.risk.readings["draft"].question) == prompt[:length]
    assert request.context.risk.probe.weight.tolist() == [1, 2]


def test_both_models_have_the_same_question(reading: Settings) -> None:
    both = reading.model_copy(update={"probe_reads": ("draft", "target")})
    risk = both.request(params(), "1", [5, 7, 8, 1]).context.risk
    assert risk is not None
    assert risk.probe.weight.tolist() == [0, 0, 0, 0]
    assert dict(risk.readings) == dict.fromkeys(("draft", "target"), Reading((6, 7, 8), (5, 7, 8)))
    write_probe(reading.probe.parent, ProbeFile(RiskProbe(torch.zeros(2), 0.0)))
    _read_probe.cache_clear()
    with pytest.raises(SafeDraftError, match="has no probe that reads draft and target"):
        both.request(params(), "1", [5, 7, 8])


def test_a_risk_that_cannot_be_read_is_refused(reading: Settings) -> None:
    with pytest.raises(SafeDraftError, match="no beginning of an assistant's turn"):
        reading.request(params(), "1", [5, 7])
    probes = ProbeFile(RiskProbe(torch.ones(4), 0.0, reads_text=True))
    with pytest.raises(SafeDraftError, match="reads the risk of a request once"):
        reading.request(params(ssd_reading_bins=1), "1", [5, 7, 8])
    assert reading.request(params(ssd_rule="ssd"), "1", [5, 7]).rule.name == "ssd"
    write_probe(reading.probe.parent, probes)
    _read_probe.cache_clear()
    assert reading.request(params(), "1", [5, 6, 7, 8]).rule.name == "risk"
    with pytest.raises(SafeDraftError, match="no beginning of an assistant's turn"):
        reading.request(params(), "1", [6, 7, 8])  # there is no text before the header
    with pytest.raises(SafeDraftError, match="needs a draft whose adapter comes with a risk probe"):
        reading.model_copy(update={"probe": None}).request(params(ssd_rule="risk"), "1", [7, 8])


def test_a_rule_that_reads_the_target_alone_is_refused(
    reading: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = RiskProbe(torch.zeros(1), 0.0, ("target",))
    context = RiskContext(probe, {"target": Reading((2,), (1,))})
    rule = ReadTarget(reading=context, interval=5)
    monkeypatch.setattr("safedraft.engines.vllm.options.find_rule", lambda name: rule)
    with pytest.raises(SafeDraftError, match=r"ada_probe reads the target's states.*--engine"):
        reading.request(params(), "1", [5, 7, 8])


def test_a_rule_that_reads_inside_the_reply_is_refused(
    reading: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start_later(self: Risk, constants: RiskConfig, context: Context) -> State:
        return State(reads_risk_at=3, reading=context.risk)

    monkeypatch.setattr(Risk, "start", start_later)
    with pytest.raises(SafeDraftError, match="inside the reply, which vLLM does not do"):
        reading.request(params(), "1", [5, 7, 8])


def asking(wanted: object, replies: int = 1, kind: str = "FINAL_ONLY") -> Any:
    return SimpleNamespace(
        extra_args={"ssd_statistics": wanted}, n=replies, output_kind=SimpleNamespace(name=kind)
    )


def test_statistics_are_for_whoever_asks() -> None:
    assert not wants_statistics(SimpleNamespace(extra_args=None))
    assert wants_statistics(asking(True))
    assert wants_statistics(asking(1))
    assert not wants_statistics(asking(0, replies=2, kind="DELTA"))


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        (asking("yes"), "'yes' is neither true nor false"),
        (asking([1]), "neither true nor false"),
        (asking(True, replies=2), "leave n at 1"),
        (asking(True, kind="DELTA"), "a streamed answer has no field"),
    ],
)
def test_statistics_that_would_get_lost_are_refused(params: Any, reason: str) -> None:
    with pytest.raises(SafeDraftError, match=reason):
        wants_statistics(params)


def test_room_is_left_for_two_blocks() -> None:
    assert count_room(100, 256, 3) == 150
    assert count_room(249, 256, 3) == 1
    with pytest.raises(SafeDraftError, match="shorten it"):
        count_room(250, 256, 3)


def test_without_vllm_it_says_how_to_get_it(
    tiny_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SafeDraftError, match=r"pip install 'safedraft\[vllm\]'"):
        safedraft.load_pair(target=str(tiny_pair[0]), draft=str(tiny_pair[1]), engine="vllm")


def test_an_unknown_engine_or_option_is_refused(tiny_pair: tuple[Path, Path]) -> None:
    models: Any = {"target": str(tiny_pair[0]), "draft": str(tiny_pair[1])}
    with pytest.raises(SafeDraftError, match="no engine is called 'llama'"):
        safedraft.load_pair(**models, engine="llama")
    with pytest.raises(SafeDraftError, match=r"the engines cpu and transformers: .*max_num_seqs"):
        safedraft.load_pair(**models, max_num_seqs=4)
    with pytest.raises(SafeDraftError, match="device: vLLM"):
        safedraft.load_pair(**models, engine="vllm", device="cpu")
