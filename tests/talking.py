"""A pair whose models say what a function of the prompt tells them to, in text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from conftest import save_tokenizer
from torch import Tensor
from transformers import AutoTokenizer

from safedraft.core.config import SSDConfig
from safedraft.engines.scripted import ScriptedSession
from safedraft.pair import Member, Pair

TURN = "<|start|>assistant\n"
VOCABULARY, END = 258, 256


class Mute:
    """What a pair asks of a model before it decodes."""

    device = torch.device("cpu")

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return torch.nn.Embedding(VOCABULARY, 1)


@dataclass(frozen=True)
class TalkingPair(Pair):
    """``answer(prompt)`` is the whole assistant turn; ``prompts_seen`` are the target's prompts."""

    answer: Callable[[str], str]
    prompts_seen: list[str] = field(default_factory=list, compare=False)

    def _sessions(self) -> Iterator[Any]:
        yield ScriptedSession(self._script, "target")
        yield ScriptedSession(self._script, "draft")

    def _script(self, ids: Sequence[int]) -> Tensor:
        text = self.target.tokenizer.decode(list(ids))
        prompt, turn, said = text.rpartition(TURN)
        logits = torch.zeros(VOCABULARY)
        if not turn:  # a user's text, only scored: every byte is as likely as any other
            return logits
        if prompt not in self.prompts_seen:
            self.prompts_seen.append(prompt)
        rest = self.answer(prompt)[len(said) :]
        logits[self.target.tokenizer.encode(rest)[0] if rest else END] = 9.0
        return logits


def talking(folder: Any, answer: Callable[[str], str]) -> TalkingPair:
    save_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    members = (Member(name, Mute(), tokenizer) for name in ("target", "draft"))  # type: ignore[arg-type]
    return TalkingPair(*members, VOCABULARY, 4096, frozenset({END}), SSDConfig(), answer)
