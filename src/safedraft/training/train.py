"""The training loop: a LoRA adapter, packed examples, and checkpoints that resume exactly."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safedraft.core.errors import SafeDraftError
from safedraft.core.files import write_atomically, write_beside
from safedraft.training.examples import BatchPosition, Example, LabelKind, iterate_batches, pack
from safedraft.training.packed import compute_label_logits

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

    from safedraft.training.config import TrainingConfig
    from safedraft.training.distil import Teacher

CHECKPOINT, LOSSES = "checkpoint.safetensors", "losses.jsonl"

ReportStep = Callable[[int, Mapping[str, float]], None]
"""Called after each step with its number, counted from 1, and the measurements."""


class TrainingStoppedError(Exception):
    """The run was stopped by a signal, and its state was saved."""


@contextmanager
def catch_stop_signals() -> Iterator[Callable[[], bool]]:
    """Catch Ctrl-C and SIGTERM, so that the running step is finished first.

    The second signal raises KeyboardInterrupt. Outside the main thread no signal is handled.

    Yields:
        A function that returns whether a signal has arrived.
    """
    received: list[int] = []

    def handle(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class TrainingProgress:
    """The number of steps done and the position of the next batch."""

    step: int = 0
    place: BatchPosition = field(default_factory=BatchPosition)


def add_lora(
    model: PreTrainedModel, config: TrainingConfig, start: Path | None = None
) -> PeftModel:
    """Freeze a model and add LoRA matrices in float32 to all of its linear layers.

    Args:
        model: the bare draft.
        config: the settings.
        start: the folder of an adapter to start from; its layers are trained.

    Raises:
        SafeDraftError: that adapter does not fit the model.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from safedraft.models.quiet import quiet_transformers
    from safedraft.models.weights import attach_adapter

    if start:
        return attach_adapter(model, start, trainable=True)
    torch.manual_seed(config.seed)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=2 * config.rank,
        target_modules="all-linear",
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    with quiet_transformers(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations between the libraries
        return get_peft_model(model, lora, autocast_adapter_dtype=True)


def train(
    model: PeftModel,
    epoch: Callable[[int], list[Example]],
    config: TrainingConfig,
    folder: Path,
    *,
    identity: Mapping[str, str],
    teacher: Teacher | None = None,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
    report: ReportStep = lambda step, figures: None,
) -> None:
    """Train the adapter of ``model``.

    Args:
        model: from ``add_lora``.
        epoch: returns the examples of an epoch by its number, always the same for one number.
        config: the settings.
        folder: an existing folder for the checkpoint and the losses.
        identity: facts that must equal those of a checkpoint for it to be resumed.
        teacher: the target's distributions, for the second stage.
        resume: continue from the checkpoint in ``folder``; the result equals that of one run.
        stop: called after each step; returns whether to stop.
        report: called after each step.

    Raises:
        TrainingStoppedError: ``stop`` returned True; the state is saved.
        SafeDraftError: the checkpoint belongs to another run, or the gradient is not finite.
    """
    import torch

    if config.distil_steps and teacher is None:
        raise ValueError("distillation needs a teacher")
    weights = {name: w for name, w in model.named_parameters() if w.requires_grad}
    optimizer = torch.optim.AdamW(weights.values(), weight_decay=0.0)
    progress = TrainingProgress()
    if resume:
        progress = _load_checkpoint(folder / CHECKPOINT, weights, optimizer, identity)
    log = _LossLog(folder / LOSSES, progress.step)
    model.train()
    total = config.steps + config.distil_steps
    next_batches = iterate_batches(epoch, config.tokens_per_step, progress.place)
    while progress.step < total:
        started = time.perf_counter()
        batch, place = next(next_batches)
        stage_teacher = teacher if progress.step >= config.steps else None
        rate = compute_learning_rate(progress.step, config)
        figures = _accumulate_gradients(model, batch, config, stage_teacher)
        _update_weights(optimizer, weights, rate, config.clip)
        progress = TrainingProgress(progress.step + 1, place)
        figures |= {
            "learning_rate": rate,
            "tokens": sum(len(example.ids) for example in batch),
            "seconds": round(time.perf_counter() - started, 3),
        }
        log.append({"step": progress.step, **figures})
        report(progress.step, figures)
        stopped = stop() and progress.step < total
        if stopped or progress.step % config.checkpoint_steps == 0 or progress.step == total:
            _save_checkpoint(folder / CHECKPOINT, weights, optimizer, progress, identity)
        if stopped:
            raise TrainingStoppedError


def compute_learning_rate(step: int, config: TrainingConfig) -> float:
    """Return the learning rate at a step from 0: linear warmup and cosine decay per stage."""
    stages = (
        (config.learning_rate, config.steps),
        (config.distil_learning_rate, config.distil_steps),
    )
    (peak, steps), at = (
        (stages[0], step) if step < config.steps else (stages[1], step - config.steps)
    )
    warmup = math.ceil(config.warmup * steps)
    if at < warmup:
        return peak * (at + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (at - warmup) / max(steps - warmup, 1)))


