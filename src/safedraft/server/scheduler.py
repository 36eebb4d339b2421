"""Who decodes when: one thread, in turns of one block, with a bounded line behind.

Replies of several requests take turns at block boundaries: each has caches of its own, so that a
turn is a call of its stream. Everything but the turn itself happens on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from safedraft.server.errors import APIError, log_unexpected
from safedraft.server.settings import Limits
from safedraft.text.chat import Reply, Stream, Token

T = TypeVar("T")


class Job:
    """One reply on its way; iterate over it for its tokens."""

    def __init__(self, stream: Stream, deadline: float) -> None:
        self.stream = stream
        self.deadline = deadline
        self.given_up = False
        """Whether nobody waits for it any more: it is stopped at the next block."""
        self.error: APIError | None = None
        self._tokens: asyncio.Queue[Token | None] = asyncio.Queue()

    @property
    def reply(self) -> Reply:
        """What was said so far."""
        return self.stream.reply

    async def __aiter__(self) -> AsyncIterator[Token]:
        """Its tokens as they are decoded.

        Raises:
            APIError: it could not be finished; what was said before has been told.
        """
        while (token := await self._tokens.get()) is not None:
            yield token
        if self.error:
            raise self.error

    async def finished(self) -> Reply:
        """The whole reply.

        Raises:
            APIError: as when iterating.
        """
        async for _ in self:
            pass
        return self.reply

    def give_up(self) -> None:
        """Nobody waits for it any more."""
        self.given_up = True

    def tell(self, token: Token | None) -> None:
        """Hand on a token, or None for the end; on the event loop."""
        self._tokens.put_nowait(token)


class Scheduler:
    """The only one who calls the models; ``run`` has to be running."""

    def __init__(self, limits: Limits, on_end: Callable[[Job], None] = lambda job: None) -> None:
        self._limits = limits
        self._on_end = on_end
        self._thread = ThreadPoolExecutor(1, "decode")
        self._entering = 0
        self._active: deque[Job] = deque()
        self._waiting: deque[Job] = deque()
        self._stopping = False
        self._overdue = False
        """Whether a stop waits for nobody any more."""
        self._more = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self.stopped = asyncio.Event()
        """Set once ``stop`` is done: nothing is decoded any more."""

    @property
    def active(self) -> int:
        """Replies that are decoded in turns."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Replies in line."""
        return self._entering + len(self._waiting)

    async def submit(self, opens: Sequence[Callable[[], Stream]]) -> list[Job]:
        """Take the replies of one request, all or none.

        Args:
            opens: each encodes a prompt and opens its stream; called on the decoding thread, since
                tokenizers are not for two threads at once.

        Raises:
            APIError: the line is full (429), or the server is about to stop (503).
            Exception: what one of ``opens`` raises.
        """
        deadline = time.monotonic() + self._limits.request_seconds
        streams = await self.call(lambda: [opened() for opened in opens], len(opens))
        if self._overdue:
            raise _stopping()
        jobs = [Job(stream, deadline) for stream in streams]
        self._waiting.extend(jobs)
        return jobs

    async def call(self, work: Callable[[], T], places: int = 1) -> T:
        """Run something short on the decoding thread, between two turns.

        Args:
            work: what to run.
            places: how many of the line it takes meanwhile.

        Raises:
            APIError: as ``submit``.
            Exception: what ``work`` raises.
        """
        self._require_room(places)
        self._entering += places
        self._idle.clear()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._entering -= places
            self._more.set()

    async def run(self) -> None:
        """Decode until cancelled."""
        while True:
            await self._more.wait()
            self._drop_the_late()
            while self._waiting and len(self._active) < self._limits.active:
                self._active.append(self._waiting.popleft())
            if not self._active:
                self._more.clear()
                if not self._entering:
                    self._idle.set()
                continue
            if await self._turn(self._active[0]):
                self._active.rotate(-1)
            else:
                self._end(self._active.popleft())

    def require_running(self) -> None:
        """Refuse what a server that stops can't do.

        Raises:
            APIError: 503.
        """
        if self._stopping:
            raise _stopping()

    async def stop(self, grace_seconds: float) -> None:
        """Take nothing more, let what is there finish, and tell the rest why it is not finished."""
        self._stopping = True
        try:
            async with asyncio.timeout(grace_seconds):
                await self._idle.wait()
        except TimeoutError:
            self._overdue = True
            for job in (*self._active, *self._waiting):
                job.error = _stopping()
                job.tell(None)  # at once: a turn may be a long prompt's
            self._more.set()
            await self._idle.wait()
        self.stopped.set()

    def close(self) -> None:
        """Let the decoding thread end, once ``run`` is cancelled."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _require_room(self, count: int) -> None:
        self.require_running()
        busy = len(self._active) + len(self._waiting) + self._entering
        if busy + count > self._limits.active + self._limits.waiting:
            raise APIError(
                429,
                "queue_full",
                f"{busy} replies are being decoded or wait already: try again later",
                retry_after=max(1, round(busy / self._limits.active)),
            )

    def _drop_the_late(self) -> None:
        """End what is given up, failed or out of time, in line or between two of its turns."""
        now = time.monotonic()
        for line in (self._active, self._waiting):
            for job in list(line):
                if now > job.deadline and not job.error:
                    limit = f"{self._limits.request_seconds:g} s"
                    job.error = APIError(
                        504, "timeout", f"the reply was not finished within {limit}"
                    )
                if job.given_up or job.error:
                    line.remove(job)
                    self._end(job)

    async def _turn(self, job: Job) -> bool:
        """What a pass of the target decides of a reply; whether there is more to come."""
        loop = asyncio.get_running_loop()

        def decode() -> bool:
            try:
                while True:
                    if token := job.stream.advance():
                        loop.call_soon_threadsafe(job.tell, token)
                    if not job.stream.more:
                        return True
            except StopIteration:
                return False

        try:
            return await loop.run_in_executor(self._thread, decode)
        except Exception as error:
            log_unexpected(error)
            job.error = APIError(
                500, "decoding_failed", "decoding failed; the server's log says where"
            )
            return False

    def _end(self, job: Job) -> None:
        try:
            job.stream.close()
            self._on_end(job)
        except Exception as error:  # one reply's trouble: the others go on
            log_unexpected(error)
        job.tell(None)


def _stopping() -> APIError:
    return APIError(
        503, "stopping", "the server is stopping: ask another, or later", retry_after=10
    )
