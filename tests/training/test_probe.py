"""The risk probe: what it learns from, how it is fitted, and the file that holds it."""

from __future__ import annotations

import math
import re
import tomllib
from collections import Counter
from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from conftest import save_tokenizer
from helpers.copies import find_copies, read_texts, texts_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from talking import VOCABULARY, scripted_pair
from transformers import AutoTokenizer, LlamaConfig

from safedraft.core.errors import BrokenModelError, SafeDraftError
from safedraft.core.risk import HiddenLayer, RiskProbe
from safedraft.engines.scripted import ScriptedEngine
from safedraft.models.description import ModelDescription
from safedraft.models.fingerprint import fingerprint
from safedraft.models.probe_file import PROBE, ProbeFile, read_probe, reads_risk, write_probe
from safedraft.prompts.screening import touches_minors
from safedraft.training.config import RiskTrainingConfig
from safedraft.training.conversations import PLAIN, RatedConversation
from safedraft.training.fit import fit_regression
from safedraft.training.ngrams import NgramClassifier
from safedraft.training.requests import OWN_SHARES, TrainingRequest, read_shipped
from safedraft.training.risk import LeftOut, count_flagged, learn_risk, leave_out_sources
from safedraft.training.states import RatedPrompt, RatedState, choose_conversations, read_states

FORMS = ("data", "encoding", "long template")

fit = partial(fit_regression, ridge=1.0)


def test_both_kinds_stand_in_the_same_surroundings() -> None:
    conversations = choose_conversations("train", RiskTrainingConfig())
    plain = Counter(one.harmful for one in conversations if one.surroundings == PLAIN)
    assert plain[False] > 1.7 * plain[True] > 1000
    dressed = {
        harmful: Counter(
            one.surroundings
            for one in conversations
            if one.harmful is harmful and one.surroundings != PLAIN
        )
        for harmful in (True, False)
    }
    assert len(dressed[True]) == 8
    for name, count in dressed[True].items():
        share = count / plain[True]
        assert share == pytest.approx(0.5 if name in FORMS else 0.6, abs=0.05)
        assert dressed[False][name] / plain[False] == pytest.approx(share, abs=0.05)


def test_a_conversation_ends_with_its_request() -> None:
    for one in choose_conversations("calibration", RiskTrainingConfig(dressed=5)):
        last = one.messages[-1]
        assert last["role"] == "user"
        # Some jailbreak frames spell it out letter by letter.
        if one.surroundings not in ("jailbreak frame", "encoding"):
            assert one.request.text in last["content"]
        assert not re.search(r"\{(request|written)\}", last["content"])


def test_the_splits_share_no_request_and_a_limit_takes_some() -> None:
    train, check = (
        {one.request.text for one in choose_conversations(split, RiskTrainingConfig())}
        for split in ("train", "calibration")
    )
    assert not train & check
    assert len(check) == pytest.approx(OWN_SHARES.calibration / 100 * len(train | check), rel=0.1)
    few = choose_conversations("train", RiskTrainingConfig(requests=7, dressed=2, forms_every=1))
    assert len({one.request.text for one in few}) == 7
    assert len(few) == 42


def test_no_text_stands_twice_or_touches_minors() -> None:
    texts = [request.text for request in read_shipped()]
    assert len(set(texts)) == len(texts)
    dressings = files("safedraft.training").joinpath("data/dressings.toml").read_text("utf-8")
    for text in [*texts, *texts_of(tomllib.loads(dressings))]:
        assert not touches_minors(text), text


def test_nothing_is_a_copy_of_what_is_measured_on() -> None:
    ours = read_texts(files("safedraft.training").joinpath("data"))
    theirs = [
        text
        for package, folder in (("prompts", "data"), ("evaluation", "data/attacks"))
        for text in read_texts(files(f"safedraft.{package}").joinpath(folder))
    ]
    assert len(ours) > 3000
    assert len(theirs) > 800
    assert find_copies(["Please tell me how big whales are"], ["Tell me please how big whales are"])
    assert find_copies(ours, theirs) == []


