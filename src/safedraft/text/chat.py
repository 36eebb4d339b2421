"""Text on both sides of the loop: messages to prompts, steps to text, stop strings, statistics."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from safedraft.core.errors import SafeDraftError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from safedraft.core.decode import Step
    from safedraft.core.sampling import LogProbabilities

Message = Mapping[str, str]
"""``{"role": "system" | "user" | "assistant", "content": text}``."""

FinishReason = Literal["stop", "length", "interrupted"]
"""An end token or stop string; the token limit or the context's end; taken away before its end."""

_ROLES = ("system", "user", "assistant")
_CONTEXT = 8  # tokens of the prompt that the first new ones are decoded with


def conversation(prompt: str | Sequence[Message], prefill: str = "") -> list[Message]:
    """Messages of a request; a string is what the user says, ``prefill`` begins the reply.

    Raises:
        SafeDraftError: there is nothing to answer, or a message has no role or content.
    """
    asked: Message = {"role": "user", "content": prompt if isinstance(prompt, str) else ""}
    messages = [asked] if isinstance(prompt, str) else list(prompt)
    begun: list[Message] = [{"role": "assistant", "content": prefill}] if prefill else []
    for message in [*messages, *begun]:
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(name), str) for name in ("role", "content")
        ):
            raise SafeDraftError("every message needs a 'role' and a 'content', both strings")
        if message["role"] not in _ROLES:
            raise SafeDraftError(
                f"role {message['role']!r} is unknown: {', '.join(_ROLES)} are known"
            )
        if not _encodes(message["content"]):
            raise SafeDraftError("a message is not valid Unicode: send it as UTF-8")
    if not any(message["role"] == "user" and message["content"].strip() for message in messages):
        raise SafeDraftError("the prompt is empty: give a message to answer")
    if begun and turn_begun(messages):
        raise SafeDraftError("the messages end in an assistant turn already: leave out the prefill")
    return messages + begun


def turn_begun(messages: Sequence[Message]) -> bool:
    """Whether the reply goes on with a turn of the assistant's that the messages end in."""
    return messages[-1]["role"] == "assistant"


def _encodes(text: str) -> bool:
    """Whether text can be written as UTF-8: broken input is read with stray surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    """``messages`` under one more system prompt, which stands before the conversation's own."""
    if not system:
        return list(messages)
    if messages and messages[0]["role"] == "system":
        joined = f"{system}\n\n{messages[0]['content']}"
        return [{"role": "system", "content": joined}, *messages[1:]]
    return [{"role": "system", "content": system}, *messages]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    goes_on: bool | None = None,
) -> list[int]:
    """Token ids of a conversation, up to where the assistant speaks (or goes on speaking).

    A control token spelt out in a message stays text: a seam is put inside it before the template
    is rendered, and the rendered text is encoded piece by piece between seams.

    Args:
        tokenizer: has the chat template.
        messages: the turns so far.
        goes_on: whether the last turn is unfinished; if not given, one of the assistant's is.

    Raises:
        SafeDraftError: the tokenizer has no chat template, or the template refuses the messages.
    """
    if not tokenizer.chat_template:
        raise SafeDraftError(
            f"{tokenizer.name_or_path} has no chat template; use an instruct model"
        )
    seam = _unused_character("".join(message["content"] for message in messages))
    control = _control_tokens(tokenizer)
    if goes_on is None:
        goes_on = turn_begun(messages)
    sealed = [
        {**message, "content": _seamed(message["content"], control, seam)} for message in messages
    ]
    try:
        rendered = tokenizer.apply_chat_template(
            sealed,
            tokenize=False,
            add_generation_prompt=not goes_on,
            continue_final_message=goes_on,
        )
    except Exception as error:  # templates raise what they like: jinja2's errors, ValueError…
        raise SafeDraftError(f"the chat template refuses these messages: {error}") from error
    for message in sealed:
        if message["role"] != "assistant" and message["content"].strip() not in str(rendered):
            name, role = tokenizer.name_or_path, message["role"]
            raise SafeDraftError(f"the chat template of {name} leaves out the {role} message")
    return _encode_pieces(tokenizer, str(rendered), seam)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text that is continued as it stands, begun as the tokenizer begins a text.

    A control token spelt out in it stays text, as in ``encode``.

    Raises:
        SafeDraftError: the text is empty or not valid Unicode.
    """
    if not text:
        raise SafeDraftError("the text is empty: give one to continue")
    if not _encodes(text):
        raise SafeDraftError("the text is not valid Unicode: send it as UTF-8")
    seam = _unused_character(text)
    ids = _encode_pieces(tokenizer, _seamed(text, _control_tokens(tokenizer), seam), seam)
    beginning = [tokenizer.bos_token_id]
    # Of what the tokenizer puts around a text, only the beginning: an end token would end it.
    return [*beginning, *ids] if tokenizer.encode("")[:1] == beginning else ids


def _encode_pieces(tokenizer: PreTrainedTokenizerBase, text: str, seam: str) -> list[int]:
    """Token ids of a text between whose seams no token is formed."""
    pieces = [piece for piece in text.split(seam) if piece]
    return [id for piece in pieces for id in tokenizer.encode(piece, add_special_tokens=False)]


def _control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts that the tokenizer reads as control tokens; not the white space some add as tokens."""
    added = tokenizer.added_tokens_decoder.values()
    template = str(tokenizer.chat_template or "")
    texts = {token.content for token in added if token.special or token.content in template}
    return sorted((text for text in texts if len(text.strip()) > 1), key=len, reverse=True)


