"""SafeDraft beside llama.cpp: the default pair's target in 4 and 8 bits, alone and with its draft.

``make llama`` first. Every row answers every prompt in every round, in turn, greedily; llama.cpp's
rows are processes of their own (``llama_worker.py``), and their files are made once, from the
weights that SafeDraft decodes with. Prints a table for each number of tokens: the seconds until the
first tokens are known, tokens per second after them, and of the whole reply; medians, and the
medians of the ratios to the first row, prompt by prompt. ``--output`` has every run, without texts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil
import torch
from rich.console import Console
from rich.table import Table

import safedraft
from safedraft.evaluation.benchmark import machine
from safedraft.evaluation.benchmark_prompts import KINDS as OWN
from safedraft.evaluation.benchmark_prompts import PROMPTS
from safedraft.models.fetch import fetch
from safedraft.models.fingerprint import digest, fingerprint
from safedraft.models.pinned import build_once
from safedraft.models.registry import cache_folder, choose_pair

HERE = Path(__file__).parent
PYTHON = HERE.parent / ".venv-llama" / "bin" / "python"

TYPES = "Q4_K_M", "Q8_0"
"""The types that GGUF files are made in."""
BASELINE = "llama.cpp Q4_K_M"
RULES = {"target alone": "target_only", "lossless": "speculative", "SSD": "ssd"}
"""SafeDraft's rows, each with the rule that decides."""

TRIES = 3
"""How often a reply is decoded at most, while other processes disturb it."""
PATIENCE = 60
"""Seconds that each try waits for them at most."""

T = TypeVar("T")
Prompt = str | list[dict[str, str]]
Case = tuple[int, int, str, int]
"""What every row answers: a round, a limit of tokens, a kind of prompt, and which one it is."""
Medians = dict[str, float | None]
ByRow = Mapping[str, Mapping[str, Medians]]
"""The medians of each row, by kind of prompt and for ``all`` prompts."""

KINDS: dict[str, Sequence[Prompt]] = {
    **{kind: texts[:3] for kind, texts in OWN.items()},
    **tomllib.loads((HERE / "kinds.toml").read_text(encoding="utf-8")),
}


class Reply(NamedTuple):
    """What a row answered, and when."""

    first: float
    """Seconds until the first tokens were known."""
    arrived: int
    """How many those were: a row that drafts knows several at once."""
    rest: float
    """Seconds of the others."""
    ids: list[int]


Row = Callable[[Prompt, int], Reply]
"""Answers a prompt in at most so many tokens."""


@dataclass(frozen=True)
class Run:
    """One reply of one row, without its text."""

    row: str
    round: int
    limit: int
    """The most tokens that the reply could have."""
    kind: str
    prompt: int
    prompt_tokens: int
    first: float
    arrived: int
    rest: float
    tokens: int
    others: float
    """How many cores other processes used meanwhile."""
    shared: int
    """How many tokens at its beginning are those of the first row's reply."""

    @property
    def case(self) -> Case:
        return self.round, self.limit, self.kind, self.prompt

    @property
    def later(self) -> float | None:
        """Tokens per second after the first; None if there were none."""
        count = self.tokens - self.arrived
        return count / self.rest if count > 0 else None

    @property
    def whole(self) -> float:
        """Tokens per second of the whole reply, prompt included."""
        return self.tokens / (self.first + self.rest)


class Child:
    """A process that says in a line of JSON that it is ready, and answers each with another."""

    def __init__(self, command: Sequence[str | Path]) -> None:
        self._command = " ".join(map(str, command))
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, as the reading below says
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._command} ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Let it end, by the end of its input."""
        self._process.communicate()


def gguf_folder(model: str) -> Path:
    """The folder in SafeDraft's cache with a model in each of the types, made once."""
    source = fetch(model)
    name = digest(f"{source} {fingerprint(source)}", digits=16)
    weights = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    return build_once(
        cache_folder() / "gguf" / name,
        partial(convert, source),
        is_complete=Path.is_dir,
        needed=2 * weights,
    )


def convert(source: Path, folder: Path) -> None:
    say(f"writing GGUF files of {source.name}")
    command: list[str | Path] = [PYTHON, HERE / "to_gguf.py", source, folder, *TYPES]
    done = subprocess.run(command, capture_output=True, text=True)  # llama.cpp writes a lot
    if done.returncode:
        raise SystemExit(done.stderr)


