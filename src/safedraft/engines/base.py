"""The interface of an engine, with its capabilities and the errors for those it lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

from safedraft.core.config import SSDConfig
from safedraft.core.errors import SafeDraftError
from safedraft.core.generation import RequestBatch
from safedraft.core.risk import RiskProbe
from safedraft.models.progress import ReportProgress
from safedraft.models.registry import PairSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Capability(StrEnum):
    """Features that only some engines have."""

    SESSIONS = "sessions"
    """Run one model alone on a text (``session`` and ``forward``)."""
    MODELS = "models"
    """Give access to the models themselves, as Transformers has them in this process."""
    TWO_PROMPTS = "two prompts"
    """Give target and draft prompts of their own."""
    LOG_PROBABILITIES = "log probabilities"
    """Report log probabilities of the composite."""
    DRAFTING_PER_REQUEST = "drafting per request"
    """Let a request set how many tokens are drafted."""
    GRAMMARS = "grammars"
    """Keep a reply to a form (``structured_outputs``)."""
    MIN_P = "min-p"
    """Cut the composite by ``min_p``."""
    LOGIT_BIAS = "logit bias"
    """Add ``logit_bias`` to the logits of both models."""
    TREES = "trees"
    """Draft a tree of several continuations (``draft_tree``, ``draft_tree_threshold``)."""
    TOGETHER = "passes together"
    """Run the passes of several requests in hardly more time than that of one."""


@dataclass(frozen=True)
class Capabilities:
    """Everything of ``Capability``, except what is missing."""

    missing: Mapping[Capability, str] = field(default_factory=dict)
    """Features that the engine lacks, each with the reason and an alternative."""

    def __contains__(self, capability: Capability) -> bool:
        return capability not in self.missing

    def require(self, capability: Capability, purpose: str) -> None:
        """Check that the engine has a capability.

        Args:
            capability: the capability that is needed.
            purpose: the subject of the error, such as the parameter that needs it.

        Raises:
            SafeDraftError: the engine does not have it; the message says why.
        """
        if reason := self.missing.get(capability):
            raise SafeDraftError(f"{purpose}: {reason}", refused=purpose)


class Engine(Protocol):
    """Two models that decode requests together."""

    @property
    def name(self) -> str:
        """Name of the engine, as in ``--engine``."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """The features of the engine besides decoding."""
        ...

    def batch(self) -> RequestBatch:
        """Create an empty batch of requests."""
        ...

    def close(self) -> None:
        """Release what the engine holds outside of this process or on a device."""
        ...


@dataclass(frozen=True)
class LoadedModel:
    """One model of a pair."""

    name: str
    weights: PreTrainedModel | None
    """None where the engine keeps its models to itself."""
    tokenizer: PreTrainedTokenizerBase | None
    """None for a model that decodes token ids only."""
    system: str | None = None
    """A system prompt of its own, which the other model does not see."""
    token_ids: int | None = None
    """Number of token ids that it can read, if the engine gives no access to its weights."""
    identity: str | None = None
    """Digest of its weights, if the engine gives no access to them."""

    @property
    def model(self) -> PreTrainedModel:
        """The model as Transformers has it.

        Raises:
            SafeDraftError: the engine gives no access to it.
        """
        if self.weights is None:
            raise SafeDraftError(
                f"{self.name}: its engine gives no access to the model: use --engine transformers"
            )
        return self.weights

    @property
    def embedded_ids(self) -> int | None:
        """Number of token ids that the model can read; None if its engine does not say."""
        if self.weights is None:
            return self.token_ids
        return int(self.weights.get_input_embeddings().num_embeddings)


@dataclass(frozen=True)
class LoadedPair:
    """The result of an engine's loader: the engine and the facts of its models."""

    engine: Engine
    target: LoadedModel
    draft: LoadedModel
    vocabulary: int
    """V: ids below it are shared."""
    context_length: int
    """Maximum number of tokens of a prompt and its reply, in the model with the shorter context."""
    end_tokens: frozenset[int]
    config: SSDConfig
    spec: PairSpec | None = field(default=None, kw_only=True)
    """The parts that it was loaded from, if any, with the adapter's settings of chat templates."""
    notes: tuple[str, ...] = field(default=(), kw_only=True)
    """Reasons why replies may be less safe than expected, found while loading."""
    probe: RiskProbe | None = field(default=None, kw_only=True)
    """The probe that reads the risk of a request; None if the adapter has none."""


class EngineLoader(Protocol):
    """The function that an entry point of the group ``safedraft.engines`` names."""

    def __call__(
        self, spec: PairSpec, config: SSDConfig | None, report: ReportProgress, **options: Any
    ) -> LoadedPair:
        """Load a pair; ``options`` are the engine's own.

        Raises:
            SafeDraftError: the pair cannot be loaded; the message says what to do, in one line.
        """
        ...
