"""Sliders for the method's constants and for sampling, and what is set with them."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import gradio as gr
from pydantic import BaseModel, ValidationError

from safedraft.core.config import SamplingParams, Scheme, SSDConfig
from safedraft.core.errors import SafeDraftError, problems
from safedraft.server.settings import Limits

T = TypeVar("T", bound=BaseModel)

_AS_EVER = "the same"


class Knob(NamedTuple):
    """A slider of a constant; it reaches further where the pair's own value does."""

    field: str
    label: str
    least: float
    most: float
    step: float


KNOBS = (
    Knob("alpha_intersection", "Strength in intersection", 0, 2, 0.05),
    Knob("alpha_union", "Strength in union", 0, 2, 0.05),
    Knob("alpha_min", "Least strength in intersection", 0, 2, 0.05),
    Knob("alpha_decay", "Decay of the strength", 0, 1, 0.05),
    Knob("threshold", "Threshold", 0, 1, 0.05),
    Knob("threshold_decay", "Decay of the threshold", 0, 1, 0.05),
    Knob("bin_size", "Tokens in a bin", 1, 32, 1),
    Knob("union_bins", "Bins in union", 1, 16, 1),
    Knob("sample_space_size", "Size of the sample space", 1, 50, 1),
    Knob("kappa", "Best tokens of which one is common", 1, 10, 1),
    Knob("draft_tokens", "Drafted tokens", 1, 1, 1),  # a block is a turn: the pair's T at most
    Knob("draft_confidence", "Confidence of the draft", 0, 1, 0.05),
    Knob("draft_growth", "Growth of the draft", 0, 8, 0.5),
)


def constants(config: SSDConfig) -> list[Any]:
    """Controls of the method's constants, at a pair's own values; ``read_constants`` reads them."""
    sliders = [_slider(knob, config) for knob in KNOBS]
    first = gr.Radio(
        [str(scheme) for scheme in Scheme],
        value=str(config.initial_scheme),
        label="First scheme",
        info=_meaning("initial_scheme"),
    )
    begun = gr.Radio(
        [_AS_EVER, *(str(scheme) for scheme in Scheme)],
        value=str(config.prefill_scheme or _AS_EVER),
        label="First scheme after a prefill",
        info=_meaning("prefill_scheme"),
    )
    return [*sliders, first, begun]


def read_constants(own: SSDConfig, values: Sequence[Any]) -> SSDConfig:
    """A pair's own constants with what is set on the page.

    Raises:
        SafeDraftError: a value is out of its range.
    """
    given: dict[str, Any] = {
        # A slider gives 7 and 7.0 as it likes; a count is a whole number.
        knob.field: round(value) if isinstance(getattr(own, knob.field), int) else value
        for knob, value in zip(KNOBS, values, strict=False)
    }
    first, begun = values[len(KNOBS) :]
    given |= {"initial_scheme": first, "prefill_scheme": None if begun == _AS_EVER else begun}
    return _validated(own.replace, given)


def sampling(limits: Limits) -> list[Any]:
    """Controls of sampling; ``read_sampling`` reads them."""
    most = limits.new_tokens
    return [
        gr.Slider(1, most, min(256, most), step=1, label="Most new tokens"),
        gr.Slider(0, 2, 0, step=0.05, label="Temperature", info="0 is greedy."),
        gr.Number(0, label="Seed", precision=0, info="Of a sampled reply; empty: drawn."),
    ]


def read_sampling(new_tokens: float, temperature: float, seed: float | None) -> SamplingParams:
    """What is set on the page; a seed is drawn here, so that it is the same for both replies.

    Raises:
        SafeDraftError: a value is out of its range.
    """
    if temperature and seed is None:
        seed = secrets.randbits(31)
    given: dict[str, Any] = {"max_new_tokens": round(new_tokens), "temperature": temperature}
    if temperature:
        given["seed"] = seed
    return _validated(SamplingParams, given)


def _slider(knob: Knob, config: SSDConfig) -> Any:
    own = getattr(config, knob.field)
    return gr.Slider(
        min(knob.least, own),
        max(knob.most, own),
        own,
        step=knob.step,
        label=knob.label,
        info=_meaning(knob.field),
        elem_classes="knob",
    )


def _meaning(field: str) -> str:
    return " ".join((SSDConfig.model_fields[field].description or "").split())


def _validated(make: Callable[..., T], given: dict[str, Any]) -> T:
    try:
        return make(**given)
    except ValidationError as error:
        raise SafeDraftError(problems(error)[0]) from error
