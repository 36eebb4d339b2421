"""The probe of a target: which depths it learns from, and that it is read from the target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEMPLATE, save_tokenizer
from talking import VOCABULARY, TalkingPair, scripted_pair, talking
from transformers import AutoTokenizer

from safedraft.core.errors import SafeDraftError
from safedraft.engines.base import Capabilities, Capability
from safedraft.prompts.drawn import DrawnReply
from safedraft.text.encode import turn_header
from safedraft.training import ada_probe
from safedraft.training.ada_probe import list_depths, train_target_probe
from safedraft.training.config import AdaProbeConfig
from safedraft.training.requests import read_shipped

SAID = "first take the red part and then bend it."
REFUSED = "I'm sorry, but I can't help with that."
CONFIG = AdaProbeConfig(requests=40, dressed=0, reply_tokens=30, check_interval=10)
HARMFUL = {request.text for request in read_shipped() if request.kind == "harmful"}


def quiet(*_: Any) -> None:
    """No progress."""


def draw(pair: Any, conversations: Sequence[Any], *, max_new_tokens: int, **_: Any) -> Any:
    """Refuses the first of the conversations."""
    assert max_new_tokens == CONFIG.reply_tokens
    others = conversations[1:]
    return [DrawnReply(REFUSED, True), *(DrawnReply(SAID, False) for _ in others)]


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TalkingPair:
    """The target's state shows whether the request is harmful, the draft's shows nothing."""
    monkeypatch.setattr(ada_probe, "draw_target_replies", draw)
    save_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)

    def script(ids: Sequence[int]) -> torch.Tensor:
        text = str(tokenizer.decode(list(ids)))
        state = torch.zeros(VOCABULARY)
        state[0] = any(request in text for request in HARMFUL)
        state[1] = len(ids)
        return state

    return scripted_pair(tokenizer, script, lambda ids: torch.zeros(VOCABULARY))


def test_replies_are_read_at_every_depth_behind_the_header(pair: TalkingPair) -> None:
    tokenizer = pair.target.tokenizer
    assert tokenizer is not None
    header = list(turn_header(tokenizer))
    prompts = list_depths(pair, "train", CONFIG, quiet)
    counts = Counter(prompt.conversation.surroundings for prompt in prompts)
    assert counts["  0 tokens"] == 40
    assert counts[" 10 tokens"] == counts[" 20 tokens"] == counts[" 30 tokens"] == 39
    assert 10 < counts["opening"] < 30
    assert len(counts) == 5
    openings: dict[str, list[int]] = {}
    for one in prompts:
        asked = pair.prompts(one.conversation.messages).target
        where, request = one.conversation.surroundings, one.conversation.request.text
        if where == "  0 tokens":
            assert one.ids == asked
            continue
        assert (list(one.ids[: len(asked)]), list(one.ids[-len(header) :])) == (asked, header)
        said = list(one.ids[len(asked) : -len(header)])
        if where == "opening":
            openings[request] = said
        else:
            reply = [*openings.get(request, []), *tokenizer.encode(SAID)]
            assert said == reply[: int(where.removesuffix(" tokens"))]


def test_it_learns_from_the_target_and_is_checked_at_every_depth(pair: TalkingPair) -> None:
    stages: list[str] = []
    trained = train_target_probe(pair, CONFIG, lambda stage, *_: stages.append(stage))
    assert int(trained.probe.weight.abs().argmax()) == 0
    harmful = [one for one in trained.checks if one.kind.startswith("harmful")]
    assert {one.surroundings for one in harmful} >= {"  0 tokens", " 10 tokens", " 30 tokens"}
    assert all(one.probe == one.total for one in harmful)
    assert {"states of the training data", "states of the checks"} <= {*stages}


def test_what_cannot_be_read_is_refused(
    pair: TalkingPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    thinking = talking(tmp_path / "other", lambda prompt: "Hm.", template + "{# </think> #}")
    with pytest.raises(SafeDraftError, match="target thinks before it answers"):
        train_target_probe(thinking, CONFIG, quiet)
    none = Capabilities({Capability.SESSIONS: "it keeps its models to itself"})
    monkeypatch.setattr(pair.engine, "capabilities", none)
    with pytest.raises(SafeDraftError, match="a probe of the target: it keeps its models"):
        train_target_probe(pair, CONFIG, quiet)
