"""The loop: packing, what it learns, checkpoints, errors."""

from __future__ import annotations

import math

import pytest
import torch
from test_examples import asked
from transformers import AutoModelForCausalLM, AutoTokenizer

from safedraft.core.errors import SafeDraftError
from safedraft.training.config import TrainingConfig
from safedraft.training.distil import compute_teacher
from safedraft.training.examples import Example, Examples, LabelKind
from safedraft.training.train import (
    CHECKPOINT,
    LOSSES,
    TrainingStoppedError,
    add_lora,
    compute_label_logits,
    compute_learning_rate,
    read_losses,
    train,
)
from safedraft.training.training_data import TargetReply, TrainingData

CONFIG = TrainingConfig(
    steps=6,
    rank=8,
    learning_rate=2e-2,
    tokens_per_step=400,
    tokens_per_pass=200,
    relapse_share=0,
)


REFUSAL = "I won't."


@pytest.fixture(scope="module")
def examples(tiny_pair):
    """Few and short: what a model of two layers can learn in a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("safedraft.training.examples.read_refusals", lambda language: [REFUSAL])
        return made_examples(tiny_pair)


def made_examples(tiny_pair):
    tokenizer = AutoTokenizer.from_pretrained(tiny_pair[1])
    data = TrainingData(
        [TargetReply(asked(f"bad {n}", "harmful", "Sure, one.\n"), "", False) for n in range(4)],
        [TargetReply(asked(f"good {n}", "ordinary"), "Yes, so it is.", True) for n in range(6)],
        declined=[],
    )
    return Examples(data, tokenizer, frozenset([256]), CONFIG)


def bare(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def trained(folder, tiny_pair, examples, config=CONFIG, identity=(("settings", "same"),), **more):
    folder.mkdir(exist_ok=True)
    model = add_lora(bare(tiny_pair[1]), config)
    train(model, examples.epoch, config, folder, identity=dict(identity), **more)
    return model


def lora(model):
    return {name: w.detach().clone() for name, w in model.named_parameters() if w.requires_grad}


def test_packed_examples_do_not_see_each_other(tiny_pair, examples):
    model, batch = bare(tiny_pair[1]).eval(), examples.epoch(0)[:4]
    packed = compute_label_logits(model, batch)
    alone = torch.cat([compute_label_logits(model, [example]) for example in batch])
    torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-4)
    whole = model(input_ids=torch.tensor([batch[0].ids])).logits[0]
    count = len(batch[0].labels)
    torch.testing.assert_close(packed[:count], whole[-count:], rtol=1e-4, atol=1e-4)


def mean_of_last(log, kind, count=5):
    values = [line[kind] for line in log if kind in line][-count:]
    return sum(values) / len(values)


def test_a_few_steps_teach_to_refuse_and_to_insist(tmp_path, tiny_pair, examples):
    config = CONFIG.model_copy(update={"steps": 90})
    model = trained(tmp_path, tiny_pair, examples, config).eval()
    log = read_losses(tmp_path / LOSSES)
    for kind in ("refusal", "answer"):
        assert log[0][kind] > 4
        assert mean_of_last(log, kind) < 1
    assert mean_of_last(log, "dense") < 1
    tokenizer = AutoTokenizer.from_pretrained(tiny_pair[1])
    for said in ("", "Sure", "Sure, on"):
        asked = examples.make_refusal(
            [{"role": "user", "content": "bad 1"}], tokenizer.encode(said), examples.spell(REFUSAL)
        )
        prompt = asked.ids[: len(asked.ids) - len(asked.labels) + 1 + len(said)]
        reply = model.generate(torch.tensor([prompt]), max_new_tokens=16, do_sample=False)
        words = tokenizer.decode(reply[0][len(prompt) :])
        assert "won't.<|end|>" in words


def test_only_the_lora_matrices_change(tmp_path, tiny_pair, examples):
    model = trained(tmp_path, tiny_pair, examples)
    before = bare(tiny_pair[1]).state_dict()
    for name, weight in model.unload().state_dict().items():
        assert torch.equal(weight, before[name]), name


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_resumed_run_gives_the_same_as_an_uninterrupted_one(tmp_path, tiny_pair, examples, cut):
    whole = trained(tmp_path / "whole", tiny_pair, examples)
    steps = iter(range(1, 100))
    with pytest.raises(TrainingStoppedError):
        trained(tmp_path / "cut", tiny_pair, examples, stop=lambda: next(steps) == cut)
    assert len(read_losses(tmp_path / "cut" / LOSSES)) == cut
    resumed = trained(tmp_path / "cut", tiny_pair, examples, resume=True)
    for name, weight in lora(whole).items():
        assert torch.equal(weight, lora(resumed)[name]), name
    logs = [read_losses(tmp_path / run / LOSSES) for run in ("whole", "cut")]
    timeless = [[{**line, "seconds": 0} for line in log] for log in logs]
    assert timeless[0] == timeless[1]


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, tiny_pair, examples):
    config = CONFIG.model_copy(update={"checkpoint_steps": 2})

    def die(step, figures):
        if step == 5:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        trained(tmp_path / "cut", tiny_pair, examples, config, report=die)
    with (tmp_path / "cut" / LOSSES).open("a") as log:
        log.write('{"step": 6, "los')
    resumed = trained(tmp_path / "cut", tiny_pair, examples, config, resume=True)
    assert [line["step"] for line in read_losses(tmp_path / "cut" / LOSSES)] == [1, 2, 3, 4, 5, 6]
    whole = trained(tmp_path / "whole", tiny_pair, examples, config)
    for name, weight in lora(whole).items():
        assert torch.equal(weight, lora(resumed)[name]), name


def test_a_checkpoint_of_another_run_is_refused(tmp_path, tiny_pair, examples):
    trained(tmp_path, tiny_pair, examples)
    assert not (tmp_path / f"{CHECKPOINT}.new").exists()
    with pytest.raises(SafeDraftError, match="run with other settings"):
        trained(tmp_path, tiny_pair, examples, identity=(("settings", "new"),), resume=True)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path, tiny_pair, examples):
    model = add_lora(bare(tiny_pair[1]), CONFIG)
    with torch.no_grad():
        model.get_output_embeddings().weight[0] = math.nan
    with pytest.raises(SafeDraftError, match="is not finite"):
        train(model, examples.epoch, CONFIG, tmp_path, identity={})
    assert not (tmp_path / CHECKPOINT).exists()


def test_the_learning_rate_rises_and_falls_in_each_stage():
    config = TrainingConfig(
        steps=100, distil_steps=50, learning_rate=1.0, distil_learning_rate=0.5, warmup=0.1
    )
    rates = [compute_learning_rate(step, config) for step in range(150)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[10] == pytest.approx(1.0) == max(rates)
    assert rates[99] < 0.01
    assert max(rates[100:]) == pytest.approx(0.5)
    assert rates[149] < 0.01
    assert rates[10:100] == sorted(rates[10:100], reverse=True)


def test_what_the_teacher_kept_gives_the_divergence(tiny_pair, examples):
    target, draft = (bare(folder).eval() for folder in tiny_pair)
    answers = examples.answers
    teacher = compute_teacher(target, answers, vocabulary=258, count=200, tokens_per_pass=100)
    some = [4, 1]
    batch = [answers[at] for at in some]
    kept = teacher.divergence(compute_label_logits(draft, batch), some)
    logs = (compute_label_logits(model, batch).log_softmax(-1) for model in (target, draft))
    exact = torch.nn.functional.kl_div(*reversed([*logs]), reduction="none", log_target=True)
    torch.testing.assert_close(kept, exact.sum(-1), rtol=0.1, atol=0.02)
    assert (kept > -1e-5).all()
    same = teacher.divergence(compute_label_logits(target, batch), some)
    torch.testing.assert_close(same, torch.zeros_like(same), rtol=0, atol=1e-3)


@pytest.mark.slow
def test_distillation_lowers_the_divergence_and_keeps_the_refusals(tmp_path, tiny_pair, examples):
    target = bare(tiny_pair[0]).eval()
    teacher = compute_teacher(
        target, examples.answers, vocabulary=258, count=64, tokens_per_pass=200
    )
    settings = {"steps": 20, "distil_steps": 40, "distil_learning_rate": 2e-2}
    trained(tmp_path, tiny_pair, examples, CONFIG.model_copy(update=settings), teacher=teacher)
    learned, distilled = (
        read_losses(tmp_path / LOSSES)[part] for part in (slice(20), slice(20, 60))
    )
    assert mean_of_last(distilled, "answer") < 0.5 * mean_of_last(distilled[:5], "answer")
    assert mean_of_last(distilled, "refusal") < mean_of_last(learned, "refusal")


def test_dense_labels_have_a_weight_of_their_own(tmp_path, tiny_pair, examples):
    example = Example([1, 2, 3], [4, 5], [LabelKind.DENSE, LabelKind.REFUSAL])
    config = CONFIG.model_copy(update={"dense_weight": 0.5, "steps": 1})
    model = add_lora(bare(tiny_pair[1]), config)
    train(model, lambda number: [example], config, tmp_path, identity={})
    line = read_losses(tmp_path / LOSSES)[0]
    assert line["loss"] == pytest.approx((0.5 * line["dense"] + line["refusal"]) / 1.5, abs=1e-4)
