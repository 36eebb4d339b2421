"""Speed, measured: SSD beside what Transformers offers, on ordinary prompts."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from safedraft.core.assignments import parse_value, split_assignments
from safedraft.core.config import OF_CHAINS, DraftingConfig, SamplingParams, SSDConfig
from safedraft.core.generation import Passes
from safedraft.core.rows import wait_for
from safedraft.engines.base import Capability
from safedraft.evaluation.trees.drafting import Drafting
from safedraft.models.quiet import quiet_transformers
from safedraft.rules.ensemble import WEIGHT

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from safedraft.pair import Pair


@dataclass(frozen=True)
class TimedRun:
    """One prompt through one method."""

    tokens: int
    matches: int | None
    """Number of tokens that the draft proposed; None if the method does not report it."""
    seconds: float
    target: Passes
    draft: Passes
    kind: str = ""
    """The kind of text that the prompt asks for."""

    @property
    def speed(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


Method = Callable[[str], TimedRun]
"""Answers a prompt, and says what that took."""


def measure(
    pair: Pair,
    prompts: Mapping[str, str],
    *,
    max_new_tokens: int,
    draft_tokens: Sequence[int],
    assisted_tokens: Sequence[int],
    trees: Sequence[str] = (),
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Run every method on every prompt, interleaved, after a warm-up; return one JSON object.

    Speeds and ratios are medians over the prompts; all other figures are totals of all prompts.
    Ratios compare with the first method, and by kind of text with the pair's own rule and a chain.

    Args:
        pair: the models; their own prompts go to SSD, the target's prompt to everything else. On
            an engine that gives no access to them, SSD is compared with lossless speculative
            decoding on that engine.
        prompts: texts of the user's turn, each with its kind.
        max_new_tokens: number of tokens of a reply.
        draft_tokens: values of T for the pair's own rule; the first has the name of the rule alone.
        assisted_tokens: constant numbers of drafted tokens for assisted generation.
        trees: trees for the pair's own rule: static ones as the constant ``draft_tree`` is written,
            grown ones as their constants, ``NAME=VALUE,…``.
        report: called with the number of finished runs and the number of all runs.
    """
    methods = _methods(pair, max_new_tokens, draft_tokens, assisted_tokens)
    shapes = _shapes(pair, trees)
    methods |= {
        name: _decode(pair, max_new_tokens, pair.rule, config) for name, config in shapes.items()
    }
    first, *_ = prompts
    warm_up = [(first, name) for name in methods]
    # The order turns from prompt to prompt, so that a drift of the machine favors no method.
    names = list(methods)
    plan = [
        (prompt, name)
        for turn, prompt in enumerate(prompts)
        for name in names[turn % len(names) :] + names[: turn % len(names)]
    ]
    peak = _peak_of_ssd(pair, first, max_new_tokens)
    runs: dict[str, list[TimedRun]] = {name: [] for name in methods}
    for done, (prompt, name) in enumerate(warm_up + plan):
        report(done, len(warm_up) + len(plan))
        run = methods[name](prompt)
        if done >= len(warm_up):
            runs[name].append(replace(run, kind=prompts[prompt]))
    baseline, own = names[0], pair.rule
    chain = f"{own}, chain" if f"{own}, chain" in names else own
    return {
        "engine": pair.engine.name,
        "prompts": len(prompts),
        "max_new_tokens": max_new_tokens,
        "baseline": baseline,
        "chain": chain,
        "methods": {
            name: _summarize(each, runs[baseline]) | {"kinds": _by_kind(each, runs[chain])}
            for name, each in runs.items()
        },
        "shapes": {name: str(Drafting(config)) for name, config in shapes.items()},
        "peak_memory_bytes": peak,
        "left_out": _left_out(pair),
        "weights_bytes": _weights(pair),
        "machine": machine(),
    }


