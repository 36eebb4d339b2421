"""A whole training run: draw, train, check, describe, and only then an adapter's folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from safedraft.core.errors import SafeDraftError
from safedraft.core.files import write_beside
from safedraft.models.fingerprint import digest, fingerprint, require_base
from safedraft.models.progress import Report, silent
from safedraft.training.card import Run, write_card
from safedraft.training.checks import Checks, check
from safedraft.training.config import TrainingConfig
from safedraft.training.examples import Examples, pack
from safedraft.training.material import Material, draw_material
from safedraft.training.requests import read_requests
from safedraft.training.train import (
    CHECKPOINT,
    LOSSES,
    asked_to_stop,
    read_losses,
    train,
    with_lora,
)

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from safedraft.engines.base import LoadedModel
    from safedraft.models.registry import PairSpec
    from safedraft.pair import Pair
    from safedraft.training.distil import Teacher

Trained = Callable[[int, int, Mapping[str, float]], None]
"""Called after each step with its number, the number of steps, and what was measured."""


@dataclass(frozen=True)
class Plan:
    """What is to be trained, from what, and to where."""

    spec: PairSpec
    output: Path
    config: TrainingConfig = field(default_factory=TrainingConfig)
    epochs: int | None = None
    """In place of the configuration's steps: passes over the harmful requests."""
    harmful: Sequence[str] = ()
    """Sources of harmful requests in place of SafeDraft's own."""
    ordinary: Sequence[str] = ()
    start: str | None = None
    """An adapter of the draft's to go on from, named as for loading."""
    resume: bool = False
    command: str = ""
    """What the card says the adapter was made with."""
    dtype: str = "auto"
    device: str = "auto"

    @property
    def folder(self) -> Path:
        """Where an unfinished run keeps its checkpoint."""
        return self.output.with_name(f"{self.output.name}.unfinished")


@dataclass(frozen=True)
class _Lessons:
    """All that is needed once the target has spoken."""

    draft: LoadedModel
    learned: Material
    held: Material
    """Of the prompts that the draft is checked on."""
    fingerprints: tuple[str, str]
    """Of target and draft."""
    end_tokens: frozenset[int]
    start: Path | None
    """The folder of the adapter to go on from."""

    def examples(self, material: Material, config: TrainingConfig) -> Examples:
        assert self.draft.tokenizer is not None
        return Examples(material, self.draft.tokenizer, self.end_tokens, config, self.draft.system)


def train_draft(
    plan: Plan,
    *,
    fetching: Report = silent,
    drawing: Report = silent,
    training: Trained = lambda step, steps, figures: None,
) -> Path:
    """Carry out a plan; the adapter's folder appears when all of it is there.

    Args:
        plan: what to do.
        fetching: called with stage, done and total bytes while a model is fetched.
        drawing: called with what is drawn, how much of it is there, and how much is wanted.
        training: told of each step.

    Returns:
        The adapter's folder.

    Raises:
        Stopped: a signal asked for it, and the same plan with ``resume`` goes on.
        SafeDraftError: whatever stands against it, before time is spent where it can be known.
    """
    _require_free(plan)
    lessons, teacher, config = _prepare(plan, fetching, drawing)
    steps = config.steps + config.distil_steps
    identity = _identity(config, lessons)
    model = with_lora(lessons.draft.model, config, lessons.start)
    with asked_to_stop() as stop:
        train(
            model,
            lessons.examples(lessons.learned, config).epoch,
            config,
            plan.folder,
            identity=identity,
            teacher=teacher,
            resume=(plan.folder / CHECKPOINT).exists(),
            stop=stop,
            report=lambda step, figures: training(step, steps, figures),
        )
    adapter = plan.folder / "adapter"
    _save_adapter(model, adapter, plan.spec.draft)
    checks = _check(model.unload(), adapter, lessons, config, drawing)
    write_card(
        adapter,
        Run(
            target=plan.spec.target,
            draft=plan.spec.draft,
            target_fingerprint=lessons.fingerprints[0],
            draft_fingerprint=lessons.fingerprints[1],
            start=(plan.start, identity["starting adapter"]) if plan.start else None,
            command=plan.command,
            config=config,
            material=lessons.learned,
            losses=read_losses(plan.folder / LOSSES),
            checks=checks,
        ),
    )
    (plan.folder / LOSSES).replace(adapter / LOSSES)
    adapter.replace(plan.output)
    shutil.rmtree(plan.folder)
    return plan.output


def _require_free(plan: Plan) -> None:
    """Refuse what would end in an error after hours, or in another run's folder."""
    if plan.output.exists():
        raise SafeDraftError(f"{plan.output} exists: choose another --output")
    if plan.resume and not plan.folder.is_dir():
        raise SafeDraftError(f"there is no unfinished run in {plan.folder} to resume")
    if not plan.resume and (plan.folder / CHECKPOINT).exists():
        raise SafeDraftError(
            f"{plan.folder} holds an unfinished run: go on with --resume, or delete it"
        )
    if find_spec("matplotlib") is None:
        raise SafeDraftError("the losses are drawn by matplotlib: pip install 'safedraft[train]'")


