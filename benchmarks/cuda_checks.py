"""Checks that an accelerator changes nothing: torch itself, tokens, neighbors, broken models."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import torch
from cuda_models import (
    CONFORMANCE,
    Bench,
    Outcome,
    decode_together,
    flags_of,
    make_request,
)

from safedraft.core.decode import Batch
from safedraft.core.errors import BrokenModelError
from safedraft.core.request import Request
from safedraft.core.risk import Reading, RiskContext, RiskProbe
from safedraft.core.rule import NO_CONTEXT, Context
from safedraft.engines.transformers.engine import TransformersEngine

RECORDINGS = ("near", "mid", "far")

WATCHED = """
import importlib, importlib.util, json, torch, transformers
import transformers.generation
places = {
    "torch": torch, "torch.cuda": torch.cuda, "torch.accelerator": torch.accelerator,
    "torch.Tensor": torch.Tensor, "torch.nn.functional": torch.nn.functional,
}
state = lambda: (
    torch.get_default_dtype(), torch.get_num_threads(), torch.get_float32_matmul_precision(),
    torch.are_deterministic_algorithms_enabled(), torch.initial_seed(),
)
before, settings = {name: dict(vars(place)) for name, place in places.items()}, state()
names = [
    "safedraft", "safedraft.pair", "safedraft.engines.transformers.engine",
    "safedraft.engines.transformers.generate", "safedraft.engines.transformers.load",
]
if importlib.util.find_spec("vllm"):
    names.append("safedraft.engines.vllm.worker_cuda")
for name in names:
    importlib.import_module(name)
changed = [
    f"{name}.{key}" for name, place in places.items()
    for key, value in before[name].items() if vars(place).get(key) is not value
]
if state() != settings:
    changed.append("torch's settings")
if torch.cuda.is_initialized():
    changed.append("the state of CUDA, which was initialized")
