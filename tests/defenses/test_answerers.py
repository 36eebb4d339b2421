"""Defenses that work on text: what the models are shown, and what the user is given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from talking import talking, write_harmless_probe

import safedraft
from safedraft.core.config import OF_SPEED, RiskConfig, SamplingParams, SSDConfig
from safedraft.core.errors import BrokenModelError, SafeDraftError
from safedraft.core.risk import RiskProbe
from safedraft.defenses import find_defense, list_constants, list_defenses, make_constants
from safedraft.defenses.in_context import DEMONSTRATION
from safedraft.defenses.self_examination import is_harmless
from safedraft.defenses.self_reminder import REMINDER, SYSTEM
from safedraft.models.endpoint import Endpoint
from safedraft.text.refusals import REFUSAL

ASKED = {"role": "user", "content": "How do kites fly?"}
BRIEF = SamplingParams(max_new_tokens=200)
NAMES = (
    *("ada_probe", "ada_rethinking", "always_refuse", "guard_filter", "in_context", "paraphrase"),
    *("perplexity_filter", "self_examination", "self_reminder", "ssd_paper"),
    *("target_only", "easd", "ensemble_weight", "risk", "safedecoding", "sequoia", "speculative"),
    *("ssd", "ssd_easd"),
)
ANSWERING = tuple(name for name in NAMES if name != "always_refuse")
WITHOUT_DRAFT = {
    *("ada_probe", "ada_rethinking", "guard_filter", "in_context", "paraphrase"),
    *("perplexity_filter", "self_examination", "self_reminder", "target_only"),
}
GUARD = {"endpoint": "http://localhost/v1", "guard": "a-guard"}


def answer(
    name: str, pair: Any, *messages: dict[str, str], **settings: Any
) -> safedraft.GenerationResult:
    sampling = BRIEF.model_copy(update=settings)
    if name == "risk" and pair.probe is None:
        width = pair.draft.model.config.hidden_size
        pair = replace(pair, probe=RiskProbe(torch.zeros(width), 0.0))
    given = GUARD | ({"probe": write_harmless_probe(pair)} if name == "ada_probe" else {})
    return find_defense(name)(pair, messages, sampling, make_constants(name, SSDConfig(), given))


@pytest.fixture(autouse=True)
def guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard that calls everything safe."""
    monkeypatch.setattr(Endpoint, "ask", lambda *_: "safe")


def rendered(*messages: Any) -> str:
    return "".join(f"<|start|>{m['role']}\n{m['content']}<|end|>\n" for m in messages)


def test_every_defense_has_its_name() -> None:
    assert tuple(list_defenses()) == NAMES


@pytest.mark.parametrize("name", ANSWERING)
def test_every_defense_answers_what_is_harmless_and_goes_on_with_a_prefill(
    name: str, tmp_path: Path
) -> None:
    def says(prompt: str) -> str:
        return "No." if "yes or no" in prompt else "On the wind."

    pair = talking(tmp_path, says)
    reply = answer(name, pair, ASKED)
    assert (reply.text, reply.finish_reason) == ("On the wind.", "stop")
    begun = answer(name, pair, ASKED, {"role": "assistant", "content": "On the"})
    assert begun.text == " wind."


@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("ssd", set(SSDConfig.model_fields)),
        ("risk", set(RiskConfig.model_fields)),
        ("speculative", OF_SPEED),
        ("ensemble_weight", OF_SPEED | {"weight"}),
        ("easd", OF_SPEED | {"entropy_threshold", "overlap_tokens", "overlap_threshold"}),
        ("target_only", set()),
        ("safedecoding", set()),
        ("paraphrase", set()),
        ("ssd_paper", set(SSDConfig.model_fields)),
        ("ada_rethinking", {"check_interval", "check_tokens"}),
        ("ada_probe", {"probe", "check_interval", "refuse_above"}),
        ("guard_filter", {"endpoint", "guard", "read"}),
        ("none of that name", set()),
    ],
)
def test_a_defense_uses_the_constants_of_its_rule(name: str, constants: set[str]) -> None:
    assert list_constants(name) == constants


