"""Files of risk probes: the draft's beside the adapter that it was trained with, and a target's."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from safedraft.core.errors import SafeDraftError, first_line
from safedraft.core.files import write_atomically
from safedraft.core.risk import RiskProbe
from safedraft.models.fetch import fetch_adapter
from safedraft.models.fingerprint import digest

if TYPE_CHECKING:
    from safedraft.models.description import ModelDescription

PROBE = "risk.safetensors"
"""The name of the file in an adapter's folder."""

TARGET_PROBE = "target_risk.safetensors"
"""The name of the file of a probe that reads a target."""

_FORMAT = "1"


def write_probe(adapter: Path, probe: RiskProbe) -> None:
    """Write a probe into the folder of the adapter whose states it reads."""
    _write(adapter / PROBE, probe, adapter=_digest_adapter(adapter))


def write_target_probe(folder: Path, probe: RiskProbe, identity: str) -> None:
    """Write a probe that reads a target; ``identity`` is the digest of the target's weights."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / TARGET_PROBE, probe, target=identity)


def _write(file: Path, probe: RiskProbe, **facts: str) -> None:
    import torch
    from safetensors.torch import save

    tensors = {"weight": probe.weight.float().contiguous(), "bias": torch.tensor([probe.bias])}
    write_atomically(file, save(tensors, {"format": _FORMAT, **facts}))


def reads_risk(adapter: str | None) -> bool:
    """Whether a pair with this adapter, if it has one, reads the risk of requests.

    Raises:
        SafeDraftError: the adapter cannot be had.
    """
    return adapter is not None and (fetch_adapter(adapter) / PROBE).exists()


def read_probe(adapter: Path, draft: ModelDescription) -> RiskProbe | None:
    """Read the probe of an adapter; None if it has none.

    Raises:
        SafeDraftError: the file cannot be read, or belongs to other weights.
    """
    file = adapter / PROBE
    if not file.exists():
        return None
    probe, facts = read_probe_file(file)
    if facts.get("adapter") != _digest_adapter(adapter):
        raise SafeDraftError(
            f"{file} was trained with another adapter than the one in its folder: train it again "
            f"(safedraft train-risk --adapter {adapter})"
        )
    width = draft.config.get_text_config().hidden_size
    if probe.weight.shape != (width,):
        read = len(probe.weight)
        raise SafeDraftError(f"{file} reads states of {read} numbers, the draft has {width}")
    return probe


@cache
def read_target_probe(folder: Path, name: str, identity: str) -> RiskProbe:
    """Read the probe of a target.

    Args:
        folder: where it is.
        name: the target's, for errors.
        identity: the digest of the target's weights.

    Raises:
        SafeDraftError: the file cannot be read, or belongs to other weights.
    """
    file = folder / TARGET_PROBE
    probe, facts = read_probe_file(file)
    if facts.get("target") != identity:
        raise SafeDraftError(
            f"{file} reads states of {len(probe.weight)} numbers of other weights than those of "
            f"{name}, or of other types: train it again (safedraft train-ada-probe)"
        )
    return probe


def read_probe_file(file: Path) -> tuple[RiskProbe, dict[str, str]]:
    """Read the file of a probe, and what it says of itself.

    Raises:
        SafeDraftError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as content:
            facts = content.metadata() or {}
            weight, bias = content.get_tensor("weight"), content.get_tensor("bias")
    except (OSError, SafetensorError) as error:
        raise SafeDraftError(f"{file} cannot be read: {first_line(error)}") from error
    if facts.get("format") != _FORMAT:
        raise SafeDraftError(f"{file} is not a risk probe of this version: train it again")
    return RiskProbe(weight.float(), float(bias)), facts


def _digest_adapter(adapter: Path) -> str:
    weights = sorted(adapter.glob("adapter_model*"))
    return digest(*(file.read_bytes() for file in weights), digits=32)
