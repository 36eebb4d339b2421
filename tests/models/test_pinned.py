"""Pinned files are verified, and what the cache holds is built once."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest

from safedraft.core.errors import SafeDraftError
from safedraft.models.pinned import PinnedFile, build_once

CONTENT = b"exactly this"
PINNED = PinnedFile(file="x.bin", size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())


@pytest.mark.parametrize(
    ("content", "difference"),
    [(b"short", "expected 12 bytes, found 5"), (b"exactly that", "expected SHA-256 .*, found ")],
)
def test_other_content_is_refused(tmp_path: Path, content: bytes, difference: str) -> None:
    path = tmp_path / "x.bin"
    assert not PINNED.matches(path)
    path.write_bytes(content)
    assert not PINNED.matches(path)
    with pytest.raises(SafeDraftError, match=difference):
        PINNED.require(path)
    path.write_bytes(CONTENT)
    assert PINNED.matches(path)
    PINNED.require(path)


def test_only_what_is_incomplete_is_built(tmp_path: Path) -> None:
    built = []

    def build(path: Path) -> None:
        built.append(path)
        path.write_bytes(CONTENT)

    path = tmp_path / "deep" / "x.bin"
    for _ in range(2):
        assert build_once(path, build, is_complete=PINNED.matches, needed=12) == path
    assert len(built) == 1
    path.write_bytes(b"damaged")
    build_once(path, build, is_complete=PINNED.matches, needed=12)
    assert path.read_bytes() == CONTENT
    assert path not in built


def test_a_failed_build_leaves_nothing_and_a_full_disk_is_explained(tmp_path: Path) -> None:
    def build(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(SafeDraftError, match=r"too full: x\.bin takes 3 GB in .*SAFEDRAFT_CACHE"):
        build_once(tmp_path / "x.bin", build, is_complete=PINNED.matches, needed=3e9)
    assert [path.name for path in tmp_path.iterdir()] == ["x.bin.lock"]
