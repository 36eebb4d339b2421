"""Decode several replies in turns of one block on one thread, with a bounded queue.

Replies take turns at block boundaries. Those of one batch are decoded together: the turn of one
decodes a block of all, and the others then only take what is theirs. Queued ones are held until
they have a place. Everything except the turn itself runs on the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from safedraft.core.counts import format_count
from safedraft.core.errors import FormError
from safedraft.server.errors import APIError, invalid_value, log_unexpected
from safedraft.server.settings import Limits
from safedraft.text.results import GenerationResult, Token
from safedraft.text.stream import Stream

T = TypeVar("T")


class Job:
    """One reply that is queued or being decoded; iterating over the job yields its tokens."""

    def __init__(
        self,
        stream: Stream,
        deadline: float,
        id: str = "",
        *,
        guarded: bool = False,
        form_name: str = "response_format",
    ) -> None:
        self.stream = stream
        self.id = id
        """Identifier of its response, the same for all replies of one request."""
        self.guarded = guarded
        """Whether it is decoded with a safety adapter, as the operator set the pair up."""
        self.form_name = form_name
        """The parameter of the request that its form comes from, if it has one."""
        self.deadline = deadline
        self.given_up = False
        """Whether nobody waits for the reply any more; it is stopped at the next block."""
        self.error: APIError | None = None
        self._tokens: asyncio.Queue[Token | None] = asyncio.Queue()
        self._begun = 0.0

    @property
    def reply(self) -> GenerationResult:
        """The reply so far."""
        return self.stream.result

    def begin(self) -> None:
        """Mark the reply as one of those that are being decoded."""
        self.stream.hold(False)
        self._begun = time.perf_counter()

    def decode_block(self, push: Callable[[Token], None]) -> bool:
        """Take what one pass of the target decides; return whether the reply continues.

        The seconds of the reply include the turns of the others, which may decode for it.
        """
        statistics = self.reply.statistics
        first = not statistics.tokens
        try:
            while True:
                if token := self.stream.advance():
                    push(token)
                if not self.stream.more:
                    return True
        except StopIteration:
            return False
        finally:
            statistics.seconds = time.perf_counter() - self._begun
            if first:
                statistics.first_token_seconds = statistics.seconds

    async def __aiter__(self) -> AsyncIterator[Token]:
        """Yield the tokens as they are decoded.

        Raises:
            APIError: the reply could not be finished; the tokens before the error were yielded.
        """
        while (token := await self._tokens.get()) is not None:
            yield token
        if self.error:
            raise self.error

    async def wait(self) -> GenerationResult:
        """Wait for the whole reply.

        Raises:
            APIError: the reply could not be finished.
        """
        async for _ in self:
            pass
        return self.reply

    def give_up(self) -> None:
        """Mark the reply as abandoned, so that the scheduler ends it."""
        self.given_up = True

    def push(self, token: Token | None) -> None:
        """Pass a token, or None for the end, to the iterator; call this on the event loop."""
        self._tokens.put_nowait(token)


class Scheduler:
    """Owns the thread that calls the models; ``run`` must be running."""

    def __init__(self, limits: Limits, on_end: Callable[[Job], None] = lambda job: None) -> None:
        self._limits = limits
        self._on_end = on_end
        self._thread = ThreadPoolExecutor(1, "decode")
        self._opening = 0
        self._active: deque[Job] = deque()
        self._waiting: deque[Job] = deque()
        self._stopping = False
        self._grace_over = False
        """Whether the grace period of a stop has ended."""
        self._work_arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def active(self) -> int:
        """Number of replies that are decoded together."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """Number of replies in the queue."""
        return self._opening + len(self._waiting)

    async def submit(
        self,
        openers: Sequence[Callable[[], Stream]],
        id: str = "",
        *,
        guarded: bool = False,
        form_name: str = "response_format",
    ) -> list[Job]:
        """Queue the replies of one request, all or none.

        Args:
            id: identifier of the response, for the log.
            guarded: whether they are decoded with a safety adapter, as the operator set it up.
            form_name: the parameter of the request that their form comes from, if they have one.
            openers: each encodes a prompt and opens its stream. They are called on the decoding
                thread, because tokenizers cannot be used by two threads at once.

        Raises:
            APIError: the queue is full (429), or the server is stopping (503).
            Exception: any error of ``openers``.
        """
        deadline = time.monotonic() + self._limits.request_seconds
        streams = await self.call(lambda: _open_held(openers), len(openers))
        if self._grace_over:
            _close(streams)
            raise _stopping_error()
        jobs = [
            Job(stream, deadline, id, guarded=guarded, form_name=form_name) for stream in streams
        ]
        self._waiting.extend(jobs)
        return jobs

    async def call(self, work: Callable[[], T], places: int = 1) -> T:
        """Call a short function on the decoding thread, between two turns, and return its result.

        Args:
            work: the function.
            places: number of places in the queue that it occupies until it returns.

        Raises:
            APIError: see ``submit``.
            Exception: any error of ``work``.
        """
        self._require_room(places)
        self._opening += places
        self._idle.clear()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        finally:
            self._opening -= places
            self._work_arrived.set()

    async def run(self) -> None:
        """Decode until cancelled."""
        while True:
            await self._work_arrived.wait()
            self._end_expired()
            while self._waiting and len(self._active) < self._limits.active:
                self._active.append(self._waiting.popleft())
                self._active[-1].begin()
            if not self._active:
                self._work_arrived.clear()
                if not self._opening:
                    self._idle.set()
                continue
            if await self._decode_block(self._active[0]):
                self._active.rotate(-1)
            else:
                self._end(self._active.popleft())

    def require_running(self) -> None:
        """Refuse new work while the server is stopping.

        Raises:
            APIError: the server is stopping (503).
        """
        if self._stopping:
            raise _stopping_error()

    async def stop(self, grace_seconds: float) -> None:
        """Refuse new replies, let the others finish, and end those that do not finish in time."""
        self._stopping = True
        try:
            async with asyncio.timeout(grace_seconds):
                await self._idle.wait()
        except TimeoutError:
            self._grace_over = True
            for job in (*self._active, *self._waiting):
                job.error = _stopping_error()
                job.push(None)  # at once, because a turn with a long prompt takes long
            self._work_arrived.set()
            await self._idle.wait()

    def close(self) -> None:
        """End the decoding thread; cancel ``run`` before."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _require_room(self, count: int) -> None:
        self.require_running()
        busy = len(self._active) + len(self._waiting) + self._opening
        if busy + count > self._limits.active + self._limits.waiting:
            raise APIError(
                429,
                "queue_full",
                f"The queue is full: {format_count(busy, 'reply', 'replies')} running or waiting. "
                "Try again later.",
                retry_after=max(1, round(busy / self._limits.active)),
            )

    def _end_expired(self) -> None:
        """End replies that are given up, have failed or are out of time, queued ones included."""
        now = time.monotonic()
        for queue in (self._active, self._waiting):
            for job in list(queue):
                if now > job.deadline and not job.error:
                    limit = f"{self._limits.request_seconds:g} s"
                    job.error = APIError(
                        504, "timeout", f"The reply was not finished within {limit}."
                    )
                if job.given_up or job.error:
                    queue.remove(job)
                    self._end(job)

    async def _decode_block(self, job: Job) -> bool:
        """Decode what one pass of the target decides; return whether the reply continues."""
        loop = asyncio.get_running_loop()

        def push(token: Token) -> None:
            loop.call_soon_threadsafe(job.push, token)

        try:
            return await loop.run_in_executor(self._thread, job.decode_block, push)
        except FormError as error:
            job.error = invalid_value(job.form_name, str(error))
            return False
        except Exception as error:
            log_unexpected(error)
            job.error = APIError(
                500, "decoding_failed", "Decoding failed; the server's log says where."
            )
            return False

    def _end(self, job: Job) -> None:
        try:
            job.stream.close()
            self._on_end(job)
        except Exception as error:  # it concerns one reply: the others continue
            log_unexpected(error)
        job.push(None)


def _open_held(openers: Sequence[Callable[[], Stream]]) -> list[Stream]:
    """Open all streams, or none if one cannot be opened."""
    streams: list[Stream] = []
    try:
        for open_stream in openers:
            streams.append(open_stream())
            streams[-1].hold(True)
    except BaseException:
        _close(streams)
        raise
    return streams


def _close(streams: Sequence[Stream]) -> None:
    for stream in streams:
        stream.close()


def _stopping_error() -> APIError:
    message = "The server is stopping. Use another server, or try again later."
    return APIError(503, "stopping", message, retry_after=10)
