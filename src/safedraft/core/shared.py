"""A batch that several threads decode together."""

from __future__ import annotations

import threading

from safedraft.core.generation import Generation, RequestBatch
from safedraft.core.request import Request


class SharedBatch:
    """A batch whose requests are stepped by whichever thread needs a position next.

    Args:
        batch: decodes the requests.
    """

    def __init__(self, batch: RequestBatch) -> None:
        self._batch = batch
        self._lock = threading.Lock()
        self._steps = 0

    def add(self, request: Request) -> Generation:
        """Add a request, between two steps."""
        with self._lock:
            return self._batch.add(request)

    def step(self) -> None:
        """Decode some positions of all requests, unless another thread does so meanwhile."""
        steps = self._steps
        with self._lock:
            if steps != self._steps:
                return
            try:
                self._batch.step()
            finally:
                self._steps += 1

    def remove(self, generation: Generation) -> None:
        """Stop decoding a request."""
        with self._lock:
            self._batch.remove(generation)
