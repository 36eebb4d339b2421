"""The training loop: a LoRA adapter, packed examples, checkpoints that resume exactly."""

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
from safedraft.training.examples import Example, Lesson, Place, batches, pack
from safedraft.training.packed import label_logits

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel

    from safedraft.training.config import TrainingConfig
    from safedraft.training.distil import Teacher

CHECKPOINT, LOSSES = "checkpoint.safetensors", "losses.jsonl"

Report = Callable[[int, Mapping[str, float]], None]
"""Called after each step with its number, counted from 1, and what was measured."""


class Stopped(Exception):
    """The run was asked to stop, and its state was saved."""


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C (or SIGTERM) asked for the end: a step is finished first.

    The second signal ends it at once. Outside the main thread, signals are another's business.
    """
    asked: list[int] = []

    def handle(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class Progress:
    """Where a run is."""

    step: int = 0
    place: Place = field(default_factory=Place)


def with_lora(
    model: PreTrainedModel, config: TrainingConfig, start: Path | None = None
) -> PeftModel:
    """The model, frozen, with LoRA matrices in float32 in all of its linear layers.

    Args:
        model: the bare draft.
        config: the settings.
        start: the folder of an adapter to go on from; its own layers are trained.

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
        warnings.simplefilter("ignore")  # of each other's next versions
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
    report: Report = lambda step, figures: None,
) -> None:
    """Train the adapter of ``model``.

    Args:
        model: from ``with_lora``.
        epoch: the examples of an epoch, by its number; always the same for the same number.
        config: the settings.
        folder: where the checkpoint and the losses are kept; it must exist.
        identity: what a checkpoint must agree with to be resumed.
        teacher: the target's distributions, for the second stage.
        resume: go on from the checkpoint in ``folder``; its result is that of one run.
        stop: asked after each step.
        report: told after each step.

    Raises:
        Stopped: ``stop`` said so; the state is saved.
        SafeDraftError: the checkpoint is of another run, or the loss is not a number.
    """
    import torch

    if config.distil_steps and teacher is None:
        raise ValueError("distillation needs a teacher")
    weights = {name: w for name, w in model.named_parameters() if w.requires_grad}
    optimizer = torch.optim.AdamW(weights.values(), weight_decay=0.0)
    progress = Progress()
    if resume:
        progress = _load(folder / CHECKPOINT, weights, optimizer, identity)
    log = _Log(folder / LOSSES, progress.step)
    model.train()
    total = config.steps + config.distil_steps
    following = batches(epoch, config.tokens_per_step, progress.place)
    while progress.step < total:
        started = time.perf_counter()
        batch, place = next(following)
        distilled = teacher if progress.step >= config.steps else None
        rate = learning_rate(progress.step, config)
        figures = _backward(model, batch, config, distilled)
        _descend(optimizer, weights, rate, config.clip)
        progress = Progress(progress.step + 1, place)
        figures |= {
            "learning_rate": rate,
            "tokens": sum(len(example.ids) for example in batch),
            "seconds": round(time.perf_counter() - started, 3),
        }
        log.append({"step": progress.step, **figures})
        report(progress.step, figures)
        stopped = stop() and progress.step < total
        if stopped or progress.step % config.checkpoint_steps == 0 or progress.step == total:
            _save(folder / CHECKPOINT, weights, optimizer, progress, identity)
        if stopped:
            raise Stopped


def learning_rate(step: int, config: TrainingConfig) -> float:
    """At a step counted from 0: a linear rise and a cosine's fall, in each stage for itself."""
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


def _backward(
    model: torch.nn.Module,
    batch: Sequence[Example],
    config: TrainingConfig,
    teacher: Teacher | None,
) -> dict[str, float]:
    """Gradients of the batch's loss, some examples at a time.

    Returns:
        The loss, and the mean of each lesson that the batch has.
    """
    import torch

    weights = [_weight(lesson, config) for example in batch for lesson in example.lessons]
    sums: dict[Lesson, float] = {}
    for some in pack(batch, config.tokens_per_pass):
        taught = _lesson_losses(model, some, teacher)
        weighted = [_weight(lesson, config) * losses.sum() for lesson, losses in taught.items()]
        (torch.stack(weighted).sum() / sum(weights)).backward()  # type: ignore[no-untyped-call]
        for lesson, losses in taught.items():
            sums[lesson] = sums.get(lesson, 0.0) + float(losses.detach().sum())
    counts = Counter(lesson for example in batch for lesson in example.lessons)
    total = sum(_weight(lesson, config) * value for lesson, value in sums.items()) / sum(weights)
    means = {lesson.name.lower(): sums[lesson] / counts[lesson] for lesson in sorted(sums)}
    return {name: round(value, 6) for name, value in ({"loss": total} | means).items()}


def _weight(lesson: Lesson, config: TrainingConfig) -> float:
    return config.dense_weight if lesson == Lesson.DENSE else 1.0


def _lesson_losses(
    model: torch.nn.Module, examples: Sequence[Example], teacher: Teacher | None
) -> dict[Lesson, Tensor]:
    """The loss of every labelled position, by what it teaches."""
    import torch

    logits = label_logits(model, examples)
    labels = torch.tensor([x for e in examples for x in e.labels], device=logits.device)
    lessons = torch.tensor([x for e in examples for x in e.lessons], device=logits.device)
    taught: dict[Lesson, Tensor] = {}
    for lesson in Lesson:
        where = lessons == lesson
        if not where.any():
            continue
        if lesson == Lesson.ANSWER and teacher is not None:
            answers = [e.answered for e in examples if e.answered is not None]
            taught[lesson] = teacher.divergence(logits[where], answers)
        else:
            taught[lesson] = torch.nn.functional.cross_entropy(
                logits[where], labels[where], reduction="none"
            )
    return taught


def _descend(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor], rate: float, clip: float
) -> None:
    """One step along the gradients, which are then forgotten."""
    import torch

    for group in optimizer.param_groups:
        group["lr"] = rate
    norm = torch.nn.utils.clip_grad_norm_(list(weights.values()), clip)
    if not norm.isfinite():
        raise SafeDraftError("the gradient is no number any more: try a lower --learning-rate")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _save(
    file: Path,
    weights: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    identity: Mapping[str, str],
) -> None:
    """Write the whole state to one file, which is either the old one or the new one."""
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


def _load(
    file: Path,
    weights: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, str],
) -> Progress:
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
    return Progress(at["step"], Place(at["epoch"], at["batch"]))


def _require_same(file: Path, found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    differing = sorted(k for k in found.keys() | expected.keys() if found.get(k) != expected.get(k))
    if differing:
        raise SafeDraftError(
            f"{file.parent} holds a run with other {', '.join(differing)}: resume it as it was "
            "started, or begin anew in another folder"
        )


class _Log:
    """A JSON line a step; what follows ``step`` is of a run that was cut short, and dropped."""

    def __init__(self, file: Path, step: int) -> None:
        self._file = file
        kept = [line for line in read_losses(file) if line["step"] <= step]
        write_atomically(file, "".join(json.dumps(line) + "\n" for line in kept))

    def append(self, line: Mapping[str, Any]) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_losses(file: Path) -> list[dict[str, Any]]:
    """The lines of a log of losses; one that was cut short by a kill is left out."""
    return list(_lines(file)) if file.exists() else []


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue
