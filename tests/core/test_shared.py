"""A batch that several threads decode together."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from helpers.decoding import decode_one, request_of, tokens_of

from safedraft.core.decode import Batch
from safedraft.core.generation import iterate
from safedraft.core.shared import SharedBatch
from safedraft.engines.scripted import ScriptedEngine

THREADS = 6


def model(seed: int):
    """Logits that depend on all tokens so far."""

    def ask(tokens):
        generator = torch.Generator().manual_seed(hash((seed, *tokens)) % 2**40)
        return torch.randn(32, generator=generator) * 3

    return ask


class CountingBatch(Batch):
    """Counts its steps, and whether two threads are ever in it at once."""

    def __init__(self, engine):
        super().__init__(engine)
        self.steps, self.inside, self.crowded = 0, threading.Lock(), False

    def step(self):
        if not self.inside.acquire(blocking=False):
            self.crowded = True
            return
        try:
            self.steps += 1
            super().step()
        finally:
            self.inside.release()


def test_threads_get_their_own_replies_from_one_batch():
    target, draft = model(1), model(2)
    requests = [
        request_of(prompts=((n,), (n,)), max_new_tokens=20 + n, temperature=0.7, seed=n)
        for n in range(THREADS)
    ]
    alone = [tokens_of(decode_one(target, draft, request)) for request in requests]
    blocks = sum(decode_one(target, draft, request)[-1].block + 1 for request in requests)
    counting = CountingBatch(ScriptedEngine(target, draft))
    shared = SharedBatch(counting)
    together = threading.Barrier(THREADS)

    def reply(request):
        generation = shared.add(request)
        together.wait()
        return tokens_of(list(iterate(shared, generation)))

    with ThreadPoolExecutor(THREADS) as threads:
        assert list(threads.map(reply, requests)) == alone
    assert not counting.crowded
    assert counting.steps < blocks
    assert not counting._running


def test_a_reply_that_is_given_up_leaves_the_batch():
    counting = CountingBatch(ScriptedEngine(model(1), model(2)))
    shared = SharedBatch(counting)
    steps = iterate(shared, shared.add(request_of(max_new_tokens=50)))
    next(steps)
    steps.close()
    assert not counting._running
