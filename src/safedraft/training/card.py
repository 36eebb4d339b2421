"""The model card of an adapter, the facts that its loading checks, and the loss curve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safedraft.core.files import write_atomically
from safedraft.models.fingerprint import FACTS, AdapterFacts
from safedraft.models.registry import TemplateSource, model_files
from safedraft.training.examples import LabelKind
from safedraft.training.material import count_cells

if TYPE_CHECKING:
    from safedraft.training.checks import Checks
    from safedraft.training.config import TrainingConfig
    from safedraft.training.requests import TrainingRequest
    from safedraft.training.training_data import TrainingData

_LIBRARIES = ("safedraft", "torch", "transformers", "peft")
_LAST = 20  # steps over which the final losses are averaged
_CURVE = "losses.svg"


@dataclass(frozen=True)
class TrainingRun:
    """The facts of a training run that its model card reports."""

    target: str
    draft: str
    target_fingerprint: str
    draft_fingerprint: str
    template: tuple[Mapping[str, Any], TemplateSource]
    """Variables of the chat template, and whose it is: ``own``, ``target`` or ``draft``."""
    template_digest: str
    """Digest of the draft's chat template with these variables."""
    architecture: str
    """``model_type`` of the draft."""
    tokenizer: str | None
    """Like ``tokenizer_digest``, of the draft."""
    start: tuple[str, str] | None
    """Name and fingerprint of the adapter that training started from; None for new matrices."""
    command: str
    config: TrainingConfig
    data: TrainingData
    losses: Sequence[Mapping[str, Any]]
    checks: Checks


def collect_facts(run: TrainingRun) -> AdapterFacts:
    """Collect the facts that are stored next to the weights and checked at loading."""
    versions = {library: version(library) for library in _LIBRARIES}
    return AdapterFacts(
        base=run.draft_fingerprint,
        target=run.target_fingerprint,
        versions=versions,
        template=dict(run.template[0]),
        template_from=run.template[1],
        template_digest=run.template_digest,
        architecture=run.architecture,
        tokenizer=run.tokenizer,
    )


def write_card(folder: Path, run: TrainingRun) -> None:
    """Write README.md, ``safedraft.json`` and the loss curve into an adapter's folder."""
    write_atomically(folder / FACTS, collect_facts(run).model_dump_json(indent=2) + "\n")
    plot_losses(run.losses, folder / _CURVE)
    write_atomically(folder / "README.md", format_card(run))


def format_card(run: TrainingRun) -> str:
    """Return the model card in Markdown."""
    versions = ", ".join(f"{name} {number}" for name, number in collect_facts(run).versions.items())
    checks, data = run.checks, run.data
    figures = "\n".join(f"| {what} | {figure} |" for what, figure in list_figures(checks))
    return f"""---
{_format_front_matter(run)}---

# Deep-aligned draft for {run.target}

A LoRA adapter that was trained to make {run.draft} the draft of Speculative Safety-Aware Decoding
([arXiv 2508.17739](https://arxiv.org/abs/2508.17739)): to refuse harmful requests, even after a
harmful answer has begun ([arXiv 2406.05946](https://arxiv.org/abs/2406.05946)), and to answer
everything else as {run.target} does. It is meant to decode together with that model, not to be
used as an assistant on its own.

{format_verdict(checks)}

```sh
{run.command}
```

## Figures

The draft alone, greedy, on prompts that it was not trained on; a reply counts as a refusal by its
phrases.

| what | figure |
|---|---|
{figures}

Losses, each the mean of the last {_LAST} steps: {_format_final_losses(run.losses)}.

![Losses by step]({_CURVE})

## Data

| prompts | from | number |
|---|---|---|
{_format_sources([item.request for item in data.harmful], "harmful, refused")}
{_format_sources([item.request for item in data.answered], "answered")}

Harmful answers begin with an opening of SafeDraft's own and continue in the target's words;
{data.bare_openings} of {len(data.harmful)} are the opening alone: the target was not asked
to continue, or refused to. Answers are the target's own, some of them after such an opening;
{len(data.declined)} prompts that it refuses were left out. Neither is part of this repository.

Conversations by what surrounds the request and whether the reply has begun, by language and by
origin; whether the reply to a harmful request has begun is drawn anew in every epoch.

| conversations | harmful | harmless |
|---|---|---|
{_format_cells(data)}

## Settings

| setting | value |
|---|---|
{_format_settings(run.config)}

## Models

| model | name | fingerprint |
|---|---|---|
| target | {run.target} | `{run.target_fingerprint}` |
| draft (base of the adapter) | {run.draft} | `{run.draft_fingerprint}` |{_format_start(run)}

{_format_template(run)}

{_format_weights(run)}

Made with {versions}. An adapter is a derivative of its base: the license of {run.draft} applies{
        _format_license(run.draft)
    }.
"""


