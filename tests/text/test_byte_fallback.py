"""Replies after prompts that end inside, or just after, a character that is several tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from safedraft.core.config import SamplingParams, SSDConfig
from safedraft.engines.base import LoadedModel
from safedraft.engines.scripted import ScriptedEngine
from safedraft.pair import Pair
from safedraft.text.detokenizer import Detokenizer

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
BROKEN = "\N{REPLACEMENT CHARACTER}"
LETTERS = "abcdefghijklmnopqrstuvwxyz.é"


class Kind(NamedTuple):
    """A tokenizer, and the bytes that a token of it stands for."""

    tokenizer: Any
    bytes_of: Callable[[str], bytes]
    strips: bool
    """Whether decoding removes a space that a text begins with."""

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def whole_text(self, ids: Sequence[int]) -> str:
        """The text of ids, without the character that they end inside."""
        tokens = self.tokenizer.convert_ids_to_tokens(list(ids))
        text = b"".join(map(self.bytes_of, tokens)).decode(errors="ignore")
        return text.removeprefix(" ") if self.strips else text


def byte_fallback(*, strips: bool) -> Kind:
    """As Llama 2's: what has no token is one token for each byte, ``<0x00>`` to ``<0xFF>``."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [(SPACE, "a"), ("t", "h"), ("th", "e")]
    tokens += [SPACE, *LETTERS, *("".join(merge) for merge in merges)]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    plain = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    replace = normalizers.Replace(" ", SPACE)
    decoding = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if strips:
        plain.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), replace])
        decoding.append(decoders.Strip(" ", 1, 0))
    else:
        plain.normalizer = replace
    plain.decoder = decoders.Sequence(decoding)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )

    def bytes_of(token: str) -> bytes:
        if token.startswith("<0x"):
            return bytes([int(token[3:5], 16)])
        return token.replace(SPACE, " ").encode()

    return Kind(tokenizer, bytes_of, strips)


def byte_level() -> Kind:
    """As GPT-2's, with tokens that end inside a character, and begin inside one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbol = {ord(char.encode("latin-1")): char for char in alphabet if ord(char) < 256}
    missing = [byte for byte in range(256) if byte not in symbol]
    symbol |= {byte: chr(256 + index) for index, byte in enumerate(missing)}
    day, smile = "日".encode(), "🙂".encode()
    merges = [
        (symbol[ord(" ")], symbol[day[0]]),
        (symbol[day[1]], symbol[day[2]]),
        (symbol[smile[0]], symbol[smile[1]]),
        (symbol[smile[3]], symbol[ord("a")]),
    ]
    tokens = [*alphabet, *("".join(merge) for merge in merges)]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    plain = Tokenizer(models.BPE(vocabulary, merges))
    # No pattern: a token may span the characters that GPT-2's would keep apart.
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="</s>")
    byte = {char: value for value, char in symbol.items()}
    return Kind(tokenizer, lambda token: bytes(byte[char] for char in token), strips=False)


KINDS = {
    "byte fallback": byte_fallback(strips=False),
    "byte fallback, first space stripped": byte_fallback(strips=True),
    "byte level": byte_level(),
}
TEXTS = st.text(
    st.one_of(st.sampled_from(" a.the日本é🙂👍🏽ß"), st.characters(codec="utf-8")), max_size=25
)


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    return chosen


def reply_after(kind: Kind, prompt: Sequence[int], reply: Sequence[int]) -> str:
    detokenizer = Detokenizer(kind.tokenizer, prompt)
    return "".join(map(detokenizer.push, reply)) + detokenizer.flush()


def test_the_tokenizers_split_characters(kind: Kind) -> None:
    ids = kind.encode("the 日🙂a")
    assert kind.decode(ids) == "the 日🙂a"
    assert any(BROKEN in kind.decode(ids[:length]) for length in range(len(ids)))


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=300, deadline=None)
@given(text=TEXTS.filter(lambda text: BROKEN not in text), share=st.floats(0, 1))
@example(text="日本" * 12, share=0.5)  # the last tokens of the prompt begin inside a character
@example(text="a ß日", share=0.7)
def test_prompt_and_reply_join_to_all_ids_decoded_at_once(
    name: str, text: str, share: float
) -> None:
    kind = KINDS[name]
    ids = kind.encode(text)
    length = round(share * len(ids))
    whole = kind.decode(ids)
    prompt = kind.whole_text(ids[:length])
    assert whole.startswith(prompt)
    assert prompt + reply_after(kind, ids[:length], ids[length:]) == whole


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=100, deadline=None)
@given(text=TEXTS.filter(lambda text: BROKEN not in text))
def test_pieces_are_whole_characters_wherever_the_prompt_ends(name: str, text: str) -> None:
    kind = KINDS[name]
    ids = kind.encode(text)
    for length in range(len(ids)):
        detokenizer = Detokenizer(kind.tokenizer, ids[:length])
        assert BROKEN not in "".join(map(detokenizer.push, ids[length:]))
        assert (detokenizer.pending, detokenizer.flush()) == (False, "")


@pytest.mark.parametrize(
    ("prompt", "missing", "reply", "expected"),
    [
        ("the 日", 1, "", "日"),
        ("the 日", 2, "", "日"),
        ("日", 1, " a", "日 a"),
        ("ß日", 1, "本", "日本"),
        ("the 🙂", 1, "a", "🙂a"),
        ("the 🙂", 3, "🙂", "🙂🙂"),
        ("日本日本日本日本", 0, "日", "日"),
        ("日本日本日本日本", 2, "a", "本a"),
        ("the a", 0, "日", "日"),
        ("", 0, "日 a", "日 a"),
    ],
)
def test_a_character_that_the_prompt_ends_inside_is_the_replys(
    prompt: str, missing: int, reply: str, expected: str
) -> None:
    """The last ``missing`` bytes, each a token, are the reply's."""
    kind = KINDS["byte fallback"]
    ids = kind.encode(prompt)
    cut = len(ids) - missing
    assert reply_after(kind, ids[:cut], [*ids[cut:], *kind.encode(reply)]) == expected


