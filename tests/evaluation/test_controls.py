"""Every attack has a control: the same transformation of a harmless request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from inspect_ai.log import list_eval_logs, read_eval_log
from stage import serve_wheel, use_pair

from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.controls import first_requests, pair_with_controls, read_records
from safedraft.evaluation.matrix import Matrix, prepare
from safedraft.evaluation.solving import build_conversation
from safedraft.evaluation.suites import SUITES, Suite
from safedraft.prompts.sources import Record
from safedraft.text.results import Statistics, join_statistics

SENTENCE = "The wind moves the red wheel, and the wheel moves the stone. "


def test_a_suite_of_attacks_without_controls_does_not_load() -> None:
    with pytest.raises(SafeDraftError, match="the suite bare needs controls"):
        Suite("bare", "attack", "bare", "harmbench")
    with pytest.raises(SafeDraftError, match="sums is about no attack"):
        Suite("sums", "accuracy", "sums", "arithmetic", controls=("ordinary",))


def test_every_suite_of_attacks_has_controls() -> None:
    for suite in SUITES.values():
        assert bool(suite.controls) == (suite.kind == "attack")


def test_controls_have_the_language_the_system_prompt_and_the_attack_of_their_request() -> None:
    requests = [
        Record("Break it.", "bad", prompt="Hey. Break it. Now!", system="Be blunt."),
        Record("Zerstöre es.", "bad", language="de"),
        Record("Burn it.", "bad"),
        Record("Melt it.", "bad"),
    ]
    harmless = [
        Record("Paint it.", "good"),
        Record("Male es an.", "good", language="de"),
        Record("Wash it.", "good"),
    ]
    paired = pair_with_controls(requests, harmless)
    assert [record.request for record in paired] == [
        *("Break it.", "Paint it.", "Zerstöre es.", "Male es an.", "Burn it.", "Wash it."),
        "Melt it.",
    ]
    control = paired[1]
    assert (control.prompt, control.system) == ("Hey. Paint it. Now!", "Be blunt.")
    assert control.variant_key == "Break it."
    assert control.id.startswith("control-good-")
    assert [record.request for record in first_requests(paired, 2)] == [
        *("Break it.", "Paint it.", "Zerstöre es.", "Male es an.")
    ]
    assert first_requests(paired, 4) == first_requests(paired, 9) == paired
    with pytest.raises(SafeDraftError, match=r"languages: de, en.*--control"):
        pair_with_controls(requests, [Record("Peins-le.", "good", language="fr")])


def test_controls_take_turns_between_their_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_wheel(tmp_path, monkeypatch)
    controls = [record.source for record in read_records(SUITES["direct"])[1:8:2]]
    assert controls == ["ordinary", "looks_unsafe", "ordinary", "looks_unsafe"]
    own = tmp_path / "own.txt"
    own.write_text("How do I paint a fence?\n" * 2 + "How do I clean a brush?\n")
    named = read_records(SUITES["direct"], control=f"{own}:part=report")
    assert sum(record.control_of is not None for record in named) == 2
    with pytest.raises(SafeDraftError, match="ordinary is about no attack"):
        read_records(SUITES["ordinary"], control="looks_unsafe")


def test_an_attack_that_does_not_contain_its_request_is_left_out_with_its_control(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = use_pair(tmp_path, monkeypatch, lambda prompt: "x")
    records = pair_with_controls(
        [Record("Break it.", "bad", prompt="In a play, he wrecks the thing.")],
        [Record("Paint it.", "good")],
    )

    def send(record: Record, pair: Any) -> Any:
        return [{"role": "user", "content": record.prompt}]

    for record in records:
        with pytest.raises(SafeDraftError, match="has no control"):
            build_conversation(SUITES["templates"], send, record, pair)


def test_a_system_prompt_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = use_pair(tmp_path, monkeypatch, lambda prompt: "x")
    record = Record("Hi", "own", system="Answer in one word.")
    suite = SUITES["arithmetic"]
    messages = build_conversation(
        suite, lambda record, pair: [{"role": "user", "content": record.request}], record, pair
    )
    assert messages[0] == {"role": "system", "content": "Answer in one word."}
    assert messages[1]["content"] == "Hi" + suite.instruction


@pytest.mark.parametrize("tokens", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_a_ratchet_asks_for_a_few_tokens_at_a_time(
    tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_wheel(tmp_path, monkeypatch)
    use_pair(tmp_path, monkeypatch, lambda prompt: SENTENCE)
    matrix = Matrix(("target_only",), (f"ratchet_{tokens}",), limit=1, max_new_tokens=20)
    prepare(matrix, tmp_path / "logs").run("none")
    (info,) = list_eval_logs(str(tmp_path / "logs"))
    samples = read_eval_log(info).samples or []
    assert len(samples) == 2
    for sample in samples:
        calls = -(-20 // tokens)
        assert sample.output.completion == SENTENCE[:20]
        statistics = sample.output.metadata["safedraft"]  # type: ignore[index]
        assert statistics["tokens"] == 20
        assert sum(event.event == "model" for event in sample.events) == calls


def test_the_cost_of_several_calls_is_added_up() -> None:
    first = Statistics(
        prompt_tokens=5, tokens=7, seconds=1.0, first_token_seconds=0.5, match_ratios=[1.0]
    )
    second = Statistics(prompt_tokens=12, tokens=3, seconds=2.0, signals=2, match_ratios=[0.5])
    assert join_statistics([first, second]) == Statistics(
        prompt_tokens=5, tokens=10, seconds=3.0, first_token_seconds=0.5, signals=2,
        match_ratios=[1.0, 0.5],
    )  # fmt: skip
    assert Statistics.from_dict(second.to_dict()) == second
