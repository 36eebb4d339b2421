"""Replies drawn from one model in batches and kept: what training and attacks are made from.

Greedy, many conversations at once, since a small batch costs hardly more than one sequence. Every
finished batch is written down, so an interrupted run goes on where it stopped and nothing is drawn
twice. The replies may be harmful (the beginnings that attacks put into a model's mouth): they stay
in the cache folder, and nothing of them is shown or shipped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from filelock import FileLock

from safedraft.core.errors import SafeDraftError
from safedraft.models.doctor import Anatomy
from safedraft.models.registry import cache_folder
from safedraft.text.chat import Detokenizer, Message, encode, with_system

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from safedraft.pair import Member

_SAMPLE = 16  # values of every weight that tell one model from another


class Drawn(NamedTuple):
    """What a model said."""

    text: str
    ended: bool
    """Whether the model ended it; otherwise it was cut off at the limit."""


def draw_replies(
    member: Member,
    conversations: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int | Sequence[int],
    batch_size: int = 16,
    report: Callable[[int, int], None] | None = None,
) -> list[Drawn]:
    """The greedy reply of one model to each conversation, from the cache where it is known.

    Args:
        member: the model; it answers under its own system prompt.
        conversations: one that ends in an assistant turn is continued; the reply is what follows.
        max_new_tokens: most tokens in a reply, of all or of each.
        batch_size: conversations that are decoded at once.
        report: called with how many replies of those that were missing are there, and their number.

    Raises:
        SafeDraftError: the model has no tokenizer, chat template or end token.
        BrokenModel: it gave logits that are not numbers.
    """
    if member.tokenizer is None:
        raise SafeDraftError(f"{member.name} has no tokenizer: nothing can be drawn from it")
    cache = _Cache(member)
    asked = [encode(member.tokenizer, with_system(c, member.system)) for c in conversations]
    limits = [max_new_tokens] * len(asked) if isinstance(max_new_tokens, int) else max_new_tokens
    keys = [_key(ids, limit) for ids, limit in zip(asked, limits, strict=True)]
    known = cache.read()
    # Prompts of like length share a batch: less padding, and the same batches after a restart.
    missing = {
        key: (ids, limit)
        for key, ids, limit in zip(keys, asked, limits, strict=True)
        if key not in known
    }
    todo = sorted(missing, key=lambda key: (len(missing[key][0]), key))
    for start in range(0, len(todo), batch_size):
        if report:
            report(start, len(todo))
        batch = todo[start : start + batch_size]
        prompts, most = zip(*(missing[key] for key in batch), strict=True)
        drawn = _generate(member, prompts, most)
        replies = dict(zip(batch, drawn, strict=True))
        cache.append(replies)
        known |= replies
    if report and todo:
        report(len(todo), len(todo))
    return [known[key] for key in keys]


def _key(ids: Sequence[int], max_new_tokens: int) -> str:
    return hashlib.sha256(json.dumps([max_new_tokens, *ids]).encode()).hexdigest()[:32]


def _generate(
    member: Member, prompts: Sequence[Sequence[int]], limits: Sequence[int]
) -> list[Drawn]:
    import torch
    from transformers import LogitsProcessorList

    from safedraft.core.sampling import require_finite

    def checked(_: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        require_finite(logits, member.name)  # an argmax of NaN would pass for a reply
        return logits

    model, tokenizer = member.model, member.tokenizer
    assert tokenizer is not None
    ends = _end_tokens(member)
    width = max(map(len, prompts))
    rows = [[ends[0]] * (width - len(ids)) + list(ids) for ids in prompts]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
    with torch.inference_mode():
        output = model.generate(
            torch.tensor(rows, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            do_sample=False,
            repetition_penalty=1.0,
            max_new_tokens=max(limits),
            eos_token_id=ends,
            pad_token_id=ends[0],
            logits_processor=LogitsProcessorList([checked]),
        )
    said = [row[width : width + most] for row, most in zip(output.tolist(), limits, strict=True)]
    return [
        _drawn(Detokenizer(tokenizer, prompt), ids, ends)
        for prompt, ids in zip(prompts, said, strict=True)
    ]


def _drawn(detokenizer: Detokenizer, ids: list[int], ends: list[int]) -> Drawn:
    """A reply as it goes on behind its prompt, without a character that is cut in two."""
    cut = next((at for at, token in enumerate(ids) if token in ends), len(ids))
    return Drawn("".join(map(detokenizer.push, ids[:cut])), cut < len(ids))


def _end_tokens(member: Member) -> list[int]:
    """Those at which the model's replies end when it decodes in a pair."""
    model = member.model
    anatomy = Anatomy(member.name, model.config, member.tokenizer, model.generation_config)
    if not anatomy.end_tokens:
        raise SafeDraftError(f"{member.name} has no end token: its replies would never end")
    return sorted(anatomy.end_tokens)


class _Cache:
    """What was drawn from one model: a JSON line a reply; a line cut short by a kill is skipped."""

    def __init__(self, member: Member) -> None:
        name = "".join(c if c.isalnum() or c in "-." else "-" for c in Path(member.name).name)
        self._file = cache_folder() / "drawn" / f"{name}-{_fingerprint(member.model)}.jsonl"

    def read(self) -> dict[str, Drawn]:
        if not self._file.exists():
            return {}
        known = {}
        for line in self._file.read_text(encoding="utf-8").splitlines():
            try:
                key, text, ended = json.loads(line)
            except ValueError:
                continue
            known[key] = Drawn(text, ended)
        return known

    def append(self, replies: dict[str, Drawn]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps([key, *drawn]) for key, drawn in replies.items()]
        with FileLock(f"{self._file}.lock"), self._file.open("a", encoding="utf-8") as file:
            file.write("\n" + "\n".join(lines) + "\n")


def _fingerprint(model: PreTrainedModel) -> str:
    """Of the weights in memory, adapter and all, and their type: a sample of each tells."""
    digest = hashlib.sha256(str(model.dtype).encode())
    for weight in model.parameters():
        digest.update(str(weight.detach().flatten()[:_SAMPLE].tolist()).encode())
    return digest.hexdigest()[:12]