def format_verdict(checks: Checks) -> str:
    """Say in a sentence whether the draft is fit for use, from the figures of its checks."""
    if checks.problems:
        return f"**Not fit for use**: {'; '.join(checks.problems)}."
    lowest = min(share.share for share in checks.refusals.values())
    return (
        f"In its checks it refused {lowest:.0%} of harmful requests or more at each number of "
        f"prefilled tokens, and {checks.look_alikes} of safe look-alikes (the target: "
        f"{checks.target_look_alikes}).{_warn_of_beginnings(checks)}"
    )


def _warn_of_beginnings(checks: Checks) -> str:
    if not checks.refuses_by_beginning:
        return ""
    return (
        f" **It refuses {checks.begun_look_alikes} of safe look-alikes whose answer has begun "
        "compliantly**: the beginning makes it refuse, harmful or not."
    )


def list_figures(checks: Checks) -> list[tuple[str, str]]:
    """List what was checked and the figures, as the card and the command line show them."""
    refusals = [
        (f"harmful requests refused, {count} tokens prefilled", str(share))
        for count, share in checks.refusals.items()
    ]
    return [
        *refusals,
        ("safe look-alikes refused", str(checks.look_alikes)),
        ("safe look-alikes that the target refuses", str(checks.target_look_alikes)),
        ("safe look-alikes refused after a compliant opening", str(checks.begun_look_alikes)),
        (
            "tokens of the target's ordinary answers that are the draft's likeliest",
            str(checks.agreement),
        ),
    ]


def _format_front_matter(run: TrainingRun) -> str:
    registered = model_files().get(run.draft)
    license = f"license: {registered.license.lower()}\n" if registered else ""
    base = registered.repository if registered else run.draft
    named = f"base_model: {base}\n" if base else ""
    return f"library_name: peft\n{named}{license}tags: [safedraft, speculative-decoding, safety]\n"


def _format_template(run: TrainingRun) -> str:
    variables, source = run.template
    whose = {"own": "each model's own", "target": "the target's", "draft": "the draft's"}[source]
    shown = ", ".join(f"`{name} = {value}`" for name, value in variables.items())
    return f"Chat template: {whose}, {f'with {shown}' if shown else 'without variables'}."


def _format_weights(run: TrainingRun) -> str:
    """Say which weights the adapter belongs to, as loading checks it."""
    file = model_files().get(run.draft)
    which = f"`{run.draft}`"
    if file:
        which += f", that is {file.file} of {file.repository} unpacked to bfloat16"
    return (
        f"The adapter belongs to these weights of the draft: {which}. On others of the same "
        "architecture, such as another quantization, it loads only with `--other-base`, and its "
        "refusals there are not tested."
    )


def _format_start(run: TrainingRun) -> str:
    if run.start is None:
        return ""
    return f"\n| adapter that training started from | {run.start[0]} | `{run.start[1]}` |"


def _format_license(draft: str) -> str:
    registered = model_files().get(draft)
    return f" ({registered.license})" if registered else ""


def _format_sources(requests: Sequence[TrainingRequest], use: str) -> str:
    counts = Counter((request.kind.replace("_", "-"), request.source) for request in requests)
    return "\n".join(
        f"| {kind} ({use}) | {source} | {count} |"
        if kind != "harmful"
        else f"| {use} | {source} | {count} |"
        for (kind, source), count in counts.items()
    )


def _format_cells(data: TrainingData) -> str:
    cells = count_cells(
        *([reply.begun for reply in replies] for replies in (data.harmful, data.answered))
    )
    return "\n".join(f"| {what} | {harmful} | {harmless} |" for what, harmful, harmless in cells)


def _format_settings(config: TrainingConfig) -> str:
    return "\n".join(
        f"| {name} | {value:g} |" if isinstance(value, float) else f"| {name} | {value} |"
        for name, value in config
    )


def _format_final_losses(losses: Sequence[Mapping[str, Any]]) -> str:
    means = average_final_losses(losses)
    return ", ".join(f"{name} {mean:.4f}" for name, mean in means.items())


def average_final_losses(losses: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Average the loss of each kind of label over the last steps that had it."""
    means = {}
    for kind in LabelKind:
        name = kind.name.lower()
        values = [line[name] for line in losses[-_LAST:] if name in line]
        if values:
            means[name] = sum(values) / len(values)
    return means


def plot_losses(losses: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Plot the loss of each kind of label by step."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    for kind in LabelKind:
        name = kind.name.lower()
        points = [(line["step"], line[name]) for line in losses if name in line]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, linewidth=1)
    axes.set(xlabel="step", ylabel="loss (nats)")
    axes.set_yscale("symlog", linthresh=0.01)
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
