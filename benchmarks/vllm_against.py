"""SSD in vLLM from any checkout, in a process of its own that answers lines of JSON.

``vllm_engine.py --against FOLDER`` runs this file with that checkout and once more with its own,
and lets both decode the same requests in turns. The package on ``PYTHONPATH`` is the one that is
loaded, and nothing else of the repository, so that an older checkout does as well. The first line
on its standard input has the arguments of ``load_pair``; the answer is ``{"package": …}``, the
folder of the package. Each further line is ``{"asked": [conversation, …], "tokens": 96}``, and its
answer has

- ``ids``: the greedy replies, decoded together, each a list of tokens,
- ``seconds``: the time from the first prompt to the last token.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Decode = Callable[[Sequence[Any]], tuple[list[list[int]], float]]
"""Decodes conversations together: the token ids of the replies, and tokens per second."""


@contextmanager
def checkout(folder: Path, tokens: int, **arguments: Any) -> Iterator[Decode]:
    """An engine with the package in ``folder/src``, loaded and ready.

    Args:
        folder: a checkout of this repository.
        tokens: the most of a reply.
        arguments: of ``load_pair``; JSON has to be able to say them.

    Raises:
        SystemExit: the folder has no package, its process ends, or another package was loaded.
    """
    package = folder.resolve() / "src/safedraft"
    if not package.is_dir():
        raise SystemExit(f"{folder} is no checkout: there is no {package}")
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(package.parent)},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asks, answers = process.stdin, process.stdout

        def ask(**line: Any) -> Any:
            try:
                print(json.dumps(line), file=asks, flush=True)
                answer = answers.readline()
            except BrokenPipeError:
                answer = ""
            if not answer:
                raise SystemExit(f"the engine of {folder} ended with {process.wait()}")
            return json.loads(answer)

        def decode(asked: Sequence[Any]) -> tuple[list[list[int]], float]:
            answer = ask(asked=asked, tokens=tokens)
            return answer["ids"], sum(map(len, answer["ids"])) / answer["seconds"]

        loaded = ask(**arguments)["package"]
        if Path(loaded) != package:
            raise SystemExit(f"{loaded} was loaded in place of {package}")
        yield decode


def main() -> None:
    # vLLM and the libraries under it write to standard output, which has the answers alone.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        import safedraft

        pair = safedraft.load_pair(**json.loads(sys.stdin.readline()))
        answer: dict[str, Any] = {"package": str(Path(safedraft.__file__).resolve().parent)}
        print(json.dumps(answer), file=answers, flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            sampling = safedraft.SamplingParams(max_new_tokens=asked["tokens"])
            started = time.perf_counter()
            replies = pair.generate_many(asked["asked"], sampling=sampling)
            seconds = time.perf_counter() - started
            ids = [[token.id for token in reply.trace] for reply in replies]
            print(json.dumps({"ids": ids, "seconds": seconds}), file=answers, flush=True)


if __name__ == "__main__":
    main()
