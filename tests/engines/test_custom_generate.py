"""SSD inside Transformers' generate: the same tokens, and its own options respected."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import accelerate
import peft
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from conftest import save_model, save_pair, save_tokenizer
from transformers import (
    AutoTokenizer,
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
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two models without rows past their tokenizer's ids, which a pair never decodes."""
    return save_pair(tmp_path_factory.mktemp("pair"), vocabulary=258)


@pytest.fixture(scope="module")
def models(folders: Any) -> Any:
    return [LlamaForCausalLM.from_pretrained(folder).eval() for folder in folders]


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
    return [step.token for _, step in decode(TransformersEngine(*models, 258), [request])]


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


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "seed": 3},
        {"temperature": 1.5, "top_k": 0, "min_p": 0.3, "repetition_penalty": 1.3, "seed": 3},
    ],
)
def test_sampling_follows_the_generation_config(models: Any, options: dict[str, Any]) -> None:
    given = generate(models, do_sample=True, **options)
    assert given[0, 4:].tolist() == expected(models, **options)


def test_a_greedy_reply_has_the_repetition_penalty_of_generate(models: Any) -> None:
    given = generate(models, repetition_penalty=1.5)[0, 4:].tolist()
    assert given == expected(models, repetition_penalty=1.5) != expected(models)
    target = generate([models[0]] * 2, repetition_penalty=1.5)
    alone = models[0].generate(PROMPT, max_new_tokens=30, do_sample=False, repetition_penalty=1.5)
    assert target.tolist() == alone.tolist()


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
        ({"no_repeat_ngram_size": 2}, "NoRepeatNGram"),
        ({"num_beams": 3}, "num_beams"),
        ({"ssd_config": SSDConfig(prefill_scheme="union")}, "prefill_scheme: token ids do not say"),
        ({"return_dict_in_generate": True, "output_scores": True}, "output_scores"),
        ({"force_words_ids": [[5]]}, "force_words_ids"),
        ({"use_mtp": True}, "use_mtp"),
        ({"synced_gpus": True}, "synced_gpus"),
        ({"ssd_config": {"alpha_union": 2.0}}, r"safedraft.SSDConfig\(…\), not a dict"),
        ({"draft_input_ids": [[5, 6]]}, "must be a tensor, not a list: give ids"),
        ({"draft_input_ids": PROMPT.float()}, "must hold token ids, not torch.float32"),
        ({"draft_input_ids": PROMPT[0]}, r"must be \[1, length\], not \[4\]"),
        ({"draft_input_ids": {"input_ids": PROMPT}}, r"not a dict: give its \['input_ids'\]"),
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


