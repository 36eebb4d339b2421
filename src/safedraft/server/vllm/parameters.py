"""Sampling parameters that vLLM refuses together with drafts, although SSD has them.

vLLM checks a request before the plug-in sees it. So the server takes these parameters out of what
vLLM checks, and hands them to the plug-in among the request's ``extra_args``.
"""

from __future__ import annotations

import functools
from typing import Any

from vllm.v1.engine.input_processor import InputProcessor

from safedraft.engines.vllm.options import CARRIED


def carry_parameters() -> None:
    """Let the requests of this process have ``min_p`` and ``logit_bias`` from now on."""
    process = InputProcessor.process_inputs

    @functools.wraps(process)
    def carry_and_process(
        self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        return process(self, request_id, prompt, carry(params), *args, **kwargs)

    InputProcessor.process_inputs = carry_and_process


def carry(params: Any) -> Any:
    """Move the parameters of vLLM's ``SamplingParams`` to the names that the plug-in knows.

    Returns:
        A copy; ``params`` itself if it has none of them.
    """
    given = {key: value for key, name in CARRIED.items() if (value := getattr(params, name, None))}
    if not given:
        return params
    carried, defaults = params.clone(), type(params)()
    carried.extra_args = {**(params.extra_args or {}), **given}
    for name in CARRIED.values():
        setattr(carried, name, getattr(defaults, name))
    return carried
