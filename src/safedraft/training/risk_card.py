"""The section of an adapter's card about its risk probe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safedraft.core.files import write_atomically
from safedraft.models.probe_file import PROBE
from safedraft.training.conversations import PLAIN
from safedraft.training.requests import SHIPPED

if TYPE_CHECKING:
    from safedraft.training.risk import LeftOut, TrainedProbes

_RISK = "## Risk probe\n"
_ORIGINS = {
    "languages": "in eight other languages",
    "short": "a few words wanted",
    "wordings": "in misleading words",
}


def write_risk_section(folder: Path, trained: TrainedProbes) -> None:
    """Write the results of an adapter's risk probes into its card, if it has a card.

    Args:
        folder: folder of the adapter.
        trained: the probes with their checks.
    """
    card = folder / "README.md"
    if not card.exists():
        return
    text = card.read_text(encoding="utf-8")
    before, found, after = text.partition(_RISK)
    if found:  # of an earlier probe
        after = after[after.find("\n## ") + 1 :] if "\n## " in after else ""
    else:
        before, data, after = text.partition("## Data\n")
        after = data + after
    section = _format_checks(trained) + _format_left_out(trained.both.left_out)
    write_atomically(card, f"{before.rstrip()}\n\n{section}\n{after}".rstrip().encode() + b"\n")


def _name_kind(kind: str) -> str:
    name, comma, origin = kind.partition(", ")
    return name.replace("_", "-") + comma + _ORIGINS.get(origin, origin)


def _format_checks(trained: TrainedProbes) -> str:
    cells: dict[str, list[Counter[str]]] = {}
    harmful, harmless = Counter[str](), Counter[str]()
    for name, checks in (("both", trained.both.checks), ("draft", trained.draft.checks)):
        for one in checks:
            plain, surrounded = cells.setdefault(one.kind, [Counter(), Counter()])
            cell = plain if one.surroundings == PLAIN else surrounded
            words = {"words": one.ngrams, "total": one.total} if name == "both" else {}
            for counts in (cell, harmful if one.kind.startswith("harmful") else harmless):
                counts.update({name: one.probe, **words})
    rows = [
        f"| {_name_kind(kind)} | "
        + " | ".join(
            f"{cell['both']} of {cell['total']} | {cell['draft']} | {cell['words']}"
            for cell in both
        )
        + " |"
        for kind, both in cells.items()
    ]
    return f"""\
{_RISK}
`{PROBE}` reads from the last hidden states of draft and target how likely a request is harmful
(`safedraft train-risk`). The same surroundings stand around harmful and harmless requests: frames,
system prompts, earlier turns, a harmless task first, formats of data, encodings and long templates.
Of requests that it was not trained on, it calls risky as many as the table says. After them come
the numbers of a probe that reads the draft alone (for other targets), and of a classifier of words
and pairs of words on the same prompts, each with as many false alarms in all:

| requests | plain | draft alone | by words | in surroundings | draft alone | by words |
|---|---|---|---|---|---|---|
{chr(10).join(rows)}

In all, {harmful["both"]} of {harmful["total"]} harmful ones and {harmless["both"]} of \
{harmless["total"]} harmless ones; by the draft
alone {harmful["draft"]} and {harmless["draft"]}, by words {harmful["words"]} and \
{harmless["words"]}.
"""


def _format_left_out(left_out: Sequence[LeftOut]) -> str:
    """The figures of each source that was left out in turn; nothing if none could be."""
    if not left_out:
        return ""
    cells = {
        (one.source, one.harmful): f"{one.probe} of {one.total} | {one.ngrams}" for one in left_out
    }
    rows = [
        f"| {_name_source(source)} | "
        + " | ".join(cells.get((source, harmful), "none | ") for harmful in (True, False))
        for source in dict.fromkeys(one.source for one in left_out)
    ]
    return f"""
Trained without one source of requests, and asked about all of that source:

| left out | harmful | by words | harmless | by words |
|---|---|---|---|---|
{chr(10).join(f"{row} |" for row in rows)}
"""


def _name_source(source: str) -> str:
    return "the main list, in English" if source == SHIPPED else _ORIGINS.get(source, source)
