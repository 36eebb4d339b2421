"""In which language a defense replies to harmless requests, by the language of the request.

Reads logs of ``safedraft eval`` on suites of several languages, such as ``ordinary_languages`` and
``languages``, whose controls are harmless. A language in which the target alone does not reply, or
whose replies are garbled, says nothing about a defense.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from safedraft.evaluation.logs import read_logs
from safedraft.evaluation.records import Row
from safedraft.evaluation.usefulness.language import identify_language


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("log_dir", type=Path, nargs="?", default=Path("results") / "logs")
    parser.add_argument("--defense", default="target_only")
    given = parser.parse_args()
    replies: dict[str, list[Row]] = defaultdict(list)
    for run in read_logs([given.log_dir]).runs:
        if run.name == given.defense and len({row.language for row in run.rows}) > 1:
            for row in run.rows:
                if row.control or run.kind != "attack":
                    replies[row.language].append(row)
    print("| language | replies | in it | complied | refused | neither |\n" + "| --- " * 6 + "|")
    for language, rows in sorted(replies.items()):
        in_it = sum(identify_language(row.completion) == language for row in rows)
        classes = (
            (row.complied for row in rows),
            (row.refused for row in rows),
            (row.neither for row in rows),
        )
        counts = [len(rows), in_it, *(sum(map(bool, flags)) for flags in classes)]
        print(f"| {language} | {' | '.join(map(str, counts))} |")


if __name__ == "__main__":
    main()