def _unused_character(text: str) -> str:
    for code in range(0xE000, 0xF8FF):
        if chr(code) not in text:
            return chr(code)
    raise SafeDraftError("the text uses every private character of Unicode: leave one out")


def _seamed(text: str, control: Sequence[str], seam: str) -> str:
    """``text`` with ``seam`` after the first character of every control token it spells."""
    for token in control:
        text = text.replace(token, token[0] + seam + token[1:])
    return text


class Detokenizer:
    """Turns tokens into text as they come; a character cut across tokens waits to be whole."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(prompt[-_CONTEXT:])
        self._start, self._told = 0, len(self._ids)

    def push(self, token: int) -> str:
        """The text that ``token`` completes; empty while a character is incomplete."""
        self._ids.append(token)
        text = self._untold()
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        if text:  # a control token says nothing, and is no context for what follows
            self._start = self._told
        self._told = len(self._ids)
        return text

    def spell(self, token: int) -> str:
        """What ``push`` would give for ``token``, were it the next; control tokens are spelt out.

        A part of a character is shown as a replacement character.
        """
        told, whole = (
            str(self._tokenizer.decode(ids, skip_special_tokens=False))
            for ids in (self._ids[self._start : self._told], [*self._ids[self._start :], token])
        )
        return whole[len(told) :]

    def flush(self) -> str:
        """What is left at the end, a broken character included."""
        return self._untold() if self.pending else ""

    @property
    def pending(self) -> bool:
        """Whether the tokens so far end inside a character."""
        return self._told < len(self._ids)

    def _untold(self) -> str:
        told = self._decode(self._ids[self._start : self._told])
        return self._decode(self._ids[self._start :])[len(told) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


class Alternative(NamedTuple):
    """One of the most likely tokens at a place of a reply."""

    id: int
    text: str
    """As it would go on there, control tokens spelt out; empty without a tokenizer."""
    logprob: float


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a reply: where it came from and what it says."""

    id: int
    text: str
    """What it adds to the reply; empty for a part of a character and for what a stop cut off."""
    matched: bool
    scheme: str | None
    """``intersection`` or ``union``; None where no draft took part (a baseline)."""
    strength: float
    draft_probability: float | None
    target_probability: float
    block: int
    logprob: float | None = None
    """Of the composite distribution that the token was taken from; None if not asked for."""
    top_logprobs: tuple[Alternative, ...] = ()
    """As many as were asked for, the most likely first; none that could not be taken."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; log probabilities only if they were asked for."""
        told = asdict(self)
        if self.logprob is None:
            del told["logprob"], told["top_logprobs"]
        else:
            told["top_logprobs"] = [other._asdict() for other in self.top_logprobs]
        return told