def test_what_is_flagged_is_counted_by_kind_and_surroundings() -> None:
    states = [
        RatedState(
            RatedConversation([], TrainingRequest(str(at), "harmful", source), PLAIN),
            torch.zeros(1),
            [1],
        )
        for at, source in enumerate(("shipped", "code", "code"))
    ]
    assert count_flagged(states, [(True, False), (True, True), (False, True)]) == [
        ("harmful", PLAIN, 1, 0, 1),
        ("harmful, code", PLAIN, 1, 2, 2),
    ]


def state_of(source: str, harmful: bool, number: float, token: int) -> RatedState:
    """A conversation whose state is one number, and whose wording one token."""
    request = TrainingRequest(f"{source} {number}", "harmful" if harmful else "ordinary", source)
    return RatedState(RatedConversation([], request, PLAIN), torch.tensor([number]), [token])


def states_by_source(**signs: int) -> list[RatedState]:
    """Twenty conversations of each source: the sign of the state is that of the harm, or the other.

    The words of each source are its own.
    """
    return [
        state_of(source, harmful, sign * (n + 1.0 if harmful else -n - 1.0), 10 * at + harmful)
        for at, (source, sign) in enumerate(signs.items())
        for n in range(10)
        for harmful in (True, False)
    ]


def test_a_source_that_is_left_out_is_judged_by_all_others() -> None:
    states = states_by_source(alike=1, same=1, opposite=-1)
    counts = leave_out_sources(states[:40], states[:40], fit, 0.0)
    assert counts == [
        LeftOut("alike", True, 20, 20, 20),  # no word of it is known
        LeftOut("alike", False, 0, 20, 20),
        LeftOut("same", True, 20, 20, 20),
        LeftOut("same", False, 0, 20, 20),
    ]
    opposite = leave_out_sources(states, states[:40], fit, 0.0)[2:4]
    assert opposite == [
        LeftOut("opposite", True, 0, 10, 10),
        LeftOut("opposite", False, 10, 10, 10),
    ]


def test_a_source_without_which_one_side_is_missing_is_not_left_out() -> None:
    harmful = [state_of("all", True, n + 1.0, 1) for n in range(5)]
    harmless = [
        state_of(source, False, -n - 1.0, 2) for source in ("all", "safe") for n in range(5)
    ]
    states = [*harmful, *harmless]
    counts = leave_out_sources(states, states, fit, 0.05)
    assert [(one.source, one.harmful, one.total) for one in counts] == [("safe", False, 10)]


def test_the_bias_is_set_by_the_false_alarms_among_what_is_held_out() -> None:
    states = [state_of("one", False, n / 10, 1) for n in range(21)]
    states += [state_of("one", True, n / 10 + 1.05, 2) for n in range(21)]
    trained = learn_risk(states, states, fit, 0.12)
    assert [(one.kind, one.probe) for one in trained.checks] == [("harmful, one", 13),
                                                                 ("ordinary, one", 3)]  # fmt: skip
    risks = [trained.probe.read(one.state) for one in states]
    assert sum(risk > 0.5 for risk in risks) == 16
    assert trained.left_out == []


def test_ngrams_know_pairs_of_tokens() -> None:
    words = NgramClassifier([[1, 2, 3], [2, 1, 3], [4, 5], [5, 4]], [True, False, True, False])
    assert words.score([1, 2]) > 0 > words.score([2, 1])
    assert words.score([7, 8]) == 0