SLOW = pytest.mark.slow
LORA = {"r": 4, "init_lora_weights": False, "task_type": "CAUSAL_LM"}
ADAPTERS = {
    "LoRA": lambda: peft.LoraConfig(target_modules=["q_proj", "down_proj"], **LORA),
    "LoRA on the output layer": lambda: peft.LoraConfig(target_modules=["lm_head"], **LORA),
    "LoRA without a task": lambda: peft.LoraConfig(
        r=4, init_lora_weights=False, target_modules=["q_proj", "down_proj"]
    ),
    "IA3": lambda: peft.IA3Config(
        target_modules=["v_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        init_ia3_weights=False,
        task_type="CAUSAL_LM",
    ),
}
FIRST, *OTHERS = ADAPTERS
OUTSIDE = {
    "PROMPT_TUNING": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "PREFIX_TUNING": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    "LORA": lambda: peft.LoraConfig(
        target_modules=["q_proj", "down_proj"], alora_invocation_tokens=[8], **LORA
    ),
}
"""Adapters that layers alone do not have: of prompts, and LoRA that begins at a token."""


def adapt(model: Any, config: Any) -> Any:
    torch.manual_seed(3)
    return peft.get_peft_model(deepcopy(model), config).eval()


def parallel(model: Any) -> Any:
    return torch.nn.DataParallel(model)


def compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def compiled_in_place(model: Any) -> Any:
    model = deepcopy(model)
    model.compile(backend="eager")
    return model


def hooked(model: Any) -> Any:
    hook = AlignDevicesHook(execution_device="cpu", io_same_device=True)
    return add_hook_to_module(deepcopy(model), hook)


def prepared(model: Any) -> Any:
    return accelerate.Accelerator(cpu=True).prepare(deepcopy(model))


WRAPPERS = [parallel, compiled, hooked, prepared, lambda model: compiled(parallel(model))]


@pytest.fixture(scope="module")
def pair(folders: Any) -> Any:
    return safedraft.load_pair(*map(str, folders), use_adapter=False, engine="transformers")


def reply_of(pair: Any) -> list[int]:
    sampling = SamplingParams(max_new_tokens=30)
    return [token.id for token in pair.stream_ids(PROMPT[0].tolist(), sampling=sampling)]


def test_the_tokens_are_the_pairs(models: Any, pair: Any) -> None:
    assert generate(models)[0, 4:].tolist() == reply_of(pair)


def test_a_draft_equal_to_the_target_changes_nothing(models: Any) -> None:
    alone = models[0].generate(PROMPT, max_new_tokens=30, do_sample=False)
    assert generate([models[0], models[0]]).tolist() == alone.tolist()


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_draft_is_the_draft(models: Any, wrap: Any) -> None:
    assert generate([models[0], wrap(models[1])])[0, 4:].tolist() == expected(models)


@pytest.mark.parametrize("wrap", [compiled, hooked, prepared])
def test_a_wrapped_target_is_the_target(models: Any, wrap: Any) -> None:
    assert generate([wrap(models[0]), models[1]])[0, 4:].tolist() == expected(models)


@SLOW
@pytest.mark.parametrize("which", [0, 1])
def test_a_model_compiled_in_place_gives_the_same_tokens(models: Any, which: int) -> None:
    both = list(models)
    both[which] = compiled_in_place(both[which])
    assert generate(both)[0, 4:].tolist() == expected(models)


@pytest.mark.parametrize("which", [0, 1], ids=["target", "draft"])
@pytest.mark.parametrize("name", [FIRST, *(pytest.param(name, marks=SLOW) for name in OTHERS)])
def test_a_models_adapters_take_part(models: Any, name: str, which: int) -> None:
    adapted, merged = list(models), list(models)
    adapted[which] = adapt(models[which], ADAPTERS[name]())
    merged[which] = adapt(models[which], ADAPTERS[name]()).merge_and_unload()
    reply = generate(adapted)[0, 4:].tolist()
    assert reply == expected(merged)
    assert reply != expected(models)


@pytest.mark.parametrize("wrap", [parallel, pytest.param(compiled, marks=SLOW)])
def test_a_wrapped_drafts_adapters_take_part(models: Any, wrap: Any) -> None:
    draft = adapt(models[1], ADAPTERS["LoRA"]())
    assert generate([models[0], wrap(draft)]).tolist() == generate([models[0], draft]).tolist()


def test_adapters_of_different_kinds_take_part(models: Any) -> None:
    torch.manual_seed(3)
    draft = peft.PeftMixedModel(deepcopy(models[1]), ADAPTERS["LoRA"]()).eval()
    lora = adapt(models[1], ADAPTERS["LoRA"]())
    assert generate([models[0], draft]).tolist() == generate([models[0], lora]).tolist()


def test_an_adapter_that_is_switched_off_takes_no_part(models: Any) -> None:
    draft = adapt(models[1], ADAPTERS["LoRA"]())
    with draft.disable_adapter():
        assert generate([models[0], draft])[0, 4:].tolist() == expected(models)


def test_an_adapters_tokens_are_those_of_the_pair_with_it(
    models: Any, folders: Any, tmp_path: Path
) -> None:
    draft = adapt(models[1], ADAPTERS["LoRA"]())
    draft.save_pretrained(tmp_path / "adapter")
    pair = safedraft.load_pair(
        *map(str, folders), adapter=str(tmp_path / "adapter"), engine="transformers"
    )
    assert generate([models[0], draft])[0, 4:].tolist() == reply_of(pair) != expected(models)


@pytest.mark.parametrize("which", [0, 1], ids=["target", "draft"])
@pytest.mark.parametrize("kind", OUTSIDE)
def test_adapters_outside_of_the_layers_are_refused(models: Any, kind: str, which: int) -> None:
    adapted = list(models)
    adapted[which] = adapt(models[which], OUTSIDE[kind]())
    with pytest.raises(safedraft.SafeDraftError, match=r"has an adapter.* plain LoRA adapter"):
        adapted[0].generate(
            input_ids=PROMPT,
            draft_model=adapted[1],
            custom_generate=safedraft.ssd_generate,
            max_new_tokens=4,
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda draft: "owner/small", "must be a loaded model, not str: load it with Auto"),
        (lambda draft: Path("small"), "must be a loaded model, not .*Path: load it with Auto"),
        (lambda draft: {"model": draft}, "must be a loaded model, not dict: load it with Auto"),
        (lambda draft: draft.state_dict(), "must be a loaded model, not OrderedDict"),
        (lambda draft: draft.config, "must be a loaded model, not LlamaConfig"),
        (lambda draft: type(draft), "must be a loaded model, not the class LlamaForCausalLM"),
        (lambda draft: torch.nn.Linear(2, 2), "must be a loaded model, not Linear"),
        (lambda draft: draft.model, "is a LlamaModel, which gives no logits of tokens"),
        (lambda draft: deepcopy(draft).train(), r"training mode: call draft_model.eval\(\)"),
        (
            lambda draft: peft.get_peft_model(
                deepcopy(draft), peft.LoraConfig(lora_dropout=0.5, **LORA)
            ),
            r"training mode: call draft_model.eval\(\)",
        ),
        (
            lambda draft: accelerate.cpu_offload(deepcopy(draft), torch.device("cpu")),
            "draft_model is offloaded",
        ),
    ],
)
def test_a_draft_that_cannot_decode_is_refused_in_words(
    models: Any, make: Any, message: str
) -> None:
    with pytest.raises(safedraft.SafeDraftError, match=message):
        generate([models[0], make(models[1])])


