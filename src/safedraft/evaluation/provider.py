"""SafeDraft as a model of inspect_ai: ``--model safedraft/PAIR -M defense=ssd -M alpha_union=2.0``.

A model is a pair with a defense. The pair is loaded at its first request, once in a process for all
defenses that share it, and answers one request at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio.to_thread
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    Content,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from safedraft.core.config import Constants, RiskConfig, SamplingParams, SSDConfig
from safedraft.core.errors import SafeDraftError, refuse_invalid
from safedraft.defenses import find_defense, make_constants
from safedraft.defenses.base import is_prompt_defense
from safedraft.engines.base import Capability
from safedraft.evaluation.ahead import draw_ahead, look_up_reply
from safedraft.evaluation.pair_arguments import OWN_ARGUMENTS, TOGETHER, parse_pair_arguments
from safedraft.evaluation.records import NOT_KEPT, WARNINGS
from safedraft.prompts.screening import must_not_be_kept
from safedraft.text.messages import Message, begun_text
from safedraft.text.reasoning import split_reply
from safedraft.text.results import GenerationResult

if TYPE_CHECKING:
    from safedraft.pair import Pair

_T = TypeVar("_T")

_SAMPLING_FIELDS = {
    "max_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "seed": "seed",
    "stop_seqs": "stop",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "logit_bias": "logit_bias",
}
FORM = "structured_outputs"
"""Key of a form in inspect_ai's ``extra_body``, whose ``response_schema`` lacks some keywords."""
_BODY_FIELDS = frozenset(SamplingParams.model_fields) - frozenset(_SAMPLING_FIELDS.values())
"""Sampling parameters that inspect_ai has no setting for; they are given in ``extra_body``."""
_IGNORED_FIELDS = frozenset(  # inspect_ai handles these itself; for batch see `generate`
    {"max_connections", "adaptive_connections", "max_retries", "system_message", "cache"}
    | {"max_tool_output", "batch"}
)


_decode_lock = threading.Lock()  # several models of inspect_ai can share one pair


