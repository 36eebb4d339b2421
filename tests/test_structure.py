"""The structure of the source tree, and the tool that reads it."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TOOL = ROOT / "tools" / "structure.py"
PAGE = ROOT / "docs" / "architecture.md"
PICTURE = ROOT / "docs" / "structure.svg"
SOURCE = ROOT / "src" / "safedraft"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode in (0, 1), result.stderr
    assert not result.stderr
    return result


def read(source: Path) -> dict[str, Any]:
    return json.loads(run("--source", source, "--json").stdout)


def write_tree(folder: Path, **files: str) -> Path:
    """Write a package: ``a__b`` names the file ``a/b.py``, ``root`` its ``__init__``."""
    for name, text in {"root": "", **files}.items():
        parts = {"root": ["__init__"], "main": ["__main__"]}.get(name, name.split("__"))
        path = folder.joinpath("safedraft", *parts).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "safedraft"


@pytest.fixture(scope="module")
def structure() -> dict[str, Any]:
    return read(SOURCE)


def test_no_modules_form_a_cycle(structure: dict[str, Any]) -> None:
    assert structure["module_cycles"] == []


def test_no_package_imports_upwards(structure: dict[str, Any]) -> None:
    assert structure["upward"] == []
    assert structure["packages_without_a_row"] == []


def test_the_longest_chain_has_at_most_10_layers(structure: dict[str, Any]) -> None:
    assert 1 < structure["figures"]["layers in the longest chain"] <= 10


def test_at_most_60_dependencies_between_packages(structure: dict[str, Any]) -> None:
    assert 1 < structure["figures"]["dependencies between packages"] <= 60


def test_every_long_file_says_why(structure: dict[str, Any]) -> None:
    assert structure["figures"]["of these without a reason"] == 0


def test_the_committed_picture_is_current(tmp_path: Path) -> None:
    run("--svg", tmp_path / "now.svg")
    assert PICTURE.read_text("utf-8") == (tmp_path / "now.svg").read_text("utf-8"), "make structure"


def test_the_committed_table_is_current() -> None:
    assert run("--markdown").stdout.strip() in PAGE.read_text("utf-8"), "make structure"


def test_the_picture_keeps_boxes_and_captions_apart() -> None:
    text = PICTURE.read_text("utf-8")
    number = r'="([\d.]+)"'
    pattern = f'<rect class="box" x{number} y{number} width{number} height{number}'
    boxes = [tuple(map(float, match)) for match in re.findall(pattern, text)]
    assert len(boxes) == len(set(re.findall(r'class="name"[^>]*>([\w.]+)<', text))) > 10
    for (x, y, width, height), (x2, y2, width2, height2) in combinations(boxes, 2):
        beside = x + width < x2 or x2 + width2 < x
        assert beside or y + height < y2 or y2 + height2 < y
    assert all(x > 65 and x + width < 1000 for x, _, width, _ in boxes)


@pytest.mark.parametrize(
    "statement",
    [
        "import safedraft.core.config",
        "from safedraft.core import config",
        "from safedraft.core.config import Value",
        "from ..core.config import Value",
        "from ..core import config as other",
        "def late():\n    from safedraft.core.config import Value",
        "if TYPE_CHECKING:\n    from safedraft.core import config",
    ],
)
def test_every_kind_of_import_counts(tmp_path: Path, statement: str) -> None:
    tree = write_tree(tmp_path, core__config="Value = 1\n", models__hub=f"import os\n{statement}\n")
    modules = {module["name"]: module for module in read(tree)["modules"]}
    (place,) = modules["safedraft.models.hub"]["imports"]
    assert place["module"] == "safedraft.core.config"
    assert place["line"] == (3 if "\n" in statement else 2)


def test_lazy_exports_of_the_root_are_imports(tmp_path: Path) -> None:
    tree = write_tree(
        tmp_path,
        root='EXPORTS = {"safedraft.core.config": ("Value",), "safedraft.missing": ()}\n',
        core__config='Value = "safedraft.pair"\n',
        pair="",
    )
    assert read(tree)["packages"]["safedraft"]["imports"] == ["core"]
    assert read(tree)["packages"]["core"]["imports"] == []


def test_packages_and_layers(tmp_path: Path) -> None:
    tree = write_tree(
        tmp_path,
        main="from safedraft.cli.app import main\n",
        cli__app="from safedraft import pair\nfrom safedraft.engines.vllm import pair\n",
        pair="from safedraft.engines import base\n",
        engines__base="from safedraft.core.config import Value\n",
        engines__vllm__pair="from safedraft.engines.base import Engine\n",
        core__config="Value = 1\n",
    )
    plain = read(tree)
    layers = {name: package["layer"] for name, package in plain["packages"].items()}
    assert layers == {
        "core": 0,
        "engines": 1,
        "pair": 2,
        "cli": 3,
        "safedraft": 4,
    }
    assert plain["figures"]["layers in the longest chain"] == 5
    assert plain["figures"]["dependencies between packages"] == 5
    assert run("--source", tree).returncode == 0


@pytest.mark.parametrize(
    ("files", "upward"),
    [
        ({"core__a": "import safedraft.pair\n", "pair": ""}, [("core", "pair")]),
        ({"text__a": "import safedraft.rules.b\n", "rules__b": ""}, [("text", "rules")]),
        ({"engines__vllm__a": "import safedraft.engines.cpu.b\n", "engines__cpu__b": ""}, []),
        ({"engines__vllm__a": "import safedraft.engines.b\n", "engines__b": ""}, []),
        ({"engines__a": "import safedraft.engines.vllm.b\n", "engines__vllm__b": ""}, []),
        ({"pair": "import safedraft.core.a\n", "core__a": ""}, []),
    ],
)
def test_upward_dependencies(
    tmp_path: Path, files: dict[str, str], upward: list[tuple[str, str]]
) -> None:
    tree = write_tree(tmp_path, **files)
    assert [(d["importer"], d["imported"]) for d in read(tree)["upward"]] == upward
    assert run("--source", tree).returncode == bool(upward)


def test_cycles_are_found_and_measured_in_the_condensation(tmp_path: Path) -> None:
    tree = write_tree(
        tmp_path,
        pair="from safedraft.engines.base import Engine\n",
        engines__base="def late():\n    from safedraft.engines.vllm.rule import Rule\n",
        engines__vllm__rule="if TYPE_CHECKING:\n    from safedraft.engines.base import Engine\n",
    )
    plain = read(tree)
    assert plain["module_cycles"] == [["safedraft.engines.base", "safedraft.engines.vllm.rule"]]
    assert plain["package_cycles"] == []
    assert plain["longest_chain"] == [["pair"], ["engines"]]
    result = run("--source", tree)
    assert result.returncode == 1
    assert "safedraft/engines/base.py:2 imports safedraft.engines.vllm.rule" in result.stdout


def test_a_package_that_the_order_does_not_name_is_an_error(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, extras__a="")
    assert read(tree)["packages_without_a_row"] == ["extras"]
    assert run("--source", tree).returncode == 1


def test_statements_leave_docstrings_out(tmp_path: Path) -> None:
    text = '"""One."""\n\nx = 1\n"""Two."""\n\n\ndef f():\n    """Three."""\n    return x\n'
    package = read(write_tree(tmp_path, core__a=text))["packages"]["core"]
    assert (package["modules"], package["lines"], package["statements"]) == (1, 9, 3)


def test_long_files_say_why(tmp_path: Path) -> None:
    reason = '"""Everything.\n\nMore.\n"""\n# Long because: it holds everything.\n'
    tree = write_tree(
        tmp_path,
        core__a=reason + "x = 1\n" * 350,
        core__b='"""Plain."""\n' + "x = 1\n" * 350,
        core__c='"""Short."""\n' + "x = 1\n" * 349,
    )
    assert [(f["summary"], f["lines"], f["why"]) for f in read(tree)["long_files"]] == [
        ("Everything.", 355, "it holds everything."),
        ("Plain.", 351, ""),
    ]


def test_two_trees_are_compared_in_80_columns(tmp_path: Path) -> None:
    before = write_tree(tmp_path / "before", core__a="x = 1\ny = 2\n", pair="")
    after = write_tree(tmp_path / "after", core__a="x = 1\n", load="")
    lines = run("--source", after, "--compare", before).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split() for line in lines if line.startswith(("core", "pair", "statements"))] == [
        ["statements", "2", "|", "1"],
        ["core", "1", "2", "2", "|", "1", "1", "1"],
        ["pair", "1", "0", "0", "|", "–", "–", "–"],
    ]


def test_the_page_is_filled_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A\n\n<!-- structure -->\nstale\n<!-- /structure -->\n\nB\n", "utf-8")
    tree = write_tree(tmp_path, core__a='"""Sums | products."""\n')
    run("--source", tree, "--markdown", page)
    text = page.read_text("utf-8")
    assert text.startswith("# A\n\n<!-- structure -->\n![")
    assert text.endswith("\n<!-- /structure -->\n\nB\n")
    assert "| 0 | `core` | Sums \\| products. | – |" in text
    assert "stale" not in text


@pytest.mark.parametrize(
    ("statement", "way"),
    [
        ("from safedraft.core.sampling import draw", "draws"),
        ("from safedraft.core.sampling import *", "draws"),
        ("from safedraft.core import sampling", "draws"),
        ("import safedraft.core.sampling as other", "draws"),
        ("from ..core.sampling import correct", "draws"),
        ("from safedraft.core.sampling import distribution", None),
        ("token = logits.argmax(-1)", "takes"),
        ("from torch import multinomial", "takes"),
        ("token = logits.max(-1).indices", "takes"),
        ("token = torch.max(logits, -1)[1]", "takes"),
        ("_, token = logits.max(dim=-1)", "takes"),
        ("token = logits.topk(1).indices", "takes"),
        ("token = torch.topk(logits, k=1)[1]", "takes"),
        ("value = logits.max(-1).values.max()", None),
        ("best = logits.topk(10)", None),
        ("ids = pair.target.model.generate(prompt)", "lets"),
        ("ids = self._model.generate(prompt)", "lets"),
        ("reply = pair.generate(prompt)", None),
    ],
)
def test_what_could_choose_a_token_is_seen(tmp_path: Path, statement: str, way: str | None) -> None:
    tree = write_tree(tmp_path, text__a=f"\n{statement}\n")
    result = run("--source", tree, "--choosers")
    lines = result.stdout.splitlines()
    ends = [at for at, line in enumerate(lines) if line == "    text/a.py:2: (no reason given)"]
    ways = [next(line for line in lines[at::-1] if line[0] != " ") for at in ends]
    assert [found.split()[0] for found in ways] == ([way] if way else [])
    assert result.returncode == 1


def test_tokens_are_chosen_in_one_place() -> None:
    result = run("--choosers")
    assert result.returncode == 0, result.stdout
    assert re.match(r"draws .*:\n    core/decide\.py:\d+: .*\ntakes", result.stdout)


def test_a_class_name_means_one_class() -> None:
    places = defaultdict(list)
    for file in sorted(SOURCE.rglob("*.py")):
        for node in ast.parse(file.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(file.relative_to(SOURCE).as_posix())
    assert len(places) > 200
    assert {name: files for name, files in places.items() if len(files) > 1} == {}
