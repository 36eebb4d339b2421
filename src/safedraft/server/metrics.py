"""Metrics for Prometheus under ``/metrics``, with the same names as in the vLLM engine."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from safedraft.prompts.phrases import is_refusal
from safedraft.text.reasoning import MARKERS, split_reasoning
from safedraft.text.results import GenerationResult

_SECONDS = (0.25, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)


class Metrics:
    """The metrics of one server, in their own registry."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "safedraft_requests", "Requests answered", ["route", "status"], registry=registry
        )
        self._replies = Counter(
            "safedraft_replies",
            "Replies ended",
            ["finish_reason", "guarded", "refused"],
            registry=registry,
        )
        self._tokens = Counter(
            "safedraft_tokens", "Tokens decided", ["scheme", "matched"], registry=registry
        )
        self._blocks = Counter("safedraft_blocks", "Passes of the target", registry=registry)
        self._first = Histogram(
            "safedraft_first_token_seconds",
            "From the first turn of a reply to its first token",
            buckets=_SECONDS,
            registry=registry,
        )
        self._seconds = Histogram(
            "safedraft_decoding_seconds",
            "Decoding of a reply, without its wait",
            buckets=_SECONDS,
            registry=registry,
        )

    def add_gauge(self, name: str, description: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is computed when the metrics are read."""
        Gauge(f"safedraft_{name}", description, registry=self._registry).set_function(value)

    def count(self, reply: GenerationResult, guarded: bool) -> None:
        """Count a reply that ended for any reason.

        Args:
            reply: the reply.
            guarded: whether a draft with a safety adapter took part in it.
        """
        statistics = reply.statistics
        refused = is_refusal(find_answer(reply.text))
        self._replies.labels(reply.finish_reason, _flag(guarded), _flag(refused)).inc()
        decisions = Tally(
            (token.scheme, _flag(token.matched)) for token in reply.trace if token.scheme
        )
        for (scheme, matched), count in decisions.items():
            self._tokens.labels(scheme, matched).inc(count)
        if decisions:  # made with a draft, and not by the target alone
            self._blocks.inc(statistics.blocks)
        if statistics.tokens:
            self._first.observe(statistics.first_token_seconds)
            self._seconds.observe(statistics.seconds)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        text: bytes = generate_latest(self._registry)
        return text


def find_answer(text: str) -> str:
    """The answer in a reply whose reasoning began before it; the whole reply if none ends in it.

    A template may open the reasoning, and a client may begin it: the reply then has only its end.
    A reasoning that begins in the reply is left to ``is_refusal``, which does not count it.
    """
    for markers in MARKERS:
        before, closing, _ = text.partition(markers.closing)
        if closing and markers.opening not in before:
            return split_reasoning(text, markers, opened=True)[1]
    return text


def _flag(value: bool) -> str:
    return str(value).lower()
