"""What SSD is compared with, one file each.

A decoder takes tokens from the two models; a defense answers a conversation with a pair, and may
rewrite, read or withhold text around a decoder.
"""

from __future__ import annotations

from safedraft.core.config import OF_SPEED, SSDConfig
from safedraft.core.decode import Decoder, decode
from safedraft.defenses.base import Asking, Defense, decoded, passed_on
from safedraft.defenses.ensemble_weight import ensemble_weight
from safedraft.defenses.in_context import in_context
from safedraft.defenses.paraphrase import paraphrase
from safedraft.defenses.perplexity_filter import PerplexityFilter, perplexity_filter
from safedraft.defenses.risk_switch import risk_switch, ssd_risk
from safedraft.defenses.safedecoding import safedecoding
from safedraft.defenses.self_examination import self_examination
from safedraft.defenses.self_reminder import self_reminder
from safedraft.defenses.speculative import speculative
from safedraft.defenses.target_only import target_only

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

DEFENSES: dict[str, Defense] = {
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
"""The constants of the method that a defense uses, by its name; all others use none."""

__all__ = [
    "ASKING",
    "CONSTANTS",
    "DECODERS",
    "DEFENSES",
    "Decoder",
    "Defense",
    "PerplexityFilter",
    "decoded",
    "ensemble_weight",
    "risk_switch",
    "safedecoding",
    "speculative",
    "target_only",
]