def _prepare(
    plan: Plan, fetching: Report, drawing: Report
) -> tuple[_Lessons, Teacher | None, TrainingConfig]:
    """All that the target is needed for; it is not kept in memory after that."""
    from safedraft.models.fetch import fetch
    from safedraft.pair.load import load_spec

    requests = read_requests("train", plan.harmful, plan.ordinary)
    held_requests = read_requests("calibration", plan.harmful, plan.ordinary)
    # What an adapter is trained for: the bare draft, in a dtype that can learn.
    spec = plan.spec.model_copy(update={"adapter": None, "draft_dtype": None})
    pair = load_spec(spec, dtype=plan.dtype, device=plan.device, report=fetching)
    folders = [fetch(name, fetching) for name in (spec.target, spec.draft)]
    start = _fetch_start(plan.start, folders[1], plan.config.rank, fetching) if plan.start else None
    _make(plan.folder)
    few = {
        "framed_ordinary": 0,
        "beginnings": plan.config.checked,
        "answers": 2 * plan.config.checked,
    }
    lessons = _Lessons(
        draft=pair.draft,
        learned=draw_material(requests, pair.target, plan.config, drawing),
        held=draw_material(held_requests, pair.target, plan.config.model_copy(update=few), drawing),
        fingerprints=(fingerprint(folders[0]), fingerprint(folders[1])),
        end_tokens=pair.end_tokens,
        start=start,
    )
    config = _with_steps(plan, lessons)
    teacher = _teacher(pair, lessons, config, drawing) if config.distil_steps else None
    return lessons, teacher, config


def _fetch_start(adapter: str, draft: Path, rank: int, report: Report) -> Path:
    """The folder of an adapter that can be gone on from: this draft's, and of the set rank."""
    from peft import PeftConfig

    from safedraft.models.fetch import fetch_adapter

    folder = fetch_adapter(adapter, report)
    require_base(folder, draft)
    found = getattr(PeftConfig.from_pretrained(str(folder)), "r", None)
    if found != rank:
        raise SafeDraftError(f"the adapter in {folder} has rank {found}: give --rank {found}")
    return folder


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SafeDraftError(f"{folder} cannot be made: {error.strerror}") from error


def _with_steps(plan: Plan, lessons: _Lessons) -> TrainingConfig:
    """The settings, with as many steps as the epochs take if those were asked for."""
    if plan.epochs is None:
        return plan.config
    examples = lessons.examples(lessons.learned, plan.config)
    tokens = plan.config.tokens_per_step
    steps = sum(len(pack(examples.epoch(number), tokens)) for number in range(plan.epochs))
    return plan.config.model_copy(update={"steps": steps})


def _teacher(pair: Pair, lessons: _Lessons, config: TrainingConfig, drawing: Report) -> Teacher:
    from safedraft.training.distil import teach

    target = pair.target
    assert target.tokenizer is not None
    answers = Examples(
        lessons.learned, target.tokenizer, lessons.end_tokens, config, target.system
    ).answers
    drafts = lessons.examples(lessons.learned, config).answers
    if [example.labels for example in answers] != [example.labels for example in drafts]:
        raise SafeDraftError(
            f"{pair.draft.name} cuts the target's answers into other tokens: train without "
            "--distil-steps"
        )
    return teach(
        target.model,
        answers,
        vocabulary=pair.vocabulary,
        count=config.teacher_tokens,
        tokens_per_pass=config.tokens_per_pass,
        report=lambda done, total: drawing("the target's distributions", done, total),
    )


def _identity(config: TrainingConfig, lessons: _Lessons) -> dict[str, str]:
    """What a resumed run must have in common with the one that was interrupted."""
    material = json.dumps(asdict(lessons.learned), sort_keys=True) + (lessons.draft.system or "")
    return {
        "settings": config.model_dump_json(),
        "prompts or answers": digest(material),
        "target": lessons.fingerprints[0],
        "draft": lessons.fingerprints[1],
        "starting adapter": fingerprint(lessons.start) if lessons.start else "",
    }


def _save_adapter(model: PeftModel, folder: Path, base: str) -> None:
    """Write the LoRA matrices as bfloat16, half as large and as exact as what they change."""
    import torch

    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(torch.bfloat16)
    # Whoever reads the adapter knows the base by its name, not by a folder of this machine.
    model.peft_config["default"].base_model_name_or_path = base
    with write_beside(folder) as unfinished:
        model.save_pretrained(unfinished, save_embedding_layers=False)


def _check(
    base: torch.nn.Module, adapter: Path, lessons: _Lessons, config: TrainingConfig, report: Report
) -> Checks:
    """Figures of the draft as it will be loaded: the written adapter, merged."""

    from safedraft.models.weights import merge_adapter

    return check(
        replace(lessons.draft, weights=merge_adapter(base, adapter)),
        lessons.held,
        lessons.examples(lessons.held, config).answers,
        config.tokens_per_pass,
        report,
    )
