"""What an operator sees of each reply of vLLM's server: a count, a line of the log, a header."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import save_tokenizer

from safedraft.prompts.phrases import WINDOW
from safedraft.server.vllm.operator import Operator

pytestmark = pytest.mark.vllm

REFUSAL = "I'm sorry, but I can't help with that."
GUARDED = Operator(name="own pair", guarded=True)


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the module replaces in vLLM is vLLM's again after each test."""
    from vllm.v1.engine import input_processor, output_processor

    access = logging.getLogger("safedraft.access")
    handlers = list(access.handlers)
    monkeypatch.setattr(output_processor, "RequestState", output_processor.RequestState)
    inputs = input_processor.InputProcessor
    monkeypatch.setattr(inputs, "process_inputs", inputs.process_inputs)
    yield
    access.handlers[:] = handlers
    access.propagate = True


def end_reply(folder: Path, text: str, reason: str, **extra: Any) -> None:
    """Let vLLM's own code end a reply of that text."""
    from transformers import AutoTokenizer
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
    from vllm.v1.engine.output_processor import OutputProcessor

    save_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    fields = {name: extra.pop(name) for name in set(extra) & set(SamplingParams.__struct_fields__)}
    params = SamplingParams(max_tokens=500, **fields, extra_args=extra or None)
    request = EngineCoreRequest(
        request_id="chatcmpl-1-ab", prompt_token_ids=[1, 2], mm_features=None, pooling_params=None,
        sampling_params=params, arrival_time=0.0, lora_request=None, cache_salt=None,
        data_parallel_rank=None, external_req_id="chatcmpl-1\nforged=line",
    )  # fmt: skip
    processor = OutputProcessor(tokenizer, log_stats=False)
    processor.add_request(request, None)
    ids = tokenizer.encode(text, add_special_tokens=False)
    output = EngineCoreOutput("chatcmpl-1-ab", ids, finish_reason=FinishReason[reason])
    processor.process_outputs([output])


def counted(**labels: str) -> float:
    from safedraft.engines.vllm.metrics import REPLIES

    return float(REPLIES.labels(**labels)._value.get())


@pytest.mark.parametrize(
    ("operator", "text", "extra", "guarded", "refused"),
    [
        (GUARDED, REFUSAL, {}, "true", "true"),
        (GUARDED, "Yes, gladly.", {}, "true", "false"),
        (GUARDED, "a " * (WINDOW + 1) + "</think>\n\n" + REFUSAL, {}, "true", "true"),
        (GUARDED, REFUSAL, {"ssd_statistics": True}, "true", "true"),
        (GUARDED, REFUSAL, {"ssd_alpha_union": 0.0}, "false", "true"),
        (GUARDED, REFUSAL, {"repetition_penalty": 2.0}, "false", "true"),
        (GUARDED, REFUSAL, {"bad_words": ["sorry"]}, "false", "true"),
        (GUARDED, REFUSAL, {"ssd_min_p": 0.1}, "true", "true"),
        (GUARDED, REFUSAL, {"ssd_logit_bias": {5: 1.0}}, "false", "true"),
        (Operator(name="bare", guarded=False), REFUSAL, {}, "false", "true"),
    ],
)
def test_a_reply_is_counted_by_whether_it_was_guarded_and_refused(
    tmp_path: Path, operator: Operator, text: str, extra: Any, guarded: str, refused: str
) -> None:
    from safedraft.server.vllm.replies import record_replies

    labels = {"finish_reason": "length", "guarded": guarded, "refused": refused}
    before = counted(**labels)
    record_replies(operator)
    end_reply(tmp_path, text, "LENGTH", **extra)
    assert counted(**labels) == before + 1


def test_a_reply_is_one_line_without_its_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from safedraft.server.vllm.replies import record_replies

    record_replies(GUARDED)
    logging.getLogger("safedraft.access").propagate = True
    with caplog.at_level(logging.INFO, logger="safedraft.access"):
        end_reply(tmp_path, REFUSAL, "ABORT")
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("id=chatcmpl-1%0Aforged%3Dline model='own pair' tokens=38 seconds=")
    assert line.endswith("union=- guarded=true finish_reason=interrupted")
    assert "sorry" not in line


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize(("method", "status"), [("POST", 200), ("GET", 200), ("POST", 400)])
def test_replies_have_the_header_where_it_is_switched_on(
    monkeypatch: pytest.MonkeyPatch, shown: bool, method: str, status: int
) -> None:
    from safedraft.server.vllm.replies import RecordReplies

    monkeypatch.setenv("SAFEDRAFT_OPERATOR", "")
    Operator(name="own", guarded=True, guard_header=shown).put_in_environment()
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read here")

    scope = {"type": "http", "method": method, "path": "/v1/chat/completions"}
    asyncio.run(RecordReplies(app)(scope, receive, send))
    has = (b"x-safedraft-guarded", b"true") in sent[0]["headers"]
    assert has == (shown and method == "POST" and status == 200)
    assert (b"a", b"b") in sent[0]["headers"]


def test_the_hooks_are_vllms_own_while_replies_are_recorded() -> None:
    from safedraft.engines.vllm.hooks import require_known_hooks
    from safedraft.server.vllm.replies import record_replies

    record_replies(GUARDED)
    require_known_hooks()
