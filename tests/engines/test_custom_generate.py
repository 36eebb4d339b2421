"""SSD inside Transformers' generate: the same tokens, and its own options respected."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    StoppingCriteria,
)

import safedraft
from safedraft.core.config import SamplingParams, SSDConfig
from safedraft.core.decode import decode
from safedraft.core.request import Request
from safedraft.engines.transformers.engine import TransformersEngine
from safedraft.rules.ssd import SSD

PROMPT = torch.tensor([[5, 6, 7, 8]])


@pytest.fixture(scope="module")
def models(tiny_pair: Any) -> Any:
    return [LlamaForCausalLM.from_pretrained(folder).eval() for folder in tiny_pair]


def generate(models: Any, **options: Any) -> Any:
    given = {"max_new_tokens": 30, "do_sample": False, "custom_generate": safedraft.ssd_generate}
    return models[0].generate(PROMPT, draft_model=models[1], **(given | options))


def expected(models: Any, draft_prompt: Any = PROMPT, **options: Any) -> list[int]:
    request = Request(
        PROMPT[0].tolist(),
        draft_prompt[0].tolist(),
        SSD(),
        SSDConfig(),
        SamplingParams(max_new_tokens=30, **options),
        frozenset({256}),
    )
    return [step.token for _, step in decode(TransformersEngine(*models, 264), [request])]


class Streamer:
    def __init__(self) -> None:
        self.seen: list[int] = []
        self.ended = False

    def put(self, ids: torch.Tensor) -> None:
        self.seen += ids.flatten().tolist()

    def end(self) -> None:
        self.ended = True


class StopAt(StoppingCriteria):  # type: ignore[misc]
    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((1,), input_ids.shape[1] >= self.length)


def test_the_tokens_are_the_loops(models: Any) -> None:
    assert generate(models)[0, 4:].tolist() == expected(models)


def test_sampling_follows_the_generation_config(models: Any) -> None:
    options = {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "seed": 3}
    given = generate(models, do_sample=True, **options)
    assert given[0, 4:].tolist() == expected(models, **options)


def test_a_top_p_of_0_is_not_one_that_cuts_nothing(models: Any) -> None:
    with pytest.raises(ValueError, match="top_p"):
        generate(models, do_sample=True, top_p=0.0)


def test_a_sampled_reply_follows_torch_manual_seed(models: Any) -> None:
    replies = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        replies.append(generate(models, do_sample=True, temperature=1.5).tolist())
    assert replies[0] == replies[1] != replies[2]


def test_the_streamer_hears_every_token_and_the_end(models: Any) -> None:
    streamer = Streamer()
    assert generate(models, streamer=streamer)[0].tolist() == streamer.seen
    assert streamer.ended


@pytest.mark.parametrize("length", [5, 6, 7, 8, 9, 10])
def test_stopping_criteria_are_asked_inside_a_block(models: Any, length: int) -> None:
    assert generate(models, stopping_criteria=[StopAt(length)]).shape[1] == length


def test_end_tokens_end_it(models: Any) -> None:
    third = expected(models)[2]
    assert generate(models, eos_token_id=third)[0, 4:].tolist().index(third) + 5 == len(
        generate(models, eos_token_id=third)[0]
    )


def test_a_dict_is_returned_when_asked_for(models: Any) -> None:
    output = generate(models, return_dict_in_generate=True)
    assert output.sequences[0, 4:].tolist() == expected(models)


def test_the_draft_may_have_a_prompt_of_its_own(models: Any) -> None:
    other = generate(models, draft_input_ids=torch.tensor([[9, 9, 9]]))
    assert other[0, 4:].tolist() == expected(models, torch.tensor([[9, 9, 9]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft_model": None}, "draft_model"),
        ({"repetition_penalty": 1.2}, "RepetitionPenalty"),
        ({"num_beams": 3}, "num_beams"),
        ({"ssd_config": SSDConfig(prefill_scheme="union")}, "prefill_scheme: token ids do not say"),
        ({"return_dict_in_generate": True, "output_scores": True}, "output_scores"),
        ({"attention_mask": torch.tensor([[0, 1, 1, 1]])}, "without padding"),
    ],
)
def test_what_cannot_be_respected_is_refused(models: Any, options: Any, message: str) -> None:
    with pytest.raises(safedraft.SafeDraftError, match=message):
        models[0].generate(
            PROMPT,
            custom_generate=safedraft.ssd_generate,
            **({"draft_model": models[1], "max_new_tokens": 4, "do_sample": False} | options),
        )


def test_ids_that_the_draft_does_not_have_are_refused(models: Any) -> None:
    rows = models[1].get_input_embeddings().num_embeddings
    prompt = torch.tensor([[5, rows]])
    target = LlamaForCausalLM(
        LlamaConfig.from_dict(models[0].config.to_dict() | {"vocab_size": rows + 8})
    )
    with pytest.raises(safedraft.SafeDraftError, match="outside its vocabulary"):
        target.generate(
            prompt, draft_model=models[1], custom_generate=safedraft.ssd_generate, max_new_tokens=2
        )


def test_tensors_of_other_models_inputs_are_refused(models: Any) -> None:
    target = GPT2LMHeadModel(GPT2Config(vocab_size=264, n_embd=8, n_layer=1, n_head=1))
    with pytest.raises(safedraft.SafeDraftError, match="does not support token_type_ids"):
        target.generate(
            PROMPT,
            token_type_ids=torch.zeros_like(PROMPT),
            draft_model=models[1],
            custom_generate=safedraft.ssd_generate,
            max_new_tokens=2,
        )


def test_batches_are_refused(models: Any) -> None:
    with pytest.raises(safedraft.SafeDraftError, match="one sequence at a time"):
        models[0].generate(
            PROMPT.expand(2, -1),
            custom_generate=safedraft.ssd_generate,
            draft_model=models[1],
            max_new_tokens=4,
        )
