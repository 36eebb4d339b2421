"""The image's options of vLLM are vLLM's."""

from __future__ import annotations

import pytest
from images import instructions, parse

from safedraft.server.vllm.serve import parse_command

pytestmark = pytest.mark.vllm


def test_vllm_knows_what_the_image_hands_on() -> None:
    from vllm import envs
    from vllm.entrypoints.cli.serve import ServeSubcommand

    _, others = parse("cuda")
    assert parse_command(ServeSubcommand(), ["serve", "/model", *others]).max_num_seqs == 64
    variables = " ".join(rest for name, rest in instructions("cuda") if name == "ENV")
    assert "VLLM_CACHE_ROOT=" in variables
    assert envs.VLLM_CACHE_ROOT
