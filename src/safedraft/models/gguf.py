"""The format of GGUF files: the fields of a file's header, and the numbers of a tensor.

The header is read here, since the readers of ``gguf`` and Transformers take ten seconds and more
for the vocabulary of one file.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from safedraft.core.errors import SafeDraftError

if TYPE_CHECKING:
    from numpy import ndarray

QUANTIZATIONS = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K",
    11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 30: "BF16",
}  # fmt: skip
"""The types of tensors that are read, by their number in a file."""

_DAMAGE = (EOFError, ArithmeticError, MemoryError, RecursionError, TypeError, UnicodeDecodeError)
"""Exceptions that a damaged header may raise."""

_FLOATS = {"F32": "float32", "F16": "float16"}
_VERSIONS = (2, 3)
_NUMBERS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_TEXT, _ARRAY = 8, 9


@dataclass(frozen=True)
class StoredTensor:
    """The position of a tensor in its file, and its type."""

    name: str
    shape: tuple[int, ...]
    """As torch has it: the last dimension is contiguous."""
    kind: int
    """One of the numbers of ``QUANTIZATIONS``."""
    start: int
    """Position of its first byte in the file."""
    size: int
    """In bytes."""


@dataclass(frozen=True)
class GgufHeader:
    """The header of a GGUF file; no weights are read."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]

    @property
    def architecture(self) -> str:
        """The name of the architecture."""
        return str(self.metadata.get("general.architecture"))

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the architecture, by their names without that of the architecture."""
        prefix = f"{self.architecture}."
        return {
            key.removeprefix(prefix): value
            for key, value in self.metadata.items()
            if key.startswith(prefix)
        }

    @property
    def dtype(self) -> str:
        """Name of torch's type for the weights: that of all matrices, bfloat16 if quantized."""
        kinds = {
            QUANTIZATIONS[tensor.kind] for tensor in self.tensors.values() if len(tensor.shape) > 1
        }
        return _FLOATS.get(kinds.pop(), "bfloat16") if len(kinds) == 1 else "bfloat16"

    def refusal(self, reason: str) -> SafeDraftError:
        """Return the error that says why the file is not used."""
        return SafeDraftError(f"{self.path}: {reason}")


def is_gguf(path: Path) -> bool:
    """Return whether a model's path names a GGUF file; other models are folders."""
    return path.suffix.lower() == ".gguf"


def read_header(file: Path) -> GgufHeader:
    """Read the header of a GGUF file.

    Raises:
        SafeDraftError: it is not a complete GGUF file, it is one part of several, or its weights
            are quantized in a way that is not read; or the package ``gguf`` is not installed.
    """
    if find_spec("gguf") is None:
        raise SafeDraftError(f"{file}: install the package gguf, which unpacks its weights")
    try:
        with file.open("rb") as content:
            metadata, tensors = _Reader(content).read()
        size = file.stat().st_size
    except _NotReadError as error:
        raise SafeDraftError(f"{file}: {error}") from error
    except OSError as error:
        raise SafeDraftError(f"{file} cannot be read: {error.strerror}") from error
    except _DAMAGE as error:
        raise _incomplete(file) from error
    if any(tensor.start + tensor.size > size for tensor in tensors):
        raise _incomplete(file)
    header = GgufHeader(file, metadata, {tensor.name: tensor for tensor in tensors})
    if metadata.get("split.count", 1) > 1:
        raise header.refusal(
            "one part of a model in several files: join them with llama.cpp's llama-gguf-split "
            "--merge"
        )
    return header


def read_tensor(header: GgufHeader, tensor: StoredTensor) -> ndarray:
    """Read the numbers of a tensor: float32 in its shape."""
    import numpy
    from gguf import GGMLQuantizationType, dequantize

    packed = numpy.memmap(
        header.path, mode="r", dtype=numpy.uint8, offset=tensor.start, shape=(tensor.size,)
    )
    kind = GGMLQuantizationType(tensor.kind)
    plain = {"F32": numpy.float32, "F16": numpy.float16}.get(kind.name)
    rows = packed.view(plain) if plain else packed.reshape(*tensor.shape[:-1], -1)
    numbers: ndarray = dequantize(rows, kind).reshape(tensor.shape)
    return numbers


class _NotReadError(Exception):
    """Why a file is not read."""


def _incomplete(file: Path) -> SafeDraftError:
    return SafeDraftError(f"{file}: an incomplete or damaged GGUF file: fetch it again")


class _Reader:
    """Reads the header of a file from its beginning to its end."""

    def __init__(self, content: BinaryIO) -> None:
        self._content = content

    def read(self) -> tuple[dict[str, Any], list[StoredTensor]]:
        if self._content.read(4) != b"GGUF":
            raise _NotReadError("not a GGUF file, although its name says so: fetch it again")
        version = self._number("I")
        if version not in _VERSIONS:
            raise _NotReadError(
                f"version {version} of the GGUF format is not read: convert the model again with "
                "a newer llama.cpp"
            )
        tensors, entries = self._number("Q"), self._number("Q")
        metadata = {self._text(): self._value(self._number("I")) for _ in range(entries)}
        stored = [self._tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", 32)
        data = -(-self._content.tell() // alignment) * alignment
        return metadata, [
            StoredTensor(name, shape, kind, data + offset, _count_bytes(kind, shape))
            for name, shape, kind, offset in stored
        ]

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self._text(), self._number("I")
        shape = tuple(reversed([self._number("Q") for _ in range(dimensions)]))
        kind, offset = self._number("I"), self._number("Q")
        if kind not in QUANTIZATIONS:
            raise _NotReadError(
                f"{name} is quantized as {_name_kind(kind)}, which is not read: take a file of "
                f"the types {', '.join(QUANTIZATIONS.values())}"
            )
        return name, shape, kind, offset

    def _value(self, kind: int) -> Any:
        if kind == _TEXT:
            return self._text()
        if kind == _ARRAY:
            inner, count = self._number("I"), self._number("Q")
            return [self._value(inner) for _ in range(count)]
        if kind not in _NUMBERS:
            raise EOFError
        return self._number(_NUMBERS[kind])

    def _number(self, code: str) -> Any:
        (number,) = struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))
        return number

    def _text(self) -> str:
        return self._take(self._number("Q")).decode()

    def _take(self, count: int) -> bytes:
        taken = self._content.read(count)
        if len(taken) != count:
            raise EOFError
        return taken


def _count_bytes(kind: int, shape: tuple[int, ...]) -> int:
    from gguf import GGML_QUANT_SIZES

    length, size = GGML_QUANT_SIZES[kind]
    return int(prod(shape) // length * size)


def _name_kind(kind: int) -> str:
    from gguf import GGMLQuantizationType

    return next((known.name for known in GGMLQuantizationType if known == kind), f"type {kind}")
