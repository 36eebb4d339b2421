"""The engine of a checkout, as the benchmark runs it, on models that speak bytes."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from conftest import save_pair
from small import SMALL

import safedraft

pytestmark = pytest.mark.vllm

ROOT = Path(__file__).parents[2]


def test_a_checkout_says_what_the_first_engine_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("vllm_against")
    folders = map(str, save_pair(tmp_path, hidden_size=128, head_dim=32))
    pair = dict(zip(("target", "draft"), folders, strict=True))
    asked = ["Why is the sky blue?", "Tell me a story.", "Count to ten."]
    with script.checkout(ROOT, tokens=8, engine="vllm", **pair, **SMALL) as decode:
        said, rate = decode(asked)
        alone, _ = decode(asked[:1])
    first = safedraft.load_pair(engine="transformers", dtype="float32", device="cpu", **pair)
    replies = [first.generate(one, max_new_tokens=8) for one in asked]
    assert said == [[token.id for token in reply.trace] for reply in replies]
    assert alone == said[:1]
    assert rate > 0