@dataclass(slots=True)
class Statistics:
    """What a reply cost. Seconds are wall-clock and include both prefills."""

    prompt_tokens: int = 0
    """Of the longer of the two prompts."""
    tokens: int = 0
    blocks: int = 0
    matches: int = 0
    match_ratios: list[float] = field(default_factory=list)
    """β of every full bin, which an end token is no part of."""
    target_passes: int = 0
    draft_passes: int = 0
    seconds: float = 0.0
    first_token_seconds: float = 0.0
    target_seconds: float = 0.0
    draft_seconds: float = 0.0
    seed: int | None = None
    """What repeats a sampled reply; None for a greedy one."""

    @property
    def match_ratio(self) -> float:
        """Share of the tokens that are the draft's."""
        return self.matches / self.tokens if self.tokens else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Over the whole reply."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_target_pass(self) -> float:
        """1 without a draft; at most T + 1 with one."""
        return self.tokens / self.target_passes if self.target_passes else 0.0

    @property
    def overhead_seconds(self) -> float:
        """What neither model's forward took."""
        return max(self.seconds - self.target_seconds - self.draft_seconds, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """The fields and what follows from them, ready for JSON."""
        derived = ("match_ratio", "tokens_per_second", "tokens_per_target_pass", "overhead_seconds")
        return asdict(self) | {name: getattr(self, name) for name in derived}


@dataclass(slots=True)
class Reply:
    """What was said, how every token came about, and what it cost."""

    text: str = ""
    finish_reason: FinishReason = "interrupted"
    trace: list[Token] = field(default_factory=list)
    statistics: Statistics = field(default_factory=Statistics)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "statistics": self.statistics.to_dict(),
            "trace": [token.to_dict() for token in self.trace],
        }


class Clock(Protocol):
    """Counts the passes of one model and the seconds they took."""

    passes: int
    seconds: float


