"""Hundreds of requests at once: some whose logits break, and all under schemas."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
from jsonschema import validate
from small import break_logits, engine, runner_of, scheduler_of, speaking, transformers_pair
from test_engine import assert_same, by_the_first_engine, prompts, samplings, shape
from test_grammar import SCHEMA, decode_all, params_of, text_of

from safedraft.core.errors import BrokenModelError
from safedraft.core.generation import Step

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

MANY: dict[str, Any] = {"max_num_seqs": 64, "max_num_batched_tokens": 1024}


def test_ten_of_three_hundred_break_and_the_others_say_what_they_say_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The draft breaks for five requests and the target for five, each after its own length."""
    ids = prompts(301, seed=12, longest=20)
    given = [one.replace(max_new_tokens=12) for one in samplings(301)]
    expected = by_the_first_engine(transformers_pair("near"), ids, given)
    seeded = [at for at in range(300) if given[at].temperature]
    long = [at for at in seeded if len(expected[at].trace) == 12]
    chosen = long[5 :: len(long) // 10][:10]
    lengths = {given[at].seed: order for order, at in enumerate(chosen)}
    models: tuple[Literal["draft", "target"], ...] = ("draft", "target")
    for parity, model in enumerate(models):
        break_logits(monkeypatch, model, partial(breaks_now, lengths, parity))
    said, broken = {}, {}
    with engine("near", **MANY) as pair:
        streams = [pair.stream_ids(ids[at], sampling=given[at]) for at in range(300)]
        for at, stream in enumerate(streams):
            try:
                said[at] = stream.drain()
            except BrokenModelError as error:
                broken[at] = str(error)
        assert not scheduler_of(pair).running
        again = pair.stream_ids(ids[300], sampling=given[300]).drain()
    assert list(broken) == chosen
    assert_same([*said.values(), again], [expected[at] for at in (*said, 300)])
    for order, at in enumerate(chosen):
        assert f"the {models[order % 2]} gave NaN" in broken[at]
        begun = streams[at].result
        assert begun.finish_reason == "interrupted"
        assert shape(begun) == shape(expected[at])[: len(begun.trace)]
        assert len(begun.trace) < 12


def breaks_now(lengths: dict[int | None, int], parity: int, one: Any) -> bool:
    """Whether a request has so many tokens, and that number has the parity."""
    length = lengths.get(one.request.seed)
    return length is not None and length % 2 == parity and one.position >= length


def closed(**properties: Any) -> dict[str, Any]:
    """The schema of an object that has these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": [*properties],
        "additionalProperties": False,
    }


WORD = {"type": "string", "pattern": "^[a-z]{1,6}$"}
REFUSAL = closed(refusal={"const": "I can't help with that."})
SCHEMAS: list[dict[str, Any]] = [
    SCHEMA,
    closed(
        place=closed(name=WORD, floor={"type": "integer", "minimum": 0, "maximum": 12}),
        colors={"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 1, "maxItems": 3},
    ),
    {"type": "array", "items": {"type": ["boolean", "null"]}, "minItems": 2, "maxItems": 4},
    {"anyOf": [closed(answer=WORD), REFUSAL]},
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder: Path = tmp_path_factory.mktemp("many")
    with speaking(folder, **MANY) as started:
        yield started


def test_two_hundred_replies_are_valid_under_their_schemas_and_decided_from_both_models(
    pair: Any,
) -> None:
    wanted = [
        params_of(pair, {"json": SCHEMAS[at % 4]}, at, extra_args={"ssd_trace": f"trace-{at}"})
        for at in range(200)
    ]
    refused = Counter[bool]()
    for at, ids in enumerate(decode_all(pair, wanted)):
        reply = json.loads(text_of(pair, ids))
        validate(reply, SCHEMAS[at % 4])
        refused[at % 4 == 3 and "refusal" in reply] += 1
        taken, *_, error = runner_of(pair).take_trace(f"trace-{at}")
        assert error is None
        steps = [Step(*fields) for fields in taken]
        assert [step.token for step in steps] == ids
        assert all(step.scheme and 0 < (step.draft_probability or 0) <= 1 for step in steps)
    assert refused.total() == 200
    assert 0 < refused[True] < 50
