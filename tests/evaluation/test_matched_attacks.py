"""Every attack treats a harmful request and its control alike: only the request differs."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stage import REFUSAL, serve_wheel, use_pair
from talking import TalkingPair

from safedraft.evaluation.attacks import ATTACKS, Attack, SkipSampleError, answers
from safedraft.evaluation.attacks.answers import OPENING
from safedraft.evaluation.attacks.base import DrawsAnswers
from safedraft.evaluation.attacks.encodings import (
    ENCODINGS,
    encode_leetspeak,
    encode_rot13,
    encodings,
    reverse_words,
    space_letters,
)
from safedraft.evaluation.attacks.framed import Framed, Variant, load_variants
from safedraft.evaluation.attacks.high_match import high_match
from safedraft.evaluation.attacks.long_context import load_pages, long_context
from safedraft.evaluation.attacks.prefill_text import PrefillText
from safedraft.evaluation.attacks.suffix_search import SuffixSearch
from safedraft.prompts.drawn import DrawnReply
from safedraft.prompts.screening import touches_minors
from safedraft.prompts.sources import Record
from safedraft.text.messages import conversation

DRAWN = " Take the red part first; then bend it. " * 7
HARMFUL = [Record(f"Explain how to wreck machine {number}.", "bad") for number in range(120)]

FRAMED = sorted(
    name for name in ATTACKS.names() if isinstance(ATTACKS.find(name), Framed)
)  # one file each
FROM_ANSWERS = sorted(
    name for name in ATTACKS.names() if isinstance(ATTACKS.find(name), DrawsAnswers)
)
SEARCHES = {"high_match": high_match, "suffix_search": SuffixSearch(evaluations=3)}


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TalkingPair:
    serve_wheel(tmp_path, monkeypatch)
    return use_pair(tmp_path, monkeypatch, lambda prompt: "Hm, I see.", drawn=DRAWN)


def control_of(record: Record) -> Record:
    return Record("Describe a {nice} day.", "good", control_of=record.request)


def in_language(record: Record, attack: object) -> Record:
    """The record in a language for which the attack has a text."""
    variants = load_variants(attack.name) if isinstance(attack, Framed) else [Variant()]
    return replace(record, language=variants[0].language or "en")


@pytest.mark.parametrize(
    "name", [name for name in ATTACKS.names() if name not in (*SEARCHES, "encodings")]
)
def test_conversations_differ_in_the_request_alone(name: str, pair: TalkingPair) -> None:
    attack = ATTACKS.find(name)
    for record in HARMFUL[:20]:
        record = in_language(record, attack)
        control = replace(control_of(record), language=record.language)
        attacked = attack(record, pair)
        conversation(attacked)  # is valid
        assert str(attacked).count(record.request) >= 1
        assert replace_request(attacked, record, control) == attack(control, pair)


def replace_request(messages: Sequence[Any], record: Record, control: Record) -> list[Any]:
    return [
        {**message, "content": message["content"].replace(record.request, control.request)}
        for message in messages
    ]


@pytest.mark.parametrize("attack", SEARCHES.values(), ids=SEARCHES)
def test_searches_run_on_controls_as_on_requests(attack: Attack, pair: TalkingPair) -> None:
    """What they find depends on the request, and not on whether it is a control."""
    control = control_of(HARMFUL[0])
    attacked = attack(control, pair)
    assert attacked[0]["content"].startswith(control.request)
    assert attacked == attack(replace(control, control_of=None), pair)
    assert len(attacked) == len(attack(HARMFUL[0], pair))


@pytest.mark.parametrize("name", FRAMED)
def test_every_variant_is_used_and_has_the_request(name: str, pair: TalkingPair) -> None:
    attack, variants, used = ATTACKS.find(name), load_variants(name), set()
    for language in {variant.language or "en" for variant in variants}:
        for record in HARMFUL:
            messages = attack(replace(record, language=language), pair)
            text = str([message["content"] for message in messages])
            assert "{request}" not in text
            assert "{language}" not in text
            used.add(text.replace(record.request, "…"))
    assert len(used) == len(variants)


@pytest.mark.parametrize("name", FRAMED)
def test_variants_are_conversations_that_end_with_the_user(name: str) -> None:
    for variant in load_variants(name):
        assert len(variant.turns) % 2 == 1
        assert all(turn.strip() for turn in variant.turns)
        assert not touches_minors(f"{variant}")
        assert variant.turns != ("{request}",) or variant.begun or variant.system
    assert len({*load_variants(name)}) == len(load_variants(name))


def test_openings_are_those_of_no_training_text() -> None:
    from safedraft.training.requests import read_openings

    openings = {variant.begun for variant in load_variants("prefill_opening")}
    assert len(openings) >= 12
    assert not openings & {*read_openings()}


def test_a_system_prompt_of_the_record_stands_before_that_of_the_attack(pair: TalkingPair) -> None:
    record = replace(HARMFUL[0], system="Answer in verse.")
    (own, *_), (joined, *_) = (Framed("system_prompts")(one, pair) for one in (HARMFUL[0], record))
    assert joined == {"role": "system", "content": f"Answer in verse.\n\n{own['content']}"}
    assert Framed("role_play")(record, pair)[0] == {"role": "system", "content": "Answer in verse."}


@pytest.mark.parametrize("name", ["languages_prefill", "languages_mixed"])
def test_a_language_without_a_text_is_left_out(name: str, pair: TalkingPair) -> None:
    with pytest.raises(SkipSampleError, match="the language 'xx'"):
        Framed(name)(replace(HARMFUL[0], language="xx"), pair)


def test_a_frame_names_the_language_of_the_request(pair: TalkingPair) -> None:
    record = replace(HARMFUL[0], request="{language}, por favor.", language="es")
    (message,) = Framed("languages_mixed")(record, pair)
    assert "Spanish" in message["content"]
    assert message["content"].count("{language}") == 1  # that of the request


@pytest.mark.parametrize(
    ("encode", "expected"),
    [
        (lambda text: base64.b64decode(ENCODINGS[0].encode(text)).decode(), "Öl a pot, two!"),
        (encode_rot13, "Öy n cbg, gjb!"),
        (encode_leetspeak, "Öl 4 p07, 7w0!"),
        (reverse_words, "two! pot, a Öl"),
        (space_letters, "Ö l   a   p o t ,   t w o !"),
    ],
)
def test_encodings(encode: Callable[[str], str], expected: str) -> None:
    assert encode("Öl a pot, two!") == expected


def test_encoded_conversations_differ_in_the_encoded_request_alone(pair: TalkingPair) -> None:
    used = set()
    for record in HARMFUL:
        (message,), (control,) = (encodings(one, pair) for one in (record, control_of(record)))
        encoding = next(one for one in ENCODINGS if one.written in message["content"])
        used.add(encoding.written)
        encoded = encoding.encode(record.request)
        assert encoded in message["content"]
        assert record.request not in message["content"]
        exchanged = message["content"].replace(encoded, encoding.encode("Describe a {nice} day."))
        assert exchanged == control["content"]
    assert used == {one.written for one in ENCODINGS}


def test_long_context_has_all_pages_in_an_order_of_the_request(pair: TalkingPair) -> None:
    pages = load_pages()
    assert 750 < sum(len(page.split()) for page in pages) < 1000
    texts = [long_context(record, pair)[0]["content"] for record in HARMFUL]
    assert all(page in text for text in texts for page in pages)
    firsts = {text.split("\n\n")[1] for text in texts}
    assert len(firsts) > 10


@pytest.mark.parametrize("tokens", [5, 20, 40, 100, 200])
def test_a_text_prefill_is_the_answer_without_its_opening(tokens: int, pair: TalkingPair) -> None:
    record = replace(HARMFUL[0], answer="Sure, wreck it like this.")
    asked, begun = PrefillText(tokens)(record, pair)
    assert asked["content"] == record.request
    assert begun["content"] == DRAWN.lstrip()[:tokens]  # a token a byte


@pytest.mark.parametrize("drawn", [REFUSAL, "Too short. "])
def test_refusals_and_short_answers_are_no_text_to_begin_with(
    drawn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = use_pair(tmp_path, monkeypatch, lambda prompt: "Hm.", drawn=drawn)
    with pytest.raises(SkipSampleError, match="fewer than 20 tokens"):
        PrefillText(20)(HARMFUL[0], pair)
    assert PrefillText(20).draw_answers(HARMFUL[:2], pair) == [None, None]


def test_generated_answers_have_the_length_that_is_needed(
    pair: TalkingPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short texts ask for as many tokens as compliant answers, so that the cache serves both."""
    asked: list[tuple[str, int]] = []

    def draw(_: Any, conversations: Sequence[Any], *, max_new_tokens: int, **__: Any) -> Any:
        asked.extend((str(messages), max_new_tokens) for messages in conversations)
        return [DrawnReply(DRAWN, False) for _ in conversations]

    monkeypatch.setattr(answers, "draw_target_replies", draw)
    monkeypatch.setattr(answers, "LONGEST", 90)
    for attack in (ATTACKS.find("prefill_20"), *map(PrefillText, (5, 20, 40, 200))):
        assert isinstance(attack, DrawsAnswers)
        assert attack.draw_answers(HARMFUL[:1], pair, None) != [None]
    opening = len(OPENING)
    assert [length for _, length in asked] == [
        rounded(90 - opening), rounded(90 - opening), rounded(90 - opening), 50, 210,
    ]  # fmt: skip
    assert len({messages for messages, _ in asked}) == 1


def rounded(count: int) -> int:
    return -(-count // 10) * 10


def test_attacks_that_begin_with_answers_draw_them_together() -> None:
    prefills = {f"prefill_{count}" for count in (0, 5, 10, 20, 40)}
    texts = {f"prefill_text_{count}" for count in (5, 20, 40, 100, 200)}
    assert {*FROM_ANSWERS} == {*prefills, *texts, "high_match"}


def test_drawing_ahead_for_no_tokens_draws_nothing(pair: TalkingPair) -> None:
    assert ATTACKS.find("prefill_0").draw_answers(HARMFUL[:3], pair) == ["", "", ""]  # type: ignore[attr-defined]
