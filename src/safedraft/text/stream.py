"""A reply as a stream: decoded positions become tokens with text, up to a stop string."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

from safedraft.core.generation import Generation, RequestBatch, Step, iterate
from safedraft.text.detokenizer import Detokenizer
from safedraft.text.results import Alternative, GenerationResult, Statistics, Token
from safedraft.text.stop import find_stop, settled_length

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Stream(Iterator[Token]):
    """Iterates over the tokens of a reply while they are decoded.

    ``result`` holds the reply so far; its text is the joined text of the tokens. A token whose text
    may begin a stop string is held back until that is decided. If the stream is closed early (or by
    Ctrl-C inside it), ``result`` keeps what was decoded.

    Args:
        batch: decodes the request, perhaps with others.
        generation: the request in the batch.
        detokenizer: gives the tokens their text; None: they have none.
        statistics: the object that is filled in; it already has the prompt's length and the seed.
        stop: strings that end the reply and are cut off it.
        warnings: warnings about the pair, for the result.
        spell_bytes: the bytes of a token that is a part of a character; None: they are not known.
    """

    def __init__(
        self,
        batch: RequestBatch,
        generation: Generation,
        detokenizer: Detokenizer | None,
        statistics: Statistics,
        stop: Sequence[str] = (),
        warnings: Sequence[str] = (),
        spell_bytes: Callable[[int], bytes | None] | None = None,
    ) -> None:
        self.result = GenerationResult(statistics=statistics, warnings=tuple(warnings))
        self._batch = batch
        self._generation: Generation | None = generation
        self._steps = iterate(batch, generation)
        self._detokenizer = detokenizer
        self._spell_bytes = spell_bytes
        self._stop = tuple(text for text in stop if text)
        self._end_tokens = generation.request.end_tokens
        self._held: list[Token] = []
        self._advance_start = 0.0
        self._tokens = self._run(generation)

    def __repr__(self) -> str:
        return f"Stream({'ended' if self._generation is None else 'open'}, {self.result!r})"

    @property
    def more(self) -> bool:
        """Whether the next ``advance`` needs no forward pass."""
        generation = self._generation
        return generation is None or generation.ended or bool(generation.steps)

    def hold(self, held: bool) -> None:
        """Let the batch continue without this reply, or with it again."""
        if self._generation is not None:
            self._generation.held = held

    def __next__(self) -> Token:
        while (token := self.advance()) is None:
            pass
        return token

    def advance(self) -> Token | None:
        """Return the next token, or None if a position was decided and its text is held back.

        One call takes at most one forward pass of the target, so that a caller can take turns
        between several streams.

        Raises:
            StopIteration: the reply has ended.
        """
        # Only time in here counts: what the caller does between two tokens is not the reply's cost.
        self._advance_start = time.perf_counter()
        try:
            return next(self._tokens)
        finally:
            self.result.statistics.seconds += time.perf_counter() - self._advance_start

    def __iter__(self) -> Iterator[Token]:
        return self

    def close(self) -> None:
        """Stop decoding; ``result`` keeps what was decoded."""
        self._tokens.close()
        if self._generation is not None:  # closing a generator that has not begun runs none of it
            self._batch.remove(self._generation)
            self._generation = None

    def drain(self) -> GenerationResult:
        """Decode to the end and return the result."""
        for _ in self:
            pass
        return self.result

    def _run(self, generation: Generation) -> Generator[Token | None]:
        try:
            for step in self._steps:
                self._count(step)
                ended = step.token in self._end_tokens
                self._held.append(self._token(step, ended))
                if self._cut_at_stop() or ended:
                    generation.ended = True
                    self.result.finish_reason = "stop"
                    break
                settled = self._settled_count()
                yield from self._release(settled)
                if not settled:
                    yield None
            else:
                self.result.finish_reason = "length"
            self._flush_character()
            yield from self._release(len(self._held))
        finally:
            for _ in self._release(len(self._held)):
                pass  # the stream was closed early: the held tokens are part of the reply
            self._finish_statistics(generation)
            self._steps.close()  # leaves the batch, which would continue with this request
            self._generation = None  # free the caches: the result may be kept for long

    def _token(self, step: Step, ended: bool) -> Token:
        """Make the token of a step; it has no text if it ends the reply."""
        # Alternatives are spelled in the context before the token, so before it is pushed.
        alternatives = self._alternatives(step)
        return Token(
            id=step.token,
            text=self._detokenizer.push(step.token) if self._detokenizer and not ended else "",
            matched=step.matched,
            scheme=step.scheme,
            alpha=step.alpha,
            threshold=step.threshold,
            match_ratio=step.match_ratio,
            draft_probability=step.draft_probability,
            target_probability=step.target_probability,
            block=step.block,
            signal=step.signal,
            logprob=step.logprobs.chosen if step.logprobs else None,
            top_logprobs=alternatives,
        )

    def _alternatives(self, step: Step) -> tuple[Alternative, ...]:
        most_likely = step.logprobs.most_likely if step.logprobs else ()
        return tuple(self._alternative(token, logprob) for token, logprob in most_likely)

    def _alternative(self, token: int, logprob: float) -> Alternative:
        text = self._detokenizer.spell(token) if self._detokenizer else ""
        own = self._spell_bytes(token) if self._spell_bytes and _REPLACEMENT in text else None
        return Alternative(token, text, logprob, None if own is None else tuple(own))

    def _held_text(self) -> str:
        return "".join(token.text for token in self._held)

    def _cut_at_stop(self) -> bool:
        """Cut the held text where a stop string starts; return whether there is one."""
        start = find_stop(self._held_text(), self._stop)
        if start is None:
            return False
        for index, token in enumerate(self._held):
            self._held[index] = replace(token, text=token.text[:start])
            start = max(start - len(token.text), 0)
        return True

    def _settled_count(self) -> int:
        """Count the held tokens whose text no stop string or broken character can change."""
        settled = settled_length(self._held_text(), self._stop)
        ends = accumulate(len(token.text) for token in self._held)
        count = sum(end <= settled for end in ends)
        inside_character = self._detokenizer is not None and self._detokenizer.pending
        return min(count, len(self._held) - inside_character)

    def _flush_character(self) -> None:
        """Append a character that the reply ends inside, as a replacement character."""
        if self._held and self._detokenizer:
            last = self._held[-1]
            self._held[-1] = replace(last, text=last.text + self._detokenizer.flush())

    def _release(self, count: int) -> Iterator[Token]:
        """Move the first ``count`` held tokens into the result."""
        for _ in range(count):
            token = self._held.pop(0)
            self.result.trace.append(token)
            self.result.text += token.text
            yield token

    def _count(self, step: Step) -> None:
        statistics = self.result.statistics
        if not statistics.tokens:
            statistics.first_token_seconds = time.perf_counter() - self._advance_start
        statistics.tokens += 1
        statistics.matches += step.matched
        if isinstance(step.signal, bool):
            statistics.signals = (statistics.signals or 0) + step.signal
        elif isinstance(step.signal, float):
            statistics.risk = step.signal
        statistics.blocks = step.block + 1
        if step.match_ratio is not None:
            statistics.match_ratios.append(step.match_ratio)

    def _finish_statistics(self, generation: Generation) -> None:
        statistics = self.result.statistics
        target, draft = generation.target_passes, generation.draft_passes
        statistics.target_seconds, statistics.target_passes = target.seconds, target.passes
        statistics.target_rows = target.rows
        statistics.draft_seconds, statistics.draft_passes = draft.seconds, draft.passes