def _accumulate_gradients(
    model: torch.nn.Module,
    batch: Sequence[Example],
    config: TrainingConfig,
    teacher: Teacher | None,
) -> dict[str, float]:
    """Accumulate the gradients of the batch's loss over several forward passes.

    Returns:
        The loss, and the mean loss of each kind of label in the batch.
    """
    import torch

    weights = [_weight_of(kind, config) for example in batch for kind in example.kinds]
    sums: dict[LabelKind, float] = {}
    for examples in pack(batch, config.tokens_per_pass):
        losses_by_kind = _compute_losses(model, examples, teacher)
        weighted = [
            _weight_of(kind, config) * losses.sum() for kind, losses in losses_by_kind.items()
        ]
        (torch.stack(weighted).sum() / sum(weights)).backward()  # type: ignore[no-untyped-call]
        for kind, losses in losses_by_kind.items():
            sums[kind] = sums.get(kind, 0.0) + float(losses.detach().sum())
    counts = Counter(kind for example in batch for kind in example.kinds)
    total = sum(_weight_of(kind, config) * value for kind, value in sums.items()) / sum(weights)
    means = {kind.name.lower(): sums[kind] / counts[kind] for kind in sorted(sums)}
    return {name: round(value, 6) for name, value in ({"loss": total} | means).items()}


def _weight_of(kind: LabelKind, config: TrainingConfig) -> float:
    return config.dense_weight if kind == LabelKind.DENSE else 1.0


def _compute_losses(
    model: torch.nn.Module, examples: Sequence[Example], teacher: Teacher | None
) -> dict[LabelKind, Tensor]:
    """Compute the loss of every labeled position, by kind of label."""
    import torch

    logits = compute_label_logits(model, examples)
    labels = torch.tensor([x for e in examples for x in e.labels], device=logits.device)
    kinds = torch.tensor([x for e in examples for x in e.kinds], device=logits.device)
    losses_by_kind: dict[LabelKind, Tensor] = {}
    for kind in LabelKind:
        where = kinds == kind
        if not where.any():
            continue
        if kind == LabelKind.ANSWER and teacher is not None:
            answers = [e.answered for e in examples if e.answered is not None]
            losses_by_kind[kind] = teacher.divergence(logits[where], answers)
        else:
            losses_by_kind[kind] = torch.nn.functional.cross_entropy(
                logits[where], labels[where], reduction="none"
            )
    return losses_by_kind


def _update_weights(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor], rate: float, clip: float
) -> None:
    """Clip the gradients, make one optimizer step, and reset them."""
    import torch

    for group in optimizer.param_groups:
        group["lr"] = rate
    norm = torch.nn.utils.clip_grad_norm_(list(weights.values()), clip)
    if not norm.isfinite():
        raise SafeDraftError("the gradient is not finite: try a lower --learning-rate")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _save_checkpoint(
    file: Path,
    weights: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    progress: TrainingProgress,
    identity: Mapping[str, str],
) -> None:
    """Write the whole state to one file, which is replaced atomically."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, weight in weights.items():
        state = optimizer.state[weight]
        tensors |= {
            f"weight/{name}": weight.detach().contiguous(),
            f"average/{name}": state["exp_avg"].contiguous(),
            f"square/{name}": state["exp_avg_sq"].contiguous(),
        }
    place = progress.place
    at = {"step": progress.step, "epoch": place.epoch, "batch": place.batch}
    metadata = {"progress": json.dumps(at), "run": json.dumps(dict(identity))}
    with write_beside(file) as unfinished:
        save_file(tensors, unfinished, metadata)


def _load_checkpoint(
    file: Path,
    weights: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, str],
) -> TrainingProgress:
    import torch
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stored:
        metadata = stored.metadata()
        _require_same(file, json.loads(metadata["run"]), identity)
        at = json.loads(metadata["progress"])
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(stored.get_tensor(f"weight/{name}"))
                optimizer.state[weight] = {
                    "step": torch.tensor(float(at["step"])),
                    "exp_avg": stored.get_tensor(f"average/{name}").to(weight.device),
                    "exp_avg_sq": stored.get_tensor(f"square/{name}").to(weight.device),
                }
    return TrainingProgress(at["step"], BatchPosition(at["epoch"], at["batch"]))


def _require_same(file: Path, stored: Mapping[str, str], expected: Mapping[str, str]) -> None:
    differing = sorted(
        k for k in stored.keys() | expected.keys() if stored.get(k) != expected.get(k)
    )
    if differing:
        raise SafeDraftError(
            f"{file.parent} holds a run with other {', '.join(differing)}: resume it as it was "
            "started, or begin anew in another folder"
        )


class _LossLog:
    """A log with one JSON line per step; lines after ``step`` belong to an interrupted run."""

    def __init__(self, file: Path, step: int) -> None:
        self._file = file
        kept = [line for line in read_losses(file) if line["step"] <= step]
        write_atomically(file, "".join(json.dumps(line) + "\n" for line in kept))

    def append(self, line: Mapping[str, Any]) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_losses(file: Path) -> list[dict[str, Any]]:
    """Read the lines of a loss log; an incomplete line is skipped."""
    return list(_parse_lines(file)) if file.exists() else []


def _parse_lines(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue
