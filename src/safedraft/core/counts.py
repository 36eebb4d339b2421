"""Numbers with their nouns in messages."""

from __future__ import annotations


def format_count(number: int, noun: str, plural: str | None = None) -> str:
    """Format a number and its noun, as ``1 prompt`` and ``1,024 prompts``.

    Args:
        number: the number.
        noun: the singular of the noun.
        plural: its plural; by default the singular with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
