"""SafeDecoding: both models decide how a reply begins, the target alone the rest.

Xu et al., arXiv 2402.08983. The draft stands for the paper's expert. At the first m positions the
sample space is always the intersection, also where the target's best token is not in it, and the
composite is floored and renormalised over it. Nothing is drafted ahead: one token a pass.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from torch import Tensor

from safedraft.core.composite import composite
from safedraft.core.config import SamplingParams, Scheme, SSDConfig
from safedraft.core.decode import Step, decide, forward, take
from safedraft.core.sampling import Draws
from safedraft.core.session import Session
from safedraft.defenses.target_only import own_step

FIRST_TOKENS = 2
"""m: positions that the draft takes part in."""
COMMON_TOKENS = 5
"""c: size of the intersection."""
STRENGTH = 3.0
"""α: weight of the draft."""
FLOOR = 1e-8
"""Least score of a token of the sample space, before it is renormalised."""


def safedecoding(
    target: Session,
    draft: Session,
    target_prompt: Sequence[int],
    draft_prompt: Sequence[int],
    config: SSDConfig,
    sampling: SamplingParams,
    end_tokens: Collection[int] = (),
) -> Iterator[Step]:
    """As ``decode``; the constants are the paper's, not the configuration's."""
    draws = Draws(sampling.seed or 0)
    target_unseen, draft_unseen = list(target_prompt), list(draft_prompt)
    for position in range(sampling.max_new_tokens):
        p = forward(target, target_unseen, 1, sampling.temperature)[0]
        if position < FIRST_TOKENS:
            q = forward(draft, draft_unseen, 1, sampling.temperature)[0]
            step = first_step(p, q, sampling, draws, position)
        else:
            step = own_step(p, sampling, draws[position].propose, position)
        yield step
        if step.token in end_tokens:
            return
        target_unseen = draft_unseen = [step.token]


def first_step(p: Tensor, q: Tensor, sampling: SamplingParams, draws: Draws, position: int) -> Step:
    """One of the first positions, decided from P and q, each ``[V]``."""
    # κ as large as the vocabulary: where the models share no best token, P is no way out.
    space = SSDConfig(sample_space_size=COMMON_TOKENS, kappa=p.shape[-1])
    scores = composite(p, q, False, STRENGTH, space)
    floored = scores.clamp(min=FLOOR).where(scores.isfinite(), scores)
    drafted = take(q, sampling, draws[position].propose)
    token, matched = decide(floored, q, drafted, sampling, draws, position)
    return Step(
        token, matched, Scheme.INTERSECTION, STRENGTH, q[token].item(), p[token].item(), position
    )
