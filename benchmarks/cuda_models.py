"""Models, requests and clocks that the checks on an accelerator share.

Large models have random weights that are made on the device. Target and draft agree as often as is
asked for: every output projection of attention and every down projection is zero, so that all
kernels run and the residual stays the embedding. A token t has a random code c(t), and the output
layer scores the token after t by its product with c(t). Both models then say the same token after
t, whatever their widths, except after the share of tokens for which the draft's output layer was
permuted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from safedraft.core.config import SamplingParams
from safedraft.core.decode import Batch
from safedraft.core.generation import Step
from safedraft.core.request import Request
from safedraft.core.rule import NO_CONTEXT, Context, Rule
from safedraft.core.session import SessionEngine
from safedraft.engines.transformers.engine import TransformersEngine
from safedraft.rules.risk import Risk
from safedraft.rules.sequoia import Sequoia
from safedraft.rules.speculative import Speculative
from safedraft.rules.ssd import SSD
from safedraft.rules.target_only import TargetOnly

CONFORMANCE = Path(__file__).parents[1] / "tests" / "conformance"

RULES: dict[str, Rule] = {
    rule.name: rule for rule in (SSD(), Risk(), TargetOnly(), Speculative(), Sequoia())
}
"""By name; a machine on which SafeDraft is not installed has no entry points."""

CODE_WIDTH = 128
"""Number of dimensions of the residual that hold a token's code."""

CODE_SCALE = 24.0
"""Logit of the token that a model says; other logits have a mean of 0."""

CYCLE = 9973
"""The target says (t + 9973) modulo V after t, a cycle through the vocabulary."""

GIB = 2**30


class Size(NamedTuple):
    """The shape of a model of Qwen2's architecture."""

    hidden: int
    inner: int
    layers: int
    heads: int
    shared_heads: int
    vocabulary: int = 151_936


SIZES = {
    "tiny": Size(64, 128, 2, 4, 2, 512),
    "0.5B": Size(896, 4864, 24, 14, 2),
    "1.5B": Size(1536, 8960, 28, 12, 2),
    "7B": Size(3584, 18_944, 28, 28, 4),
}
"""Those of Qwen2.5, but for the tiny one; the output layer has weights of its own."""


class Workload(NamedTuple):
    """How much is run."""

    prompt: int
    """Tokens of a prompt."""
    contexts: tuple[int, ...]
    """Tokens before a timed pass."""
    replies: Mapping[int, int]
    """Tokens of each reply, by the number of requests together."""
    seconds: float
    """Time of one group of interleaved rounds."""
    passes: int
    """Number of timed passes of one kind."""
    mixed: int
    """Number of mixed requests that are decoded together and alone."""
    tokens: int
    """Tokens of a reply in the checks of tokens."""
    trained: int
    """Tokens of a training step."""
    rows: int
    """Positions of random logits."""
    draws: int
    """Random draws from one distribution."""


WORKLOADS = {
    "small": Workload(12, (16,), {1: 12, 2: 4}, 0.0, 2, 6, 12, 256, 64, 20_000),
    "full": Workload(128, (128, 2048), {1: 64, 8: 12, 32: 6}, 8.0, 12, 64, 32, 4800, 2048, 200_000),
}


@dataclass
class Outcome:
    """What a check found."""

    figures: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def require(self, holds: bool, failure: str) -> None:
        """Note a failure unless something holds."""
        if not holds:
            self.failures.append(failure)


class LargePair(NamedTuple):
    """The pair whose speed is measured."""

    target: Any
    draft: Any
    vocabulary: int
    shares: tuple[float, ...]
    """Shares of tokens after which the models can be made to agree; empty for trained models."""
    codes: Tensor | None = None
    """``[V, code]``, of the models with random weights."""

    def engine(self) -> TransformersEngine:
        """A new engine of the two models."""
        return TransformersEngine(self.target, self.draft, self.vocabulary)

    @torch.no_grad()
    def agree(self, share: float) -> None:
        """Let the draft say the target's token after this share of all tokens."""
        assert self.codes is not None
        count = round((1 - share) * self.vocabulary)
        generator = torch.Generator().manual_seed(1)
        ids = torch.randperm(self.vocabulary, generator=generator)[:count].to(self.codes.device)
        rows = self.codes.roll(CYCLE, 0)
        rows[(ids + CYCLE) % self.vocabulary] = self.codes[ids.roll(1)]
        _write(self.draft.lm_head.weight, CODE_SCALE * rows)

    def prompts(self, count: int, length: int) -> list[list[int]]:
        """Different prompts of random tokens."""
        generator = torch.Generator().manual_seed(2)
        ids = torch.randint(self.vocabulary, (count, length), generator=generator)
        return [row.tolist() for row in ids]

    def expected(self, prompt: Sequence[int], count: int) -> list[int]:
        """What the target with random weights says after a prompt."""
        return [(prompt[-1] + CYCLE * at) % self.vocabulary for at in range(1, count + 1)]


