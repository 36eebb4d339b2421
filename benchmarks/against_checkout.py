"""SSD in this checkout beside SSD in another one, such as an older commit.

``git worktree add --detach ../old COMMIT``, then ``python benchmarks/against_checkout.py ../old
--python OTHER_PYTHON``, where ``OTHER_PYTHON`` has the packages that the other checkout needs. Each
checkout is a process of its own (``checkout_worker.py``), and both have their models loaded. They
answer every prompt in every round, in turn and greedily, with the same constants: the paper's, and
the pair's own for the length of drafts, with both models in bfloat16. Prints medians, and the
medians of the ratios to the other checkout, prompt by prompt.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from against_llama_cpp import Child, watched
from rich.console import Console
from rich.table import Table

from safedraft.core.config import OF_CHAINS, SSDConfig
from safedraft.core.counts import format_count
from safedraft.evaluation.benchmark import machine
from safedraft.evaluation.benchmark_prompts import PROMPTS
from safedraft.models.registry import choose_pair

WORKER = Path(__file__).with_name("checkout_worker.py")
HERE = WORKER.parents[1]
PAUSE = 0.2
"""Seconds before each reply, in which the threads of the other process come to rest."""
VERSIONS = """
from importlib.metadata import version
print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers")))
"""
"""Prints what an interpreter has."""


class Reply(NamedTuple):
    """What a checkout answered, as ``checkout_worker.py`` says it."""

    seconds: float
    first: float
    passes: int
    ids: list[int]

    @property
    def speed(self) -> float:
        """Tokens per second of the whole reply, prompt included."""
        return len(self.ids) / self.seconds


class Turn(NamedTuple):
    """One prompt in one round."""

    other: Reply
    this: Reply
    used: float
    """The most cores that other processes used during either reply."""


def make_settings(given: argparse.Namespace) -> dict[str, Any]:
    """What both checkouts load: the pair, and constants that any of them has."""
    own = choose_pair(given.pair)
    drafting = {name: getattr(own.config, name) for name in ("draft_tokens", "draft_confidence")}
    return {
        "pair": own.name,
        "engine": given.engine,
        "rule": given.rule,
        "dtype": "bfloat16",
        "constants": SSDConfig(**drafting).model_dump(mode="json", exclude=set(OF_CHAINS)),
    }


def measure(
    other: Child, this: Child, prompts: Sequence[str], rounds: int, tokens: int
) -> Iterator[Turn]:
    """Ask both for every prompt in every round; which is the first alternates in both."""
    for child in (other, this):
        child.ask(prompt=prompts[0], tokens=tokens)  # a warm-up
    for turn in range(rounds):
        for number, prompt in enumerate(prompts):
            order = [other, this] if (turn + number) % 2 == 0 else [this, other]
            answers = {child: ask(child, prompt, tokens) for child in order}
            used = max(cores for _, cores in answers.values())
            yield Turn(answers[other][0], answers[this][0], used)


def ask(child: Child, prompt: str, tokens: int) -> tuple[Reply, float]:
    """A reply, and how many cores other processes used meanwhile."""
    time.sleep(PAUSE)
    answer, others = watched(partial(child.ask, prompt=prompt, tokens=tokens))
    return Reply(**answer), others


def tabulate(turns: Sequence[Turn], names: Mapping[str, str]) -> Table:
    """A line for each checkout; ratios are to the other one."""
    made = Table(box=None, pad_edge=False)
    made.add_column("checkout")
    for heading in ("tokens/s", "ratio", "first token, s", "ratio", "tokens per pass"):
        made.add_column(heading, justify="right")
    for which, name in names.items():
        pairs = [(getattr(turn, which), turn.other) for turn in turns]
        made.add_row(
            name,
            f"{median(own.speed for own, _ in pairs):.2f}",
            f"{median(own.speed / of.speed for own, of in pairs):.2f}",
            f"{median(own.first for own, _ in pairs):.2f}",
            f"{median(own.first / of.first for own, of in pairs):.2f}",
            f"{sum(len(own.ids) for own, _ in pairs) / sum(own.passes for own, _ in pairs):.2f}",
        )
    return made


def summarize(turns: Sequence[Turn]) -> str:
    """How many ratios there are, how far they spread, and how many replies are the same."""
    ratios = sorted(turn.this.speed / turn.other.speed for turn in turns)
    equal = sum(turn.this.ids == turn.other.ids for turn in turns)
    return (
        f"{format_count(len(ratios), 'ratio')} of tokens/s, from {ratios[0]:.2f} to "
        f"{ratios[-1]:.2f}; {equal} of {len(turns)} replies have the same tokens in both; "
        f"other processes used {median(turn.used for turn in turns):.1f} cores, "
        f"at most {max(turn.used for turn in turns):.1f}"
    )


def describe(folder: Path, python: str) -> str:
    """A checkout's commit, or its folder where git knows none, and what it decodes with."""
    git = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    versions = [python, "-c", VERSIONS]
    found = subprocess.run(versions, capture_output=True, text=True, check=True).stdout.strip()
    return f"{commit or folder.name}, {found}"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the other checkout")
    parser.add_argument("--python", default=sys.executable, help="the other checkout's interpreter")
    parser.add_argument("--pair", help="a registered pair; the default one if none is named")
    parser.add_argument("--engine", default="transformers", help="of both checkouts")
    parser.add_argument("--rule", default="ssd", help="of both; old checkouts know ssd alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=6, help=f"at most {len(PROMPTS)}")
    parser.add_argument("--tokens", type=int, default=48, help="of a reply, at most")
    given = parser.parse_args()
    if min(given.rounds, given.prompts, given.tokens) < 1:
        parser.error("--rounds, --prompts and --tokens must be at least 1")
    return given


def main() -> None:
    given = options()
    settings = json.dumps(make_settings(given))
    places = {"other": (given.folder, given.python), "this": (HERE, sys.executable)}
    names = {which: describe(*place) for which, place in places.items()}
    with ExitStack() as stack:
        children = []
        for folder, python in places.values():
            children.append(Child([python, WORKER, folder, settings]))
            stack.callback(children[-1].close)
        other, this = children
        prompts = PROMPTS[: given.prompts]
        turns = list(measure(other, this, prompts, given.rounds, given.tokens))
    console = Console(highlight=False, width=160)
    console.print(tabulate(turns, names))
    console.print(summarize(turns))
    console.print(
        f"{format_count(len(prompts), 'prompt')}, {format_count(given.rounds, 'round')}, "
        f"at most {format_count(given.tokens, 'token')} each; {settings}; {machine()}"
    )


if __name__ == "__main__":
    main()
