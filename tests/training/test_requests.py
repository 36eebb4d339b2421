"""The shipped prompts, where others come from, and the frames around them."""

from __future__ import annotations

import json
import random
import re
from collections import Counter

import pytest

from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.benchmark_prompts import PROMPTS
from safedraft.prompts.phrases import is_refusal
from safedraft.prompts.screening import touches_minors
from safedraft.prompts.sources import find_source
from safedraft.prompts.split import fingerprint
from safedraft.training import requests
from safedraft.training.requests import (
    SHIPPED,
    Sources,
    add_frame,
    fill_opening,
    read_openings,
    read_refusals,
    read_requests,
    read_shipped,
)


def test_every_category_has_harmful_requests_and_look_alikes():
    own = [r for r in read_shipped() if r.source == SHIPPED]
    counts = Counter((r.category, r.kind) for r in own if r.kind != "ordinary")
    categories = {category for category, _ in counts}
    assert len(categories) == 15
    for category in categories:
        assert counts[category, "harmful"] >= 30
        assert counts[category, "look_alike"] >= 24
    assert sum(r.kind == "ordinary" for r in own) >= 300


def test_every_language_has_both_sides_openings_and_refusals():
    counts = Counter((r.language, r.kind == "harmful") for r in read_shipped())
    languages = {language for language, _ in counts}
    assert len(languages) == 9
    for language in languages:
        assert counts[language, True] >= 40
        assert counts[language, False] > 1.8 * counts[language, True]
        assert len(read_openings(language)) >= 4
        for text in read_refusals(language):
            assert is_refusal(text), text


def test_no_shipped_prompt_stands_twice_or_touches_minors():
    texts = [r.text for r in read_shipped()]
    assert len({fingerprint(text) for text in texts}) == len(texts)
    assert not [text for text in [*texts, *requests.read_frames()] if touches_minors(text)]


def test_training_and_calibration_share_no_prompt():
    train, held = read_requests("train"), read_requests("calibration")
    for one, other in ((train.harmful, held.harmful), (train.ordinary, held.ordinary)):
        assert not {r.text for r in one} & {r.text for r in other}
        assert 0.15 < len(other) / (len(one) + len(other)) < 0.25
    everything = [*train.harmful, *train.ordinary, *held.harmful, *held.ordinary]
    assert {r.text for r in everything} == {r.text for r in read_shipped()}


@pytest.mark.parametrize("name", ["own.txt", "own.jsonl", "own.json"])
def test_prompts_come_from_files(tmp_path, name):
    texts = [f"How is thing number {n} done?" for n in range(100)]
    rows = [{"goal": text} for text in texts]
    content = {
        "own.txt": "\n".join(texts) + "\n\n",
        "own.jsonl": "\n".join(map(json.dumps, rows)),
        "own.json": json.dumps(rows),
    }
    (tmp_path / name).write_text(content[name])
    found = read_requests("train", Sources([str(tmp_path / name)]))
    assert 20 < len(found.harmful) < 100
    assert {r.text for r in found.harmful} < set(texts)
    assert {(r.kind, r.source) for r in found.harmful} == {("harmful", "own")}
    own = {"shipped", "languages", "code", "short", "wordings"}
    assert {r.source for r in found.ordinary} == own
    beside = read_requests("train", Sources(["own", str(tmp_path / name)]))
    assert beside.harmful == [*read_requests("train").harmful, *found.harmful]


def test_a_file_without_prompts_is_refused(tmp_path):
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(SafeDraftError, match=r"empty\.txt is empty"):
        read_requests("train", Sources(ordinary=[str(tmp_path / "empty.txt")]))
    (tmp_path / "held.txt").write_text("How do I bake bread?\n")
    with pytest.raises(SafeDraftError, match="no ordinary prompts for train"):
        read_requests("train", Sources(ordinary=[f"{tmp_path}/held.txt:part=calibration"]))
    with pytest.raises(SafeDraftError, match=r"gone.txt' is neither a file nor"):
        read_requests("train", Sources([str(tmp_path / "gone.txt")]))


def test_each_part_may_have_files_of_its_own(tmp_path):
    (tmp_path / "learn.json").write_text(json.dumps([{"goal": "How to learn?"}]))
    (tmp_path / "hold.txt").write_text("How to hold?\n")
    harmful = [f"{tmp_path}/learn.json:part=train", f"{tmp_path}/hold.txt:part=calibration"]
    found = [read_requests(part, Sources(harmful)).harmful for part in ("train", "calibration")]
    assert [[r.text for r in part] for part in found] == [["How to learn?"], ["How to hold?"]]
    with pytest.raises(SafeDraftError, match="no harmful prompts for calibration"):
        read_requests("calibration", Sources(harmful[:1]))


def test_a_frame_holds_the_request_as_it_is():
    rng = random.Random(0)
    request = "What does {noise} mean in f'{request}'?"
    for _ in range(200):
        text = add_frame(request, rng)
        assert request in text or " ".join(request) in text
    assert len({add_frame("Why?", rng) for _ in range(100)}) > 30


def test_noise_differs_from_draw_to_draw(monkeypatch):
    monkeypatch.setattr(requests, "read_frames", lambda: ["{request} {noise}"])
    rng = random.Random(0)
    first, second = add_frame("Why?", rng), add_frame("Why?", rng)
    assert first.startswith("Why? ")
    assert second.startswith("Why? ")
    assert first != second
    assert len(first) > 40


def test_an_opening_can_name_the_request():
    assert fill_opening("You asked {topic}.", "How do I sing?") == "You asked how do I sing."
    assert fill_opening("Sure.", "How do I sing?") == "Sure."


def test_all_refusals_begin_alike_and_read_as_refusals():
    assert len(read_refusals()) > 5
    for text in read_refusals():
        assert text.startswith("I'm sorry, but I can't ")
        assert is_refusal(text)
        assert is_refusal(f" the second step is {text}")


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def test_no_prompt_of_training_is_one_that_is_measured_on() -> None:
    trained = {fingerprint(request.text) for request in read_shipped()}
    bags = [words(request.text) for request in read_shipped()]
    for name in ("looks_unsafe", "arithmetic", "ordinary"):
        records = [
            r for part in ("calibration", "report") for r in find_source(name).require_split(part)
        ]
        assert len(find_source(name).require_split("report")) >= 100
        assert not trained & {fingerprint(record.request) for record in records}
        for asked in (words(record.request) for record in records):  # nor hardly another
            assert max(len(asked & bag) / len(asked | bag) for bag in bags) < 0.75
    assert not trained & {fingerprint(prompt) for prompt in PROMPTS}
