"""The method written out naively: no caches, no blocks, no tensor tricks. The oracle of the tests.

Nothing here is shared with ``composite``, ``switch`` or ``decode``: two independent readings of the
specification have to agree token for token.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from safedraft.core.config import SamplingParams, Scheme, SSDConfig
from safedraft.core.random import Use, uniform

Model = Callable[[Sequence[int]], Tensor]
"""From the tokens so far to the logits ``[V]`` of the next."""


def composite_scores(
    p: Sequence[float], q: Sequence[float], scheme: str, alpha: float, config: SSDConfig
) -> dict[int, float]:
    """Compute F over the sample space by sets and sorting, as a score by token."""
    by_p = sorted(range(len(p)), key=lambda token: (-p[token], token))
    by_q = sorted(range(len(q)), key=lambda token: (-q[token], token))
    c = min(config.sample_space_size, len(p))
    if scheme == "union":
        space = set(by_p[:c]) | set(by_q[:c])
    else:
        k = next(k for k in range(1, len(p) + 1) if len(set(by_p[:k]) & set(by_q[:k])) >= c)
        if not set(by_p[: config.kappa]) & set(by_q[:k]):
            return dict(enumerate(p))
        space = set(by_p[:k]) & set(by_q[:k])
    return {token: p[token] + alpha * (q[token] - p[token]) for token in sorted(space)}


def composite_distribution(
    p: Sequence[float],
    q: Sequence[float],
    scheme: str,
    alpha: float,
    config: SSDConfig,
    sampling: SamplingParams,
) -> list[float]:
    """Compute F clipped at 0, cut by top-k, then top-p, then min-p, and normalized, ``[V]``."""
    scores = composite_scores(p, q, scheme, alpha, config)
    mass = {token: score for token, score in scores.items() if score > 0}
    if not mass:
        mass = {max(scores, key=lambda token: scores[token]): 1.0}
    ranked = sorted(mass, key=lambda token: (-mass[token], token))[: sampling.top_k or None]
    total = sum(mass[token] for token in ranked)
    kept, reached = [], 0.0
    for token in ranked:
        if sampling.top_p < 1 and reached >= sampling.top_p * total:
            break
        if mass[token] < sampling.min_p * mass[ranked[0]]:
            break
        kept.append(token)
        reached += mass[token]
    return [mass[token] / reached if token in kept else 0.0 for token in range(len(p))]


def shift(
    logits: Tensor, prompt: Sequence[int], reply: Sequence[int], sampling: SamplingParams
) -> Tensor:
    """Add the biases, and penalize the tokens of a target's prompt and of the reply after it."""
    values: list[float] = logits.float().tolist()
    for token, bias in sampling.logit_bias.items():
        values[token] += bias
    for token in {*prompt, *reply}:
        penalty = sampling.repetition_penalty
        values[token] *= penalty if values[token] < 0 else 1 / penalty
    for token in reply:
        values[token] -= sampling.frequency_penalty
    for token in set(reply):
        values[token] -= sampling.presence_penalty
    return torch.tensor(values)


def reference_decode(
    target: Model,
    draft: Model,
    target_prompt: Sequence[int],
    draft_prompt: Sequence[int],
    config: SSDConfig,
    sampling: SamplingParams,
    end_tokens: Collection[int] = (),
) -> Iterator[tuple[str, float, int, bool]]:
    """Decode token after token; yields scheme, strength, token, and whether it is a match."""
    output: list[int] = []
    log: list[bool] = []
    scheme, threshold, alpha = config.initial_scheme, config.threshold, config.alpha_intersection
    bins = 0
    seed = sampling.seed or 0
    for position in range(sampling.max_new_tokens):
        said = target_prompt, output, sampling
        p = _softmax(shift(target([*target_prompt, *output]), *said), sampling.temperature)
        q = _softmax(shift(draft([*draft_prompt, *output]), *said), sampling.temperature)
        strength = config.alpha_union if scheme == "union" else alpha
        if sampling.greedy:
            scores = composite_scores(p, q, scheme, strength, config)
            drafted = max(range(len(q)), key=lambda token: q[token])
            token = max(scores, key=lambda token: scores[token])
        else:
            f = composite_distribution(p, q, scheme, strength, config, sampling)
            drafted = token = _draw(q, uniform(seed, position, Use.PROPOSE))
            if uniform(seed, position, Use.ACCEPT) * q[drafted] >= f[drafted]:
                residual = [max(f[x] - q[x], 0.0) for x in range(len(q))]
                token = _draw(residual, uniform(seed, position, Use.CORRECT))
        matched = token == drafted
        yield scheme, strength, token, matched
        if token in end_tokens:
            return
        output.append(token)
        log.append(matched)
        if len(log) % config.bin_size == 0:
            beta = sum(log[-config.bin_size :]) / config.bin_size
            following = Scheme.UNION if beta < threshold else Scheme.INTERSECTION
            bins += 1
            if scheme == "union" and bins < config.union_bins:
                following = scheme
            if following == scheme:
                threshold = max(threshold - config.threshold_decay, 0.0)
                threshold = 0.0 if threshold <= 1e-10 else threshold
                if scheme == "intersection":
                    alpha = max(alpha - config.alpha_decay, config.alpha_min)
            else:
                threshold, alpha, bins = config.threshold, config.alpha_intersection, 0
            scheme = following


def _softmax(logits: Tensor, temperature: float) -> list[float]:
    logits = logits.float()
    tempered: list[float] = torch.softmax(logits / (temperature or 1.0), -1).tolist()
    plain: list[float] = torch.softmax(logits, -1).tolist()
    # Where a low temperature leaves zeros, ranks are those of the plain probabilities.
    return [value + 1e-20 * rest for value, rest in zip(tempered, plain, strict=True)]


def _draw(mass: Sequence[float], uniform: float) -> int:
    point, reached = uniform * sum(mass), 0.0
    for token, weight in enumerate(mass):
        reached += weight
        if point < reached:
            return token
    return max(token for token, weight in enumerate(mass) if weight > 0)
