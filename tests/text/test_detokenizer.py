"""Tokens become whole characters, and the prompt is context that is not returned."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import save_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from safedraft.text.detokenizer import Detokenizer

START, END = 257, 256


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def words() -> Any:
    """A tokenizer whose decoder takes the first space of a text away, as SentencePiece's do."""
    model = WordLevel({"\N{LOWER ONE EIGHTH BLOCK}Sure": 0, "\N{LOWER ONE EIGHTH BLOCK}a": 1})
    plain = Tokenizer(model)
    plain.decoder = Metaspace()
    plain.add_special_tokens(["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=plain)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=30))
def test_pieces_are_whole_characters_and_join_to_the_text(tokenizer: Any, text: str) -> None:
    detokenizer = Detokenizer(tokenizer, prompt=[])
    pieces = [detokenizer.push(id) for id in tokenizer.encode(text, add_special_tokens=False)]
    assert "".join(pieces) + detokenizer.flush() == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_a_word_keeps_its_space_after_a_control_token(words: Any) -> None:
    detokenizer = Detokenizer(words, [0])
    assert "".join(map(detokenizer.push, [1, 2, 1])) == " a a"
    assert Detokenizer(words, []).push(1) == "a"  # as its decoder has it at the start of a text


def test_a_prompt_that_ends_inside_a_character_is_not_repeated(tokenizer: Any) -> None:
    prompt = tokenizer.encode("hello é", add_special_tokens=False)[:-1]
    detokenizer = Detokenizer(tokenizer, prompt)
    assert [detokenizer.push(id) for id in tokenizer.encode("xy")] == ["x", "y"]


def test_only_an_incomplete_character_is_pending(tokenizer: Any) -> None:
    detokenizer = Detokenizer(tokenizer, [START])
    first, _ = tokenizer.encode("é", add_special_tokens=False)
    assert (detokenizer.push(END), detokenizer.pending, detokenizer.flush()) == ("", False, "")
    assert (detokenizer.push(first), detokenizer.pending) == ("", True)
    assert detokenizer.flush() == "\N{REPLACEMENT CHARACTER}"


def test_spell_returns_what_a_token_would_add(tokenizer: Any) -> None:
    smile = tokenizer.encode("🙂", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer, [START])
    (letter,) = tokenizer.encode("a", add_special_tokens=False)
    for id in smile[:-1]:
        detokenizer.push(id)
    assert detokenizer.spell(smile[-1]) == "🙂"
    assert detokenizer.spell(letter) == "\N{REPLACEMENT CHARACTER}a"
    assert detokenizer.push(smile[-1]) == "🙂"  # nothing was said by spelling
    assert detokenizer.spell(smile[0]) == "\N{REPLACEMENT CHARACTER}"
    assert detokenizer.spell(END) == "<|end|>"
