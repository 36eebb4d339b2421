"""The numbers that decisions read, copied from the device at once for all positions of a step.

A position is decided from the best tokens of both models, a few dozen numbers. These are copied in
one piece; all logits of a position follow only where a decision needs more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from safedraft.core.rows import Place, Ranked, move


class BothPlaces(NamedTuple):
    """The places of both models at one position, on the device or on the host."""

    target: Place
    draft: Place


class _Whole:
    """All logits of both models at some positions, copied when a position is asked for."""

    def __init__(self, places: Sequence[BothPlaces]) -> None:
        self._places = places
        self._read: dict[int, Tensor] = {}

    @property
    def shape(self) -> tuple[int, int]:
        return len(self._places), self._places[0].target.ranked.logits.shape[-1]

    def __contains__(self, position: int) -> bool:
        return position in self._read

    def __getitem__(self, position: int) -> Tensor:
        """``[2, V]``: the target's and the draft's."""
        if position not in self._read:
            rows = [place.ranked.logits[place.row] for place in self._places[position]]
            self._read[position] = torch.stack(rows).cpu()
        return self._read[position]


class PartlyRead:
    """Logits of one model at n positions, of which only those of some tokens were read.

    Args:
        tokens: these tokens, ``[n, k]``.
        values: their logits, ``[n, k]``.
        whole: reads all logits of both models.
        side: which of the two this is.
    """

    device = torch.device("cpu")

    def __init__(self, tokens: Tensor, values: Tensor, whole: _Whole, side: int) -> None:
        self._tokens, self._values, self._whole, self._side = tokens, values, whole, side

    @property
    def shape(self) -> tuple[int, int]:
        """See ``core.rows.Logits``."""
        return self._whole.shape

    def __getitem__(self, key: Any) -> Tensor:
        """See ``core.rows.Logits``."""
        if isinstance(key, int):
            return self._whole[key][self._side]
        position, tokens = key
        if position not in self._whole:
            same = tokens[:, None] == self._tokens[position]
            if bool(same.any(-1).all()):
                return self._values[position, same.int().argmax(-1)]
        return self._whole[position][self._side, tokens]


def read_places(places: Sequence[BothPlaces], flags: Tensor) -> tuple[list[BothPlaces], list[bool]]:
    """Copy what decisions about some positions look at to the host, with one copy for all of them.

    Args:
        places: at least one, on the device.
        flags: truth values that are copied along, in any number.

    Returns:
        The places on the host, and the flags.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for at, (target, draft) in enumerate(places):
        groups.setdefault((id(target.ranked), id(draft.ranked)), []).append(at)
    order = [at for group in groups.values() for at in group]
    parts = [_gather([places[at] for at in group]).flatten() for group in groups.values()]
    numbers = torch.cat([*parts, flags.double()]).cpu()
    table = numbers[: len(numbers) - len(flags)].view(len(places), 2, -1)
    whole = _Whole([places[at] for at in order])
    sides = [_unpack(table[:, side], whole, side) for side in range(2)]
    rows = sorted(range(len(order)), key=order.__getitem__)
    read = [BothPlaces(*(Place(side, row) for side in sides)) for row in rows]
    return read, numbers[len(numbers) - len(flags) :].bool().tolist()


def _gather(places: Sequence[BothPlaces]) -> Tensor:
    """The numbers of positions that are in the same ``Ranked``, ``[len(places), 2, ...]``."""
    ranked = [place.ranked for place in places[0]]
    sides = zip(*places, strict=True)
    numbers = [torch.tensor([place.row for place in side]) for side in sides]
    rows = [move(at, ranked[0].tokens.device) for at in numbers]
    best = [one.tokens[at] for one, at in zip(ranked, rows, strict=True)]
    both = [torch.cat(best, dim=-1), torch.cat(best[::-1], dim=-1)]
    return torch.stack([_pack(*side) for side in zip(ranked, rows, both, strict=True)], dim=1)


_FIELDS = Ranked._fields[2:]  # one number for each position


def _pack(ranked: Ranked, rows: Tensor, tokens: Tensor) -> Tensor:
    """One side in float64, which has every id and every float32: tokens, logits, ``_FIELDS``."""
    fields = [getattr(ranked, name)[rows, None] for name in _FIELDS]
    columns = [tokens, ranked.logits[rows[:, None], tokens], *fields]
    return torch.cat([column.double() for column in columns], dim=-1)


def _unpack(table: Tensor, whole: _Whole, side: int) -> Ranked:
    size = (table.shape[-1] - len(_FIELDS)) // 2
    tokens, values = table[:, :size].long(), table[:, size : 2 * size].float()
    known, possible, *others = table[:, 2 * size :].unbind(-1)
    fields = [known.long(), possible.long(), *(column.float() for column in others)]
    return Ranked(PartlyRead(tokens, values, whole, side), tokens[:, : size // 2], *fields)
