"""The plug-in that vLLM loads in each of its processes: it admits or refuses every request."""

from __future__ import annotations

import functools
from typing import Any


def register() -> None:
    """Entry point of the group ``vllm.general_plugins``; may be called more than once.

    An engine that SafeDraft did not start is not changed.
    """
    from vllm.exceptions import VLLMValidationError
    from vllm.platforms import current_platform
    from vllm.v1.engine.input_processor import InputProcessor

    from safedraft.core.errors import SafeDraftError
    from safedraft.engines.vllm.checks import admit, require_engine
    from safedraft.engines.vllm.options import Settings
    from safedraft.engines.vllm.parameters import carry

    if getattr(InputProcessor.process_inputs, "admits", False):
        return
    if current_platform.is_cpu():
        import safedraft.engines.vllm.int8  # noqa: F401  (registers the quantization)
    construct, process = InputProcessor.__init__, InputProcessor.process_inputs

    @functools.wraps(construct)
    def construct_and_check(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        if Settings.of(vllm_config):
            require_engine(vllm_config)
        construct(self, vllm_config, *args, **kwargs)

    @functools.wraps(process)
    def process_and_admit(
        self: Any, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        settings = Settings.of(self.vllm_config)
        params = carry(params) if settings else params
        request = process(self, request_id, prompt, params, *args, **kwargs)
        if settings:
            try:
                admit(request, self.vllm_config, settings)
            except SafeDraftError as error:  # the server answers with a 400
                raise VLLMValidationError(str(error)) from error
        return request

    process_and_admit.admits = True  # type: ignore[attr-defined]
    InputProcessor.__init__ = construct_and_check
    InputProcessor.process_inputs = process_and_admit