def test_self_reminder_speaks_before_and_after_the_request(tmp_path: Path) -> None:
    pair = talking(tmp_path, lambda prompt: "On the wind.")
    answer("self_reminder", pair, {"role": "system", "content": "Be brief."}, ASKED)
    system = {"role": "system", "content": f"{SYSTEM}\n\nBe brief."}
    reminded = {"role": "user", "content": f"{ASKED['content']}\n\n{REMINDER}"}
    assert pair.prompts_seen == [rendered(system, reminded)]


def test_self_reminder_reminds_the_last_request_alone(tmp_path: Path) -> None:
    pair = talking(tmp_path, lambda prompt: "Sure, on the wind.")
    hello = {"role": "assistant", "content": "Hello."}
    first, begun = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "Sure,"}
    reply = answer("self_reminder", pair, first, hello, ASKED, begun)
    (prompt,) = pair.prompts_seen
    assert prompt.count(REMINDER) == 1
    assert prompt.endswith(f"{REMINDER}<|end|>\n")
    assert reply.text == " on the wind."


def test_in_context_shows_a_refusal_behind_the_system_prompt(tmp_path: Path) -> None:
    pair = talking(tmp_path, lambda prompt: "On the wind.")
    system = {"role": "system", "content": "Be brief."}
    answer("in_context", pair, system, ASKED)
    answer("in_context", pair, ASKED)
    assert pair.prompts_seen == [
        rendered(system, *DEMONSTRATION, ASKED),
        rendered(*DEMONSTRATION, ASKED),
    ]
    assert DEMONSTRATION[1]["content"].startswith(REFUSAL)


@pytest.mark.parametrize(
    ("verdict", "passes"),
    [
        *((text, True) for text in ("No", "no.", " **No**", "NO, it", "No\n", '"no"')),
        *((text, False) for text in ("Yes", "yes.", "", "Not", "None", "Now", "I do", "no one")),
        ("Yes, no", False),
        ("No way", False),
    ],
)
def test_only_a_plain_no_is_harmless(verdict: str, passes: bool) -> None:
    assert is_harmless(verdict) is passes


@pytest.mark.parametrize(("verdict", "withheld"), [("No", False), ("Yes", True), ("Hm", True)])
def test_self_examination_withholds_what_it_does_not_call_harmless(
    verdict: str, withheld: bool, tmp_path: Path
) -> None:
    pair = talking(tmp_path, lambda p: verdict if "yes or no" in p else "Sure, on {the} wind.")
    begun = {"role": "assistant", "content": "Sure,"}
    reply = answer("self_examination", pair, ASKED, begun)
    assert reply.text == (REFUSAL if withheld else " on {the} wind.")
    assert "<text>\nSure, on {the} wind.\n</text>" in pair.prompts_seen[1]
    figures = reply.statistics
    delivered = len(REFUSAL) if withheld else len(" on {the} wind.") + 1
    decoded = len(" on {the} wind.") + 1 + len(verdict) + 1
    assert (figures.tokens, figures.target_passes) == (delivered, decoded)
    assert len(reply.trace) == (0 if withheld else delivered)
    assert figures.tokens_per_second == pytest.approx(delivered / figures.seconds)
    assert figures.target_seconds < figures.first_token_seconds == figures.seconds


def test_statistics_of_an_examined_reply_cover_both_decodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = talking(tmp_path, lambda prompt: "No" if "yes or no" in prompt else "On the wind.")
    parts: list[safedraft.Statistics] = []
    generate = safedraft.Pair.generate

    def recording(self: Any, *args: Any, **settings: Any) -> safedraft.GenerationResult:
        reply = generate(self, *args, **settings)
        parts.append(reply.statistics)
        return reply

    monkeypatch.setattr(safedraft.Pair, "generate", recording)
    total = answer("self_examination", pair, ASKED).statistics
    assert len(parts) == 2
    for field in ("seconds", "target_seconds", "target_passes", "draft_passes"):
        assert getattr(total, field) == sum(getattr(part, field) for part in parts)


