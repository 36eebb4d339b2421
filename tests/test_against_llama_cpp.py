"""The comparison with llama.cpp, without llama.cpp: a scripted process and scripted models."""

from __future__ import annotations

import importlib
import json
import sys
from itertools import islice
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import gguf
import pytest
import torch
from rich.console import Console
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

SCRIPTED = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    reply = asked["ids"][: asked["tokens"]] + asked["end"]
    print(json.dumps({"first": 0.5, "arrived": 1, "rest": 0.25, "ids": reply}), flush=True)
"""


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """One of the scripts of ``benchmarks``, as a module; llama.cpp is an empty one."""
    fake = ModuleType("llama_cpp")
    monkeypatch.setattr(fake, "llama_log_callback", lambda function: function, raising=False)
    monkeypatch.setitem(sys.modules, "llama_cpp", fake)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


class Scripted:
    """A model whose next token is a function of the token before it."""

    def __init__(self, following: dict[int, int]) -> None:
        self.following, self.held, self.passes = following, list[int](), 0

    @property
    def length(self) -> int:
        return len(self.held)

    def greedy(self, tokens: list[int], scored: int = 1) -> list[int]:
        self.held += tokens
        self.passes += 1
        return [self.following[token] for token in tokens[-scored:]]

    def cut(self, length: int) -> None:
        del self.held[length:]


CIRCLE = {token: (token + 1) % 10 for token in range(10)}


def test_a_child_is_asked_and_closed(script):
    child = script("against_llama_cpp").Child([sys.executable, "-c", SCRIPTED])
    assert child.ask(ids=[4, 5, 6], tokens=2, end=[9])["ids"] == [4, 5, 9]
    assert child.ask(ids=[7], tokens=2, end=[])["ids"] == [7]
    child.close()


def test_a_child_that_ends_is_reported(script):
    module = script("against_llama_cpp")
    with pytest.raises(SystemExit, match="ended with 3"):
        module.Child([sys.executable, "-c", "raise SystemExit(3)"])


@pytest.mark.parametrize("wrong", [{}, {3: 7, 8: 1}, dict.fromkeys(range(10), 0)])
@pytest.mark.parametrize("drafted", [1, 3, 5])
def test_speculation_gives_the_tokens_of_the_target_alone(script, wrong, drafted):
    worker = script("llama_worker")
    target, draft = Scripted(CIRCLE), Scripted(CIRCLE | wrong)
    for ids in ([1, 2], [5]):  # the second prompt finds the caches of the first
        alone = worker.answer(worker.alone(Scripted(CIRCLE), ids), 20, [])
        both = worker.answer(worker.speculative(target, draft, drafted, ids, 20), 20, [])
        assert both["ids"] == alone["ids"]
    assert wrong or target.passes < 2 * 20


def test_no_more_is_proposed_than_the_reply_can_take(script):
    worker = script("llama_worker")
    blocks = worker.speculative(Scripted(CIRCLE), Scripted(CIRCLE), 8, [0], 4)
    assert list(islice(blocks, 2)) == [[1], [2, 3, 4]]


def test_a_reply_ends_with_its_end_token(script):
    worker = script("llama_worker")
    outcome = worker.answer(iter([[1], [2, 3, 4]]), 9, [3])
    assert (outcome["ids"], outcome["arrived"]) == ([1, 2, 3], 1)


def test_rates_leave_out_the_first_tokens_and_ratios_are_by_prompt(script):
    module = script("against_llama_cpp")
    slow, fast = module.BASELINE, "fast"
    replies = {
        (0, 8, "sums", 0): {slow: (1.0, 1, 2.0, [1, 2, 3]), fast: (0.5, 1, 1.0, [1, 2, 3, 4, 5])},
        (0, 8, "code", 0): {slow: (1.0, 1, 1.0, [1, 2]), fast: (2.0, 2, 0.0, [1, 7])},
    }
    runs = [
        module.run_of(row, {name: (module.Reply(*own), 0) for name, own in given.items()}, case, 5)
        for case, given in replies.items()
        for row in (slow, fast)
    ]
    found = module.figures(runs)[8][fast]
    assert found["sums"]["later"] == 4.0
    assert found["sums"]["later_ratio"] == 4.0
    assert found["code"]["later"] is None  # every token came with the first
    assert found["all"]["first_ratio"] == 1.25
    assert found["code"]["shared"] == 0.5


def test_the_table_has_a_line_for_each_row_and_a_column_for_each_kind(script, monkeypatch, capsys):
    module = script("against_llama_cpp")
    reply = module.Reply(0.5, 1, 2.0, [1, 2, 3, 4, 5])
    rows = dict.fromkeys((module.BASELINE, "other"), lambda prompt, limit: reply)

    pair = SimpleNamespace(prompts=lambda prompt: SimpleNamespace(target=[1, 2, 3]))
    kinds = {"sums": ["a", "b"], "code": ["c"]}
    monkeypatch.setattr(module, "used_by_others", lambda: 0.0)
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    found = list(module.measure(rows, pair, kinds, [48], 0, 0.5))
    assert [len(of_prompt) for of_prompt in found] == [2, 2, 2]
    runs = [run for of_prompt in found for run in of_prompt]
    Console(width=160).print(module.table(module.figures(runs)[48], "48 tokens"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[-2:] == ["sums", "code"]
    assert [line.split()[-1] for line in lines[2:]] == ["2.00", "2.00"]


def test_a_disturbed_reply_is_decoded_again(script, monkeypatch):
    module = script("against_llama_cpp")
    used = iter([0, 0, 0, 9, 9, 9, 9, 9])  # a calm second, a disturbed reply, and both calm
    monkeypatch.setattr(module, "used_by_others", lambda: next(used))
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    replies = iter(["disturbed", "calm"])
    assert module.calm(lambda: next(replies), 0.5) == ("calm", 0.0)


def test_every_kind_has_three_prompts(script):
    assert {len(prompts) for prompts in script("against_llama_cpp").KINDS.values()} == {3}


def test_a_gguf_file_has_the_weights_and_the_vocabulary(script, tmp_path):
    module = script("to_gguf")
    folder, file = tmp_path / "model", tmp_path / "model.gguf"
    model = save_qwen2(folder)
    module.write(folder, file)
    read = gguf.GGUFReader(file)
    stored = {tensor.name: tensor for tensor in read.tensors}
    expected = model.model.layers[1].mlp.down_proj.weight.detach()
    weight = torch.from_numpy(stored["blk.1.ffn_down.weight"].data.copy()).view(torch.bfloat16)
    assert torch.equal(weight, expected)
    bias = torch.from_numpy(stored["blk.0.attn_q.bias"].data.copy())
    assert torch.equal(bias, model.model.layers[0].self_attn.q_proj.bias.detach().float())
    assert read.get_field("tokenizer.ggml.tokens").contents() == ["a", "b", "ab", "<end>", "[PAD4]"]
    assert read.get_field("tokenizer.ggml.merges").contents() == ["a b"]
    assert read.get_field("tokenizer.ggml.token_type").contents()[3:] == [3, 5]
    assert read.get_field("tokenizer.ggml.eos_token_id").contents() == 3
    assert read.get_field("tokenizer.chat_template").contents() == "{{ messages }}"


def test_another_architecture_is_refused(script, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(SystemExit, match="only qwen2"):
        script("to_gguf").write(tmp_path, tmp_path / "model.gguf")


def save_qwen2(folder: Path) -> Qwen2ForCausalLM:
    """A tiny model in bfloat16, with fewer tokens than its vocabulary has room for."""
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=5, **sizes, **heads)).to(torch.bfloat16)
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.self_attn.q_proj.bias)
    model.save_pretrained(folder)
    bpe = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    bpe.add_special_tokens([AddedToken("<end>", special=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>")
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(folder)
    return model
