"""Pairs of models that are in memory already, and what loading shows of itself."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_pair, save_tokenizer
from helpers.architectures import own_tokens, save_tiny, ssd_tokens, tiny_config
from helpers.templates import TRAITS
from test_load import save_adapter
from transformers import AutoTokenizer, LlamaForCausalLM

import safedraft
from safedraft.core.errors import IncompatiblePairError, SafeDraftError
from safedraft.kernels.int8 import Int8Linear
from safedraft.models import weights


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pair")
    pair = save_pair(folder)
    save_adapter(folder / "lora", pair[1])
    return pair


def read(folder: Path) -> Any:
    return LlamaForCausalLM.from_pretrained(folder).eval()


def in_memory(folders: tuple[Path, Path], draft: Any = None, **fields: Any) -> safedraft.Pair:
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    draft = read(folders[1]) if draft is None else draft
    return safedraft.Pair.from_models(read(folders[0]), draft, tokenizer=tokenizer, **fields)


def ids(pair: safedraft.Pair) -> list[int]:
    return [token.id for token in pair.generate("Hello", max_tokens=12).trace]


def test_it_says_what_the_same_models_say_when_they_are_loaded(folders: tuple[Path, Path]) -> None:
    target, draft = map(str, folders)
    loaded = safedraft.load_pair(target, draft, use_adapter=False, engine="transformers")
    pair = in_memory(folders, guarded=False)
    assert ids(pair) == ids(loaded)
    assert (pair.context_length, pair.end_tokens) == (loaded.context_length, loaded.end_tokens)


def test_a_peft_draft_decodes_as_its_merge_and_counts_as_guarded(
    folders: tuple[Path, Path],
) -> None:
    from peft import PeftModel

    adapter = folders[0].parent / "lora"
    draft = PeftModel.from_pretrained(read(folders[1]), adapter).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", safedraft.UnguardedWarning)
        pair = in_memory(folders, draft)
    assert pair.guarded
    target, base = map(str, folders)
    assert ids(pair) == ids(
        safedraft.load_pair(target, base, adapter=str(adapter), engine="transformers")
    )


@pytest.mark.parametrize(
    "trained",
    [
        {"trainable_token_indices": [1, 2]},
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"modules_to_save": ["embed_tokens"]},
    ],
)
def test_a_peft_draft_may_have_trained_embeddings(
    folders: tuple[Path, Path], trained: dict[str, Any]
) -> None:
    from peft import LoraConfig, get_peft_model

    draft = get_peft_model(
        read(folders[1]), LoraConfig(**{"target_modules": ["q_proj"], **trained})
    )
    pair = in_memory(folders, draft.eval())
    assert pair.draft.embedded_ids == 264
    assert ids(pair) == ids(in_memory(folders, guarded=False))  # an adapter begins without effect


def test_a_tokenizer_is_one_in_memory_or_its_folder(folders: tuple[Path, Path]) -> None:
    models = read(folders[0]), read(folders[1])
    for named in (folders[0], str(folders[0])):
        pair = safedraft.Pair.from_models(*models, tokenizer=named, guarded=False)
        assert ids(pair) == ids(in_memory(folders, guarded=False))
    for wrong, message in (("gone/away", "no tokenizer can be loaded from gone/away"), (3, "int")):
        with pytest.raises(SafeDraftError, match=message) as caught:
            safedraft.Pair.from_models(*models, tokenizer=wrong, guarded=False)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"alfa": 1}, "unknown constant 'alfa'"),
        ({"alpha_union": -1}, "alpha_union: must be at least 0, not -1"),
        ({"risky_above": 0.9}, "the risk of requests is not read here"),
        (safedraft.SamplingParams(), "not SamplingParams"),
    ],
)
def test_constants_that_do_not_suit_a_pair_in_memory(
    folders: tuple[Path, Path], config: Any, message: str
) -> None:
    with pytest.raises(SafeDraftError, match=message):
        in_memory(folders, guarded=True, config=config)
    assert in_memory(folders, guarded=True, config={"alpha_union": 2.0}).config.alpha_union == 2.0


def test_of_a_compiled_draft_the_model_inside_decodes(folders: tuple[Path, Path]) -> None:
    draft = torch.compile(read(folders[1]), backend="eager")
    assert ids(in_memory(folders, draft, guarded=False)) == ids(in_memory(folders, guarded=False))


def test_a_draft_of_which_nothing_is_said_is_warned_of(folders: tuple[Path, Path]) -> None:
    with pytest.warns(safedraft.UnguardedWarning, match="has no safety adapter") as told:
        pair = in_memory(folders)
    assert Path(told[0].filename) == Path(__file__)
    assert pair.warnings == (str(told[0].message),)
    assert in_memory(folders, guarded=True).warnings == ()


def test_its_template_is_its_own(folders: tuple[Path, Path], tmp_path: Path) -> None:
    save_tokenizer(tmp_path, template=TRAITS["a switch"])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    models = read(folders[0]), read(folders[1])
    off = {"enable_thinking": False}
    pair = safedraft.Pair.from_models(*models, tokenizer=tokenizer, guarded=True, template=off)
    prompt = pair.target.tokenizer.decode(pair.prompts("Hi").target)  # type: ignore[union-attr]
    assert prompt.endswith("</think>\n\n")
    assert tokenizer.chat_template == TRAITS["a switch"]  # the caller's object is not changed


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "float32"}, "from_models has no field 'dtype'; it has template"),
        ({"template": {"thinkin": False}}, "no chat template reads"),
        ({"template_from": "both"}, "template_from"),
    ],
)
def test_fields_that_mean_nothing_are_refused(
    folders: tuple[Path, Path], fields: Any, message: str
) -> None:
    with pytest.raises(SafeDraftError, match=message):
        in_memory(folders, guarded=True, **fields)


def test_models_that_do_not_fit_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    save_tokenizer(tmp_path, extra=("<|other|>",))
    other = AutoTokenizer.from_pretrained(tmp_path)
    other.add_special_tokens({"eos_token": "<|other|>"})
    with pytest.raises(IncompatiblePairError):
        safedraft.Pair.from_models(
            read(folders[0]),
            read(folders[1]),
            tokenizer=other,
            draft_tokenizer=AutoTokenizer.from_pretrained(folders[1]),
            guarded=True,
        )


def test_the_target_is_spread_and_quantized_as_transformers_does_it(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, draft = map(str, folders)
    plain = safedraft.load_pair(target, draft, use_adapter=False, engine="transformers")
    asked: list[Any] = []
    read_weights = weights._read_weights

    def watched(folder: Path, config: Any, dtype: Any, own: dict[str, Any]) -> Any:
        asked.append(dict(own))
        own.pop("quantization_config", None)
        return read_weights(folder, config, dtype, own)

    monkeypatch.setattr(weights, "_read_weights", watched)
    spread = safedraft.load_pair(target, draft, use_adapter=False, device_map={"": "cpu"})
    assert ids(spread) == ids(plain)
    chosen = object()
    safedraft.load_pair(target, draft, use_adapter=False, quantization_config=chosen)
    assert asked == [{"device_map": {"": "cpu"}}, {}, {"quantization_config": chosen}, {}]
    with pytest.raises(SafeDraftError, match="device or device_map"):
        safedraft.load_pair(target, draft, use_adapter=False, device_map="auto", device="cpu")


@pytest.mark.parametrize("terminal", [False, True])
def test_loading_shows_itself_on_a_terminal_alone(
    folders: tuple[Path, Path],
    terminal: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "200")
    target, draft = map(str, folders)
    safedraft.load_pair(target, draft, use_adapter=False, engine="transformers")
    assert bool(capsys.readouterr().err) is terminal  # tests/cli/test_progress.py reads what


def test_the_option_for_the_drafts_type_reaches_it(folders: tuple[Path, Path]) -> None:
    from safedraft.cli.models import ModelChoice

    target, draft = map(str, folders)
    choice = ModelChoice(
        target=target, draft=draft, no_adapter=True, draft_dtype="int8", engine="transformers"
    )
    assert choice.arguments["engine_options"] == "draft_dtype=int8"
    layers = choice.load().draft.model.modules()
    assert any(isinstance(layer, Int8Linear) for layer in layers)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen2_vl", "gemma3"])
def test_a_model_that_also_sees_decodes_text_as_it_does_alone(kind: str, tmp_path: Path) -> None:
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    parts = CONFIG_MAPPING[kind]()
    text = tiny_config(parts.get_text_config().model_type)
    if kind == "qwen2_vl":
        text.rope_parameters = {
            "rope_type": "default",
            "rope_theta": 1e4,
            "mrope_section": [1, 1, 2],
        }
    vision = {
        "hidden_size": 32,
        "embed_dim": 32,
        "depth": 1,
        "num_hidden_layers": 1,
        "num_heads": 2,
    }
    config = CONFIG_MAPPING[kind](
        text_config=text.to_dict(),
        vision_config={**vision, "intermediate_size": 32, "num_attention_heads": 2},
        eos_token_id=None,
    )
    save_tiny(tmp_path, config, AutoModelForImageTextToText)
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).eval()
    pair = safedraft.Pair.from_models(whole, whole, tokenizer=None, guarded=False)
    expected = own_tokens(tmp_path, AutoModelForImageTextToText)
    for draft_tokens in (1, 4):
        assert ssd_tokens(pair, draft_tokens) == expected
