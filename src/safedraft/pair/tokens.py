"""Two loaded models that decode token ids together, on any engine."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Unpack

from safedraft.core.config import SamplingParams, StructuredOutputs
from safedraft.core.errors import (
    PromptTooLongError,
    SafeDraftError,
    UnguardedWarning,
    show_value,
)
from safedraft.core.generation import RequestBatch
from safedraft.core.request import Request
from safedraft.core.risk import Reading, RiskContext
from safedraft.core.rule import Context, Rule
from safedraft.core.session import Reader, SessionEngine, Which
from safedraft.engines.base import Capability, LoadedModel, LoadedPair
from safedraft.pair.both_prompts import Prompts
from safedraft.pair.forms import make_grammars, require_whole_reply
from safedraft.pair.guards import require_settable
from safedraft.pair.options import (
    Config,
    GenerateOptions,
    Sampling,
    read_constants,
    read_sampling,
    require_able,
    require_alternatives,
    require_drafting,
    take_alternatives,
    take_sampling,
)
from safedraft.rules import find_rule, own_rule
from safedraft.text.detokenizer import Detokenizer
from safedraft.text.encode import encode, encode_text, turn_header
from safedraft.text.grammar import Constrain, Grammars, texts_of
from safedraft.text.messages import Message, conversation, turn_begun, with_system
from safedraft.text.reasoning import Thinking, thinking_of
from safedraft.text.refusals import refusal_tokens
from safedraft.text.results import Statistics
from safedraft.text.stop import control_stops
from safedraft.text.stream import Stream
from safedraft.text.token_bytes import token_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, repr=False)
class TokenPair(LoadedPair):
    """A target and a draft that fit each other: prompts to ids, ids to streams of tokens."""

    @property
    def guarded(self) -> bool:
        """Whether the draft has a safety adapter, and constants that let it guard the target."""
        return bool(self.spec and self.spec.adapter and not self.config.weakness)

    @property
    def rule(self) -> str:
        """The rule of requests that name none."""
        return own_rule(reads_risk=self.probe is not None)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why replies may be less safe than expected, one sentence for each reason."""
        reasons = (self.spec.warning if self.spec else None, self.config.weakness)
        return (*filter(None, reasons), *self.notes)

    def require_variables(self, chat_template_kwargs: Mapping[str, Any]) -> None:
        """Check that a request can set these variables of the chat templates.

        Raises:
            SafeDraftError: see ``guards.require_settable``.
        """
        if chat_template_kwargs:
            tokenizers = (_tokenizer(self.target), _tokenizer(self.draft))
            require_settable(chat_template_kwargs, tokenizers)

    @property
    def thinks(self) -> bool:
        """Whether the pair's replies begin with reasoning."""
        return self.thinking() is not Thinking.OFF

    def thinking(self, chat_template_kwargs: Mapping[str, Any] | None = None) -> Thinking:
        """Whether replies to conversations begin with reasoning, as the target's template has it.

        Args:
            chat_template_kwargs: variables of the template, of one request.
        """
        tokenizer = self.target.tokenizer
        return thinking_of(tokenizer, chat_template_kwargs) if tokenizer else Thinking.OFF

    def prompts(
        self,
        prompt: str | Sequence[Message],
        chat_template_kwargs: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Prompts:
        """Each model's own prompt: its chat template, under its system prompt.

        Args:
            prompt: one user message, or all messages.
            chat_template_kwargs: variables of the chat templates for this prompt alone, in place of
                those of the pair.
            tools: descriptions of the functions that the reply may call.

        Raises:
            SafeDraftError: a model has no tokenizer or no chat template, the text is empty, or a
                variable cannot be set.

        Warns:
            UnguardedWarning: the variables switch thinking on or off.
        """
        if chat_template_kwargs:
            self.require_variables(chat_template_kwargs)
            self._warn_of_another_mode(chat_template_kwargs)
        messages = conversation(prompt) if isinstance(prompt, str) else prompt

        def read(model: LoadedModel, turns: Sequence[Message]) -> list[int]:
            turns = with_system(turns, model.system)
            return encode(_tokenizer(model), turns, chat_template_kwargs, tools=tools)

        prompts = {which: read(model, messages) for which, model in self._models.items()}
        asked = messages[:-1] if turn_begun(messages) else messages

        def ask(text: str = "") -> dict[Which, list[int]]:
            *earlier, last = asked
            turns = [*earlier, {**last, "content": last["content"] + text}]
            reads = self.probe.reads if self.probe else ()
            return {which: read(self._models[which], turns) for which in reads}

        questions = ask() if turn_begun(messages) else prompts
        thinks = self.thinking(chat_template_kwargs) is not Thinking.OFF
        return Prompts(prompts["target"], prompts["draft"], questions, thinks, ask)

    def _warn_of_another_mode(self, chat_template_kwargs: Mapping[str, Any]) -> None:
        own, asked = self.thinking(), self.thinking(chat_template_kwargs)
        if own is not asked:
            warnings.warn(
                f"the request sets thinking to {asked.value!r} and the pair has {own.value!r}: "
                "that the draft refuses there was never tested; set it in the pair (template=)",
                UnguardedWarning,
                stacklevel=4,
            )

    def text_prompts(self, text: str) -> Prompts:
        """Each model's own ids of a text that is continued as it stands.

        There is no chat template, and no system prompt of a model's own. A control token spelled
        out in the text stays text; where a tokenizer begins texts with a token, that comes first.

        Raises:
            SafeDraftError: a model has no tokenizer, or the text is empty.
        """
        models = (self.target, self.draft)
        target, draft = (encode_text(_tokenizer(model), text) for model in models)
        return Prompts(target, draft)

    def stream_ids(
        self,
        prompts: Prompts | Sequence[int],
        sampling: Sampling | None = None,
        *,
        config: Config | None = None,
        rule: str | Rule | None = None,
        turn_begun: bool | None = None,
        top_logprobs: int | None = None,
        batch: RequestBatch | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Stream:
        """Like ``stream``, from token ids; with no tokenizer, tokens have no text.

        Args:
            prompts: those of each model, or one for both.
            turn_begun: whether the prompts end inside the assistant's turn; None if that is not
                known.

        Raises:
            PromptTooLongError: no room left in the shorter context.
            SafeDraftError: an empty prompt, an id that its model does not have, stop strings
                without a tokenizer, a negative number of log probabilities, a ``prefill_scheme``
                where it is not known whether the turn has begun, or something that the engine
                cannot do.
        """
        if not isinstance(prompts, Prompts):
            prompts = Prompts(list(prompts), list(prompts))
        given = take_sampling(sampling, options)
        top_logprobs = take_alternatives(top_logprobs, options)
        sampling = self.fit(prompts, read_sampling(given, options))
        tokenizer = self.target.tokenizer
        if sampling.stop and tokenizer is None:
            raise SafeDraftError("stop strings need a tokenizer, and the target has none")
        request = self.request(
            prompts, sampling, config, rule, turn_begun=turn_begun, top_logprobs=top_logprobs
        )
        batch = batch or self.engine.batch()
        return Stream(
            batch,
            batch.add(request),
            Detokenizer(tokenizer, prompts.target) if tokenizer else None,
            Statistics(
                prompt_tokens=prompts.longest,
                seed=None if sampling.greedy else sampling.seed,
            ),
            sampling.stop,
            self.warnings,
            partial(token_bytes, tokenizer) if tokenizer else None,
        )

    def request(
        self,
        prompts: Prompts,
        sampling: SamplingParams,
        config: Config | None = None,
        rule: str | Rule | None = None,
        *,
        turn_begun: bool | None = None,
        top_logprobs: int | None = None,
    ) -> Request:
        """Build a request, for callers that step a batch themselves; see ``stream_ids``."""
        if top_logprobs is not None:
            self.engine.capabilities.require(Capability.LOG_PROBABILITIES, "top_logprobs")
            require_alternatives(top_logprobs)
        require_able(self, sampling)
        if prompts.target != prompts.draft:
            self.engine.capabilities.require(Capability.TWO_PROMPTS, "two prompts")
        form = sampling.structured_outputs
        rule = rule or self.rule
        decided_by = find_rule(rule) if isinstance(rule, str) else rule
        if not hasattr(decided_by, "config"):
            raise SafeDraftError(f"rule must be the name of a rule or one, not {show_value(rule)}")
        return Request(
            tuple(prompts.target),
            tuple(prompts.draft),
            decided_by,
            require_drafting(self, read_constants(decided_by.config, config, self.config)),
            sampling,
            self.end_tokens_of(sampling),
            Context(turn_begun, self.refusal_tokens, self._risk_context(prompts, form)),
            top_logprobs,
            self.constrain(form, turn_begun, prompts.thinks) if form else None,
        )

    def constrain(
        self, form: StructuredOutputs, turn_begun: bool | None = None, thinks: bool = False
    ) -> Constrain:
        """Make what constrains a reply to its form; refuse an invalid or unsupported form."""
        require_whole_reply(self, thinks, turn_begun)
        return self._grammars.compile(form)

    @cached_property
    def _grammars(self) -> Grammars:
        return make_grammars(self)

    def _risk_context(self, prompts: Prompts, form: StructuredOutputs | None) -> RiskContext | None:
        """Make the context for reading the risk; the texts of a form are part of the request."""
        if self.probe is None:
            return None
        questions = prompts.questions
        if form and prompts.ask and (texts := texts_of(form)):
            questions = prompts.ask(f"\n\n{texts}")
        readings: dict[Which, Reading] = {
            which: Reading(self.turn_headers[which], tuple(questions.get(which, ())))
            for which in self.probe.reads
        }
        if (longest := max(len(one.question) for one in readings.values())) > self.context_length:
            raise PromptTooLongError(longest, self.context_length)
        return RiskContext(self.probe, readings)

    @cached_property
    def turn_headers(self) -> Mapping[Which, tuple[int, ...]]:
        """Tokens that end the assistant's turn and begin another one, of the models that are read.

        Raises:
            SafeDraftError: a model has no tokenizer or no chat template.
        """
        reads = self.probe.reads if self.probe else ()
        return {which: turn_header(_tokenizer(self._models[which])) for which in reads}

    @property
    def _models(self) -> Mapping[Which, LoadedModel]:
        return {"target": self.target, "draft": self.draft}

    def end_tokens_of(self, sampling: SamplingParams) -> frozenset[int]:
        """Ids that end a reply: of the pair, of the request, and of stop strings of one token.

        Raises:
            SafeDraftError: a stop string can never be found in a text, or an id does not exist.
        """
        if beyond := [id for id in sampling.stop_token_ids if id >= self.vocabulary]:
            raise SafeDraftError(f"stop_token_ids: {beyond[0]}: ids end at {self.vocabulary - 1}")
        tokenizer = self.target.tokenizer
        control = control_stops(tokenizer, sampling.stop) if tokenizer else frozenset()
        return self.end_tokens | control | frozenset(sampling.stop_token_ids)

    def reader(self, which: Which) -> Reader:
        """Return a reader of one of the models, for callers that score texts of their own.

        Raises:
            SafeDraftError: the engine has no sessions.
        """
        self.require_sessions("asking a model about a text")
        assert isinstance(self.engine, SessionEngine)
        return Reader(self.engine, which)

    def require_sessions(self, purpose: str) -> None:
        """Check that the engine has sessions, which scoring a text and hidden states need.

        Raises:
            SafeDraftError: the engine has no sessions; the message begins with ``purpose``.
        """
        self.engine.capabilities.require(Capability.SESSIONS, purpose)

    @cached_property
    def refusal_tokens(self) -> frozenset[int]:
        """Shared ids that begin a refusal; none without a tokenizer."""
        return refusal_tokens(self.draft.tokenizer, self.vocabulary)

    def fit(self, prompts: Prompts, sampling: SamplingParams) -> SamplingParams:
        """``sampling`` with a seed and no more tokens than the shorter context has room for.

        Raises:
            PromptTooLongError: there is no room for a token.
            SafeDraftError: an empty prompt, or an id that its model does not have.
        """
        for model, ids in zip(self._models.values(), prompts, strict=True):
            if not ids:
                raise SafeDraftError(f"{model.name}: the prompt is empty")
            count = model.embedded_ids or self.vocabulary
            if not all(0 <= token < count for token in ids):
                raise SafeDraftError(
                    f"{model.name}: the prompt has ids outside its vocabulary, 0 to {count - 1}"
                )
        return sampling.fitted(prompts.longest, self.context_length)

    def close(self) -> None:
        """Release what the engine holds outside of this process or on a device."""
        self.engine.close()


def _tokenizer(model: LoadedModel) -> PreTrainedTokenizerBase:
    if model.tokenizer is None:
        raise SafeDraftError(f"{model.name} has no tokenizer: it decodes token ids only")
    return model.tokenizer
