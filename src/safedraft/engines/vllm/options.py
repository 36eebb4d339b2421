"""Settings of the operator for the engine, and options of a request."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from safedraft.core.config import OF_SPEED, Constants, Positive, RiskConfig, SamplingParams
from safedraft.core.constraint import TokenFilter
from safedraft.core.errors import SafeDraftError, refuse_invalid
from safedraft.core.request import Request
from safedraft.core.risk import Reading, RiskContext, RiskProbe
from safedraft.core.rule import Context, Rule, State
from safedraft.core.session import Which
from safedraft.engines.vllm.honored import require_honored
from safedraft.models.probe_file import read_probe_file
from safedraft.rules import find_rule, own_rule

KEY = "safedraft"
"""Key of the settings in vLLM's ``additional_config``, which reaches every process."""

PREFIX = "ssd_"
"""Prefix of a request's own constants in ``extra_args`` (``vllm_xargs`` of vLLM's server)."""

TRACE = PREFIX + "trace"
"""Name under which a request's steps are kept until they are taken from the workers."""

STATISTICS = PREFIX + "statistics"
"""Name by which any request can have its reply's statistics."""

RULE = PREFIX + "rule"
"""Name of a request's rule; the pair's own when not given."""

TURN_BEGUN = PREFIX + "turn_begun"
"""Whether the prompt ends inside the assistant's turn; derived from its ids when not given."""

TOP_LOGPROBS = PREFIX + "top_logprobs"
"""Number of most likely tokens whose log probabilities a trace reports at each position."""

MIN_P = PREFIX + "min_p"
LOGIT_BIAS = PREFIX + "logit_bias"
CARRIED = {MIN_P: "min_p", LOGIT_BIAS: "logit_bias"}
"""Sampling parameters that vLLM refuses together with drafts, by the names under which they reach
the workers."""

_NO_CONSTANTS = {TRACE, STATISTICS, RULE, TURN_BEGUN, TOP_LOGPROBS, *CARRIED}

HARMLESS = {TRACE, STATISTICS, TOP_LOGPROBS, MIN_P}
"""Names under which a request sets nothing that could weaken the defense."""

INT8 = "safedraft_int8"
"""vLLM's name for the quantization of a draft whose weights are kept in 8 bits."""


