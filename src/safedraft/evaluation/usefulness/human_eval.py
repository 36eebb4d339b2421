"""HumanEval (Chen et al., arXiv 2107.03374): a reply is a Python function that has to pass tests.

The function is run in the sandbox. One reply is scored for each problem, so that the share of right
ones is the paper's pass@1.
"""

from __future__ import annotations

import json
import re

from inspect_ai.scorer import Score

from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.usefulness.sandbox import find_isolation, grade

_BLOCK = re.compile(r"^[ \t]*```[^\n]*\n(?P<code>.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)


def check_human_eval(reply: str, expected: str, truncated: bool) -> Score:
    """Score 1 if the function in a reply passes the tests of its problem, otherwise 0.

    Args:
        reply: the reply.
        expected: a JSON object with the problem's ``prompt``, ``test`` and ``entry_point``.
        truncated: ignored: a function that is cut off does not pass.

    Raises:
        SafeDraftError: the problem is malformed, or the system is neither Linux nor macOS.
    """
    try:
        problem = json.loads(expected)
        prompt, test, entry_point = (problem[name] for name in ("prompt", "test", "entry_point"))
    except (ValueError, KeyError, TypeError) as error:
        raise SafeDraftError(
            "the answer of a sample has to be a JSON object with a problem's prompt, test and "
            "entry_point"
        ) from error
    code = extract_code(reply, entry_point)
    verdict = grade(f"{prompt}\n\n{code}\n", entry_point, prompt, test)
    return Score(
        value=int(verdict == "passed"),
        answer=code,
        explanation=verdict,
        metadata={"isolation": find_isolation()},
    )


def extract_code(reply: str, entry_point: str) -> str:
    """Find the program in a reply.

    Returns:
        The last code block that defines the function ``entry_point``, or else the last one, or else
        the whole reply. A block that is not closed extends to the end.
    """
    blocks = [match["code"] for match in _BLOCK.finditer(reply)]
    defining = [code for code in blocks if re.search(rf"\bdef {re.escape(entry_point)}\b", code)]
    return (defining or blocks or [reply])[-1]