def llama_commands(drafted: Sequence[int], threads: int) -> dict[str, list[str | Path]]:
    """llama.cpp's rows, and the process that answers for each."""
    spec = choose_pair()
    target, draft = gguf_folder(spec.target), gguf_folder(spec.draft) / "Q8_0.gguf"
    start: list[str | Path] = [PYTHON, HERE / "llama_worker.py", "--threads", str(threads)]
    commands = {f"llama.cpp {name}": [*start, target / f"{name}.gguf"] for name in TYPES}
    for count in drafted:
        own = [*commands[BASELINE], "--draft", draft, "--drafted", str(count)]
        commands[f"{BASELINE}, drafts {count}"] = own
    return commands


def by_llama(child: Child, pair: safedraft.Pair) -> Row:
    """A row of llama.cpp, on the ids of the target's prompt."""

    def row(prompt: Prompt, limit: int) -> Reply:
        ids = pair.prompts(prompt).target
        return Reply(**child.ask(ids=ids, tokens=limit, end=sorted(pair.end_tokens)))

    return row


def by_safedraft(pair: safedraft.Pair, rule: str) -> Row:
    """A row of SafeDraft; the tokens of the first block are known together."""

    def row(prompt: Prompt, limit: int) -> Reply:
        result = pair.generate(prompt, rule=rule, max_new_tokens=limit)
        first, seconds = result.statistics.first_token_seconds, result.statistics.seconds
        arrived = sum(token.block == 0 for token in result.trace)
        return Reply(first, arrived, seconds - first, [token.id for token in result.trace])

    return row


def read_speed() -> float:
    """Gigabytes that the machine reads in a second, all threads together: the best of three."""
    values = torch.ones(2**28)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        values.sum()
        seconds.append(time.perf_counter() - started)
    return values.nbytes / min(seconds) / 1e9


def measure(
    rows: Mapping[str, Row],
    pair: safedraft.Pair,
    kinds: Mapping[str, Sequence[Prompt]],
    limits: Sequence[int],
    turn: int,
    allowed: float,
) -> Iterator[list[Run]]:
    """One round, prompt by prompt; which row begins changes from one to the next."""
    names = list(rows)
    for limit in limits:
        for kind, prompts in kinds.items():
            for number, prompt in enumerate(prompts):
                say(f"round {turn + 1}, {limit} tokens, {kind} {number + 1}")
                names = [*names[1:], names[0]]
                replies = {
                    name: calm(partial(rows[name], prompt, limit), allowed) for name in names
                }
                length = len(pair.prompts(prompt).target)
                case = turn, limit, kind, number
                yield [run_of(name, replies, case, length) for name in rows]


def calm(decode: Callable[[], Reply], allowed: float) -> tuple[Reply, float]:
    """A reply, and how many cores other processes used meanwhile; once more if too many."""
    for _ in range(TRIES):
        for _ in range(PATIENCE):
            if watched(partial(time.sleep, 1))[1] <= allowed:
                break
        reply, others = watched(decode)
        if others <= allowed:
            break
    return reply, others


