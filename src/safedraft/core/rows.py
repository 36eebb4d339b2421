"""Both models' predictions at some positions: the best tokens of each, with both probabilities.

A sample space of SSD holds tokens that rank high in both models (Section 4.2), so a position is
decided from a few dozen numbers and not from the vocabulary. ``rank`` finds the best tokens of one
model once for every row of a pass; ``Rows`` brings two models together at the positions that are
decided. Ties are ordered by (logit, id) everywhere, so that no row depends on its neighbors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from safedraft.core.errors import BrokenModelError

WIDTH = 40
"""Number of best tokens of each model that are looked at first."""

_CHUNK = 64  # tokens whose maximum stands for them while the best are searched
_AT_ONCE = 64  # rows whose exponentials are held in memory at once


class Logits(Protocol):
    """Logits at n positions: a tensor ``[n, V]``, or the parts of one that an engine copies."""

    @property
    def shape(self) -> Sequence[int]:
        """``[n, V]``."""
        ...

    @property
    def device(self) -> torch.device:
        """The device of the logits that indexing returns."""
        ...

    def __getitem__(self, key: Any) -> Tensor:
        """The logits of a row, ``[V]``, or of some tokens of a row, ``[k]``."""
        ...


class Ranked(NamedTuple):
    """Logits of one model at n positions, with the best tokens of each."""

    logits: Logits
    """``[n, V]`` in float32, not tempered."""
    tokens: Tensor
    """``[n, K]``: the best tokens in the order of (logit, id)."""
    known: Tensor
    """``[n]``: number of certain ones among them. Tokens that tie with the last of the K are not
    certain, since others with the same logit may be missing."""
    possible: Tensor
    """``[n]``: number of possible tokens: those with a logit above -∞ if there are fewer of them
    than K, V otherwise."""
    temperatures: Tensor
    """``[n]``: divisor of the logits; 1 where decoding is greedy."""
    maxima: Tensor
    """``[n]``: the largest logit."""
    log_sums: Tensor
    """``[n]``: log Σ exp((logit - maximum) / temperature)."""

    def probability(self, row: int, tokens: Tensor) -> Tensor:
        """The tempered probability of ``tokens`` ``[k]`` at a position, ``[k]``."""
        logits = self.logits[row, tokens.to(self.logits.device)]
        return self._normalize(row, logits).cpu()

    def distribution(self, row: int) -> Tensor:
        """All tempered probabilities of a position, ``[V]``."""
        return self._normalize(row, self.logits[row]).cpu()

    def distributions(self, rows: Sequence[int]) -> Tensor:
        """All tempered probabilities of n positions, ``[n, V]``, on the logits' device."""
        at = move(torch.tensor(rows), self.logits.device)
        return self._normalize(at, self.logits[at])

    def best(self) -> Tensor:
        """The best token of each position, by (logit, id), ``[n]``, on the logits' device."""
        return _first(self.logits[:])

    def chances(self, tokens: Tensor) -> Tensor:
        """The tempered probability of one token per position, ``[n]``, on the logits' device."""
        rows = torch.arange(len(tokens), device=tokens.device)
        return self._normalize(rows, self.logits[rows, tokens][:, None])[:, 0]

    def entropy(self, row: int) -> float:
        """Entropy in nats at a position, at a temperature of 1 whatever that of the request is."""
        logs = self.logits[row].log_softmax(-1)
        return -float((logs.exp() * logs).nansum())  # 0 for a token that cannot come

    def detach(self, row: int) -> Ranked:
        """A copy of one row that keeps no other row in memory."""
        return Ranked(*(field[row : row + 1].clone() for field in self))

    def _normalize(self, rows: int | Tensor, logits: Tensor) -> Tensor:
        shifted = logits - self.maxima[rows, None]
        shifted /= self.temperatures[rows, None]
        shifted -= self.log_sums[rows, None]
        return shifted.exp_()