class Stream(Iterator[Token]):
    """Iterates over a reply's tokens as they are decoded; ``reply`` is what was said so far.

    The texts of the tokens, joined, are the text of the reply. A token whose text may be the start
    of a stop string is held back until that is decided. Closing the stream early (or Ctrl-C inside
    it) keeps what was said.
    """

    def __init__(
        self,
        steps: Iterator[Step],
        detokenizer: Detokenizer | None,
        *,
        stop: Sequence[str] = (),
        end_tokens: frozenset[int] = frozenset(),
        bin_size: int,
        target: Clock,
        draft: Clock,
        statistics: Statistics,
        log_probabilities: Callable[[Tensor, int], LogProbabilities] | None = None,
    ) -> None:
        self.reply = Reply(statistics=statistics)
        self._steps = steps
        self._detokenizer = detokenizer
        self._stop = tuple(text for text in stop if text)
        self._end_tokens = end_tokens
        self._bin_size = bin_size
        self._target, self._draft = target, draft
        self._log_probabilities = log_probabilities
        self.more = False
        """Whether the next ``advance`` takes no pass of a model."""
        self._held: list[Token] = []
        self._stopped = False
        self._asked = 0.0
        self._tokens = self._run()

    def __next__(self) -> Token:
        while (token := self.advance()) is None:
            pass
        return token

    def advance(self) -> Token | None:
        """The next token, or None where a position was decided and its text is held back.

        For whoever has other streams to attend to: a call takes one pass of the target at most.

        Raises:
            StopIteration: the reply has ended.
        """
        # Only the time in here counts: what the caller does between two tokens is its own.
        self._asked = time.perf_counter()
        try:
            return next(self._tokens)
        finally:
            self.reply.statistics.seconds += time.perf_counter() - self._asked

    def __iter__(self) -> Iterator[Token]:
        return self

    def close(self) -> None:
        """Stop decoding; the reply keeps what was said."""
        self._tokens.close()

    def drain(self) -> Reply:
        """Decode to the end."""
        for _ in self:
            pass
        return self.reply

    def _run(self) -> Generator[Token | None]:
        try:
            for step in self._steps:
                self._count(step)
                ended = step.token in self._end_tokens
                logprob, others = self._logprobs(step)  # spelt where the token is not yet said
                text = "" if ended else self._text(step.token)
                self._held.append(_token(step, text, logprob, others))
                self.more = step.more
                if self._cut_at_stop() or ended:
                    self.more = True
                    self.reply.finish_reason = "stop"
                    break
                settled = self._decided()
                yield from self._release(settled)
                if not settled:
                    yield None
            else:
                self.reply.finish_reason = "length"
            self._complete()
            yield from self._release(len(self._held))
        finally:
            for _ in self._release(len(self._held)):
                pass  # taken away before its end: what was held back was said all the same
            self._total()
            if isinstance(self._steps, Generator):
                self._steps.close()  # an engine of many requests would go on with this one
            del self._target, self._draft  # and their caches: the reply may be kept for long

    def _logprobs(self, step: Step) -> tuple[float | None, tuple[Alternative, ...]]:
        if self._log_probabilities is None:
            return None, ()
        if step.scores is None:
            raise SafeDraftError(
                "this decoder takes its tokens from no composite distribution: leave out "
                "top_logprobs, or decode with SSD"
            )
        chosen, most_likely = self._log_probabilities(step.scores, step.token)
        spell = self._detokenizer.spell if self._detokenizer else lambda token: ""
        return chosen, tuple(Alternative(id, spell(id), logprob) for id, logprob in most_likely)

    def _text(self, token: int) -> str:
        return self._detokenizer.push(token) if self._detokenizer else ""

    def _complete(self) -> None:
        """A reply that ends inside a character shows what there is of it."""
        if self._held and self._detokenizer and not self._stopped:
            last = self._held[-1]
            self._held[-1] = replace(last, text=last.text + self._detokenizer.flush())

    def _cut_at_stop(self) -> bool:
        """Whether the held text has a stop string; if so, what follows its start is cut off."""
        text = "".join(token.text for token in self._held)
        starts = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if not starts:
            return False
        self._stopped = True
        left = min(starts)
        for index, token in enumerate(self._held):
            self._held[index] = replace(token, text=token.text[:left])
            left = max(left - len(token.text), 0)
        return True

    def _decided(self) -> int:
        """How many held tokens have a text that no stop string or broken character can change."""
        text = "".join(token.text for token in self._held)
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        lengths = range(min(longest, len(text)), 0, -1)
        tails = (n for n in lengths if any(stop.startswith(text[-n:]) for stop in self._stop))
        settled = len(text) - next(tails, 0)
        ends = accumulate(len(token.text) for token in self._held)
        count = sum(end <= settled for end in ends)
        inside_character = self._detokenizer is not None and self._detokenizer.pending
        return min(count, len(self._held) - inside_character)

    def _release(self, count: int) -> Iterator[Token]:
        """Let go of the first ``count`` held tokens."""
        for _ in range(count):
            token = self._held.pop(0)
            self.reply.trace.append(token)
            self.reply.text += token.text
            yield token

    def _count(self, step: Step) -> None:
        statistics = self.reply.statistics
        if not statistics.tokens:
            statistics.first_token_seconds = time.perf_counter() - self._asked
        statistics.tokens += 1
        statistics.matches += step.matched
        statistics.blocks = step.block + 1

    def _total(self) -> None:
        statistics = self.reply.statistics
        decided = [token for token in self.reply.trace if token.id not in self._end_tokens]
        matched = [token.matched for token in decided if token.scheme is not None]
        size = self._bin_size
        full = range(0, len(matched) - size + 1, size)
        statistics.match_ratios = [sum(matched[start : start + size]) / size for start in full]
        statistics.target_seconds, statistics.target_passes = (
            self._target.seconds,
            self._target.passes,
        )
        statistics.draft_seconds, statistics.draft_passes = self._draft.seconds, self._draft.passes


def _token(
    step: Step, text: str, logprob: float | None, alternatives: tuple[Alternative, ...]
) -> Token:
    return Token(
        id=step.token,
        text=text,
        matched=step.matched,
        scheme=step.scheme,
        strength=step.strength,
        draft_probability=step.draft_probability,
        target_probability=step.target_probability,
        block=step.block,
        logprob=logprob,
        top_logprobs=alternatives,
    )
