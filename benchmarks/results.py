"""The figures of docs/results.md: the profile ``standard`` on the default pair.

Takes most of a day on two processor cores, in stages of at most two hours. Whatever stops it, the
same command resumes; ``--stage`` runs one stage, ``--stage none`` only writes the page. What is
there is reported.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import chain
from pathlib import Path

from safedraft.evaluation.intervals import Estimate
from safedraft.evaluation.logs import Logs, read_logs
from safedraft.evaluation.profiles import CORE, PROFILES, find_stages
from safedraft.evaluation.records import Row
from safedraft.evaluation.report.figures import build_figures
from safedraft.evaluation.report.markdown import render_markdown, render_section
from safedraft.evaluation.report.plots import render_plots
from safedraft.evaluation.report.tables import Figures, Point

SAMPLED = """
## Sampled

The same defenses at temperature 1, five replies to each conversation: the mean over the requests, \
and the share of requests that at least one of five replies answers.

"""

DEFENSES = {
    "target_only": "the target alone",
    "ssd": "SSD alone",
    "risk": "SSD with the request's risk",
}
"""What the pages call the configurations that all suites are measured with."""

OTHERS = {
    "ssd_paper": "SSD with the paper's constants",
    "ssd_bare_draft": "SSD with the draft as it was published",
    "ensemble_weight": "a weighted mean of both models",
    "safedecoding": "SafeDecoding",
    "easd": "EASD",
    "ada_rethinking": "Any-Depth Alignment (rethinking)",
    "self_reminder": "a reminder in the system prompt",
    "always_refuse": "refusing everything",
}
"""What the page calls the configurations that are measured with one suite of each kind."""

ATTACKS = {
    "direct": "asked directly",
    "trigger_words": "harm in plain words, and harmlessness in the words of harm",
    "prefill_5": "5 tokens of a compliant answer prefilled",
    "prefill_20": "20 tokens of a compliant answer prefilled",
    "prefill_opening": "one of fourteen openings prefilled",
    "prefill_text_5": "5 tokens of plain answer text prefilled",
    "prefill_text_20": "20 tokens of plain answer text prefilled",
    "prefill_text_100": "100 tokens of plain answer text prefilled",
    "prefill_code": "a code fence prefilled",
    "prefill_json": "the beginning of a JSON object prefilled",
    "code": "code with a harmful purpose",
    "code_begun": "code whose first lines are prefilled",
    "role_play": "role play",
    "nested_fiction": "nested fiction",
    "frames": "tables, poems, JSON, translation and other frames",
    "histories": "faked and escalating histories",
    "system_prompts": '"unrestricted" system prompts',
    "templates": "templates found in the wild",
    "suffixes": "published suffixes",
    "encodings": "encodings",
    "long_context": "after 1,000 tokens of harmless text",
    "short_answers": "answers of five words",
    "late_harm": "harm that comes late, in a frame of SafeDraft's own",
    "copying": "harm after a copying task",
    "quiz": "harm as the last question of a quiz",
    "json_schema": "a reply that must be JSON with a title and steps, or a refusal",
    "json_schema_only": "a reply that must be JSON with a title and steps",
    "ratchet_1": "a client that asks for one token at a time",
    "ratchet_7": "a client that asks for seven tokens at a time",
    "languages": "eight other languages, asked directly",
    "languages_prefill": "… with the answer begun",
    "languages_mixed": "… inside an English frame",
}
"""What the pages call the suites of the short table, in its order."""

SHOWN_FIRST = (
    "direct", "prefill_20", "prefill_opening", "role_play", "histories", "quiz", "languages",
)  # fmt: skip
"""The suites of the README: the most usual attacks, and the worst one."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="standard", choices=PROFILES)
    parser.add_argument("--stage", action="append", help="only this stage; may be given again")
    parser.add_argument("--log-dir", type=Path, default=Path("results") / "logs")
    parser.add_argument("--page", type=Path, default=Path("docs/results.md"))
    given = parser.parse_args()
    if given.stage != ["none"]:
        for stage in find_stages(given.profile, given.stage or ()):
            safedraft("eval", "--profile", given.profile, "--stage", stage.name,
                      "--log-dir", str(given.log_dir))  # fmt: skip
    folder = given.log_dir.with_name("report")
    safedraft("report", str(given.log_dir), "--output", str(folder))
    logs = read_logs([given.log_dir])
    compared = Logs([run for run in logs.runs if run.name in DEFENSES], logs.notes)
    figures = build_figures(compared)
    _, _, body = render_markdown(figures).partition("\n\n")
    draw(figures, given.page.with_name("attacks.svg"))
    points = figures.trade_off
    fill_in(Path("README.md"), "attacks", tabulate_attacks(compared, points, SHOWN_FIRST))
    limits = given.page.with_name("limits.md")
    fill_in(limits, "attacks", tabulate_attacks(compared, points, ATTACKS))
    sampled = given.log_dir.with_name(f"{given.log_dir.name}-sampling")
    if sampled.exists():
        body = body.rstrip() + "\n" + tabulate_sampled(sampled)
    fill_in(given.page, "figures", body.strip() + "\n")
    if others := select_others(logs):
        fill_in(given.page, "others", tabulate_others(others))
        draw(build_figures(others), given.page.with_name("others.svg"))


