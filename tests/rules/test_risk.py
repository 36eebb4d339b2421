"""The rule ``risk``: what a risk means for the switch, and where it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.decoding import HEADER, computed, decode_one, read_by, request_of, start, tokens_of
from helpers.models import RandomModel, says
from torch import Tensor

from safedraft.core.config import RiskConfig, Scheme, SSDConfig
from safedraft.core.decode import decode
from safedraft.core.errors import BrokenModelError, SafeDraftError
from safedraft.core.generation import Step
from safedraft.core.request import Request
from safedraft.core.risk import Reading, RiskContext, RiskProbe
from safedraft.core.session import Which
from safedraft.core.switch import Switch
from safedraft.defenses.ada_probe import ReadTarget
from safedraft.engines.scripted import Script, ScriptedEngine
from safedraft.rules.risk import Risk, RiskSwitch

TEXT = [1, 2, 3, 4, 5, 6, 7, 8]


class FixedProbe(RiskProbe):
    """Says the given risks, one after the other, and keeps what it was shown."""

    def __init__(
        self, *risks: float, reads: tuple[Which, ...] = ("draft",), reads_text: bool = False
    ) -> None:
        super().__init__(torch.zeros(1), 0.0, reads, reads_text=reads_text)
        vars(self)["risks"], vars(self)["seen"] = list(risks), []

    def read(self, hidden: Tensor) -> float:
        vars(self)["seen"].append(hidden)
        return float(vars(self)["risks"].pop(0))


def request(*risks: float, question: Sequence[int] = (), **constants: object) -> Request:
    config = RiskConfig(**{"bin_size": 2, "sample_space_size": 3, **constants})  # type: ignore[arg-type]
    return request_of(
        Risk(), config, ([0], [0]), probe=FixedProbe(*risks), question=question, max_new_tokens=8
    )


def schemes(steps: Sequence[Step]) -> str:
    return "".join(step.scheme.value[0] for step in steps if step.scheme)


@pytest.mark.parametrize(
    ("risk", "expected"),
    [(0.9, "uuuuuuuu"), (0.1, "iiiiiiii"), (0.5, "iiuuuuuu")],
)
def test_where_the_models_never_agree(risk: float, expected: str) -> None:
    steps = decode_one(
        says([1] * 8, 1),
        says([2] * 8, 1),
        request(risk, risky_above=0.7, harmless_below=0.3, alpha_union=0.1, sample_space_size=1),
    )
    assert schemes(steps) == expected
    assert [step.signal for step in steps] == [risk] * 8


def test_a_risky_request_leaves_union_where_the_models_agree_and_its_threshold_stays() -> None:
    state = start(request(0.9))
    assert isinstance(state, RiskSwitch)
    state.assess(0.9)
    plain = Switch(SSDConfig(bin_size=2), Scheme.UNION)
    for _ in range(4):
        state.observe(False)
        plain.observe(False)
    assert (state.threshold, state.scheme) == (0.6, Scheme.UNION)
    assert plain.threshold == pytest.approx(0.4)
    for _ in range(2):
        state.observe(True)
    assert state.scheme is Scheme.INTERSECTION


def test_a_harmless_request_has_its_own_weight_in_every_bin() -> None:
    state = start(request(0.05, alpha_harmless=0.2, alpha_decay=0.1))
    state.assess(0.05)
    weights = []
    for _ in range(6):
        weights.append(state.alpha)
        assert isinstance(state, RiskSwitch)
        state.observe(False)
    assert weights == [0.2] * 6


def test_between_the_bounds_it_decides_as_ssd() -> None:
    target, draft = RandomModel(1, 20, 0.6), RandomModel(2, 20, 0.6)
    own = request(0.5, risky_above=0.7, harmless_below=0.3)
    constants = {name: getattr(own.config, name) for name in ("bin_size", "sample_space_size")}
    ssd = request_of(None, constants, ([0], [0]), max_new_tokens=8)
    assert [(s.token, s.scheme, s.alpha) for s in decode_one(target, draft, own)] == [
        (s.token, s.scheme, s.alpha) for s in decode_one(target, draft, ssd)
    ]


def test_the_highest_risk_counts() -> None:
    """A refusal is no reason to go back: its risk is low."""
    steps = decode_one(
        says([1] * 8, 1),
        says([2] * 8, 1),
        request(0.1, 0.9, 0.2, 0.0, reading_bins=1, alpha_union=0.1, sample_space_size=1),
    )
    assert schemes(steps) == "iiuuuuuu"
    assert [step.signal for step in steps] == [0.1, 0.1, *[0.9] * 6]


@pytest.mark.parametrize(
    ("prompt", "question", "read"),
    [
        ([5, 6, 7], [5, 6, 7], [5, 6, 7]),  # no answer has begun
        ([5, 6, 7, 8, 9], [5, 6, 7], [5, 6, 7]),  # one has
        ([5, 6, 77, 8], [5, 6, 7], [5, 6, 7]),  # and its first token took in the last of the header
        ([5, 6, 7], [], [5, 6, 7, *HEADER]),  # only token ids are known
    ],
)
def test_the_risk_is_read_where_the_reply_begins(
    prompt: list[int], question: list[int], read: list[int]
) -> None:
    shown: list[list[int]] = []

    def script(ids: Sequence[int]) -> Tensor:
        shown.append(list(ids))
        return torch.linspace(1, 0, 100)

    one = request_of(
        Risk(), RiskConfig(), (prompt, prompt), probe=FixedProbe(0.2), question=question,
        max_new_tokens=3,
    )  # fmt: skip
    engine = ScriptedEngine(lambda ids: torch.linspace(1, 0, 100), script)
    assert tokens_of([step for _, step in decode(engine, [one])]) == [0, 0, 0]
    assert shown[0] == read
    assert shown[1] == prompt  # the first draft follows the prompt, and the header is gone
    draft = engine.sessions[1]
    assert draft.ids[: len(prompt)] == prompt
    shared = len([a for a, b in zip(read, prompt[:-1], strict=False) if a == b])
    assert computed(draft)[1] == len(prompt) - shared


def test_it_is_read_again_after_the_set_number_of_bins() -> None:
    probe = FixedProbe(0.1, 0.1, 0.1)
    config = RiskConfig(bin_size=2, reading_bins=2, draft_tokens=7)
    one = request_of(Risk(), config, ([0], [0]), probe=probe, question=[0], max_new_tokens=9)
    engine = ScriptedEngine(says([*TEXT, 9], 1), says([*TEXT, 9], 1))
    steps = [step for _, step in decode(engine, [one])]
    assert tokens_of(steps) == [*TEXT, 9]
    assert len(vars(probe)["seen"]) == 3  # before the positions 0, 4 and 8
    assert engine.sessions[1].ids[:8] == [0, *TEXT[:7]]


@pytest.mark.parametrize(
    ("risks", "readings"),
    [
        ([0.02] * 5, 1),  # nothing speaks for harm
        ([0.2] * 5, 5),
        ([0.2, 0.02, 0.02, 0.02, 0.02], 5),  # the largest one counts
        ([0.2, 0.2, 0.9], 3),  # nothing more can follow
        ([0.9], 1),
    ],
)
def test_it_is_read_as_long_as_something_may_follow(risks: list[float], readings: int) -> None:
    probe = FixedProbe(*risks)
    config = RiskConfig(bin_size=1, reading_bins=2, reading_above=0.1)
    one = request_of(Risk(), config, ([0], [0]), probe=probe, question=[0], max_new_tokens=10)
    decode_one(says([*TEXT, 9], 1), says([*TEXT, 9], 1), one)
    assert len(vars(probe)["seen"]) == readings


@pytest.mark.parametrize("accepted", [3, 8])
@pytest.mark.parametrize("question", [[0], []])
def test_both_models_are_read(accepted: int, question: list[int]) -> None:
    """Also where the target has a distribution left, and where only token ids are known."""
    probe = FixedProbe(*[0.06] * 3, reads=("draft", "target"))
    config = RiskConfig(
        bin_size=2, reading_bins=2, draft_tokens=4, sample_space_size=12, alpha_harmless=0.1
    )
    one = request_of(
        Risk(), config, ([7, 0], [0]), probe=probe, question=question, max_new_tokens=9
    )
    one = replace(one, context=one.context._replace(risk=RiskContext(probe, {
        "target": Reading(HEADER, tuple(question and [7, 0])),
        "draft": Reading((*HEADER, 5), tuple(question)),
    })))  # fmt: skip
    said = [*TEXT, 9]
    target, draft = says(said, 2), says(said[:accepted], 1)
    engine = ScriptedEngine(target, draft)
    steps = [step for _, step in decode(engine, [one])]
    assert tokens_of(steps) == said
    depths = [(n, HEADER if n or not question else ()) for n in (0, 4, 8)]
    shown = [
        torch.cat([draft([0, *said[:n], *header, *([5] if header else [])]),
                   target([7, 0, *said[:n], *header])])
        for n, header in depths
    ]  # fmt: skip
    assert [state.tolist() for state in vars(probe)["seen"]] == [one.tolist() for one in shown]
    assert [session.ids[: 2 - at] for at, session in enumerate(engine.sessions)] == [[7, 0], [0]]


@pytest.mark.parametrize("question", [[3, 4, *HEADER], []])
def test_the_end_of_the_text_is_read_too(question: list[int]) -> None:
    """It lies before the header, which follows a part of the reply where there is one."""
    probe = FixedProbe(*[0.06] * 2, reads=("draft", "target"), reads_text=True)
    config = RiskConfig(bin_size=2, reading_bins=2, draft_tokens=4, sample_space_size=12)
    prompt = [3, 4, *HEADER]
    one = request_of(
        Risk(), config, (prompt, prompt), probe=probe, question=question, max_new_tokens=6
    )
    target, draft = says(TEXT, 4), says(TEXT, 4)
    steps = [step for _, step in decode(ScriptedEngine(target, draft), [one])]
    assert tokens_of(steps) == TEXT[:6]
    first = [prompt, prompt[:2]] if question else [[*prompt, *HEADER], prompt]
    later = [[*prompt, *TEXT[:4], *HEADER], [*prompt, *TEXT[:4]]]
    shown = [
        torch.cat([model(ids) for model in (draft, target) for ids in places]).tolist()
        for places in (first, later)
    ]
    assert [state.tolist() for state in vars(probe)["seen"]] == shown


def test_readings_of_target_and_draft_go_together() -> None:
    """One request has the target read, another one the draft; each sees its own model."""
    seen = [FixedProbe(0.2, 0.4, 0.3, reads=("target",)), FixedProbe(0.1)]
    reading = read_by(seen[0], (0,))
    requests = [
        request_of(ReadTarget(reading=reading, interval=3), {}, ([0], [0]), max_new_tokens=8),
        request_of(Risk(), RiskConfig(), ([0], [0]), probe=seen[1], question=[0], max_new_tokens=8),
    ]
    target, draft = says(TEXT, 1), says(TEXT, 1)
    engine = ScriptedEngine(target, draft)
    replies: list[list[Step]] = [[], []]
    for index, step in decode(engine, requests):
        replies[index].append(step)
    assert [tokens_of(steps) for steps in replies] == [TEXT, TEXT]
    assert [step.signal for step in replies[0]] == [0.2] * 3 + [0.4] * 5
    assert [step.signal for step in replies[1]] == [0.1] * 8
    shown = [target([0, *TEXT[:n], *(HEADER if n else ())]) for n in (0, 3, 6)]
    assert [state.tolist() for state in vars(seen[0])["seen"]] == [one.tolist() for one in shown]
    ids = [session.ids for session in engine.sessions]
    assert ids[0] == [0, *TEXT[:7]]  # the target of the first request, without any header
    assert ids[1] == []  # its draft, which is never asked


def test_a_state_that_is_no_number_ends_its_own_request() -> None:
    broken = RiskProbe(torch.full((16,), torch.nan), 0.0)
    good, bad = (
        request_of(Risk(), {}, ([0], [0]), probe=probe, max_new_tokens=4)
        for probe in (FixedProbe(0.1), broken)
    )
    engine = ScriptedEngine(says(TEXT, 1), says(TEXT, 1))
    said: list[tuple[int, Step]] = []
    with pytest.raises(BrokenModelError, match="the risk is unknown"):
        said.extend(decode(engine, [good, bad]))
    assert [(index, step.token) for index, step in said] == [(0, token) for token in TEXT[:4]]


def test_without_a_probe_it_does_not_start() -> None:
    with pytest.raises(SafeDraftError, match=r"safedraft train-risk.*rule='ssd'"):
        start(request_of(Risk()))


def test_bounds_are_in_order() -> None:
    with pytest.raises(SafeDraftError, match="harmless_below must not exceed risky_above"):
        RiskConfig(harmless_below=0.6)


def decode_harmless(
    target: Script, draft: Script, patch: pytest.MonkeyPatch | None = None, **more: Any
) -> tuple[list[int], int, list[bool]]:
    """The tokens of a harmless request, the draft's passes, and which tokens are matches."""
    settings = {"max_new_tokens": 60, "alpha_harmless": 0.0, "reading_bins": 1} | more
    sampling = {name: settings.pop(name) for name in ("max_new_tokens", "temperature", "seed")
                if name in settings}  # fmt: skip
    config = RiskConfig(**{"bin_size": 3, "draft_tokens": 6, **settings})  # type: ignore[arg-type]
    one = request_of(Risk(), config, ([0], [0]), probe=FixedProbe(*[0.08] * 99), question=[0],
                     **sampling)  # fmt: skip
    engine = ScriptedEngine(target, draft)
    if patch:
        patch.setattr("safedraft.core.pauses.Pauses.active", False)
    steps = [step for _, step in decode(engine, [one])]
    return tokens_of(steps), len(computed(engine.sessions[1])), [step.matched for step in steps]


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("draft_tokens", [1, 6])
def test_drafts_in_vain_are_left_out_and_no_token_changes(
    shared: float, draft_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = RandomModel(1, 30, shared), RandomModel(2, 30, shared)
    tokens, passes, _ = decode_harmless(*models, draft_tokens=draft_tokens)
    expected, without, _ = decode_harmless(*models, monkeypatch, draft_tokens=draft_tokens)
    assert tokens == expected
    assert passes < without
    if shared == 0.0:
        assert passes < 0.6 * without


def test_a_draft_that_agrees_again_is_asked_again() -> None:
    target = says([1] * 60, 1)
    draft = says([2] * 20 + [1] * 40, 1)
    _, _, matched = decode_harmless(target, draft)
    assert not any(matched[:20])
    assert all(matched[52:])


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0, "seed": 3},  # the sample space is of both models
        {"alpha_harmless": 0.2},
        {"kappa": 2},
        {"harmless_below": 0.01},  # SSD decides
    ],
)
def test_where_the_draft_has_a_say_it_is_always_asked(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = RandomModel(1, 30), RandomModel(2, 30)
    paused = decode_harmless(*models, **settings)
    assert paused == decode_harmless(*models, monkeypatch, **settings)
