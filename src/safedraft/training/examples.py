"""Training examples: token ids and labels made from the training data, new ones every epoch.

Deep alignment (Qi et al., arXiv 2406.05946; ``docs/training.md``) teaches a refusal after the first
k tokens of a harmful answer, k = 0 half the time. Beyond the paper, *dense* labels ask for the
opening of a refusal at every position before it, so that the draft insists on a refusal at any
depth of a harmful answer. Harmless conversations have replies that begin in the same ways, whose
labels are the target's own words: that a reply has begun is no reason to refuse.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING

from safedraft.core.errors import SafeDraftError
from safedraft.text.encode import encode
from safedraft.text.messages import Message, with_system
from safedraft.training.requests import read_refusals, read_relapses

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from safedraft.training.config import TrainingConfig
    from safedraft.training.training_data import TargetReply, TrainingData


_RELAPSE_TOKENS = 32

_UNSPACED = ("zh", "ja")
"""Languages that write no spaces between words."""

_Refusal = tuple[list[int], list[int]]
"""Tokens of a refusal at the start of a text or after white space, and after other text."""


class LabelKind(IntEnum):
    """The behavior that a labeled position teaches."""

    REFUSAL = 0
    DENSE = 1
    """The opening of a refusal inside a harmful answer."""
    ANSWER = 2


@dataclass(frozen=True)
class Example:
    """A sequence of L tokens and the labels of its last N positions."""

    ids: list[int]
    labels: list[int]
    kinds: list[LabelKind]
    answered: int | None = None
    """Index of the answer in the training data; None for a refusal."""


class Examples:
    """Examples of the training data for one model, with its system prompt if it has one.

    Raises:
        SafeDraftError: the tokenizer's template never ends the assistant's turn with an end token.
    """

    def __init__(
        self,
        data: TrainingData,
        tokenizer: PreTrainedTokenizerBase,
        end_tokens: frozenset[int],
        config: TrainingConfig,
        system: str | None = None,
    ) -> None:
        self.data = data
        self._system = system
        self._tokenizer = tokenizer
        self._config = config
        self._end_token = _find_turn_end(tokenizer, end_tokens)
        self._refusals = {
            language: [
                self.spell(text, spaced=language not in _UNSPACED)
                for text in read_refusals(language)
            ]
            for language in {reply.request.language for reply in data.harmful}
        }

    @cached_property
    def answers(self) -> list[Example]:
        """One example for each answer in the training data, the same in every epoch."""
        return [self.make_answer(item, at) for at, item in enumerate(self.data.answered)]

    def epoch(self, number: int) -> list[Example]:
        """Return one pass over the harmful requests, mixed with ordinary answers."""
        rng = random.Random(f"epoch {number} of {self._config.seed}")
        examples = [self.make_harmful(item, rng) for item in self.data.harmful]
        share = self._config.harmful_share
        examples += _sample_evenly(self.answers, round(len(examples) * (1 - share) / share), rng)
        rng.shuffle(examples)
        return examples

    def make_harmful(self, item: TargetReply, rng: random.Random) -> Example:
        """Make a refusal after the conversation and k tokens of a harmful answer."""
        language = item.request.language
        tokens = self._encode(item.begun.opening + item.text)[: self._config.beginning_tokens]
        direct = rng.random() < self._config.direct_share
        count = 0 if direct else rng.randint(1, len(tokens))
        relapse: list[int] = []
        if language == "en" and rng.random() < self._config.relapse_share:
            relapse = [*self._encode(rng.choice(read_relapses())), *tokens[count:]][
                :_RELAPSE_TOKENS
            ]
        refusal = rng.choice(self._refusals[language])
        return self.make_refusal(item.messages, tokens[:count], refusal, relapse)

    def make_refusal(
        self,
        messages: Sequence[Message],
        said: Sequence[int],
        spellings: _Refusal,
        relapse: Sequence[int] = (),
    ) -> Example:
        """Make a refusal after ``said``, with dense labels inside ``said``.

        ``relapse`` is text that takes the refusal back; dense labels inside it ask for another one.
        """
        plain, spaced = spellings
        refusal = plain if self._needs_no_space(said) else spaced
        dense, again = (
            self._make_dense_labels(said, spellings),
            self._make_dense_labels([*relapse, self._end_token], spellings)[1:],
        )
        if not self._config.dense_weight:
            dense, again, relapse = [], [], []
        return Example(
            ids=[*self._encode_prompt(messages), *said, *refusal, *relapse],
            labels=[*dense, *refusal, self._end_token, *again],
            kinds=[LabelKind.DENSE] * len(dense)
            + [LabelKind.REFUSAL] * (len(refusal) + 1)
            + [LabelKind.DENSE] * len(again),
        )

    def _make_dense_labels(self, said: Sequence[int], spellings: _Refusal) -> list[int]:
        """Return the first token of a refusal at the position of each token of ``said``."""
        plain, spaced = spellings
        return [
            (plain if self._needs_no_space(said[:at]) else spaced)[0] for at in range(len(said))
        ]

    def make_answer(self, item: TargetReply, at: int | None = None) -> Example:
        """Make an example of the target's answer, with an end token only if the target ended it.

        The opening of the reply, which the target did not write, has no labels.
        """
        opening = self._encode(item.begun.opening)
        reply = self._encode(item.begun.opening + item.text)
        said = _count_common(opening, reply)
        answer = [*reply[said:], *([self._end_token] if item.ended else [])]
        return Example(
            ids=[*self._encode_prompt(item.messages), *reply[:said], *answer[:-1]],
            labels=answer,
            kinds=[LabelKind.ANSWER] * len(answer),
            answered=at,
        )

    def spell(self, refusal: str, *, spaced: bool = True) -> _Refusal:
        """Encode a refusal as it stands, and with a space before it where words have spaces."""
        return self._encode(refusal), self._encode(f" {refusal}" if spaced else refusal)

    def _encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        return encode(self._tokenizer, with_system(messages, self._system))

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _needs_no_space(self, said: Sequence[int]) -> bool:
        """Whether the next word needs no space: the text is empty or ends with white space."""
        text = str(self._tokenizer.decode(list(said)))
        return not text or text[-1].isspace()


@dataclass(frozen=True)
class BatchPosition:
    """The position of the next batch in the training run."""

    epoch: int = 0
    batch: int = 0


def iterate_batches(
    epoch: Callable[[int], list[Example]], tokens: int, start: BatchPosition = BatchPosition()
) -> Iterator[tuple[list[Example], BatchPosition]]:
    """Yield batches of at most ``tokens`` tokens without end, with the position of the next one."""
    number, skipped = start.epoch, start.batch
    while True:
        packed = pack(epoch(number), tokens)
        for at in range(skipped, len(packed)):
            after = (
                BatchPosition(number, at + 1) if at + 1 < len(packed) else BatchPosition(number + 1)
            )
            yield packed[at], after
        number, skipped = number + 1, 0


def pack(examples: Iterable[Example], tokens: int) -> list[list[Example]]:
    """Split examples in order into batches of at most ``tokens`` tokens or one example."""
    packed: list[list[Example]] = []
    room = 0
    for example in examples:
        if len(example.ids) > room:
            packed.append([])
            room = tokens
        packed[-1].append(example)
        room -= len(example.ids)
    return packed


def _count_common(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens at the beginning that two texts have in common."""
    differing = (at for at, (x, y) in enumerate(zip(one, other, strict=False)) if x != y)
    return next(differing, min(len(one), len(other)))


def _sample_evenly(examples: Sequence[Example], count: int, rng: random.Random) -> list[Example]:
    """Sample ``count`` examples, whose frequencies differ by at most one."""
    whole, rest = divmod(count, len(examples))
    return [*examples] * whole + rng.sample(list(examples), rest)


def _find_turn_end(tokenizer: PreTrainedTokenizerBase, end_tokens: frozenset[int]) -> int:
    """Find the end token with which the chat template closes the assistant's turn."""
    turn = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."}]
    rendered = tokenizer.apply_chat_template(turn, tokenize=False)
    ids: list[int] = tokenizer.encode(str(rendered), add_special_tokens=False)
    ends = [token for token in ids if token in end_tokens]
    if not ends:
        raise SafeDraftError(
            f"{tokenizer.name_or_path}: its chat template closes no turn with an end token"
        )
    return ends[-1]
