import subprocess
import sys

import pytest

from safedraft.core.config import RiskConfig
from safedraft.core.errors import SafeDraftError
from safedraft.models.registry import (
    DEFAULT_PAIR,
    PairSpec,
    cache_folder,
    find_pair,
    model_files,
    pairs,
    shipped_adapters,
    write_new_pair,
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
        (
            '[p]\ntarget = "a"\ndraft = "b"\nadapter = "c"\nbare_draft = true',
            "bare_draft: the pair has an adapter: leave one of them out",
        ),
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


def test_a_new_pair_has_a_file_with_what_it_sets_and_absolute_paths(
    own_pairs, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lora").mkdir()
    config = RiskConfig().replace(alpha_union=2.0)
    new = PairSpec(name="v1.5", target="a/b", draft="c/d", adapter="lora", config=config)
    file = write_new_pair(new)
    assert file == own_pairs / "v1.5.toml"
    assert file.read_text().splitlines() == [
        '["v1.5"]',
        'target = "a/b"',
        'draft = "c/d"',
        f'adapter = "{tmp_path}/lora"',
        "",
        '["v1.5".config]',
        "alpha_union = 2.0",
    ]
    places = {"adapter": str(tmp_path / "lora")}
    assert find_pair("v1.5") == new.model_copy(update=places)


def test_names_of_the_registry_are_no_paths(own_pairs, tmp_path, monkeypatch):
    shipped = find_pair(DEFAULT_PAIR)
    monkeypatch.chdir(tmp_path)
    for name in (shipped.target, shipped.draft, shipped.adapter):
        (tmp_path / name).mkdir()
    write_new_pair(shipped.model_copy(update={"name": "copy"}))
    copy = find_pair("copy")
    assert (copy.target, copy.draft, copy.adapter) == (
        shipped.target,
        shipped.draft,
        shipped.adapter,
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (DEFAULT_PAIR, r"already, in .*pairs\.toml: choose another name"),
        ("tiny", r"already, in .*mine\.toml"),
        ("a/b", "cannot be the name of a pair's file"),
        (".hidden", "cannot be the name"),
        ("tiny.calibrated", "cannot be the name"),
        ("", "cannot be the name"),
    ],
)
def test_no_pair_is_replaced_by_a_new_one(own_pairs, name, said):
    (own_pairs / "mine.toml").write_text('[tiny]\ntarget = "a/b"\ndraft = "c/d"\n')
    new = PairSpec.model_construct(name=name, target="a/b", draft="c/d", adapter=None)
    with pytest.raises(SafeDraftError, match=said):
        write_new_pair(new)
    assert [file.name for file in own_pairs.iterdir()] == ["mine.toml"]
