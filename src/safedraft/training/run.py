"""A whole training run; the adapter's folder appears only after the checks and the model card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from safedraft.core.files import write_beside
from safedraft.models.fingerprint import (
    digest,
    fingerprint,
    tokenizer_digest,
)
from safedraft.models.progress import ReportProgress, silent
from safedraft.text.template import template_of
from safedraft.training.card import TrainingRun, write_card
from safedraft.training.checks import Checks, check_draft
from safedraft.training.config import TrainingConfig
from safedraft.training.prepare import TrainingInputs, TrainingPlan, check_plan, prepare
from safedraft.training.train import (
    CHECKPOINT,
    LOSSES,
    add_lora,
    catch_stop_signals,
    read_losses,
    train,
)

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

ReportTraining = Callable[[int, int, Mapping[str, float]], None]
"""Called after each step with its number, the number of steps, and the measurements."""


class TrainedDraft(NamedTuple):
    """The results of a training run."""

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
    check_plan(plan, fetching)
    inputs, teacher, config = prepare(plan, fetching, drawing)
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
            architecture=inputs.architecture,
            tokenizer=tokenizer_digest(inputs.draft.tokenizer),
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


def _identify(config: TrainingConfig, inputs: TrainingInputs) -> dict[str, str]:
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
    inputs: TrainingInputs,
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
