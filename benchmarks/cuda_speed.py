"""Figures of an accelerator: passes, parts of a block, tokens a second, training and memory."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from cuda_models import (
    GIB,
    SIZES,
    Bench,
    LargePair,
    Outcome,
    clock,
    decode_together,
    flags_of,
    interleave,
    make_model,
    make_request,
    synchronize,
    tokens_of,
)
from torch import Tensor

from safedraft.core.decode import Batch
from safedraft.core.session import Pass
from safedraft.engines.transformers.engine import TransformersEngine
from safedraft.training.config import TrainingConfig
from safedraft.training.examples import Example, LabelKind
from safedraft.training.train import add_lora, train


def measure_passes(bench: Bench, outcome: Outcome) -> None:
    """Milliseconds of a pass of each model, and of the host until it was enqueued."""
    engine = bench.large.engine()
    for which in ("target", "draft"):
        for context in bench.workload.contexts:
            (prompt,) = bench.large.prompts(1, context + 8)
            session = engine.session(which)
            fill = partial(run_pass, session, prompt[:context], 1, context)
            fill()
            prefill = median(clock(fill, bench.device)[1] for _ in range(3))
            session.forward(prompt[:context], 1)
            figures: dict[str, Any] = {"prefill_ms": milliseconds(prefill)}
            for rows in (1, 4, 8):
                action = partial(run_pass, session, prompt[:rows], rows, rows)
                action()
                times = [clock(action, bench.device) for _ in range(bench.workload.passes)]
                figures[f"{rows} rows"] = {
                    "ms": milliseconds(median(done for _, done in times)),
                    "enqueued_ms": milliseconds(median(returned for returned, _ in times)),
                }
            outcome.figures[f"{which}, context {context}"] = figures


def run_pass(session: Any, tokens: Sequence[int], keep: int, rewound: int) -> None:
    """Run one pass and take it back."""
    session.forward(tokens, keep)
    session.rewind(rewound)


def milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 3)


class TimedEngine(TransformersEngine):
    """Notes when each pass begins and ends on the device."""

    def __init__(self, pair: LargePair) -> None:
        super().__init__(pair.target, pair.draft, pair.vocabulary)
        self.forget()

    def forget(self) -> None:
        """Leave out the passes so far."""
        self.marks: dict[str, list[tuple[Any, Any]]] = {"target": [], "draft": []}

    def forward(self, passes: Sequence[Pass]) -> list[Tensor]:
        """Run the passes one by one."""
        logits = []
        for item in passes:
            began = self._mark()
            logits += super().forward([item])
            self.marks[item.session.name].append((began, self._mark()))
        return logits

    def _mark(self) -> Any:
        if self._models["target"].device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self, which: str) -> float:
        """Seconds of all passes of a model; the device has done them."""
        pairs = self.marks[which]
        if not pairs or isinstance(pairs[0][0], float):
            return float(sum(end - began for began, end in pairs))
        return float(sum(began.elapsed_time(end) for began, end in pairs)) / 1000


def measure_parts(bench: Bench, outcome: Outcome) -> None:
    """Shares of a block's time: passes of the target, of the draft, and all else of the host."""
    for share in bench.large.shares or (None,):
        if share is not None:
            bench.large.agree(share)
        for rule, drafted in (("target_only", 3), ("speculative", 3), ("ssd", 3), ("ssd", 7)):
            figures = _time_parts(bench, rule, drafted)
            outcome.figures[f"{name_share(share)}, {_name_method(rule, drafted)}"] = figures


