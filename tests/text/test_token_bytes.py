"""Bytes of tokens that are parts of characters."""

from __future__ import annotations

from pathlib import Path

from conftest import save_tokenizer
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from safedraft.text.token_bytes import token_bytes


def test_every_byte_of_a_byte_level_vocabulary_is_itself(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "naïve 数学 🙂\n"
    found = [token_bytes(tokenizer, token) for token in tokenizer.encode(text)]
    assert b"".join(part or b"?" for part in found) == text.encode()
    vocabulary = {token_bytes(tokenizer, token) for token in range(256)}
    assert vocabulary == {bytes([byte]) for byte in range(256)}


def test_a_byte_that_a_vocabulary_falls_back_on_is_named() -> None:
    vocabulary = {"<unk>": 0, "<0xE2>": 1, "数": 2, "<0xG1>": 3}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    )
    assert token_bytes(tokenizer, 1) == b"\xe2"
    assert token_bytes(tokenizer, 2) is None
