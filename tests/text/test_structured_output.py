"""Replies that are kept to a form: both models are, and a refusal is let out where one refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_tokenizer
from helpers.decoding import decode_together, request_of
from helpers.models import RandomModel
from helpers.templates import tokenizer_with
from pydantic import BaseModel
from talking import END, VOCABULARY, TalkingPair, answering, scripted_pair
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from safedraft.core.config import SamplingParams, SSDConfig, StructuredOutputs
from safedraft.core.constraint import Constrained, restrict
from safedraft.core.decode import Batch
from safedraft.core.errors import (
    FormError,
    PromptTooLongError,
    SafeDraftError,
    UnguardedWarning,
)
from safedraft.core.reference import shift
from safedraft.core.risk import RiskProbe
from safedraft.core.rule import State
from safedraft.engines.base import Capabilities, Capability
from safedraft.engines.scripted import ScriptedEngine
from safedraft.text.grammar import Constrain, Grammars, is_refusal_of_json, texts_of
from safedraft.text.refusals import LANGUAGES, OPENINGS
from safedraft.training.requests import read_data

SCHEMA = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "blue"]},
        "number": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["color", "number"],
    "additionalProperties": False,
}
REFUSAL = "I'm sorry, but I can't help with that."
FORMS: list[tuple[dict[str, Any], str]] = [
    ({"json_schema": SCHEMA}, r'\{\s*"color"\s*:\s*"(red|blue)"\s*,\s*"number"\s*:\s*\d\d?\s*\}'),
    ({"regex": "[0-9]{4}/[0-9][0-9]"}, "[0-9]{4}/[0-9][0-9]"),
    ({"choice": ["yes", 'no, "never"']}, 'yes|no, "never"'),
    ({"grammar": 'start: "a" ("b" | "c")~3'}, "a[bc]{3}"),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def grammars(tokenizer: PreTrainedTokenizerBase) -> Grammars:
    return Grammars(tokenizer, frozenset({END}), VOCABULARY)


def pair_of(
    tokenizer: PreTrainedTokenizerBase, target: Any, draft: Any, **constants: Any
) -> TalkingPair:
    """A pair of scripts, or of what each says to any prompt."""
    scripts = [
        answering(tokenizer, lambda prompt, text=one: text, []) if isinstance(one, str) else one
        for one in (target, draft)
    ]
    return scripted_pair(tokenizer, scripts[0], scripts[1], SSDConfig(**constants))


@pytest.mark.parametrize(("form", "pattern"), FORMS, ids=[next(iter(form)) for form, _ in FORMS])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_random_models_keep_to_the_form(
    tokenizer: PreTrainedTokenizerBase, form: dict[str, Any], pattern: str, temperature: float
) -> None:
    models = RandomModel(1, VOCABULARY, shared=0.5), RandomModel(2, VOCABULARY, shared=0.5)
    pair = pair_of(tokenizer, *models)
    texts = set()
    for seed in range(8):
        reply = pair.generate(
            f"Prompt {seed}", temperature=temperature, seed=seed, structured_outputs=form
        )
        assert reply.finish_reason == "stop"
        assert re.fullmatch(pattern, reply.text), reply.text
        texts.add(reply.text)
    assert len(texts) > 1 or not temperature


class Restricted:
    """A model with the request's penalties, kept to a form by itself.

    The grammar advances with the reply, and penalties count the tokens of a target's prompt.
    """

    def __init__(self, model: RandomModel, start: Constrain, sampling: SamplingParams) -> None:
        self.model, self.start, self.sampling = model, start, sampling

    def __call__(self, ids: Sequence[int]) -> Tensor:
        constraint = self.start(State())
        reply = ids[2:]
        if END in reply:  # drafted past the end; nobody reads this
            return self.model(ids)
        for token in reply:
            constraint.decide(token)
        logits = shift(self.model(ids), (7, ids[1]), reply, self.sampling)
        row = restrict(logits[None], [Constrained([constraint], [])])[0][0]
        return row.clamp(min=-1e9)  # infinite logits of a model are an error


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("draft_tokens", [1, 4])
@pytest.mark.parametrize("penalties", [{}, {"frequency_penalty": 1.5, "repetition_penalty": 2.0}])
def test_it_is_as_if_both_models_were_restricted(
    grammars: Grammars, temperature: float, draft_tokens: int, penalties: dict[str, Any]
) -> None:
    models = [RandomModel(seed, VOCABULARY, shared=0.8) for seed in (3, 4)]
    start = grammars.compile(StructuredOutputs(json_schema=SCHEMA))
    constants = {"draft_tokens": draft_tokens, "bin_size": 2}
    sampling = {"temperature": temperature, "max_new_tokens": 60}

    def requests(constrain: Constrain | None, **more: Any) -> list[Any]:
        prompts = [((7, n), (8, n)) for n in range(6)]
        return [
            request_of(None, constants, own, {END}, constrain=constrain, seed=n, **sampling, **more)
            for n, own in enumerate(prompts)
        ]

    together = decode_together(*models, requests(start, **penalties))
    alone = [decode_together(*models, [one])[0] for one in requests(start, **penalties)]
    own = [Restricted(model, start, SamplingParams(**penalties)) for model in models]
    expected = decode_together(own[0], own[1], requests(None))
    tokens = [[step.token for step in reply] for reply in expected]
    assert [[step.token for step in reply] for reply in together] == tokens
    assert [[step.matched for step in reply] for reply in together] == [
        [step.matched for step in reply] for reply in expected
    ]
    assert [[step.token for step in reply] for reply in alone] == tokens
    assert len({tuple(reply) for reply in tokens}) > 2


def test_a_draft_that_refuses_gets_its_refusal_out_in_union(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    answer = '{"color": "red", "number": 7}'
    form = {"json_schema": SCHEMA}
    union = pair_of(tokenizer, answer, REFUSAL, initial_scheme="union", bin_size=99)
    assert union.generate("Hello", structured_outputs=form).text == REFUSAL
    kept = union.generate("Hello", structured_outputs=form | {"refusal": False})
    assert json.loads(kept.text).keys() == {"color", "number"}
    lossless = pair_of(tokenizer, answer, REFUSAL, alpha_intersection=0.0, alpha_min=0.0)
    reply = lossless.generate("Hello", structured_outputs=form, config={"threshold": 0.0})
    assert reply.text == answer


def test_models_that_want_prose_do_not_refuse_for_want_of_other_words(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    pair = pair_of(tokenizer, "To bake bread, take", "To bake", initial_scheme="union")
    reply = pair.generate("How do I bake bread?", structured_outputs={"json_schema": SCHEMA})
    assert json.loads(reply.text)["color"] in ("red", "blue")


def test_every_trained_refusal_is_let_out(
    tokenizer: PreTrainedTokenizerBase, grammars: Grammars
) -> None:
    start = grammars.compile(StructuredOutputs(json_object=True))
    for language, texts in read_data("refusals").items():
        opening = texts["opening"]
        assert opening.startswith((*OPENINGS, *LANGUAGES)), language
        assert is_refusal_of_json(opening)
        constraint = start(State())
        for token in tokenizer.encode(opening):
            constraint.decide(token)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({}, "exactly one"),
        ({"regex": "a", "choice": ["b"]}, "regex and choice"),
        ({"choice": []}, "choice"),
        ({"json_schema": "{"}, "is not JSON"),
        ({"schema": {}}, "schema"),
    ],
)
def test_a_form_is_refused_before_anything_is_loaded(form: dict[str, Any], words: str) -> None:
    with pytest.raises(SafeDraftError, match=words) as refused:
        SamplingParams(structured_outputs=form)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "form",
    [{"json_schema": {"type": "nonsense"}}, {"regex": "["}, {"grammar": "start: missing"}],
)
def test_a_form_that_does_not_compile_is_refused_in_one_line(
    tokenizer: PreTrainedTokenizerBase, form: dict[str, Any]
) -> None:
    pair = pair_of(tokenizer, "a", "a")
    with pytest.raises(SafeDraftError, match="structured_outputs: ") as refused:
        pair.generate("Hello", structured_outputs=form)
    assert "\n" not in str(refused.value)


def test_what_cannot_be_kept_to_a_form_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    pair = pair_of(tokenizer, "a", "a")
    with pytest.raises(SafeDraftError, match="has begun already"):
        pair.generate("Hello", prefill="{", structured_outputs={"json_object": True})
    with pytest.raises(SafeDraftError, match="structured_outputs="):
        pair.generate("Hello", response_format={"type": "json_object"})  # type: ignore[call-arg]
    pair.engine.capabilities = Capabilities({Capability.GRAMMARS: "not here"})  # type: ignore[misc]
    with pytest.raises(SafeDraftError, match="structured_outputs: not here"):
        pair.generate("Hello", structured_outputs={"json_object": True})


def test_a_schema_is_a_mapping_a_text_or_a_model() -> None:
    class Person(BaseModel):
        name: str

    schema = Person.model_json_schema()
    for given in (schema, json.dumps(schema), Person):
        form = StructuredOutputs(json_schema=given)
        assert form.json_schema == schema
        assert form.is_json
        assert SamplingParams(structured_outputs=form).replace(seed=1).structured_outputs == form


def test_a_token_that_the_grammar_forbids_stops_decoding(
    tokenizer: PreTrainedTokenizerBase, grammars: Grammars
) -> None:
    constraint = grammars.compile(StructuredOutputs(regex="a"))(State())
    with pytest.raises(FormError, match="cannot follow its form"):
        constraint.decide(tokenizer.encode("b")[0])


def test_a_larger_vocabulary_has_no_forms_of_its_own(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    wide = Grammars(tokenizer, frozenset({END}), VOCABULARY + 6)
    start = wide.compile(StructuredOutputs(regex="a", refusal=False))
    kept = start(State()).apply([], torch.zeros(VOCABULARY + 6))
    assert kept.shape == (VOCABULARY + 6,)
    assert (kept > -torch.inf).nonzero().flatten().tolist() == tokenizer.encode("a")


class DeadEnd:
    """Forbids everything at a position of the reply, or raises there."""

    def __init__(self, position: int, *, broken: bool = False) -> None:
        self.position, self.broken, self.decided = position, broken, 0

    def apply(self, drafts: Sequence[int], logits: Tensor) -> Tensor:
        if self.decided + len(drafts) != self.position:
            return logits
        if self.broken:
            raise FormError("too complex")
        return torch.full_like(logits, -torch.inf)

    def decide(self, token: int) -> None:
        self.decided += 1


@pytest.mark.parametrize("position", [0, 1, 2, 5])
@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("draft_tokens", [1, 3])
@pytest.mark.parametrize("shared", [0.3, 1.0])
def test_a_dead_end_ends_its_own_request_where_it_comes_to_it(
    position: int, broken: bool, draft_tokens: int, shared: float
) -> None:
    models = [RandomModel(seed, 30, shared) for seed in (5, 6)]

    def requests(at: int | None) -> list[Any]:
        return [
            request_of(
                None,
                {"draft_tokens": draft_tokens, "bin_size": 2},
                ((n,), (n,)),
                max_new_tokens=9,
                constrain=(lambda state: DeadEnd(position, broken=broken)) if n == at else None,
            )
            for n in range(3)
        ]

    expected = decode_together(*models, requests(None))
    batch = Batch(ScriptedEngine(*models))
    decodings = [batch.add(one) for one in requests(0)]
    while not all(decoding.ended for decoding in decodings):
        batch.step()
    replies = [[step.token for step in decoding.steps] for decoding in decodings]
    tokens = [[step.token for step in reply] for reply in expected]
    assert replies == [tokens[0][:position], *tokens[1:]]
    assert isinstance(decodings[0].error, FormError)
    assert decodings[1].error is decodings[2].error is None


def test_a_dead_end_of_a_rejected_draft_is_none() -> None:
    """Whether a reply is finished does not depend on how far drafts go."""

    class AfterDrafts(DeadEnd):
        def apply(self, drafts: Sequence[int], logits: Tensor) -> Tensor:
            return torch.full_like(logits, -torch.inf) if drafts else logits

    target, draft = RandomModel(1, 30), RandomModel(2, 30)
    constants = {"draft_tokens": 3, "alpha_intersection": 0.0, "alpha_min": 0.0, "threshold": 0.0}
    one = request_of(None, constants, max_new_tokens=12)
    plain = decode_together(target, draft, [one])[0]
    assert not any(step.matched for step in plain[:4])
    kept = request_of(None, constants, max_new_tokens=4, constrain=lambda state: AfterDrafts(0))
    assert [step.token for step in decode_together(target, draft, [kept])[0]] == [
        step.token for step in plain[:4]
    ]


def test_a_form_that_grows_too_complex_is_an_error_of_its_request(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    part = {"type": "object", "properties": {"k": {"$ref": "#"}}}
    pair = pair_of(tokenizer, '{"k": {"k": {"k": 1}}}', '{"k": {"k": {"k": 1}}}')
    with pytest.raises(FormError, match=r"cannot follow its form further: \w") as refused:
        pair.generate("Hi", structured_outputs={"json_schema": {"anyOf": [part] * 300}})
    assert "\n" not in str(refused.value)


def test_no_refusal_is_let_out_of_a_harmless_request(tokenizer: PreTrainedTokenizerBase) -> None:
    """The first word of a refusal begins much else: "I think"."""
    texts = "I think bread is nice", "I think bread is nice"
    pair = pair_of(tokenizer, *texts, initial_scheme="union")
    form = {"json_schema": SCHEMA}
    low = replace(pair, probe=RiskProbe(torch.zeros(VOCABULARY), -9.0))
    assert json.loads(low.generate("Bread?", rule="risk", structured_outputs=form).text)
    high = replace(
        pair_of(tokenizer, REFUSAL, REFUSAL), probe=RiskProbe(torch.zeros(VOCABULARY), 9.0)
    )
    assert high.generate("Bread?", rule="risk", structured_outputs=form).text == REFUSAL


def test_the_risk_is_read_after_the_texts_of_the_form(tokenizer: PreTrainedTokenizerBase) -> None:
    schema = {
        "type": "object",
        "title": "no part of a reply",
        "properties": {"Step one:": {"const": "Take it."}, "type": {"enum": ["a", 1]}},
        "$defs": {"deep": {"items": {"pattern": "b+"}}},
    }
    texts = texts_of(StructuredOutputs(json_schema=schema))
    assert {*texts.splitlines()} == {"Step one:", "Take it.", "type", "a", "b+"}
    assert texts_of(StructuredOutputs(choice=["x", "y"])) == "x\ny"
    pair = pair_of(tokenizer, "a", "a")
    prompts = pair.prompts("Fill in the form.")
    for form, added in (({"json_schema": schema}, texts), ({"json_object": True}, "")):
        request = pair.request(prompts, SamplingParams(structured_outputs=form), rule="risk")
        assert request.context.risk
        question = request.context.risk.readings["draft"].question
        asked = f"Fill in the form.\n\n{added}" if added else "Fill in the form."
        assert list(question) == pair.prompts(asked).draft
    with pytest.raises(PromptTooLongError):
        pair.generate("Hi", structured_outputs={"regex": "a" * 5000})


def test_a_schema_cannot_change_what_is_safedrafts(tokenizer: PreTrainedTokenizerBase) -> None:
    lenient = {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}
    with pytest.raises(SafeDraftError, match="uniqueItems"):
        pair_of(tokenizer, "a", "a").generate("Hi", structured_outputs={"json_schema": lenient})


def test_thinking_is_that_of_the_request(tmp_path: Path) -> None:
    tokenizer = tokenizer_with(tmp_path, "a switch")
    size = len(tokenizer)

    def script(ids: Sequence[int]) -> Tensor:
        return torch.zeros(size)

    pair = replace(scripted_pair(tokenizer, script, script), vocabulary=size)
    form = {"json_schema": {"const": "yes"}}
    with pytest.raises(SafeDraftError, match="begin with reasoning"):
        pair.generate("Hi", structured_outputs=form)
    with pytest.warns(UnguardedWarning):
        reply = pair.generate(
            "Hi", structured_outputs=form, chat_template_kwargs={"enable_thinking": False}
        )
    assert reply.text == '"yes"'
