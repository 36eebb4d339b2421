"""A whole training run; the adapter's folder appears only after the checks and the model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safedraft.core.errors import SafeDraftError
from safedraft.core.files import write_beside
from safedraft.models.fingerprint import digest, fingerprint, read_facts, require_base
from safedraft.models.progress import ReportProgress, silent
from safedraft.models.template import settle_template
from safedraft.prompts.drawn import draw_target_replies
from safedraft.text.reasoning import Thinking
from safedraft.text.template import template_of
from safedraft.training.card import TrainingRun, write_card
from safedraft.training.checks import Checks, check_draft
from safedraft.training.config import TrainingConfig
from safedraft.training.examples import Examples, pack
from safedraft.training.requests import TrainingRequests, read_requests
from safedraft.training.train import (
    CHECKPOINT,
    LOSSES,
    add_lora,
    catch_stop_signals,
    read_losses,
    train,
)
from safedraft.training.training_data import TrainingData, draw_check_data, draw_training_data

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from safedraft.engines.base import LoadedModel
    from safedraft.models.registry import PairSpec, TemplateSource
    from safedraft.pair import Pair
    from safedraft.training.distil import Teacher

ReportTraining = Callable[[int, int, Mapping[str, float]], None]
"""Called after each step with its number, the number of steps, and the measurements."""


@dataclass(frozen=True)
class TrainingPlan:
    """Inputs, settings and output of a training run."""

    spec: PairSpec
    output: Path
    config: TrainingConfig = field(default_factory=TrainingConfig)
    epochs: int | None = None
    """Number of passes over the harmful requests; replaces the configuration's steps."""
    harmful: Sequence[str] = ()
    """Sources of harmful requests in place of SafeDraft's own."""
    ordinary: Sequence[str] = ()
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
class _TrainingInputs:
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
    start: Path | None
    """Folder of the adapter to start from; None for new matrices."""

    def examples(self, data: TrainingData, config: TrainingConfig) -> Examples:
        assert self.draft.tokenizer is not None
        return Examples(data, self.draft.tokenizer, self.end_tokens, config, self.draft.system)


class TrainedDraft(NamedTuple):
    """What a training run made."""

    folder: Path
    """The adapter's folder."""
    checks: Checks
    """Whether it is fit for use, and the figures that say so."""


