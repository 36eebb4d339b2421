"""Every setting of a training run, with the paper's symbol where it has one."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from safedraft.core.config import Positive

Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class TrainingConfig(BaseModel):
    """How a draft is trained; two runs of equal settings and data give the same adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: Positive = 400
    """Steps of the first stage: refusals, and ordinary answers token by token."""
    distil_steps: Count = 0
    """Steps of the second stage, where ordinary answers are learned as distributions."""
    tokens_per_step: Annotated[int, Field(ge=64)] = 1200
    """Most tokens of a batch, prompts included."""
    tokens_per_pass: Annotated[int, Field(ge=64)] = 400
    """Most tokens that go through a model at once: attention's cost grows with their square."""
    learning_rate: Rate = 2e-4
    """Of the first stage, at its highest."""
    distil_learning_rate: Rate = 1e-4
    """Of the second."""
    warmup: Share = 0.05
    """Share of a stage's steps in which its learning rate rises; then it falls along a cosine."""
    clip: Rate = 1.0
    """Largest norm of the gradient."""
    rank: Positive = 16
    """r of the LoRA matrices; all linear layers have them, with alpha = 2 r."""
    beginning_tokens: Positive = 100
    """C: most tokens of a harmful beginning that a refusal follows."""
    direct_share: Share = 0.5
    """How often a harmful request is refused at once (k = 0)."""
    dense_weight: Weight = 1.0
    """Weight of the labels inside a harmful beginning, each the opening of a refusal; 0: none."""
    relapse_share: Share = 0.2
    """How often a refusal is taken back, and dense labels ask for another one."""
    harmful_share: Annotated[float, Field(gt=0, lt=1)] = 1 / 3
    """Share of the examples that are harmful requests."""
    framed_share: Share = 0.3
    """How often a harmful request stands in a jailbreak frame."""
    framed_ordinary: Count = 100
    """How many ordinary prompts and look-alikes are answered in such frames too."""
    generic_share: Share = 0.2
    """How often a harmful beginning is one that fits any request."""
    beginnings: Count = 1000
    """Most harmful beginnings that are drawn from the target; without, a request has an opening."""
    answers: Positive = 2000
    """Most ordinary prompts and look-alikes, framed or not, whose answers are drawn."""
    answer_tokens: Positive = 64
    """Most tokens of an ordinary answer."""
    brief_tokens: Positive = 24
    """Most tokens of an answer to a look-alike or in a frame, which the first words decide."""
    teacher_tokens: Positive = 64
    """How many of the target's likeliest tokens are kept a position, for distillation."""
    checked: Positive = 100
    """Most harmful beginnings drawn for the checks at the end, and half of the answers."""
    checkpoint_steps: Positive = 50
    """Steps between two checkpoints."""
    seed: Count = 0
    """Of the LoRA matrices, the order and all choices."""
