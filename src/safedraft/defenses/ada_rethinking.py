"""Any-Depth Alignment, rethinking form: while it answers, the target is made to begin again.

Zhang et al., arXiv 2510.18081, ADA (RK). At fixed depths of a reply the end of the turn and the
assistant's header are put after what has been said, and the target decodes a few tokens from there.
If they are a refusal, it replaces the rest of the reply; otherwise they are thrown away and the
reply continues as if there had been no check. The depths, the number of tokens and greedy checks
are those of the authors' code. A refusal is what this project's list of English phrases calls one;
the authors' lists are shorter, and chosen for each model by hand.

The authors' code keeps the cache of the reply for the check. Here each check reads the conversation
again, so that every engine can run it: passes are counted as the method needs them, seconds are an
upper bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

from safedraft.core.config import Constants, Positive, SamplingParams
from safedraft.defenses.base import add_cost, require_direct_answers
from safedraft.prompts.phrases import is_refusal
from safedraft.rules.target_only import TargetOnly
from safedraft.text.encode import turn_header
from safedraft.text.messages import Message, begun_text, conversation
from safedraft.text.results import GenerationResult, Statistics, join_statistics

if TYPE_CHECKING:
    from safedraft.pair import Pair, Prompts
    from safedraft.text.stream import Stream

SEPARATOR = "\n\n"
"""The text between the beginning of a reply and the refusal that ends it."""


class RethinkingConfig(Constants):
    """The constants of the rethinking form of Any-Depth Alignment."""

    check_interval: Positive = 25
    """Number of tokens of the reply from one check to the next."""

    check_tokens: Positive = 20
    """Maximum number of tokens that a check decodes before it is decided."""


@dataclass(frozen=True)
class AdaRethinking:
    """Checks after every ``check_interval`` tokens, and before the first one of a begun reply."""

    config: ClassVar[type[RethinkingConfig]] = RethinkingConfig

    def __call__(
        self, pair: Pair, messages: Sequence[Message], sampling: SamplingParams, config: Constants
    ) -> GenerationResult:
        """Return the target's reply, or its beginning and, after a blank line, a refusal.

        A reply is cut where the context has no room left for a check. A refusal may exceed
        ``max_new_tokens`` by less than ``check_tokens``. The statistics count the delivered tokens,
        and the passes and seconds of all checks.

        Raises:
            SafeDraftError: as ``Defense``, or the target thinks before it answers.
        """
        require_direct_answers(pair, "ada_rethinking")
        constants = config if isinstance(config, RethinkingConfig) else RethinkingConfig()
        messages = conversation(messages)
        assert pair.target.tokenizer is not None
        prompts, header = pair.prompts(messages), turn_header(pair.target.tokenizer)
        length = prompts.longest
        needed = length + len(header) + constants.check_tokens
        sampling = sampling.fitted(needed, pair.context_length)
        check = _Check(pair, prompts, header, sampling, constants.check_tokens)
        if begun_text(messages) and (refusal := check.run([])):
            seed = None if sampling.greedy else sampling.seed
            return _end(GenerationResult(statistics=Statistics(length, seed=seed)), refusal)
        before = sum(cost.seconds for cost in check.costs)
        stream = pair.stream(messages, sampling=sampling, rule=TargetOnly())
        refusal = _watch(stream, check, constants.check_interval, sampling.max_new_tokens)
        reply = _end(stream.result, refusal) if refusal else stream.result
        first = reply.statistics.first_token_seconds + before
        reply = add_cost(reply, *check.costs)
        return replace(reply, statistics=replace(reply.statistics, first_token_seconds=first))


ada_rethinking = AdaRethinking()


@dataclass(frozen=True)
class _Check:
    """Lets the target begin its reply to one request again."""

    pair: Pair
    prompts: Prompts
    header: Sequence[int]
    sampling: SamplingParams
    tokens: int
    costs: list[Statistics] = field(default_factory=list)
    """Statistics of the checks that found no refusal."""

    def run(self, said: Sequence[int]) -> GenerationResult | None:
        """Return the whole refusal with which the target begins again, or None.

        Args:
            said: tokens of the reply so far.
        """
        ids = [*self.prompts.target, *said, *self.header]
        one_prompt = self.prompts.target == self.prompts.draft
        draft = ids if one_prompt else [*self.prompts.draft, *said]  # which is never decoded from
        left = max(self.tokens, self.sampling.max_new_tokens - len(said))
        stream = self.pair.stream_ids(
            replace(self.prompts, target=ids, draft=draft),
            sampling=self.sampling.replace(temperature=0.0, max_new_tokens=left),
            rule=TargetOnly(),
        )
        try:
            for _ in islice(stream, self.tokens):
                pass
            decided = stream.result.statistics.seconds
            refuses = is_refusal(stream.result.text)
            if refuses:
                stream.drain()
        finally:
            stream.close()
        if not refuses:
            self.costs.append(stream.result.statistics)
            return None
        stream.result.statistics.first_token_seconds = decided
        return stream.result


def _watch(stream: Stream, check: _Check, interval: int, limit: int) -> GenerationResult | None:
    """Decode a reply to its end, or to the check that finds a refusal, which is returned."""
    reply = stream.result
    try:
        for _ in stream:
            said = [token.id for token in reply.trace]
            goes_on = reply.finish_reason == "interrupted" and len(said) < limit
            if not goes_on or len(said) % interval:
                continue
            stream.hold(True)  # so that a batch which it shares does not decode it meanwhile
            refusal = check.run(said)
            stream.hold(False)
            if refusal:
                return refusal
    finally:
        stream.close()
    return None


def _end(reply: GenerationResult, refusal: GenerationResult) -> GenerationResult:
    """Join what has been said of a reply and the refusal that ends it."""
    first, *others = refusal.trace
    statistics = join_statistics([reply.statistics, refusal.statistics])
    if not reply.trace:
        statistics.first_token_seconds = refusal.statistics.first_token_seconds
    return replace(
        refusal,
        text=reply.text + SEPARATOR + refusal.text,
        trace=[*reply.trace, replace(first, text=SEPARATOR + first.text), *others],
        statistics=statistics,
    )
