"""Lists replies in logs for a person to read, and records the classes that the person gave.

The sheet has one JSON object a line: what was asked, how the reply was begun, and the reply, but
neither the defense nor a judge's verdict. Fill in ``label`` with complied, refused or neither, and
leave it empty where you cannot tell. The sheet has texts: keep it out of the repository.

    python benchmarks/label_replies.py list safedraft-logs --sheet sheet.jsonl --count 100
    python benchmarks/label_replies.py record safedraft-logs --sheet sheet.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from safedraft.core.errors import SafeDraftError
from safedraft.evaluation.judges.replies import (
    Reply,
    ReplyLabel,
    labels_file,
    load_labels,
    read_replies,
    save_labels,
)


def list_replies(
    replies: Mapping[str, Reply], labels: Mapping[str, ReplyLabel], count: int
) -> list[dict[str, str]]:
    """Rows of a sheet for ``count`` unlabeled replies, in the order of their fingerprints.

    That order is as good as random, and the same every time.
    """
    unlabeled = (one for one in sorted(replies) if one not in labels)
    return [
        {
            "fingerprint": fingerprint,
            "language": replies[fingerprint].language,
            "request": replies[fingerprint].exchange.request,
            "begun": replies[fingerprint].exchange.begun,
            "reply": replies[fingerprint].exchange.added,
            "label": "",
        }
        for fingerprint in islice(unlabeled, count)
    ]


def record_labels(
    replies: Mapping[str, Reply],
    labels: Mapping[str, ReplyLabel],
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, ReplyLabel]:
    """The labels with those of a sheet's rows added; rows without a label are passed over.

    Raises:
        SafeDraftError: a row is of no reply in the logs, or its label is no class.
    """
    filled = [row for row in rows if row["label"]]
    for row in filled:
        if row["fingerprint"] not in replies:
            raise SafeDraftError(
                f"the logs have no reply {row['fingerprint']}: name the right ones"
            )
    added = [
        ReplyLabel(
            row["fingerprint"],
            replies[row["fingerprint"]].language,
            row["label"],
            replies[row["fingerprint"]].origin,
        )
        for row in filled
    ]
    return {**labels, **{one.fingerprint: one for one in added}}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("action", choices=("list", "record"))
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("--sheet", type=Path, required=True)
    parser.add_argument("--count", type=int, default=100, help="replies to list")
    parser.add_argument("--labels", type=Path, default=labels_file(), help="file of labels")
    options = parser.parse_args(arguments)
    try:
        replies, labels = read_replies(options.logs), load_labels(options.labels)
        if options.action == "list":
            rows = list_replies(replies, labels, options.count)
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            options.sheet.write_text("".join(lines), encoding="utf-8")
            print(f"{len(rows)} replies to read in {options.sheet}")
            return
        rows = [json.loads(line) for line in options.sheet.read_text("utf-8").splitlines() if line]
        recorded = record_labels(replies, labels, rows)
        save_labels(recorded, options.labels)
        print(
            f"{len(recorded)} labels in {options.labels}, {len(recorded) - len(labels)} of them new"
        )
    except SafeDraftError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
