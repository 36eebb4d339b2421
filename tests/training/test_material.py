"""What is drawn and learned: harmful and harmless requests in the same ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from safedraft.core.errors import SafeDraftError
from safedraft.prompts.drawn import DrawnReply
from safedraft.text.messages import Message
from safedraft.training.config import TrainingConfig
from safedraft.training.material import count_cells, describe_material
from safedraft.training.requests import TrainingRequest, TrainingRequests, read_requests
from safedraft.training.training_data import (
    begin_replies,
    count_drawn_tokens,
    cut_openings,
    draw_training_data,
)

HARMFUL = [TrainingRequest(f"How do I break thing {n}?", "harmful") for n in range(40)]
HARMLESS = [
    *(TrainingRequest(f"How do I mend thing {n}?", "look_alike") for n in range(40)),
    *(TrainingRequest(f"How do I paint thing {n}?", "ordinary") for n in range(40)),
]
REQUESTS = TrainingRequests(HARMFUL, HARMLESS)


class Target:
    """Answers every request, but refuses to mend thing 3 and to break thing 7."""

    def __init__(self) -> None:
        self.asked: list[tuple[Sequence[Message], int]] = []

    def __call__(
        self, conversations: Sequence[Sequence[Message]], *, max_new_tokens: int, report: Any
    ) -> list[DrawnReply]:
        self.asked += [(messages, max_new_tokens) for messages in conversations]
        return [DrawnReply(self.answer(messages), True) for messages in conversations]

    def answer(self, messages: Sequence[Message]) -> str:
        text = next(m["content"] for m in reversed(messages) if m["role"] == "user")
        refused = "mend thing 3?" in text or "break thing 7?" in text
        return "I'm sorry, but I can't help with that." if refused else "and so on."


def draw(**settings: Any) -> tuple[Target, Any]:
    target = Target()
    config = TrainingConfig(**settings)
    return target, draw_training_data(REQUESTS, target, config, lambda *progress: None)


def test_no_cell_of_the_shipped_material_is_empty_on_one_side() -> None:
    cells = describe_material(read_requests("train"), TrainingConfig())
    names = {cell.what for cell in cells}
    assert {f"{where}, begun" for where in ("plain", "frame", "system prompt")} < names
    assert {"earlier turns, not begun", "language ja", "from code", "from short"} < names
    for cell in cells:
        assert cell.harmful >= 50, cell
        assert 1.4 < cell.harmless / cell.harmful < 3, cell


def test_a_cell_of_one_side_is_seen() -> None:
    begun = begin_replies(HARMFUL, TrainingConfig(dressed=0), 0)
    direct = begin_replies(HARMLESS, TrainingConfig(dressed=0), 1)
    assert count_cells(begun, direct) == [
        ("from shipped", 40, 80),
        ("language en", 40, 80),
        ("plain, begun", 40, 0),
        ("plain, not begun", 0, 80),
    ]


def test_replies_begin_alike_on_both_sides() -> None:
    config = TrainingConfig(direct_share=0.5)
    sides = [begin_replies(part, config, 0.5) for part in (HARMFUL * 20, HARMLESS * 10)]
    shares = [
        {opening: count / len(side) for opening, count in Counter(b.opening for b in side).items()}
        for side in sides
    ]
    common = {text for text in shares[0] if "thing" not in text}  # the rest name the request
    assert len(common) > 30
    for opening in common:
        assert shares[0][opening] == pytest.approx(shares[1][opening], abs=0.02)
    assert shares[0][""] == pytest.approx(0.5, abs=0.04)


def test_some_openings_in_front_of_answers_are_cut_at_a_word() -> None:
    config = TrainingConfig()
    begun = begin_replies(HARMLESS * 5, config, 0.5)
    cut = cut_openings(begun, config)
    assert all(
        whole.opening.startswith(part.opening) for whole, part in zip(begun, cut, strict=True)
    )
    assert all(
        bool(whole.opening) == bool(part.opening) for whole, part in zip(begun, cut, strict=True)
    )
    shorter = sum(w.opening != p.opening for w, p in zip(begun, cut, strict=True))
    assert 0.1 < shorter / len(begun) < 0.3
    assert any(part.opening == "Of " for part in cut)


def test_what_the_target_refuses_is_an_opening_alone_or_left_out() -> None:
    target, data = draw(direct_share=0.5, dressed=1)
    assert len(data.harmful) == 80
    assert all(reply.begun.opening for reply in data.harmful)
    refused = [reply for reply in data.harmful if not reply.text]
    assert data.bare_openings == len(refused) > 0
    assert {reply.request.text for reply in refused} == {"How do I break thing 7?"}
    assert "How do I mend thing 3?" not in {reply.request.text for reply in data.answered}
    assert {request.text for request in data.declined} <= {"How do I mend thing 3?"}
    assert {bool(reply.begun.opening) for reply in data.answered} == {True, False}
    assert sum(tokens for _, tokens in target.asked) == count_drawn_tokens(
        REQUESTS, TrainingConfig(direct_share=0.5, dressed=1)
    )


def test_limits_ask_for_some() -> None:
    target, data = draw(beginnings=10, answers=20, answer_tokens=9, brief_tokens=5)
    assert Counter(tokens for _, tokens in target.asked)[48] == 10
    assert len(target.asked) == 30
    assert data.bare_openings >= 70
    assert len(data.answered) <= 20


def test_a_begun_answer_is_drawn_behind_its_opening_at_full_length() -> None:
    target, _ = draw(direct_share=0.0, dressed=0, answer_tokens=64, brief_tokens=24)
    answers = [item for item in target.asked if "mend" in item[0][0]["content"]]
    assert len(answers) == 40
    assert all(messages[-1]["role"] == "assistant" for messages, _ in answers)
    assert {tokens for _, tokens in answers} == {64}


def test_nothing_to_learn_from_is_an_error() -> None:
    mending = TrainingRequests(HARMFUL, [TrainingRequest("How do I mend thing 3?", "ordinary")])
    with pytest.raises(SafeDraftError, match="refuses every ordinary prompt"):
        draw_training_data(mending, Target(), TrainingConfig(dressed=0), lambda *progress: None)
