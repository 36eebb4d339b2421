"""Many clients, clients that leave, a server that stops, and models that fail."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import psutil
import pytest
from serving import NAME, Served, serving
from talking import talking

from safedraft.core.errors import BrokenModelError
from safedraft.engines.scripted import ScriptedEngine
from safedraft.server.errors import APIError
from safedraft.server.metrics import Metrics
from safedraft.server.scheduler import Scheduler
from safedraft.server.settings import Limits

pytestmark = pytest.mark.slow

LONG = "word " * 60


def body(content: str, **more: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": [{"role": "user", "content": content}]} | more


def echo(prompt: str) -> str:
    """Every prompt has a reply of its own."""
    return f"said {prompt.rpartition('<|start|>user')[2].split('<|end|>')[0].strip()}"


def slowly(answer: str, seconds: float = 0.01) -> Callable[[str], str]:
    def say(prompt: str) -> str:
        time.sleep(seconds)
        return answer

    return say


def eventually(condition: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.01)


def idle(served: Served) -> bool:
    return served.service.scheduler.active + served.service.scheduler.waiting == 0


def passes(served: Served) -> int:
    """Of all replies that ended."""
    lines = served.service.metrics.render().decode().splitlines()
    return sum(int(float(x.split()[-1])) for x in lines if x.startswith("safedraft_blocks_total"))


@pytest.mark.slow
def test_64_clients_with_300_requests_get_their_own_text_or_a_429(tmp_path: Path) -> None:
    with serving(talking(tmp_path, echo)) as server:
        client = server.client

        def ask(number: int) -> str:
            stream = bool(number % 2)
            try:
                reply: Any = client.chat.completions.create(**body(f"n{number}"), stream=stream)
                if stream:
                    return "".join(c.choices[0].delta.content or "" for c in reply)
                return str(reply.choices[0].message.content)
            except openai.RateLimitError as error:
                return f"429, in {error.response.headers['retry-after']} s"

        def wave(numbers: range) -> list[str]:
            with ThreadPoolExecutor(64) as clients:
                return list(clients.map(ask, numbers))

        wave(range(1000, 1150))
        before = memory()
        texts = wave(range(300))
        refused = [text for text in texts if text.startswith("429, in ")]
        wrong = [text for n, text in enumerate(texts) if text not in (f"said n{n}", *refused)]
        assert not wrong
        assert len(refused) < 300
        eventually(lambda: idle(server))
        assert memory() < 1.05 * before


def test_replies_are_decoded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together: list[int] = []
    forward = ScriptedEngine.forward

    def counting(self: ScriptedEngine, passes: Any) -> Any:
        together.append(len(passes))
        return forward(self, passes)

    monkeypatch.setattr(ScriptedEngine, "forward", counting)
    with serving(talking(tmp_path, slowly("an answer of some length")), {"active": 2}) as server:
        with ThreadPoolExecutor(6) as clients:
            sent = [clients.submit(server.http.post, "/v1/chat/completions", json=body("hi"))
                    for _ in range(6)]  # fmt: skip
            replies = [one.result().json() for one in sent]
        assert {reply["choices"][0]["message"]["content"] for reply in replies} == {
            "an answer of some length"
        }
        assert max(together) == 2  # of those that are in the queue, none is decoded


def memory() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def test_a_full_queue_says_so_and_forgets_nobody(tmp_path: Path) -> None:
    limits = {"active": 2, "waiting": 1}
    with serving(talking(tmp_path, slowly("fine")), limits) as server:
        with ThreadPoolExecutor(8) as clients:
            sent = [clients.submit(server.http.post, "/v1/chat/completions", json=body("hi"))
                    for _ in range(8)]  # fmt: skip
            replies = [one.result() for one in sent]
        codes = sorted(reply.status_code for reply in replies)
        assert set(codes) == {200, 429}
        assert codes.count(200) >= 3
        for reply in replies:
            if reply.status_code == 200:
                assert reply.json()["choices"][0]["message"]["content"] == "fine"
            else:
                assert reply.json()["error"]["code"] == "queue_full"


def test_replies_take_turns(tmp_path: Path) -> None:
    """A short question is answered while a long reply is being decoded."""
    answers = {"long": LONG, "short": "yes"}

    def say(prompt: str) -> str:
        time.sleep(0.003)
        return answers["long" if "long" in prompt else "short"]

    with serving(talking(tmp_path, say)) as server:
        ended: list[str] = []

        def ask(content: str) -> None:
            server.http.post("/v1/chat/completions", json=body(content))
            ended.append(content)

        threads = [threading.Thread(target=ask, args=(name,)) for name in ("long", "short")]
        threads[0].start()
        eventually(lambda: server.service.scheduler.active == 1)
        threads[1].start()
        for thread in threads:
            thread.join()
        assert ended == ["short", "long"]


def test_a_turn_is_all_that_a_pass_of_the_target_decides() -> None:
    """Two replies of two blocks of two tokens each: a block a turn, and the end with the last."""
    told: list[str] = []

    class Replying:
        result = SimpleNamespace(statistics=SimpleNamespace(prompt_tokens=1, tokens=0))

        def __init__(self, name: str) -> None:
            self.name, self.said, self.more = name, 0, False

        def hold(self, held: bool) -> None:
            pass

        def advance(self) -> str:
            if self.said == 4:
                told.append(f"{self.name} ends")
                raise StopIteration
            self.said += 1
            self.more = self.said != 2
            told.append(f"{self.name}{self.said}")
            return "token"

        def close(self) -> None:
            pass

    async def take(job: Any) -> None:
        async for _ in job:
            pass

    async def both() -> None:
        scheduler = Scheduler(Limits())
        jobs = await scheduler.submit([lambda: Replying("a"), lambda: Replying("b")])  # type: ignore[list-item,return-value]
        running = asyncio.create_task(scheduler.run())
        await asyncio.gather(*map(take, jobs))
        running.cancel()
        scheduler.close()

    asyncio.run(both())
    assert told == ["a1", "a2", "b1", "b2", "a3", "a4", "a ends", "b3", "b4", "b ends"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_the_decode_within_a_block(tmp_path: Path, stream: bool) -> None:
    asked = [0]

    def say(prompt: str) -> str:
        asked[0] += 1
        time.sleep(0.005)
        return LONG

    with serving(talking(tmp_path, say)) as server:
        with suppress(httpx.ReadTimeout), httpx.Client(timeout=0.5) as client:
            url = f"{server.url}/v1/chat/completions"
            with client.stream("POST", url, json=body("hi", stream=stream)) as response:
                next(response.iter_lines())
        at_leaving = asked[0]
        eventually(lambda: idle(server))
        # A block of T = 3 asks the draft up to three times and the target for four rows; one may
        # have been under way, and the next begun before the server heard of it.
        assert asked[0] - at_leaving <= 3 * 7
        assert asked[0] < len(LONG)
        assert server.http.post("/v1/chat/completions", json=body("hi", max_tokens=2)).is_success


def test_held_back_text_holds_nobody_up(tmp_path: Path) -> None:
    """A reply that may be the start of a stop string tells nothing, and its client may leave."""
    asked = [0]

    def say(prompt: str) -> str:
        asked[0] += 1
        time.sleep(0.003)
        return "a" * 250 if "held" in prompt else "yes"

    with serving(talking(tmp_path, say)) as server:
        held = body("held", stop=["a" * 255 + "b"])
        with suppress(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/chat/completions", json=held, timeout=0.4)
        at_leaving = asked[0]
        eventually(lambda: idle(server))
        assert 0 < at_leaving < 200
        assert asked[0] - at_leaving <= 3 * 7


def test_a_finished_reply_keeps_no_caches(tmp_path: Path) -> None:
    pair = talking(tmp_path, echo)
    stream = pair.stream("hi")
    assert isinstance(pair.engine, ScriptedEngine)
    caches = [weakref.ref(session) for session in pair.engine.sessions]
    pair.engine.sessions.clear()
    stream.drain()
    gc.collect()
    assert [cache() for cache in caches] == [None, None]
    assert stream.result.statistics.target_passes > 0


def test_a_request_that_never_fits_is_no_429(tmp_path: Path) -> None:
    with serving(talking(tmp_path, echo), {"active": 1, "waiting": 2}) as server:
        reply = server.http.post("/v1/chat/completions", json=body("hi", n=4))
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "n")


def test_metrics_are_of_ssd_alone(tmp_path: Path) -> None:
    pair, metrics = talking(tmp_path, echo), Metrics()
    metrics.count(pair.generate("hi"), guarded=True)
    before = metrics.render()
    metrics.count(pair.generate("hi", rule="target_only"), guarded=False)
    kinds = (b"safedraft_tokens_total", b"safedraft_blocks_total")
    told, again = (
        [line for line in text.splitlines() if line.startswith(kinds)]
        for text in (before, metrics.render())
    )
    assert told == again
    assert b'scheme="None"' not in metrics.render()


def test_clients_that_leave_the_queue_are_never_decoded(tmp_path: Path) -> None:
    with serving(talking(tmp_path, slowly(LONG)), {"active": 1}) as server:
        with ThreadPoolExecutor(5) as clients:
            for _ in range(5):
                clients.submit(leave, server)
        eventually(lambda: idle(server))
        assert passes(server) <= 20  # of the 75 that each would take


def test_replies_leave_the_batch_if_one_of_their_request_cannot_be_opened(tmp_path: Path) -> None:
    pair = talking(tmp_path, echo)
    batch = pair.engine.batch()
    opened = []

    def open_one() -> Any:
        opened.append(pair.stream("hi", batch=batch))
        return opened[-1]

    def fail() -> Any:
        raise ValueError("no room")

    async def submit() -> None:
        await Scheduler(Limits()).submit([open_one, open_one, fail])

    with pytest.raises(ValueError, match="no room"):
        asyncio.run(submit())
    assert [stream.more for stream in opened] == [True, True]  # both have ended


def leave(server: Served) -> None:
    with suppress(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json=body("hi"), timeout=0.3)


def test_a_stop_lets_replies_finish_and_takes_no_more(tmp_path: Path) -> None:
    with serving(talking(tmp_path, slowly(LONG[:60], 0.004)), {"active": 2}) as server:
        with ThreadPoolExecutor(4) as clients:
            asked = [
                clients.submit(server.http.post, "/v1/chat/completions", json=body("hi"))
                for _ in range(4)
            ]
            scheduler = server.service.scheduler
            eventually(lambda: (scheduler.active, scheduler.waiting) == (2, 2))
            server.stop()
            replies = [one.result() for one in asked]
        assert {reply.json()["choices"][0]["message"]["content"] for reply in replies} == {
            LONG[:60]
        }
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health")


class Silent:
    """A stream with nothing to say."""

    result = SimpleNamespace(statistics=SimpleNamespace(blocks=0, tokens=0))

    def hold(self, held: bool) -> None:
        pass

    def advance(self) -> None:
        raise StopIteration

    def close(self) -> None:
        pass


@pytest.mark.parametrize("grace", [20, 0])
def test_a_stop_waits_for_what_is_being_encoded_unless_its_time_is_up(grace: float) -> None:
    encoded = threading.Event()

    def opened() -> Any:
        encoded.wait(20)
        return Silent()

    async def ask_and_stop() -> str:
        scheduler = Scheduler(Limits())
        running = asyncio.create_task(scheduler.run())
        asked = asyncio.create_task(scheduler.submit([opened]))
        while not scheduler.waiting:
            await asyncio.sleep(0)
        stopping = asyncio.create_task(scheduler.stop(grace))
        await asyncio.sleep(0.05)
        assert not stopping.done()
        encoded.set()
        try:
            [job] = await asked
            await job.wait()
            return "finished"
        except APIError as error:
            return error.code
        finally:
            await stopping
            running.cancel()
            scheduler.close()

    assert asyncio.run(ask_and_stop()) == ("finished" if grace else "stopping")


def test_a_stop_tells_those_whose_time_is_up(tmp_path: Path) -> None:
    with serving(talking(tmp_path, slowly(LONG, 0.05)), {"grace_seconds": 0.2}) as server:
        with ThreadPoolExecutor(2) as clients:
            whole = clients.submit(server.http.post, "/v1/chat/completions", json=body("hi"))
            streamed = clients.submit(
                server.http.post, "/v1/chat/completions", json=body("hi", stream=True)
            )
            eventually(lambda: server.service.scheduler.active == 2)
            time.sleep(0.3)
            server.stop()
        assert whole.result().status_code == 503
        assert whole.result().json()["error"]["code"] == "stopping"
        last = [line for line in streamed.result().text.splitlines() if line][-1]
        assert '"code": "stopping"' in last


def test_a_reply_has_to_be_finished_in_time(tmp_path: Path) -> None:
    with serving(talking(tmp_path, slowly(LONG, 0.02)), {"request_seconds": 0.5}) as server:
        reply = server.http.post("/v1/chat/completions", json=body("hi"))
        assert (reply.status_code, reply.json()["error"]["code"]) == (504, "timeout")
        assert idle(server)


def test_what_nobody_thought_of_is_a_500_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def breaks(*_: Any) -> None:
        raise RuntimeError("secret")

    with serving(talking(tmp_path, str)) as server, caplog.at_level(logging.ERROR):
        monkeypatch.setattr(server.service, "submit_chat", breaks)
        reply = server.http.post("/v1/chat/completions", json=body("hi"))
        assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
        counted = 'safedraft_requests_total{route="/v1/chat/completions",status="500"} 1.0'
        assert counted in server.http.get("/metrics").text
    assert "secret" not in reply.text
    assert "RuntimeError" in caplog.text


@pytest.mark.parametrize(
    "error", [BrokenModelError("draft gave NaN"), RuntimeError("secret words")]
)
def test_a_model_that_fails_is_a_500_and_never_text(
    tmp_path: Path, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    def say(prompt: str) -> str:
        if "fail" in prompt and said[0] > 20:
            raise error
        said[0] += 1
        return LONG

    said = [0]
    with serving(talking(tmp_path, say)) as server, caplog.at_level(logging.ERROR):
        reply = server.http.post("/v1/chat/completions", json=body("fail"))
        assert reply.status_code == 500
        assert reply.json()["error"]["code"] == "decoding_failed"
        assert "choices" not in reply.json()
        said[0] = 0
        with pytest.raises(openai.APIError, match="Decoding failed"):
            for _ in server.client.chat.completions.create(**body("fail"), stream=True):
                pass
        assert type(error).__name__ in caplog.text
        assert "secret" not in caplog.text
        assert server.http.post("/v1/chat/completions", json=body("go on")).status_code == 200


def test_a_slow_body_is_not_waited_for(tmp_path: Path) -> None:
    def drip() -> Any:
        for _ in range(20):
            yield b" "
            time.sleep(0.1)

    with serving(talking(tmp_path, echo), {"body_seconds": 0.5}) as server:
        headers = {"content-type": "application/json"}
        reply = httpx.post(f"{server.url}/tokenize", content=drip(), headers=headers)
        assert (reply.status_code, reply.json()["error"]["code"]) == (408, "body_too_slow")
