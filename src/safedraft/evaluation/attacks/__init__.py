"""Attacks, one file each: from a request to the conversation that a defense has to answer."""

from __future__ import annotations

from safedraft.evaluation.attacks.base import Attack, LeftOut
from safedraft.evaluation.attacks.direct import direct
from safedraft.evaluation.attacks.high_match import high_match
from safedraft.evaluation.attacks.late_harm import late_harm
from safedraft.evaluation.attacks.nested_fiction import nested_fiction
from safedraft.evaluation.attacks.prefill import Prefill
from safedraft.evaluation.attacks.suffix_search import SuffixSearch
from safedraft.evaluation.attacks.suffixes import suffixes
from safedraft.evaluation.attacks.templates import templates

__all__ = [
    "Attack",
    "LeftOut",
    "Prefill",
    "SuffixSearch",
    "direct",
    "high_match",
    "late_harm",
    "nested_fiction",
    "suffixes",
    "templates",
]