class Settings(BaseModel):
    """Settings of the operator; they are the same in every process of the engine."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    config: RiskConfig = RiskConfig()
    """Constants of a request that sets none; ``draft_tokens`` is an option of vLLM."""
    draft_tokens_up_to: dict[Annotated[int, Field(ge=1)], Positive] = {}
    """T by the maximum number of running requests; the last entry holds for more. Empty where T is
    the same at any load. vLLM does not see it: it gives up full CUDA graphs for such a table."""
    vocabulary: Positive
    """V: ids below it are shared by target and draft; rows past it are padding."""
    generation_prompt: tuple[int, ...] = ()
    """The ids with which the chat template begins the assistant's turn: a prompt that ends with
    them has not begun it yet. Empty without a chat template."""
    turn_header: tuple[int, ...] = ()
    """The ids that end a turn and begin one of the assistant. Empty without a chat template."""
    refusal_tokens: frozenset[int] = frozenset()
    """Ids that begin a refusal, for rules that treat them apart."""
    probe: Path | None = None
    """The file of the probe that reads the risk of requests; None without one."""
    probe_reads: tuple[Which, ...] = ()
    """The models that are read, which say which probe of the file it is; none without one."""
    requests_may_set_constants: bool = False
    """Whether a request may set constants and its rule, down to no defense at all, bias tokens, and
    penalize those of its prompt."""
    traces: bool = False
    """Whether a request can have its steps kept; they use memory until they are taken."""

    @classmethod
    def of(cls, vllm_config: Any) -> Settings | None:
        """The settings in a ``VllmConfig``; None if it is not SafeDraft's engine.

        Raises:
            SafeDraftError: they are not valid.
        """
        extra = vllm_config.additional_config
        found = extra.get(KEY) if isinstance(extra, Mapping) else None
        if found is None:
            return None
        with refuse_invalid(f"additional_config: {KEY}: "):
            return cls.model_validate(found)

    def request(self, params: Any, request_id: str, prompt: Sequence[int]) -> Request:
        """Read a request from vLLM's ``SamplingParams``.

        A sampled request without a seed gets one derived from its id, so that all ranks of a
        tensor-parallel engine draw the same.

        Raises:
            SafeDraftError: it has an option that is not supported or not allowed.
        """
        extra = dict(params.extra_args or {})
        self._require_allowed(extra, params)
        require_honored(params)
        rule = find_rule(str(extra.get(RULE, self.rule)))
        seed = params.seed
        if seed is None:
            digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
            seed = int.from_bytes(digest) >> 1
        with refuse_invalid():
            config = self._constants(rule, extra)
            sampling = SamplingParams(
                max_new_tokens=params.max_tokens,
                temperature=params.temperature,
                top_k=max(params.top_k, 0),
                top_p=params.top_p,
                presence_penalty=params.presence_penalty,
                frequency_penalty=params.frequency_penalty,
                repetition_penalty=params.repetition_penalty,
                seed=seed % 2**63,
                **{name: extra[key] for key, name in CARRIED.items() if key in extra},
            )
        if stray := [token for token in sampling.logit_bias if token >= self.vocabulary]:
            raise SafeDraftError(f"logit_bias: {stray[0]}: ids end at {self.vocabulary - 1}")
        request = Request(
            prompt,
            (),
            rule,
            config,
            sampling,
            end_tokens(params),
            Context(self._turn_begun(extra, prompt), self.refusal_tokens, self._risk(prompt)),
            self._count_alternatives(extra, params),
            _token_filter(params, self.vocabulary),
        )
        self._require_readable(request)
        return request

    def passes_by_load(self, most: int) -> list[int] | None:
        """Number of draft passes for each number of running requests from 0 to ``most``.

        Returns:
            None if it is the same at any load.
        """
        by_load = sorted(self.draft_tokens_up_to.items())
        if not by_load:
            return None
        of_more = by_load[-1][1]
        drafted = (
            next((drafted for load, drafted in by_load if count <= load), of_more)
            for count in range(most + 1)
        )
        return [count_passes(count) for count in drafted]

    @property
    def rule(self) -> str:
        """The rule of requests that name none."""
        return own_rule(reads_risk=self.probe is not None)

    def trace_of(self, params: Any) -> str | None:
        """The name under which the steps of a request are kept, if they are."""
        name = (params.extra_args or {}).get(TRACE)
        return None if name is None else str(name)

    def _require_allowed(self, extra: Mapping[str, Any], params: Any) -> None:
        for name in (TRACE, TOP_LOGPROBS):
            if name in extra and not self.traces:
                raise SafeDraftError(f"{name}: this engine keeps no traces")
        if self.requests_may_set_constants:
            return
        if chosen := choice_of_tokens(params):
            raise SafeDraftError(
                f"{chosen}: the operator does not let requests make tokens of their choice less "
                "likely, which may be those of a refusal"
            )
        if weakening := sorted(extra.keys() - HARMLESS):
            self._require_known(find_rule(self.rule), extra)
            raise SafeDraftError(
                f"{weakening[0]}: the operator does not let requests change the defense's constants"
            )

    def _count_alternatives(self, extra: Mapping[str, Any], params: Any) -> int | None:
        """Number of the most likely tokens that are reported, in the trace or by vLLM."""
        if params.logprobs is None:
            found: int | None = extra.get(TOP_LOGPROBS)
            return found
        return self.vocabulary if params.logprobs == -1 else int(params.logprobs)

    def _constants(self, rule: Rule, extra: Mapping[str, Any]) -> Constants:
        known = self._require_known(rule, extra)
        changes = {known[name]: value for name, value in extra.items() if name in known}
        return self.config.convert_to(rule.config).replace(**changes)

    def _require_known(self, rule: Rule, extra: Mapping[str, Any]) -> dict[str, str]:
        """The rule's constants by the names under which a request sets them."""
        fields = rule.config.model_fields.keys() - OF_SPEED
        known = {PREFIX + name: name for name in rule.config.model_fields if name in fields}
        if unknown := sorted(extra.keys() - known.keys() - _NO_CONSTANTS):
            names = ", ".join((*known, *CARRIED, STATISTICS))
            raise SafeDraftError(f"{unknown[0]}: not known with SSD; known are {names}")
        return known

    def _risk(self, prompt: Sequence[int]) -> RiskContext | None:
        """Find where the risk of a prompt is read: where its last turn of the assistant begins."""
        if self.probe is None:
            return None
        header = self.generation_prompt
        ends = range(len(prompt), len(header) - 1, -1)
        found = (end for end in ends if tuple(prompt[end - len(header) : end]) == header)
        reading = Reading(self.turn_header, tuple(prompt[: next(found, 0)]))
        probe = _read_probe(self.probe, self.probe_reads)
        return RiskContext(probe, dict.fromkeys(probe.reads, reading))

    def _require_readable(self, request: Request) -> None:
        """Refuse what the rule cannot start with, and a risk that cannot be read here."""
        state = request.rule.start(request.config, request.context)
        if (reading := state.reading) is None:
            return
        if "draft" not in reading.readings or state.reads_risk_at:
            raise SafeDraftError(
                f"the rule {request.rule.name} reads the target's states without the draft's, or "
                "inside the reply, which vLLM does not do: use --engine cpu or transformers"
            )
        places = max(reading.offsets("draft"))
        if not self.generation_prompt or len(reading.readings["draft"].question) <= places:
            raise SafeDraftError(
                "the prompt has no beginning of an assistant's turn, where the risk of a request "
                "is read: send messages, or text in the form of the chat template"
            )
        if getattr(request.config, "reading_bins", 0):
            raise SafeDraftError("reading_bins: vLLM reads the risk of a request once: leave it 0")

    def _turn_begun(self, extra: Mapping[str, Any], prompt: Sequence[int]) -> bool | None:
        if TURN_BEGUN in extra:
            return _read_flag(TURN_BEGUN, extra[TURN_BEGUN])
        if not self.generation_prompt:
            return None
        return tuple(prompt[-len(self.generation_prompt) :]) != self.generation_prompt