def test_an_offloaded_target_is_refused(models: Any) -> None:
    target = accelerate.cpu_offload(deepcopy(models[0]), torch.device("cpu"))
    with pytest.raises(safedraft.SafeDraftError, match="the target is offloaded"):
        generate([target, models[1]])


LETTERS = 94
"""The first ids of the test's tokenizer are the visible letters of ASCII."""


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Two models that write letters, and their tokenizer."""
    folder = tmp_path_factory.mktemp("writers")
    save_tokenizer(folder)
    for seed in (1, 2):
        save_model(folder / str(seed), seed, LETTERS, eos_token_id=None)
    both = [LlamaForCausalLM.from_pretrained(folder / str(seed)).eval() for seed in (1, 2)]
    return both, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("own_draft", [False, True], ids=["a draft", "the target as its draft"])
@pytest.mark.parametrize("start", [5, *(pytest.param(n, marks=SLOW) for n in (0, 10, 15, 20, 25))])
def test_stop_strings_end_it_at_any_token(writers: Any, start: int, own_draft: bool) -> None:
    both, tokenizer = writers
    if own_draft:
        both = [both[0], both[0]]
    reply = generate(both)[0, 4:].tolist()
    text = "".join(tokenizer.decode([id]) for id in reply)
    stop = text[start : start + 3]
    options = {"stop_strings": ["never", stop], "tokenizer": tokenizer}
    stopped = generate(both, **options)[0, 4:].tolist()
    assert stopped == reply[: text.index(stop) + 3]
    if own_draft:
        alone = both[0].generate(PROMPT, max_new_tokens=30, do_sample=False, **options)
        assert stopped == alone[0, 4:].tolist()


def test_stop_strings_without_a_tokenizer_are_an_error_that_asks_for_it(models: Any) -> None:
    with pytest.raises(ValueError, match="pass the model's tokenizer to the `tokenizer` argument"):
        generate(models, stop_strings=["the"])


def test_healing_of_the_prompt_is_refused(writers: Any) -> None:
    both, tokenizer = writers
    tokenizer = deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.bos_token = tokenizer.eos_token
    with pytest.raises(safedraft.SafeDraftError, match="token_healing"):
        generate(both, token_healing=True, tokenizer=tokenizer)


TREES = SSDConfig(draft_tree_threshold=0.001, draft_tokens=8)
FIXED = SSDConfig(draft_tree=(2, 1, 2), draft_tokens=8)


@pytest.mark.parametrize("trees", [TREES, FIXED])
def test_a_tree_changes_no_token(models: Any, pair: Any, trees: SSDConfig) -> None:
    assert generate(models, ssd_config=trees)[0, 4:].tolist() == expected(models)
    sampling = SamplingParams(max_new_tokens=30)
    stream = pair.stream_ids(PROMPT[0].tolist(), sampling=sampling, config=trees)
    assert [token.id for token in stream] == reply_of(pair)


def test_trees_are_refused_where_a_model_reads_none(
    models: Any, pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "draft_tree_threshold: llama reads no tree"
    monkeypatch.setattr(
        "safedraft.engines.transformers.engine.why_no_trees", lambda _: "llama reads no tree"
    )
    with pytest.raises(safedraft.SafeDraftError, match=message):
        generate(models, ssd_config=TREES)
    engine = TransformersEngine(*models, 258)
    monkeypatch.setattr(pair.engine, "capabilities", engine.capabilities)
    with pytest.raises(safedraft.SafeDraftError, match=message):
        pair.stream_ids(PROMPT[0].tolist(), config=TREES)
