"""Tiny models that judge replies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

LABELS = ("fine", "toxic", "threat")


def save_classifier(
    folder: Path, bias: list[float], labels: Sequence[str] = LABELS, **settings: Any
) -> None:
    """A classifier that gives every text the same logits, ``bias``; save a tokenizer beside it."""
    names = dict(enumerate(labels))
    config = BertConfig(
        vocab_size=300,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=64,
        id2label=names,
        label2id={name: index for index, name in names.items()},
        **settings,
    )
    model = BertForSequenceClassification(config)
    torch.nn.init.zeros_(model.classifier.weight)
    model.classifier.bias.data = torch.tensor(bias)
    model.save_pretrained(folder)


def save_guard(folder: Path) -> None:
    """A causal model with random weights, which says neither safe nor unsafe."""
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
