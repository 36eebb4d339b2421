"""Files and folders that are written beside their place appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from safedraft.core.files import remove, write_atomically, write_beside


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file.txt"
    write_atomically(file, "old")
    with write_beside(file) as unfinished:
        unfinished.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(file.parent.iterdir()) == [file]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for name in ("old", "new"):
        with write_beside(folder) as unfinished:
            unfinished.mkdir()
            write_atomically(unfinished / "inner" / name, name)
    assert [path.name for path in folder.rglob("*")] == ["inner", "new"]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_alone(tmp_path: Path, error: BaseException) -> None:
    def fail() -> None:
        with write_beside(file) as unfinished:
            unfinished.write_text("half")
            raise error

    file = tmp_path / "file.txt"
    write_atomically(file, "old")
    with pytest.raises(type(error)):
        fail()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_killed_process_left_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    with write_beside(folder) as unfinished:
        leftover = unfinished
        unfinished.mkdir()
    leftover.mkdir()
    (leftover / "half").touch()
    with write_beside(folder) as unfinished:
        unfinished.mkdir()
    assert list(folder.iterdir()) == []


def test_remove_takes_links_not_what_they_point_to(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder", target_is_directory=True)
    remove(tmp_path / "link")
    remove(tmp_path / "missing")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
