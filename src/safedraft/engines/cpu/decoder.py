"""A packed decoder with caches per request, whose passes run together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from safedraft.core.errors import SafeDraftError
from safedraft.core.session import OpenNodes, Pass
from safedraft.engines.cpu.pack import Packed
from safedraft.engines.cpu.program import (
    LAYER,
    LINEAR,
    PASS,
    ROW,
    RUN,
    SCRATCH,
    SEQUENCE,
)
from safedraft.kernels.layout import GROUP, LANES, ROWS, round_up
from safedraft.kernels.openmp import run_in_threads

CHUNK = 128
"""Largest number of rows that are computed together, which bounds the memory of activations."""

_SEES_ALL = np.empty(0, np.int8)

_ROOM = 256
"""Tokens for which a new cache has room; it doubles when it is full."""


class CPUSession:
    """One sequence in one decoder; ``rewind`` shortens it.

    Args:
        decoder: the model.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.name = decoder.name
        self.decoder = decoder
        self.length = 0
        """Number of tokens in the cache, those of open nodes included."""
        self.open = OpenNodes()
        self.hidden = torch.empty(0, decoder.packed.architecture.hidden)
        """The last hidden states, normed, of the tokens that had logits in the last pass."""
        self.capacity = 0
        self.keys: NDArray[np.float32] = np.empty(0, np.float32)
        self.values: NDArray[np.float32] = np.empty(0, np.float32)

    def rewind(self, count: int) -> None:
        """Forget the last ``count`` tokens."""
        self.length -= count

    def keep(self, path: Sequence[int]) -> None:
        """Keep a path of the open nodes: its keys and values move together."""
        first = self.length - len(self.open)
        taken, places = first + np.array(path, int), first + np.arange(len(path))
        moved = taken != places
        taken, places = taken[moved], places[moved]
        if len(taken):
            blocks, lanes = np.divmod(taken, LANES)
            self.keys[:, :, places // LANES, :, places % LANES] = self.keys[:, :, blocks, :, lanes]
            self.values[:, :, :, places] = self.values[:, :, :, taken]
        self.length = first + len(path)
        self.open.clear()

    def reserve(self, length: int) -> None:
        """Make room for ``length`` tokens in all.

        Raises:
            SafeDraftError: the model has fewer positions.
        """
        model = self.decoder.packed.architecture
        if length > model.positions:
            raise SafeDraftError(
                f"{self.name} reads at most {model.positions} tokens, and {length} were given"
            )
        if length <= self.capacity:
            return
        capacity = max(_ROOM, 1 << (length - 1).bit_length())
        head = (model.layers, model.groups)
        keys = np.zeros((*head, capacity // LANES, model.head, LANES), np.float32)
        values = np.zeros((*head, model.width // LANES, capacity, LANES), np.float32)
        if self.capacity:
            keys[:, :, : self.capacity // LANES] = self.keys
            values[:, :, :, : self.capacity] = self.values
        self.keys, self.values, self.capacity = keys, values, capacity


class _Row(NamedTuple):
    token: int
    session: CPUSession
    place: int
    position: int
    mask: NDArray[np.int8]
    """Whether it sees each of the last places up to its own; all places before those are seen."""


class Decoder:
    """A packed model, ready to run.

    Args:
        name: its name in error messages.
        packed: its weights.
        vocabulary: V, the size of the shared vocabulary; further logits are not computed.
    """

    def __init__(self, name: str, packed: Packed, vocabulary: int) -> None:
        self.name, self.packed, self.vocabulary = name, packed, vocabulary
        model = packed.architecture
        self._linears = np.array(
            [
                (*(t.data_ptr() for t in linear[:3]), linear.inputs, linear.outputs, linear.bits)
                for linear in packed.linears
            ],
            LINEAR,
        )
        self._norms = np.zeros(model.layers, LAYER)
        for key, norm in packed.norms.items():
            if key != "final":
                layer, name = key.split(".")
                self._norms[name][int(layer)] = norm.data_ptr()
        self._angles = torch.empty(0, model.rotated)
        mixed = max((model.heads + 2 * model.groups) * model.head, packed.linears[2].outputs // 2)
        outputs = max(model.heads * model.width, model.hidden)
        widest = max(linear.inputs for linear in packed.linears)
        self._stride = round_up(widest, 64)
        self._residual = torch.empty(CHUNK, model.hidden)
        self._mixed = torch.empty(CHUNK, mixed)
        self._outputs = torch.empty(CHUNK, outputs)
        self._inputs = torch.zeros(CHUNK, self._stride, dtype=torch.int8)
        self._scales = torch.empty(CHUNK)
        self._parts = torch.empty(CHUNK, self._stride // GROUP, dtype=torch.int32)
        self._sums = torch.empty(CHUNK, dtype=torch.int32)
        self._scores = torch.empty(0)
        self._scratch = torch.empty(0, dtype=torch.int8)
        self._pass = self._constants()

    def _constants(self) -> NDArray[Any]:
        model = self.packed.architecture
        job = np.zeros(1, PASS)
        fields = {
            "layers": model.layers,
            "hidden": model.hidden,
            "heads": model.heads,
            "groups": model.groups,
            "head": model.head,
            "rotated": model.rotated,
            "width": model.width,
            "stride": self._stride,
            "normed": model.normed,
            "linears": self._linears.ctypes.data,
            "norms": self._norms.ctypes.data,
            "vocabulary": self.vocabulary,
            "final_norm": self.packed.norms["final"].data_ptr(),
            "residual": self._residual.data_ptr(),
            "mixed": self._mixed.data_ptr(),
            "outputs": self._outputs.data_ptr(),
            "inputs": self._inputs.data_ptr(),
            "scales": self._scales.data_ptr(),
            "sums": self._sums.data_ptr(),
            "parts": self._parts.data_ptr(),
            "scratch_size": SCRATCH,
            "epsilon": model.epsilon,
            "attention_scale": model.attention_scale,
            "residual_scale": model.residual_scale,
            "embedding_scale": model.embedding_scale,
        }
        for name, value in fields.items():
            job[name] = value
        return job

    def session(self) -> CPUSession:
        """Create an empty session."""
        return CPUSession(self)

    def forward(self, passes: Sequence[Pass]) -> list[Tensor]:
        """Append tokens to sessions; return logits ``[keep, V]`` in float32 for each pass.

        Raises:
            SafeDraftError: a text is longer than the model can read.
        """
        rows: list[_Row] = []
        kept: list[bool] = []
        for item in passes:
            rows += _rows(item)
            count = len(item.tokens)
            kept += [index >= count - item.keep for index in range(count)]
        logits, states = [], []
        for start in range(0, len(rows), CHUNK):
            wanted = [index for index, keep in enumerate(kept[start : start + CHUNK]) if keep]
            found = self._run(rows[start : start + CHUNK], wanted)
            logits.append(found[0])
            states.append(found[1])
        all_states = torch.cat(states)
        split = torch.split(torch.cat(logits), [item.keep for item in passes])
        first = 0
        for item in passes:
            session = _session(item)
            session.length += len(item.tokens)
            session.hidden = all_states[first : first + item.keep]
            first += item.keep
        return list(split)

    def _run(self, rows: Sequence[_Row], kept: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Run one chunk of rows; return logits and last hidden states of those that are kept."""
        model = self.packed.architecture
        sessions = list({id(row.session): row.session for row in rows}.values())
        number = {id(session): index for index, session in enumerate(sessions)}
        sequences = np.array(
            [(s.keys.ctypes.data, s.values.ctypes.data, s.capacity) for s in sessions], SEQUENCE
        )
        angles = self._find_angles(max(row.position for row in rows))
        records = np.array([self._record(row, number, angles) for row in rows], ROW)
        longest = round_up(int(records["length"].max()), LANES)
        threads = torch.get_num_threads()
        scores_size = 4 * longest * min(ROWS, model.heads // model.groups)
        if self._scores.numel() * 4 < scores_size * threads:
            self._scores = torch.empty(scores_size * threads // 2)
        if self._scratch.numel() < SCRATCH * threads:
            self._scratch = torch.empty(SCRATCH * threads, dtype=torch.int8)
        logits = torch.empty(len(kept), self.vocabulary)
        states = torch.empty(len(kept), model.hidden)
        wanted = np.array(kept, np.int64)
        job = self._pass.copy()
        for name, value in (
            ("rows", records.ctypes.data),
            ("count", len(rows)),
            ("sequences", sequences.ctypes.data),
            ("kept", wanted.ctypes.data),
            ("kept_count", len(kept)),
            ("states", states.data_ptr()),
            ("logits", logits.data_ptr()),
            ("scratch", self._scratch.data_ptr()),
            ("scores", self._scores.data_ptr()),
            ("scores_size", scores_size),
        ):
            job[name] = value
        run_in_threads(RUN, job.ctypes.data)
        return logits, states

    def _record(self, row: _Row, number: dict[int, int], angles: int) -> tuple[int, ...]:
        length = row.place + 1
        seen = length - len(row.mask)
        mask = row.mask.ctypes.data
        place = angles + 4 * self.packed.architecture.rotated * row.position
        return row.token, number[id(row.session)], row.place, length, seen, mask, place

    def _find_angles(self, position: int) -> int:
        """The address of cosines and sines by position, for at least this one."""
        if position >= len(self._angles):
            count = max(1024, 1 << position.bit_length())
            turns = torch.arange(count).float()[:, None] * self.packed.frequencies
            self._angles = torch.cat([turns.cos(), turns.sin()], dim=-1)
            self._angles *= self.packed.rotation_scale
        return self._angles.data_ptr()


def _session(item: Pass) -> CPUSession:
    assert isinstance(item.session, CPUSession)
    return item.session


def _rows(item: Pass) -> list[_Row]:
    session = _session(item)
    known = session.decoder.packed.linears[-2].outputs
    if not 0 <= min(item.tokens) <= max(item.tokens) < known:
        raise SafeDraftError(
            f"{session.name} was given token {max(item.tokens)}, and the model has {known}"
        )
    start, end = session.length, session.length + len(item.tokens)
    session.reserve(end)
    session.open.append(item.parents)
    first = end - len(session.open)
    rows = []
    for place, token in enumerate(item.tokens, start):
        path = session.open.paths[place - first] if place >= first else []
        position = first + len(path) - 1 if path else place
        rows.append(_Row(token, session, place, position, _mask(path)))
    return rows


def _mask(path: Sequence[int]) -> NDArray[np.int8]:
    """The nodes that the last node of a path sees, itself included; empty if it sees all."""
    if not path or len(path) == path[-1] + 1:
        return _SEES_ALL
    mask = np.zeros(path[-1] + 1, np.int8)
    mask[list(path)] = 1
    return mask
