import os
import stat

import pytest

from safedraft.models.fetch import fetch


@pytest.mark.real
@pytest.mark.timeout(600)
def test_the_smallest_model_is_fetched_converted_and_loads(tmp_path, monkeypatch, capfd):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setenv("SAFEDRAFT_CACHE", str(tmp_path))
    before = os.umask(0o027)
    try:
        folder = fetch("smollm2-135m-instruct")
    finally:
        os.umask(before)
    assert capfd.readouterr() == ("", "")
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o640}

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert not hasattr(model.config, "quantization_config")
    ends = model.generation_config.eos_token_id
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|im_end|>", "<|endoftext|>"]
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :])
