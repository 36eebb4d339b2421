"""A pair whose models say what a function of the prompt tells them to, in text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from conftest import TEMPLATE, save_tokenizer
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from safedraft.core.config import SSDConfig
from safedraft.core.risk import RiskProbe
from safedraft.engines.base import Capabilities, Capability, LoadedModel
from safedraft.engines.scripted import Script, ScriptedEngine
from safedraft.models.probe_file import write_target_probe
from safedraft.models.registry import cache_folder
from safedraft.pair import Pair
from safedraft.prompts.drawn import identify

TURN = "<|start|>assistant\n"
VOCABULARY, END = 258, 256


@dataclass(frozen=True)
class TalkingPair(Pair):
    """``prompts_seen`` are the prompts that the models were shown."""

    prompts_seen: list[str] = field(default_factory=list, compare=False)

    @property
    def rule(self) -> str:
        """SSD alone unless a test names another rule."""
        return "ssd"


def talking(folder: Any, answer: Callable[[str], str], template: str = TEMPLATE) -> TalkingPair:
    """A pair of two equal models; ``answer(prompt)`` is their whole assistant turn."""
    save_tokenizer(folder, template=template)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    seen: list[str] = []
    script = answering(tokenizer, answer, seen)
    return scripted_pair(tokenizer, script, script, seen=seen)


def scripted_pair(
    tokenizer: PreTrainedTokenizerBase,
    target: Script,
    draft: Script,
    config: SSDConfig | None = None,
    seen: list[str] | None = None,
) -> TalkingPair:
    engine = ScriptedEngine(target, draft)
    # What asks for weights is replaced in the tests.
    engine.capabilities = Capabilities({Capability.TOGETHER: "scripts are asked in turn"})
    return TalkingPair(
        engine,
        LoadedModel("target", None, tokenizer, identity="target"),
        LoadedModel("draft", None, tokenizer),
        VOCABULARY,
        4096,
        frozenset({END}),
        config or SSDConfig(),
        seen if seen is not None else [],
        probe=RiskProbe(torch.zeros(VOCABULARY), 0.0),  # neither risky nor harmless
    )


def answering(
    tokenizer: PreTrainedTokenizerBase, answer: Callable[[str], str], seen: list[str]
) -> Script:
    """A script that says ``answer(prompt)`` and ends, and notes the prompts it has seen."""

    def script(ids: Sequence[int]) -> Tensor:
        prompt, turn, said = str(tokenizer.decode(list(ids))).rpartition(TURN)
        logits = torch.zeros(VOCABULARY)
        if not turn:  # a user's text, only scored: every byte is as likely as any other
            return logits
        if prompt not in seen:
            seen.append(prompt)
        rest = answer(prompt)[len(said) :]
        logits[tokenizer.encode(rest)[0] if rest else END] = 9.0
        return logits

    return script


def write_harmless_probe(pair: Pair) -> str:
    """Write a probe of the pair's target that calls nothing risky; returns its folder."""
    weights = pair.target.weights
    width = weights.config.hidden_size if weights else VOCABULARY
    folder = cache_folder() / "probe"
    write_target_probe(folder, RiskProbe(torch.zeros(width), -9.0), identify(pair.target))
    return str(folder)
