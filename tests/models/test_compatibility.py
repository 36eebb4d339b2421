"""What stands against two models decoding together is found and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import TEMPLATE, save_model, save_tokenizer
from transformers import MambaConfig

from safedraft.core.errors import IncompatiblePairError, SafeDraftError
from safedraft.models.compatibility import CompatibilityReport, check_compatibility
from safedraft.models.description import read_description


def folder_of(
    path: Path, tokens: tuple[str, ...] | None = (), rows: int = 264, **settings: Any
) -> Path:
    save_model(path, vocabulary=rows, **settings)
    if tokens is not None:
        save_tokenizer(path, extra=tokens)
    return path


def diagnose(target: Path, draft: Path) -> CompatibilityReport:
    return check_compatibility(read_description(target, "big"), read_description(draft, "small"))


def statuses(report: CompatibilityReport, name: str) -> list[str]:
    return [check.status for check in report.checks if check.name == name]


def test_a_pair_that_fits(tmp_path: Path) -> None:
    found = diagnose(
        folder_of(tmp_path / "a"), folder_of(tmp_path / "b", max_position_embeddings=99)
    )
    assert found.compatible
    assert {check.status for check in found.checks} == {"ok"}
    assert found.vocabulary == 258
    assert found.end_tokens == {256}
    assert found.context_length == 99
    assert found.to_dict()["compatible"] is True


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "warning"),
        ({"template": "<|reserved_2|>"}, "failure"),
        ({"eos_token_id": 258}, "failure"),
    ],
)
def test_a_spare_control_token_may_have_two_names(
    tmp_path: Path, changes: dict[str, Any], status: str
) -> None:
    template = changes.pop("template", "") + TEMPLATE
    for name, spare in (("a", "<|reserved_1|>"), ("b", "<|reserved_2|>")):
        save_model(tmp_path / name, **(changes if name == "b" else {}))
        save_tokenizer(tmp_path / name, template=template, extra=(spare,))
    found = diagnose(tmp_path / "a", tmp_path / "b")
    assert statuses(found, "vocabulary") == [status]


def test_ids_that_stand_for_different_tokens(tmp_path: Path) -> None:
    found = diagnose(
        folder_of(tmp_path / "a", ("<x>",)), folder_of(tmp_path / "b", ("<y>",), eos_token_id=258)
    )
    with pytest.raises(IncompatiblePairError, match=r"big and small .*258 is '<x>' or '<y>'"):
        found.require()


def test_a_template_that_ends_turns_with_no_end_token(tmp_path: Path) -> None:
    template = (
        "{% for message in messages %}{{ message['content'] }}<turn>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>{% endif %}"
    )
    for name, written in (("a", template), ("b", template.replace("<turn>", "<|end|>"))):
        save_model(tmp_path / name)
        save_tokenizer(tmp_path / name, template=written, extra=("<turn>",))
    found = diagnose(tmp_path / "a", tmp_path / "b")
    (warning,) = (check for check in found.checks if check.name == "turn ends")
    assert warning.detail.startswith("big: its chat template ends turns with '<turn>' (258)")
    assert found.compatible


@pytest.mark.parametrize(
    ("rope", "length"),
    [
        ({"rope_type": "longrope", "original_max_position_embeddings": 64, "factor": 8.0,
          "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}, 64),
        ({"rope_type": "dynamic", "factor": 2.0}, 512),
        ({"rope_type": "llama3", "original_max_position_embeddings": 64, "factor": 8.0,
          "low_freq_factor": 1.0, "high_freq_factor": 4.0}, 512),
        (None, 512),
    ],
    ids=["longrope", "dynamic", "llama3", "plain"],
)  # fmt: skip
def test_positions_whose_factors_depend_on_the_length_are_not_used(
    tmp_path: Path, rope: Any, length: int
) -> None:
    found = diagnose(folder_of(tmp_path / "a", rope_scaling=rope), folder_of(tmp_path / "b"))
    assert found.context_length == length
    assert ("warning" in statuses(found, "context")) is (length < 512)


def test_tokens_of_one_model_alone_are_never_decoded(tmp_path: Path) -> None:
    found = diagnose(folder_of(tmp_path / "a", ("<x>", "<y>")), folder_of(tmp_path / "b"))
    assert found.compatible
    assert found.vocabulary == 258
    assert statuses(found, "vocabulary") == ["ok", "warning"]
    assert statuses(found, "special tokens") == ["warning"]


def test_padding_rows_of_different_number_are_masked(tmp_path: Path) -> None:
    found = diagnose(folder_of(tmp_path / "a", rows=300), folder_of(tmp_path / "b", rows=270))
    assert found.compatible
    assert found.vocabulary == 258
    assert any("42 of 300 output rows" in check.detail for check in found.checks)


def test_without_tokenizers_only_sizes_are_known(tmp_path: Path) -> None:
    found = diagnose(folder_of(tmp_path / "a", None, 300), folder_of(tmp_path / "b", None, 270))
    assert found.compatible
    assert found.vocabulary == 270
    assert statuses(found, "vocabulary") == ["warning"]
    assert statuses(found, "chat template") == ["warning", "warning"]


def test_an_end_token_the_draft_does_not_have(tmp_path: Path) -> None:
    target = folder_of(tmp_path / "a", None, 300, eos_token_id=290)
    found = diagnose(target, folder_of(tmp_path / "b", None, 270))
    with pytest.raises(IncompatiblePairError, match=r"ends its replies with ids .*\[290\]"):
        found.require()


def test_different_end_tokens_all_count(tmp_path: Path) -> None:
    found = diagnose(folder_of(tmp_path / "a", eos_token_id=[256, 5]), folder_of(tmp_path / "b"))
    assert found.end_tokens == {5, 256}
    assert statuses(found, "end tokens") == ["warning"]


def test_an_end_token_of_the_draft_alone_does_not_count(tmp_path: Path) -> None:
    draft = folder_of(tmp_path / "b", ("<x>",), eos_token_id=[256, 258])
    found = diagnose(folder_of(tmp_path / "a"), draft)
    assert found.compatible
    assert found.end_tokens == {256}
    (check,) = (check for check in found.checks if check.name == "end tokens")
    assert check.status == "warning"
    assert check.detail == "target [256], draft [256, 258]: a reply ends at any of [256]"


def test_state_that_cannot_be_rewound(tmp_path: Path) -> None:
    MambaConfig(vocab_size=264, num_hidden_layers=2).save_pretrained(tmp_path / "b")
    found = diagnose(folder_of(tmp_path / "a"), tmp_path / "b")
    with pytest.raises(IncompatiblePairError, match=r"small: mamba has .* cannot be rewound"):
        found.require()


def test_no_chat_template(tmp_path: Path) -> None:
    save_model(tmp_path / "b")
    save_tokenizer(tmp_path / "b", template=None)
    found = diagnose(folder_of(tmp_path / "a"), tmp_path / "b")
    assert statuses(found, "chat template") == ["warning"]


@pytest.mark.parametrize("content", ["{", '{"model_type": "no-such-model"}', "[]"])
def test_a_config_that_cannot_be_used_names_its_folder(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(SafeDraftError, match=r"config\.json cannot be used"):
        read_description(tmp_path, "big")