def _time_parts(bench: Bench, rule: str, drafted: int) -> dict[str, float]:
    (prompt,) = bench.large.prompts(1, bench.workload.prompt)
    constants, tokens = {"draft_tokens": drafted}, bench.workload.replies[1]
    engine = TimedEngine(bench.large)
    batch = Batch(engine)
    decoding = batch.add(make_request(rule, prompt, constants, max_new_tokens=tokens))
    batch.step()  # reads the prompt
    before = len(decoding.steps)
    engine.forget()
    wall = clock(partial(_finish, batch, decoding), bench.device)[1]
    steps = list(decoding.steps)
    blocks = max(steps[-1].block - steps[before - 1].block, 1)
    target, draft = engine.seconds("target"), engine.seconds("draft")
    return {
        "tokens_per_second": round((len(steps) - before) / wall, 2),
        "tokens_per_block": round((len(steps) - before) / blocks, 2),
        "accepted": round(sum(step.matched for step in steps) / len(steps), 3),
        "ms_per_block": milliseconds(wall / blocks),
        "target_share": round(target / wall, 3),
        "draft_share": round(draft / wall, 3),
        "host_share": round(1 - (target + draft) / wall, 3),
    }


def _finish(batch: Batch, decoding: Any) -> None:
    while not decoding.ended:
        batch.step()


def name_share(share: float | None) -> str:
    return "trained pair" if share is None else f"agreement {share:g}"


def _name_method(rule: str, drafted: int) -> str:
    return rule if rule == "target_only" else f"{rule}, {drafted} drafted"


def measure_speed(bench: Bench, outcome: Outcome) -> None:
    """Tokens a second, prompts included, of the rules and of Transformers' own ``generate``."""
    shares = bench.large.shares[:2] or (None,)
    for share in shares:
        if share is not None:
            bench.large.agree(share)
        outcome.figures[name_share(share)] = figures = {}
        for count, tokens in bench.workload.replies.items():
            if count == 1 or share == shares[0]:
                figures[f"{count} together"] = _race(bench, count, tokens, share, outcome)


def _race(
    bench: Bench, count: int, tokens: int, share: float | None, outcome: Outcome
) -> dict[str, Any]:
    """Time each method in turn, once their replies were compared."""
    pair = bench.large
    prompts = pair.prompts(count, bench.workload.prompt)
    actions = _methods(pair, prompts, tokens)
    replies = {method: action() for method, action in actions.items()}
    if share is not None:
        expected = [pair.expected(prompt, tokens) for prompt in prompts]
        _compare(replies, expected, share, f"{name_share(share)}, {count} together", outcome)
    times = interleave(actions, bench.device, bench.workload.seconds)
    alone = median(times["generate"])
    return {
        method: {
            "tokens_per_second": round(count * tokens / median(seconds), 2),
            "ratio_to_generate": round(alone / median(seconds), 3),
            "rounds": len(seconds),
        }
        for method, seconds in times.items()
    }


def _methods(
    pair: LargePair, prompts: Sequence[Sequence[int]], tokens: int
) -> dict[str, Callable[[], list[list[int]]]]:
    methods: dict[str, Callable[[], list[list[int]]]] = {
        "generate": partial(_generate, pair, prompts, tokens)
    }
    if len(prompts) == 1:
        methods["generate, assisted by 3"] = partial(_generate, pair, prompts, tokens, assisted=3)
    for rule, drafted in (("target_only", 3), ("speculative", 3), ("ssd", 3), ("ssd", 7)):
        if drafted == 7 and len(prompts) > 1:
            continue
        methods[_name_method(rule, drafted)] = partial(
            _decode, pair, prompts, tokens, rule, drafted
        )
    return methods


def _decode(
    pair: LargePair, prompts: Sequence[Sequence[int]], tokens: int, rule: str, drafted: int
) -> list[list[int]]:
    constants = {"draft_tokens": drafted}
    requests = [make_request(rule, one, constants, max_new_tokens=tokens) for one in prompts]
    return [tokens_of(steps) for steps in decode_together(pair.engine(), requests)]


@torch.inference_mode()
def _generate(
    pair: LargePair, prompts: Sequence[Sequence[int]], tokens: int, assisted: int = 0
) -> list[list[int]]:
    ids = torch.tensor([list(prompt) for prompt in prompts], device=pair.target.device)
    extra: dict[str, Any] = {}
    if assisted:
        settings = pair.draft.generation_config
        settings.num_assistant_tokens = assisted
        settings.num_assistant_tokens_schedule = "constant"
        settings.assistant_confidence_threshold = 0.0
        extra["assistant_model"] = pair.draft
    output = pair.target.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=tokens,
        pad_token_id=0,
        **extra,
    )
    replies: list[list[int]] = output[:, ids.shape[1] :].tolist()
    return replies


