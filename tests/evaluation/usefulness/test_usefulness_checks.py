"""The checks by name: each gives the score ``correct``."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from inspect_ai.scorer import Target
from inspect_ai.util import registry_info

from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.usefulness import CHECKS, correct

PROBLEM = '{"prompt": "", "test": "def check(f):\\n    assert f(1) == 2", "entry_point": "f"}'


@pytest.mark.parametrize(
    ("check", "target", "right", "wrong"),
    [
        ("number", "#### 42", "It is 42", "It is 41"),
        ("instructions", '{"max_words": 3}', "It is 42", "It is 42, of course"),
        ("human_eval", PROBLEM, "f = lambda x: x + 1", "f = lambda x: x"),
    ],
)
def test_every_check_scores(check: str, target: str, right: str, wrong: str) -> None:
    scorer = CHECKS[check]()
    assert registry_info(scorer).name == "safedraft/correct"
    for reply, value in ((right, 1), (wrong, 0)):
        output = SimpleNamespace(completion=reply, stop_reason="stop")
        score = asyncio.run(scorer(SimpleNamespace(output=output), Target(target)))  # type: ignore[arg-type]
        assert score is not None
        assert score.value == value


def test_replies_that_are_cut_off_are_known_as_such() -> None:
    output = SimpleNamespace(completion="It is 42", stop_reason="max_tokens")
    score = asyncio.run(correct()(SimpleNamespace(output=output), Target("42")))  # type: ignore[arg-type]
    assert score is not None
    assert score.value == 0


def test_unknown_checks_are_errors() -> None:
    with pytest.raises(SafeDraftError, match="no check is called 'sums'; known are number, human"):
        correct("sums")
