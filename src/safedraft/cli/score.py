"""``safedraft score``: judge finished logs again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from safedraft.core.extras import require_extra


def score(
    logs: Annotated[
        list[Path], typer.Argument(help="Finished logs of safedraft eval, or folders of them.")
    ],
    judge: Annotated[
        list[str],
        typer.Option(
            metavar="NAME[:ARG=VALUE,…]",
            help="phrases, endpoint, strongreject, guard or classifier; may be given again.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the judged logs. Default: the logs are replaced."),
    ] = None,
) -> None:
    """Judge finished logs again, without generating replies.

    The scores of the given judges replace the old ones; prompts and replies are unchanged.

    [dim]safedraft score safedraft-logs --judge phrases
    --judge endpoint:url=http://localhost:8000/v1,model=NAME[/]
    """
    from rich.console import Console

    require_extra("safedraft score", "eval", "inspect_ai")
    from safedraft.evaluation.judges.again import judge_again
    from safedraft.evaluation.logs import find_logs
    from safedraft.evaluation.tasks import find_judges

    files = find_logs(logs)
    judges = dict(zip(judge, find_judges(judge), strict=True))
    if output:
        output.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, soft_wrap=True)
    for file in files:
        judged = judge_again(file, judges, output)
        console.print(f"{file}{'' if judged else ': has right answers, and needs no judge'}")
