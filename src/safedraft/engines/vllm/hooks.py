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
    "GPUModelRunner.execute_model": "4e39d737cba5cad0",
    "GPUModelRunner._prepare_inputs": "4787a6310564462f",
    "GPUModelRunner._sample": "f1404bb853b19597",
    "GPUModelRunner.sample_tokens": "c67f94130071addc",
    "GPUModelRunner._bookkeeping_sync": "6c86870d8299042c",
    "GPUModelRunner._update_states": "4fd47936c19a4952",
    "GPUModelRunner._calc_spec_decode_metadata": "355cf3c5e9ed5a86",
    "GPUModelRunner.propose_draft_token_ids": "f1cde79f4287fae1",
    "GPUModelRunner.take_draft_token_ids": "320e7f5ecf11652d",
    "GPUModelRunner._copy_draft_token_ids_to_cpu": "e3968339b36bcf63",
    "GPUModelRunner._get_draft_token_ids_cpu": "425099d7bea2ae8a",
    "CPUModelRunner": "566c32bdf3d1be82",
    "Worker._init_workspace_and_model_runner": "3207e39f7a9db17e",
    "Worker._make_model_runner": "57156dac006b08f6",
    "DraftModelProposer": "732391cf7715f5ed",
    "SpecDecodeBaseProposer.propose": "6d78cdd1e7b94a11",
    "SpecDecodeBaseProposer.set_inputs_first_pass": "56b5e431afc59f56",
    "Scheduler.schedule": "ec8f97873c95b6df",
    "Scheduler._update_after_schedule": "120dddf291f8d29d",
    "Scheduler.update_from_output": "26197c3ddb80b92c",
    "Scheduler.finish_requests": "936f5540eef85f01",
    "Scheduler.update_draft_token_ids": "1b355de4952567e9",
    "Scheduler._preempt_request": "f88921e4b9178424",
    "check_stop": "e9dcd476e9f030e9",
    "InputProcessor.process_inputs": "ab4ce1a3d80b2efc",
    "OutputProcessor.process_outputs": "9f8edcb574209f19",
    "RequestState.from_new_request": "21ee2f63568085d1",
    "RequestState.make_request_output": "3e22f8f2cdee2867",
    "LogprobsLists": "a76f8cfcb81d6bc2",
    "LogprobsProcessor": "58fd59bd58160e2e",
    "BeamSearchOnlineMixin.beam_search": "b5f3f5d46593f40b",
    "BeamSearchOfflineMixin.beam_search": "f853e898c5c0fcff",
    "BeamSearchOfflineMixin._build_beam_sampling_params": "5c9d1808903ef411",
}

HOOKS: Mapping[str, Mapping[str, str]] = {
    "0.32.0": _HOOKS_0_32,
    "0.33.0": {
        **_HOOKS_0_32,
        "GPUModelRunner.propose_draft_token_ids": "3fb2d4aee4b0a1e7",
        "Scheduler.schedule": "9db97c5fb4b5cdad",
        "Scheduler.update_from_output": "6071ce1b64a184e3",
        "Scheduler.finish_requests": "c2f5f96932755763",
        "Scheduler._preempt_request": "dcb30f70745389e7",
        "OutputProcessor.process_outputs": "d0166d5b5e21b822",
        "RequestState.make_request_output": "db31a0bb7a362258",
        "BeamSearchOnlineMixin.beam_search": "b2c8b08c47d564f6",
        "BeamSearchOfflineMixin.beam_search": "0a787580e9b0acce",
    },
}
"""By version of vLLM, the classes, methods and functions with their fingerprints, which
``tools/vllm_hooks.py`` prints for a wheel."""

RUN = ("0.32.0",)
"""Versions with which the engine's tests ran. The code of the others was read."""


_LEFT_OUT = {"returns", "kind", "type_comment"}
"""Fields of a syntax tree that do not count; ``kind`` is that of the quotes around a text."""


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
        yield name, fingerprint(inspect.getsource(inspect.unwrap(find_hook(name))))


def fingerprint(code: str) -> str:
    """A digest of what a hook does, 16 hexadecimal digits; every version of Python has the same.

    Comments, layout, docstrings and the annotations in functions do not count. Those of a class's
    own fields count, since a ``NamedTuple`` or a dataclass is made from them.

    Args:
        code: a class, method or function, indented as a whole or not at all.
    """
    tree = ast.parse(f"if True:\n{code}" if code[:1].isspace() else code)
    return digest(_write(tree), digits=16)


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


def _write(part: object, in_class: bool = False) -> str:
    """Write a part of a syntax tree as text; what does not count, or is not there, is left out.

    ``ast.dump`` is not the same in all versions of Python.

    Args:
        in_class: whether the part belongs to the body of a class, and not to that of its methods.
    """
    match part:
        case list():
            return f"[{', '.join(filter(None, (_write(one, in_class) for one in part)))}]"
        case ast.Expr(value=ast.Constant(value=str())):
            return ""
        case ast.arg(arg=name):
            return name
        case ast.AnnAssign(target=target, value=value) if not in_class:
            return _write(ast.Assign([target], value)) if value else ""
        case ast.JoinedStr(values=[*values, ast.Constant(value="")]):  # by Python 3.12 alone
            return _write(ast.JoinedStr(values))
        case ast.AST():
            begins = isinstance(part, ast.ClassDef)
            ends = isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
            inner = begins or (in_class and not ends)
            fields = [
                f"{name}={_write(value, inner)}"
                for name, value in ast.iter_fields(part)
                if name not in _LEFT_OUT and value not in (None, [])
            ]
            return f"{type(part).__name__}({', '.join(fields)})"
    return repr(part)


def _is(node: ast.AST, name: str) -> bool:
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    return isinstance(node, kinds) and node.name == name