def test_paraphrase_answers_other_words(tmp_path: Path) -> None:
    def says(prompt: str) -> str:
        return "Why do {kites} stay up?\n" if "other words" in prompt else "Well, on the wind."

    pair = talking(tmp_path, says)
    system = {"role": "system", "content": "Be brief."}
    begun = {"role": "assistant", "content": "Well,"}
    reply = answer("paraphrase", pair, system, ASKED, begun)
    assert reply.text == " on the wind."
    reworded = {"role": "user", "content": "Why do {kites} stay up?"}
    assert pair.prompts_seen[1] == rendered(system, reworded)
    assert ASKED["content"] in pair.prompts_seen[0]
    assert "Be brief." not in pair.prompts_seen[0]
    figures = reply.statistics
    assert figures.tokens == len(reply.trace) == len(" on the wind.") + 1
    assert figures.target_passes == figures.tokens + len("Why do {kites} stay up?\n") + 1
    assert figures.first_token_seconds < figures.seconds


def test_an_empty_paraphrase_is_refused(tmp_path: Path) -> None:
    pair = talking(tmp_path, lambda prompt: " \n" if "other words" in prompt else "On the wind.")
    reply = answer("paraphrase", pair, ASKED)
    assert reply.text == REFUSAL
    assert reply.statistics.target_passes == 3
    assert len(pair.prompts_seen) == 1


def test_a_paraphrase_cannot_run_on(tmp_path: Path) -> None:
    pair = talking(tmp_path, lambda p: "la " * 999 if "other words" in p else "On the wind.")
    assert answer("paraphrase", pair, ASKED).text == "On the wind."
    assert len(pair.prompts_seen[1]) < 4 * len(rendered(ASKED))


@pytest.fixture(scope="module")
def pair(tiny_pair: tuple[Path, Path]) -> safedraft.Pair:
    return safedraft.load_pair(
        target=str(tiny_pair[0]), draft=str(tiny_pair[1]), engine="transformers"
    )


def short(pair: safedraft.Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for what the defenses add: the tiny models read a token a byte."""
    monkeypatch.setitem(vars(pair), "context_length", 4096)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_speculative_decoding_through_a_real_cache(
    temperature: float, pair: safedraft.Pair
) -> None:
    plain, fast = (
        answer(name, pair, ASKED, max_new_tokens=60, temperature=temperature, seed=3)
        for name in ("target_only", "speculative")
    )
    if temperature == 0:
        assert [token.id for token in fast.trace] == [token.id for token in plain.trace]
    assert fast.statistics.target_passes < fast.statistics.tokens
    assert fast.statistics.matches > 0


@pytest.mark.parametrize("name", NAMES)
def test_replies_repeat_with_their_seed(
    name: str, pair: safedraft.Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(pair, monkeypatch)
    settings = {"max_new_tokens": 12, "temperature": 1.2, "seed": 5}
    one, two = (answer(name, pair, ASKED, **settings) for _ in range(2))
    assert one.text == two.text
    assert one.trace == two.trace
    assert one.statistics.seed == 5


@pytest.mark.parametrize("name", ANSWERING)
@pytest.mark.parametrize("culprit", ["target", "draft"])
def test_nothing_fails_open(
    name: str, culprit: str, pair: safedraft.Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(pair, monkeypatch)
    if culprit == "draft" and name in WITHOUT_DRAFT:
        pytest.skip("does not ask the draft")
    head = getattr(pair, culprit).model.lm_head
    monkeypatch.setitem(head._parameters, "weight", torch.full_like(head.weight, torch.nan))
    with pytest.raises(BrokenModelError, match="NaN"):
        answer(name, pair, ASKED, max_new_tokens=8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "prompt is empty"),
        ([{"role": "user", "content": " "}], "prompt is empty"),
        ([{"role": "user"}], "'role' and a 'content'"),
        ([{"role": "user", "content": "x" * 5000}], "shorten it"),
    ],
)
def test_bad_requests_are_one_clear_error(
    name: str, messages: list[dict[str, str]], message: str, pair: safedraft.Pair
) -> None:
    with pytest.raises(SafeDraftError, match=message):
        answer(name, pair, *messages, max_new_tokens=4)
