"""Engines, which run the two models of a pair and decode requests with them."""

from __future__ import annotations

from safedraft.core.plugins import Registry
from safedraft.engines.base import EngineLoader

DEFAULT_ENGINE = "auto"
"""On processors the engine cpu for the models that it runs, and Transformers for all others."""

ENGINES: Registry[EngineLoader] = Registry("safedraft.engines", "engine")
"""Loaders of pairs by the engine's name; third parties add theirs by an entry point."""
