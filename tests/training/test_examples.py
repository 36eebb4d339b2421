"""From text to labels: where they stand, what they ask for, and how often."""

from __future__ import annotations

import random
from collections import Counter
from itertools import islice

import pytest
from transformers import AutoTokenizer

from safedraft.core.errors import SafeDraftError
from safedraft.training.config import TrainingConfig
from safedraft.training.conversations import RatedConversation
from safedraft.training.examples import (
    BatchPosition,
    Example,
    Examples,
    LabelKind,
    iterate_batches,
    pack,
)
from safedraft.training.requests import TrainingRequest, read_refusals
from safedraft.training.training_data import Begun, TargetReply, TrainingData

END = 256


@pytest.fixture
def tokenizer(tiny_pair):
    return AutoTokenizer.from_pretrained(tiny_pair[1])


def asked(text, kind, opening="", **fields):
    messages = [{"role": "user", "content": text}]
    request = TrainingRequest(text, kind, **fields)
    return Begun(RatedConversation(messages, request, "plain"), opening)


def data(harmful=("Sure, one.\n\ntwo ",), answers=("Yes.",)):
    return TrainingData(
        [TargetReply(asked("bad", "harmful", text), "", False) for text in harmful],
        [TargetReply(asked("good", "ordinary"), text, True) for text in answers],
        declined=[],
    )


def refusal_of(make, said, relapse=()):
    messages = [{"role": "user", "content": "bad"}]
    return make.make_refusal(messages, said, make.spell(read_refusals()[0]), relapse)


def maker(tokenizer, config=None, **given):
    return Examples(data(**given), tokenizer, frozenset([END]), config or TrainingConfig())


def labeled(example, tokenizer):
    """Pairs of the text up to a label and the label's text."""
    start = len(example.ids) - len(example.labels) + 1
    return [
        (tokenizer.decode(example.ids[: start + at]), tokenizer.decode([label]))
        for at, label in enumerate(example.labels)
    ]


def test_a_refusal_follows_the_beginning_and_ends_the_turn(tokenizer):
    said = tokenizer.encode("Well,")
    example = refusal_of(maker(tokenizer, TrainingConfig(dense_weight=0)), said)
    assert set(example.kinds) == {LabelKind.REFUSAL}
    before, _ = labeled(example, tokenizer)[0]
    assert before.endswith("assistant\nWell,")
    assert tokenizer.decode(example.labels) == f" {read_refusals()[0]}<|end|>"
    # What is asked for is what is read next: teacher forcing, shifted by one.
    assert example.ids[-len(example.labels) + 1 :] == example.labels[:-1]


def test_dense_labels_ask_for_the_opening_at_every_position(tokenizer):
    said = tokenizer.encode("Sure.\n\nOn ")
    example = refusal_of(maker(tokenizer), said)
    assert Counter(example.kinds)[LabelKind.DENSE] == len(said)
    pairs = labeled(example, tokenizer)[: len(said)]
    assert pairs[0][0].endswith("assistant\n")
    for before, label in pairs:
        assert label == ("I" if before[-1].isspace() else " ")


def test_a_refusal_that_is_taken_back_is_asked_for_again(tokenizer):
    said, relapse = tokenizer.encode("Sure"), tokenizer.encode(" But\nso")
    example = refusal_of(maker(tokenizer), said, relapse)
    plain = refusal_of(maker(tokenizer), said)
    assert example.labels[: len(plain.labels)] == plain.labels
    again = labeled(example, tokenizer)[len(plain.labels) :]
    refused = f"Sure {read_refusals()[0]}"
    assert [before[before.index("Sure") :] for before, _ in again] == [
        refused + " But\nso"[:count] for count in range(1, 8)
    ]
    assert [label for _, label in again] == ["I", " ", " ", " ", "I", " ", " "]
    assert example.kinds[len(plain.labels) :] == [LabelKind.DENSE] * 7


def test_how_often_refusals_are_taken_back(tokenizer):
    make = maker(tokenizer, TrainingConfig(relapse_share=0.3), harmful=["abcd"] * 1000)
    whole = [example for example in make.epoch(0) if example.answered is None]
    taken_back = [example for example in whole if example.kinds[-1] == LabelKind.DENSE]
    assert 250 < len(taken_back) < 350


@pytest.mark.parametrize(
    ("said", "space"), [("", False), ("Step", True), ("Step.\n", False), ("Step ", False)]
)
def test_a_refusal_has_its_own_space_only_where_there_is_none(tokenizer, said, space):
    example = refusal_of(maker(tokenizer), tokenizer.encode(said))
    refusal = [x for x, n in zip(example.labels, example.kinds, strict=True) if n == 0]
    assert tokenizer.decode(refusal).startswith(" I'm" if space else "I'm")


