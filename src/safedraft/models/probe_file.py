"""Files of risk probes: the one beside an adapter, and the one that reads a target alone.

An adapter's file has two: one reads the draft with the adapter, for whatever target, and one reads
the draft and the target that the adapter was trained for.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from safedraft.core.errors import SafeDraftError, first_line
from safedraft.core.files import write_atomically
from safedraft.core.risk import HiddenLayer, RiskProbe
from safedraft.core.session import Which
from safedraft.models.fetch import fetch_adapter
from safedraft.models.fingerprint import digest, fingerprint, has_weights

if TYPE_CHECKING:
    from torch import Tensor

    from safedraft.models.description import ModelDescription

PROBE = "risk.safetensors"
"""The name of the file in an adapter's folder."""

TARGET_PROBE = "target_risk.safetensors"
"""The name of the file of a probe that reads a target."""

_FORMAT = "4"


class ProbeFile(NamedTuple):
    """The content of an adapter's probe file."""

    draft: RiskProbe
    """Reads the draft alone."""
    both: RiskProbe | None = None
    """Reads the draft and the target."""
    facts: Mapping[str, str] = MappingProxyType({})
    """Facts about the weights that the probes were trained with."""


def write_probe(adapter: Path, probes: ProbeFile) -> None:
    """Write probes into the folder of the adapter whose states they read."""
    facts = {**probes.facts, "adapter": _digest_adapter(adapter)}
    _write(adapter / PROBE, {"": probes.draft, "both.": probes.both}, facts)


def write_target_probe(folder: Path, probe: RiskProbe, identity: str) -> None:
    """Write a probe that reads a target; ``identity`` is the digest of the target's weights."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / TARGET_PROBE, {"": probe}, {"target": identity})


def _write(file: Path, probes: Mapping[str, RiskProbe | None], facts: Mapping[str, str]) -> None:
    import torch
    from safetensors.torch import save

    tensors = {}
    for name, probe in probes.items():
        if probe:
            tensors[f"{name}weight"] = probe.weight.float().contiguous()
            tensors[f"{name}bias"] = torch.tensor([probe.bias])
            tensors[f"{name}reads_text"] = torch.tensor([probe.reads_text])
            if probe.hidden:
                tensors[f"{name}hidden.weight"] = probe.hidden.weight.float().contiguous()
                tensors[f"{name}hidden.bias"] = probe.hidden.bias.float().contiguous()
    write_atomically(file, save(tensors, {"format": _FORMAT, **facts}))


def reads_risk(adapter: str | None) -> bool:
    """Whether a pair with this adapter, if it has one, reads the risk of requests.

    Raises:
        SafeDraftError: the adapter cannot be fetched.
    """
    return adapter is not None and (fetch_adapter(adapter) / PROBE).exists()


def read_probe(
    adapter: Path, draft: ModelDescription, target: Path
) -> tuple[RiskProbe | None, str | None]:
    """Read the probe of an adapter, if it has one.

    Args:
        adapter: its folder.
        draft: the draft.
        target: the target's folder or GGUF file; not compared if it has a description alone.

    Returns:
        The probe that reads both models if the target is the one that it was trained with, or else
        the one that reads the draft alone; and a warning if that one stands in for the other.

    Raises:
        SafeDraftError: the file cannot be read, or belongs to another adapter.
    """
    file = adapter / PROBE
    if not file.exists():
        return None, None
    probe, both, facts = read_probe_file(file)
    if facts.get("adapter") != _digest_adapter(adapter):
        raise SafeDraftError(
            f"{file} was trained with another adapter than the one in its folder: train it again "
            f"(safedraft train-risk --adapter {adapter})"
        )
    width = draft.config.get_text_config().hidden_size * (1 + probe.reads_text)
    if probe.width != width:
        raise SafeDraftError(f"{file} reads states of {probe.width} numbers, the draft has {width}")
    if both is None:
        return probe, None
    if not has_weights(target) or facts.get("target") == fingerprint(target):
        return both, None
    return probe, (
        f"the risk of requests is read from {draft.name} alone, which tells harmful requests less "
        "well: the probe that reads both models was trained with another target (safedraft "
        "train-risk)"
    )


@cache
def read_target_probe(folder: Path, name: str, identity: str) -> RiskProbe:
    """Read the probe of a target.

    Args:
        folder: folder of the probe.
        name: name of the target, for errors.
        identity: the digest of the target's weights.

    Raises:
        SafeDraftError: the file cannot be read, or belongs to other weights.
    """
    file = folder / TARGET_PROBE
    tensors, facts = _read(file)
    probe = _probe(file, tensors, "", ("target",))
    if facts.get("target") != identity:
        raise SafeDraftError(
            f"{file} reads states of {probe.width} numbers of other weights than those of "
            f"{name}, or of other types: train it again (safedraft train-ada-probe)"
        )
    return probe


def read_probe_file(file: Path) -> ProbeFile:
    """Read the file of an adapter's probes.

    Raises:
        SafeDraftError: it cannot be read.
    """
    tensors, facts = _read(file)
    both = "both.weight" in tensors
    return ProbeFile(
        _probe(file, tensors, "", ("draft",)),
        _probe(file, tensors, "both.", ("draft", "target")) if both else None,
        facts,
    )


def _read(file: Path) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """The tensors of a file of probes, and what it says of the weights that they read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as content:
            facts = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise SafeDraftError(f"{file} cannot be read: {first_line(error)}") from error
    if facts.get("format") != _FORMAT:
        raise SafeDraftError(f"{file} is not a risk probe of this version: train it again")
    return tensors, facts


def _probe(
    file: Path, tensors: Mapping[str, Tensor], name: str, reads: tuple[Which, ...]
) -> RiskProbe:
    own = {
        key.removeprefix(name): tensor.float()
        for key, tensor in tensors.items()
        if key.startswith(name)
    }
    try:
        weight, bias, hidden = own["weight"], own["bias"], None
        reads_text = bool(own["reads_text"].any())
        if "hidden.weight" in own or "hidden.bias" in own:
            hidden = HiddenLayer(own["hidden.weight"], own["hidden.bias"])
    except KeyError as error:
        raise SafeDraftError(f"{file} cannot be read: it has no {name}{error.args[0]}") from error
    if weight.ndim != 1 or bias.shape != (1,) or (hidden and not _fits(hidden, len(weight))):
        raise SafeDraftError(f"{file} cannot be read: the shapes of its tensors do not fit")
    return RiskProbe(weight, float(bias), reads, hidden, reads_text)


def _fits(hidden: HiddenLayer, units: int) -> bool:
    weight, bias = hidden
    return weight.ndim == 2 and weight.shape[:1] == bias.shape == (units,)


def _digest_adapter(adapter: Path) -> str:
    weights = sorted(adapter.glob("adapter_model*"))
    return digest(*(file.read_bytes() for file in weights), digits=32)