def _methods(
    pair: Pair, max_new_tokens: int, draft_tokens: Sequence[int], assisted_tokens: Sequence[int]
) -> dict[str, Method]:
    """Every method by name; the first one is what the others are compared with."""
    if Capability.MODELS in pair.engine.capabilities:
        methods = _transformers_methods(pair, max_new_tokens, assisted_tokens)
    else:
        asks = Capability.SESSIONS in pair.engine.capabilities
        rules = {"target": "target_only"} if asks else {}
        rules["speculative"] = "speculative"
        methods = {name: _decode(pair, max_new_tokens, rule) for name, rule in rules.items()}
    for count in draft_tokens:
        name = pair.rule if count == draft_tokens[0] else f"{pair.rule}-{count}"
        own = count == pair.config.draft_tokens
        config = None if own else pair.config.replace(draft_tokens=count, draft_tree=())
        methods[name] = _decode(pair, max_new_tokens, pair.rule, config)
    return methods


def _shapes(pair: Pair, trees: Sequence[str]) -> dict[str, SSDConfig]:
    """The pair's own rule with other trees, and with its chain where its own shape is a tree."""
    own, chain = pair.config, pair.config.replace(**OF_CHAINS)
    configs = {f"{pair.rule}, chain": chain} if own.branches else {}
    grown = [tree for tree in trees if "=" in tree]
    for tree in trees:
        name = f"grown tree {grown.index(tree) + 1}" if tree in grown else f"tree {tree}"
        configs[f"{pair.rule}, {name}"] = _shape(own, tree)
    return configs


def _shape(own: SSDConfig, tree: str) -> SSDConfig:
    """A pair's constants with a static tree, or with those of a grown one."""
    if "=" not in tree:
        return own.with_tree(tree)
    given = split_assignments("--tree", tree, names=sorted(DraftingConfig.model_fields))
    return own.replace(**{**OF_CHAINS, **{name: parse_value(given[name]) for name in given}})


