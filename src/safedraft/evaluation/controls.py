"""The requests of a suite; every attack has a control, a harmless request.

The success of an attack can be interpreted only with its effect on harmless requests. A suite of
attacks therefore sends both through the same transformation, in one run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, zip_longest

from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.suites import Suite
from safedraft.models.progress import ReportProgress, silent
from safedraft.prompts.sources import Record, find_source
from safedraft.prompts.split import Split


def read_records(
    suite: Suite,
    source: str | Sequence[str] | None = None,
    control: str | Sequence[str] | None = None,
    split: Split = "report",
    report: ReportProgress = silent,
) -> list[Record]:
    """Read one split of a suite's sources, in a fixed order and without duplicates.

    Returns:
        The requests. In a suite of attacks each is followed by its control, a harmless request in
        the same language, as long as there are any.

    Raises:
        SafeDraftError: a source cannot be used, or lacks the answers that the suite needs, or a
            suite of attacks has no control at all.
    """
    lists = _read_sources(_as_list(source) or [suite.source], split, report)
    requests = _drop_duplicates(chain.from_iterable(lists))
    if suite.kind == "accuracy":
        for record in requests:
            if record.answer is None:
                raise SafeDraftError(
                    f"{record.source}: {suite.name} needs right answers, and the field for the "
                    "answer is missing (answer=NAME)"
                )
    if not suite.controls:
        if control:
            raise SafeDraftError(f"{suite.name} is about no attack: it has no use for controls")
        return requests
    names = _as_list(control) or list(suite.controls)
    harmless = _take_turns(_read_sources(names, split, report))
    return pair_with_controls(requests, _drop_duplicates(harmless))


def _as_list(names: str | Sequence[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())


def _read_sources(names: Sequence[str], split: Split, report: ReportProgress) -> list[list[Record]]:
    """The records of each source."""
    return [find_source(name).require_split(split, report) for name in names]


def _drop_duplicates(records: Iterable[Record]) -> list[Record]:
    return list({record.id: record for record in records}.values())


def _take_turns(lists: Sequence[Sequence[Record]]) -> list[Record]:
    """One record of each list, then the next of each, until all are used."""
    turns = zip_longest(*lists)
    return [record for turn in turns for record in turn if record is not None]


def pair_with_controls(requests: Sequence[Record], harmless: Sequence[Record]) -> list[Record]:
    """Each request, followed by a harmless one in the same language that is its control.

    A control goes through the same attack: it has the request's system prompt, its variant of the
    attack and, where the source has a complete attack, that attack with the request exchanged.

    Raises:
        SafeDraftError: no request has a control.
    """
    waiting: dict[str, Iterator[Record]] = {
        language: iter([record for record in harmless if record.language == language])
        for language in {record.language for record in harmless}
    }
    records: list[Record] = []
    for request in requests:
        records.append(request)
        if control := next(waiting.get(request.language, iter(())), None):
            records.append(_make_control(control, request))
    if len(records) == len(requests):
        languages = ", ".join(sorted({request.language for request in requests}))
        raise SafeDraftError(
            f"there is no harmless request to compare with (languages: {languages}): give some "
            "with --control"
        )
    return records


def _make_control(harmless: Record, request: Record) -> Record:
    prompt = request.prompt and request.prompt.replace(request.request, harmless.request)
    return replace(
        harmless,
        control_of=request.request,
        prompt=prompt,
        system=request.system or harmless.system,
    )


def count_first(controls: Sequence[bool], limit: int) -> int:
    """Number of leading records that are the first ``limit`` requests and their controls.

    Args:
        controls: whether each record is a control, in the order of ``read_records``.
        limit: number of requests.
    """
    starts = [at for at, is_control in enumerate(controls) if not is_control]
    return starts[limit] if limit < len(starts) else len(controls)


def first_requests(records: Sequence[Record], limit: int) -> list[Record]:
    """The first ``limit`` requests of ``read_records``, each with its control."""
    controls = [record.control_of is not None for record in records]
    return list(records[: count_first(controls, limit)])