def watched(act: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and how many cores other processes used meanwhile."""
    before = used_by_others()
    started = time.perf_counter()
    done = act()
    return done, (used_by_others() - before) / (time.perf_counter() - started)


def used_by_others() -> float:
    """Seconds of all cores that were not idle, nor this process's and its children's."""
    parent = psutil.Process()
    times = [process.cpu_times() for process in (parent, *parent.children())]
    cores = psutil.cpu_count() or 1
    own = sum(one.user + one.system for one in times)
    return float(cores * time.perf_counter() - psutil.cpu_times().idle - own)


def run_of(name: str, replies: Mapping[str, tuple[Reply, float]], case: Case, length: int) -> Run:
    reply, others = replies[name]
    both = zip(reply.ids, replies[BASELINE][0].ids, strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], both))
    times = reply.first, reply.arrived, reply.rest
    return Run(name, *case, length, *times, len(reply.ids), others, shared)


def medians(runs: Sequence[Run], baseline: Mapping[Case, Run]) -> Medians:
    """The medians of seconds and rates, and of their ratios to the first row; None if unknown."""
    outcome: Medians = {}
    for name in ("first", "later", "whole"):
        pairs = [(getattr(run, name), getattr(baseline.get(run.case), name, None)) for run in runs]
        outcome[name] = median(value for value, _ in pairs)
        outcome[f"{name}_ratio"] = median(value / of for value, of in pairs if value and of)
    outcome["shared"] = sum(run.shared for run in runs) / sum(run.tokens for run in runs)
    return outcome


def median(values: Iterable[float | None]) -> float | None:
    """The median of the values that are not None."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def figures(runs: Sequence[Run]) -> dict[int, ByRow]:
    """``medians`` by the limit of tokens, the row and the kind of prompt; ``all`` is every kind."""
    baseline = {run.case: run for run in runs if run.row == BASELINE}
    return {
        limit: {
            row: {
                kind: medians(some, baseline)
                for kind, some in {"all": own, **grouped(own, "kind")}.items()
            }
            for row, own in grouped(of_limit, "row").items()
        }
        for limit, of_limit in grouped(runs, "limit").items()
    }


def grouped(runs: Sequence[Run], field: str) -> dict[Any, list[Run]]:
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(getattr(run, field), []).append(run)
    return groups


def table(rows: ByRow, title: str) -> Table:
    """A line for each row: over all prompts, and then the rate after the first token by kind."""
    kinds = [kind for kind in next(iter(rows.values())) if kind != "all"]
    made = Table(title=title, title_justify="left", box=None, pad_edge=False)
    made.add_column("tokens/s after the first")
    for heading in ("first, s", "ratio", "after, /s", "ratio", "whole, /s", "ratio", *kinds):
        made.add_column(heading, justify="right")
    for name, by_kind in rows.items():
        shown = [
            number(by_kind["all"][key])
            for figure in ("first", "later", "whole")
            for key in (figure, f"{figure}_ratio")
        ]
        made.add_row(name, *shown, *(number(by_kind[kind]["later"]) for kind in kinds))
    return made


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def undisturbed(runs: Sequence[Run], allowed: float) -> list[Run]:
    return [run for run in runs if run.others <= allowed]


def save(file: Path, runs: Sequence[Run], kept: Sequence[Run], speeds: Sequence[float]) -> None:
    """Write every run, and the figures of some."""
    outcome = {
        "machine": machine(),
        "read_gigabytes_per_second": speeds,
        "baseline": BASELINE,
        "figures": figures(kept),
        "runs": [asdict(run) for run in runs],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, nargs="+", default=[48, 256], help="of a reply")
    parser.add_argument("--prompts", type=int, default=3, help="of each kind, at most 3")
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--engine", nargs="+", default=["cpu"], help="SafeDraft's")
    parser.add_argument(
        "--drafted", type=int, nargs="+", default=[3], help="tokens that llama.cpp's draft proposes"
    )
    parser.add_argument("--draft-dtype", help="of SafeDraft's draft, if it differs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--others",
        type=float,
        default=0.25,
        help="cores that other processes may use; a reply that they disturb more is decoded again, "
        "and after three times left out of the figures",
    )
    parser.add_argument("--output", type=Path, default=Path("results/against_llama_cpp.json"))
    return parser.parse_args()


def make_rows(given: argparse.Namespace, stack: ExitStack) -> tuple[dict[str, Row], safedraft.Pair]:
    """Every row, and a pair that has the prompts' ids; ``stack`` closes what they hold."""
    own_type = {"draft_dtype": given.draft_dtype} if given.draft_dtype else {}
    pairs = {engine: safedraft.load_pair(engine=engine, **own_type) for engine in given.engine}
    commands = llama_commands(given.drafted, given.threads)
    children = {name: Child(command) for name, command in commands.items()}
    for close in [own.close for own in pairs.values()] + [own.close for own in children.values()]:
        stack.callback(close)
    pair = next(iter(pairs.values()))
    rows = {name: by_llama(child, pair) for name, child in children.items()}
    for engine, own in pairs.items():
        for name, rule in RULES.items():
            rows[f"{engine}, {name}"] = by_safedraft(own, rule)
    return rows, pair


def main() -> None:
    given = options()
    if not PYTHON.exists():
        raise SystemExit("there is no llama.cpp: run `make llama`, which needs a C++ compiler")
    torch.set_num_threads(given.threads)
    kinds = {kind: KINDS[kind][: given.prompts] for kind in given.kind}
    runs: list[Run] = []
    speeds: list[float] = []
    with ExitStack() as stack:
        rows, pair = make_rows(given, stack)
        for row in rows.values():
            row(PROMPTS[0], 16)  # a warm-up
        for turn in range(given.rounds):
            speeds.append(read_speed())
            for found in measure(rows, pair, kinds, given.tokens, turn, given.others):
                runs += found
                save(given.output, runs, undisturbed(runs, given.others), speeds)
    console = Console(highlight=False, width=160)
    kept = undisturbed(runs, given.others)
    for limit, by_row in figures(kept).items():
        console.print(table(by_row, f"{limit} tokens, {given.rounds} rounds"))
    console.print(
        f"read speed {', '.join(f'{speed:.1f}' for speed in speeds)} GB/s; "
        f"{len(runs) - len(kept)} of {len(runs)} replies left out, which others disturbed"
    )


if __name__ == "__main__":
    main()
