"""HumanEval: the function in a reply is found, run and scored."""

from __future__ import annotations

import json

import pytest

from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.usefulness.human_eval import check_human_eval, extract_code
from safedraft.evaluation.usefulness.sandbox import find_isolation

PROBLEM = json.dumps(
    {
        "prompt": "from typing import List\n\n\n"
        'def first(x: List[int]) -> int:\n    """The first."""\n',
        "test": "def check(candidate):\n    assert candidate([3, 4]) == 3\n",
        "entry_point": "first",
    }
)
FIRST = "def first(x: List[int]) -> int:\n    return x[0]\n"


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (f"Here:\n```python\n{FIRST}```\nDone.", FIRST),
        (f"```\n{FIRST}```", FIRST),
        (f"```python\n{FIRST}```\nUse it:\n```python\nprint(first([1]))\n```", FIRST),
        (f"```python\ndef first(x): pass\n```\nBetter:\n```python\n{FIRST}```", FIRST),
        (f"```python\n{FIRST}", FIRST),
        (FIRST, FIRST),
        ("```python\nx = 1\n```", "x = 1\n"),
        ("I cannot.", "I cannot."),
    ],
)
def test_code_is_found_in_a_reply(reply: str, code: str) -> None:
    assert extract_code(reply, "first") == code


@pytest.mark.parametrize(
    ("reply", "value", "explanation"),
    [
        (f"```python\n{FIRST}```", 1, "passed"),  # List is imported by the prompt
        ("```python\ndef first(x):\n    return x[1]\n```", 0, "failed"),
        *(
            (f"```python\n{deed}\n{FIRST}```", 0, "forbidden")
            for deed in (
                "import os; os.system('true')",
                "import os; os.fork()",
                "open('/tmp/written', 'w')",
                "import socket; socket.create_connection(('127.0.0.1', 9))",
            )
        ),
        ("I'm sorry, but I can't assist with that.", 0, "failed"),
        ("", 0, "failed"),
    ],
)
def test_replies_are_scored(reply: str, value: int, explanation: str) -> None:
    score = check_human_eval(reply, PROBLEM, False)
    assert (score.value, score.explanation) == (value, explanation)
    assert score.metadata == {"isolation": find_isolation()}


@pytest.mark.parametrize("target", ["", "[]", "42", '{"prompt": "", "test": ""}'])
def test_malformed_problems_are_errors(target: str) -> None:
    with pytest.raises(SafeDraftError, match="a problem's prompt, test and entry_point"):
        check_human_eval(FIRST, target, False)
