"""What SSD is compared with, one file each.

A decoder takes tokens from the two models; a defence answers a conversation with a pair, and may
rewrite, read or withhold text around a decoder.
"""

from __future__ import annotations

from safedraft.config import OF_SPEED, SSDConfig
from safedraft.decode import Decoder, decode
from safedraft.defences.base import Asking, Defence, decoded, passed_on
from safedraft.defences.ensemble_weight import ensemble_weight
from safedraft.defences.in_context import in_context
from safedraft.defences.paraphrase import paraphrase
from safedraft.defences.perplexity_filter import PerplexityFilter, perplexity_filter
from safedraft.defences.risk_switch import risk_switch, ssd_risk
from safedraft.defences.safedecoding import safedecoding
from safedraft.defences.self_examination import self_examination
from safedraft.defences.self_reminder import self_reminder
from safedraft.defences.speculative import speculative
from safedraft.defences.target_only import target_only

DECODERS: dict[str, Decoder] = {
    "target_only": target_only,
    "speculative": speculative,
    "ensemble_weight": ensemble_weight(),
    "safedecoding": safedecoding,
    "ssd": decode,
}
"""Every way to take tokens from the two models that needs nothing but them, by name."""

ASKING: dict[str, Asking] = {
    "target_only": passed_on,
    "self_reminder": self_reminder,
    "in_context": in_context,
    "self_examination": self_examination,
    "paraphrase": paraphrase,
}
"""Those that ask the target alone, whose replies can be drawn many at a time, by name."""

DEFENCES: dict[str, Defence] = {
    **{name: decoded(decoder) for name, decoder in DECODERS.items()},
    "ssd_risk": ssd_risk,
    **ASKING,
    "perplexity_filter": perplexity_filter,
}
"""Every way to answer a conversation, by name."""

CONSTANTS: dict[str, frozenset[str]] = {
    "ssd": frozenset(SSDConfig.model_fields),
    "ssd_risk": OF_SPEED
    | {"sample_space_size", "kappa", "alpha_intersection", "alpha_union"}
    | {"bin_size", "initial_scheme", "prefill_scheme"},
    "speculative": OF_SPEED,
    "ensemble_weight": OF_SPEED,
}
"""The constants of the method that a defence uses, by its name; all others use none."""

__all__ = [
    "ASKING",
    "CONSTANTS",
    "DECODERS",
    "DEFENCES",
    "Decoder",
    "Defence",
    "PerplexityFilter",
    "decoded",
    "ensemble_weight",
    "risk_switch",
    "safedecoding",
    "speculative",
    "target_only",
]
