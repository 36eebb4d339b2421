"""Files of a repository on the Hugging Face hub, or from its cache when the hub is out of reach."""

from __future__ import annotations

import io
from errno import EDQUOT, ENOSPC
from pathlib import Path
from typing import Any

from safedraft.core.errors import SafeDraftError
from safedraft.models.progress import Report

TIMEOUT = 5.0
"""Seconds for the hub to answer at all."""


def snapshot(
    repository: str, revision: str | None, allow: list[str], ignore: list[str], report: Report
) -> Path:
    """Bring the files of a repository that match the patterns into the hub's own cache.

    HF_HUB_OFFLINE, HF_ENDPOINT and HF_HOME are the hub's own settings and mean here what they mean
    there.

    Raises:
        SafeDraftError: no such repository, no access to it, or the hub is out of reach and its
            cache does not have the files.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted: dict[str, Any] = {
        "repo_id": repository,
        "revision": revision,
        "allow_patterns": allow,
        "ignore_patterns": ignore,
    }
    trouble: Exception | None = None
    if not constants.HF_HUB_OFFLINE:
        try:
            # The download itself knows no timeout for a hub that never answers.
            HfApi().model_info(repository, revision=revision, timeout=TIMEOUT)
            bar = _bar(f"downloading {repository} from the hub", report)
            return Path(snapshot_download(**wanted, tqdm_class=bar))
        except Exception as error:  # whatever is wrong with the hub, its cache may do
            trouble = error
    try:
        return Path(snapshot_download(**wanted, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError) as error:
        raise SafeDraftError(f"{repository}: {_why(trouble, revision)}") from (trouble or error)


def _why(trouble: Exception | None, revision: str | None) -> str:
    from huggingface_hub import errors

    folder = "or pass the path of a folder that holds the model"
    match trouble:
        case None:
            return f"not in the hub's cache, and HF_HUB_OFFLINE is set: unset it, {folder}"
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
    reason = (str(trouble).splitlines() or [""])[0] or type(trouble).__name__
    return f"the hub did not give it ({reason}) and its cache lacks files: connect, {folder}"


def _bar(stage: str, report: Report) -> type[Any]:
    """A tqdm that reports in place of drawing."""
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