def train_draft(
    plan: TrainingPlan,
    *,
    fetching: ReportProgress = silent,
    drawing: ReportProgress = silent,
    training: ReportTraining = lambda step, steps, figures: None,
) -> TrainedDraft:
    """Train a draft; the adapter's folder appears when it is complete.

    Args:
        plan: inputs, settings and output.
        fetching: called with stage, done and total bytes while a model is fetched.
        drawing: called with the stage, the number of replies done, and their total number.
        training: called after each step.

    Raises:
        TrainingStoppedError: a signal stopped the run; the same plan with ``resume`` continues it.
        SafeDraftError: the run cannot be done; checked before time is spent where possible.
    """
    _require_free(plan)
    inputs, teacher, config = _prepare(plan, fetching, drawing)
    steps = config.steps + config.distil_steps
    identity = _identify(config, inputs)
    model = add_lora(inputs.draft.model, config, inputs.start)
    with catch_stop_signals() as stop:
        train(
            model,
            inputs.examples(inputs.training_data, config).epoch,
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
    checks = _check(model.unload(), adapter, inputs, config, drawing)
    write_card(
        adapter,
        TrainingRun(
            target=plan.spec.target,
            draft=plan.spec.draft,
            target_fingerprint=inputs.fingerprints[0],
            draft_fingerprint=inputs.fingerprints[1],
            template=inputs.template,
            template_digest=digest(template_of(inputs.draft.tokenizer), digits=32),
            start=(plan.start, identity["starting adapter"]) if plan.start else None,
            command=plan.command,
            config=config,
            data=inputs.training_data,
            losses=read_losses(plan.folder / LOSSES),
            checks=checks,
        ),
    )
    (plan.folder / LOSSES).replace(adapter / LOSSES)
    adapter.replace(plan.output)
    shutil.rmtree(plan.folder)
    return TrainedDraft(plan.output, checks)


def _require_free(plan: TrainingPlan) -> None:
    """Reject a run that would fail after hours or overwrite another run."""
    if plan.output.exists():
        raise SafeDraftError(f"{plan.output} exists: choose another --output")
    if plan.resume and not plan.folder.is_dir():
        raise SafeDraftError(f"there is no unfinished run in {plan.folder} to resume")
    if not plan.resume and (plan.folder / CHECKPOINT).exists():
        raise SafeDraftError(
            f"{plan.folder} holds an unfinished run: resume it with --resume, or delete it"
        )
    if find_spec("matplotlib") is None:
        raise SafeDraftError("the losses are drawn by matplotlib: pip install 'safedraft[train]'")


def _prepare(
    plan: TrainingPlan, fetching: ReportProgress, drawing: ReportProgress
) -> tuple[_TrainingInputs, Teacher | None, TrainingConfig]:
    """Do all work that needs the target, so that it can be freed before training."""
    from safedraft.models.fetch import fetch, fetch_adapter
    from safedraft.pair.load import load_spec

    requests = read_requests("train", plan.harmful, plan.ordinary)
    check_requests = read_requests("calibration", plan.harmful, plan.ordinary)
    # An adapter is trained on the bare draft, in a dtype that has gradients.
    changes = {"adapter": None, "bare_draft": True, "draft_dtype": None}
    spec = plan.spec.model_copy(update=changes)
    if plan.start:
        start_folder = fetch_adapter(plan.start, fetching)
        spec = settle_template(spec, read_facts(start_folder), start_folder)
    folders = [fetch(name, fetching) for name in (spec.target, spec.draft)]
    start = _fetch_start(plan.start, folders[1], plan.config.rank, fetching) if plan.start else None
    data, check_data = _draw(plan, spec, requests, check_requests, fetching, drawing)
    pair = load_spec(
        spec, engine="transformers", dtype=plan.dtype, device=plan.device, report=fetching
    )
    inputs = _TrainingInputs(
        draft=pair.draft,
        template=(spec.template or {}, spec.template_from or "own"),
        training_data=data,
        check_data=check_data,
        fingerprints=(fingerprint(folders[0]), fingerprint(folders[1])),
        end_tokens=pair.end_tokens,
        start=start,
    )
    config = _set_steps(plan, inputs)
    teacher = _compute_teacher(pair, inputs, config, drawing) if config.distil_steps else None
    return inputs, teacher, config


def _draw(
    plan: TrainingPlan,
    spec: PairSpec,
    requests: TrainingRequests,
    check_requests: TrainingRequests,
    fetching: ReportProgress,
    drawing: ReportProgress,
) -> tuple[TrainingData, TrainingData]:
    """Draw the target's words for training and checks, on the engine that decodes fastest."""
    from safedraft.pair.load import load_spec

    pair = load_spec(spec, engine="auto", device=plan.device, report=fetching)
    _require_direct_answers(pair)
    _make_folder(plan.folder)
    draw = partial(draw_target_replies, pair)
    return (
        draw_training_data(requests, draw, plan.config, drawing),
        draw_check_data(check_requests, draw, plan.config, drawing),
    )


def _require_direct_answers(pair: Pair) -> None:
    """Reject a pair that thinks: a refusal would have to be learned inside the reasoning."""
    if pair.thinking() is not Thinking.OFF:
        raise SafeDraftError(
            f"{pair.target.name} thinks before it answers, and drafts are trained to refuse at the "
            "beginning of a reply: switch it off (--template enable_thinking=false)"
        )


def _fetch_start(adapter: str, draft: Path, rank: int, report: ReportProgress) -> Path:
    """Fetch an adapter to start from, which must be of this draft and of the set rank."""
    from peft import PeftConfig

    from safedraft.models.fetch import fetch_adapter

    folder = fetch_adapter(adapter, report)
    require_base(folder, draft)
    own_rank = getattr(PeftConfig.from_pretrained(str(folder)), "r", None)
    if own_rank != rank:
        raise SafeDraftError(f"the adapter in {folder} has rank {own_rank}: give --rank {own_rank}")
    return folder


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SafeDraftError(f"{folder} cannot be created: {error.strerror}") from error


def _set_steps(plan: TrainingPlan, inputs: _TrainingInputs) -> TrainingConfig:
    """Return the settings, with the number of steps of the plan's epochs if it has some."""
    if plan.epochs is None:
        return plan.config
    examples = inputs.examples(inputs.training_data, plan.config)
    tokens = plan.config.tokens_per_step
    steps = sum(len(pack(examples.epoch(number), tokens)) for number in range(plan.epochs))
    return plan.config.model_copy(update={"steps": steps})


def _compute_teacher(
    pair: Pair, inputs: _TrainingInputs, config: TrainingConfig, drawing: ReportProgress
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


def _identify(config: TrainingConfig, inputs: _TrainingInputs) -> dict[str, str]:
    """Return the facts that a resumed run must have in common with the interrupted one."""
    data = json.dumps(asdict(inputs.training_data), sort_keys=True) + (inputs.draft.system or "")
    return {
        "settings": config.model_dump_json(),
        "prompts or answers": digest(data),
        "target": inputs.fingerprints[0],
        "draft": inputs.fingerprints[1],
        "chat template": digest(template_of(inputs.draft.tokenizer)),
        "starting adapter": fingerprint(inputs.start) if inputs.start else "",
    }


def _save_adapter(model: PeftModel, folder: Path, base: str) -> None:
    """Write the LoRA matrices as bfloat16, the precision of the weights that they change."""
    import torch

    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(torch.bfloat16)
    # The base is named by its public name, not by a folder of this machine.
    model.peft_config["default"].base_model_name_or_path = base
    with write_beside(folder) as unfinished:
        model.save_pretrained(unfinished, save_embedding_layers=False)


def _check(
    base: torch.nn.Module,
    adapter: Path,
    inputs: _TrainingInputs,
    config: TrainingConfig,
    report: ReportProgress,
) -> Checks:
    """Check the draft as it will be loaded: with the saved adapter merged."""

    from safedraft.models.weights import merge_adapter

    return check_draft(
        replace(inputs.draft, weights=merge_adapter(base, adapter)),
        inputs.check_data,
        inputs.examples(inputs.check_data, config).answers,
        config.tokens_per_pass,
        report,
    )
