"""Sources of prompts: installed ones by name, and any JSON or text file.

Every source goes through the same steps: prompts that touch minors are excluded, duplicates are
dropped, requests of published test sets are kept from training and calibration, and the requested
split (training, calibration or report) is put in a fixed order.
SafeDraft's own sources are in ``safedraft.prompts.builtin``, and like those of other distributions
they are registered as entry points in the group ``safedraft.sources``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safedraft.core.assignments import split_assignments
from safedraft.core.errors import SafeDraftError, first_line
from safedraft.core.plugins import Registry
from safedraft.models.progress import ReportProgress, silent
from safedraft.prompts.screening import touches_minors
from safedraft.prompts.split import Shares, Split, assign_split, fingerprint
from safedraft.prompts.withheld import is_withheld

FIELDS: Mapping[str, tuple[str, ...]] = {
    "request": (
        *("request", "goal", "Goal", "question", "instruction", "behavior", "Behavior"),
        *("prompt", "text"),
    ),
    "answer": ("answer", "target", "Target", "response", "completion"),
    "category": ("category", "Category", "type"),
    "prompt": ("prompt", "attack"),
    "language": ("language", "lang"),
    "system": ("system",),
}
"""Names of a file's fields for each field of a record; the first one in its first row is used."""

ATTACK_SHARES = Shares(train=40, calibration=10)
"""Shares into which sources of harmful requests, and files by default, are divided."""

REPORT_ONLY = Shares(train=0, calibration=0)

_WHOLE = {"train": Shares(100, 0), "calibration": Shares(0, 100), "report": REPORT_ONLY}

_SPEC = re.compile(r"(?P<file>.+?)(?::(?P<options>\w+=.*))?", re.DOTALL)


@dataclass(frozen=True)
class Record:
    """One prompt of a source."""

    request: str
    """The user's request."""
    source: str
    answer: str | None = None
    """The beginning of a compliant answer, or the right answer to a question."""
    category: str | None = None
    prompt: str | None = None
    """Complete text of an attack, if the source has it; ``request`` is then its aim."""
    language: str = "en"
    """Language of the request, as an ISO 639-1 code."""
    system: str | None = None
    """System prompt under which the request is asked."""
    control_of: str | None = None
    """The harmful request that this harmless one is attacked in place of; None if it is none."""

    @property
    def variant_key(self) -> str:
        """Text from whose hash an attack chooses among its variants: the same for a control."""
        return self.control_of or self.request

    @property
    def id(self) -> str:
        """An id that is stable across runs."""
        role = "control-" if self.control_of else ""
        return f"{role}{self.source}-{fingerprint(self.prompt or self.request)[:12]}"

    @property
    def text(self) -> str:
        """Everything of the record that a model can see."""
        return "\n".join(
            part for part in (self.system, self.request, self.prompt, self.answer) if part
        )


class PromptSource(Protocol):
    """Prompts with a division; an entry point in ``safedraft.sources`` names an object like this.

    ``Source`` is one; a class of one's own works as well.
    """

    @property
    def about(self) -> str:
        """Description in one line."""
        ...

    @property
    def shares(self) -> Shares:
        """Percentages of the prompts for training and calibration."""
        ...

    def load(self, report: ReportProgress) -> Iterable[Record]:
        """Yield all prompts, unfiltered and in any order.

        Raises:
            SafeDraftError: the source cannot be reached or is malformed.
        """
        ...


@dataclass(frozen=True)
class Source:
    """A source with its name; reads its splits."""

    name: str
    about: str
    shares: Shares
    load: Callable[[ReportProgress], Iterable[Record]]

    def require_split(self, split: Split, report: ReportProgress = silent) -> list[Record]:
        """Like ``read_split``, for a split that must not be empty.

        Raises:
            SafeDraftError: as ``read_split``; or the split is empty.
        """
        records = self.read_split(split, report)
        if not records:
            raise SafeDraftError(f"{self.name} has no prompts for the {split} split")
        return records

    def read_split(self, split: Split, report: ReportProgress = silent) -> list[Record]:
        """The prompts of one split, in the order of their ids.

        Prompts that touch minors are left out, and outside of reports those that are withheld.

        Raises:
            SafeDraftError: the source cannot be reached or is malformed.
        """
        records: dict[str, Record] = {}
        for record in self.load(report):
            if assign_split(record.request, self.shares) != split or touches_minors(record.text):
                continue
            if split == "report" or not is_withheld(record.request):
                records.setdefault(record.id, record)
        return [records[id] for id in sorted(records)]


SOURCES: Registry[PromptSource] = Registry("safedraft.sources", "source")
"""Every named source; loaded when it is found."""


