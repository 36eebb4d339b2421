"""What a model's files say, and what is said of files that say too little."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import save_model, save_tokenizer
from transformers import CONFIG_MAPPING

from safedraft.core.errors import SafeDraftError
from safedraft.models import description
from safedraft.models.description import read_description, read_tokenizer

SENTENCEPIECE = b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02"
TIKTOKEN = b"IQ== 0\nIg== 1\n"


@pytest.mark.parametrize(
    ("content", "missing", "named"),
    [
        (SENTENCEPIECE, "sentencepiece", "sentencepiece"),
        (SENTENCEPIECE, "google.protobuf", "protobuf"),
        (TIKTOKEN, "tiktoken", "tiktoken"),
    ],
)
def test_the_package_that_reads_a_lone_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, missing: str, named: str
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise ImportError("\nthis needs a library\n")

    save_model(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(content)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", refuse)
    monkeypatch.setattr(description, "_is_installed", lambda module: module != missing)
    with pytest.raises(SafeDraftError, match=f"cannot be read: install {named}, which reads"):
        read_description(tmp_path, "big")
    monkeypatch.setattr(description, "_is_installed", lambda module: True)
    with pytest.raises(SafeDraftError, match=r"cannot be read: this needs a library$"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(description, "_is_installed", lambda module: module != missing)
    with pytest.raises(SafeDraftError, match=r"cannot be read: this needs a library$"):
        read_tokenizer(tmp_path)


def test_whether_a_package_is_installed() -> None:
    assert description._is_installed("transformers.models")
    assert not description._is_installed("no_such_package.part")
    assert not description._is_installed("no_such_package")


@pytest.mark.parametrize("kind", ["vit", "musicgen"])
def test_what_is_no_language_model_is_said_to_be_none(tmp_path: Path, kind: str) -> None:
    CONFIG_MAPPING[kind]().save_pretrained(tmp_path)
    with pytest.raises(SafeDraftError, match=f"{kind} is not a language model: name one"):
        read_description(tmp_path, "big")


def test_a_configuration_may_name_no_end_token(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    CONFIG_MAPPING["cpmant"](vocab_size=300).save_pretrained(tmp_path)
    assert "eos_token_id" not in json.loads((tmp_path / "config.json").read_text())
    assert read_description(tmp_path, "big").end_tokens == {256}
