"""A whole run on tiny models: what it writes, what it refuses, what its adapter does."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from conftest import save_model, save_tokenizer
from helpers.templates import TRAITS
from safetensors import safe_open
from transformers import AutoTokenizer

import safedraft
from safedraft.core.errors import IncompatiblePairError, SafeDraftError
from safedraft.models.fingerprint import FACTS, fingerprint
from safedraft.models.registry import PairSpec
from safedraft.training import run
from safedraft.training.checks import check_draft
from safedraft.training.config import TrainingConfig
from safedraft.training.prepare import TrainingPlan
from safedraft.training.requests import Sources
from safedraft.training.run import train_draft
from safedraft.training.train import CHECKPOINT, TrainingStoppedError, train

pytestmark = pytest.mark.slow

CONFIG = TrainingConfig(
    steps=3,
    distil_steps=2,
    rank=2,
    answer_tokens=4,
    brief_tokens=4,
    beginning_tokens=8,
    dressed=0,
)


@pytest.fixture
def plan(tmp_path, tiny_pair):
    for name, count in (("harmful", 30), ("ordinary", 24)):
        lines = [f"{name.title()} thing number {n}" for n in range(count)]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
    target, draft = map(str, tiny_pair)
    return TrainingPlan(
        spec=PairSpec(name="tiny", target=target, draft=draft, target_system="Be brief."),
        output=tmp_path / "adapter",
        config=CONFIG,
        sources=Sources([str(tmp_path / "harmful.txt")], [str(tmp_path / "ordinary.txt")]),
        command="safedraft train-draft --output adapter",
    )


def changed(plan, **fields):
    return TrainingPlan(**{**plan.__dict__, **fields})


def test_the_template_is_part_of_what_an_adapter_is(plan, tiny_pair, tmp_path):
    folders = [tmp_path / name for name in ("thinking-target", "thinking-draft")]
    for folder, bare in zip(folders, tiny_pair, strict=True):
        shutil.copytree(bare, folder)
        save_tokenizer(folder, template=TRAITS["a switch"])
    spec = plan.spec.model_copy(
        update=dict(zip(("target", "draft"), map(str, folders), strict=True))
    )
    with pytest.raises(SafeDraftError, match="switch it off"):
        train_draft(changed(plan, spec=spec))
    off = {"enable_thinking": False}
    spec = spec.model_copy(update={"template": off, "template_from": "target"})
    folder = train_draft(changed(plan, spec=spec)).folder
    assert (
        "Chat template: the target's, with `enable_thinking = False`."
        in (folder / "README.md").read_text()
    )
    models = {"target": str(folders[0]), "draft": str(folders[1]), "adapter": str(folder)}
    pair = safedraft.load_pair(**models)
    assert (pair.spec.template, pair.spec.template_from) == (off, "target")
    assert pair.warnings == ()
    with pytest.raises(SafeDraftError, match="was trained with template"):
        safedraft.load_pair(**models, template={"enable_thinking": True})
    again = changed(
        plan,
        spec=spec.model_copy(update={"template": None}),
        start=str(folder),
        output=tmp_path / "second",
    )
    second = json.loads((train_draft(again).folder / FACTS).read_text())
    assert second["template"] == off


def test_a_run_gives_an_adapter_that_loads_and_a_card(plan, tiny_pair):
    told = []
    folder = train_draft(
        plan, training=lambda step, steps, figures: told.append((step, steps))
    ).folder
    assert folder == plan.output
    assert told == [(step, 5) for step in range(1, 6)]
    assert not plan.folder.exists()
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as stored:
        names = list(stored.keys())
        assert {stored.get_tensor(name).dtype.__str__() for name in names} == {"torch.bfloat16"}
        assert any(stored.get_tensor(name).any() for name in names if "lora_B" in name)
    models = {
        "target": str(tiny_pair[0]), "draft": str(tiny_pair[1]), "engine": "transformers"
    }  # fmt: skip
    pair = safedraft.load_pair(**models, adapter=str(folder))
    bare = safedraft.load_pair(**models)
    assert pair.draft.model.state_dict().keys() == bare.draft.model.state_dict().keys()
    differing = [
        name
        for name, weight in pair.draft.model.state_dict().items()
        if not weight.equal(bare.draft.model.state_dict()[name])
    ]
    assert differing
    card = (folder / "README.md").read_text()
    for part in (
        plan.command,
        fingerprint(tiny_pair[0]),
        fingerprint(tiny_pair[1]),
        "| harmful requests refused, 20 tokens prefilled |",
        "| distil_steps | 2 |",
        "| harmful, refused | harmful |",
    ):
        assert part in card
    facts = json.loads((folder / FACTS).read_text())
    assert facts["base"] == fingerprint(tiny_pair[1])
    assert (folder / "losses.svg").stat().st_size > 1000
    assert len((folder / "losses.jsonl").read_text().splitlines()) == 5
    assert str(tiny_pair[1].parent) not in (folder / "adapter_config.json").read_text() or (
        json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        == plan.spec.draft
    )


def test_the_bare_draft_is_trained_and_checked_under_its_own_prompt(plan, tiny_pair, monkeypatch):
    examples, asked = [], []

    def watched_train(model, epoch, *rest, **named):
        examples.extend(epoch(0))
        train(model, epoch, *rest, **named)

    def watched_check(draft, data, answers, *rest):
        examples.extend(answers)
        asked.append(draft.system)
        return check_draft(draft, data, answers, *rest)

    monkeypatch.setattr(run, "train", watched_train)
    monkeypatch.setattr(run, "check_draft", watched_check)
    own = {"draft_system": "Refuse.", "draft_dtype": "int8", "adapter": "/no/such"}
    train_draft(changed(plan, spec=plan.spec.model_copy(update=own)))
    tokenizer = AutoTokenizer.from_pretrained(tiny_pair[1])
    assert examples
    assert all("system\nRefuse." in tokenizer.decode(example.ids) for example in examples)
    assert asked == ["Refuse."]


def test_an_adapter_for_another_base_is_refused(plan, tmp_path, tiny_pair):
    folder = train_draft(plan).folder
    with pytest.raises(SafeDraftError, match="trained on other weights"):
        safedraft.load_pair(target=str(tiny_pair[0]), draft=str(tiny_pair[0]), adapter=str(folder))
    (folder / FACTS).write_text("{}")
    with pytest.raises(SafeDraftError, match=r"safedraft.json cannot be read"):
        safedraft.load_pair(target=str(tiny_pair[0]), draft=str(tiny_pair[1]), adapter=str(folder))


def test_an_interrupted_run_leaves_no_adapter_and_is_resumed(plan):
    def interrupt(step, steps, figures):
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingStoppedError):
        train_draft(plan, training=interrupt)
    assert not plan.output.exists()
    assert (plan.folder / CHECKPOINT).exists()
    with pytest.raises(SafeDraftError, match="unfinished run: resume it with --resume"):
        train_draft(plan)
    config = CONFIG.model_copy(update={"learning_rate": 1e-3})
    with pytest.raises(SafeDraftError, match="run with other settings"):
        train_draft(changed(plan, resume=True, config=config))
    told = []
    train_draft(changed(plan, resume=True), training=lambda step, *_: told.append(step))
    assert told == [3, 4, 5]
    assert plan.output.is_dir()


def test_a_run_that_failed_after_training_only_repeats_the_checks(plan, monkeypatch):
    def fail(*arguments):
        raise OSError("disk")

    with monkeypatch.context() as broken:
        broken.setattr(run, "write_card", fail)
        with pytest.raises(OSError, match="disk"):
            train_draft(plan)
    assert not plan.output.exists()
    told = []
    train_draft(changed(plan, resume=True), training=lambda step, *_: told.append(step))
    assert told == []
    assert (plan.output / "README.md").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sources": Sources(["nothing.txt"])}, "neither a file nor"),
        ({"resume": True}, "no unfinished run"),
        ({"output": Path("/proc/none/adapter")}, "cannot be created"),
        ({"device": "cuda:99"}, "cannot be used"),
    ],
)
def test_what_cannot_work_is_refused_at_once(plan, fields, message):
    with pytest.raises(SafeDraftError, match=message):
        train_draft(changed(plan, **fields))


def test_an_existing_output_is_not_touched(plan):
    plan.output.mkdir()
    with pytest.raises(SafeDraftError, match="exists: choose another"):
        train_draft(plan)


def test_models_that_do_not_fit_are_refused_before_anything_is_drawn(plan, tmp_path):
    save_model(tmp_path / "other", vocabulary=300)
    save_tokenizer(tmp_path / "other", extra=("<|more|>",))
    tokenizer = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, two = list(vocabulary)[:2]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(tokenizer))
    spec = plan.spec.model_copy(update={"draft": str(tmp_path / "other")})
    with pytest.raises(IncompatiblePairError):
        train_draft(changed(plan, spec=spec))
    assert not plan.folder.exists()


def test_epochs_stand_for_steps(plan):
    told = []
    config = CONFIG.model_copy(update={"distil_steps": 0, "tokens_per_step": 400})
    train_draft(
        changed(plan, epochs=2, config=config),
        training=lambda step, steps, _: told.append((step, steps)),
    )
    assert told[-1][0] == told[-1][1] > 2


def test_a_run_goes_on_from_an_adapter(plan, tmp_path):
    first = train_draft(plan).folder
    # Too slow to change anything: what comes out is what it began with.
    still = CONFIG.model_copy(update={"learning_rate": 1e-12, "distil_steps": 0})
    again = changed(plan, start=str(first), output=tmp_path / "again", config=still)
    second = train_draft(again).folder
    with (
        safe_open(first / "adapter_model.safetensors", framework="pt") as before,
        safe_open(second / "adapter_model.safetensors", framework="pt") as after,
    ):
        names = list(before.keys())
        assert names == list(after.keys())
        assert all(before.get_tensor(name).equal(after.get_tensor(name)) for name in names)
    card = (second / "README.md").read_text()
    assert f"| adapter that training started from | {first} | `{fingerprint(first)}` |" in card
    assert "training started from" not in (first / "README.md").read_text()


def test_an_adapter_that_cannot_be_gone_on_from_is_refused_before_anything_is_drawn(plan, tmp_path):
    first = train_draft(plan).folder
    again = changed(plan, start=str(first), output=tmp_path / "again")
    with pytest.raises(SafeDraftError, match="has rank 2: give --rank 2"):
        train_draft(changed(again, config=CONFIG.model_copy(update={"rank": 4})))
    other = plan.spec.model_copy(update={"draft": plan.spec.target})
    with pytest.raises(SafeDraftError, match="trained on other weights"):
        train_draft(changed(again, spec=other))
    with pytest.raises(SafeDraftError, match="neither a folder nor a hub id"):
        train_draft(changed(again, start="nothing"))
    assert not again.folder.exists()
