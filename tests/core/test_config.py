"""Constants are validated, frozen, and never accepted and ignored."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import pytest
from pydantic import ValidationError
from pydantic_core.core_schema import ErrorType

from safedraft.core.config import (
    OF_SPEED,
    DraftingConfig,
    NoConstants,
    RiskConfig,
    SamplingParams,
    Scheme,
    SSDConfig,
    StructuredOutputs,
)
from safedraft.core.errors import _WORDS, PromptTooLongError, SafeDraftError, explain
from safedraft.core.options import NEUTRAL, SYNONYMS, WITHOUT_EFFECT, SamplingOptions
from safedraft.models.registry import PairSpec


def test_defaults_are_the_published_ones() -> None:
    assert SSDConfig().model_dump() == {
        "sample_space_size": 10,
        "kappa": 1,
        "alpha_intersection": 0.3,
        "alpha_union": 0.8,
        "alpha_min": 0.3,
        "alpha_decay": 0.15,
        "bin_size": 7,
        "threshold": 0.6,
        "threshold_decay": 0.1,
        "initial_scheme": "intersection",
        "prefill_scheme": None,
        "union_bins": 1,
        "draft_tokens": 3,
        "draft_confidence": 0.0,
        "draft_growth": 0.0,
        "draft_tree_threshold": 1.0,
        "draft_tree_stop": 0.0,
        "draft_tree": (),
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("draft_tokens", 0),
        ("draft_tokens", 2.5),
        ("draft_tokens", True),
        ("bin_size", 0),
        ("bin_size", -1),
        ("sample_space_size", 0),
        ("kappa", 0),
        ("alpha_union", math.inf),
        ("alpha_union", math.nan),
        ("alpha_intersection", -0.1),
        ("threshold", 1.1),
        ("threshold_decay", math.nan),
        ("initial_scheme", "both"),
        ("prefill_scheme", "both"),
        ("union_bins", 0),
        ("temperature", 1.0),
    ],
)
def test_what_makes_no_sense_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        SSDConfig.model_validate({field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", -3),
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("temperature", 0.005),
        ("top_k", -2),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", math.inf),
        ("logit_bias", {5: 101}),
        ("logit_bias", {-1: 1}),
        ("seed", -1),
        ("beams", 4),
    ],
)
def test_sampling_that_makes_no_sense_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        SamplingParams.model_validate({field: value})


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: SamplingParams(max_tokens=0), "max_new_tokens: must be at least 1, not 0"),
        (lambda: SamplingParams(temperature=0.005), "temperature: must be 0 (greedy) or at least"),
        (lambda: SamplingParams(beams=4), "beams: there is nothing of this name"),  # type: ignore[call-arg]
        (lambda: SamplingParams(max_tokens=1, max_new_tokens=1), "give max_new_tokens or max_tok"),
        (
            lambda: SamplingParams(eos_token_id=1, stop_token_ids=2),
            "give stop_token_ids or eos_token",
        ),
        (
            lambda: SamplingParams(do_sample=False, temperature=0.5),
            "do_sample=False is greedy, and",
        ),
        (lambda: SamplingParams(do_sample=True, temperature=0), "do_sample=True samples, and"),
        (lambda: SamplingParams(do_sample="yes"), "do_sample: must be true or false, not 'yes'"),
        (lambda: SamplingParams(5), "SamplingParams takes its values by their names"),  # type: ignore[misc]
        (
            lambda: SamplingParams(max_length=20),
            "max_length=20 is not supported with SSD: it count",
        ),
        (lambda: SamplingParams(logprobs=5), "logprobs=5 is not supported with SSD: give top_logp"),
        (lambda: SamplingParams(n=2), "n=2 is not supported with SSD: give the prompt several"),
        (lambda: SSDConfig(alpha_union="x"), "alpha_union: must be a number, not 'x'"),  # type: ignore[arg-type]
        (lambda: SSDConfig().replace(bin_size=0), "bin_size: must be at least 1, not 0"),
        (lambda: SSDConfig(threshold=1.5), "threshold: must be at most 1, not 1.5"),
        (
            lambda: SSDConfig(draft_tree="2-0-0-1"),  # type: ignore[arg-type]
            "draft_tree: 3 nodes, the root included, and more numbers than these",
        ),
        (lambda: SSDConfig(draft_tree=0), "draft_tree has no tokens"),  # type: ignore[arg-type]
        (lambda: SSDConfig(draft_tree=(1,) * 300), "draft_tree: must have 255 or fewer items"),
        (
            lambda: SSDConfig().with_tree("none"),
            "'none' is not a tree: write numbers such as 2-1-0-1",
        ),
        (
            lambda: SSDConfig(draft_tree=(2, 2)),
            "draft_tree has 4 tokens: draft_tokens must be at least",
        ),
        (
            lambda: SSDConfig(draft_tree=(2,), draft_tree_threshold=0.5),
            "draft_tree says what is drafted: set draft_confidence, draft_growth and draft_tree",
        ),
        (
            lambda: SSDConfig(draft_tree=(2,), draft_confidence=0.5),
            "draft_tree says what is drafted: set draft_confidence, draft_growth and draft_tree",
        ),
        (lambda: SSDConfig(draft_tree="2-x"), "draft_tree.1: must be a whole number, not 'x'"),  # type: ignore[arg-type]
        (lambda: SSDConfig(alpha_union=math.nan), "alpha_union: must be a finite number, not nan"),
        (lambda: SSDConfig(bin_size=2.5), "bin_size: must be a whole number, not 2.5"),
        (lambda: SSDConfig(initial_scheme="x"), "initial_scheme: must be 'intersection' or"),
        (lambda: SamplingParams(stop=3), "stop.0: must be a string, not 3"),
        (lambda: SamplingParams(seed="7"), "seed: must be a whole number, not '7'"),
        (lambda: SamplingParams(stop=["a" * 99, None]), "stop.1: must be a string, not None"),
        (lambda: SamplingParams(temperature="hot\n" * 99), "temperature: must be a number, not '"),
    ],
)
def test_what_a_constructor_refuses_is_one_line_of_our_own(
    make: Callable[[], object], line: str
) -> None:
    with pytest.raises(SafeDraftError) as refused:
        make()
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)
    assert "pydantic" not in str(refused.value).lower()
    assert len(str(refused.value)) < 200


def _problem(kind: str, message: str = "", **context: object) -> dict[str, object]:
    return {"type": kind, "msg": message, "ctx": context, "loc": (), "input": None}


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (_problem("missing", "Field required"), "is missing"),
        (
            _problem(
                "model_attributes_type",
                "Input should be a valid dictionary or object to extract fields from",
            ),
            "must be an object with named fields",
        ),
        (_problem("too_long", max_length=1, actual_length=2), "must have 1 or fewer items"),
        (_problem("too_long", max_length=0, actual_length=2), "must be empty"),
        (_problem("string_too_short", min_length=1), "must not be empty"),
        (_problem("less_than_equal", le=2.0), "must be at most 2"),
        (_problem("value_error", error=ValueError("choose one")), "choose one"),
        (_problem("date_type", "Input should be a valid date"), "must be a valid date"),
    ],
)
def test_problems_are_explained_in_our_own_words(problem: dict[str, object], words: str) -> None:
    assert explain(problem) == words


def test_every_explained_type_is_one_of_pydantics() -> None:
    assert (
        {*get_args(ErrorType), "path_type"}
        >= _WORDS.keys()
        > {"int_type", "float_parsing", "tuple_type"}
    )


def test_replace_validates_and_records_what_was_replaced() -> None:
    config = SSDConfig(alpha_min=0.1, bin_size=5).replace(alpha_union=2.0, kappa=3)
    assert config == SSDConfig(alpha_min=0.1, bin_size=5, alpha_union=2.0, kappa=3)
    assert config.model_fields_set == {"alpha_union", "kappa"}
    assert config.replace().model_fields_set == set()
    for name, value in {"bin_size": 0, "alpha_unoin": 1.0, "self": 1}.items():
        with pytest.raises(SafeDraftError, match=name):
            config.replace(**{name: value})


def test_constants_of_another_kind_keep_the_values_that_it_has_names_for() -> None:
    pair = RiskConfig(alpha_union=2.0, draft_tokens=5)
    assert pair.convert_to(RiskConfig) is pair
    assert pair.convert_to(SSDConfig, kappa=3, colour="red") == SSDConfig(
        alpha_union=2.0, draft_tokens=5, kappa=3
    )
    assert pair.convert_to(NoConstants, kappa=3) == NoConstants()
    drafting = DraftingConfig(draft_tokens=5)
    assert drafting.convert_to(RiskConfig) == RiskConfig(draft_tokens=5)
    with pytest.raises(SafeDraftError, match="kappa"):
        drafting.convert_to(SSDConfig, kappa=0)


def test_a_copy_is_validated_as_replace_validates() -> None:
    config = SSDConfig(kappa=2)
    assert config.model_copy(update={"alpha_union": 2.0}) == config.replace(alpha_union=2.0)
    assert config.model_copy() == config.model_copy(deep=True) == config
    for update in ({"alpha_union": -5}, {"nope": 3}):
        with pytest.raises(SafeDraftError, match=next(iter(update))):
            config.model_copy(update=update)


def test_replace_takes_every_name_of_an_option() -> None:
    sampling = SamplingParams(seed=4, temperature=0.7)
    assert sampling.replace(max_tokens=3).max_new_tokens == 3
    assert sampling.replace(do_sample=True).temperature == 0.7
    assert sampling.replace(do_sample=False) == SamplingParams(seed=4)
    assert sampling.replace(seed=None) == SamplingParams(temperature=0.7)
    with pytest.raises(SafeDraftError, match="nope"):
        sampling.replace(nope=None)


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"max_tokens": 5}, {"max_new_tokens": 5}),
        ({"max_completion_tokens": 5}, {"max_new_tokens": 5}),
        ({"stop_strings": "x"}, {"stop": ("x",)}),
        ({"eos_token_id": 3}, {"stop_token_ids": (3,)}),
        ({"eos_token_id": [3, 4]}, {"stop_token_ids": (3, 4)}),
        ({"stop_token_ids": 3}, {"stop_token_ids": (3,)}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"do_sample": False}, {}),
        ({"do_sample": False, "temperature": None, "top_p": None}, {}),
        ({"do_sample": False, "temperature": 0}, {}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": True, "temperature": 0.5}, {"temperature": 0.5}),
        ({"do_sample": None}, {}),
        ({"max_new_tokens": 3, "max_tokens": None}, {"max_new_tokens": 3}),
        ({"use_tqdm": True, "pad_token_id": 7}, {}),
    ],
)
def test_options_have_the_names_of_other_libraries(
    options: dict[str, Any], fields: dict[str, Any]
) -> None:
    assert SamplingParams(**options) == SamplingParams(**fields)


@pytest.mark.parametrize("name", [*NEUTRAL, *WITHOUT_EFFECT, *SamplingParams.model_fields])
def test_nothing_and_what_has_no_effect_are_dropped(name: str) -> None:
    assert SamplingParams(**{name: None}) == SamplingParams()
    if name in NEUTRAL:
        assert SamplingParams(**{name: NEUTRAL[name]}) == SamplingParams()


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_would_change_a_reply_is_refused_by_name(name: str) -> None:
    for value in (1.5, [3], not NEUTRAL[name], "x"):
        with pytest.raises(SafeDraftError, match=f"^{name}=.* is not supported with SSD: "):
            SamplingParams(**{name: value})


def test_the_table_of_types_has_every_name() -> None:
    known = {*SamplingParams.model_fields, *SYNONYMS, *NEUTRAL, *WITHOUT_EFFECT, "do_sample"}
    assert set(SamplingOptions.__annotations__) == known


def test_alpha_may_exceed_one() -> None:
    assert SSDConfig(alpha_union=2.0).alpha_union == 2.0


@pytest.mark.parametrize(
    ("prefill_scheme", "begun", "first"),
    [
        (None, None, "intersection"),
        (None, True, "intersection"),
        ("union", True, "union"),
        ("union", False, "intersection"),
    ],
)
def test_where_a_request_starts(prefill_scheme: str | None, begun: bool | None, first: str) -> None:
    config = SSDConfig(prefill_scheme=prefill_scheme, bin_size=9)
    assert config.first_scheme(begun) == first


def test_where_nobody_knows_it_is_not_guessed() -> None:
    held = SSDConfig(prefill_scheme="union", initial_scheme="union")
    assert held.first_scheme(None) is Scheme.UNION
    with pytest.raises(SafeDraftError, match="set initial_scheme to union too"):
        SSDConfig(prefill_scheme="union").first_scheme(None)


@pytest.mark.parametrize(
    ("growth", "decided", "length"),
    [(0, 0, 6), (0, 1, 6), (2, 0, 6), (2, 1, 2), (2, 3, 6), (2, 9, 6), (0.5, 1, 1), (0.5, 4, 2)],
)
def test_how_many_tokens_are_drafted(growth: float, decided: int, length: int) -> None:
    config = DraftingConfig(draft_tokens=6, draft_growth=growth)
    assert config.draft_length(decided) == length


def test_constants_of_speed_are_those_of_drafting() -> None:
    trees = {"draft_tree_threshold", "draft_tree_stop", "draft_tree"}
    assert {"draft_tokens", "draft_confidence", "draft_growth", *trees} == OF_SPEED


@pytest.mark.parametrize(("limit", "room", "fitted"), [(5, 9, 5), (5, 3, 3), (5, 1, 1)])
def test_a_reply_fits_into_the_context(limit: int, room: int, fitted: int) -> None:
    sampling = SamplingParams(max_new_tokens=limit).fitted(10, 10 + room)
    assert sampling.max_new_tokens == fitted
    assert sampling.seed is not None


def test_a_prompt_that_fills_the_context_is_too_long() -> None:
    with pytest.raises(PromptTooLongError, match="10 tokens"):
        SamplingParams().fitted(10, 10)
    assert SamplingParams(seed=4).fitted(1, 10).seed == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda: SamplingParams(logit_bias={1: 2.0, 3: -1.0}),
        lambda: SamplingParams(stop=("a",), structured_outputs={"json_object": True}),
        lambda: StructuredOutputs(json_schema={"type": "object", "required": ["a", {"b": [1]}]}),
        lambda: RiskConfig(draft_tree=(2, 1)),
        lambda: PairSpec(name="a", target="b", draft="c", template={"enable_thinking": False}),
    ],
)
def test_equal_values_have_one_hash(make: Callable[[], Any]) -> None:
    assert make() == make()
    assert len({make(), make()}) == 1


def test_the_order_of_a_mapping_does_not_change_the_hash() -> None:
    one, other = SamplingParams(logit_bias={1: 2, 3: 4}), SamplingParams(logit_bias={3: 4, 1: 2})
    assert len({one, other}) == 1
    assert len({one, SamplingParams(logit_bias={1: 2})}) == 2


def test_configs_cannot_be_changed() -> None:
    with pytest.raises(SafeDraftError, match=r"^bin_size cannot be changed: make a copy with repl"):
        SSDConfig().bin_size = 3  # type: ignore[misc]