def test_states_are_those_of_each_prompt_alone_and_shared_beginnings_are_read_once(
    tmp_path: Path,
) -> None:
    save_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)

    def script(ids: Sequence[int]) -> torch.Tensor:
        state = torch.zeros(VOCABULARY)
        state[:3] = torch.tensor([len(ids), sum(at * id for at, id in enumerate(ids)), ids[-1]])
        return state

    pair = scripted_pair(tokenizer, script, script)
    conversations = choose_conversations(
        "calibration", RiskTrainingConfig(requests=80, dressed=2, forms_every=0)
    )
    reported: list[tuple[int, int]] = []
    prompts = [RatedPrompt(one, pair.prompts(one.messages).draft) for one in conversations]
    read = read_states(
        pair, prompts, "states", lambda _, done, total: reported.append((done, total))
    )
    assert sorted(id(one.conversation) for one in read) == sorted(map(id, conversations))
    for one in read:
        assert one.ids == pair.prompts(one.conversation.messages).draft
        assert one.state.equal(script(one.ids))
    assert reported[-1] == (len(conversations), len(conversations))
    assert isinstance(pair.engine, ScriptedEngine)
    assert max(pair.engine.batches) == 8
    calls = [call for session in pair.engine.sessions for call in session.calls]
    appended = sum(count for kind, count in calls if kind == "forward")
    assert appended < 0.9 * sum(len(one.ids) for one in read)


def test_states_are_read_at_several_distances_from_the_end(tmp_path: Path) -> None:
    """Also of prompts that are the beginnings of others, whose last tokens are read again."""
    save_tokenizer(tmp_path)

    def script(ids: Sequence[int]) -> torch.Tensor:
        return torch.zeros(VOCABULARY).index_fill_(0, torch.tensor([len(ids)]), 1.0 + ids[-1])

    pair = scripted_pair(AutoTokenizer.from_pretrained(tmp_path), script, script)
    one = RatedConversation([], TrainingRequest("", "harmful"), PLAIN)
    texts = [[5, 6, 7, 8], [5, 6, 7, 8, 9], [5, 6, 7], [5, 6], [5, 6, 7, 8, 9, 3]]
    read = read_states(
        pair, [RatedPrompt(one, ids) for ids in texts], "", lambda *_: None, "draft", (0, 2)
    )
    assert sorted(state.ids for state in read) == sorted(text for text in texts if len(text) > 2)
    for state in read:
        assert state.state.equal(torch.cat([script(state.ids), script(state.ids[:-2])]))


@pytest.mark.parametrize(("state", "risk"), [(0.0, 0.5), (1e9, 1.0), (-1e9, 0.0)])
def test_the_risk_is_a_probability(state: float, risk: float) -> None:
    probe = RiskProbe(torch.tensor([2.0]), 0.0)
    assert probe.read(torch.tensor([state])) == pytest.approx(risk, abs=1e-9)
    with pytest.raises(BrokenModelError, match="not finite"):
        probe.read(torch.tensor([torch.nan]))


def test_hidden_units_have_no_negative_values() -> None:
    units = HiddenLayer(torch.tensor([[1.0, 0.0], [0.0, -1.0]]), torch.tensor([0.5, 0.0]))
    probe = RiskProbe(torch.tensor([2.0, 3.0]), -1.0, hidden=units)
    states = torch.tensor([[1.0, 1.0], [-1.0, -2.0], [-1.0, 1.0]])
    assert probe.logits(states).tolist() == [2.0, 5.0, -1.0]
    assert probe.width == 2
    assert probe.read(states[2]) == pytest.approx(1 / (1 + math.e))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"weights")
    (tmp_path / "adapter_config.json").write_text("{}")
    return tmp_path


def draft(width: int = 3) -> ModelDescription:
    return ModelDescription(
        "draft", LlamaConfig(hidden_size=width, num_attention_heads=1), None, None
    )


def weights_of(folder: Path, number: float) -> Path:
    folder.mkdir(exist_ok=True)
    save_file({"weight": torch.full((64,), number)}, folder / "model.safetensors")
    return folder


