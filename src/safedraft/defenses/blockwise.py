"""Plain blocks: some drafts, one pass of the target, and a rule that decides each position.

What the decoders that SSD is compared with have in common. SSD's own loop differs in one thing: it
carries the distribution after a block that matched throughout over to the draft's next token. Here
that position is either the target's own (a bonus token, as everywhere but in SSD) or not asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence

from torch import Tensor

from safedraft.core.config import SamplingParams, Scheme, SSDConfig
from safedraft.core.decode import Decoder, Draft, Step, decide, forward, propose
from safedraft.core.sampling import Draws
from safedraft.core.session import Session
from safedraft.defenses.target_only import own_step


class Rule(ABC):
    """How the positions of one request are decided; it may keep a state."""

    scheme: Scheme | None = None
    """Of the position to come, as the trace reports it."""
    strength: float = 0.0
    """α of the position to come, as the trace reports it."""

    @abstractmethod
    def scores(self, p: Tensor, q: Tensor) -> Tensor:
        """What the token is taken from, ``[V]``: the argmax, or a draw from what is above 0."""

    def observe(self, p: Tensor, q: Tensor, matched: bool) -> None:
        """Told of every position that both models decided, in order."""
        return None


def blockwise(make_rule: Callable[[SSDConfig], Rule], *, bonus: bool) -> Decoder:
    """The decoder that verifies block after block with a fresh rule for every request.

    Args:
        make_rule: called once a request.
        bonus: whether the target alone decides the position after a block that matched throughout.
    """

    def decoder(
        target: Session,
        draft: Session,
        target_prompt: Sequence[int],
        draft_prompt: Sequence[int],
        config: SSDConfig,
        sampling: SamplingParams,
        end_tokens: Collection[int] = (),
    ) -> Iterator[Step]:
        rule, draws = make_rule(config), Draws(sampling.seed or 0)
        target_unseen, draft_unseen = list(target_prompt), list(draft_prompt)
        position = block = 0
        said: list[int] = []

        while (left := sampling.max_new_tokens - position) > 0:
            # 1. Propose.
            most = config.draft_length(len(said))
            drafts = propose(draft, draft_unseen, most, config, sampling, draws, position)

            # 2. Verify. The row after the last draft is asked for only where it is used.
            fed = [token for token, _ in drafts][: len(drafts) if bonus else -1]
            rows = forward(target, [*target_unseen, *fed], len(fed) + 1, sampling.temperature)

            # 3. Decide.
            said = []
            for p, proposal in zip(rows[:left], [*drafts, None], strict=False):
                if proposal is None:
                    step = own_step(p, sampling, draws[position].propose, block)
                else:
                    step = verify(rule, p, proposal, sampling, draws, position, block)
                yield step
                if step.token in end_tokens:
                    return
                said.append(step.token)
                position += 1
                if not step.matched:
                    break

            # 4. Commit, and take back what followed a draft that did not match.
            target.rewind(len(fed) + 1 - len(said))
            known = min(len(said), len(drafts)) - 1
            draft.rewind(len(drafts) - 1 - known)
            target_unseen, draft_unseen = said[-1:], said[known:]
            block += 1

    return decoder


def verify(
    rule: Rule,
    p: Tensor,
    proposal: Draft,
    sampling: SamplingParams,
    draws: Draws,
    position: int,
    block: int,
) -> Step:
    """Decide one drafted position by the rule, and let the rule know."""
    drafted, q = proposal
    scheme, strength = rule.scheme, rule.strength
    token, matched = decide(rule.scores(p, q), q, drafted, sampling, draws, position)
    rule.observe(p, q, matched)
    return Step(token, matched, scheme, strength, q[token].item(), p[token].item(), block)
