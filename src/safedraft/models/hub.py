"""Files of a repository on the Hugging Face hub, or in its cache when the hub is out of reach."""

from __future__ import annotations

import io
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Any

from safedraft.core.errors import SafeDraftError, first_line
from safedraft.models.progress import ReportProgress

TIMEOUT = 5.0
"""Seconds to wait for the hub's first answer."""


def snapshot(
    repository: str,
    revision: str | None,
    allow: list[str],
    ignore: list[str],
    report: ReportProgress,
) -> Path:
    """Download the files of a repository that match the patterns to the hub's own cache.

    The hub's own settings HF_HUB_OFFLINE, HF_ENDPOINT and HF_HOME have their usual meaning.

    Returns:
        The folder in the cache that holds the files.

    Raises:
        SafeDraftError: there is no such repository, no access to it, or the hub is out of reach
            and its cache lacks the files.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted: dict[str, Any] = {
        "repo_id": repository,
        "revision": revision,
        "allow_patterns": allow,
        "ignore_patterns": ignore,
    }
    failure: Exception | None = None
    if not constants.HF_HUB_OFFLINE:
        try:
            # The download itself has no timeout for a hub that never answers.
            HfApi().model_info(repository, revision=revision, timeout=TIMEOUT)
            bar = _reporting_bar(f"downloading {repository} from the hub", report)
            return Path(snapshot_download(**wanted, tqdm_class=bar))
        except Exception as error:  # the cache may suffice, whatever is wrong with the hub
            failure = error
    try:
        return Path(snapshot_download(**wanted, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError) as error:
        raise SafeDraftError(f"{repository}: {_explain(failure, revision)}") from (failure or error)


def _explain(failure: Exception | None, revision: str | None) -> str:
    from huggingface_hub import errors

    alternative = "or pass the path of a folder that holds the model"
    match failure:
        case None:
            return f"not in the hub's cache, and HF_HUB_OFFLINE is set: unset it, {alternative}"
        case errors.GatedRepoError():
            return "access must be granted: ask for it on its page, and log in: `hf auth login`"
        case errors.RepositoryNotFoundError():
            return "the hub has no such repository, or it is private: check the name, or log in"
        case errors.RevisionNotFoundError():
            return f"the repository has no revision {revision!r}"
        case errors.HFValidationError():
            return "not a name that a repository can have"
        case OSError(errno=code) if code in (ENOSPC, EDQUOT):
            return "the disk of the hub's cache is full: free some, or set HF_HOME to another disk"
    return (
        f"the hub did not give it ({first_line(failure)}) and its cache lacks files: connect, "
        f"{alternative}"
    )


def _reporting_bar(stage: str, report: ReportProgress) -> type[Any]:
    """Return a class like tqdm that reports its progress instead of drawing it."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "file": io.StringIO(), "disable": False})

        def display(self, *args: Any, **kwargs: Any) -> None:
            if self.unit == "B":  # the others count files
                report(stage, int(self.n), int(self.total or 0))

        def close(self) -> None:
            pass  # tqdm draws once more here, which can be long after the download

    return Bar