def _compare(
    replies: dict[str, list[list[int]]],
    expected: list[list[int]],
    share: float,
    name: str,
    outcome: Outcome,
) -> None:
    """Compare replies with the target's by construction, and SSD's blocks of 3 and of 7."""
    for method, said in replies.items():
        if share < 1 and method.startswith("ssd"):  # decided from the draft as well
            continue
        right = sum(one == other for one, other in zip(said, expected, strict=True))
        failure = f"{name}: {method} says {right} of {len(said)} replies right"
        outcome.require(right == len(said), failure)
    short, long = (replies.get(_name_method("ssd", drafted)) for drafted in (3, 7))
    outcome.require(long in (None, short), f"{name}: SSD's blocks of 3 and of 7 differ")


def measure_training(bench: Bench, outcome: Outcome) -> None:
    """Seconds of a training step of LoRA in one pass, and the loss over ten steps."""
    size = bench.sizes[1]
    tokens = bench.workload.trained
    model = make_model(SIZES[size], bench.device, bench.dtype)
    config = TrainingConfig(
        steps=10,
        tokens_per_step=tokens,
        tokens_per_pass=tokens,
        learning_rate=1e-3,
        rank=16,
        checkpoint_steps=1000,
    )
    examples = _make_examples(SIZES[size].vocabulary, tokens)
    times, losses = [time.perf_counter()], []

    def report(step: int, figures: Any) -> None:
        synchronize(bench.device)
        times.append(time.perf_counter())
        losses.append(figures["loss"])

    with tempfile.TemporaryDirectory() as folder:
        adapted = add_lora(model, config)
        train(adapted, lambda _: examples, config, Path(folder), identity={}, report=report)
    seconds = median(after - before for before, after in pairwise(times[1:]))
    outcome.figures |= {
        "model": size,
        "tokens_per_step": sum(len(example.ids) for example in examples),
        "labels_per_step": sum(len(example.labels) for example in examples),
        "first_step_seconds": round(times[1] - times[0], 3),
        "step_seconds": round(seconds, 4),
        "tokens_per_second": round(tokens / seconds, 1),
        "losses": losses,
    }
    outcome.require(losses[-1] < losses[0], f"the loss went from {losses[0]} to {losses[-1]}")


def _make_examples(vocabulary: int, tokens: int) -> list[Example]:
    """Sequences of one step, a third of whose positions have labels from a few tokens."""
    generator = torch.Generator().manual_seed(4)
    length = min(240, tokens // 2)
    labels = length // 3
    examples = []
    for _ in range(tokens // length):
        ids = torch.randint(vocabulary, (length,), generator=generator).tolist()
        words = torch.randint(16, (labels,), generator=generator).tolist()
        examples.append(Example(ids, words, [LabelKind.REFUSAL] * labels))
    return examples


def measure_memory(bench: Bench, outcome: Outcome) -> None:
    """GiB of weights, and the peak of SSD above them for the most requests together."""
    pair = bench.large
    count = max(bench.workload.replies)
    tokens = bench.workload.replies[count]
    weights = sum(
        weight.numel() * weight.element_size()
        for model in (pair.target, pair.draft)
        for weight in model.parameters()
    )
    outcome.figures |= {"weights_gib": round(weights / GIB, 3), "requests": count}
    on_cuda = bench.device.type == "cuda"
    for temperature in (0.0, 0.8):
        before = torch.cuda.memory_allocated(bench.device) if on_cuda else 0
        requests = [
            make_request("ssd", prompt, max_new_tokens=tokens, temperature=temperature, seed=at)
            for at, prompt in enumerate(pair.prompts(count, bench.workload.prompt))
        ]
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(bench.device)
        replies = decode_together(pair.engine(), requests)
        outcome.require(all(map(flags_of, replies)), "a reply is empty")
        if on_cuda:
            above = torch.cuda.max_memory_allocated(bench.device) - before
            outcome.figures[f"temperature {temperature:g}"] = {
                "above_weights_gib": round(above / GIB, 3)
            }
