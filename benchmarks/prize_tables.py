"""The tables of ``tree_prize.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

FAMILIES = "chain", "static", "grown"
"""What is compared with the pair's own chain."""


def show(console: Console, outcome: Mapping[str, Any]) -> None:
    """Print the tables of an outcome."""
    for which, times in outcome["times_ms"].items():
        shown = " ".join(f"{value:.1f}" for value in times)
        console.print(f"{which}, ms of a pass over 1 to {len(times)} rows: {shown}")
    show_acceptance(console, outcome["ways"])
    show_gains(console, outcome["ways"])
    show_models(console, outcome["ways"])
    for way in outcome["ways"]:
        console.print(f"{name_of(way)}: {tell_check(way['check'])}")
        for name, one in way["machines"].items():
            console.print(f"  {name}: {tell_choice(one)}")


def show_acceptance(console: Console, ways: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title="Which proposal of the draft a token was", title_justify="left", box=None)
    for heading in ("rule", "scheme", "text"):
        table.add_column(heading)
    for heading in ("tokens", "1st", "2nd", "3rd", "4th", "5th–8th", "none"):
        table.add_column(heading, justify="right")
    for way in ways:
        for row in sorted(way["acceptance"], key=lambda row: (row["scheme"], row["kind"] != "all")):
            shares = row["shares"]
            shown = [*shares[:4], sum(shares[4:]), 1 - sum(shares)]
            names = name_of(way), row["scheme"], row["kind"], str(row["positions"])
            table.add_row(*names, *(f"{share:.3f}" for share in shown))
    console.print(table)


def show_gains(console: Console, ways: Sequence[Mapping[str, Any]]) -> None:
    table = Table(
        title="Gain over the pair's chain with this machine's times", title_justify="left", box=None
    )
    for heading in ("rule", "text"):
        table.add_column(heading)
    for heading in ("tokens/pass", "ms/token", "other chain", "static tree", "grown tree"):
        table.add_column(heading, justify="right")
    for way in ways:
        for kind, row in way["machines"]["measured"]["kinds"].items():
            gains = (f"{row['gain'][family]:+.1%}" for family in FAMILIES)
            per_pass = f"{row['tokens_per_target_pass']:.2f}"
            table.add_row(name_of(way), kind, per_pass, f"{row['time_per_token']:.1f}", *gains)
    console.print(table)


def show_models(console: Console, ways: Sequence[Mapping[str, Any]]) -> None:
    models = [name for name in ways[0]["machines"] if name != "measured"]
    table = Table(
        title="Gain over the pair's chain on a modelled accelerator: "
        "another chain / a static tree / a grown tree",
        title_justify="left",
        box=None,
    )
    table.add_column("rule")
    for name in models:
        table.add_column(name, justify="right")
    for way in ways:
        rows = (way["machines"][name]["kinds"]["all"]["gain"] for name in models)
        cells = (" / ".join(f"{row[family]:+.0%}" for family in FAMILIES) for row in rows)
        table.add_row(name_of(way), *cells)
    console.print(table)


def name_of(way: Mapping[str, Any]) -> str:
    return f"{way['rule']}, {'sampled' if way['temperature'] else 'greedy'}"


def tell_check(figures: Mapping[str, float]) -> str:
    return (
        f"the pair's chain as simulated {figures['tokens_per_target_pass']:.2f} tokens/pass, "
        f"{figures['draft_passes']:.0f} passes of the draft, {figures['ms_per_token']:.1f} "
        f"ms/token; as decoded {figures['decoded_tokens_per_target_pass']:.2f}, "
        f"{figures['decoded_draft_passes']:.0f}, {figures['decoded_ms_per_token']:.1f}; "
        f"proposals agree at {figures['proposals_that_agree']:.1%}"
    )


def tell_choice(one: Mapping[str, Any]) -> str:
    chosen, tokens = one["chosen"], one["static_tokens_per_target_pass"]
    return (
        f"other chain: {chosen['chain']}; static tree: {chosen['static']}, "
        f"{tokens['expected']:.2f} tokens/pass expected and {tokens['simulated']:.2f} simulated; "
        f"grown tree: {chosen['grown']}"
    )
