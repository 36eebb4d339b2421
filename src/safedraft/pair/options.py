"""Arguments of callers of a pair: sampling parameters and constants, in every accepted form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from safedraft.core.config import (
    Constants,
    DraftingConfig,
    RiskConfig,
    SamplingParams,
    SSDConfig,
)
from safedraft.core.errors import SafeDraftError, show_value
from safedraft.core.options import INSTEAD, SamplingOptions, translate
from safedraft.core.plugins import suggest
from safedraft.engines.base import Capability, LoadedPair
from safedraft.rules import find_rule

Sampling = SamplingParams | Mapping[str, Any]
"""Sampling parameters, or a mapping of their names to values."""

Config = Constants | Mapping[str, Any]
"""Constants of a rule, or a mapping of the names of those that are replaced to values."""

_ConstantsT = TypeVar("_ConstantsT", bound=Constants)


class GenerateOptions(SamplingOptions, total=False):
    """Keywords of ``generate`` besides its own parameters."""

    sampling_params: Sampling | Sequence[Sampling] | None
    """As vLLM calls ``sampling``."""
    logprobs: int | bool | None
    """As vLLM calls ``top_logprobs``; as a truth value, as in OpenAI's API."""


def take_sampling(sampling: Any, options: GenerateOptions) -> Any:
    """Return ``sampling``, or ``sampling_params``, which is removed from ``options``.

    Raises:
        SafeDraftError: both are given.
    """
    named = options.pop("sampling_params", None)
    if sampling is not None and named is not None:
        raise SafeDraftError("give sampling or sampling_params, which mean the same, not both")
    return named if sampling is None else sampling


def take_alternatives(top_logprobs: int | None, options: GenerateOptions) -> int | None:
    """Return ``top_logprobs``, or its value by ``logprobs``, which is removed from ``options``.

    Raises:
        SafeDraftError: the two contradict each other.
    """
    logprobs = options.pop("logprobs", None)
    if logprobs is None:
        return top_logprobs
    if logprobs is True:
        return top_logprobs or 0
    if logprobs is False and not top_logprobs:
        return None
    if top_logprobs is not None:
        raise SafeDraftError("give top_logprobs or logprobs, the number of alternatives, not both")
    return logprobs


def require_alternatives(top_logprobs: Any) -> None:
    """Check a number of log probabilities.

    Raises:
        SafeDraftError: the value is not a whole number, or it is negative.
    """
    if type(top_logprobs) is not int:
        raise SafeDraftError(f"top_logprobs must be a whole number, not {show_value(top_logprobs)}")
    if top_logprobs < 0:
        raise SafeDraftError(f"top_logprobs must be 0 or more, not {top_logprobs}")


def read_sampling(sampling: Sampling | None, options: Mapping[str, Any]) -> SamplingParams:
    """The sampling parameters that a caller gives as an object, as a mapping, or one by one.

    Raises:
        SafeDraftError: an option is unknown, out of its range, or not supported with SSD.
    """
    if not isinstance(sampling, SamplingParams | Mapping | None):
        kind = type(sampling).__name__
        raise SafeDraftError(
            f"sampling must be a safedraft.SamplingParams(…) or a mapping, not {kind}"
        )
    known = list(SamplingOptions.__annotations__)
    for name in (*options, *(sampling if isinstance(sampling, Mapping) else ())):
        if name not in known and name not in INSTEAD:
            raise SafeDraftError(f"unknown option {name!r}{suggest(str(name), known)}")
    given = sampling if isinstance(sampling, SamplingParams) else SamplingParams(**sampling or {})
    named = translate(options, SamplingParams.model_fields, given.temperature)
    return given.replace(**named) if named else given


def require_able(pair: LoadedPair, sampling: SamplingParams) -> None:
    """Check that a pair can choose tokens as the sampling parameters require.

    Raises:
        SafeDraftError: its engine cannot, or a token does not exist; the message says why.
    """
    if sampling.min_p:
        pair.engine.capabilities.require(Capability.MIN_P, "min_p")
    if sampling.logit_bias:
        pair.engine.capabilities.require(Capability.LOGIT_BIAS, "logit_bias")
        if (last := max(sampling.logit_bias)) >= pair.vocabulary:
            message = f"logit_bias: {last}: ids end at {pair.vocabulary - 1}"
            raise SafeDraftError(message, refused="logit_bias")


def require_drafting(pair: LoadedPair, constants: Constants) -> Constants:
    """Return the constants of a request, after the check that a pair can draft as they say.

    Raises:
        SafeDraftError: its engine cannot; the message says why.
    """
    if isinstance(constants, DraftingConfig) and constants.branches:
        pair.engine.capabilities.require(Capability.TREES, constants.branches)
    return constants


def find_constants(rule: str | None) -> type[Constants]:
    """The class of the constants of a rule; None: of a pair.

    Raises:
        SafeDraftError: no rule has this name; the message lists all rules.
    """
    return find_rule(rule).config if rule else RiskConfig


def read_constants(kind: type[Constants], config: Config | None, own: Constants) -> Constants:
    """The constants of a rule that a caller sets in place of a pair's own.

    Args:
        kind: the class of the rule's constants.
        config: constants, or a mapping that replaces some of those of the pair. The rule must have
            every name in the mapping, and every constant whose value differs from the pair.
        own: constants of the pair.

    Raises:
        SafeDraftError: a name is unknown to the rule, or a value is outside its range.
    """
    if isinstance(config, Mapping):
        return _replace(own.convert_to(kind), config)
    if config is not None and (
        not isinstance(config, Constants) or isinstance(config, SamplingParams)
    ):
        raise _no_constants(config)
    if config is not None:
        changed = {name: getattr(config, name) for name in config.model_fields_set}
        kept = dict(own)
        _require_names(kind, [n for n, value in changed.items() if kept.get(n, ...) != value])
    return (own if config is None else config).convert_to(kind)


def read_config(config: SSDConfig | Mapping[str, Any] | None, own: RiskConfig) -> SSDConfig | None:
    """The constants of SSD that a caller gives for a whole pair, which has ``own``.

    Raises:
        SafeDraftError: an unknown name, or a value outside its range.
    """
    if isinstance(config, Mapping):
        return _replace(own, config)
    if not isinstance(config, SSDConfig | None):
        raise _no_constants(config)
    return config


def for_each(value: Any, count: int, name: str) -> list[Any]:
    """Return a value for each of ``count`` prompts, from one value for all or a list.

    Raises:
        SafeDraftError: the list does not have ``count`` values.
    """
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise SafeDraftError(
            f"{name} has {len(value)} values for {count} prompts: give one for all, or one for each"
        )
    return list(value)


def _replace(own: _ConstantsT, config: Mapping[str, Any]) -> _ConstantsT:
    _require_names(type(own), config)
    return own.replace(**config)


def _require_names(kind: type[Constants], given: Iterable[str]) -> None:
    names = list(kind.model_fields)
    for name in given:
        if not names:
            raise SafeDraftError(f"the rule has no constants: leave {show_value(name)} out")
        if name not in names:
            raise SafeDraftError(f"unknown constant {name!r}{suggest(str(name), names)}")


def _no_constants(config: object) -> SafeDraftError:
    return SafeDraftError(
        "config must be a safedraft.SSDConfig(…) or a mapping of constants to values, not "
        + type(config).__name__
    )
