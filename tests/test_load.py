"""Loading: what is chosen, what is checked, what is merged, what is refused."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from conftest import save_model, save_tokenizer
from safetensors.torch import load_file, save_file

import safedraft
from safedraft.core.errors import IncompatiblePairError, SafeDraftError
from safedraft.kernels.int8 import Int8Linear
from safedraft.models.doctor import examine
from safedraft.models.fingerprint import FACTS, AdapterFacts, fingerprint
from safedraft.models.registry import PairSpec, choose_pair, write_pair
from safedraft.pair.load import load_spec


@pytest.fixture
def own_pair(tmp_path: Path) -> None:
    folder = tmp_path / "config" / "pairs"
    folder.mkdir(parents=True)
    (folder / "own.toml").write_text(
        '[own]\ntarget = "big"\ndraft = "small"\nadapter = "lora"\ndraft_dtype = "int8"\n'
        'draft_system = "Be safe."\nconfig = { alpha_union = 2.0 }\n'
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("big", "small", "int8", "lora", "Be safe.", 2.0)),
        ({"use_adapter": False}, ("big", "small", "int8", None, "Be safe.", 2.0)),
        ({"adapter": "other"}, ("big", "small", "int8", "other", "Be safe.", 2.0)),
        ({"target": "bigger"}, ("bigger", "small", "int8", "lora", "Be safe.", 2.0)),
        ({"draft": "tiny"}, ("big", "tiny", None, None, "Be safe.", 2.0)),
    ],
)
@pytest.mark.usefixtures("own_pair")
def test_what_is_given_stands_in_for_what_is_registered(given: Any, expected: Any) -> None:
    spec = choose_pair("own", **given)
    chosen = (spec.target, spec.draft, spec.draft_dtype, spec.adapter, spec.draft_system)
    assert (*chosen, spec.config.alpha_union) == expected


def test_two_models_without_a_name_have_nothing_of_the_default_pairs() -> None:
    spec = choose_pair(target="a", draft="b")
    assert (spec.target, spec.draft, spec.adapter, spec.draft_system) == ("a", "b", None, None)
    assert spec.config == safedraft.RiskConfig()


@pytest.mark.usefixtures("own_pair")
def test_a_registered_pair_may_be_named_by_its_models() -> None:
    assert choose_pair(target="big", draft="small") == choose_pair("own")


def test_an_adapter_cannot_be_given_and_refused() -> None:
    with pytest.raises(SafeDraftError, match="not both"):
        choose_pair(adapter="a", use_adapter=False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"use_adapter": None}, "use_adapter must be true or false, not None"),
        ({"use_adapter": 0}, "use_adapter must be true or false, not 0"),
        ({"other_base": "false"}, "other_base must be true or false, not 'false'"),
        ({"template_from": ""}, "was named by an empty string"),
        ({"spec": 1}, "no option is called 'spec'"),
        ({"engine": "vllm", "spec": 1}, "no option is called 'spec'"),
    ],
)
def test_a_value_that_is_none_of_its_type_does_not_stand_for_another(
    given: dict[str, Any], said: str
) -> None:
    """A None for "not given" would otherwise leave out the adapter without a warning."""
    with pytest.raises(SafeDraftError, match=re.escape(said)):
        safedraft.load_pair(target="/no/such", **given)


def load(tiny_pair: tuple[Path, Path], **options: Any) -> safedraft.Pair:
    given = {"target": str(tiny_pair[0]), "draft": str(tiny_pair[1])}
    return safedraft.load_pair(**(given | options))


def save_adapter(folder: Path, base: Path, rank: int = 2) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    torch.manual_seed(3)
    lora = LoraConfig(r=rank, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(LlamaForCausalLM.from_pretrained(base), lora).save_pretrained(folder)


def test_a_bare_draft_is_warned_of_in_every_result(tiny_pair: tuple[Path, Path]) -> None:
    with pytest.warns(safedraft.UnguardedWarning, match="no safer than those of") as caught:
        pair = load(tiny_pair)
    assert Path(caught[0].filename) == Path(__file__)  # the caller's line
    (warning,) = pair.warnings
    assert "--adapter" in warning
    assert "use_adapter=False" in warning
    sampling = safedraft.SamplingParams(max_new_tokens=2)
    assert pair.generate("hi", sampling=sampling).to_dict()["warnings"] == [warning]


@pytest.mark.parametrize("accepted", ["adapter", "argument", "file"])
def test_nothing_is_warned_of_with_an_adapter_or_if_a_bare_draft_is_meant(
    tiny_pair: tuple[Path, Path], tmp_path: Path, accepted: str
) -> None:
    given: dict[str, Any] = {"target": str(tiny_pair[0]), "draft": str(tiny_pair[1])}
    if accepted == "adapter":
        save_adapter(tmp_path / "lora", tiny_pair[1])
        facts = AdapterFacts(base=fingerprint(tiny_pair[1]), target="", versions={})
        (tmp_path / "lora" / FACTS).write_text(facts.model_dump_json())
        given["adapter"] = str(tmp_path / "lora")
    elif accepted == "argument":
        given["use_adapter"] = False
    else:
        folder = tmp_path / "config" / "pairs"
        folder.mkdir(parents=True)
        text = "".join(f'{name} = "{path}"\n' for name, path in given.items())
        (folder / "own.toml").write_text(f"[own]\n{text}bare_draft = true\n")
        given = {"name": "own"}
    with warnings.catch_warnings():
        warnings.simplefilter("error", safedraft.UnguardedWarning)
        assert safedraft.load_pair(**given).warnings == ()


def test_bounds_of_the_risk_in_an_entry_wait_for_a_probe(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    models = "\n".join(f'{n} = "{p}"' for n, p in zip(("target", "draft"), tiny_pair, strict=True))
    (tmp_path / "config" / "pairs").mkdir(parents=True)
    (tmp_path / "config" / "pairs" / "own.toml").write_text(
        f"[own]\n{models}\nconfig = {{ harmless_below = 0.2, alpha_union = 2.0 }}\n"
    )
    pair = safedraft.load_pair("own", use_adapter=False)
    assert pair.config.alpha_union == 2.0
    assert pair.generate("Hi", max_tokens=2).statistics.risk is None
    safedraft.load_pair("own", use_adapter=False, config={"alpha_union": 1.0})
    for given in ({"harmless_below": 0.2}, safedraft.RiskConfig(harmless_below=0.2)):
        with pytest.raises(SafeDraftError, match="harmless_below: the risk of requests is not"):
            safedraft.load_pair("own", use_adapter=False, config=given)


@pytest.mark.parametrize(
    ("constants", "said"),
    [
        ({"alpha_union": 0.0}, "alpha_union is 0: where the models disagree, the target alone"),
        ({"harmless_below": 1.0, "risky_above": 1.0}, "harmless_below is 1: every request"),
    ],
)
def test_constants_that_turn_the_guard_off_are_warned_of_in_every_result(
    tiny_pair: tuple[Path, Path], tmp_path: Path, constants: dict[str, float], said: str
) -> None:
    save_adapter(tmp_path / "lora", tiny_pair[1])
    spec = PairSpec(
        name="own",
        target=str(tiny_pair[0]),
        draft=str(tiny_pair[1]),
        adapter=str(tmp_path / "lora"),
        config=safedraft.RiskConfig(**constants),
    )
    with pytest.warns(safedraft.UnguardedWarning, match=said):
        pair = load_spec(spec)
    assert not pair.guarded
    (warning,) = [one for one in pair.generate("hi", max_tokens=1).warnings if said in one]
    assert warning in pair.warnings
    assert load_spec(spec, config=safedraft.SSDConfig()).guarded
    if "alpha_union" in constants:
        with pytest.warns(safedraft.UnguardedWarning, match=said):
            load(tiny_pair, use_adapter=False, config=constants)


def test_an_adapter_that_lost_its_probe_is_warned_of(
    tiny_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    save_adapter(tmp_path / "lora", tiny_pair[1])
    named = dict(zip(("target", "draft"), map(str, tiny_pair), strict=True))
    entry = PairSpec(
        name="own",
        **named,
        adapter=str(tmp_path / "lora"),
        config=safedraft.RiskConfig(alpha_harmless=0.0, harmless_below=0.2),
    )
    write_pair(entry, tmp_path / "config" / "pairs" / "own.toml")
    said = "has no probe, so that alpha_harmless, harmless_below of the pair own have no effect"
    with pytest.warns(safedraft.UnguardedWarning, match=said) as caught:
        pair = safedraft.load_pair("own")
    assert any(said in str(one.message) and one.filename == __file__ for one in caught)
    assert [said in one for one in pair.warnings].count(True) == 1
    (check,) = [one for one in examine(choose_pair("own")).checks if one.name == "risk"]
    assert check.status == "warning"
    assert said in check.detail
    copytree(tmp_path / "lora", tmp_path / "another")  # it may well have no probe
    for given in ({"adapter": str(tmp_path / "another")}, {"use_adapter": False}):
        assert not any("probe" in one for one in safedraft.load_pair("own", **given).warnings)


def test_that_a_bare_draft_is_meant_holds_for_that_draft_alone(tmp_path: Path) -> None:
    folder = tmp_path / "config" / "pairs"
    folder.mkdir(parents=True)
    text = '[own]\ntarget = "big"\ndraft = "small"\nbare_draft = true\n'
    (folder / "own.toml").write_text(text)
    assert choose_pair("own").warning is None
    assert choose_pair("own", draft="other").warning is not None


def test_an_adapter_is_merged_into_the_draft(tmp_path: Path, tiny_pair: tuple[Path, Path]) -> None:
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    save_adapter(tmp_path / "lora", tiny_pair[1])
    options = {"engine": "transformers"}
    merged = load(tiny_pair, adapter=str(tmp_path / "lora"), **options).draft.model
    base = LlamaForCausalLM.from_pretrained(tiny_pair[1])
    adapted = PeftModel.from_pretrained(base, tmp_path / "lora").eval()
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-4, atol=1e-4)
        bare = load(tiny_pair, **options).draft.model(ids).logits
    assert not torch.allclose(bare, merged(ids).logits, atol=1e-3)
    assert type(merged) is LlamaForCausalLM
    assert all(weight.requires_grad for weight in merged.parameters())


def test_an_adapter_for_another_model_is_refused(
    tmp_path: Path, tiny_pair: tuple[Path, Path]
) -> None:
    save_model(tmp_path / "other", hidden_size=48)
    save_adapter(tmp_path / "lora", tmp_path / "other")
    with pytest.raises(SafeDraftError, match=r"adapter in .* does not fit"):
        load(tiny_pair, adapter=str(tmp_path / "lora"))


def test_an_adapter_that_cannot_be_read_is_refused(
    tmp_path: Path, tiny_pair: tuple[Path, Path]
) -> None:
    save_adapter(tmp_path / "lora", tiny_pair[1])
    (tmp_path / "lora" / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(SafeDraftError, match=r"adapter in .* does not fit"):
        load(tiny_pair, adapter=str(tmp_path / "lora"))


def test_a_pickled_adapter_is_refused(tmp_path: Path, tiny_pair: tuple[Path, Path]) -> None:
    save_adapter(tmp_path / "lora", tiny_pair[1])
    file = tmp_path / "lora" / "adapter_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()
    with pytest.raises(SafeDraftError, match="pickled"):
        load(tiny_pair, adapter=str(tmp_path / "lora"))


def test_weights_that_are_missing_are_never_made_up(
    tmp_path: Path, tiny_pair: tuple[Path, Path]
) -> None:
    save_model(tmp_path)
    save_tokenizer(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(SafeDraftError, match="lacks 1 weights"):
        load(tiny_pair, target=str(tmp_path))


def test_loading_runs_the_doctors_checks(tmp_path: Path, tiny_pair: tuple[Path, Path]) -> None:
    save_model(tmp_path, vocabulary=270, eos_token_id=265)
    save_tokenizer(
        tmp_path, extra=tuple("<a><b><c><d><e><f><g><h>"[i : i + 3] for i in range(0, 24, 3))
    )
    with pytest.raises(IncompatiblePairError, match="cannot decode together"):
        load(tiny_pair, target=str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int3"}, "unknown dtype 'int3'"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"target": "/no/such/folder"}, "neither a folder nor a hub id"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(
    tiny_pair: tuple[Path, Path], options: Any, message: str
) -> None:
    with pytest.raises(SafeDraftError, match=message) as caught:
        load(tiny_pair, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "quantize_int8"),
    [
        ({}, True),
        ({"dtype": "float32"}, False),
        ({"draft_dtype": "float32"}, False),
        ({"dtype": "float32", "draft_dtype": "int8"}, True),
    ],
)
def test_a_pairs_own_int8_holds_where_no_dtype_is_named(
    tmp_path: Path, tiny_pair: tuple[Path, Path], options: Any, quantize_int8: bool
) -> None:
    folder = tmp_path / "config" / "pairs"
    folder.mkdir(parents=True)
    own = f'[own]\ntarget = "{tiny_pair[0]}"\ndraft = "{tiny_pair[1]}"\ndraft_dtype = "int8"\n'
    (folder / "own.toml").write_text(own)
    pair = safedraft.load_pair("own", engine="transformers", **options)
    packed = [
        any(isinstance(layer, Int8Linear) for layer in member.model.modules())
        for member in (pair.target, pair.draft)
    ]
    assert packed == [False, quantize_int8]
    assert pair.generate("hi", sampling=safedraft.SamplingParams(max_new_tokens=5)).trace


def test_int8_is_for_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "safedraft.engines.transformers.load._find_device", lambda name: torch.device("meta")
    )
    with pytest.raises(SafeDraftError, match="int8 is for processors, and the draft is on meta"):
        safedraft.load_pair(draft_device="meta", draft_dtype="int8")


def test_each_model_has_its_own_dtype(tiny_pair: tuple[Path, Path]) -> None:
    pair = load(tiny_pair, dtype="float32", draft_dtype="bfloat16")
    assert (pair.target.model.dtype, pair.draft.model.dtype) == (torch.float32, torch.bfloat16)
    assert pair.generate("hi", sampling=safedraft.SamplingParams(max_new_tokens=5)).trace


@pytest.mark.parametrize("template", ["drops", "raises"])
def test_a_system_prompt_that_a_template_cannot_show_is_refused_at_load(
    tmp_path: Path, template: str
) -> None:
    refusal = "{{ raise_exception('no system role') }}" if template == "raises" else ""
    written = (
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        + refusal
        + "{% else %}{{ message['content'] }}<|end|>{% endif %}{% endfor %}"
    )
    for name in ("target", "draft"):
        save_model(tmp_path / name)
        save_tokenizer(tmp_path / name, template=written)
    spec = PairSpec(
        name="own",
        target=str(tmp_path / "target"),
        draft=str(tmp_path / "draft"),
        draft_system="Be safe.",
    )
    with pytest.raises(SafeDraftError, match="cannot have the system prompt that the pair gives"):
        load_spec(spec)


@pytest.fixture(scope="module")
def long_rope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rotary factors change after 100 positions."""
    from transformers import Phi3Config, Phi3ForCausalLM

    folder = tmp_path_factory.mktemp("long")
    rope = {"rope_type": "longrope", "long_factor": [1.0, 4, 16, 32], "short_factor": [1.0] * 4}
    config = Phi3Config(
        vocab_size=264, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=400,
        original_max_position_embeddings=100, rope_scaling=rope, initializer_range=0.3,
        sliding_window=None, pad_token_id=None, bos_token_id=None, eos_token_id=256,
    )  # fmt: skip
    torch.manual_seed(1)
    Phi3ForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.mark.parametrize("draft_tokens", [1, 4, 9])
def test_positions_end_where_their_factors_would_change(long_rope: Path, draft_tokens: int) -> None:
    pair = safedraft.load_pair(long_rope, long_rope, use_adapter=False, dtype="float32")
    assert pair.context_length == 100
    ids = torch.randint(250, (80,), generator=torch.Generator().manual_seed(2)).tolist()
    stream = pair.stream_ids(ids, config=safedraft.SSDConfig(draft_tokens=draft_tokens))
    reply = stream.drain()
    prompt = torch.tensor([ids])
    with torch.inference_mode():
        generated = pair.target.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=20,
            do_sample=False,
            pad_token_id=0,
        )
    assert [token.id for token in reply.trace] == generated[0, 80:].tolist()
    assert len(reply.trace) == 20
    with pytest.raises(safedraft.PromptTooLongError):
        pair.stream_ids([1] * 100)
