"""From what was drawn to tokens, labels and weights, drawn anew every epoch.

Deep alignment (Qi et al., arXiv 2406.05946; ``docs/training.md``): a refusal is learned after the
first k tokens of a harmful answer, k = 0 half the time. Beyond the paper, *dense* labels ask for
the opening of a refusal at every position before, so that the draft insists however far the target
has gone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING

from safedraft.core.errors import SafeDraftError
from safedraft.text.messages import encode, with_system
from safedraft.training.requests import framed, generic_beginnings, refusals, relapses

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from safedraft.training.config import TrainingConfig
    from safedraft.training.material import Answered, Harmful, Material


_RELAPSE_TOKENS = 32


class Lesson(IntEnum):
    """What a labelled position teaches."""

    REFUSAL = 0
    DENSE = 1
    """To break off inside a harmful answer."""
    ANSWER = 2


@dataclass(frozen=True)
class Example:
    """A sequence of L tokens, and what should follow each of its last N positions."""

    ids: list[int]
    labels: list[int]
    lessons: list[Lesson]
    answered: int | None = None
    """Which of the material's answers it is; None for a refusal."""


class Examples:
    """Makes examples of the material for one model, under its system prompt if it has one.

    Raises:
        SafeDraftError: the tokenizer's template never ends the assistant's turn with an end token.
    """

    def __init__(
        self,
        material: Material,
        tokenizer: PreTrainedTokenizerBase,
        end_tokens: frozenset[int],
        config: TrainingConfig,
        system: str | None = None,
    ) -> None:
        self.material = material
        self._system = system
        self._tokenizer = tokenizer
        self._config = config
        self._end = _turn_end(tokenizer, end_tokens)
        # At the start of a text or after white space, and after anything else.
        self._refusals = [(self._tokens(text), self._tokens(f" {text}")) for text in refusals()]

    @cached_property
    def answers(self) -> list[Example]:
        """An example for each of the material's answers: always the same."""
        return [self.answer(item, at) for at, item in enumerate(self.material.answered)]

    def epoch(self, number: int) -> list[Example]:
        """One pass over the harmful requests, mixed with ordinary answers by the set share."""
        rng = random.Random(f"epoch {number} of {self._config.seed}")
        examples = [self.harmful(item, rng) for item in self.material.harmful]
        share = self._config.harmful_share
        examples += _drawn(self.answers, round(len(examples) * (1 - share) / share), rng)
        rng.shuffle(examples)
        return examples

    def harmful(self, item: Harmful, rng: random.Random) -> Example:
        """A refusal after the request and k tokens of a harmful answer."""
        request, beginning = item.request.text, item.beginning
        if rng.random() < self._config.framed_share:
            request = framed(request, rng)
        if rng.random() < self._config.generic_share:
            beginning = rng.choice(generic_beginnings())
        tokens = self._tokens(beginning)[: self._config.beginning_tokens]
        direct = rng.random() < self._config.direct_share
        count = 0 if direct else rng.randint(1, len(tokens))
        relapse: list[int] = []
        if rng.random() < self._config.relapse_share:
            relapse = [*self._tokens(rng.choice(relapses())), *tokens[count:]][:_RELAPSE_TOKENS]
        return self.refusing(request, tokens[:count], rng.randrange(len(self._refusals)), relapse)

    def refusing(
        self, request: str, said: Sequence[int], which: int, relapse: Sequence[int] = ()
    ) -> Example:
        """Refusal number ``which`` after ``said``, with dense labels inside ``said``.

        They go on inside ``relapse``, with which the refusal is taken back: then it is due again.
        """
        plain, spaced = self._refusals[which]
        refusal = plain if self._fresh(said) else spaced
        dense, again = self._dense(said, which), self._dense([*relapse, self._end], which)[1:]
        if not self._config.dense_weight:
            dense, again, relapse = [], [], []
        return Example(
            ids=[*self._prompt(request), *said, *refusal, *relapse],
            labels=[*dense, *refusal, self._end, *again],
            lessons=[Lesson.DENSE] * len(dense)
            + [Lesson.REFUSAL] * (len(refusal) + 1)
            + [Lesson.DENSE] * len(again),
        )

    def _dense(self, said: Sequence[int], which: int) -> list[int]:
        """What a refusal would begin with before each token of ``said``."""
        plain, spaced = self._refusals[which]
        return [(plain if self._fresh(said[:at]) else spaced)[0] for at in range(len(said))]

    def answer(self, item: Answered, at: int | None = None) -> Example:
        """The target's own answer; its end is learned only if the target ended it."""
        prompt = self._prompt(item.prompt)
        answer = [*self._tokens(item.answer), *([self._end] if item.ended else [])]
        return Example(
            ids=[*prompt, *answer[:-1]],
            labels=answer,
            lessons=[Lesson.ANSWER] * len(answer),
            answered=at,
        )

    def _prompt(self, text: str) -> list[int]:
        return encode(
            self._tokenizer, with_system([{"role": "user", "content": text}], self._system)
        )

    def _tokens(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _fresh(self, said: Sequence[int]) -> bool:
        """Whether a word may begin without a space: nothing was said yet, or white space last."""
        text = str(self._tokenizer.decode(list(said)))
        return not text or text[-1].isspace()


@dataclass(frozen=True)
class Place:
    """Which batch comes next."""

    epoch: int = 0
    batch: int = 0


def batches(
    epoch: Callable[[int], list[Example]], tokens: int, start: Place = Place()
) -> Iterator[tuple[list[Example], Place]]:
    """Batches of at most ``tokens`` tokens, for ever, each with the place of the one after it."""
    number, skipped = start.epoch, start.batch
    while True:
        packed = pack(epoch(number), tokens)
        for at in range(skipped, len(packed)):
            after = Place(number, at + 1) if at + 1 < len(packed) else Place(number + 1)
            yield packed[at], after
        number, skipped = number + 1, 0


def pack(examples: Iterable[Example], tokens: int) -> list[list[Example]]:
    """Examples in their order, as many a batch as ``tokens`` has room for, one at the least."""
    packed: list[list[Example]] = []
    room = 0
    for example in examples:
        if len(example.ids) > room:
            packed.append([])
            room = tokens
        packed[-1].append(example)
        room -= len(example.ids)
    return packed


def _drawn(examples: Sequence[Example], count: int, rng: random.Random) -> list[Example]:
    """``count`` of the examples, each as often as any other or once more."""
    whole, rest = divmod(count, len(examples))
    return [*examples] * whole + rng.sample(list(examples), rest)


def _turn_end(tokenizer: PreTrainedTokenizerBase, end_tokens: frozenset[int]) -> int:
    """The end token with which the chat template closes what the assistant says."""
    turn = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."}]
    rendered = tokenizer.apply_chat_template(turn, tokenize=False)
    ids: list[int] = tokenizer.encode(str(rendered), add_special_tokens=False)
    ends = [token for token in ids if token in end_tokens]
    if not ends:
        raise SafeDraftError(
            f"{tokenizer.name_or_path}: its chat template closes no turn with an end token"
        )
    return ends[-1]