def test_a_token_that_ends_inside_a_character_keeps_its_text_in_the_prompt() -> None:
    kind = KINDS["byte level"]
    start, rest = kind.encode(" 日")
    assert reply_after(kind, [*kind.encode("the"), start], [rest]) == "日"
    smile = kind.encode("🙂a")
    assert [len(kind.encode(text)) for text in ("🙂", "🙂a")] == [3, 3]
    assert reply_after(kind, smile[:2], smile[2:]) == "🙂a"


@pytest.mark.parametrize("name", ["byte fallback", "byte level"])
def test_a_character_that_is_never_completed_stays_the_prompts(name: str) -> None:
    kind = KINDS[name]
    *start, _ = kind.encode("ß日")
    assert reply_after(kind, start, kind.encode("the")) == "the"
    detokenizer = Detokenizer(kind.tokenizer, start)
    assert (detokenizer.pending, detokenizer.flush()) == (True, "")


def test_bytes_of_no_character_are_one_replacement_character_each() -> None:
    kind = KINDS["byte fallback"]
    lead, follow = kind.encode("ß")
    end = kind.encode("a")
    cases: list[tuple[list[int], list[int], str]] = [
        ([], [lead, *end], BROKEN + "a"),
        ([], [lead, follow, lead, *end], "ß" + BROKEN + "a"),
        ([lead, follow], [lead, *end], BROKEN + "a"),
        ([lead], [lead, *end], BROKEN + "a"),
        ([], [lead, follow, lead], "ß" + BROKEN),
        ([], [lead, follow, follow, lead, follow, *end], "ß" + 3 * BROKEN + "a"),
    ]
    for prompt, reply, expected in cases:
        assert reply_after(kind, prompt, reply) == expected, (prompt, reply)


def test_alternatives_are_spelled_after_the_prompts_incomplete_character(kind: Kind) -> None:
    ids = kind.encode("a ß日")
    detokenizer = Detokenizer(kind.tokenizer, ids[:-1])
    assert detokenizer.spell(ids[-1]) == "日"
    assert detokenizer.spell(kind.encode("the")[-1]).strip() == kind.decode(kind.encode("the")[-1:])
    assert detokenizer.push(ids[-1]) == "日"


def test_a_pairs_reply_completes_the_prompts_character_and_stops_at_it() -> None:
    kind = KINDS["byte fallback"]
    ids = kind.encode("a 日本")
    size = len(kind.tokenizer)

    def script(seen: Sequence[int]) -> Tensor:
        logits = torch.zeros(size)
        logits[ids[len(seen) % len(ids)]] = 9.0
        return logits

    model = LoadedModel("scripted", None, kind.tokenizer)
    engine = ScriptedEngine(script, script)
    pair = Pair(engine, model, model, size, 512, frozenset({2}), SSDConfig())
    prompt = ids[:-4]  # two of the first character's three bytes
    for stop, text in (((), "日本a 日本"), (("本",), "日")):
        sampling = SamplingParams(max_new_tokens=12, stop=stop)
        assert pair.stream_ids(prompt, sampling=sampling).drain().text == text
