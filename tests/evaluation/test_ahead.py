"""What a defense asks the target is drawn before it is needed, and comes to the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stage import use_pair

from safedraft.core.config import SamplingParams
from safedraft.core.errors import PromptTooLongError, SafeDraftError
from safedraft.defenses import find_defense
from safedraft.evaluation import ahead
from safedraft.evaluation.ahead import draw_ahead, look_up_reply
from safedraft.text.messages import conversation


@pytest.mark.parametrize(
    ("defense", "rounds"),
    [
        ("target_only", 1),
        pytest.param("self_reminder", 1, marks=pytest.mark.slow),
        pytest.param("in_context", 1, marks=pytest.mark.slow),
        pytest.param("self_examination", 2, marks=pytest.mark.slow),
        pytest.param("paraphrase", 2, marks=pytest.mark.slow),
    ],
)
def test_all_that_a_defense_asks_is_drawn_in_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defense: str, rounds: int
) -> None:
    def says(prompt: str) -> str:
        if "one word, yes or no" in prompt:
            return "yes" if "bee" in prompt else "no"
        return "Say it again, bee." if "bee" in prompt else "Say it again."

    pair = use_pair(tmp_path, monkeypatch, says)
    batches: list[int] = []
    draw = ahead.draw_replies

    def counted(member: Any, conversations: Any, **settings: Any) -> Any:
        batches.append(len(conversations))
        return draw(member, conversations, **settings)

    monkeypatch.setattr(ahead, "draw_replies", counted)
    asked = [conversation(text) for text in ("Where is the bee?", "Where is the cow?", "Why?")]
    sampling = SamplingParams(max_new_tokens=20)
    draw_ahead(find_defense(defense), pair, asked, sampling)
    assert batches == [3] * rounds
    for messages in asked:
        drawn = find_defense(defense)(pair, messages, sampling, pair.config, look_up_reply)
        alone = find_defense(defense)(pair, messages, sampling, pair.config)
        assert (drawn.text, drawn.finish_reason) == (alone.text, alone.finish_reason)
        assert drawn.statistics.tokens == alone.statistics.tokens
        assert drawn.statistics.target_passes == alone.statistics.target_passes


def test_what_cannot_be_answered_keeps_nothing_else_from_being_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = use_pair(tmp_path, monkeypatch, lambda prompt: "Yes.")
    told: list[str] = []

    def picky(pair: Any, messages: Any, sampling: Any, config: Any, ask: Any) -> Any:
        if messages[-1]["content"] == "Why?":
            raise SafeDraftError("not that")
        told.append(ask(pair, messages, sampling, config).text)

    asked = [conversation("Why?"), conversation("Who?")]
    draw_ahead(picky, pair, asked, SamplingParams(max_new_tokens=9))
    assert told == ["Yes."]


def test_a_prompt_without_room_is_an_error_when_its_turn_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = use_pair(tmp_path, monkeypatch, lambda prompt: "Yes.")
    long, sampling = conversation("x" * 5000), SamplingParams(max_new_tokens=9)
    draw_ahead(find_defense("target_only"), pair, [long], sampling)
    with pytest.raises(PromptTooLongError):
        look_up_reply(pair, long, sampling, pair.config)
