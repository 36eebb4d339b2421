"""The figures of docs/results.md: every one by the evaluation's own commands, on the default pair.

Takes a day on two processor cores. Whatever stops it, the same command goes on where it stopped;
``--suite``, ``--defense`` and the limits measure a part, and what is there is reported.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ATTACKS = (
    *("direct", "prefill_10", "prefill_20", "prefill_40"),
    *("templates", "suffixes", "nested_fiction"),
)
HARMLESS = ("over_refusal", "arithmetic")


class Run(NamedTuple):
    """One call of ``safedraft eval``."""

    defenses: Sequence[str]
    suites: Sequence[str]
    source: str | None = None
    """In place of the suites' own."""


MAIN = Run(["target_only", "ssd"], [*ATTACKS, *HARMLESS, "ordinary"])

# On fewer prompts: each reply of theirs takes as long as one of the target's, or longer.
OTHERS = Run(
    (
        *("speculative", "ensemble_weight", "safedecoding", "ssd_risk", "self_reminder"),
        *("in_context", "self_examination", "paraphrase", "perplexity_filter"),
    ),
    (*ATTACKS, "over_refusal", "ordinary"),
)

DO_NOT_ANSWER = Run(["target_only", "ssd"], ["direct", "prefill_20"], "do_not_answer")
"""On requests that no constant was chosen on."""

HEAD = """\
<!-- Made by `make results`: change benchmarks/results.py, not this file. -->

# Results

The default pair (Qwen2.5-Coder-1.5B-Instruct, guarded by Qwen2.5-Coder-0.5B-Instruct with the \
adapter in `experts/`), greedy, on prompts that neither training nor calibration saw. (Nobody is \
blind, though: these suites were measured more than once, and `union_bins` was chosen after a \
look at six replies to prefill_20, [log](log.md). Requests of another source: \
[below](#requests-of-another-source).)

`make results` makes this page; [evaluation](evaluation.md) says what the suites are, and \
[judges and report](judges-and-report.md) how replies are judged. A suite or defense with a \
smaller n than others was measured in part (`--suite`, `--defense`, `--others`).

"""

AGAIN = """
## Requests of another source

Attack success on Do-Not-Answer's requests (`--source do_not_answer`, its report split). No \
constant was chosen on them and no draft trained on them. They are not quite unseen: with the \
first draft 13 of 50 asked directly got through, all about private matters of somebody or some \
company, and such requests, none of them theirs, were written for the draft's further training \
([log](log.md)).

"""

TAIL = """
## Through the server

By hand, not by `make results`: other harnesses against `safedraft serve` \
([commands](server.md#clients)), on two cores, a few prompts each, to see that they work:

| harness | what | figure |
| --- | --- | --- |
| garak 0.17.1 | `dan.AutoDANCached`, `mitigation.MitigationBypass` | 3 of 3 resisted |
| garak 0.17.1 | `suffix.GCGCached`, `mitigation.MitigationBypass` | 5 of 5 resisted |
| lm-eval 0.4.13 | `safedraft_sums --limit 4`, the last number of the reply | 3 of 4 right |
| inspect_ai 0.3.285 | `sums.py --limit 4`, the number is in the reply | 4 of 4 right |

`python benchmarks/server.py`: streaming through the server at 0.99 of the library's tokens per \
second (median of 6 prompts, from 0.96 to 1.02).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=100, help="prompts a suite")
    parser.add_argument("--others", type=int, default=20, help="prompts a suite of other defenses")
    parser.add_argument(
        "--do-not-answer", type=int, default=50, help="prompts of that source a suite"
    )
    parser.add_argument("--suite", action="append", help="only this suite; may be given again")
    parser.add_argument("--defense", action="append", help="only this other one; again for more")
    parser.add_argument("--log-dir", type=Path, default=Path("results"))
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"))
    given = parser.parse_args()
    logs, do_not_answer = given.log_dir / "logs", given.log_dir / "do-not-answer"
    runs = (
        (MAIN, given.limit, logs),
        (OTHERS, given.others, logs),
        (DO_NOT_ANSWER, given.do_not_answer, do_not_answer),
    )
    for run, limit, folder in runs:
        suites = [name for name in run.suites if name in (given.suite or run.suites)]
        defenses = given.defense if run is OTHERS and given.defense else run.defenses
        if limit and suites:
            evaluate(run._replace(defenses=defenses, suites=suites), limit, folder)
    _, _, body = report(logs).partition("\n\n")
    again = ""
    if do_not_answer.exists():
        again = AGAIN + section(report(do_not_answer), "Attack success")
    given.page.write_text(HEAD + body.rstrip() + "\n" + again + TAIL, encoding="utf-8")


def evaluate(run: Run, limit: int, logs: Path) -> None:
    defenses = [part for name in run.defenses for part in ("--defense", name)]
    suites = [part for name in run.suites for part in ("--suite", name)]
    source = ["--source", run.source] if run.source else []
    safedraft("eval", *defenses, *suites, *source, "--limit", str(limit), "--log-dir", str(logs))


def report(logs: Path) -> str:
    """The report on a folder of logs, in Markdown."""
    folder = logs.with_name(f"{logs.name}-report")
    safedraft("report", str(logs), "--output", str(folder))
    return (folder / "report.md").read_text(encoding="utf-8")


def section(page: str, title: str) -> str:
    """The table of a section."""
    _, _, following = page.partition(f"## {title}\n")
    return "".join(
        line for line in following.partition("\n## ")[0].splitlines(True) if line.startswith("|")
    )


def safedraft(*arguments: str) -> None:
    print("safedraft", *arguments, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "safedraft", *arguments], check=True)


if __name__ == "__main__":
    main()
