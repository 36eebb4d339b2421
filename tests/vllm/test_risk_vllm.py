"""vLLM reads the risk of a request from the models that the first engine reads."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_pair
from small import SMALL, closing, engine, runner_of, transformers_pair, watched
from test_engine import samplings

import safedraft
from safedraft import GenerationResult, RiskConfig, SamplingParams
from safedraft.core.errors import BrokenModelError, SafeDraftError
from safedraft.core.risk import RiskProbe
from safedraft.core.session import Which
from safedraft.engines.vllm import options as vllm_options
from safedraft.engines.vllm.batch import ServedRequest
from safedraft.engines.vllm.options import KEY, Settings
from safedraft.models.fingerprint import fingerprint
from safedraft.models.probe_file import PROBE, ProbeFile, write_probe
from safedraft.pair import Prompts

pytestmark = pytest.mark.vllm

HEADER = [7, 9]
CONFIG = RiskConfig(draft_tokens=3, risky_above=0.6, harmless_below=0.4)
"""Bounds that leave some of the random risks on each side and some in between."""

ALONE: tuple[Which, ...] = ("draft",)
BOTH: tuple[Which, ...] = ("draft", "target")


def random_probes(
    draft: int, target: int, *, reads_text: bool = False
) -> dict[tuple[Which, ...], RiskProbe]:
    """Probes of random weights for states of these sizes; risks lie on both sides of one half."""
    draw, places = torch.Generator().manual_seed(3), 1 + reads_text
    return {
        reads: RiskProbe(
            torch.randn(width, generator=draw) * (12 / width) ** 0.5,
            0.0,
            reads,
            reads_text=reads_text,
        )
        for reads, width in ((ALONE, places * draft), (BOTH, places * (draft + target)))
    }


def give_probe(
    pair: Any, folder: Path, reads: tuple[Which, ...] = BOTH, *, reads_text: bool = False
) -> Any:
    """The pair, its vLLM engine included, as if its adapter had probes."""
    runner = runner_of(pair)
    models = (runner.drafter.model, runner.model)
    sizes = (model.config.hidden_size for model in models)
    probes = random_probes(*sizes, reads_text=reads_text)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    write_probe(folder, ProbeFile(probes[ALONE], probes[BOTH]))
    settings = runner.vllm_config.additional_config[KEY]
    settings.update(
        probe=str(folder / PROBE), probe_reads=reads, generation_prompt=HEADER, turn_header=HEADER
    )
    vllm_options._read_probe.cache_clear()
    runner._settings = Settings.of(runner.vllm_config)
    return with_probe(pair, probes[reads])


def with_probe(pair: Any, probe: RiskProbe) -> Any:
    changed = replace(pair, probe=probe, config=CONFIG)
    headers = dict.fromkeys(BOTH, tuple(HEADER))  # there is no tokenizer to ask
    changed.__dict__["turn_headers"] = headers
    return changed


def conversations(count: int, seed: int, longest: int) -> list[Prompts]:
    """Prompts of random ids that end with the header; every second one goes on with a reply."""
    draw = random.Random(seed)

    def text(length: int) -> list[int]:
        return [draw.randrange(10, 512) for _ in range(length)]

    made = []
    for at in range(count):
        question = [*text(draw.randint(1, longest)), *HEADER]
        ids = question + text(draw.randint(1, longest) if at % 2 else 0)
        made.append(asking(ids, question))
    return made


def asking(ids: list[int], question: list[int]) -> Prompts:
    return Prompts(ids, ids, dict.fromkeys(BOTH, question))


def decode(pair: Any, asked: Sequence[Prompts], given: Sequence[SamplingParams]) -> list[Any]:
    """Replies of the rule ``risk``, one after the other."""
    return [
        pair.stream_ids(one, sampling=each, config=CONFIG, turn_begun=None).drain()
        for one, each in zip(asked, given, strict=True)
    ]


def facts(reply: GenerationResult) -> list[tuple[Any, ...]]:
    return [(token.id, token.matched, token.scheme, token.alpha) for token in reply.trace]


@pytest.mark.parametrize("reads", [BOTH, ALONE], ids=["both models", "the draft alone"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_gpu_blocks_override": 14, "max_num_batched_tokens": 48},
        {"enable_prefix_caching": False, "max_num_batched_tokens": 48},
    ],
    ids=["prefix caching", "preempted, in chunks", "in chunks"],
)
def test_risk_and_tokens_are_those_of_the_first_engine(
    tmp_path: Path, options: dict[str, Any], reads: tuple[Which, ...]
) -> None:
    asked, given = conversations(16, 4, 60), samplings(16)
    with engine("near", **options) as started, watched(started) as seen:
        pair = give_probe(started, tmp_path, reads)
        assert pair.rule == "risk"
        first = with_probe(transformers_pair("near"), pair.probe)
        expected = decode(first, asked, given)
        said = pair.generate_many_ids(asked, sampling=given)
        again = decode(pair, asked[:4], given[:4])  # whose prompts may be cached by now
    risks = [reply.statistics.risk for reply in expected]
    assert min(risks) < CONFIG.harmless_below
    assert max(risks) > CONFIG.risky_above
    assert any(CONFIG.harmless_below < risk < CONFIG.risky_above for risk in risks)
    assert [reply.statistics.risk for reply in said] == pytest.approx(risks, abs=1e-3)
    assert [facts(reply) for reply in said] == [facts(reply) for reply in expected]
    assert [facts(reply) for reply in again] == [facts(reply) for reply in expected[:4]]
    assert bool(seen["resumed in a reply"]) is ("num_gpu_blocks_override" in options)


def test_many_requests_that_come_together_have_their_own_risks(tmp_path: Path) -> None:
    asked, given = conversations(64, 8, 70), samplings(64)
    rules = ["ssd" if at % 5 == 4 else "risk" for at in range(64)]
    small = {"num_gpu_blocks_override": 16, "max_num_batched_tokens": 48}
    with engine("near", **small) as started:
        pair = give_probe(started, tmp_path, reads_text=True)
        first = with_probe(transformers_pair("near"), pair.probe)
        said, expected = (
            [stream.drain() for stream in streams]
            for streams in (
                [
                    of.stream_ids(one, sampling=each, rule=rule, config=CONFIG)
                    for one, each, rule in zip(asked, given, rules, strict=True)
                ]
                for of in (pair, first)
            )
        )
    risks = [reply.statistics.risk for reply in expected]
    assert [risk is None for risk in risks] == [rule == "ssd" for rule in rules]
    assert [reply.statistics.risk for reply in said] == pytest.approx(risks, abs=1e-3)
    assert [facts(reply) for reply in said] == [facts(reply) for reply in expected]


@contextmanager
def watched_places(pair: Any) -> Iterator[Counter[str]]:
    """Count where the places are that the draft looks for."""
    drafter, seen = runner_of(pair).drafter, Counter[str]()
    find = drafter._find_places

    def watch(bounds: Sequence[int], target_bounds: Sequence[int], states: torch.Tensor) -> Any:
        found = find(bounds, target_bounds, states)
        rows = zip(drafter.rows, pairwise(bounds), pairwise(target_bounds), strict=True)
        for row, (start, end), (target_start, target_end) in rows:
            places = row.served.request.unread
            ahead = [place - int(drafter.positions[start]) for place in places]
            read = target_end - target_start
            seen["read by the draft alone"] += any(read <= one < end - start for one in ahead)
            seen["at the only token that is not cached"] += (ahead, read) == ([0], 1)
            within = sum(0 <= one < min(read, end - start) for one in ahead)
            seen["one of two in a pass"] += len(ahead) == 2 and within == 1
            seen["both in a pass"] += within == 2
        return found

    drafter._find_places = watch
    yield seen
    del drafter._find_places


@pytest.mark.parametrize("reads_text", [False, True], ids=["its end", "its text too"])
@pytest.mark.parametrize("begun", [[], [20] * 60], ids=["question", "begun reply"])
def test_a_question_may_end_anywhere_in_a_chunk_or_after_what_is_cached(
    tmp_path: Path, begun: list[int], reads_text: bool
) -> None:
    draw = random.Random(2)
    questions = [
        [*(draw.randrange(10, 512) for _ in range(length - len(HEADER))), *HEADER]
        for length in (32, 33, 47, 48, 49, 50, 65, 96, 97, 98)
    ]
    asked = [asking(question + begun, question) for question in questions for _ in range(2)]
    given = [SamplingParams(max_new_tokens=4)] * len(asked)
    with (
        engine("near", max_num_batched_tokens=48) as started,
        watched_places(started) as seen,
    ):
        pair = give_probe(started, tmp_path, reads_text=reads_text)
        first = with_probe(transformers_pair("near"), pair.probe)
        said, expected = (decode(of, asked, given) for of in (pair, first))
    assert seen["read by the draft alone"]
    if reads_text:
        assert seen["one of two in a pass"]
        assert seen["both in a pass"]
    else:
        assert bool(seen["at the only token that is not cached"]) is not bool(begun)
    risks = [reply.statistics.risk for reply in expected]
    assert [reply.statistics.risk for reply in said] == pytest.approx(risks, abs=1e-3)
    assert [facts(reply) for reply in said] == [facts(reply) for reply in expected]


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A target, a draft and its adapter, whose file has a probe of both; heads as vLLM's."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("speaking")
    target, draft = save_pair(folder, hidden_size=128, head_dim=32)
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(LlamaForCausalLM.from_pretrained(draft), lora).save_pretrained(folder / "lora")
    probes = random_probes(128, 128, reads_text=True)
    own = {"target": fingerprint(target)}
    write_probe(folder / "lora", ProbeFile(probes[ALONE], probes[BOTH], own))
    return target, draft, folder / "lora"


@pytest.mark.parametrize("replaced", [False, True], ids=["its target", "another target"])
def test_a_pair_reads_what_it_reads_in_the_first_engine(
    speaking: tuple[Path, Path, Path], tmp_path: Path, replaced: bool
) -> None:
    target, draft, adapter = map(str, speaking)
    if replaced:
        target = str(save_pair(tmp_path, seed=5, hidden_size=128, head_dim=32)[0])
    models: dict[str, Any] = {"target": target, "draft": draft, "adapter": adapter}
    questions = [f"What is {at} plus {at * at}?" for at in range(8)]
    begun = [{"role": "user", "content": questions[0]}, {"role": "assistant", "content": "It is "}]
    asked: list[Any] = [*questions, begun]
    replies = {}
    for name, own in (("vllm", SMALL), ("transformers", {"dtype": "float32", "device": "cpu"})):
        pair = safedraft.load_pair(**models, engine=name, config=CONFIG, **own)
        assert pair.probe is not None
        assert pair.probe.reads == (ALONE if replaced else BOTH)
        sampling = SamplingParams(max_new_tokens=24)
        with closing(pair):
            replies[name] = [pair.generate(prompt, sampling=sampling) for prompt in asked]
    said, expected = replies.values()
    risks = [reply.statistics.risk for reply in expected]
    assert [reply.statistics.risk for reply in said] == pytest.approx(risks, abs=1e-3)
    assert [facts(reply) for reply in said] == [facts(reply) for reply in expected]


def test_what_cannot_be_read_is_refused_and_never_decided_without(tmp_path: Path) -> None:
    with engine("near") as started:
        pair = give_probe(started, tmp_path)
        with pytest.raises(SafeDraftError, match="no beginning of an assistant's turn"):
            pair.stream_ids([5, 6])
        assert pair.stream_ids([5, 6], rule="ssd").drain().trace  # which needs no risk
        with pytest.raises(SafeDraftError, match="reading_bins"):
            pair.stream_ids([5, *HEADER], config=CONFIG.replace(reading_bins=2))
        runner_of(started).drafter._find_places = lambda *given: []
        with pytest.raises(BrokenModelError, match="before the risk of its request was read"):
            pair.stream_ids([5, *HEADER], config=CONFIG).drain()


def test_a_state_that_is_no_number_ends_its_request_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = ServedRequest.note_states

    def spoil(request: ServedRequest, place: int, states: Mapping[Which, torch.Tensor]) -> None:
        first = request.request.context.risk.readings["draft"].question == (20, *HEADER)
        spoiled = {**states, "target": states["target"] * torch.nan}
        note(request, place, spoiled if first else states)

    monkeypatch.setattr(ServedRequest, "note_states", spoil)
    with engine("near") as started:
        pair = give_probe(started, tmp_path)
        broken, whole = (
            pair.stream_ids([at, *HEADER], sampling=samplings(1)[0], config=CONFIG)
            for at in (20, 30)
        )
        assert len(whole.drain().trace) == 40
        with pytest.raises(BrokenModelError, match="hidden state is not finite"):
            broken.drain()
        assert not broken.result.trace
