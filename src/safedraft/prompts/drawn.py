"""Greedy replies of one model, generated in batches and cached, for training and attacks.

A small batch takes hardly longer than one sequence. Every finished batch is written to the cache,
so an interrupted run resumes where it stopped and no reply is generated twice. The replies can be
harmful, as the prefills of attacks are: they stay in the cache folder, and are never shown or
shipped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from filelock import FileLock

from safedraft.core.config import SamplingParams
from safedraft.core.errors import SafeDraftError
from safedraft.engines.base import Capability
from safedraft.models.description import ModelDescription
from safedraft.models.fingerprint import digest
from safedraft.models.registry import cache_folder
from safedraft.text.detokenizer import Detokenizer
from safedraft.text.encode import encode
from safedraft.text.messages import Message, with_system

if TYPE_CHECKING:
    from safedraft.engines.base import Engine, LoadedModel
    from safedraft.text.results import GenerationResult

_SAMPLE = 16  # values of every weight that identify a model


class DrawnReply(NamedTuple):
    """A generated reply."""

    text: str
    ended: bool
    """Whether the model ended it with an end token; otherwise it reached the limit."""


Generate = Callable[[Sequence[Sequence[int]], Sequence[int]], "list[DrawnReply]"]
"""Generates the greedy replies to prompts of token ids, each up to its own number of tokens."""


def draw_replies(
    member: LoadedModel,
    conversations: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int | Sequence[int],
    batch_size: int = 16,
    report: Callable[[int, int], None] | None = None,
    generate: Generate | None = None,
) -> list[DrawnReply]:
    """Generate one model's greedy reply to each conversation, or read it from the cache.

    Args:
        member: the model; it answers with its own system prompt.
        conversations: if one ends in an assistant turn, the reply continues that turn.
        max_new_tokens: maximum tokens of a reply, for all conversations or for each.
        batch_size: number of conversations decoded at once.
        report: called with the number of replies done and the number of those not in the cache.
        generate: generates what the cache lacks; by default Transformers does, with the model's
            weights.

    Raises:
        SafeDraftError: the model has no tokenizer, chat template or end token.
        BrokenModelError: its logits have a NaN.
    """
    if member.tokenizer is None:
        raise SafeDraftError(f"{member.name} has no tokenizer: it cannot generate replies")
    cache = _Cache(member)
    prompts = [encode(member.tokenizer, with_system(c, member.system)) for c in conversations]
    limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    keys = [_key(ids, limit) for ids, limit in zip(prompts, limits, strict=True)]
    replies = cache.read()
    # Sorted by length: less padding, and the same batches after a restart.
    missing = {
        key: (ids, limit)
        for key, ids, limit in zip(keys, prompts, limits, strict=True)
        if key not in replies
    }
    pending = sorted(missing, key=lambda key: (len(missing[key][0]), key))
    for start in range(0, len(pending), batch_size):
        if report:
            report(start, len(pending))
        batch = pending[start : start + batch_size]
        batch_prompts, batch_limits = zip(*(missing[key] for key in batch), strict=True)
        generated = (generate or partial(_generate, member))(batch_prompts, batch_limits)
        finished = dict(zip(batch, generated, strict=True))
        cache.append(finished)
        replies |= finished
    if report and pending:
        report(len(pending), len(pending))
    return [replies[key] for key in keys]


class TargetPair(Protocol):
    """The part of a pair that is needed to draw its target's replies."""

    @property
    def target(self) -> LoadedModel:
        """The target."""

    @property
    def engine(self) -> Engine:
        """The engine that runs the target."""

    def generate_many_ids(
        self, prompts: Sequence[Sequence[int]], *, sampling: Sequence[SamplingParams], rule: str
    ) -> Sequence[GenerationResult]:
        """Decode prompts together."""


def draw_target_replies(
    pair: TargetPair,
    conversations: Sequence[Sequence[Message]],
    *,
    max_new_tokens: int,
    report: Callable[[int, int], None] | None = None,
) -> list[DrawnReply]:
    """Like ``draw_replies`` for the target of a pair, on the engine of the pair."""
    own = Capability.MODELS in pair.engine.capabilities
    return draw_replies(
        pair.target,
        conversations,
        max_new_tokens=max_new_tokens,
        report=report,
        generate=None if own else partial(_generate_with_engine, pair),
    )


def _generate_with_engine(
    pair: TargetPair, prompts: Sequence[Sequence[int]], limits: Sequence[int]
) -> list[DrawnReply]:
    sampling = [SamplingParams(max_new_tokens=limit) for limit in limits]
    results = pair.generate_many_ids(prompts, sampling=sampling, rule="target_only")
    return [DrawnReply(result.text, result.finish_reason == "stop") for result in results]


def _key(ids: Sequence[int], max_new_tokens: int) -> str:
    return digest(json.dumps([max_new_tokens, *ids]), digits=32)


def _generate(
    member: LoadedModel, prompts: Sequence[Sequence[int]], limits: Sequence[int]
) -> list[DrawnReply]:
    import torch
    from transformers import LogitsProcessorList

    from safedraft.core.rows import require_finite

    def check(_: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        require_finite(logits, member.name)  # the argmax of NaN would look like a reply
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
            logits_processor=LogitsProcessorList([check]),
        )
    new_tokens = [
        row[width : width + limit] for row, limit in zip(output.tolist(), limits, strict=True)
    ]
    return [
        _decode_reply(Detokenizer(tokenizer, prompt), ids, ends)
        for prompt, ids in zip(prompts, new_tokens, strict=True)
    ]


def _decode_reply(detokenizer: Detokenizer, ids: list[int], ends: list[int]) -> DrawnReply:
    """Decode a reply as the continuation of its prompt, without half a character at its end."""
    length = next((index for index, token in enumerate(ids) if token in ends), len(ids))
    return DrawnReply("".join(map(detokenizer.push, ids[:length])), length < len(ids))


def _end_tokens(member: LoadedModel) -> list[int]:
    """The tokens that end the model's replies, the same as in a pair."""
    model = member.model
    description = ModelDescription(
        member.name, model.config, member.tokenizer, model.generation_config
    )
    if not description.end_tokens:
        raise SafeDraftError(f"{member.name} has no end token: its replies would never end")
    return sorted(description.end_tokens)


class _Cache:
    """Replies of one model, one JSON line each; an incomplete line of a killed run is skipped."""

    def __init__(self, member: LoadedModel) -> None:
        name = "".join(c if c.isalnum() or c in "-." else "-" for c in Path(member.name).name)
        self._file = cache_folder() / "drawn" / f"{name}-{identify(member)}.jsonl"

    def read(self) -> dict[str, DrawnReply]:
        if not self._file.exists():
            return {}
        replies = {}
        for line in self._file.read_text(encoding="utf-8").splitlines():
            try:
                key, text, ended = json.loads(line)
            except ValueError:
                continue
            replies[key] = DrawnReply(text, ended)
        return replies

    def append(self, replies: dict[str, DrawnReply]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps([key, *drawn]) for key, drawn in replies.items()]
        with FileLock(f"{self._file}.lock"), self._file.open("a", encoding="utf-8") as file:
            file.write("\n" + "\n".join(lines) + "\n")


def identify(member: LoadedModel) -> str:
    """Return a digest of a model's weights as they are run, its adapter and types included.

    Raises:
        SafeDraftError: its engine has no digest and gives no access to the weights.
    """
    if member.identity:
        return member.identity
    model = member.model
    samples = (weight.detach().flatten()[:_SAMPLE].tolist() for weight in model.parameters())
    return digest(str(model.dtype), *map(str, samples), digits=12)
