"""What touches minors is left out, and a reply that sexualizes them is kept nowhere."""

from __future__ import annotations

import pytest

from safedraft.prompts.screening import must_not_be_kept, touches_minors


@pytest.mark.parametrize("text", ["about kids", "A Schoolgirl.", "a 9 year old", "snuff film"])
def test_minors_are_recognized(text: str) -> None:
    assert touches_minors(text)


@pytest.mark.parametrize(
    ("text", "withheld"),
    [
        ("Teenagers in an explicit scene", True),
        ("A naked child", True),
        ("Children learn to read at school.", False),
        ("An erotic novel about two painters", False),
    ],
)
def test_only_both_together_must_not_be_kept(text: str, withheld: bool) -> None:
    assert must_not_be_kept(text) == withheld
