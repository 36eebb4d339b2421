"""What tells one model's weights from another's, in a fraction of a second."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from safedraft.core.errors import SafeDraftError, first_line

FACTS = "safedraft.json"
"""The file in an adapter's folder that holds ``AdapterFacts``."""

_SAMPLE = 64  # bytes, at the start and in the middle of each tensor
_DIGITS = 32


def fingerprint(folder: Path) -> str:
    """A fingerprint of the weights in a model's folder, from a sample of each tensor.

    Names, order and files of the tensors do not count: versions of the libraries differ in them,
    and in whether a weight that stands for two layers is written twice.

    Returns:
        32 hexadecimal digits.

    Raises:
        SafeDraftError: a file is not safetensors.
    """
    tensors: set[str] = set()
    for file in folder.glob("*.safetensors"):
        try:
            tensors |= set(_tensors(file))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SafeDraftError(f"{file} is not a file of safetensors: fetch it again") from error
    return hashlib.sha256("".join(sorted(tensors)).encode()).hexdigest()[:_DIGITS]


def _tensors(file: Path) -> Iterator[str]:
    """A digest of each tensor's type, shape and some of its bytes."""
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        header = json.loads(content.read(min(length, file.stat().st_size)))
        for name, tensor in header.items():
            if name == "__metadata__":
                continue
            digest = hashlib.sha256(json.dumps([tensor["dtype"], tensor["shape"]]).encode())
            start, end = tensor["data_offsets"]
            for at in (start, (start + end) // 2):
                content.seek(8 + length + at)
                digest.update(content.read(min(_SAMPLE, end - at)))
            yield digest.hexdigest()


class AdapterFacts(BaseModel):
    """What an adapter's folder says of the model it is for."""

    format: Literal[1] = 1
    base: str
    """Fingerprint of the model that it was trained on."""
    target: str
    """Fingerprint of the model whose answers it has learned."""
    versions: dict[str, str]
    """Of the libraries that made it."""


def require_base(adapter: Path, base: Path) -> None:
    """Refuse an adapter that says it was made for another model; one that says nothing is let by.

    Raises:
        SafeDraftError: it was, or what it says cannot be read.
    """
    file = adapter / FACTS
    if not file.exists():
        return
    try:
        facts = AdapterFacts.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise SafeDraftError(f"{file} cannot be read: {first_line(error)}") from error
    if facts.base != fingerprint(base):
        raise SafeDraftError(
            f"the adapter in {adapter} was made for another model than the one in {base}: choose "
            "the draft that it was trained on, or load without it (--no-adapter)"
        )
