"""Any-Depth Alignment, probing form: a linear probe reads the target while it answers.

Zhang et al., arXiv 2510.18081, ADA (LP). Before a reply and at fixed depths of it the assistant's
header is put after what has been said, in the target's own cache, and a linear probe reads the
target's last hidden state there. Above a bound the reply ends with a refusal; otherwise the header
is taken back, and the reply continues as if nothing had been read. The interval is that of the
authors' code. The probe is trained by ``safedraft train-ada-probe``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import model_validator

from safedraft.core.config import Constants, NoConstants, Positive, SamplingParams, Share
from safedraft.core.risk import Reading, RiskContext
from safedraft.core.rule import Context, State
from safedraft.defenses.ada_rethinking import SEPARATOR
from safedraft.defenses.base import make_refusal, require_direct_answers
from safedraft.models.probe_file import TARGET_PROBE, read_target_probe
from safedraft.prompts.drawn import identify
from safedraft.rules.target_only import TargetOnly
from safedraft.text.encode import turn_header
from safedraft.text.messages import Message, begun_text, conversation
from safedraft.text.results import GenerationResult

if TYPE_CHECKING:
    from safedraft.pair import Pair


class ProbingConfig(Constants):
    """The constants of the probing form of Any-Depth Alignment."""

    probe: str = ""
    """Folder of the probe."""

    check_interval: Positive = 25
    """Number of tokens of the reply from one reading to the next."""

    refuse_above: Share = 0.5
    """Risk above which the reply ends with a refusal."""

    @model_validator(mode="after")
    def _name_a_probe(self) -> Self:
        if not (self.probe and (Path(self.probe).expanduser() / TARGET_PROBE).is_file()):
            raise ValueError(
                "ada_probe needs the folder of a probe: ada_probe:probe=FOLDER (train one: "
                "safedraft train-ada-probe --help)"
            )
        return self


@dataclass(frozen=True)
class ReadTarget(TargetOnly):
    """The target alone, whose last hidden state is read before a reply and at fixed depths of it.

    It is made for one request.
    """

    name: str = "ada_probe"
    reading: RiskContext = field(kw_only=True)
    interval: int = field(kw_only=True)

    def start(self, constants: NoConstants, context: Context) -> State:
        """Create a state under which nothing is drafted."""
        return _Readings(self.reading, self.interval)


class _Readings(State):
    def __init__(self, reading: RiskContext, interval: int) -> None:
        super().__init__(draft_limit=0, reads_risk_at=0, reading=reading)
        self._interval = interval

    def assess(self, risk: float) -> None:
        """Keep the largest risk, and name the next depth."""
        super().assess(risk)
        assert self.reads_risk_at is not None
        self.reads_risk_at += self._interval


@dataclass(frozen=True)
class AdaProbe:
    """Ends a reply where the probe reads more than ``refuse_above``."""

    config: ClassVar[type[ProbingConfig]] = ProbingConfig
    needs_sessions: ClassVar[bool] = True

    def __call__(
        self, pair: Pair, messages: Sequence[Message], sampling: SamplingParams, config: Constants
    ) -> GenerationResult:
        """Return the target's reply, or its beginning and, after a blank line, a refusal.

        The token after a reading that ends the reply is decoded and dropped; its pass counts. A
        reply is cut where the context has no room left for a reading.

        Raises:
            SafeDraftError: as ``Defense``, or there is no probe of this target, or the engine shows
                no hidden states.
        """
        pair.require_sessions("ada_probe")
        require_direct_answers(pair, "ada_probe", "reads the target's answer")
        constants = config if isinstance(config, ProbingConfig) else ProbingConfig()
        messages = conversation(messages)
        tokenizer = pair.target.tokenizer
        assert tokenizer is not None
        probe = read_target_probe(
            Path(constants.probe).expanduser(), pair.target.name, identify(pair.target)
        )
        begun = begun_text(messages)
        prompts, header = pair.prompts(messages), turn_header(tokenizer)
        question = () if begun else tuple(prompts.target)  # which ends in the header itself
        reading = RiskContext(probe, {"target": Reading(header, question)})
        sampling = sampling.fitted(prompts.longest + len(header), pair.context_length)
        stream = pair.stream(
            messages,
            sampling=sampling,
            rule=ReadTarget(reading=reading, interval=constants.check_interval),
        )
        try:
            for token in stream:
                if token.signal > constants.refuse_above:
                    break
            else:
                return stream.result
        finally:
            stream.close()
        return _refuse(pair, stream.result, constants.refuse_above, begun)


ada_probe = AdaProbe()


def _refuse(pair: Pair, reply: GenerationResult, bound: float, begun: str) -> GenerationResult:
    """End a reply where its risk exceeded the bound; the refusal has no tokens in the trace."""
    trace = [token for token in reply.trace if token.signal <= bound]
    said = "".join(token.text for token in trace)
    refusal = make_refusal(pair, reply)
    text = said + SEPARATOR + refusal.text if said or begun else refusal.text
    length = len(trace) + refusal.statistics.tokens
    return replace(
        refusal, text=text, trace=trace, statistics=replace(reply.statistics, tokens=length)
    )
