"""One generation, as it was requested."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from safedraft.core.config import Constants, SamplingParams
from safedraft.core.constraint import Constraint
from safedraft.core.rule import NO_CONTEXT, Context, Rule, State
from safedraft.core.shifts import Shifts


@dataclass(frozen=True)
class Request:
    """The input of one decoding. It holds no state and can be decoded any number of times."""

    target_prompt: Sequence[int]
    draft_prompt: Sequence[int]
    rule: Rule
    config: Constants
    """The rule's constants, of the class ``rule.config``."""
    sampling: SamplingParams
    """The sampling parameters, with a seed unless decoding is greedy."""
    end_tokens: frozenset[int] = frozenset()
    """Tokens that end the reply; the reply includes them."""
    context: Context = NO_CONTEXT
    """The facts about the request that the rule may use besides its constants."""
    top_logprobs: int | None = None
    """Number of the most likely tokens that are reported with their log probabilities at each
    position, besides the chosen one; None reports none."""
    constrain: Callable[[State], Constraint] | None = None
    """Makes what restricts one reply, whose rule has that state; None allows every token."""

    def constraints(self, state: State) -> list[Constraint]:
        """Make what changes the logits of one reply, whose rule has that state, in order."""
        shifts = [Shifts(self.sampling, self.target_prompt)] if self.sampling.shifts else []
        return [*shifts, self.constrain(state)] if self.constrain else [*shifts]

    def ends(self, token: int, position: int) -> bool:
        """Whether the reply ends with ``token`` at ``position``, from 0."""
        return token in self.end_tokens or position + 1 >= self.sampling.max_new_tokens

    @property
    def seed(self) -> int:
        """The seed that reproduces the reply."""
        return self.sampling.seed or 0
