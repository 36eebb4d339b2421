"""Sampling parameters that vLLM refuses together with drafts, although SSD has them.

The plug-in takes them out of what vLLM checks, and hands them on in the request's ``extra_args``.
"""

from __future__ import annotations

from typing import Any

from safedraft.engines.vllm.options import CARRIED


def carry(params: Any) -> Any:
    """Move the parameters of vLLM's ``SamplingParams`` to the names that the workers know.

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
