"""The tokens that a request's grammar allows at each position, in a worker.

vLLM's scheduler compiles each grammar as well and holds the request back until it has; the mask
that it makes is for the target alone, and comes too late for the draft.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from torch import Tensor
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.structured_output.request import StructuredOutputRequest

from safedraft.core.constraint import forbid, unpack_bits
from safedraft.core.errors import BrokenModelError, first_line


class Grammar:
    """The grammar of one reply: a ``Constraint``.

    Args:
        grammar: a grammar of any of vLLM's backends; the decided tokens advance it.
        bits: memory for one row of a mask, ``[1, rows / 32]`` in int32.
        vocabulary: V.
    """

    def __init__(self, grammar: Any, bits: Tensor, vocabulary: int) -> None:
        self._grammar, self._bits, self._vocabulary = grammar, bits, vocabulary
        self._found: dict[tuple[int, ...], Tensor | None] = {}

    def apply(self, drafts: Sequence[int], logits: Tensor) -> Tensor:
        """See ``Constraint``; once the grammar has ended, any token may come."""
        key = tuple(drafts)
        if key not in self._found:
            self._found[key] = self._look_ahead(key)
        bias = self._found[key]
        return logits if bias is None else logits + bias.to(logits.device)

    def decide(self, token: int) -> None:
        """Advance by a decided token."""
        self._found = {}
        self._accept(token)

    def _look_ahead(self, drafts: Sequence[int]) -> Tensor | None:
        accepted = 0
        for token in drafts:
            accepted += self._accept(token)
        ended = self._grammar.is_terminated()
        mask = None if ended else self._read_mask()
        if accepted:
            self._grammar.rollback(accepted)
        return mask

    def _accept(self, token: int) -> bool:
        """Advance by a token; False if the grammar has ended, after which anything may follow."""
        if self._grammar.is_terminated():
            return False
        if not self._grammar.accept_tokens("", [token]):
            raise BrokenModelError("a token that the grammar forbids was decided; decoding stopped")
        return True

    def _read_mask(self) -> Tensor:
        self._grammar.fill_bitmask(self._bits, 0)
        return forbid(unpack_bits(self._bits[0], self._vocabulary))


class GrammarCompiler:
    """Compiles the grammars of requests as vLLM's scheduler does.

    Args:
        vllm_config: vLLM's configuration.
        vocabulary: V.
    """

    def __init__(self, vllm_config: Any, vocabulary: int) -> None:
        self._manager = StructuredOutputManager(vllm_config)
        self._manager._use_async_grammar_compilation = False
        self._vocabulary = vocabulary

    def compile(self, params: Any) -> Grammar:
        """The grammar in vLLM's ``SamplingParams``.

        Raises:
            BrokenModelError: the grammar does not compile.
        """
        asked = StructuredOutputRequest(params.structured_outputs)
        self._manager.grammar_init(
            SimpleNamespace(request_id="", sampling_params=params, structured_output_request=asked)
        )
        grammar = asked.grammar
        if isinstance(grammar, Exception):
            raise BrokenModelError(f"structured_outputs: {first_line(grammar)}") from grammar
        bits = self._manager.backend.allocate_token_bitmask(1)
        return Grammar(grammar, bits, self._vocabulary)
