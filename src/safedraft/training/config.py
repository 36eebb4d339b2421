"""Settings of a training run, with the paper's symbols."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from safedraft.core.config import Positive

Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


SECONDS_PER_TOKEN = (10 / 1200 / 0.494, 31 / 1200 / 0.494)
"""Seconds for which two processor cores train on a token, for each billion weights of the draft:
with instructions for bfloat16 and without, measured with 0.494 billion weights: a step of 1,200
tokens, and three passes of 400 tokens (docs/log.md)."""


class TrainingConfig(BaseModel):
    """Settings of a training run; runs with equal settings and data give the same adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    steps: Positive = 400
    """Steps of the first stage, with cross-entropy on refusals and ordinary answers."""
    distil_steps: Count = 0
    """Steps of the second stage, with distillation on ordinary answers."""
    tokens_per_step: Annotated[int, Field(ge=64)] = 1200
    """Maximum number of tokens in a batch, prompts included."""
    tokens_per_pass: Annotated[int, Field(ge=64)] = 400
    """Maximum number of tokens in a forward pass; the cost of attention grows with its square."""
    learning_rate: Rate = 2e-4
    """Peak learning rate of the first stage."""
    distil_learning_rate: Rate = 1e-4
    """Peak learning rate of the second stage."""
    warmup: Share = 0.05
    """Share of a stage's steps with linear warmup; cosine decay follows."""
    clip: Rate = 1.0
    """Maximum norm of the gradient; larger gradients are clipped."""
    rank: Positive = 16
    """Rank r of the LoRA matrices in all linear layers; alpha is 2 r."""
    beginning_tokens: Positive = 100
    """C: maximum number of tokens of a harmful beginning before a refusal."""
    direct_share: Share = 0.5
    """Share of replies that have not begun, to harmful requests (k = 0) and to harmless ones."""
    dense_weight: Weight = 1.0
    """Weight of the dense labels, which ask for a refusal inside a harmful beginning; 0: none."""
    relapse_share: Share = 0.2
    """Share of refusals that a relapse follows, in which dense labels ask for another refusal."""
    harmful_share: Annotated[float, Field(gt=0, lt=1)] = 1 / 3
    """Share of harmful requests among the examples."""
    dressed: Count = 1
    """Number of conversations for each request besides the plain one, harmful or harmless: in a
    random frame, under a system prompt, after other turns, or after a harmless task."""
    generic_share: Share = 0.2
    """Share of openings that are longer ones, which fit any request."""
    beginnings: Count = 1000
    """Maximum number of harmful beginnings that the target continues; others are openings."""
    answers: Positive = 2000
    """Maximum number of answers of the target to ordinary prompts and look-alikes."""
    answer_tokens: Positive = 64
    """Maximum number of tokens in an answer, without its opening."""
    brief_tokens: Positive = 24
    """Maximum number of tokens in an answer that no opening begins, to a look-alike or in
    surroundings."""
    teacher_tokens: Positive = 64
    """K: number of the target's most likely tokens kept per position for distillation."""
    checked: Positive = 100
    """Maximum number of harmful beginnings in the final checks; of answers, twice as many."""
    checkpoint_steps: Positive = 50
    """Number of steps between two checkpoints."""
    seed: Count = 0
    """Seed of the LoRA matrices, the order of the examples and all random choices."""


class ProbeTrainingConfig(BaseModel):
    """Settings of the training of a probe; equal settings and states give the same probe."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    dressed: Count = 1
    """Number of conversations for each request besides the plain one: in a random frame, under a
    system prompt, after other turns, or after a harmless task."""
    requests: Count = 0
    """Maximum number of requests of each split; 0 takes all."""
    false_alarms: Share = 0.05
    """Share of held-out harmless conversations whose risk may be above one half."""
    seed: Count = 0
    """Seed of all random choices."""


class RiskTrainingConfig(ProbeTrainingConfig):
    """Settings of the training of a risk probe."""

    dressed: Count = 3
    """Number of conversations for each request besides the plain one, each in other random
    surroundings: a frame, a system prompt, other turns, or a harmless task before it."""
    forms_every: Count = 2
    """One in this number of requests is also asked in other forms: for a reply that a program
    reads, such as JSON, as an encoded text, and in a long template; 0: none."""
    reads_text: bool = True
    """Whether each model's state at the end of the request's text is read too, and not only the one
    where the assistant's turn begins."""
    networks: Positive = 4
    """Number of networks whose logits are averaged."""
    units: Positive = 32
    """Number of hidden units of each network."""
    epochs: Positive = 20
    """Number of passes over the states."""
    batch_size: Positive = 256
    """Number of states in a step."""
    learning_rate: Rate = 1e-3
    """Learning rate of AdamW."""
    weight_decay: Weight = 1.0
    """Weight decay of AdamW."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of a network's inputs and units that is left out at random in each step."""


class AdaProbeConfig(ProbeTrainingConfig):
    """Settings of the training of a probe that reads a target while it answers."""

    ridge: Weight = 1000.0
    """Weight of the squared norm of the probe's weights, for standardized states."""
    requests: Count = 400
    """Maximum number of requests of each split; 0 takes all."""
    false_alarms: Share = 0.02
    """Share of held-out harmless readings whose risk may be above one half."""
    direct_share: Share = 0.5
    """Share of replies that SafeDraft does not begin with an opening."""
    reply_tokens: Positive = 100
    """Maximum number of tokens that the target says, and largest depth of a reading."""
    check_interval: Positive = 25
    """Number of tokens of a reply from one reading to the next."""
