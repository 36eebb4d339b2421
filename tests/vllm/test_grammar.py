"""A reply under a grammar is within it, and the draft proposes only what the grammar allows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from small import runner_of, scheduler_of, speaking

from safedraft.core.errors import BrokenModelError
from safedraft.core.generation import Step

pytestmark = pytest.mark.vllm

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{1,6}$"},
        "kind": {"enum": ["tall", "small", "small and round"]},
        "ready": {"type": "boolean"},
    },
    "required": ["name", "kind", "ready"],
    "additionalProperties": False,
}

KINDS: dict[str, dict[str, Any]] = {
    "json": {"json": SCHEMA},
    "regex": {"regex": r"[a-c]{3,9}-[0-9]{2}"},
    "choice": {"choice": ["yes", "no", "not yet"]},
    "grammar": {"grammar": 'root ::= ("ab" | "ba" root)'},
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with speaking(tmp_path_factory.mktemp("speaking")) as started:
        yield started


def params_of(pair: Any, grammar: dict[str, Any], seed: int, **given: Any) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    return SamplingParams(
        temperature=seed % 3 / 2,
        seed=seed,
        max_tokens=120,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        structured_outputs=StructuredOutputsParams(**grammar),
        **given,
    )


def decode_all(pair: Any, wanted: Sequence[Any]) -> list[list[int]]:
    """The ids that are decoded for all parameters at once, each after a prompt of its own."""
    core = pair.engine._engine
    for at, params in enumerate(wanted):
        core.add_request(str(at), {"prompt_token_ids": [65 + at % 20, 66, 67]}, params)
    said: dict[int, list[int]] = {}
    while core.has_unfinished_requests():
        for output in core.step():
            said[int(output.request_id)] = list(output.outputs[0].token_ids)
    return [said[at] for at in range(len(wanted))]


def text_of(pair: Any, ids: Sequence[int]) -> str:
    assert ids[-1] in pair.end_tokens
    return str(pair.target.tokenizer.decode(ids[:-1]))


def is_within(kind: str, text: str) -> bool:
    if kind == "json":
        found = json.loads(text)
        return bool(
            found.keys() == {"name", "kind", "ready"}
            and re.fullmatch("[a-z]{1,6}", found["name"])
            and found["kind"] in SCHEMA["properties"]["kind"]["enum"]  # type: ignore[index]
            and isinstance(found["ready"], bool)
        )
    if kind == "choice":
        return text in KINDS["choice"]["choice"]
    pattern = KINDS["regex"]["regex"] if kind == "regex" else "(ba)*ab"
    return bool(re.fullmatch(pattern, text))


def test_every_reply_is_within_its_grammar_alone_and_beside_others(pair: Any) -> None:
    kinds = [kind for kind in KINDS for _ in range(6)]
    wanted = [params_of(pair, KINDS[kind], seed) for seed, kind in enumerate(kinds)]
    manager = scheduler_of(pair).structured_output_manager
    validate, proposed = manager.validate_tokens, [0, 0]

    def watch(request: Any, tokens: list[int]) -> Any:
        kept = validate(request, tokens)
        ended = any(token in pair.end_tokens for token in tokens[: len(kept) + 1])
        proposed[0] += len(tokens)
        proposed[1] += 0 if ended else len(tokens) - len(kept)
        return kept

    manager.validate_tokens = watch
    together = decode_all(pair, wanted)
    del manager.validate_tokens
    for kind, ids in zip(kinds, together, strict=True):
        assert is_within(kind, text_of(pair, ids))
    assert len({tuple(ids) for ids in together}) > 12
    assert proposed[0] > 0
    assert proposed[1] == 0  # the grammar rejects no draft
    for at in (0, 4, 7, 11, 13, 17, 19, 23):
        prompt = {"prompt_token_ids": [65 + at % 20, 66, 67]}
        (alone,) = pair.engine._llm.generate([prompt], wanted[at], use_tqdm=False)
        assert list(alone.outputs[0].token_ids) == together[at]


def test_every_position_has_a_draft_and_matches_are_the_drafts_own(pair: Any) -> None:
    wanted = [
        params_of(pair, KINDS["json"], 0, extra_args={"ssd_trace": f"trace-{at}"})
        for at in range(3)
    ]
    said = decode_all(pair, wanted)
    for at, ids in enumerate(said):
        taken, *_, error = runner_of(pair).take_trace(f"trace-{at}")
        assert error is None
        steps = [Step(*fields) for fields in taken]
        assert [step.token for step in steps] == ids
        assert all(step.scheme and 0 < (step.draft_probability or 0) <= 1 for step in steps)
        assert any(step.matched for step in steps)


def test_a_grammar_behind_reasoning_is_refused(pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.exceptions import VLLMValidationError

    config = pair.engine._engine.vllm_config.structured_outputs_config
    monkeypatch.setattr(config, "reasoning_parser", "deepseek_r1")
    with pytest.raises(VLLMValidationError, match="after reasoning is not supported"):
        decode_all(pair, [params_of(pair, KINDS["choice"], 0)])


def test_a_grammar_that_a_worker_cannot_compile_ends_its_own_request(
    pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safedraft.engines.vllm.grammar import GrammarCompiler

    compile_one = GrammarCompiler.compile

    def fail(self: GrammarCompiler, params: Any) -> Any:
        if params.seed == 7:
            raise BrokenModelError("structured_outputs: no")
        return compile_one(self, params)

    monkeypatch.setattr(GrammarCompiler, "compile", fail)
    wanted = [params_of(pair, KINDS["regex"], seed) for seed in (0, 7, 2)]
    said = decode_all(pair, wanted)
    assert [bool(ids) for ids in said] == [True, False, True]
    assert is_within("regex", text_of(pair, said[0]))
