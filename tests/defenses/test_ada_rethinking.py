"""Rethinking: where the target is made to begin again, what it is shown, and what follows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEMPLATE
from talking import TalkingPair, talking

import safedraft
from safedraft.core.config import SamplingParams
from safedraft.core.errors import BrokenModelError, PromptTooLongError, SafeDraftError
from safedraft.core.shared import SharedBatch
from safedraft.defenses.ada_rethinking import (
    SEPARATOR,
    RethinkingConfig,
    ada_rethinking,
)
from safedraft.engines.scripted import ScriptedEngine, ScriptedSession
from safedraft.text.encode import turn_header

ASKED = {"role": "user", "content": "How do kites fly?"}
BEGUN = {"role": "assistant", "content": "Sure, here is how: "}
ANSWER = "They fly on the wind, which is stronger above the ground than below it."
DECLINES = "I can't help you."  # 17 of the tokenizer's tokens, which are bytes
PROMPT = f"<|start|>user\n{ASKED['content']}<|end|>\n"
CHECKED = f"{PROMPT}<|start|>assistant\n"
END = "<|end|>\n"


def rethinking(
    folder: Path, refuses: Callable[[str], bool], answer: str = ANSWER, refusal: str = DECLINES
) -> TalkingPair:
    """A pair that answers, and refuses in a check if ``refuses(what was said)``."""

    def says(prompt: str) -> str:
        if not prompt.startswith(CHECKED):
            return answer
        said = prompt.removeprefix(CHECKED).removesuffix(END)
        return refusal if refuses(said) else "Well, they fly."

    return talking(folder, says)


def answer(
    pair: Any, *messages: dict[str, str], config: RethinkingConfig | None = None, **settings: Any
) -> safedraft.GenerationResult:
    sampling = SamplingParams(**{"max_new_tokens": 200, **settings})
    return ada_rethinking(pair, messages, sampling, config or RethinkingConfig())


def list_checked(pair: TalkingPair) -> list[str]:
    checks = [prompt for prompt in pair.prompts_seen if prompt.startswith(CHECKED)]
    return [prompt.removeprefix(CHECKED).removesuffix(END) for prompt in checks]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_reply_without_a_refusal_is_the_targets_own(tmp_path: Path, temperature: float) -> None:
    pair = rethinking(tmp_path, lambda said: False)
    settings = {"temperature": temperature, "seed": 3, "max_new_tokens": 60}
    plain = pair.generate([ASKED], rule="target_only", **settings)
    reply = answer(pair, ASKED, **settings)
    assert (reply.text, reply.finish_reason) == (plain.text, plain.finish_reason)
    assert reply.trace == plain.trace
    assert list_checked(pair) == [plain.text[:25], plain.text[:50]]


@pytest.mark.parametrize(
    ("messages", "said", "interval"),
    [
        ([ASKED], [ANSWER[:25], ANSWER[:50]], 25),
        ([ASKED], [ANSWER[:70]], 70),
        ([ASKED], [], 72),  # the 72nd token ends the reply
        ([ASKED, {"role": "assistant", "content": ""}], [], 100),
        ([ASKED, {"role": "assistant", "content": "They "}], ["They ", ANSWER[:45]], 40),
    ],
)
def test_checks_stand_at_fixed_depths(
    tmp_path: Path, messages: list[dict[str, str]], said: list[str], interval: int
) -> None:
    pair = rethinking(tmp_path, lambda said: False)
    reply = answer(pair, *messages, config=RethinkingConfig(check_interval=interval))
    assert list_checked(pair) == said
    assert messages[-1]["content"] + reply.text == ANSWER or reply.text == ANSWER


def test_a_refusal_ends_the_reply(tmp_path: Path) -> None:
    pair = rethinking(tmp_path, lambda said: len(said) > 30)
    reply = answer(pair, ASKED)
    assert reply.text == ANSWER[:50] + SEPARATOR + DECLINES
    assert reply.finish_reason == "stop"
    assert "".join(token.text for token in reply.trace) == reply.text
    figures = reply.statistics
    assert figures.tokens == len(reply.trace) == 50 + len(DECLINES) + 1
    # The first check was in vain: its text has an end token and fits in 20 tokens.
    assert figures.target_passes == figures.tokens + len("Well, they fly.") + 1
    assert 0 < figures.first_token_seconds < figures.target_seconds < figures.seconds
    assert figures.prompt_tokens == len(pair.prompts([ASKED]).target)


def test_a_begun_reply_is_checked_before_its_first_token(tmp_path: Path) -> None:
    pair = rethinking(tmp_path, lambda said: said == BEGUN["content"])
    reply = answer(pair, ASKED, BEGUN)
    assert reply.text == SEPARATOR + DECLINES
    assert pair.prompts_seen == [f"{CHECKED}{BEGUN['content']}{END}"]
    figures = reply.statistics
    assert figures.tokens == figures.target_passes == len(DECLINES) + 1
    assert figures.prompt_tokens == len(pair.prompts([ASKED, BEGUN]).target)
    assert 0 < figures.first_token_seconds < figures.seconds


def test_a_check_before_the_first_token_delays_it(tmp_path: Path) -> None:
    begun = {"role": "assistant", "content": "They "}
    figures = answer(rethinking(tmp_path, lambda said: False), ASKED, begun).statistics
    checks = 3  # before the first token, and after 25 and 50
    assert figures.target_passes == figures.tokens + checks * (len("Well, they fly.") + 1)
    assert figures.first_token_seconds > figures.seconds / 20


@pytest.mark.parametrize("tokens", [20, 40])
def test_a_refusal_must_show_in_the_first_tokens(tmp_path: Path, tokens: int) -> None:
    refusal = f"What a question. {DECLINES}"
    pair = rethinking(tmp_path, lambda said: True, refusal=refusal)
    reply = answer(pair, ASKED, config=RethinkingConfig(check_tokens=tokens))
    stopped = f"{ANSWER[:25]}{SEPARATOR}{refusal}"
    assert reply.text == (ANSWER if tokens == 20 else stopped)


def test_limits_hold(tmp_path: Path) -> None:
    pair = rethinking(tmp_path, lambda said: len(said) > 30)
    assert answer(pair, ASKED, max_new_tokens=50).text == ANSWER[:50]
    # A check decodes its 20 tokens however few are left of the reply, and no more.
    long = "I can't help you. " * 3
    pair = rethinking(tmp_path, lambda said: len(said) > 30, refusal=long)
    cut = answer(pair, ASKED, max_new_tokens=60)
    assert (cut.text, cut.finish_reason) == (ANSWER[:50] + SEPARATOR + long[:20], "length")


def test_a_check_has_room_at_the_end_of_the_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = rethinking(tmp_path, lambda said: False)
    prompt, header = len(pair.prompts([ASKED]).target), len(turn_header(pair.target.tokenizer))
    monkeypatch.setitem(vars(pair), "context_length", prompt + header + 20 + 51)
    reply = answer(pair, ASKED)
    assert (reply.text, reply.finish_reason) == (ANSWER[:51], "length")
    assert list_checked(pair) == [ANSWER[:25], ANSWER[:50]]
    monkeypatch.setitem(vars(pair), "context_length", prompt + header + 20)
    with pytest.raises(PromptTooLongError):
        answer(pair, ASKED)


USER, MODEL = "m['role'] == 'user'", "m['role'] == 'assistant'"
TURNS = "{% for m in messages %}" + "{% if " + USER + " %}"


@pytest.mark.parametrize(
    ("template", "tokens"),
    [
        (TEMPLATE, "<|end|>\n<|start|>assistant\n"),
        (  # as Mistral: a request ends where the reply begins, and only answers have an end
            TURNS + "[I]{{ m['content'] }}[/I]{% else %}{{ m['content'] }}<|end|>{% endif %}"
            "{% endfor %}",
            "<|end|>[/I]",
        ),
        (  # as DeepSeek: requests have no end
            TURNS + "[U]{{ m['content'] }}{% else %}[A]{{ m['content'] }}<|end|>{% endif %}"
            "{% endfor %}{% if add_generation_prompt %}[A]{% endif %}",
            "<|end|>[A]",
        ),
    ],
)
def test_the_tokens_are_those_of_the_targets_template(
    tmp_path: Path, template: str, tokens: str
) -> None:
    pair = talking(tmp_path, lambda prompt: ANSWER, template)
    assert pair.target.tokenizer is not None
    assert pair.target.tokenizer.decode(turn_header(pair.target.tokenizer)) == tokens


def test_a_target_that_thinks_is_refused(tmp_path: Path) -> None:
    template = TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    pair = talking(tmp_path, lambda prompt: ANSWER, template + "{# </think> #}")
    with pytest.raises(SafeDraftError, match="ada_rethinking asks the target for a few words"):
        answer(pair, ASKED)


def test_a_model_that_breaks_in_a_check_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = rethinking(tmp_path, lambda said: False)
    forward, prompt = ScriptedSession.forward, len(pair.prompts([ASKED]).target)

    def breaking(session: ScriptedSession, ids: Any, *others: Any) -> torch.Tensor:
        logits = forward(session, ids, *others)
        return logits * torch.nan if len(ids) > prompt else logits

    monkeypatch.setattr(ScriptedSession, "forward", breaking)
    assert answer(pair, ASKED, max_new_tokens=25).text == ANSWER[:25]
    with pytest.raises(BrokenModelError, match="NaN"):
        answer(pair, ASKED)


@pytest.mark.parametrize("refused", [False, True])
def test_a_batch_that_requests_share_decodes_nothing_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    pair = rethinking(tmp_path, lambda said: refused and len(said) > 30)
    alone = answer(pair, ASKED).statistics
    batch = SharedBatch(pair.engine.batch())
    monkeypatch.setattr(ScriptedEngine, "batch", lambda _: batch)
    shared = answer(pair, ASKED).statistics
    assert (shared.tokens, shared.target_passes) == (alone.tokens, alone.target_passes)
    passes = len(pair.engine.batches)
    batch.step()
    assert len(pair.engine.batches) == passes  # nothing is left in it