class SafeDraftAPI(ModelAPI):
    """A pair with a defense.

    Args:
        model_name: a registered pair, or ``custom``.
        base_url: refused, because decoding is local.
        api_key: refused for the same reason.
        config: generation settings; see ``to_sampling_params``.
        arguments: ``defense`` (default ssd), ``label`` (its name in reports), ``target``,
            ``draft``, ``adapter``, ``no_adapter``, ``template`` (variables as ``name=value,…``),
            ``template_from``, ``other_base``, ``dtype``, ``device``, and any constant of the
            method or of the defense.

    Raises:
        SafeDraftError: an argument does not exist or has an invalid value.
    """

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        if base_url or api_key:
            raise SafeDraftError("safedraft decodes in this process: it takes no URL and no key")
        self.pair_arguments = parse_pair_arguments(model_name, arguments)
        self.pair_arguments.check()
        self.defense = str(arguments.get("defense", "ssd"))
        self._answer = find_defense(self.defense)
        self._constants = {
            name: value for name, value in arguments.items() if name not in OWN_ARGUMENTS
        }
        self._config()  # refused before anything is loaded

    @property
    def can_draw_ahead(self) -> bool:
        """Whether many replies can be decoded at once, as the tasks of a suite may request."""
        if not is_prompt_defense(self._answer):
            return False
        return Capability.MODELS in self.pair_arguments.load().engine.capabilities

    @property
    def samples_at_once(self) -> int:
        """Number of samples to answer at once; an interruption can lose each of them."""
        capabilities = self.pair_arguments.load().engine.capabilities
        return TOGETHER if Capability.TOGETHER in capabilities else 1

    def draw(
        self,
        conversations: Sequence[Sequence[Message]],
        max_new_tokens: int,
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        """Draw ahead what the defense asks the target when it answers these."""
        assert is_prompt_defense(self._answer)
        sampling = SamplingParams(max_new_tokens=max_new_tokens)
        draw_ahead(self._answer, self.pair(), conversations, sampling, report)

    def pair(self) -> Pair:
        """The loaded pair, with the constants of SSD of this defense."""
        pair = self.pair_arguments.load()
        own = {n: v for n, v in self._constants.items() if n in RiskConfig.model_fields}
        with refuse_invalid(shown=True):
            config = pair.config.replace(**own) if own else pair.config
        constants = self._config(config)
        return replace(pair, config=constants if isinstance(constants, SSDConfig) else config)

    def _config(self, config: SSDConfig | None = None) -> Constants:
        """The defense's constants, with a pair's own values where it takes them."""
        with refuse_invalid(shown=True):
            return make_constants(self.defense, config or RiskConfig(), self._constants)

    async def use(self, function: Callable[[Pair], _T], *, together: bool = False) -> _T:
        """Call a function with the pair in a thread.

        On Ctrl-C the event loop does not wait for it; the thread ends with the process.

        Args:
            function: called with the pair.
            together: whether others may be called meanwhile, on an engine that decodes requests
                together; otherwise it is one call at a time.
        """

        def locked() -> _T:
            pair = self.pair()
            shared = together and Capability.TOGETHER in pair.engine.capabilities
            with nullcontext() if shared else _decode_lock:
                return function(pair)

        return await anyio.to_thread.run_sync(locked, abandon_on_cancel=True)

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answer, or continue the assistant's turn if the messages end in one.

        If ``batch`` is set, a defense that asks only the target gets the replies that ``draw``
        generated, unless replies are sampled or have penalties, biases, stop sequences or a form.

        Raises:
            SafeDraftError: a setting has no effect here, or the defense cannot do something.
            BrokenModelError: a model gave NaN. An error never becomes an answer.
        """
        if tools:
            raise SafeDraftError("safedraft calls no tools: use tasks without them")
        messages, params = _to_messages(input), to_sampling_params(config)
        answer = self._answer
        ends = params.stop or params.stop_token_ids
        is_drawn = params.greedy and not (params.shifts or ends or params.structured_outputs)
        if config.batch and is_drawn and self.can_draw_ahead:
            assert is_prompt_defense(answer)
            answer = partial(answer, ask=look_up_reply)

        def reply(pair: Pair) -> tuple[GenerationResult, tuple[str | None, str]]:
            result = answer(pair, messages, params, self._config(pair.config))
            return result, split_reply(result.text, messages, pair.target.tokenizer)

        replied = await self.use(reply, together=bool(config.batch))
        return _to_output(f"safedraft/{self.model_name}", *replied, begun_text(messages))

    def max_connections(self) -> int:
        """One request at a time, unless a run asks for more."""
        return 1

    def connection_key(self) -> str:
        """One key for all pairs, which share the processor."""
        return "safedraft"

    def should_retry(self, ex: Exception) -> bool:
        """Do not retry: the same request gives the same error."""
        return False


def to_sampling_params(config: GenerateConfig) -> SamplingParams:
    """Convert inspect_ai's settings; without a temperature, decoding is greedy.

    Raises:
        SafeDraftError: a setting is not supported, or a value is out of range.
    """
    settings = config.model_dump(exclude_none=True)
    body = settings.pop("extra_body", {})
    if "response_schema" in settings:
        body = {FORM: {"json_schema": settings.pop("response_schema")["json_schema"]}} | body
    unsupported = settings.keys() - _SAMPLING_FIELDS.keys() - _IGNORED_FIELDS
    unsupported |= body.keys() - _BODY_FIELDS
    if unsupported:
        names = ", ".join(sorted(unsupported))
        raise SafeDraftError(f"safedraft does not support {names}: leave it out")
    fields = {ours: settings[name] for name, ours in _SAMPLING_FIELDS.items() if name in settings}
    fields |= body
    with refuse_invalid(shown=True):
        return SamplingParams.model_validate(fields)


def _to_messages(input: Sequence[ChatMessage]) -> list[Message]:
    for message in input:
        plain = isinstance(message.content, str) or all(
            part.type in ("text", "reasoning") for part in message.content
        )
        if not plain or getattr(message, "tool_calls", None):
            raise SafeDraftError(f"a {message.role} message has more than text: it cannot be shown")
    return [_to_message(message) for message in input]


def _to_message(message: ChatMessage) -> Message:
    plain: Message = {"role": message.role, "content": message.text}
    parts = [] if isinstance(message.content, str) else message.content
    reasoning = "".join(part.reasoning for part in parts if part.type == "reasoning")
    return {**plain, "reasoning": reasoning} if reasoning else plain


def _to_output(
    model: str, reply: GenerationResult, parts: tuple[str | None, str], begun: str
) -> ModelOutput:
    """A reply in the form of inspect_ai, which keeps reasoning and answer apart.

    Logs keep every output; the text of one that must not be kept is dropped.
    """
    statistics = reply.statistics
    withheld = must_not_be_kept(begun + "".join(part for part in parts if part))
    reasoning, answer = (None, "") if withheld else parts
    content: str | list[Content] = answer
    if reasoning is not None:
        content = [ContentReasoning(reasoning=reasoning), ContentText(text=answer)]
    choice = ChatCompletionChoice(
        message=ChatMessageAssistant(content=content, model=model, source="generate"),
        stop_reason="max_tokens" if reply.finish_reason == "length" else "stop",
    )
    return ModelOutput(
        model=model,
        choices=[choice],
        usage=ModelUsage(
            input_tokens=statistics.prompt_tokens,
            output_tokens=statistics.tokens,
            total_tokens=statistics.prompt_tokens + statistics.tokens,
        ),
        metadata={
            "safedraft": statistics.to_dict(),
            NOT_KEPT: withheld,
            WARNINGS: list(reply.warnings),
        },
    )