def rank(logits: Tensor, temperatures: Sequence[float], width: int = WIDTH) -> Ranked:
    """Find the best tokens of every row.

    Args:
        logits: ``[n, V]``; -∞ for a token that cannot come.
        temperatures: one for each row; 0 is greedy and leaves the logits as they are.
        width: K, the number of best tokens.
    """
    logits = logits.float()
    width = min(width, logits.shape[-1])
    values, tokens = _best(logits, width)
    order = tokens.argsort(-1)
    values, tokens = values.gather(-1, order), tokens.gather(-1, order)
    order = values.argsort(dim=-1, descending=True, stable=True)
    values, tokens = values.gather(-1, order), tokens.gather(-1, order)
    known = (values > values[:, -1:]).sum(-1)
    if width == logits.shape[-1]:
        known = torch.full_like(known, width)
    finite = (values > -torch.inf).sum(-1)
    known = torch.minimum(known, finite)
    possible = torch.where(finite < width, finite, logits.shape[-1])
    divisors = move(torch.tensor([t or 1.0 for t in temperatures]), logits.device)
    maxima = values[:, 0]
    plain = all(t in (0.0, 1.0) for t in temperatures)
    sums = _log_sums(logits, maxima, None if plain else divisors)
    return Ranked(logits, tokens, known, possible, divisors, maxima, sums)


