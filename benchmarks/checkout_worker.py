"""A pair of one checkout that answers prompts: a line of JSON for each.

``python benchmarks/checkout_worker.py FOLDER '{"engine": …}'`` imports SafeDraft from ``FOLDER``,
loads a pair and prints ``{"ready": true}``. For each line
``{"prompt": "…", "tokens": 48}`` on its standard input it prints one:

- ``seconds``: of the whole reply, and ``first``: until its first token is known,
- ``passes``: of the target,
- ``ids``: the reply, greedy.

It uses no more of SafeDraft than what checkouts since commit 62646e0 have in common.
"""

from __future__ import annotations

import inspect
import json
import sys
import time
from pathlib import Path
from typing import Any


def load(folder: Path, settings: dict[str, Any]) -> Any:
    """The pair of a checkout: both models in one type, and with the constants of the settings."""
    sys.path.insert(0, str(folder / "src"))
    import safedraft

    if not Path(safedraft.__file__).is_relative_to(folder):
        raise SystemExit(f"{folder} has no SafeDraft in src: name the folder of a checkout")
    return safedraft.load_pair(
        settings["pair"],
        config=safedraft.SSDConfig(**settings["constants"]),
        dtype=settings["dtype"],
        draft_dtype=settings["dtype"],
        engine=settings["engine"],
    )


def choose_rule(pair: Any, rule: str) -> dict[str, str]:
    """The arguments of ``generate`` that name the rule: none if the checkout has only SSD."""
    if "rule" in inspect.signature(pair.generate).parameters:
        return {"rule": rule}
    if rule != "ssd":
        raise SystemExit(f"this checkout has no rules but ssd, and {rule} was asked for")
    return {}


def answer(pair: Any, rule: dict[str, str], prompt: str, tokens: int) -> dict[str, Any]:
    """Decode one reply; what the protocol says of it."""
    from safedraft import SamplingParams

    sampling = SamplingParams(max_new_tokens=tokens)
    started = time.perf_counter()
    reply = pair.generate(prompt, sampling=sampling, **rule)
    return {
        "seconds": time.perf_counter() - started,
        "first": reply.statistics.first_token_seconds,
        "passes": reply.statistics.target_passes,
        "ids": [token.id for token in reply.trace],
    }


def main() -> None:
    settings = json.loads(sys.argv[2])
    pair = load(Path(sys.argv[1]).resolve(), settings)
    rule = choose_rule(pair, settings["rule"])
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(pair, rule, **json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
