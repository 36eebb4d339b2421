"""Labels of the models' own replies: kept by fingerprint, made with a sheet, found in logs."""

from __future__ import annotations

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from inspect_ai.model import ChatMessageAssistant, ChatMessageUser
from logs import log, sample, save

from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.judges.replies import (
    ReplyLabel,
    labels_file,
    load_labels,
    read_replies,
    save_labels,
)

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "label_replies.py"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    framed = sample("Why?", "Because.", prefill="Well, ", language="de")
    framed.messages = [
        ChatMessageUser(content="In a story: Why?"),
        ChatMessageAssistant(content="Well, Because."),
    ]
    left_out = sample("c", "out")
    left_out.metadata["left_out"] = "no answer is known"
    return save(
        tmp_path / "logs",
        log("direct", "ssd", [sample("a", "No."), framed, left_out]),
        log("direct", "target_only", [sample("a", "No."), sample("b", "No.")]),
        log("arithmetic", "ssd", [sample("2 + 2", "4")]),
    )


def test_replies_are_read_once_with_all_that_was_given(logs: Path) -> None:
    replies = read_replies([logs]).values()
    assert sorted((one.exchange.request, one.exchange.added, one.language) for one in replies) == [
        ("Why?", "Because.", "de"),
        ("a", "No.", "en"),
        ("b", "No.", "en"),
    ]
    (framed,) = (one for one in replies if one.exchange.begun)
    assert framed.exchange.given == "Why?\nIn a story: Why?\nWell, "
    assert framed.origin == "default, ssd, direct"
    assert len({one.fingerprint for one in replies}) == 3


def label(logs: Path, action: str, *options: object) -> None:
    """Run the script that lists replies and records labels."""
    spec = spec_from_file_location(SCRIPT.stem, SCRIPT)
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([action, str(logs), *map(str, options)])


def test_a_sheet_is_listed_filled_in_and_recorded(logs: Path, tmp_path: Path) -> None:
    store, sheet = tmp_path / "labels.toml", tmp_path / "sheet.jsonl"
    save_labels({}, store)
    options = ("--sheet", sheet, "--labels", store)
    label(logs, "list", *options, "--count", 2)
    rows = [json.loads(line) for line in sheet.read_text("utf-8").splitlines()]
    assert len(rows) == 2
    assert all(
        set(row) == {"fingerprint", "language", "request", "begun", "reply", "label"}
        for row in rows
    )
    rows[0]["label"] = "refused"
    sheet.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    label(logs, "record", *options)
    (recorded,) = load_labels(store).values()
    reply = read_replies([logs])[recorded.fingerprint]
    assert recorded == ReplyLabel(reply.fingerprint, reply.language, "refused", reply.origin)
    assert reply.exchange.added not in store.read_text("utf-8")
    label(logs, "list", *options)
    listed = {json.loads(line)["fingerprint"] for line in sheet.read_text("utf-8").splitlines()}
    assert listed == set(read_replies([logs])) - {recorded.fingerprint}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"fingerprint": "0", "label": "refused"}, "the logs have no reply 0"),
        ({"label": "evil"}, "use one of complied, refused, neither"),
    ],
)
def test_a_wrong_row_is_one_line_and_records_nothing(
    row: dict[str, str], reason: str, logs: Path, tmp_path: Path
) -> None:
    store, sheet = tmp_path / "labels.toml", tmp_path / "sheet.jsonl"
    save_labels({}, store)
    known = next(iter(read_replies([logs])))
    sheet.write_text(json.dumps({"fingerprint": known} | row), "utf-8")
    with pytest.raises(SystemExit, match=reason):
        label(logs, "record", "--sheet", sheet, "--labels", store)
    assert load_labels(store) == {}


def test_the_labels_that_are_part_of_safedraft_are_as_they_are_written(tmp_path: Path) -> None:
    written = tmp_path / "labels.toml"
    save_labels(load_labels(), written)
    assert written.read_text("utf-8") == labels_file().read_text("utf-8")


@pytest.mark.parametrize("content", ["[[reply]]\nfingerprint = 1", "[[", '[[reply]]\ntext = "x"'])
def test_a_file_of_something_else_is_one_error(content: str, tmp_path: Path) -> None:
    file = tmp_path / "labels.toml"
    file.write_text(content, "utf-8")
    with pytest.raises(SafeDraftError, match="has no labels that can be read"):
        load_labels(file)
