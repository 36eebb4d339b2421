"""The perplexity filter: the right tokens are scored, and what perplexes too much is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import safedraft
from safedraft.core.config import SamplingParams, SSDConfig
from safedraft.core.errors import SafeDraftError
from safedraft.defenses.perplexity_filter import (
    PerplexityFilter,
    compute_losses,
    compute_worst_perplexity,
)
from safedraft.defenses.perplexity_filter import perplexity_filter as default
from safedraft.text.refusals import REFUSAL

SAMPLING = SamplingParams(max_new_tokens=6)


@pytest.fixture(scope="module")
def pair(tiny_pair: tuple[Path, Path]) -> safedraft.Pair:
    return safedraft.load_pair(
        target=str(tiny_pair[0]), draft=str(tiny_pair[1]), engine="transformers"
    )


def losses_of(pair: safedraft.Pair, text: str) -> list[float]:
    return compute_losses(pair, pair.reader("target"), text).tolist()


@pytest.mark.parametrize(
    "text", ["a", "hello", "\n\nuser\nuser\n", "<|end|>", "x" * 64, "ab " * 70]
)
def test_losses_are_those_of_the_message_in_its_template(text: str, pair: safedraft.Pair) -> None:
    head, tail = "<|start|>user\n", "<|end|>\n<|start|>assistant\n"
    prompt = pair.prompts([{"role": "user", "content": text}]).target
    # A token a byte but for the control tokens of the template: <|start|>, <|end|>, <|start|>.
    start, end = len(head) - 8, len(prompt) - (len(tail) - 14)
    assert end - start == len(text)
    with torch.no_grad():
        logits = pair.target.model(torch.tensor([prompt])).logits[0, :, : pair.vocabulary]
    rows = logits.float().log_softmax(-1)[start - 1 : end - 1]
    wanted = -rows[torch.arange(len(text)), torch.tensor(prompt[start:end])]
    assert losses_of(pair, text) == pytest.approx(wanted.tolist(), abs=1e-3)


@pytest.mark.parametrize(
    ("losses", "window", "worst"),
    [
        ([1.0, 3.0], 10, 2.0),
        ([1.0, 3.0], 2, 2.0),
        ([1.0, 3.0], 1, 3.0),
        ([0.0, 0.0, 4.0, 6.0, 0.0], 2, 5.0),
        ([9.0, 0.0, 9.0], 2, 6.0),  # the whole is worse than any window
    ],
)
def test_the_worst_window_counts(losses: list[float], window: int, worst: float) -> None:
    assert compute_worst_perplexity(torch.tensor(losses), window) == pytest.approx(math.exp(worst))


def test_a_message_is_answered_up_to_the_threshold_and_refused_above(pair: safedraft.Pair) -> None:
    messages = [{"role": "user", "content": "Why?"}]
    worst = compute_worst_perplexity(torch.tensor(losses_of(pair, "Why?")), 10)
    plain = pair.generate(messages, sampling=SAMPLING, rule="target_only")
    passed = PerplexityFilter(worst * 1.01)(pair, messages, SAMPLING, SSDConfig())
    assert passed.trace == plain.trace
    assert passed.statistics.target_passes == plain.statistics.target_passes + 1
    assert passed.statistics.target_rows == plain.statistics.target_rows + len("Why?")
    assert passed.statistics.first_token_seconds < passed.statistics.seconds
    refused = PerplexityFilter(worst * 0.99)(pair, messages, SAMPLING, SSDConfig())
    assert (refused.text, refused.finish_reason, refused.trace) == (REFUSAL, "stop", [])
    figures = refused.statistics
    assert (figures.tokens, figures.target_passes, figures.draft_passes) == (len(REFUSAL), 1, 0)
    assert figures.prompt_tokens == plain.statistics.prompt_tokens
    assert 0 < figures.target_seconds < figures.seconds


def test_the_last_user_message_is_judged_whatever_surrounds_it(pair: safedraft.Pair) -> None:
    odd = [{"role": "user", "content": "Why?"}]
    threshold = compute_worst_perplexity(torch.tensor(losses_of(pair, "Why?")), 10) * 0.99
    earlier = [*odd, {"role": "assistant", "content": "Because."}]
    begun = [{"role": "assistant", "content": "Well,"}]
    judge = PerplexityFilter(threshold)
    assert judge(pair, [*earlier, *odd, *begun], SAMPLING, SSDConfig()).text == REFUSAL


def test_a_perplexity_that_is_no_number_is_refused(pair: safedraft.Pair) -> None:
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    messages.append({"role": "user", "content": ""})  # nothing to score
    assert default(pair, messages, SAMPLING, SSDConfig()).text == REFUSAL


def test_a_refused_request_is_not_left_in_a_shared_batch(
    pair: safedraft.Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, taken = pair.engine.batch(), []
    monkeypatch.setattr(batch, "add", taken.append)
    monkeypatch.setattr(type(pair.engine), "batch", lambda _: batch)
    messages = [{"role": "user", "content": "Why?"}]
    assert PerplexityFilter(1.0)(pair, messages, SAMPLING, SSDConfig()).text == REFUSAL
    assert taken == []


@pytest.mark.parametrize(("threshold", "window"), [(0.5, 10), (math.nan, 10), (100.0, 0)])
def test_settings_that_mean_nothing_are_refused(threshold: float, window: int) -> None:
    with pytest.raises(SafeDraftError, match=r"perplexity is at least 1|at least 1 token"):
        PerplexityFilter(threshold, window)