@cache
def _read_probe(file: Path, reads: tuple[Which, ...]) -> RiskProbe:
    """The probe of a file that reads these models.

    Raises:
        SafeDraftError: the file cannot be read, or has no such probe.
    """
    content = read_probe_file(file)
    for probe in (content.draft, content.both):
        if probe and probe.reads == reads:
            return probe
    raise SafeDraftError(f"{file} has no probe that reads {' and '.join(reads)}: train it again")


def wants_statistics(params: Any) -> bool:
    """Whether a request with these vLLM ``SamplingParams`` wants its reply's statistics.

    Raises:
        SafeDraftError: the value is not a flag, or the response has no field for the statistics.
    """
    wanted = _read_flag(STATISTICS, (params.extra_args or {}).get(STATISTICS, False))
    if wanted and params.n > 1:
        raise SafeDraftError(
            f"{STATISTICS}: the answer has a field for one reply only: leave n at 1"
        )
    if wanted and params.output_kind.name == "DELTA":
        raise SafeDraftError(f"{STATISTICS}: a streamed answer has no field for them")
    return wanted


def choice_of_tokens(params: Any) -> str | None:
    """The parameter by which vLLM's ``SamplingParams`` act on tokens that a client chooses, if any.

    A repetition penalty acts on tokens of the prompt, which the client writes.
    """
    if LOGIT_BIAS in (params.extra_args or {}):
        return CARRIED[LOGIT_BIAS]
    if params.repetition_penalty != 1:
        return "repetition_penalty"
    return next(
        (name for name in ("allowed_token_ids", "bad_words") if getattr(params, name)), None
    )


def _token_filter(params: Any, vocabulary: int) -> Callable[[State], TokenFilter] | None:
    """Find how the constraint of a request that allows some tokens or forbids words is made.

    None if it does neither.
    """
    if not (params.allowed_token_ids or params.bad_words):
        return None
    words = [word for word in params.bad_words_token_ids or () if max(word) < vocabulary]
    return lambda _: TokenFilter(params.allowed_token_ids, words)


def _read_flag(name: str, value: object) -> bool:
    if value not in (True, False):  # vLLM's server makes 1 and 0 of them
        raise SafeDraftError(f"{name}: {value!r} is neither true nor false")
    return bool(value)


def end_tokens(params: Any) -> frozenset[int]:
    """The tokens at which vLLM ends a reply, from ``SamplingParams`` that the engine completed."""
    ends = set(params.stop_token_ids or ())
    return frozenset(ends if params.eos_token_id is None else ends | {params.eos_token_id})


def count_passes(draft_tokens: int) -> int:
    """Number of draft passes for a block of T, which is vLLM's number of drafts.

    That is T + 1: the target runs T drafts, and if all are accepted, the position after them is
    decided as well, from the draft's distribution there.
    """
    return draft_tokens + 1


def count_room(prompt_tokens: int, max_model_len: int, ahead: int) -> int:
    """Maximum number of new tokens after a prompt, such that the draft always has room.

    vLLM lets the target decide alone where drafts would pass the end of the context, so replies end
    two blocks before it. ``ahead`` is the maximum number of tokens in a block.

    Raises:
        SafeDraftError: there is no room.
    """
    room = max_model_len - 2 * ahead - prompt_tokens
    if room < 1:
        raise SafeDraftError(
            f"the prompt has {prompt_tokens} tokens and there is room for "
            f"{max_model_len - 2 * ahead - 1} (a context of {max_model_len}, less two blocks of "
            f"{ahead} tokens): shorten it"
        )
    return room
