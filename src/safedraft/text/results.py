"""The result of a generation: its text, the trace of its tokens, and its statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from html import escape
from typing import Any, Literal, NamedTuple

_SHOWN = 60
"""Number of characters of a reply that ``repr`` shows."""

FinishReason = Literal["stop", "length", "interrupted"]
"""Why a reply ended.

``stop``: an end token or a stop string; ``length``: the token limit or the end of the context;
``interrupted``: the stream was closed before the reply ended.
"""


class Alternative(NamedTuple):
    """One of the most likely tokens at a position of a reply."""

    id: int
    text: str
    """The text that it would add there, control tokens spelled out; empty without a tokenizer."""
    logprob: float
    bytes: tuple[int, ...] | None = None
    """Its bytes, where it is a part of a character, which has no text of its own."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON; bytes only where there are some."""
        return {name: value for name, value in self._asdict().items() if value is not None}


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a reply, and how it was chosen."""

    id: int
    text: str
    """The text that it adds to the reply. It is empty inside a character and after a stop."""
    matched: bool
    """Whether the token is the draft's own first proposal at its position."""
    scheme: str | None
    """``intersection`` or ``union``; None where no draft took part (a baseline)."""
    alpha: float
    """Weight α of the draft in force at the position."""
    threshold: float | None
    """The threshold of the match ratio of the position's bin; None without a switch."""
    match_ratio: float | None
    """The match ratio β of the bin that ends at the position; None at all others."""
    draft_probability: float | None
    target_probability: float
    block: int
    """Index of the target's forward pass that verified it, from 0."""
    signal: Any = None
    """A record of the rule about the position: True where EASD penalized it."""
    logprob: float | None = None
    """Log probability under the composite distribution; None if it was not requested."""
    top_logprobs: tuple[Alternative, ...] = ()
    """The requested number of alternatives that can be sampled, or fewer; the most likely first."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON; log probabilities only if they were requested."""
        fields = asdict(self)
        if self.logprob is None:
            del fields["logprob"], fields["top_logprobs"]
        else:
            fields["top_logprobs"] = [other.to_dict() for other in self.top_logprobs]
        return fields


@dataclass(slots=True)
class Statistics:
    """The cost of a reply. Seconds are wall-clock time and include both prefills."""

    prompt_tokens: int = 0
    """Length of the longer prompt, in tokens."""
    tokens: int = 0
    """Length of the reply, in tokens."""
    blocks: int = 0
    matches: int = 0
    """Number of tokens that are the draft's own first proposal."""
    signals: int | None = None
    """Number of tokens at which the rule raised its signal (EASD: penalized positions); None if
    the rule has none."""
    risk: float | None = None
    """Probability that the request is harmful, as the draft shows it; None under a rule that does
    not read it."""
    match_ratios: list[float] = field(default_factory=list)
    """The match ratio β of every full bin; an end token belongs to no bin."""
    target_passes: int = 0
    """Number of the target's forward passes."""
    target_rows: int = 0
    """Number of positions whose distribution they computed, also after rejected drafts."""
    draft_passes: int = 0
    """Number of the draft's forward passes."""
    seconds: float = 0.0
    first_token_seconds: float = 0.0
    target_seconds: float = 0.0
    draft_seconds: float = 0.0
    seed: int | None = None
    """The seed that repeats a sampled reply; None for a greedy one."""

    @property
    def match_ratio(self) -> float:
        """Share of the tokens that are the draft's own first proposal."""
        return self.matches / self.tokens if self.tokens else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Mean speed over the whole reply, prefills included."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_target_pass(self) -> float:
        """Mean number of tokens per target pass: 1 without a draft, at most T + 1 for T drafts."""
        return self.tokens / self.target_passes if self.target_passes else 0.0

    @property
    def overhead_seconds(self) -> float:
        """Time outside the forward passes of both models."""
        return max(self.seconds - self.target_seconds - self.draft_seconds, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the properties, ready for JSON."""
        derived = ("match_ratio", "tokens_per_second", "tokens_per_target_pass", "overhead_seconds")
        return asdict(self) | {name: getattr(self, name) for name in derived}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Statistics:
        """Read what ``to_dict`` wrote; the properties are computed anew."""
        read = {"risk": None, "target_rows": 0} | dict(values)  # which old logs do not have
        return cls(**{field.name: read[field.name] for field in fields(cls)})


def join_statistics(parts: Sequence[Statistics]) -> Statistics:
    """The cost of a reply that was asked for in several calls; counts and seconds are added up.

    The prompt, the seconds to the first token and the seed are those of the first call.
    """
    first, *others = parts
    total = replace(first, match_ratios=list(first.match_ratios))
    for part in others:
        for name in _ADDED:
            setattr(total, name, getattr(total, name) + getattr(part, name))
        total.match_ratios += part.match_ratios
        if part.signals is not None:
            total.signals = (total.signals or 0) + part.signals
        if part.risk is not None:
            total.risk = max(total.risk or 0.0, part.risk)
    return total


_ADDED = (
    *("tokens", "blocks", "matches", "target_passes", "target_rows", "draft_passes"),
    *("seconds", "target_seconds", "draft_seconds"),
)
"""Fields of ``Statistics`` that are sums over the calls for a reply."""


_COLORS = {"union": "#e4c1f0", "intersection": "#f7e3a1"}
"""Background of a token that the draft did not propose, by the scheme that corrected it."""

_DRAFT_COLOR = "#cfeccf"


@dataclass(slots=True, repr=False)
class GenerationResult:
    """A reply: its text, the trace of its tokens, and its cost."""

    text: str = ""
    finish_reason: FinishReason = "interrupted"
    trace: list[Token] = field(default_factory=list)
    statistics: Statistics = field(default_factory=Statistics)
    warnings: tuple[str, ...] = ()
    """Why the reply may be less safe than expected, such as a draft without an adapter."""

    def __repr__(self) -> str:
        shown = self.text if len(self.text) <= _SHOWN else f"{self.text[:_SHOWN]}…"
        tokens = self.statistics.tokens
        return f"GenerationResult({shown!r}, finish_reason={self.finish_reason!r}, {tokens=})"

    def _repr_html_(self) -> str:
        """Show the reply in a notebook; colors say where each token comes from."""
        notes = "".join(f"<p><b>{escape(warning)}</b></p>" for warning in self.warnings)
        return f"{notes}<pre style='white-space: pre-wrap'>{''.join(map(_span, self.trace))}</pre>"

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return {
            "text": self.text,
            "finish_reason": self.finish_reason,
            "warnings": list(self.warnings),
            "statistics": self.statistics.to_dict(),
            "trace": [token.to_dict() for token in self.trace],
        }


def _span(token: Token) -> str:
    if token.scheme is None:
        return escape(token.text)
    color = _DRAFT_COLOR if token.matched else _COLORS[token.scheme]
    origin = "the draft's token" if token.matched else f"corrected in {token.scheme}"
    style = f"background: {color}; color: #000"
    return f"<span style='{style}' title='{escape(origin)}'>{escape(token.text)}</span>"
