"""SafeDraft as a model of inspect_ai: ``--model safedraft/PAIR -M defense=ssd -M alpha_union=2.0``.

A model is a pair behind a defense. The pair is loaded when it is first asked, once a process for
whatever defenses share it, and answers one request at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio.to_thread
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
)
from inspect_ai.tool import ToolChoice, ToolInfo
from pydantic import ValidationError

from safedraft.core.config import SamplingParams, SSDConfig
from safedraft.core.errors import SafeDraftError, problems
from safedraft.defenses import ASKING, DEFENSES, Defense
from safedraft.evaluation.ahead import draw_ahead, drawn_reply
from safedraft.load import choose_pair, load_pair
from safedraft.models.progress import Report, silent
from safedraft.text.chat import Message, Reply

if TYPE_CHECKING:
    from safedraft.pair import Pair

_T = TypeVar("_T")

CUSTOM = "custom"
"""In place of a pair's name: the models are named by the arguments ``target`` and ``draft``."""

OWN_ARGUMENTS = (
    *("defense", "label", "target", "draft", "adapter", "no_adapter", "dtype", "device"),
)
"""Model arguments besides the constants of the method."""

_TO_SAMPLING = {
    "max_tokens": "max_new_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "seed": "seed",
    "stop_seqs": "stop",
}
_NOT_OURS = frozenset(  # inspect_ai's own affair, before or after a model is asked; see `generate`
    {"max_connections", "adaptive_connections", "max_retries", "system_message", "cache"}
    | {"max_tool_output", "batch"}
)


@dataclass(frozen=True)
class PairArguments:
    """Which two models; equal ones are loaded once."""

    name: str | None = None
    target: str | None = None
    draft: str | None = None
    adapter: str | None = None
    use_adapter: bool = True
    dtype: str = "auto"
    device: str = "auto"

    def check(self) -> None:
        """Refuse names and adapters that cannot be, before anything is loaded."""
        choose_pair(
            self.name,
            target=self.target,
            draft=self.draft,
            adapter=self.adapter,
            use_adapter=self.use_adapter,
        )

    def load(self, report: Report = silent) -> Pair:
        """The pair, from memory if it is there."""
        with _loading:
            if self not in _pairs:
                _pairs[self] = load_pair(
                    self.name,
                    target=self.target,
                    draft=self.draft,
                    adapter=self.adapter,
                    use_adapter=self.use_adapter,
                    dtype=self.dtype,
                    device=self.device,
                    report=report,
                )
            return _pairs[self]


_pairs: dict[PairArguments, Pair] = {}
_loading = threading.Lock()
_decoding = threading.Lock()  # the models are one, whatever models of inspect_ai stand before them


