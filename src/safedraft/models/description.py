"""Descriptions of models, read from their files; no weights are read and no code is run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from safedraft.core.errors import SafeDraftError, first_line
from safedraft.models.gguf import is_gguf, read_header

if TYPE_CHECKING:
    from transformers import (
        GenerationConfig,
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )


@dataclass(frozen=True)
class ModelDescription:
    """The facts in a model's configuration and tokenizer; no weights are needed."""

    name: str
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerBase | None
    generation: GenerationConfig | None
    kind: type[PreTrainedModel] | None = None
    """The class of the model if it is in memory; None: the class that loading would choose."""

    @property
    def rows(self) -> int:
        """Number of rows of the output layer: tokens and padding."""
        return int(self.config.get_text_config().vocab_size)

    @cached_property
    def tokens(self) -> dict[int, str]:
        """The token of every id that the tokenizer knows."""
        vocabulary = self.tokenizer.get_vocab() if self.tokenizer else {}
        return {id: token for token, id in vocabulary.items()}

    @property
    def end_tokens(self) -> frozenset[int]:
        """Ids that end a reply of this model."""
        configured = self.generation.eos_token_id if self.generation else None
        if configured is None:
            configured = getattr(self.config.get_text_config(), "eos_token_id", None)
        ids = {configured} if isinstance(configured, int) else set(configured or ())
        if self.tokenizer is not None and self.tokenizer.eos_token_id is not None:
            ids.add(self.tokenizer.eos_token_id)
        return frozenset(ids)

    @property
    def positions(self) -> int | None:
        """Number of positions that the configuration names, or None if it names none."""
        length = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return int(length) if length else None

    @property
    def context_length(self) -> int | None:
        """Number of positions that can be used, or None if the configuration names none.

        Where rotary factors change with the length of the text (LongRoPE, dynamic scaling), these
        are the positions before the change: keys in the cache have the factors of the length at
        which they were computed, so that tokens after it would depend on how blocks were cut.
        """
        positions = self.positions
        borders = [positions, *_rotary_borders(self.config.get_text_config())]
        return min((border for border in borders if border), default=None)


def read_description(folder: Path, name: str) -> ModelDescription:
    """Read the configuration and tokenizer of a model in a folder or a GGUF file.

    No weights are read and no code is run.

    Raises:
        SafeDraftError: the files cannot be read.
    """
    from transformers import AutoConfig, GenerationConfig

    if is_gguf(folder):
        return _read_gguf(folder, name)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        generation = None
        if (folder / "generation_config.json").exists():
            generation = GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # Transformers passes on any exception of its parsers.
        raise SafeDraftError(
            f"{folder}: config.json cannot be used: {first_line(error)}"
        ) from error
    if not _has_vocabulary(config):
        raise SafeDraftError(
            f"{folder}: {config.model_type} is not a language model: name one that continues text"
        )
    return ModelDescription(name, config, read_tokenizer(folder), generation)


def _read_gguf(file: Path, name: str) -> ModelDescription:
    from safedraft.models.gguf_model import read_config
    from safedraft.models.gguf_tokenizer import read_generation, read_tokenizer

    header = read_header(file)
    try:
        config, tokenizer = read_config(header), read_tokenizer(header)
        return ModelDescription(name, config, tokenizer, read_generation(header))
    except SafeDraftError:
        raise
    except Exception as error:  # Transformers passes on any exception of its parsers.
        raise header.refusal(f"it cannot be used: {first_line(error)}") from error


def _has_vocabulary(config: PreTrainedConfig) -> bool:
    try:
        return hasattr(config.get_text_config(), "vocab_size")
    except ValueError:  # one part reads text and another writes something
        return False


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """Read the tokenizer in a folder; None if the folder has none.

    Raises:
        SafeDraftError: the tokenizer's files cannot be read.
    """
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    if not any((folder / file).exists() for file in files):
        return None
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # Transformers passes on any exception of its parsers.
        package = _missing_package(folder)
        reason = f"install {package}, which reads its only file" if package else first_line(error)
        raise SafeDraftError(f"{folder}: the tokenizer cannot be read: {reason}") from error
    return tokenizer


def _missing_package(folder: Path) -> str | None:
    """Name the package that would read a lone ``tokenizer.model`` and is not installed, if so.

    Such a file is a SentencePiece model, a binary message, or a list of tokens for tiktoken.
    """
    file = folder / "tokenizer.model"
    if (folder / "tokenizer.json").exists() or not file.exists():
        return None
    with file.open("rb") as content:
        is_message = content.read(1) == b"\n"
    packages = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}
    if not is_message:
        packages = {"tiktoken": "tiktoken"}
    return next((name for name, module in packages.items() if not _is_installed(module)), None)


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is part of is missing
        return False


def _rotary_borders(config: PreTrainedConfig) -> list[int]:
    """List the lengths after which a model's rotary factors change."""
    parameters = getattr(config, "rope_parameters", None) or {}
    layers = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return [
        int(layer["original_max_position_embeddings"])
        for layer in layers
        if layer.get("rope_type") in ("longrope", "dynamic")
        and layer.get("original_max_position_embeddings")
    ]
