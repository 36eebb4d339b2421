"""Merging: what was trained is what decodes, in this process and from a saved folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_model, save_tokenizer

from safedraft.core.errors import SafeDraftError
from safedraft.models.parts import fetch_parts
from safedraft.models.registry import PairSpec
from safedraft.models.weights import merge_adapter, merged_draft

IDS = torch.tensor([[1, 2, 3, 200]])


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose output layer is its embeddings."""
    folder = tmp_path_factory.mktemp("tied")
    save_model(folder, tie_word_embeddings=True)
    save_tokenizer(folder)
    return folder


def read(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def save_lora(folder: Path, base: Path, **settings: Any) -> Path:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    lora = LoraConfig(r=2, task_type="CAUSAL_LM", init_lora_weights=False, **settings)
    get_peft_model(read(base), lora).save_pretrained(folder)
    return folder


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(IDS).logits


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["lm_head"]},
        {"target_modules": ["embed_tokens"]},
        {"target_modules": ["lm_head", "embed_tokens"]},
        {"target_modules": ["q_proj"]},
        {"target_modules": ["q_proj"], "use_dora": True},
        {"target_modules": ["q_proj"], "use_rslora": True, "lora_alpha": 5},
    ],
)
def test_the_merged_draft_is_the_trained_one(tied: Path, tmp_path: Path, settings: Any) -> None:
    from peft import PeftModel

    adapter = save_lora(tmp_path / "lora", tied, **settings)
    trained = logits(PeftModel.from_pretrained(read(tied), adapter))
    assert (trained - logits(read(tied))).abs().max() > 1e-2
    merged = merge_adapter(read(tied), adapter)
    torch.testing.assert_close(logits(merged), trained, rtol=1e-4, atol=1e-4)
    spec = PairSpec(name="p", target=str(tied), draft=str(tied), adapter=str(adapter))
    torch.testing.assert_close(
        logits(read(merged_draft(fetch_parts(spec)))), trained, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("rows", [300, 260])
@pytest.mark.parametrize("adapted", [False, True])
def test_a_draft_gets_as_many_rows_as_its_engine_needs(
    tied: Path, tmp_path: Path, rows: int, adapted: bool
) -> None:
    adapter = save_lora(tmp_path / "lora", tied, target_modules=["v_proj"]) if adapted else None
    name = str(adapter) if adapter else None
    parts = fetch_parts(PairSpec(name="p", target=str(tied), draft=str(tied), adapter=name))
    whole = read(merged_draft(parts))
    folder = merged_draft(parts, rows=rows)
    assert merged_draft(parts, rows=rows) == folder != tied
    resized = read(folder)
    assert resized.config.vocab_size == rows
    known, found = logits(whole), logits(resized)
    assert found.shape[-1] == rows
    shared = min(rows, known.shape[-1])
    torch.testing.assert_close(found[..., :shared], known[..., :shared])
    assert not found[..., shared:].any()
    assert merged_draft(parts, rows=known.shape[-1]) == merged_draft(parts)


def test_a_merge_that_changes_the_model_is_refused(
    tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import Linear

    adapter = save_lora(tmp_path / "lora", tied, target_modules=["q_proj", "v_proj"])
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: 0 * self.weight)
    with pytest.raises(SafeDraftError, match=r"merging it changes the next token's distribution"):
        merge_adapter(read(tied), adapter)


def test_a_folder_that_loses_weights_is_refused(
    tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = save_lora(tmp_path / "lora", tied, target_modules=["v_proj"])
    spec = PairSpec(name="p", target=str(tied), draft=str(tied), adapter=str(adapter))
    monkeypatch.setattr(
        "transformers.PreTrainedModel.save_pretrained",
        lambda self, folder: shutil.copytree(tied, folder, dirs_exist_ok=True),
    )
    with pytest.raises(SafeDraftError, match="does not survive being saved"):
        merged_draft(fetch_parts(spec))


def test_an_adapter_without_weights_to_add_is_refused(tied: Path, tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    get_peft_model(read(tied), config).save_pretrained(tmp_path)
    with pytest.raises(SafeDraftError, match="PROMPT_TUNING has no weights to add"):
        merge_adapter(read(tied), tmp_path)


def test_the_weight_that_does_not_fit_is_named_with_its_shapes(tied: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "other", hidden_size=48)
    adapter = save_lora(tmp_path / "lora", tmp_path / "other", target_modules=["q_proj"])
    with pytest.raises(SafeDraftError, match=r"q_proj.*lora_A.*48.*32") as caught:
        merge_adapter(read(tied), adapter)
    assert "\n" not in str(caught.value)
