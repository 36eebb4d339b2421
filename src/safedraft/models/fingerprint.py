"""Fingerprints: of any content, and of a model's weights in a fraction of a second."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from pydantic import BaseModel, ValidationError

from safedraft.core.errors import SafeDraftError, first_line
from safedraft.models.gguf import is_gguf, read_header

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FACTS = "safedraft.json"
"""The file in an adapter's folder that holds ``AdapterFacts``."""

_SAMPLE = 64
"""Bytes that are read at the start and in the middle of each tensor."""
_DIGITS = 32


def digest(*parts: str | bytes, digits: int = 64) -> str:
    """Return the first hexadecimal digits of the SHA-256 of all parts in a row, text as UTF-8."""
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(part.encode() if isinstance(part, str) else part)
    return sha256.hexdigest()[:digits]


def fingerprint(folder: Path) -> str:
    """Return a fingerprint of the weights in a model's folder or GGUF file.

    It is made from a sample of each tensor. The names, order and files of the tensors do not
    count: versions of the libraries differ in these, and in whether a weight that two layers share
    is written twice.

    Returns:
        32 hexadecimal digits.

    Raises:
        SafeDraftError: a file is neither safetensors nor GGUF.
    """
    if is_gguf(folder):
        return digest(*sorted(set(_gguf_tensors(folder))), digits=_DIGITS)
    tensors: set[str] = set()
    for file in folder.glob("*.safetensors"):
        try:
            tensors |= set(_tensors(file))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SafeDraftError(f"{file} is not a file of safetensors: fetch it again") from error
    return digest(*sorted(tensors), digits=_DIGITS)


def has_weights(model: Path) -> bool:
    """Whether a model's folder has its weights, and not its description alone; a file has."""
    return is_gguf(model) or any(model.glob("*.safetensors"))


def _tensors(file: Path) -> Iterator[str]:
    """Yield a digest of each tensor's type, shape and a sample of its bytes."""
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        header = json.loads(content.read(min(length, file.stat().st_size)))
        for name, tensor in header.items():
            if name == "__metadata__":
                continue
            start, end = (8 + length + at for at in tensor["data_offsets"])
            yield digest(
                json.dumps([tensor["dtype"], tensor["shape"]]), *_samples(content, start, end)
            )


def _gguf_tensors(file: Path) -> Iterator[str]:
    with file.open("rb") as content:
        for tensor in read_header(file).tensors.values():
            samples = _samples(content, tensor.start, tensor.start + tensor.size)
            yield digest(json.dumps([tensor.kind, tensor.shape]), *samples)


def _samples(content: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes at the start and in the middle of what lies between two positions."""
    for at in (start, (start + end) // 2):
        content.seek(at)
        yield content.read(min(_SAMPLE, end - at))


class AdapterFacts(BaseModel):
    """The facts in an adapter's folder about the models it was trained with."""

    format: Literal[1] = 1
    base: str
    """Fingerprint of the model that it was trained on."""
    target: str
    """Fingerprint of the model whose answers it has learned."""
    versions: dict[str, str]
    """Versions of the libraries that made it."""
    template: dict[str, bool | int | float | str] | None = None
    """Variables of the chat template that it was trained with; None if that was not noted."""
    template_from: Literal["own", "target", "draft"] | None = None
    """Whose chat template it was trained with."""
    template_digest: str | None = None
    """Digest of the draft's chat template with these variables."""
    architecture: str | None = None
    """``model_type`` of the draft; None if that was not noted."""
    tokenizer: str | None = None
    """Like ``tokenizer_digest``, of the draft; None if that was not noted."""


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase | None) -> str | None:
    """A digest of the tokens by id; None without a tokenizer."""
    if tokenizer is None:
        return None
    tokens = sorted((id, token) for token, id in tokenizer.get_vocab().items())
    return digest(json.dumps(tokens), digits=_DIGITS)


def read_facts(adapter: Path) -> AdapterFacts | None:
    """Read what an adapter's folder says about its training; None if it says nothing.

    Raises:
        SafeDraftError: its facts cannot be read.
    """
    file = adapter / FACTS
    if not file.exists():
        return None
    try:
        return AdapterFacts.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        raise SafeDraftError(f"{file} cannot be read: {first_line(error)}") from error


def require_base(adapter: Path, base: Path, *, other_base: bool = False) -> str | None:
    """Check that an adapter was trained on this base.

    Args:
        adapter: the adapter's folder.
        base: the draft's folder or GGUF file.
        other_base: accept other weights, with a warning.

    Returns:
        The warning, if the weights are others, or if the adapter does not name its own.

    Raises:
        SafeDraftError: it was trained on other weights, or its facts cannot be read.
    """
    facts = read_facts(adapter)
    if facts is None:
        return (
            f"the adapter in {adapter} does not say which weights it was trained on (it has no "
            f"{FACTS}): that this draft refuses was never tested; check it with safedraft eval"
        )
    if facts.base == fingerprint(base):
        return None
    if other_base:
        return (
            f"the adapter in {adapter} was trained on other weights than those in {base}: that "
            "this draft refuses was never tested; check it with safedraft eval"
        )
    raise SafeDraftError(
        f"the adapter in {adapter} was trained on other weights than those in {base}: choose the "
        "draft that it was trained on, load without it (--no-adapter), or accept other weights of "
        "the same architecture (--other-base, other_base=True)"
    )
