"""Probing: where the target is read while it answers, what becomes of it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEMPLATE, save_tokenizer
from helpers.decoding import assert_no_token_twice
from safetensors.torch import load_file, save_file
from talking import TURN, VOCABULARY, TalkingPair, answering, scripted_pair, talking
from transformers import AutoTokenizer

import safedraft
from safedraft.core.config import SamplingParams
from safedraft.core.errors import PromptTooLongError, SafeDraftError
from safedraft.core.risk import RiskProbe
from safedraft.core.session import Pass, SessionEngine
from safedraft.defenses.ada_probe import ProbingConfig, ada_probe
from safedraft.defenses.ada_rethinking import SEPARATOR
from safedraft.engines.base import Capabilities, Capability
from safedraft.engines.scripted import ScriptedEngine
from safedraft.models.probe_file import TARGET_PROBE, write_target_probe
from safedraft.prompts.drawn import identify
from safedraft.text.encode import turn_header
from safedraft.text.refusals import REFUSAL

ASKED = {"role": "user", "content": "How do kites fly?"}
BEGUN = {"role": "assistant", "content": "They "}
ANSWER = "They fly on the wind, which is stronger above the ground than below it."
PROMPT = f"<|start|>user\n{ASKED['content']}<|end|>\n{TURN}"
HEADER = f"<|end|>\n{TURN}"


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    """A probe of the scripted target, which reads the logit of the first token."""
    weight = torch.zeros(VOCABULARY)
    weight[0] = 1.0
    write_target_probe(tmp_path / "probe", RiskProbe(weight, -2.0), "target")
    return tmp_path / "probe"


def probed(folder: Path, is_risky: Callable[[str], bool]) -> tuple[TalkingPair, list[str]]:
    """A pair whose target shows after a header whether what it has said is risky."""
    save_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    says, read = answering(tokenizer, lambda prompt: ANSWER, []), []

    def script(ids: Sequence[int]) -> torch.Tensor:
        logits, text = says(ids), str(tokenizer.decode(list(ids)))
        if text.endswith(TURN):
            said = text.removeprefix(PROMPT).removesuffix(HEADER)
            read.append(said)
            logits[0] = 4.0 * is_risky(said)
        return logits

    return scripted_pair(tokenizer, script, says), read


def answer(
    pair: Any, folder: Path, *messages: dict[str, str], **settings: Any
) -> safedraft.GenerationResult:
    constants = {n: settings.pop(n) for n in ("check_interval", "refuse_above") if n in settings}
    sampling = SamplingParams(**{"max_new_tokens": 200, **settings})
    return ada_probe(pair, messages, sampling, ProbingConfig(probe=str(folder), **constants))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_reply_that_is_not_risky_is_the_targets_own(
    tmp_path: Path, probe: Path, temperature: float
) -> None:
    pair, read = probed(tmp_path, lambda said: False)
    settings = {"temperature": temperature, "seed": 3, "max_new_tokens": 60}
    plain = pair.generate([ASKED], rule="target_only", **settings)
    read.clear()
    reply = answer(pair, probe, ASKED, **settings)
    assert (reply.text, reply.finish_reason) == (plain.text, plain.finish_reason)
    assert [token.id for token in reply.trace] == [token.id for token in plain.trace]
    assert list(dict.fromkeys(read)) == ["", plain.text[:25], plain.text[:50]]
    assert reply.statistics.target_passes == plain.statistics.target_passes + 3
    assert reply.statistics.risk == pytest.approx(torch.tensor(-2.0).sigmoid().item())


def test_the_header_is_taken_back_and_no_token_is_computed_twice(
    tmp_path: Path, probe: Path
) -> None:
    pair, _ = probed(tmp_path, lambda said: False)
    reply = answer(pair, probe, ASKED)
    assert reply.text == ANSWER
    assert isinstance(pair.engine, ScriptedEngine)
    (target,) = (one for one in pair.engine.sessions if one.name == "target")
    ids = [token.id for token in reply.trace]
    header = turn_header(pair.target.tokenizer)
    assert_no_token_twice(target, pair.prompts([ASKED]).target, ids, len(header) + 1)
    # The last token of the prompt is read again, and the header after 25 and 50 tokens.
    assert sum(n for call, n in target.calls if call == "rewind") == 1 + 2 * len(header) + 2


@pytest.mark.parametrize(
    ("messages", "risky", "text", "kept"),
    [
        ([ASKED], lambda said: True, REFUSAL, 0),
        ([ASKED], lambda said: len(said) > 20, f"{ANSWER[:25]}{SEPARATOR}{REFUSAL}", 25),
        ([ASKED], lambda said: len(said) > 30, f"{ANSWER[:50]}{SEPARATOR}{REFUSAL}", 50),
        ([ASKED, BEGUN], lambda said: said == "They ", f"{SEPARATOR}{REFUSAL}", 0),
        ([ASKED, BEGUN], lambda said: len(said) > 5, f"{ANSWER[5:30]}{SEPARATOR}{REFUSAL}", 25),
    ],
)
def test_what_is_risky_ends_the_reply(
    tmp_path: Path,
    probe: Path,
    messages: list[dict[str, str]],
    risky: Callable[[str], bool],
    text: str,
    kept: int,
) -> None:
    pair, _ = probed(tmp_path, risky)
    reply = answer(pair, probe, *messages)
    assert (reply.text, reply.finish_reason) == (text, "stop")
    assert len(reply.trace) == kept
    figures = reply.statistics
    assert figures.tokens == kept + len(REFUSAL)
    assert figures.target_passes == kept + 1 + kept // 25 + 1  # a token is decoded and dropped
    assert figures.risk == pytest.approx(torch.tensor(2.0).sigmoid().item())
    assert figures.prompt_tokens == len(pair.prompts(messages).target)


def test_interval_and_bound_can_be_set(tmp_path: Path, probe: Path) -> None:
    pair, read = probed(tmp_path, lambda said: True)
    assert answer(pair, probe, ASKED, refuse_above=0.9, check_interval=40).text == ANSWER
    assert list(dict.fromkeys(read)) == ["", ANSWER[:40]]


def test_a_reading_has_room_at_the_end_of_the_context(
    tmp_path: Path, probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, read = probed(tmp_path, lambda said: False)
    needed = len(pair.prompts([ASKED]).target) + len(turn_header(pair.target.tokenizer))
    monkeypatch.setitem(vars(pair), "context_length", needed + 26)
    assert answer(pair, probe, ASKED).text == ANSWER[:26]
    assert read[-1] == ANSWER[:25]
    monkeypatch.setitem(vars(pair), "context_length", needed)
    with pytest.raises(PromptTooLongError):
        answer(pair, probe, ASKED)


def test_a_probe_is_needed(tmp_path: Path) -> None:
    for folder in ("", str(tmp_path)):
        with pytest.raises(SafeDraftError, match=r"ada_probe:probe=FOLDER.*train-ada-probe") as one:
            ProbingConfig(probe=folder)
        assert "\n" not in str(one.value)


def test_a_probe_of_another_target_is_refused(tmp_path: Path, probe: Path) -> None:
    pair, _ = probed(tmp_path, lambda said: False)
    wide = tmp_path / "wide"
    write_target_probe(wide, RiskProbe(torch.zeros(7), 0.0), "another")
    with pytest.raises(SafeDraftError, match="states of 7 numbers of other weights") as one:
        answer(pair, wide, ASKED)
    assert "\n" not in str(one.value)
    (tmp_path / "draft").mkdir()
    save_file(load_file(probe / TARGET_PROBE), tmp_path / "draft" / TARGET_PROBE)
    with pytest.raises(SafeDraftError, match="not a risk probe of this version"):
        answer(pair, tmp_path / "draft", ASKED)


def test_an_engine_without_hidden_states_is_refused(
    tmp_path: Path, probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, _ = probed(tmp_path, lambda said: False)
    none = Capabilities({Capability.SESSIONS: "it keeps its models to itself"})
    monkeypatch.setattr(pair.engine, "capabilities", none)
    with pytest.raises(SafeDraftError, match="ada_probe: it keeps its models to itself"):
        answer(pair, probe, ASKED)


def test_a_target_that_thinks_is_refused(tmp_path: Path, probe: Path) -> None:
    template = TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    pair = talking(tmp_path, lambda prompt: ANSWER, template + "{# </think> #}")
    with pytest.raises(SafeDraftError, match="ada_probe reads the target's answer, and target"):
        answer(pair, probe, ASKED)


@pytest.mark.parametrize("messages", [[ASKED], [ASKED, BEGUN]])
def test_with_real_caches_a_reading_is_that_of_a_fresh_pass(
    tmp_path: Path, tiny_pair: tuple[Path, Path], messages: list[dict[str, str]]
) -> None:
    target, draft = map(str, tiny_pair)
    pair = safedraft.load_pair(target=target, draft=draft, engine="transformers")
    torch.manual_seed(5)
    own = RiskProbe(torch.randn(32), 0.1)
    write_target_probe(tmp_path / "probe", own, identify(pair.target))
    settings = {"max_new_tokens": 20, "temperature": 1.0, "seed": 1}
    plain = pair.generate(messages, rule="target_only", **settings)
    reply = answer(pair, tmp_path / "probe", *messages, check_interval=6, refuse_above=1.0,
                   **settings)  # fmt: skip
    ids = [token.id for token in plain.trace]
    assert [token.id for token in reply.trace] == ids

    assert isinstance(pair.engine, SessionEngine)
    header, prompt = turn_header(pair.target.tokenizer), pair.prompts(messages).target
    risks = []
    for depth in range(0, len(ids), 6):
        read = [*prompt, *ids[:depth], *(header if depth or len(messages) > 1 else ())]
        session = pair.engine.session("target")
        pair.engine.forward([Pass(session, read, 1)])
        risks.append(own.read(session.hidden[-1]))
    assert len(risks) == 4
    largest = [max(risks[: at // 6 + 1]) for at in range(len(ids))]
    assert [token.signal for token in reply.trace] == pytest.approx(largest, abs=1e-4)
    other = replace(pair, target=replace(pair.target, identity="others"))
    with pytest.raises(SafeDraftError, match="32 numbers of other weights"):
        answer(other, tmp_path / "probe", *messages)
