"""What a trained draft does on its own, on prompts that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safedraft.prompts.drawn import draw_replies
from safedraft.prompts.phrases import is_refusal
from safedraft.text.messages import Message
from safedraft.training.examples import Example, pack
from safedraft.training.packed import label_logits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from safedraft.engines.base import LoadedModel
    from safedraft.models.progress import Report
    from safedraft.training.material import Harmful, Material

PREFILLS = (0, 10, 20, 40)
"""Tokens of a harmful beginning that are put into the draft's mouth."""

_REPLY_TOKENS = 32


@dataclass(frozen=True)
class Share:
    """So many of so many."""

    count: int
    total: int

    def __str__(self) -> str:
        percent = f" ({self.count / self.total:.0%})" if self.total else ""
        return f"{self.count} of {self.total}{percent}"


@dataclass(frozen=True)
class Checks:
    """Figures of the draft alone, before it decodes together with its target."""

    refusals: dict[int, Share]
    """Harmful requests refused, by how many tokens were prefilled."""
    look_alikes: Share
    """Safe look-alikes refused."""
    target_look_alikes: Share
    """Those that the target refuses."""
    agreement: Share
    """Tokens of the target's ordinary answers that the draft holds likeliest."""


def check(
    draft: LoadedModel,
    material: Material,
    answers: Sequence[Example],
    tokens_per_pass: int,
    report: Report,
) -> Checks:
    """Draw replies of the draft and judge them by their phrases.

    Args:
        draft: with its adapter.
        material: what the target says to the prompts of the check.
        answers: examples of the material's answers.
        tokens_per_pass: most tokens of a forward pass.
        report: called with what is drawn, how much of it is there, and how much is wanted.
    """

    def refused(conversations: list[list[Message]]) -> Share:
        replies = draw_replies(
            draft,
            conversations,
            max_new_tokens=_REPLY_TOKENS,
            report=lambda done, total: report("replies of the draft", done, total),
        )
        return Share(sum(is_refusal(reply.text) for reply in replies), len(replies))

    assert draft.tokenizer is not None
    declined = [request for request in material.declined if request.kind == "look_alike"]
    answered = [item.request for item in material.answered if item.request.kind == "look_alike"]
    alike = answered + declined
    return Checks(
        refusals={
            count: refused(prefilled(material.harmful, draft.tokenizer, count))
            for count in PREFILLS
        },
        look_alikes=refused([[_user(request.text)] for request in alike]),
        target_look_alikes=Share(len(declined), len(alike)),
        agreement=agreement(draft, answers, tokens_per_pass),
    )


def prefilled(
    harmful: Sequence[Harmful], tokenizer: PreTrainedTokenizerBase, count: int
) -> list[list[Message]]:
    """Requests with the first ``count`` tokens of their beginnings; shorter ones are left out."""
    conversations: list[list[Message]] = []
    for item in harmful:
        tokens = tokenizer.encode(item.beginning, add_special_tokens=False)
        if len(tokens) >= count:
            begun = str(tokenizer.decode(tokens[:count])).rstrip("\N{REPLACEMENT CHARACTER}")
            assistant = [{"role": "assistant", "content": begun}] if begun else []
            conversations.append([_user(item.request.text), *assistant])
    return conversations


def agreement(draft: LoadedModel, answers: Sequence[Example], tokens_per_pass: int) -> Share:
    """How many tokens of the answers are the draft's likeliest, each after the ones before it."""
    import torch

    agreed = total = 0
    for batch in pack(answers, tokens_per_pass):
        labels = torch.tensor([token for example in batch for token in example.labels])
        with torch.inference_mode():
            likeliest = label_logits(draft.model, batch).argmax(-1).cpu()
        agreed += int((likeliest == labels).sum())
        total += len(labels)
    return Share(agreed, total)


def _user(text: str) -> Message:
    return {"role": "user", "content": text}