def test_the_probe_of_both_models_is_that_of_its_target(adapter: Path, tmp_path: Path) -> None:
    own, other = (weights_of(tmp_path / name, at) for at, name in enumerate(("own", "other")))
    assert read_probe(adapter, draft(), own) == (None, None)
    assert not reads_risk(str(adapter))
    alone = RiskProbe(torch.tensor([1.0, -2.0, 0.5]), -0.25)
    write_probe(adapter, ProbeFile(alone))
    probe, note = read_probe(adapter, draft(), own)
    assert probe is not None
    assert (probe.weight.tolist(), probe.bias, probe.reads) == ([1.0, -2.0, 0.5], -0.25, ("draft",))
    assert note is None
    assert reads_risk(str(adapter))
    assert not reads_risk(None)

    units = HiddenLayer(torch.arange(10.0).view(2, 5), torch.tensor([0.5, -3.0]))
    both = RiskProbe(torch.tensor([1.0, 2.0]), 0.75, hidden=units, reads_text=True)
    write_probe(adapter, ProbeFile(alone, both, {"target": fingerprint(own)}))
    probe, note = read_probe(adapter, draft(), own)
    assert probe is not None
    assert probe.hidden is not None
    assert (probe.weight.tolist(), probe.bias, probe.width) == ([1.0, 2.0], 0.75, 5)
    assert [part.tolist() for part in probe.hidden] == [part.tolist() for part in units]
    assert (probe.reads, probe.reads_text, note) == (("draft", "target"), True, None)
    assert read_probe(adapter, draft(), adapter / "gone")[1] is None  # described, not fetched
    probe, note = read_probe(adapter, draft(), other)
    assert probe is not None
    assert (probe.weight.tolist(), probe.reads) == ([1.0, -2.0, 0.5], ("draft",))
    assert not probe.reads_text
    assert note is not None
    assert "was trained with another target (safedraft train-risk)" in note


def test_a_probe_of_something_else_is_refused(adapter: Path) -> None:
    write_probe(adapter, ProbeFile(RiskProbe(torch.tensor([1.0, -2.0, 0.5]), -0.25)))
    with pytest.raises(SafeDraftError, match="reads states of 3 numbers, the draft has 4"):
        read_probe(adapter, draft(4), adapter)
    write_probe(adapter, ProbeFile(RiskProbe(torch.ones(4), 0.0, reads_text=True)))
    assert read_probe(adapter, draft(2), adapter)[0]
    with pytest.raises(SafeDraftError, match="reads states of 4 numbers, the draft has 8"):
        read_probe(adapter, draft(4), adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"others")
    with pytest.raises(SafeDraftError, match=r"another adapter.*safedraft train-risk"):
        read_probe(adapter, draft(), adapter)
    save_file({"weight": torch.zeros(3), "bias": torch.zeros(1)}, adapter / PROBE)
    with pytest.raises(SafeDraftError, match="not a risk probe of this version"):
        read_probe(adapter, draft(), adapter)
    (adapter / PROBE).write_bytes(b"broken")
    with pytest.raises(SafeDraftError, match="cannot be read"):
        read_probe(adapter, draft(), adapter)


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden.bias": torch.zeros(1)},
        {"hidden.bias": torch.zeros(3)},
        {"hidden.weight": torch.zeros(3)},
        {"weight": torch.zeros(3)},
        {"weight": torch.zeros(2, 3)},
        {"weight": torch.tensor(1.0)},
        {"bias": torch.zeros(2)},
        {"reads_text": None},
        {"hidden.weight": None},
    ],
)
def test_a_damaged_file_is_refused(adapter: Path, changes: dict[str, torch.Tensor | None]) -> None:
    units = HiddenLayer(torch.ones(2, 3), torch.zeros(2))
    write_probe(adapter, ProbeFile(RiskProbe(torch.ones(2), 0.0, hidden=units)))
    with safe_open(adapter / PROBE, "pt") as content:
        facts = content.metadata()
    tensors = load_file(adapter / PROBE) | changes
    save_file(
        {name: one for name, one in tensors.items() if one is not None}, adapter / PROBE, facts
    )
    with pytest.raises(SafeDraftError, match="cannot be read: "):
        read_probe(adapter, draft(), adapter)