def test_half_of_the_refusals_come_at_once_and_the_rest_anywhere(tokenizer):
    config = TrainingConfig(relapse_share=0, beginning_tokens=10)
    make, rng = maker(tokenizer, config, harmful=("abcdefghijklmnop",)), random.Random(0)
    drawn = [make.make_harmful(make.data.harmful[0], rng) for _ in range(2000)]
    counts = Counter(Counter(example.kinds)[LabelKind.DENSE] for example in drawn)
    assert 900 < counts[0] < 1100
    assert set(counts) == set(range(11))
    assert all(60 < counts[k] < 140 for k in range(1, 11))


def test_beginnings_are_drawn_anew_every_epoch_and_repeat_by_seed(tokenizer):
    make, again = (maker(tokenizer, harmful=["abcdefgh"] * 20) for _ in range(2))
    assert make.epoch(0) == again.epoch(0)
    assert make.epoch(0) != make.epoch(1)
    other = maker(tokenizer, TrainingConfig(seed=1), harmful=["abcdefgh"] * 20)
    assert make.epoch(0) != other.epoch(0)


def test_an_epoch_keeps_the_share_of_harmful_requests(tokenizer):
    make = maker(
        tokenizer, TrainingConfig(harmful_share=0.25), harmful=["a"] * 4, answers=["x", "y"]
    )
    epoch = make.epoch(0)
    assert sum(example.answered is None for example in epoch) == 4
    assert Counter(e.answered for e in epoch if e.answered is not None) == {0: 6, 1: 6}


def test_answers_end_only_if_the_target_ended_them(tokenizer):
    make = maker(tokenizer)
    good = asked("good", "ordinary")
    whole = make.make_answer(TargetReply(good, "Yes.", True))
    cut = make.make_answer(TargetReply(good, "Yes.", False))
    assert tokenizer.decode(whole.labels) == "Yes.<|end|>"
    assert tokenizer.decode(cut.labels) == "Yes."
    assert labeled(cut, tokenizer)[0][0].endswith("good<|end|>\n<|start|>assistant\n")


def test_only_the_targets_own_words_are_labels_behind_an_opening(tokenizer):
    begun = asked("good", "ordinary", "Sure, here is ")
    example = maker(tokenizer).make_answer(TargetReply(begun, "bread.", True))
    assert tokenizer.decode(example.labels) == "bread.<|end|>"
    assert labeled(example, tokenizer)[0][0].endswith("assistant\nSure, here is ")
    assert set(example.kinds) == {LabelKind.ANSWER}


def test_a_refusal_is_in_the_requests_language(tokenizer):
    config = TrainingConfig(direct_share=0, relapse_share=1, dense_weight=1)
    for language, spaced in (("de", True), ("ja", False)):
        begun = asked("bad", "harmful", "Klar", source="languages", category=language)
        item = TargetReply(begun, "", False)
        make = Examples(TrainingData([item], [], []), tokenizer, frozenset([END]), config)
        made = make.make_harmful(item, random.Random(0))
        refusals = [f" {text}" if spaced else text for text in read_refusals(language)]
        at = made.kinds.index(LabelKind.REFUSAL)
        assert tokenizer.decode(made.labels[at:]) in [f"{text}<|end|>" for text in refusals]


def test_what_surrounds_a_request_is_read(tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "bad"},
    ]
    request = TrainingRequest("bad", "harmful")
    begun = Begun(RatedConversation(messages, request, "earlier turns"), "Sure")
    made = maker(tokenizer).make_harmful(TargetReply(begun, ", one", False), random.Random(0))
    text = tokenizer.decode(made.ids)
    assert text.index("Be brief.") < text.index("Hello") < text.index("Hi<|end|>")
    assert text.index("Hi<|end|>") < text.index("bad<|end|>")


def test_a_template_that_never_ends_a_turn_is_refused(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(SafeDraftError, match="closes no turn"):
        maker(tokenizer)


def example(length):
    return Example([0] * length, [0], [LabelKind.ANSWER])


def test_batches_hold_as_many_examples_as_there_is_room_for():
    lengths = [[len(e.ids) for e in some] for some in pack(map(example, (3, 3, 5, 9, 20, 1)), 10)]
    assert lengths == [[3, 3], [5], [9], [20], [1]]


def test_batches_go_on_from_any_place():
    def epoch(number):
        return [example(4 + number % 2) for _ in range(5)]

    whole = list(islice(iterate_batches(epoch, 10), 12))
    for at, (_, place) in enumerate(whole[:-1]):
        assert next(iterate_batches(epoch, 10, place))[0] == whole[at + 1][0]
    assert whole[2][1] == BatchPosition(1, 0)