@dataclass
class Bench:
    """The device, what is measured on it, and how much of it."""

    device: torch.device
    sizes: tuple[str, str]
    folders: tuple[str, str] | None
    workload: Workload

    @cached_property
    def large(self) -> LargePair:
        """The pair whose speed is measured, made or loaded when it is first needed."""
        return load(self.folders, self.device) if self.folders else make(self.sizes, self.device)

    @property
    def patience(self) -> int:
        """What multiplies time limits: a processor is slow, and often shared with others."""
        return 1 if self.device.type == "cuda" else 10

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the large models."""
        return torch.bfloat16 if self.device.type != "cpu" else torch.float32

    def tiny(self, draft: str, dtype: torch.dtype = torch.float32) -> TransformersEngine:
        """An engine of the tiny models whose replies are recorded."""
        from transformers import AutoModelForCausalLM

        target, small = (
            AutoModelForCausalLM.from_pretrained(CONFORMANCE / name, dtype=dtype)
            .to(self.device)
            .eval()
            for name in ("tiny-target", draft)
        )
        return TransformersEngine(target, small, target.config.vocab_size)


def load(folders: tuple[str, str], device: torch.device) -> LargePair:
    """Load a pair from two folders, in bfloat16."""
    from transformers import AutoModelForCausalLM

    models = [
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
        for folder in folders
    ]
    for model in models:
        model.generation_config.eos_token_id = None  # every reply has the length that is measured
    vocabulary = min(model.config.vocab_size for model in models)
    return LargePair(models[0], models[1], vocabulary, ())


def make(sizes: tuple[str, str], device: torch.device) -> LargePair:
    """Make a pair with random weights that agrees by construction."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    target, draft = (make_model(SIZES[size], device, dtype) for size in sizes)
    vocabulary = SIZES[sizes[0]].vocabulary
    width = min(CODE_WIDTH, *(SIZES[size].hidden for size in sizes))
    generator = torch.Generator(device).manual_seed(0)
    codes = torch.randn(vocabulary, width, generator=generator, device=device)
    codes /= codes.norm(dim=-1, keepdim=True)
    for model in (target, draft):
        _say_codes(model, codes)
    return LargePair(target, draft, vocabulary, (0.85, 1.0, 0.0), codes)


def make_model(size: Size, device: torch.device, dtype: torch.dtype) -> Any:
    """A model with random weights, made on its device."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.shared_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Qwen2ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval()


@torch.no_grad()
def _say_codes(model: Any, codes: Tensor) -> None:
    """Let a model say the next token of the cycle."""
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    model.model.norm.weight.fill_(model.config.hidden_size**-0.5)  # the normed code has length 1
    _write(model.model.embed_tokens.weight, codes)
    _write(model.lm_head.weight, CODE_SCALE * codes.roll(CYCLE, 0))


def _write(weight: Tensor, rows: Tensor) -> None:
    weight.zero_()
    weight[: len(rows), : rows.shape[1]] = rows.to(weight.dtype)


def make_request(
    rule: str,
    prompt: Sequence[int],
    constants: Mapping[str, Any] | None = None,
    end: frozenset[int] = frozenset(),
    context: Context = NO_CONTEXT,
    **sampling: Any,
) -> Request:
    """A request with one prompt for both models."""
    found = RULES[rule]
    names = found.config.model_fields
    known = {name: value for name, value in (constants or {}).items() if name in names}
    prompt = tuple(prompt)
    return Request(
        prompt, prompt, found, found.config(**known), SamplingParams(**sampling), end, context
    )


def decode_together(engine: SessionEngine, requests: Sequence[Request]) -> list[list[Step]]:
    """The steps of each request, decoded in one batch.

    Raises:
        BrokenModelError: a model gave NaN or infinite logits.
    """
    batch = Batch(engine)
    decodings = [batch.add(request) for request in requests]
    while not all(decoding.ended for decoding in decodings):
        batch.step()
    for decoding in decodings:
        if decoding.error:
            raise decoding.error
    return [list(decoding.steps) for decoding in decodings]


def tokens_of(steps: Sequence[Step]) -> list[int]:
    """The reply."""
    return [step.token for step in steps]


def flags_of(steps: Sequence[Step]) -> list[tuple[Any, ...]]:
    """What must not depend on how a reply was decoded: the tokens, and what the switch did."""
    return [(step.token, step.matched, step.scheme, round(step.alpha, 9)) for step in steps]


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(action: Callable[[], Any], device: torch.device) -> tuple[float, float]:
    """Seconds until an action returned, and until the device had done it."""
    synchronize(device)
    started = time.perf_counter()
    action()
    returned = time.perf_counter()
    synchronize(device)
    return returned - started, time.perf_counter() - started


def interleave(
    actions: Mapping[str, Callable[[], Any]], device: torch.device, seconds: float
) -> dict[str, list[float]]:
    """Seconds of each action in at least two rounds; each was run before.

    The actions take turns, since a machine's speed drifts. Rounds end after ``seconds``.
    """
    times: dict[str, list[float]] = {name: [] for name in actions}
    started = time.perf_counter()
    while time.perf_counter() - started < seconds or len(next(iter(times.values()))) < 2:
        for name, action in actions.items():
            times[name].append(clock(action, device)[1])
    return times


def peak(device: torch.device) -> float:
    """Peak GiB that were allocated on the device, or by the process on a processor."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def forget_peak(device: torch.device) -> None:
    """Begin anew to watch the peak; a processor's cannot be reset."""
    if device.type == "cuda":
        with suppress(RuntimeError):
            torch.cuda.reset_peak_memory_stats(device)