print(json.dumps({"imported": names, "changed": changed}))
"""
"""Imports SafeDraft in a process of its own and prints what changed in torch."""


def check_import(bench: Bench, outcome: Outcome) -> None:
    """Importing SafeDraft changes nothing in torch and does not touch the device."""
    result = subprocess.run(
        [sys.executable, "-c", WATCHED], capture_output=True, text=True, check=False
    )
    if result.returncode:
        outcome.failures.append(result.stderr.strip().splitlines()[-1])
        return
    outcome.figures |= json.loads(result.stdout.splitlines()[-1])
    changed = outcome.figures["changed"]
    outcome.require(not changed, f"the import changed {', '.join(changed)}")


def check_recorded(bench: Bench, outcome: Outcome) -> None:
    """Tiny models in float32 say the recorded tokens, in the recorded schemes and strengths."""
    identical = total = 0
    for name in RECORDINGS:
        recording = json.loads((CONFORMANCE / f"{name}.json").read_text("utf-8"))
        cases = recording["cases"][: bench.workload.mixed // 5 + 1]
        engine = bench.tiny(recording["draft"])
        end = frozenset([recording["eos_token_id"]])
        replies = decode_together(engine, [_request_of(case, end) for case in cases])
        for at, (case, steps) in enumerate(zip(cases, replies, strict=True), start=1):
            said = [(str(step.scheme), round(step.alpha, 9), step.token) for step in steps]
            recorded = [(scheme, round(alpha, 9), token) for scheme, alpha, token in case["steps"]]
            identical += said == recorded
            difference = _first_difference(recorded, said)
            outcome.require(said == recorded, f"{name}, case {at}: {difference}")
        total += len(cases)
    outcome.figures |= {"identical": identical, "cases": total}


def _request_of(case: dict[str, Any], end: frozenset[int]) -> Request:
    constants = {name: case[name] for name in ("alpha_intersection", "alpha_union")}
    length = case["max_new_tokens"]
    request = make_request("ssd", case["target_prompt"], constants, end, max_new_tokens=length)
    prompts = tuple(case["target_prompt"]), tuple(case["draft_prompt"])
    return Request(*prompts, request.rule, request.config, request.sampling, end)


def _first_difference(expected: Sequence[Any], actual: Sequence[Any]) -> str:
    for at, (one, other) in enumerate(zip(expected, actual, strict=False)):
        if one != other:
            return f"at {at} {other} instead of {one}"
    return f"{len(actual)} tokens instead of {len(expected)}"


def check_blocks(bench: Bench, outcome: Outcome) -> None:
    """Neither the length of a block nor a repetition changes a token, whatever the rule.

    Plain speculative decoding draws the token after an accepted block in another way, so its
    sampled replies depend on the length of blocks by their nature; they are only repeated.
    """
    engine = bench.tiny("tiny-mid")
    tokens = bench.workload.tokens
    prompts = [[5, 17, 300 + at] * (at + 1) for at in range(3)]
    risk = _make_risk(engine)
    greedy: dict[str, Any] = {}
    for rule in ("ssd", "risk", "target_only", "speculative"):
        for temperature in (0.0, 0.8):
            context = Context(None, frozenset(), risk) if rule == "risk" else NO_CONTEXT
            replies = {}
            for drafted in (1, 8, 8.0):
                requests = [
                    make_request(
                        rule,
                        prompt,
                        {"draft_tokens": int(drafted)},
                        context=context,
                        max_new_tokens=tokens,
                        temperature=temperature,
                        seed=7 + at,
                    )
                    for at, prompt in enumerate(prompts)
                ]
                steps = decode_together(engine, requests)
                replies[str(drafted)] = [flags_of(one) for one in steps]
            name = f"{rule} at temperature {temperature:g}"
            outcome.require(replies["8"] == replies["8.0"], f"{name}: a repetition differs")
            if rule in ("ssd", "risk") or not temperature:
                same = _tokens(replies["1"]) == _tokens(replies["8"])
                outcome.require(same, f"{name}: blocks of 1 and of 8 differ")
            if rule in ("ssd", "risk"):
                outcome.require(replies["1"] == replies["8"], f"{name}: flags differ by block")
            if not temperature:
                greedy[rule] = _tokens(replies["8"])
            outcome.figures[name] = sum(map(len, replies["8"]))
    same = greedy["speculative"] == greedy["target_only"]
    outcome.require(same, "plain speculative decoding is not the target's own text")


def _tokens(replies: Sequence[Sequence[tuple[Any, ...]]]) -> list[list[int]]:
    return [[flags[0] for flags in reply] for reply in replies]


def _make_risk(engine: TransformersEngine) -> RiskContext:
    """A probe with random weights for the tiny draft."""
    width = engine._models["draft"].config.hidden_size
    weight = torch.randn(width, generator=torch.Generator().manual_seed(3))
    return RiskContext(RiskProbe(weight, 0.0), {"draft": Reading((2, 1))})


def check_mixed(bench: Bench, outcome: Outcome) -> None:
    """Requests with different sampling, constants and lengths say together what each says alone."""
    for dtype in (torch.float32, torch.bfloat16):
        engine = bench.tiny("tiny-mid", dtype)
        requests = _mix(bench.workload.mixed)
        together = decode_together(engine, requests)
        alone = [decode_together(engine, [request])[0] for request in requests]
        pairs = list(zip(together, alone, strict=True))
        equal = sum(flags_of(one) == flags_of(other) for one, other in pairs)
        name = str(dtype).removeprefix("torch.")
        outcome.figures[name] = {"equal": equal, "requests": len(requests)}
        if dtype is torch.float32:
            failure = f"{len(requests) - equal} of {len(requests)} requests depend on the others"
            outcome.require(equal == len(requests), failure)


def _mix(count: int) -> list[Request]:
    generator = random.Random(5)
    return [
        make_request(
            generator.choice(("ssd", "ssd", "ssd", "speculative", "target_only")),
            [generator.randrange(2, 512) for _ in range(generator.randint(1, 40))],
            {
                "draft_tokens": generator.choice((1, 3, 7)),
                "alpha_union": generator.choice((0.5, 0.8, 1.0)),
                "bin_size": generator.choice((3, 7)),
            },
            max_new_tokens=generator.randint(1, 20),
            temperature=generator.choice((0.0, 0.0, 0.5, 0.9, 1.3)),
            top_k=generator.choice((0, 0, 5, 60)),
            top_p=generator.choice((1.0, 1.0, 0.9)),
            seed=at,
        )
        for at in range(count)
    ]


def check_broken(bench: Bench, outcome: Outcome) -> None:
    """A request whose logits become NaN ends with an error that names the model, and only it."""
    engine = bench.tiny("tiny-near")
    length = min(bench.workload.tokens, 16)
    requests = [make_request("ssd", [9, 4, at + 2], max_new_tokens=length) for at in range(4)]
    whole = decode_together(engine, requests)
    for which, at, passes in (("target", 1, 2), ("draft", 2, 6)):
        batch = Batch(engine)
        decodings = [batch.add(request) for request in requests]
        broken = decodings[at]
        session = broken.model(which).session
        _break_after(session, passes)
        while not all(decoding.ended for decoding in decodings):
            batch.step()
        error = broken.error
        text = str(error) if isinstance(error, BrokenModelError) else ""
        named = which in text and "NaN" in text
        outcome.require(named, f"NaN of the {which}: {error!r} instead of a BrokenModelError")
        early = 0 < len(broken.steps) < length
        outcome.require(early, f"NaN of the {which}: {len(broken.steps)} tokens were decided")
        for index, (decoding, steps) in enumerate(zip(decodings, whole, strict=True)):
            same = decoding.error is None and list(decoding.steps) == steps
            outcome.require(index == at or same, f"NaN of the {which} changed request {index}")
        outcome.figures[which] = text
    following = decode_together(engine, requests[:1])[0]
    outcome.require(following == whole[0], "the next request differs from what it was before")


def _break_after(session: Any, passes: int) -> None:
    """Let the logits of one session become NaN after some passes."""
    run, done = session._run, iter(range(passes))

    def broken(ids: Sequence[int], keep: int) -> torch.Tensor:
        logits: torch.Tensor = run(ids, keep)
        return logits if next(done, None) is not None else logits * torch.nan

    session._run = broken
