"""Controls of the method's constants and of sampling, and functions that read their values."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import gradio as gr
from pydantic import BaseModel

from safedraft.core.config import RiskConfig, SamplingParams, Scheme, SSDConfig
from safedraft.core.errors import refuse_invalid
from safedraft.pair import Pair
from safedraft.server.settings import Limits

T = TypeVar("T", bound=BaseModel)

_UNCHANGED = "the same"


class SliderSpec(NamedTuple):
    """Label and range of the slider of a constant; the range includes the pair's own value."""

    field: str
    label: str
    least: float
    most: float
    step: float


SLIDERS = (
    SliderSpec("alpha_intersection", "Strength in intersection", 0, 2, 0.05),
    SliderSpec("alpha_union", "Strength in union", 0, 2, 0.05),
    SliderSpec("alpha_min", "Least strength in intersection", 0, 2, 0.05),
    SliderSpec("alpha_decay", "Decay of the strength", 0, 1, 0.05),
    SliderSpec("threshold", "Threshold", 0, 1, 0.05),
    SliderSpec("threshold_decay", "Decay of the threshold", 0, 1, 0.05),
    SliderSpec("bin_size", "Tokens in a bin", 1, 32, 1),
    SliderSpec("union_bins", "Bins in union", 1, 16, 1),
    SliderSpec("sample_space_size", "Size of the sample space", 1, 50, 1),
    SliderSpec("kappa", "Best tokens of which one is common", 1, 10, 1),
    SliderSpec(
        "draft_tokens", "Drafted tokens", 1, 1, 1
    ),  # a block is a turn: the pair's T at most
    SliderSpec("draft_confidence", "Confidence of the draft", 0, 1, 0.05),
    SliderSpec("draft_growth", "Growth of the draft", 0, 8, 0.5),
)


RISK_SLIDERS = (
    SliderSpec("risky_above", "Risky above", 0, 1, 0.05),
    SliderSpec("harmless_below", "Harmless below", 0, 1, 0.05),
    SliderSpec("alpha_harmless", "Strength for harmless requests", 0, 2, 0.05),
    SliderSpec("reading_bins", "Bins between readings of the risk", 0, 16, 1),
)
"""Those of a pair that reads the risk of requests."""


def choose_sliders(pair: Pair) -> Sequence[SliderSpec]:
    """The sliders of all constants that change the replies of a pair."""
    return (
        (*SLIDERS, *RISK_SLIDERS) if pair.probe and isinstance(pair.config, RiskConfig) else SLIDERS
    )


def make_constant_controls(config: SSDConfig, knobs: Sequence[SliderSpec]) -> list[Any]:
    """Make the controls of the constants, with a pair's own values, for ``read_constants``."""
    sliders = [_make_slider(knob, config) for knob in knobs]
    first = gr.Radio(
        [str(scheme) for scheme in Scheme],
        value=str(config.initial_scheme),
        label="First scheme",
        info=_describe_field("initial_scheme"),
    )
    begun = gr.Radio(
        [_UNCHANGED, *(str(scheme) for scheme in Scheme)],
        value=str(config.prefill_scheme or _UNCHANGED),
        label="First scheme after a prefill",
        info=_describe_field("prefill_scheme"),
    )
    return [*sliders, first, begun]


def read_constants(own: SSDConfig, knobs: Sequence[SliderSpec], values: Sequence[Any]) -> SSDConfig:
    """Replace a pair's constants by the values of the controls.

    Raises:
        SafeDraftError: a value is out of its range.
    """
    values_by_field: dict[str, Any] = {
        # A slider returns 7 or 7.0; counts must be integers.
        knob.field: round(value) if isinstance(getattr(own, knob.field), int) else value
        for knob, value in zip(knobs, values, strict=False)
    }
    first, begun = values[len(knobs) :]
    values_by_field |= {
        "initial_scheme": first,
        "prefill_scheme": None if begun == _UNCHANGED else begun,
    }
    return _validate(own.replace, values_by_field)


def make_sampling_controls(limits: Limits) -> list[Any]:
    """Make the controls of sampling, for ``read_sampling``."""
    most = limits.new_tokens
    return [
        gr.Slider(1, most, min(256, most), step=1, label="Most new tokens"),
        gr.Slider(0, 2, 0, step=0.05, label="Temperature", info="0 is greedy."),
        gr.Number(
            0,
            label="Seed",
            precision=0,
            info="The seed of a sampled reply; if empty, one is drawn.",
        ),
    ]


def read_sampling(new_tokens: float, temperature: float, seed: float | None) -> SamplingParams:
    """Read the sampling parameters; a seed is drawn here, so that both replies use the same one.

    Raises:
        SafeDraftError: a value is out of its range.
    """
    if temperature and seed is None:
        seed = secrets.randbits(31)
    values_by_field: dict[str, Any] = {
        "max_new_tokens": round(new_tokens),
        "temperature": temperature,
    }
    if temperature:
        values_by_field["seed"] = seed
    return _validate(SamplingParams, values_by_field)


def _make_slider(knob: SliderSpec, config: SSDConfig) -> Any:
    own = getattr(config, knob.field)
    return gr.Slider(
        min(knob.least, own),
        max(knob.most, own),
        own,
        step=knob.step,
        label=knob.label,
        info=_describe_field(knob.field),
        elem_classes="knob",
    )


def _describe_field(field: str) -> str:
    return " ".join((RiskConfig.model_fields[field].description or "").split())


def _validate(make: Callable[..., T], values_by_field: dict[str, Any]) -> T:
    with refuse_invalid():
        return make(**values_by_field)
