"""The log of replies: a line for each, without any text of a request or a reply."""

from __future__ import annotations

import logging

access_log = logging.getLogger("safedraft.access")


def show_access_log() -> None:
    """Write a line for each reply to standard error."""
    if access_log.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    access_log.addHandler(handler)
    access_log.setLevel(logging.INFO)
    access_log.propagate = False
