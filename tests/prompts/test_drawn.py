from __future__ import annotations

import os

import pytest
import torch

import safedraft
from safedraft.core.errors import BrokenModelError
from safedraft.models.registry import cache_folder
from safedraft.prompts import drawn
from safedraft.prompts.drawn import draw_replies, draw_target_replies


@pytest.fixture
def pair(tiny_pair):
    target, draft = tiny_pair
    return safedraft.load_pair(target=str(target), draft=str(draft), engine="transformers")


def asked(*texts):
    return [[{"role": "user", "content": text}] for text in texts]


def test_a_batch_says_what_each_would_say_alone(pair):
    texts = ("Hi", "How are you today?", "Tell me more about tomatoes.")
    together = draw_replies(pair.target, asked(*texts), max_new_tokens=12)
    sampling = safedraft.SamplingParams(max_new_tokens=12)
    alone = [pair.generate(text, sampling=sampling, rule="target_only") for text in texts]
    assert [reply.text for reply in together] == [
        reply.text.rstrip("\N{REPLACEMENT CHARACTER}") for reply in alone
    ]
    assert [reply.ended for reply in together] == [r.finish_reason == "stop" for r in alone]


def test_an_engine_without_weights_draws_them_itself_and_once(tiny_pair, monkeypatch):
    target, draft = tiny_pair
    packed = safedraft.load_pair(target=str(target), draft=str(draft), engine="cpu")
    texts = ("Hi", "How are you today?")
    replies = draw_target_replies(packed, asked(*texts), max_new_tokens=9)
    sampling = safedraft.SamplingParams(max_new_tokens=9)
    alone = [packed.generate(text, sampling=sampling, rule="target_only") for text in texts]
    assert [reply.text for reply in replies] == [reply.text for reply in alone]
    assert [reply.ended for reply in replies] == [r.finish_reason == "stop" for r in alone]
    monkeypatch.setattr(drawn, "_generate_with_engine", lambda *_: pytest.fail("drawn again"))
    assert draw_target_replies(packed, asked(*texts), max_new_tokens=9) == replies
    (file,) = (cache_folder() / "drawn").glob(f"*-{packed.target.identity}.jsonl")
    assert file.exists()


def test_a_model_that_gives_no_numbers_is_no_reply(pair, monkeypatch):
    head = pair.target.model.lm_head
    monkeypatch.setitem(head._parameters, "weight", torch.full_like(head.weight, torch.nan))
    with pytest.raises(BrokenModelError, match="NaN"):
        draw_replies(pair.target, asked("Hi"), max_new_tokens=4)


def test_an_assistant_turn_is_continued(pair):
    begun = [*asked("Hi")[0], {"role": "assistant", "content": "Well"}]
    sampling = safedraft.SamplingParams(max_new_tokens=8)
    (reply,) = draw_replies(pair.target, [begun], max_new_tokens=8)
    expected = pair.generate(begun, sampling=sampling, rule="target_only").text
    assert reply.text == expected.rstrip("\N{REPLACEMENT CHARACTER}")


def test_what_is_known_is_not_drawn_again(pair, monkeypatch):
    first = draw_replies(pair.target, asked("a", "b"), max_new_tokens=4)
    monkeypatch.setattr(drawn, "_generate", lambda *_: pytest.fail("drawn twice"))
    assert draw_replies(pair.target, asked("b", "a"), max_new_tokens=4) == first[::-1]


def test_an_interrupted_run_keeps_its_finished_batches(pair, monkeypatch):
    real = drawn._generate
    calls = []

    def second_fails(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(drawn, "_generate", second_fails)
    with pytest.raises(KeyboardInterrupt):
        draw_replies(pair.target, asked("a", "bb", "ccc"), max_new_tokens=4, batch_size=1)
    reported = []
    draw_replies(
        pair.target,
        asked("a", "bb", "ccc"),
        max_new_tokens=4,
        batch_size=1,
        report=lambda *progress: reported.append(progress),
    )
    assert len(calls) == 4
    assert reported == [(0, 2), (1, 2), (2, 2)]


def test_a_line_cut_short_is_drawn_again(pair):
    first = draw_replies(pair.target, asked("a", "b"), max_new_tokens=4)
    (file,) = (cache_folder() / "drawn").glob("*.jsonl")
    os.truncate(file, file.stat().st_size - 5)
    assert draw_replies(pair.target, asked("a", "b"), max_new_tokens=4) == first


def test_models_do_not_share_what_they_said(pair):
    draw_replies(pair.target, asked("a"), max_new_tokens=4)
    draw_replies(pair.draft, asked("a"), max_new_tokens=4)
    assert len(list((cache_folder() / "drawn").glob("*.jsonl"))) == 2


@pytest.mark.parametrize("named", [5, None])
def test_a_reply_ends_at_the_tokenizers_end_token_too(pair, named):
    def says_the_end(module, inputs, logits):
        logits[..., pair.target.tokenizer.eos_token_id] = 1e9

    model = pair.target.model
    model.config.eos_token_id = model.generation_config.eos_token_id = named
    model.lm_head.register_forward_hook(says_the_end)
    assert draw_replies(pair.target, asked("Hi"), max_new_tokens=4) == [drawn.DrawnReply("", True)]
