"""The log of replies: a line for each, without any text of a request or a reply."""

from __future__ import annotations

import logging

access_log = logging.getLogger("safedraft.access")


def log_reply(
    *,
    id: str,
    model: str,
    tokens: int,
    seconds: float,
    union: float | None,
    guarded: bool,
    finish_reason: str,
) -> None:
    """Log a reply that has ended.

    Args:
        id: identifier of its response.
        model: name of the model for clients.
        tokens: number of its tokens.
        seconds: time that it took.
        union: the share of its tokens that were decided in union, if it is known.
        guarded: whether it was decoded with a safety adapter, as the operator set the pair up.
        finish_reason: why it ended.
    """
    access_log.info(
        "id=%s model=%r tokens=%d seconds=%.2f union=%s guarded=%s finish_reason=%s",
        id or "-",
        model,
        tokens,
        seconds,
        "-" if union is None else f"{union:.2f}",
        str(guarded).lower(),
        finish_reason,
    )


def show_access_log() -> None:
    """Write a line for each reply to standard error."""
    if access_log.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    access_log.addHandler(handler)
    access_log.setLevel(logging.INFO)
    access_log.propagate = False
