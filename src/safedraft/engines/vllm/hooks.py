"""The code of vLLM that the engine replaces or depends on, by the versions that are known."""

from __future__ import annotations

import ast
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from operator import attrgetter
from typing import Any

from safedraft.core.errors import SafeDraftError, UnguardedWarning
from safedraft.models.fingerprint import digest

HOMES = {
    "GPUModelRunner": "vllm.v1.worker.gpu_model_runner",
    "CPUModelRunner": "vllm.v1.worker.cpu_model_runner",
    "Worker": "vllm.v1.worker.gpu_worker",
    "DraftModelProposer": "vllm.v1.spec_decode.draft_model",
    "SpecDecodeBaseProposer": "vllm.v1.spec_decode.llm_base_proposer",
    "Scheduler": "vllm.v1.core.sched.scheduler",
    "check_stop": "vllm.v1.core.sched.utils",
    "InputProcessor": "vllm.v1.engine.input_processor",
    "OutputProcessor": "vllm.v1.engine.output_processor",
    "RequestState": "vllm.v1.engine.output_processor",
    "LogprobsLists": "vllm.v1.outputs",
    "LogprobsProcessor": "vllm.v1.engine.logprobs",
    "BeamSearchOnlineMixin": "vllm.entrypoints.generate.beam_search.online",
    "BeamSearchOfflineMixin": "vllm.entrypoints.generate.beam_search.offline",
}
"""The module of each class or function that has hooks."""

_HOOKS_0_32 = {
    "GPUModelRunner.execute_model": "e058bf791a298e98",
    "GPUModelRunner._prepare_inputs": "c31a77c123a09a04",
    "GPUModelRunner._sample": "5cb5c1da02cfdc68",
    "GPUModelRunner.sample_tokens": "047e6a4738dead56",
    "GPUModelRunner._bookkeeping_sync": "13c3e81003a7e168",
    "GPUModelRunner._update_states": "326599f31b273b94",
    "GPUModelRunner._calc_spec_decode_metadata": "6148d63fa0bff183",
    "GPUModelRunner.propose_draft_token_ids": "a60269aca9de4e25",
    "GPUModelRunner.take_draft_token_ids": "21e3697c8c5f9a81",
    "GPUModelRunner._copy_draft_token_ids_to_cpu": "2f68963acce410e6",
    "GPUModelRunner._get_draft_token_ids_cpu": "48bdeff52e00cecb",
    "CPUModelRunner": "a308f1f428e77390",
    "Worker._init_workspace_and_model_runner": "bf006d81bd375c2f",
    "Worker._make_model_runner": "3817214704e1e262",
    "DraftModelProposer": "9647c8de45405429",
    "SpecDecodeBaseProposer.propose": "00017c139f27a3e7",
    "SpecDecodeBaseProposer.set_inputs_first_pass": "00e470090b7c3a35",
    "Scheduler.schedule": "da4f2cf2fc39c39e",
    "Scheduler._update_after_schedule": "2b527eb8070d3cce",
    "Scheduler.update_from_output": "85b29db96051135c",
    "Scheduler.finish_requests": "b7a4ef7b8aa588bf",
    "Scheduler.update_draft_token_ids": "f05dcf1d78912b36",
    "Scheduler._preempt_request": "4113f5de8a84ec25",
    "check_stop": "5149b60c92d21064",
    "InputProcessor.process_inputs": "e22b5f772979054c",
    "OutputProcessor.process_outputs": "9e116796002e75f2",
    "RequestState.from_new_request": "eaf12c8b6422112b",
    "RequestState.make_request_output": "353cb96c5deaa307",
    "LogprobsLists": "40c7351c794f7237",
    "LogprobsProcessor": "1ea97a520599bc1e",
    "BeamSearchOnlineMixin.beam_search": "e2e6d1893a8f2c1d",
    "BeamSearchOfflineMixin.beam_search": "b4b93229fd76b6a8",
    "BeamSearchOfflineMixin._build_beam_sampling_params": "060fa05c239b9c7b",
}

HOOKS: Mapping[str, Mapping[str, str]] = {
    "0.32.0": _HOOKS_0_32,
    "0.33.0": {
        **_HOOKS_0_32,
        "GPUModelRunner.propose_draft_token_ids": "9db461529ab7e17c",
        "Scheduler.schedule": "fa34c8a13c0a8936",
        "Scheduler.update_from_output": "8067d98a98b620cb",
        "Scheduler.finish_requests": "3649baeb4794f17f",
        "Scheduler._preempt_request": "8d67cc4e85688724",
        "OutputProcessor.process_outputs": "06811284749d457d",
        "RequestState.make_request_output": "9c555c51b1a2ece2",
        "BeamSearchOnlineMixin.beam_search": "9944b62f623cd7d3",
        "BeamSearchOfflineMixin.beam_search": "b26ce80f21700f36",
    },
}
"""By version of vLLM, the classes, methods and functions with the beginning of their SHA-256.
``tools/vllm_hooks.py`` prints them for a wheel."""

RUN = ("0.32.0",)
"""Versions with which the engine's tests ran. The code of the others was read."""


def require_known_hooks() -> None:
    """Check that the installed vLLM is one that is known, by its code and not by its number.

    Raises:
        SafeDraftError: its hooks are those of no known version.

    Warns:
        UnguardedWarning: its code was read, but the engine's tests never ran with it.
    """
    nearest, differing = find_nearest(dict(fingerprints()))
    if differing:
        from vllm import __version__

        raise SafeDraftError(
            f"vLLM {__version__} is not supported: {', '.join(differing)} differ from "
            f"{nearest}. Install vLLM {RUN[-1]}"
        )
    if nearest not in RUN:
        warnings.warn(
            f"the code of vLLM {nearest} was read for SafeDraft and never run with it: compare "
            f"replies with those of {RUN[-1]} before you rely on it",
            UnguardedWarning,
            stacklevel=2,
        )


def find_nearest(found: Mapping[str, str]) -> tuple[str, list[str]]:
    """The known version with the fewest other hooks than a vLLM, and which these are.

    Args:
        found: the vLLM's fingerprints by the name of the hook.
    """
    differing = {
        version: [name for name in found if found[name] != hooks[name]]
        for version, hooks in HOOKS.items()
    }
    nearest = min(differing, key=lambda version: len(differing[version]))
    return nearest, differing[nearest]


def fingerprints() -> Iterator[tuple[str, str]]:
    """Name and fingerprint of the installed code of every hook."""
    for name in _HOOKS_0_32:
        yield name, digest(inspect.getsource(inspect.unwrap(find_hook(name))), digits=16)


def find_hook(name: str) -> Callable[..., Any]:
    """The installed class, method or function."""
    home = import_module(HOMES[name.partition(".")[0]])
    hook: Callable[..., Any] = attrgetter(name)(home)
    return hook


def read_hook(name: str, text: str) -> str | None:
    """The code of a hook in the text of its module, as ``inspect.getsource`` gives it.

    Returns:
        None if the module has no such class, method or function.
    """
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        named = [child for child in ast.iter_child_nodes(node) if _is(child, part)]
        if not named:
            return None
        node = named[0]
    assert isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    start = min([decorator.lineno for decorator in node.decorator_list] + [node.lineno])
    return "".join(text.splitlines(keepends=True)[start - 1 : node.end_lineno])


def _is(node: ast.AST, name: str) -> bool:
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return isinstance(node, kinds) and node.name == name
