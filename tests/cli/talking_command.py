"""``safedraft`` with a pair that says what its user asks for; tests run it in a terminal."""

from __future__ import annotations

import sys
import tempfile
import time

from talking import talking

from safedraft import cli
from safedraft.pair import load

QUESTION = "What did you say?"


def answer(prompt: str) -> str:
    """Repeat the last message, or for ``QUESTION`` the last reply; slowly after "Slowly"."""
    turns = [turn.partition("\n")[::2] for turn in prompt.split("<|start|>")[1:]]
    last = {role: text.strip().removesuffix("<|end|>") for role, text in turns}
    if last["user"].startswith("Slowly"):
        time.sleep(0.1)
    return f"I heard {last['assistant' if last['user'] == QUESTION else 'user']}"


if __name__ == "__main__":
    pair = talking(tempfile.mkdtemp(), answer)
    load.load_spec = lambda *_, **__: pair  # type: ignore[assignment]
    sys.argv[0] = "safedraft"
    cli.main()
