"""A model of llama.cpp, alone or with a draft, that answers requests: a line of JSON for each.

Runs in ``.venv-llama`` (``make llama``). ``python benchmarks/llama_worker.py TARGET.gguf`` prints
``{"ready": true}``, and then for each line ``{"ids": […], "tokens": 48, "end": […]}`` on its
standard input, after it has emptied the caches, one line:

- ``first``: seconds until the first tokens are known, ``arrived``: how many those are,
- ``rest``: seconds of the other tokens,
- ``ids``: the reply, greedy, with the end token if there is one.

With ``--draft DRAFT.gguf --drafted 3``, the draft proposes three tokens and one pass of the target
says how many of them it would have chosen. Both models decode with ``--threads`` threads.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

CONTEXT = 2048
"""Tokens that a cache has room for."""
SCORED = 64
"""The most positions of one pass whose next token is asked for."""

Blocks = Iterator[list[int]]
"""A reply's tokens, in the groups in which they become known; without an end."""


class Model:
    """A GGUF file, and a cache that holds ``length`` tokens."""

    def __init__(self, file: Path, threads: int) -> None:
        loaded = llama_cpp.llama_model_load_from_file(
            str(file).encode(), llama_cpp.llama_model_default_params()
        )
        if not loaded:
            raise SystemExit(f"llama.cpp cannot load {file}")
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = settings.n_batch = CONTEXT
        settings.n_outputs_max = SCORED
        settings.n_threads = settings.n_threads_batch = threads
        self._context = llama_cpp.llama_init_from_model(loaded, settings)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(CONTEXT, 0, 1)
        vocabulary = llama_cpp.llama_model_get_vocab(loaded)
        self._shape = (llama_cpp.llama_vocab_n_tokens(vocabulary),)
        self.length = 0

    def greedy(self, tokens: Sequence[int], scored: int = 1) -> list[int]:
        """Append tokens; the likeliest next token after each of the last ``scored`` of them."""
        batch, unscored = self._batch, len(tokens) - scored
        batch.n_tokens = len(tokens)
        for place, token in enumerate(tokens):
            batch.token[place] = token
            batch.pos[place] = self.length + place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = place >= unscored
        if code := llama_cpp.llama_decode(self._context, batch):
            raise SystemExit(f"llama_decode failed with {code}")
        self.length += len(tokens)
        return [self._likeliest(place) for place in range(unscored, len(tokens))]

    def _likeliest(self, place: int) -> int:
        logits = llama_cpp.llama_get_logits_ith(self._context, place)
        return int(np.ctypeslib.as_array(logits, self._shape).argmax())

    def cut(self, length: int) -> None:
        """Keep at most ``length`` tokens."""
        self.length = min(self.length, length)
        llama_cpp.llama_memory_seq_rm(self._memory, 0, self.length, -1)


def alone(target: Model, ids: Sequence[int]) -> Blocks:
    """Greedy decoding, a token in each pass."""
    target.cut(0)
    block = target.greedy(ids)
    while True:
        yield block
        block = target.greedy(block)


def speculative(
    target: Model, draft: Model, drafted: int, ids: Sequence[int], tokens: int
) -> Blocks:
    """The same tokens; those that the draft proposed come together with the next one.

    Args:
        target: decides.
        draft: proposes.
        drafted: the most tokens that it proposes for a pass of the target.
        ids: the prompt.
        tokens: of the reply; near its end fewer are proposed.
    """
    target.cut(0)
    draft.cut(0)
    block = target.greedy(ids)
    known = [*ids, *block]
    while True:
        yield block
        proposed: list[int] = []
        unread = known[draft.length :]
        for _ in range(min(drafted, len(ids) + tokens - len(known) - 1)):
            unread = draft.greedy(unread)
            proposed += unread
        chosen = target.greedy([known[-1], *proposed], scored=len(proposed) + 1)
        block = chosen[: agreeing(proposed, chosen) + 1]
        known += block
        for model in (target, draft):
            model.cut(len(known) - 1)


def agreeing(proposed: Sequence[int], chosen: Sequence[int]) -> int:
    """How many tokens at the beginning are the same."""
    pairs = zip(proposed, chosen, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def answer(blocks: Blocks, tokens: int, end: Collection[int]) -> dict[str, Any]:
    """Take blocks until a reply is complete; what the protocol says of it."""
    started = time.perf_counter()
    reply = list(next(blocks))
    first, arrived = time.perf_counter() - started, len(reply)
    while len(reply) < tokens and not any(token in end for token in reply):
        reply += next(blocks)
    seconds = time.perf_counter() - started
    ends = (place + 1 for place, token in enumerate(reply) if token in end)
    reply = reply[: min(next(ends, tokens), tokens)]
    return {"first": first, "arrived": arrived, "rest": seconds - first, "ids": reply}


@llama_cpp.llama_log_callback
def ignore(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """llama.cpp's notes on a model that it loads."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", type=Path)
    parser.add_argument("--draft", type=Path)
    parser.add_argument("--drafted", type=int, default=3, help="tokens for a pass of the target")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    if not 0 < given.drafted < SCORED:
        parser.error(f"--drafted is from 1 to {SCORED - 1}")
    llama_cpp.llama_log_set(ignore, ctypes.c_void_p())
    target = Model(given.target, given.threads)
    draft = Model(given.draft, given.threads) if given.draft else None
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        ids, tokens = request["ids"], request["tokens"]
        blocks = (
            alone(target, ids)
            if draft is None
            else speculative(target, draft, given.drafted, ids, tokens)
        )
        print(json.dumps(answer(blocks, tokens, request["end"])), flush=True)


if __name__ == "__main__":
    main()