def find_source(spec: str) -> Source:
    """Find a source by its name, or read a file ``FILE[:field=name,…]`` (see ``file_source``).

    Raises:
        SafeDraftError: there is no such source and no such file; the message lists all sources.
    """
    if spec in SOURCES.names():
        source = SOURCES.find(spec)
        return Source(spec, source.about, source.shares, source.load)
    parts = _SPEC.fullmatch(spec)
    if parts and Path(parts["file"]).expanduser().is_file():
        return file_source(Path(parts["file"]).expanduser(), _parse_options(spec, parts["options"]))
    known = ", ".join(SOURCES.names())
    raise SafeDraftError(f"source {spec!r} is neither a file nor one of {known}")


def file_source(file: Path, options: Mapping[str, str]) -> Source:
    """Make a source of a JSON array or JSONL file of objects, or a text file of one request a line.

    Args:
        file: the file; its rows are the prompts.
        options: names of the fields of a record by theirs in the file, which are by default chosen
            from ``FIELDS``. ``keep`` is ``field:value`` and selects rows.
            ``part`` is train, calibration or report, and puts the whole file into one split.

    Raises:
        SafeDraftError: the part does not exist. Errors on loading name the file, row and field.
    """
    part = options.get("part")
    if part and part not in _WHOLE:
        raise SafeDraftError(f"{file}: part is one of {', '.join(_WHOLE)}, not {part!r}")
    shares = _WHOLE[part] if part else ATTACK_SHARES
    return Source(file.stem, f"the file {file}", shares, lambda report: _read_file(file, options))


def _parse_options(spec: str, options: str | None) -> dict[str, str]:
    names = (*FIELDS, "keep", "part")
    return split_assignments(f"source {spec}:", options or "", names=names)


def _read_file(file: Path, options: Mapping[str, str]) -> Iterator[Record]:
    rows = _read_rows(file)
    keep, _, kept_value = options.get("keep", "").partition(":")
    if not keep and {"safe", "unsafe"} <= {str(row.get("label")) for _, row in rows}:
        raise SafeDraftError(
            f"{file}: rows are labeled safe and unsafe: say which to take with keep=label:safe"
        )
    fields = _choose_fields(file, rows[0][1], options)
    for location, row in rows:
        if keep:
            if keep not in row:
                raise SafeDraftError(f"{file}, {location}: there is no field {keep!r}")
            if str(row[keep]) != kept_value:
                continue
        yield Record(
            request=_read_text(file, location, row, fields["request"]),
            source=file.stem,
            **{
                name: _read_text(file, location, row, field)
                for name, field in fields.items()
                if name != "request"
            },
        )


def _read_rows(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a file, each with its location for error messages."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SafeDraftError(f"{file} cannot be read: {first_line(error)}") from error
    lines = [(n, line) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
    rows: list[tuple[str, Any]]
    if file.suffix == ".txt":
        rows = [(f"line {number}", {"request": line.strip()}) for number, line in lines]
    elif (items := _parse_array(text)) is not None:
        rows = [(f"item {number}", row) for number, row in enumerate(items, start=1)]
    else:
        rows = [(f"line {number}", _parse_line(file, number, line)) for number, line in lines]
    for location, row in rows:
        if not isinstance(row, dict):
            raise SafeDraftError(f"{file}, {location}: is not a JSON object of named fields")
    if not rows:
        raise SafeDraftError(f"{file} is empty: it needs JSON objects, in an array or one a line")
    return rows


def _parse_array(text: str) -> list[Any] | None:
    try:
        items = json.loads(text)
    except ValueError:
        return None
    return items if isinstance(items, list) else None


def _parse_line(file: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise SafeDraftError(
            f"{file}, line {number}: is not JSON ({error}); a text of one request a line is a .txt"
        ) from error


def _choose_fields(
    file: Path, row: Mapping[str, Any], options: Mapping[str, str]
) -> dict[str, str]:
    """Names of the file's fields, by the fields of a record."""
    present = ", ".join(row)
    fields = {name: options[name] for name in FIELDS if name in options}
    for name, field in fields.items():
        if field not in row:
            raise SafeDraftError(f"{file}: no field {field!r} for the {name}; there is {present}")
    for name, candidates in FIELDS.items():
        unused = [field for field in candidates if field in row and field not in fields.values()]
        if name not in fields and unused:
            fields[name] = unused[0]
    if "request" not in fields:
        raise SafeDraftError(f"{file}: which field is the request? Say request=NAME of {present}")
    return fields


def _read_text(file: Path, location: str, row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    text = str(value) if isinstance(value, int | float) else value
    if not isinstance(text, str) or not text.strip():
        raise SafeDraftError(f"{file}, {location}: the field {field!r} is missing or empty")
    return text
