"""Drafts for a target: which are proposed, with which command, and what no draft can guard."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from pathlib import Path

import pytest
from conftest import save_model, save_tokenizer
from helpers.templates import TRAITS
from transformers import MambaConfig

from safedraft.models import proposals
from safedraft.models.proposals import propose_drafts
from safedraft.models.registry import (
    DraftCandidate,
    PairSpec,
    draft_candidates,
    write_new_pair,
)

TINY = {
    "name": "owner/tiny",
    "family": "Tiny",
    "model_types": ("llama",),
    "tokens": {"<|end|>": 256, "<|start|>": 257},
    "weights": 0.00001,
    "license": "MIT",
}

Know = Callable[..., None]


@pytest.fixture
def know(monkeypatch: pytest.MonkeyPatch) -> Know:
    """Replaces the table by one candidate, the tiny model with some fields changed."""

    def replace(**fields: object) -> None:
        candidate = DraftCandidate.model_validate(TINY | fields)
        monkeypatch.setattr(proposals, "draft_candidates", lambda: [candidate])

    return replace


@pytest.mark.parametrize(
    ("fields", "is_proposed"),
    [
        ({}, True),
        ({"model_types": ("qwen2", "llama")}, True),
        ({"model_types": ("qwen2",)}, False),
        ({"tokens": {"<|end|>": 255}}, False),
        ({"tokens": {"<|end|>": 256, "<|eot_id|>": 128009}}, False),
        ({"weights": 0.5}, False),
    ],
)
def test_a_candidate_has_the_targets_kind_and_tokens_and_is_smaller(
    tmp_path: Path, know: Know, fields: dict[str, object], is_proposed: bool
) -> None:
    save_model(tmp_path)
    save_tokenizer(tmp_path)
    know(**fields)
    found = propose_drafts(str(tmp_path))
    assert [proposal.draft for proposal in found.drafts] == ["owner/tiny"] * is_proposed
    assert found.problems == []


def test_the_command_sets_the_variables_of_the_family(tmp_path: Path, know: Know) -> None:
    save_model(tmp_path)
    save_tokenizer(tmp_path, template=TRAITS["a switch"])
    know(template={"enable_thinking": False, "date_string": "26 Jul 2024"})
    (proposal,) = propose_drafts(str(tmp_path)).drafts
    variables = ("--template", "enable_thinking=false", "--template", "date_string=26 Jul 2024")
    assert proposal.words == (str(tmp_path), "owner/tiny", *variables)


def test_the_draft_of_a_registered_pair_comes_first(tmp_path: Path, know: Know) -> None:
    save_model(tmp_path)
    save_tokenizer(tmp_path)
    know()
    write_new_pair(PairSpec(name="own", target=str(tmp_path), draft="a/b", adapter="c/d"))
    first, second = propose_drafts(str(tmp_path)).drafts
    assert (first.draft, first.words) == ("a/b", ("--pair", "own"))
    assert "with an adapter" in first.reason
    assert second.draft == "owner/tiny"


def test_a_target_without_a_tokenizer_has_no_sibling(tmp_path: Path, know: Know) -> None:
    save_model(tmp_path)
    know()
    assert propose_drafts(str(tmp_path)).drafts == []


@pytest.mark.parametrize(
    ("trait", "problem"),
    [
        ("opens reasoning", "no variable of the chat template switches off"),
        ("channels", "channels"),
        ("other markers", "between markers that SafeDraft does not know"),
    ],
)
def test_what_no_draft_can_guard_has_a_reason_and_no_proposals(
    tmp_path: Path, know: Know, trait: str, problem: str
) -> None:
    save_model(tmp_path)
    save_tokenizer(tmp_path, template=TRAITS[trait])
    know()
    found = propose_drafts(str(tmp_path))
    assert found.drafts == []
    (reason,) = found.problems
    assert problem in reason


def test_a_recurrent_target_has_one_reason(tmp_path: Path) -> None:
    MambaConfig(vocab_size=264, num_hidden_layers=2).save_pretrained(tmp_path)
    (reason,) = propose_drafts(str(tmp_path)).problems
    assert "recurrent state" in reason


def test_the_table_tells_families_of_one_kind_apart() -> None:
    """A tokenizer that is known by its control tokens is not known by fewer as another one."""
    candidates = draft_candidates()
    assert len(candidates) > 5
    for one, other in permutations(candidates, 2):
        if one.family != other.family and {*one.model_types} & {*other.model_types}:
            assert not one.tokens.items() <= other.tokens.items(), (one.name, other.name)


@pytest.mark.real
def test_qwens_own_tokenizer_is_recognized() -> None:
    target = "qwen2.5-coder-1.5b-instruct"
    pair, *others = propose_drafts(target).drafts
    assert pair.words == ("--pair", "qwen2.5-coder")
    assert [other.draft for other in others] == [
        "Qwen/Qwen2.5-0.5B-Instruct",
        "Qwen/Qwen2.5-Coder-0.5B-Instruct",
    ]


@pytest.mark.real
def test_smollm2s_own_tokenizer_is_recognized(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the smallest model of the family, for which every draft of the table counts as small."""
    small = [one.model_copy(update={"weights": 0.01}) for one in draft_candidates()]
    monkeypatch.setattr(proposals, "draft_candidates", lambda: small)
    proposed = propose_drafts("smollm2-135m-instruct")
    assert not proposed.problems
    assert [draft.draft for draft in proposed.drafts] == ["HuggingFaceTB/SmolLM2-360M-Instruct"]
