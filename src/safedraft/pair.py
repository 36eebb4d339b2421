"""Two loaded models that decode together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from safedraft.core.config import SamplingParams, SSDConfig
from safedraft.core.errors import SafeDraftError
from safedraft.text.chat import (
    Detokenizer,
    Message,
    Reply,
    Statistics,
    Stream,
    conversation,
    encode,
    encode_text,
    turn_begun,
    with_system,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from safedraft.core.decode import Decoder
    from safedraft.core.session import Session
    from safedraft.models.registry import PairSpec


class Prompts(NamedTuple):
    """Token ids that each model continues."""

    target: list[int]
    draft: list[int]


@dataclass(frozen=True)
class Member:
    """One model of a pair."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    """None for a model that decodes ids only."""
    system: str | None = None
    """A system prompt of its own, which the other model does not see."""


@dataclass(frozen=True)
class Pair:
    """A target and a draft that ``doctor`` found to fit; made by ``load_pair``."""

    target: Member
    draft: Member
    vocabulary: int
    """V: ids below it are shared."""
    context_length: int
    """Of the model with the shorter context."""
    end_tokens: frozenset[int]
    config: SSDConfig
    spec: PairSpec | None = field(default=None, kw_only=True)
    """What it was loaded from, if it was."""

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        prefill: str = "",
        sampling: SamplingParams | None = None,
        config: SSDConfig | None = None,
        decoder: Decoder | None = None,
        top_logprobs: int | None = None,
    ) -> Reply:
        """Answer a prompt (what the user says, or messages) and return the whole reply.

        Args:
            prompt: text of one user turn, or ``{"role", "content"}`` messages; messages that end in
                an assistant turn are continued.
            prefill: how the assistant's turn begins.
            sampling: greedy and at most 512 tokens when not given.
            config: in place of the pair's own.
            decoder: in place of SSD's own loop, such as ``safedraft.defenses.target_only``.
            top_logprobs: None: no log probabilities; otherwise that of each token and of so many
                of the most likely at its place, of the composite distribution that it is taken
                from.

        Raises:
            PromptTooLong: the prompt leaves no room in the context.
            SafeDraftError: nothing to answer, or log probabilities of a decoder that has none.
        """
        return self.stream(
            prompt,
            prefill=prefill,
            sampling=sampling,
            config=config,
            decoder=decoder,
            top_logprobs=top_logprobs,
        ).drain()

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        prefill: str = "",
        sampling: SamplingParams | None = None,
        config: SSDConfig | None = None,
        decoder: Decoder | None = None,
        top_logprobs: int | None = None,
    ) -> Stream:
        """As ``generate``, token by token: iterate over it; ``.reply`` is what was said so far."""
        messages = conversation(prompt, prefill)
        return self.stream_ids(
            self.prompts(messages),
            sampling=sampling,
            config=(config or self.config).for_turn(begun=turn_begun(messages)),
            decoder=decoder,
            top_logprobs=top_logprobs,
        )

    def prompts(self, prompt: str | Sequence[Message]) -> Prompts:
        """Each model's own prompt: its template, under its system prompt.

        Raises:
            SafeDraftError: a model has no tokenizer or no chat template, or the text is empty.
        """
        messages = conversation(prompt) if isinstance(prompt, str) else prompt
        return Prompts(*(_prompt(member, messages) for member in (self.target, self.draft)))

    def text_prompts(self, text: str) -> Prompts:
        """Each model's own ids of a text that is continued as it stands.

        There is no chat template, and no system prompt of a model's own. A control token spelt out
        in the text stays text; where a tokenizer begins texts with a token, that comes first.

        Raises:
            SafeDraftError: a model has no tokenizer, or the text is empty.
        """
        members = (self.target, self.draft)
        return Prompts(*(encode_text(_tokenizer(member), text) for member in members))

    def stream_ids(
        self,
        prompts: Prompts,
        *,
        sampling: SamplingParams | None = None,
        config: SSDConfig | None = None,
        decoder: Decoder | None = None,
        top_logprobs: int | None = None,
    ) -> Stream:
        """As ``stream``, from token ids; with no tokenizer, tokens have no text.

        Raises:
            PromptTooLong: no room left in the shorter context.
            SafeDraftError: an empty prompt, an id that its model does not have, stop strings
                without a tokenizer, less than no log probabilities, a ``prefill_scheme``.
        """
        from safedraft.core.decode import decode
        from safedraft.core.sampling import log_probabilities
        from safedraft.core.session import Clocked

        config = (config or self.config).for_turn(begun=None)
        sampling = self.fitted(prompts, sampling or SamplingParams())
        target, draft = (Clocked(session) for session in self._sessions())
        tokenizer = self.target.tokenizer
        if sampling.stop and tokenizer is None:
            raise SafeDraftError("stop strings need a tokenizer, and the target has none")
        if top_logprobs is not None and top_logprobs < 0:
            raise SafeDraftError(f"top_logprobs must be 0 or more, not {top_logprobs}")
        return Stream(
            (decoder or decode)(
                target, draft, prompts.target, prompts.draft, config, sampling, self.end_tokens
            ),
            Detokenizer(tokenizer, prompts.target) if tokenizer else None,
            stop=sampling.stop,
            end_tokens=self.end_tokens,
            bin_size=config.bin_size,
            target=target,
            draft=draft,
            statistics=Statistics(
                prompt_tokens=max(map(len, prompts)),
                seed=None if sampling.greedy else sampling.seed,
            ),
            log_probabilities=None
            if top_logprobs is None
            else partial(log_probabilities, sampling=sampling, count=top_logprobs),
        )

    def session(self, which: Literal["target", "draft"]) -> Session:
        """A fresh session in one of the models, for what asks it about a text of its own."""
        target, draft = self._sessions()
        return target if which == "target" else draft

    def fitted(self, prompts: Prompts, sampling: SamplingParams) -> SamplingParams:
        """``sampling`` with a seed and no more tokens than the shorter context has room for.

        Raises:
            PromptTooLong: there is no room for any.
            SafeDraftError: an empty prompt, or an id that its model does not have.
        """
        for member, ids in zip((self.target, self.draft), prompts, strict=True):
            if not ids:
                raise SafeDraftError(f"{member.name}: the prompt is empty")
            rows = member.model.get_input_embeddings().num_embeddings
            if not all(0 <= token < rows for token in ids):
                raise SafeDraftError(
                    f"{member.name}: the prompt has ids outside its vocabulary, 0 to {rows - 1}"
                )
        return sampling.fitted(max(map(len, prompts)), self.context_length)

    def _sessions(self) -> Iterator[Session]:
        from safedraft.engines.transformers.session import TransformersSession

        device = self.target.model.device
        for member in (self.target, self.draft):
            yield TransformersSession(member.model, member.name, self.vocabulary, device)


def _prompt(member: Member, messages: Sequence[Message]) -> list[int]:
    return encode(_tokenizer(member), with_system(messages, member.system))


def _tokenizer(member: Member) -> PreTrainedTokenizerBase:
    if member.tokenizer is None:
        raise SafeDraftError(f"{member.name} has no tokenizer: it decodes token ids only")
    return member.tokenizer