def draw(figures: Figures, file: Path) -> None:
    """Write the plot of attacks and their controls, dark on white."""
    picture = render_plots(figures)["trade_off"].replace("currentColor", "#1d2125")
    start = picture.index(">") + 1
    white = '<rect width="100%" height="100%" fill="#fff"/>'
    file.write_text(picture[:start] + white + picture[start:], encoding="utf-8")


def tabulate_attacks(logs: Logs, points: Sequence[Point], suites: Collection[str]) -> str:
    """Counts of attacks and controls, a line a suite, and what they come to over all suites."""
    rows = {(run.suite, run.name): run.rows for run in logs.runs}
    names = [name for name in DEFENSES if any(key[1] == name for key in rows)]
    heads = [f"{DEFENSES[name]}: answers | harmless refused" for name in names]
    lines = [f"| attack | {' | '.join(heads)} |", "| --- |" + " --- |" * 2 * len(names)]
    for suite, title in ATTACKS.items():
        if suite in suites and all((suite, name) in rows for name in names):
            cells = [count_outcomes(rows[suite, name]) for name in names]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    by_name = {point.name: point for point in points}
    shares = [
        f"{DEFENSES[name]} answers {percent(by_name[name].success)}% of the attacks, refuses "
        f"{percent(by_name[name].harmless_refused)}% of the harmless requests in them, and tells "
        f"the two apart by {percent(by_name[name].separation)} points"
        for name in names
    ]
    return "\n".join(lines) + f"\n\nOver all suites of attacks {'; '.join(shares)}.\n"


def select_others(logs: Logs) -> Logs | None:
    """The runs of one suite of each kind by the configurations that ran all of these suites."""
    known = {**DEFENSES, **OTHERS}
    runs = [run for run in logs.runs if run.suite in CORE and run.name in known]
    counts = Counter(run.name for run in runs)
    kept = [run for run in runs if counts[run.name] == len(CORE)]
    return Logs(kept) if {run.name for run in kept} - DEFENSES.keys() else None


def tabulate_others(logs: Logs) -> str:
    """Attacks answered and controls refused, a line a configuration, the best one first."""
    rows = {(run.suite, run.name): run.rows for run in logs.runs}
    heads = ["", "tells apart", "all six", *(f"`{suite}`" for suite in CORE)]
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * (len(heads) - 1)]
    points = build_figures(logs).trade_off
    for point in sorted(points, key=lambda point: -(point.separation.value or 0)):
        every = [rows[suite, point.name] for suite in CORE]
        over_all = count_outcomes([*chain.from_iterable(every)]).replace(" | ", " / ")
        cells = [re.sub(r"(\d+) of \d+ \| (\d+) of \d+", r"\1 / \2", count_outcomes(found))
                 for found in every]  # fmt: skip
        title = {**DEFENSES, **OTHERS}[point.name]
        apart = f"{percent(point.separation)} points"
        lines.append(f"| {' | '.join([title, apart, over_all, *cells])} |")
    return "\n".join(lines) + "\n"


def percent(estimate: Estimate) -> str:
    """An estimate in whole percent."""
    assert estimate.value is not None
    return f"{100 * estimate.value:.0f}"


def count_outcomes(rows: Sequence[Row]) -> str:
    """How many attacks succeed and how many controls are refused, as two cells."""
    succeeded = [row.succeeded for row in rows if not row.control and row.succeeded is not None]
    refused = [row.refused for row in rows if row.control and row.refused is not None]
    return " | ".join(f"{sum(found)} of {len(found)}" for found in (succeeded, refused))


def fill_in(page: Path, name: str, text: str) -> None:
    """Replace what stands between the marks of this name."""
    before = page.read_text(encoding="utf-8")
    marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
    if not marked.search(before):
        raise SystemExit(f"{page} has no marks between which the {name} stand")
    page.write_text(marked.sub(lambda m: m[1] + text + m[2], before), encoding="utf-8")


def tabulate_sampled(folder: Path) -> str:
    """The table of attacks and controls of the sampled stage."""
    section = build_figures(read_logs([folder])).sections[0]
    return SAMPLED + render_section(section) + "\n"


def safedraft(*arguments: str) -> None:
    """Run a command of SafeDraft; its output goes to this one's."""
    print("safedraft", *arguments, file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "safedraft", *arguments], check=True)


if __name__ == "__main__":
    main()