class SafeDraftAPI(ModelAPI):
    """A pair behind a defense.

    Args:
        model_name: a registered pair, or ``custom``.
        base_url: there is none; refused.
        api_key: likewise.
        config: how to generate; see ``sampling``.
        arguments: ``defense`` (default ssd), ``label`` (how reports call it), ``target``,
            ``draft``, ``adapter``, ``no_adapter``, ``dtype``, ``device``, and any constant of the
            method.

    Raises:
        SafeDraftError: an argument that does not exist, or a value that it cannot have.
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
        self.pair_arguments = pair_arguments(model_name, arguments)
        self.pair_arguments.check()
        self.defense = str(arguments.get("defense", "ssd"))
        self._answer = _defense(self.defense)
        self._constants = {
            name: value for name, value in arguments.items() if name in SSDConfig.model_fields
        }
        _config(SSDConfig(), self._constants)  # refused before anything is loaded

    @property
    def can_be_drawn(self) -> bool:
        """Whether many of its replies can be had at once, as the tasks of a suite may ask for."""
        return self.defense in ASKING

    def draw(
        self,
        conversations: Sequence[Sequence[Message]],
        max_new_tokens: int,
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        """Draw ahead what the defense asks the target when it answers these."""
        sampling = SamplingParams(max_new_tokens=max_new_tokens)
        draw_ahead(ASKING[self.defense], self.pair(), conversations, sampling, report)

    def pair(self) -> Pair:
        """The loaded pair under this defense's constants."""
        pair = self.pair_arguments.load()
        return (
            replace(pair, config=_config(pair.config, self._constants)) if self._constants else pair
        )

    async def use(self, function: Callable[[Pair], _T]) -> _T:
        """Do something with the pair while nobody else does, outside the event loop.

        On Ctrl-C the loop does not wait for it; the thread ends with the process.
        """

        def alone() -> _T:
            with _decoding:
                return function(self.pair())

        return await anyio.to_thread.run_sync(alone, abandon_on_cancel=True)

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answer, or go on with the assistant's turn where the messages end in one.

        Where ``batch`` is set, a defense that asks the target is told what was drawn ahead; sampled
        replies and those with stop sequences are not drawn.

        Raises:
            SafeDraftError: a setting that is not honoured, or whatever the defense cannot do.
            BrokenModel: a model gave NaN; an error is never an answer.
        """
        if tools:
            raise SafeDraftError("safedraft calls no tools: use tasks without them")
        messages, wanted = _messages(input), sampling(config)
        answer = self._answer
        is_drawn = wanted.greedy and not wanted.stop
        if config.batch and is_drawn and self.can_be_drawn:
            answer = partial(ASKING[self.defense], ask=drawn_reply)
        reply = await self.use(lambda pair: answer(pair, messages, wanted, pair.config))
        return _output(f"safedraft/{self.model_name}", reply)

    def max_connections(self) -> int:
        """One request at a time."""
        return 1

    def connection_key(self) -> str:
        """All pairs share the processor."""
        return "safedraft"

    def should_retry(self, ex: Exception) -> bool:
        """Never: the same request gives the same error."""
        return False


def pair_arguments(name: str, arguments: Mapping[str, Any]) -> PairArguments:
    """The part of the model arguments that says which pair.

    Raises:
        SafeDraftError: an argument that does not exist.
    """
    for argument in arguments:
        if argument not in OWN_ARGUMENTS and argument not in SSDConfig.model_fields:
            known = ", ".join((*OWN_ARGUMENTS, *SSDConfig.model_fields))
            raise SafeDraftError(f"safedraft has no model argument {argument!r}; it has {known}")
    no_adapter = arguments.get("no_adapter", False)
    if not isinstance(no_adapter, bool):
        raise SafeDraftError(f"no_adapter is true or false, not {no_adapter!r}")
    texts = {
        n: str(arguments[n])
        for n in ("target", "draft", "adapter", "dtype", "device")
        if n in arguments
    }
    return PairArguments(None if name == CUSTOM else name, use_adapter=not no_adapter, **texts)


def sampling(config: GenerateConfig) -> SamplingParams:
    """What inspect_ai's configuration means here; without a temperature, decoding is greedy.

    Raises:
        SafeDraftError: it sets something that is not honoured, or a value out of its range.
    """
    given = config.model_dump(exclude_none=True)
    foreign = given.keys() - _TO_SAMPLING.keys() - _NOT_OURS
    if foreign:
        names = ", ".join(sorted(foreign))
        raise SafeDraftError(f"safedraft does not honour {names}: leave it out")
    fields = {ours: given[theirs] for theirs, ours in _TO_SAMPLING.items() if theirs in given}
    try:
        return SamplingParams.model_validate(fields)
    except ValidationError as error:
        raise SafeDraftError(problems(error, shown=True)[0]) from error


def _defense(name: str) -> Defense:
    if name not in DEFENSES:
        raise SafeDraftError(f"no defense is called {name!r}; known are {', '.join(DEFENSES)}")
    return DEFENSES[name]


def _config(config: SSDConfig, constants: Mapping[str, Any]) -> SSDConfig:
    try:
        return SSDConfig.model_validate(config.model_dump() | dict(constants))
    except ValidationError as error:
        raise SafeDraftError(problems(error, shown=True)[0]) from error


def _messages(input: Sequence[ChatMessage]) -> list[Message]:
    for message in input:
        plain = isinstance(message.content, str) or all(p.type == "text" for p in message.content)
        if not plain or getattr(message, "tool_calls", None):
            raise SafeDraftError(f"a {message.role} message has more than text: it cannot be shown")
    return [{"role": message.role, "content": message.text} for message in input]


def _output(model: str, reply: Reply) -> ModelOutput:
    figures = reply.statistics
    choice = ChatCompletionChoice(
        message=ChatMessageAssistant(content=reply.text, model=model, source="generate"),
        stop_reason="max_tokens" if reply.finish_reason == "length" else "stop",
    )
    return ModelOutput(
        model=model,
        choices=[choice],
        usage=ModelUsage(
            input_tokens=figures.prompt_tokens,
            output_tokens=figures.tokens,
            total_tokens=figures.prompt_tokens + figures.tokens,
        ),
        metadata={"safedraft": figures.to_dict()},
    )
