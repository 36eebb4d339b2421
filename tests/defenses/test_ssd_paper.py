"""SSD under the published constants: the pair's own constants do not reach it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import safedraft
from safedraft.core.config import SamplingParams, SSDConfig
from safedraft.defenses import make_constants
from safedraft.defenses.ssd_paper import PaperConfig, ssd_paper

ASKED = [{"role": "user", "content": "How do kites fly?"}]
SAMPLING = SamplingParams(max_new_tokens=40)
OWN = SSDConfig(bin_size=3, initial_scheme="union", alpha_union=50.0, draft_tokens=1)


@pytest.fixture(scope="module")
def pair(tiny_pair: tuple[Path, Path]) -> safedraft.Pair:
    pair = safedraft.load_pair(
        target=str(tiny_pair[0]), draft=str(tiny_pair[1]), engine="transformers"
    )
    return replace(pair, config=OWN)


def test_the_published_constants_decide(pair: safedraft.Pair) -> None:
    published = pair.generate(ASKED, sampling=SAMPLING, config=SSDConfig())
    own = pair.generate(ASKED, sampling=SAMPLING)
    assert published.trace != own.trace
    for config in (OWN, make_constants("ssd_paper", OWN, {})):
        assert ssd_paper(pair, ASKED, SAMPLING, config).trace == published.trace


@pytest.mark.parametrize(
    ("given", "constants"),
    [
        pytest.param({}, PaperConfig(), marks=pytest.mark.slow),
        pytest.param({"alpha_union": 2.0}, PaperConfig(alpha_union=2.0), marks=pytest.mark.slow),
        ({"alpha_union": 2.0, "check_interval": 3}, PaperConfig(alpha_union=2.0)),
    ],
)
def test_given_constants_replace_single_ones(
    given: dict[str, Any], constants: PaperConfig, pair: safedraft.Pair
) -> None:
    assert make_constants("ssd_paper", OWN, given) == constants
    reply = ssd_paper(pair, ASKED, SAMPLING, constants)
    plain = SSDConfig(**constants.model_dump())
    assert reply.trace == pair.generate(ASKED, sampling=SAMPLING, config=plain).trace
