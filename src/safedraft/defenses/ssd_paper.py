"""SSD with the constants that its paper publishes, whatever constants the pair has.

Wang, Zhu and Cheng, EMNLP 2025, arXiv 2508.17739. The defaults are the paper's constants for
Llama-2 chat models; each can be replaced, as in ``ssd_paper:alpha_intersection=0.45``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from safedraft.core.config import Constants, SamplingParams, SSDConfig
from safedraft.rules.ssd import SSD
from safedraft.text.messages import Message
from safedraft.text.results import GenerationResult

if TYPE_CHECKING:
    from safedraft.pair import Pair


class PaperConfig(SSDConfig):
    """The constants of SSD, which a pair's own constants do not replace."""


@dataclass(frozen=True)
class SSDPaper:
    """Decodes with SSD under the published constants."""

    config: ClassVar[type[PaperConfig]] = PaperConfig

    def __call__(
        self, pair: Pair, messages: Sequence[Message], sampling: SamplingParams, config: Constants
    ) -> GenerationResult:
        """Return the reply of the pair; only constants of the class ``PaperConfig`` are used."""
        published = config if isinstance(config, PaperConfig) else PaperConfig()
        return pair.generate(messages, sampling=sampling, config=published, rule=SSD())


ssd_paper = SSDPaper()
