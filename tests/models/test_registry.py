import subprocess
import sys

import pytest

from safedraft.core.errors import SafeDraftError
from safedraft.models.registry import (
    DEFAULT_PAIR,
    cache_folder,
    find_pair,
    model_files,
    pairs,
    shipped_adapters,
)


@pytest.fixture
def own_pairs(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEDRAFT_CONFIG", str(tmp_path))
    folder = tmp_path / "pairs"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def _no_own_pairs(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SAFEDRAFT_CONFIG", str(tmp_path_factory.mktemp("config")))


def test_the_default_pair_is_made_of_registered_files():
    pair = find_pair(DEFAULT_PAIR)
    assert {pair.target, pair.draft} <= model_files().keys()
    assert pair.adapter in shipped_adapters()
    assert pair.draft_system is None
    assert pair.target_system is None


def test_every_part_of_a_file_has_a_name_of_its_own():
    for model in model_files().values():
        numbers = range(1, model.wheels.parts + 1)
        names = {model.wheels.project.format(part=number) for number in numbers}
        members = {model.wheels.member.format(part=number) for number in numbers}
        assert len(names) == len(members) == model.wheels.parts


def test_own_pairs_are_added_and_win(own_pairs):
    (own_pairs / "mine.toml").write_text(
        '[tiny]\ntarget = "a/b"\ndraft = "c/d"\n[tiny.config]\nkappa = 2\n'
        '["qwen2.5-coder"]\ntarget = "/big"\ndraft = "/small"\n'
    )
    assert find_pair("tiny").config.kappa == 2
    assert find_pair("tiny").name == "tiny"
    assert find_pair("qwen2.5-coder").target == "/big"


def test_an_unknown_pair_lists_the_known_and_guesses():
    with pytest.raises(SafeDraftError, match=r"did you mean 'qwen2\.5-coder'.*known are"):
        find_pair("qwen2.5-codr")
    with pytest.raises(SafeDraftError, match=r"'xyz'; known are qwen2\.5-coder"):
        find_pair("xyz")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[pair", "not valid TOML"),
        ('target = "a"', "target: must be a table"),
        ('[p]\ntarget = "a"', r"\[p\] draft: is missing"),
        ('[p]\ntarget = "a"\ndraft = "b"\ncolour = "red"', r"\[p\] colour: there is nothing"),
        ('[p]\nname = "q"\ntarget = "a"\ndraft = "b"', "p: must be a table"),
        ('[p]\ntarget = ""\ndraft = "b"', r"\[p\] target: must not be empty"),
        ('[p]\ntarget = "a"\ndraft = "b"\nconfig = {kappa = 0}', r"\[p\] config\.kappa: "),
        (
            '[p]\ntarget = "a"\ndraft = "b"\nconfig = {kapa = 1}',
            r"\[p\] config\.kapa: there is nothing",
        ),
    ],
)
def test_a_broken_file_is_named_with_its_field_in_one_line(own_pairs, text, said):
    (own_pairs / "mine.toml").write_text(text)
    with pytest.raises(SafeDraftError, match=rf"mine\.toml.*{said}") as raised:
        pairs()
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_text(own_pairs):
    (own_pairs / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SafeDraftError, match=r"mine\.toml is not valid TOML"):
        pairs()


def test_the_cache_can_be_moved(tmp_path, monkeypatch):
    monkeypatch.setenv("SAFEDRAFT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("SAFEDRAFT_CACHE")
    assert cache_folder().name == "safedraft"


@pytest.mark.parametrize("module", ["registry", "fetch", "convert"])
def test_importing_is_light(module):
    code = f"import sys, safedraft.models.{module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert not {"torch", "transformers", "huggingface_hub", "rich"} & set(loaded)