def move(values: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device; on CUDA without waiting for what runs there."""
    return values.to(device, non_blocking=device.type == "cuda")


def wait_for(device: torch.device) -> None:
    """Wait until a device has done its work; a processor has none left when a call returns."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def require_finite(logits: Tensor, model: str) -> None:
    """Refuse logits from which no probabilities can be made.

    Args:
        logits: logits in any shape.
        model: name of the model, for the message.

    Raises:
        BrokenModelError: a logit is NaN or infinite.
    """
    # A sum is finite only if all of it is, and costs a tenth of looking at every number.
    if not logits.sum(dtype=torch.float32).isfinite():
        raise no_numbers(model)


def no_numbers(model: str) -> BrokenModelError:
    """The error about a model whose logits are not all finite; ``model`` is its name."""
    return BrokenModelError(
        f"{model} gave NaN or infinite logits; decoding stopped. "
        "Check its weights, or load it in another dtype."
    )


def _best(logits: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The ``width`` largest logits of each row and their ids, in any order.

    The maximum of every chunk of the vocabulary is taken first: the largest logits lie in the
    chunks with the largest maxima. That is five times as fast as ``topk`` over the vocabulary.
    """
    vocabulary = logits.shape[-1]
    if vocabulary <= 4 * width * _CHUNK:
        best = logits.topk(width)
        return best.values, best.indices
    whole = vocabulary - vocabulary % _CHUNK
    maxima = logits[:, :whole].reshape(len(logits), -1, _CHUNK).amax(-1)
    chunks = maxima.topk(width).indices
    inside = torch.arange(_CHUNK, device=logits.device)
    ids = (chunks[..., None] * _CHUNK + inside).flatten(-2)
    rest = torch.arange(whole, vocabulary, device=logits.device).expand(len(logits), -1)
    ids = torch.cat([ids, rest], dim=-1)
    best = logits.gather(-1, ids).topk(width)
    return best.values, ids.gather(-1, best.indices)


def _first(logits: Tensor) -> Tensor:
    """The lowest id of the largest logit of each row; chunks reduce the time to a fifth."""
    vocabulary = logits.shape[-1]
    whole = vocabulary - vocabulary % _CHUNK
    if not whole:
        return logits.argmax(-1)
    maxima = logits[:, :whole].reshape(len(logits), -1, _CHUNK).amax(-1)
    if whole < vocabulary:
        maxima = torch.cat([maxima, logits[:, whole:].amax(-1, keepdim=True)], dim=-1)
    start = _CHUNK * maxima.argmax(-1, keepdim=True)
    inside = start + torch.arange(_CHUNK, device=logits.device)
    inside = logits.gather(-1, inside.clamp(max=vocabulary - 1)).argmax(-1, keepdim=True)
    return (start + inside)[:, 0]


def _log_sums(logits: Tensor, maxima: Tensor, divisors: Tensor | None) -> Tensor:
    sums = []
    for start in range(0, len(logits), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        shifted = logits[rows] - maxima[rows, None]
        if divisors is not None:
            shifted /= divisors[rows, None]
        sums.append(shifted.exp_().sum(-1))
    return torch.cat(sums).log()


class Place(NamedTuple):
    """One position in one model's ``Ranked``."""

    ranked: Ranked
    row: int

    def best(self) -> int:
        """The most likely token, the one with the lowest id if there are several."""
        if int(self.ranked.known[self.row]):
            return int(self.ranked.tokens[self.row, 0])
        return int(self.ranked.logits[self.row].argmax())  # more tokens tie than were ranked

    def chance(self, token: int) -> float:
        """The tempered probability of one token."""
        return float(self.ranked.probability(self.row, torch.tensor([token]))[0])

    def distribution(self) -> Tensor:
        """All tempered probabilities, ``[V]``."""
        return self.ranked.distribution(self.row)


class Rows:
    """Target and draft at the n positions that are decided together, one of each request.

    Args:
        target: place of each position in the target's logits.
        draft: place of each position in the draft's logits.
        whole: whether a decision over the whole vocabulary needs every probability of a position,
            because it is sampled or because its log probabilities are reported.
    """

    def __init__(
        self, target: Sequence[Place], draft: Sequence[Place], whole: Sequence[bool] = ()
    ) -> None:
        self.places = tuple(target), tuple(draft)
        self.needs_whole = tuple(whole) or (False,) * len(self.places[0])
        self.target_tokens, self.draft_tokens = map(_tokens, self.places)
        """Best tokens of each model, ``[n, K]``, by (logit, id)."""
        self.known = torch.minimum(*map(_known, self.places))
        """Number of ranks that are certain in both models, ``[n]``."""
        self.possible = torch.minimum(*map(_possible, self.places))
        """Number of possible tokens, as far as the K best show, ``[n]``."""

    def __len__(self) -> int:
        return len(self.needs_whole)

    @property
    def vocabulary(self) -> int:
        """V, the size of the shared vocabulary."""
        return self.places[0][0].ranked.logits.shape[-1]

    @property
    def width(self) -> int:
        """K, the number of best tokens of each model."""
        return self.target_tokens.shape[-1]

    def probabilities(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """P and q of ``tokens`` ``[n, k]``, each ``[n, k]``."""
        target, draft = (
            torch.stack([p.ranked.probability(p.row, t) for p, t in zip(side, tokens, strict=True)])
            for side in self.places
        )
        return target, draft

    def distributions(self, row: int) -> tuple[Tensor, Tensor]:
        """P and q of one position over the whole vocabulary, each ``[V]``."""
        target, draft = (side[row].distribution() for side in self.places)
        return target, draft

    def entropies(self, row: int) -> tuple[float, float]:
        """Entropies of target and draft in nats at one position, at a temperature of 1."""
        target, draft = (side[row].ranked.entropy(side[row].row) for side in self.places)
        return target, draft

    def draft_ranks(self) -> Tensor:
        """The rank in the draft of each of the target's best tokens, ``[n, K]``; V if unseen."""
        if self.width**2 > self.vocabulary:  # a table of the vocabulary is the smaller one
            order = torch.arange(self.width).expand_as(self.draft_tokens)
            ranks = torch.full((len(self), self.vocabulary), self.vocabulary)
            return ranks.scatter_(-1, self.draft_tokens, order).gather(-1, self.target_tokens)
        same = self.target_tokens[:, :, None] == self.draft_tokens[:, None, :]
        return torch.where(same.any(-1), same.int().argmax(-1), self.vocabulary)

    def select(self, rows: Sequence[int]) -> Rows:
        """Some of the positions."""
        target, draft = ([side[row] for row in rows] for side in self.places)
        return Rows(target, draft, [self.needs_whole[row] for row in rows])

    def widen(self) -> Rows:
        """The same positions with twice as many best tokens, at most the vocabulary."""
        target, draft = (_widen(side, 2 * self.width) for side in self.places)
        return Rows(target, draft, self.needs_whole)


def _tokens(side: Sequence[Place]) -> Tensor:
    return torch.stack([place.ranked.tokens[place.row] for place in side]).cpu()


def _known(side: Sequence[Place]) -> Tensor:
    return torch.stack([place.ranked.known[place.row] for place in side]).cpu()


def _possible(side: Sequence[Place]) -> Tensor:
    return torch.stack([place.ranked.possible[place.row] for place in side]).cpu()


def _widen(side: Sequence[Place], width: int) -> list[Place]:
    """Rank one side anew; what was ranked is found once and not again for every row."""
    logits = torch.stack([place.ranked.logits[place.row] for place in side])
    divisors = [float(place.ranked.temperatures[place.row]) for place in side]
    ranked = rank(logits, divisors, width)
    return [Place(ranked, row) for row in range(len(side))]
