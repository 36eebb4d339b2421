"""What the server costs: tokens per second streamed through it, beside the library's own.

The same prompts, in one process with one pair, in turn; wall-clock of the whole reply as its
reader sees it. Prints the median of the ratios, prompt by prompt.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import threading
import time
from collections.abc import Callable

import openai
import uvicorn

import safedraft
from safedraft.evaluation.benchmark import machine
from safedraft.evaluation.benchmark_prompts import PROMPTS
from safedraft.server.app import create_app
from safedraft.server.settings import ServerSettings

NAME = "pair"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--prompts", type=int, default=6)
    options.add_argument("--max-new-tokens", type=int, default=64)
    given = options.parse_args()

    pair = safedraft.load_pair()
    sampling = safedraft.SamplingParams(max_new_tokens=given.max_new_tokens)
    client = openai.OpenAI(base_url=f"{serve(pair)}/v1", api_key="none")

    def library(prompt: str) -> str:
        return "".join(token.text for token in pair.stream(prompt, sampling=sampling))

    def server(prompt: str) -> str:
        chunks = client.chat.completions.create(
            model=NAME,
            messages=[{"role": "user", "content": prompt}],
            max_tokens=given.max_new_tokens,
            stream=True,
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    ratios = []
    for turn, prompt in enumerate((PROMPTS[0], *PROMPTS[: given.prompts])):
        ways = (library, server) if turn % 2 else (server, library)
        told = {way.__name__: timed(way, prompt) for way in ways}
        texts = {text for text, _ in told.values()}
        assert len(texts) == 1, f"the server says something else: {texts}"
        if turn:  # the first one warms up
            ratios.append(told["library"][1] / told["server"][1])
    outcome = {
        "server_over_library": statistics.median(ratios),
        "ratios": ratios,
        "machine": machine(),
    }
    print(json.dumps(outcome, indent=2))


def timed(way: Callable[[str], str], prompt: str) -> tuple[str, float]:
    started = time.perf_counter()
    text = way(prompt)
    return text, time.perf_counter() - started


def serve(pair: safedraft.Pair) -> str:
    """A server of the pair in a thread, which ends with the process."""
    listening = socket.create_server(("127.0.0.1", 0))
    app = create_app(pair, ServerSettings(name=NAME))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    threading.Thread(target=server.run, args=([listening],), daemon=True).start()
    while not server.started:
        time.sleep(0.05)
    return f"http://127.0.0.1:{listening.getsockname()[1]}"


if __name__ == "__main__":
    main()
