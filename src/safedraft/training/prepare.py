"""Preparation of a training run: models, data, and the distributions of the target."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safedraft.core.errors import SafeDraftError, UnguardedWarning
from safedraft.core.extras import require_extra
from safedraft.core.files import require_folder
from safedraft.models.fingerprint import fingerprint, read_facts, require_base
from safedraft.models.progress import ReportProgress, silent
from safedraft.models.template import settle_template
from safedraft.prompts.drawn import draw_target_replies
from safedraft.training.config import TrainingConfig
from safedraft.training.examples import Examples, pack
from safedraft.training.requests import OWN_SOURCES, Sources, TrainingSplit, read_requests
from safedraft.training.train import CHECKPOINT
from safedraft.training.training_data import TrainingData, draw_check_data, draw_training_data

if TYPE_CHECKING:
    from safedraft.engines.base import LoadedModel
    from safedraft.models.registry import PairSpec, TemplateSource
    from safedraft.pair import Pair
    from safedraft.training.distil import Teacher


_SPLITS: tuple[TrainingSplit, TrainingSplit] = ("train", "calibration")


@dataclass(frozen=True)
class TrainingPlan:
    """Inputs, settings and output of a training run."""

    spec: PairSpec
    output: Path
    config: TrainingConfig = field(default_factory=TrainingConfig)
    epochs: int | None = None
    """Number of passes over the harmful requests; replaces the configuration's steps."""
    sources: Sources = OWN_SOURCES
    """Sources of the requests."""
    start: str | None = None
    """An adapter of the draft to start from: a folder, a hub id, or a shipped adapter."""
    resume: bool = False
    command: str = ""
    """The command line that the model card shows."""
    dtype: str = "auto"
    device: str = "auto"

    @property
    def folder(self) -> Path:
        """Folder in which an unfinished run keeps its checkpoint."""
        return self.output.with_name(f"{self.output.name}.unfinished")


@dataclass(frozen=True)
class TrainingInputs:
    """Inputs of the training loop, for which the target is no longer needed."""

    draft: LoadedModel
    template: tuple[dict[str, Any], TemplateSource]
    """Variables of the chat template, and whose it is."""
    training_data: TrainingData
    check_data: TrainingData
    """Data of the prompts that the final checks use."""
    fingerprints: tuple[str, str]
    """Fingerprints of target and draft."""
    end_tokens: frozenset[int]
    architecture: str
    """``model_type`` of the draft."""
    start: Path | None
    """Folder of the adapter to start from; None for new matrices."""

    def examples(self, data: TrainingData, config: TrainingConfig) -> Examples:
        """Make examples of data for the draft."""
        assert self.draft.tokenizer is not None
        return Examples(data, self.draft.tokenizer, self.end_tokens, config, self.draft.system)


def check_plan(plan: TrainingPlan, fetching: ReportProgress = silent) -> None:
    """Check a plan as far as that takes no model, before time is spent.

    Raises:
        SafeDraftError: the run would overwrite another one, or fail later.
    """
    if plan.output.exists():
        raise SafeDraftError(f"{plan.output} exists: choose another --output")
    if plan.resume and not plan.folder.is_dir():
        raise SafeDraftError(f"there is no unfinished run in {plan.folder} to resume")
    if not plan.resume and (plan.folder / CHECKPOINT).exists():
        raise SafeDraftError(
            f"{plan.folder} holds an unfinished run: resume it with --resume, or delete it"
        )
    require_folder(plan.folder)
    require_extra("the picture of the losses", "train", "matplotlib")
    for split in _SPLITS:
        read_requests(split, plan.sources)
    if plan.start:
        _require_rank(plan.start, plan.config.rank, fetching)


def _require_rank(adapter: str, rank: int, fetching: ReportProgress) -> None:
    from peft import PeftConfig

    from safedraft.models.fetch import fetch_adapter

    folder = fetch_adapter(adapter, fetching)
    own_rank = getattr(PeftConfig.from_pretrained(str(folder)), "r", None)
    if own_rank != rank:
        raise SafeDraftError(f"the adapter in {folder} has rank {own_rank}: give --rank {own_rank}")


