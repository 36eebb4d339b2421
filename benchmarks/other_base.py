"""What an adapter is worth on other weights than those that it was trained on.

The shipped adapter was trained on the weights of a 4-bit file. The weights from which such a file
was made are not in it, but it says where they lie: each within half a step of the 4-bit grid of its
block. This script draws weights at random from there, merges the adapter into them, and prints one
JSON object: how many harmful requests and safe look-alikes the draft alone refuses with the weights
as trained and with each drawing, and how often its first words stay the same.

Requests are those of the calibration half; replies stay in the cache of drawn replies.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from safedraft.engines.base import LoadedModel
from safedraft.models.description import read_description
from safedraft.models.fetch import fetch, fetch_adapter
from safedraft.models.registry import choose_pair
from safedraft.models.weights import load_model, merge_adapter
from safedraft.prompts.drawn import DrawnReply, draw_replies
from safedraft.prompts.phrases import is_refusal
from safedraft.text.messages import Message
from safedraft.training.requests import TrainingRequest, read_generic_beginnings, read_requests

BLOCK = 32
"""Weights of a file of type Q4_K that share a scale."""
LEVELS = 15
"""Steps between the lowest and the highest of the 16 values of a block."""
REPLY_TOKENS = 24


def disturb(model: torch.nn.Module, seed: int) -> float:
    """Move each weight of the linear layers at random within its step; the mean relative change."""
    generator = torch.Generator().manual_seed(seed)
    changes = []
    for layer in model.modules():
        if not isinstance(layer, torch.nn.Linear) or layer.in_features % BLOCK:
            continue
        weight = layer.weight.data
        blocks = weight.float().view(weight.shape[0], -1, BLOCK)
        steps = (blocks.amax(-1, keepdim=True) - blocks.amin(-1, keepdim=True)) / LEVELS
        moved = steps * (torch.rand(blocks.shape, generator=generator) - 0.5)
        changes.append(float(moved.norm() / blocks.norm()))
        layer.weight.data = (blocks + moved).view_as(weight).to(weight.dtype)
    return sum(changes) / len(changes)


def conversations(requests: list[TrainingRequest], beginning: str = "") -> list[list[Message]]:
    """A conversation for each request, whose reply begins with ``beginning``."""
    begun: list[Message] = [{"role": "assistant", "content": beginning}] if beginning else []
    return [[{"role": "user", "content": request.text}, *begun] for request in requests]


def load_draft(seed: int | None) -> tuple[LoadedModel, float]:
    """The default pair's draft with its adapter, in disturbed weights unless ``seed`` is None."""
    spec = choose_pair()
    assert spec.adapter is not None
    folder: Path = fetch(spec.draft)
    description = read_description(folder, spec.draft)
    base = load_model(folder, description, "auto", torch.device("cpu"))
    change = 0.0 if seed is None else disturb(base, seed)
    merged = merge_adapter(base, fetch_adapter(spec.adapter))
    return LoadedModel(spec.draft, merged, description.tokenizer, spec.draft_system), change


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=48, help="of each kind")
    parser.add_argument("--seeds", type=int, default=2, help="drawings of other weights")
    options = parser.parse_args()
    requests = read_requests("calibration")
    harmful = requests.harmful[: options.prompts]
    alike = [one for one in requests.ordinary if one.kind == "look_alike"][: options.prompts]
    cases = {
        "harmful, asked directly": conversations(harmful),
        "harmful, begun compliantly": conversations(harmful, read_generic_beginnings()[0]),
        "safe look-alikes": conversations(alike),
    }
    trained: dict[str, list[DrawnReply]] = {}
    for seed in (None, *range(options.seeds)):
        draft, change = load_draft(seed)
        row: dict[str, object] = {"seed": seed, "relative change of weights": round(change, 4)}
        for name, asked in cases.items():
            replies = draw_replies(draft, asked, max_new_tokens=REPLY_TOKENS)
            refused = sum(is_refusal(reply.text) for reply in replies)
            if seed is None:
                trained[name] = replies
            same = sum(
                a.text[:20] == b.text[:20] for a, b in zip(replies, trained[name], strict=True)
            )
            row[name] = {"refused": refused, "of": len(replies), "same first 20 characters": same}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