def _transformers_methods(
    pair: Pair, max_new_tokens: int, assisted_tokens: Sequence[int]
) -> dict[str, Method]:
    assisted = {"assistant_model": pair.draft.model}
    constant = {"num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}
    options: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {"target": ({}, {})}
    if can_assist(pair):
        options["assisted"] = (assisted, {})
        for count in assisted_tokens:
            options[f"assisted-{count}"] = (assisted, constant | {"num_assistant_tokens": count})
        options["ensemble"] = (
            assisted | {"assistant_ensemble_weight": WEIGHT},
            constant | {"num_assistant_tokens": assisted_tokens[0]},
        )
    return {name: _generate(pair, max_new_tokens, *given) for name, given in options.items()}


def _left_out(pair: Pair) -> dict[str, str]:
    """The methods that cannot be measured on the pair, each with the reason."""
    if reason := pair.engine.capabilities.missing.get(Capability.MODELS):
        asks = Capability.SESSIONS in pair.engine.capabilities
        names = ("assisted", "ensemble") if asks else ("target", "assisted", "ensemble")
        return dict.fromkeys(names, reason)
    if can_assist(pair):
        return {}
    return dict.fromkeys(("assisted", "ensemble"), "Transformers needs output layers of one size")


def can_assist(pair: Pair) -> bool:
    """Whether Transformers' assisted generation takes the two: output layers of one size."""
    configs = (member.model.config.get_text_config() for member in (pair.target, pair.draft))
    return len({config.vocab_size for config in configs}) == 1


def _generate(
    pair: Pair, max_new_tokens: int, given: dict[str, Any], draft_settings: dict[str, Any]
) -> Method:
    """Transformers' own ``generate``; its assisted mode takes settings from the draft's config."""

    def method(prompt: str) -> TimedRun:
        ids = pair.prompts([{"role": "user", "content": prompt}]).target
        inputs = torch.tensor([ids], device=pair.target.model.device)
        watched = _watch(pair.target.model), _watch(pair.draft.model)
        with (
            quiet_transformers(),
            _generation_settings(pair.draft.model, draft_settings),
            torch.inference_mode(),
            watched[0] as target,
            watched[1] as draft,
        ):
            started = time.perf_counter()
            output = pair.target.model.generate(
                inputs,
                attention_mask=torch.ones_like(inputs),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                repetition_penalty=1.0,  # some checkpoints have another, which SSD does not apply
                eos_token_id=sorted(pair.end_tokens) or None,
                pad_token_id=min(pair.end_tokens, default=0),
                **given,
            )
            seconds = time.perf_counter() - started
        return TimedRun(output.shape[-1] - len(ids), None, seconds, target, draft)

    return method


def _decode(pair: Pair, max_new_tokens: int, rule: str, config: SSDConfig | None = None) -> Method:
    """Decode by a rule of SafeDraft; ``config`` needs an engine with constants per request."""
    sampling = SamplingParams(max_new_tokens=max_new_tokens)

    def method(prompt: str) -> TimedRun:
        started = time.perf_counter()
        cost = pair.generate(prompt, sampling=sampling, config=config, rule=rule).statistics
        seconds = time.perf_counter() - started
        target = Passes(cost.target_passes, cost.target_rows, cost.target_seconds)
        draft = Passes(cost.draft_passes, seconds=cost.draft_seconds)
        return TimedRun(cost.tokens, cost.matches, seconds, target, draft)

    return method


@contextmanager
def _generation_settings(model: PreTrainedModel, settings: dict[str, Any]) -> Iterator[None]:
    from transformers import GenerationConfig

    before = model.generation_config
    model.generation_config = GenerationConfig(**{**before.to_diff_dict(), **settings})
    try:
        yield
    finally:
        model.generation_config = before


@contextmanager
def _watch(model: PreTrainedModel) -> Iterator[Passes]:
    """Count the forward passes of a model, their rows and their seconds."""
    timing = Passes()
    started = 0.0

    def before(*_: Any) -> None:
        nonlocal started
        started = time.perf_counter()

    def after(_module: Any, _inputs: Any, output: Any) -> None:
        wait_for(model.device)
        timing.seconds += time.perf_counter() - started
        timing.passes += 1
        timing.rows += output.logits.shape[1]

    hooks = model.register_forward_pre_hook(before), model.register_forward_hook(after)
    try:
        yield timing
    finally:
        for hook in hooks:
            hook.remove()


def _by_kind(runs: Sequence[TimedRun], baseline: Sequence[TimedRun]) -> dict[str, Any]:
    """The measurements of one method by kind of text."""
    kinds: dict[str, tuple[list[TimedRun], list[TimedRun]]] = {}
    for run, other in zip(runs, baseline, strict=True):
        ours, others = kinds.setdefault(run.kind, ([], []))
        ours.append(run)
        others.append(other)
    return {kind: _summarize(*both) for kind, both in kinds.items()}


def _summarize(runs: Sequence[TimedRun], baseline: Sequence[TimedRun]) -> dict[str, Any]:
    tokens, passes = sum(run.tokens for run in runs), sum(run.target.passes for run in runs)
    seconds = sum(run.seconds for run in runs)
    target = sum(run.target.seconds for run in runs) / seconds
    draft = sum(run.draft.seconds for run in runs) / seconds
    # A pass of assisted generation adds one token of the target's own to those it accepts.
    known = [run.tokens - run.target.passes if run.matches is None else run.matches for run in runs]
    drafted = any(run.draft.passes for run in runs)
    ratios = [run.speed / alone.speed for run, alone in zip(runs, baseline, strict=True)]
    return {
        "tokens_per_second": statistics.median(run.speed for run in runs),
        "ratio": statistics.median(ratios),
        "tokens_per_target_pass": tokens / passes,
        "rows_per_second": sum(run.target.rows for run in runs) / seconds,
        "match_ratio": sum(known) / tokens if drafted else None,
        "target_share": target,
        "draft_share": draft,
        "rest_share": 1 - target - draft,
    }


def _weights(pair: Pair) -> int | None:
    """Bytes of both models' weights; None where the engine does not hand them out."""
    if Capability.MODELS not in pair.engine.capabilities:
        return None
    weights = [w for m in (pair.target, pair.draft) for w in m.model.parameters()]
    return sum(int(weight.numel() * weight.element_size()) for weight in weights)


def _peak_of_ssd(pair: Pair, prompt: str, max_new_tokens: int) -> int:
    """Peak bytes of the process (or the accelerator) once SSD has decoded, before anything else."""
    pair.generate(prompt, sampling=SamplingParams(max_new_tokens=max_new_tokens))
    if Capability.MODELS in pair.engine.capabilities:
        device = pair.target.model.device
        if device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(device))
    return _peak_of_process()


def _peak_of_process() -> int:
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def machine() -> dict[str, Any]:
    """Describe the machine on which the figures were measured."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    return {"processor": name, "threads": torch.get_num_threads(), "torch": torch.__version__}