def prepare(
    plan: TrainingPlan, fetching: ReportProgress, drawing: ReportProgress
) -> tuple[TrainingInputs, Teacher | None, TrainingConfig]:
    """Do all work that needs the target, so that it can be freed before training."""
    from safedraft.models.fetch import fetch, fetch_adapter
    from safedraft.pair.load import load_spec

    # An adapter is trained on the bare draft, in a dtype that has gradients.
    changes = {"adapter": None, "bare_draft": True, "draft_dtype": None}
    spec = plan.spec.model_copy(update=changes)
    if plan.start:
        start_folder = fetch_adapter(plan.start, fetching)
        spec = settle_template(spec, read_facts(start_folder), start_folder)
    folders = [fetch(name, fetching) for name in (spec.target, spec.draft)]
    start = _require_base(plan, start_folder, folders[1]) if plan.start else None
    data, check_data = _draw(plan, spec, fetching, drawing)
    pair = load_spec(
        spec, engine="transformers", dtype=plan.dtype, device=plan.device, report=fetching
    )
    inputs = TrainingInputs(
        draft=pair.draft,
        template=(spec.template or {}, spec.template_from or "own"),
        training_data=data,
        check_data=check_data,
        fingerprints=(fingerprint(folders[0]), fingerprint(folders[1])),
        end_tokens=pair.end_tokens,
        architecture=pair.draft.model.config.model_type,
        start=start,
    )
    config = _set_steps(plan, inputs)
    teacher = _compute_teacher(pair, inputs, config, drawing) if config.distil_steps else None
    return inputs, teacher, config


def _draw(
    plan: TrainingPlan, spec: PairSpec, fetching: ReportProgress, drawing: ReportProgress
) -> tuple[TrainingData, TrainingData]:
    """Draw the target's words for training and checks, on the engine that decodes fastest."""
    from safedraft.pair.load import load_spec

    requests, check_requests = (read_requests(split, plan.sources) for split in _SPLITS)
    pair = load_spec(spec, engine="auto", device=plan.device, report=fetching)
    _require_direct_answers(pair)
    plan.folder.mkdir(parents=True, exist_ok=True)
    draw = partial(draw_target_replies, pair)
    return (
        draw_training_data(requests, draw, plan.config, drawing),
        draw_check_data(check_requests, draw, plan.config, drawing),
    )


def _require_direct_answers(pair: Pair) -> None:
    """Reject a pair that thinks: a refusal would have to be learned inside the reasoning."""
    if pair.thinks:
        raise SafeDraftError(
            f"{pair.target.name} thinks before it answers, and drafts are trained to refuse at the "
            "beginning of a reply: switch it off (--template enable_thinking=false)"
        )


def _require_base(plan: TrainingPlan, adapter: Path, draft: Path) -> Path:
    """Check that the adapter to start from was trained on this draft, and return its folder."""
    note = require_base(adapter, draft, other_base=plan.spec.other_base)
    if note:
        warnings.warn(note, UnguardedWarning, stacklevel=4)
    return adapter


def _set_steps(plan: TrainingPlan, inputs: TrainingInputs) -> TrainingConfig:
    """Return the settings, with the number of steps of the plan's epochs if it has some."""
    if plan.epochs is None:
        return plan.config
    examples = inputs.examples(inputs.training_data, plan.config)
    tokens = plan.config.tokens_per_step
    steps = sum(len(pack(examples.epoch(number), tokens)) for number in range(plan.epochs))
    return plan.config.model_copy(update={"steps": steps})


def _compute_teacher(
    pair: Pair, inputs: TrainingInputs, config: TrainingConfig, drawing: ReportProgress
) -> Teacher:
    from safedraft.training.distil import compute_teacher

    target = pair.target
    assert target.tokenizer is not None
    answers = Examples(
        inputs.training_data, target.tokenizer, inputs.end_tokens, config, target.system
    ).answers
    draft_answers = inputs.examples(inputs.training_data, config).answers
    if [example.labels for example in answers] != [example.labels for example in draft_answers]:
        raise SafeDraftError(
            f"{pair.draft.name} tokenizes the target's answers differently: train without "
            "--distil-steps"
        )
    return compute_teacher(
        target.model,
        answers,
        vocabulary=pair.vocabulary,
        count=config.teacher_tokens,
        tokens_per_pass=config.tokens_per_pass,
        report=lambda done, total: drawing("the target's distributions", done, total),
    )
