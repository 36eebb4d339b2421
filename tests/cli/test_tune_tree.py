"""``safedraft tune-tree``, whole, on tiny models, and its choice."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from safedraft.core.config import DraftingConfig
from safedraft.evaluation.trees import tune
from safedraft.evaluation.trees.tune import OWN, ShapeTrial, Tuning
from safedraft.models.registry import find_pair


def trial(speeds: dict[str, float], tree: str = "") -> ShapeTrial:
    """A shape that decodes 100 tokens of each kind at so many tokens a second."""
    config = DraftingConfig().with_tree(tree) if tree else DraftingConfig()
    seconds = {kind: 100 / speed for kind, speed in speeds.items()}
    return ShapeTrial(config, 2.0, 0.0, 10, Counter(dict.fromkeys(speeds, 100)), seconds)


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ({"tree": (1.2, 1.1)}, "tree"),
        ({"tree": (1.04, 1.04)}, OWN),
        ({"tree": (2.0, 0.96)}, OWN),  # slower in one kind of text
        ({"tree": (1.2, 1.2), "chain": (1.3, 1.3)}, "chain"),
    ],
)
def test_another_shape_is_chosen_only_if_it_is_faster_throughout(
    others: dict[str, tuple[float, float]], chosen: str
) -> None:
    trials = {OWN: trial({"sums": 1.0, "code": 1.0})}
    trials |= {name: trial({"sums": a, "code": b}) for name, (a, b) in others.items()}
    assert Tuning([0.5], {}, 1.5, trials).chosen == chosen


@pytest.mark.parametrize(
    ("others", "chosen"),
    [
        ({"chain": (0.94, 0.94)}, OWN),
        ({"chain": (0.96, 0.96)}, "chain"),  # as good: the tree is not clearly faster
        ({"chain": (1.03, 1.03)}, "chain"),
        ({"chain": (0.5, 1.04)}, "chain"),  # the tree is slower in one kind of text
        ({"chain": (0.9, 0.9), "grown tree": (1.1, 1.1)}, "grown tree"),
        ({"grown tree": (0.9, 0.9)}, OWN),
    ],
)
def test_a_tree_is_kept_only_where_a_chain_is_clearly_slower(
    others: dict[str, tuple[float, float]], chosen: str
) -> None:
    trials = {OWN: trial({"sums": 1.0, "code": 1.0}, "2-1")}
    trials |= {name: trial({"sums": a, "code": b}) for name, (a, b) in others.items()}
    assert Tuning([0.5], {}, 1.5, trials).chosen == chosen


SMALL = ["--engine", "transformers", "--limit", "2", "--max-new-tokens", "10", "--rounds", "1"]


@pytest.mark.parametrize("dry_run", [True, False])
def test_the_choice_is_printed_and_written(
    run: Any, tiny: str, monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    monkeypatch.setattr(tune, "GROWN", tune.GROWN[::9])
    monkeypatch.setattr(tune, "CHAINS", tune.CHAINS[::9])
    monkeypatch.setattr(Tuning, "chosen", "grown tree")
    before = find_pair(tiny).config
    code, out, _ = run("tune-tree", tiny, *SMALL, *(["--dry-run"] if dry_run else []))
    assert code == 0
    for shape in (OWN, "chain", "static tree", "grown tree"):
        assert f"\n{shape}: " in out
    changed = out.partition("\nchosen: grown tree: ")[2]
    assert "draft_tree_threshold = " in changed
    assert "draft_tree =" not in changed  # it has none, as before
    assert "differ" not in out
    assert ("written: " in out) is not dry_run
    after = find_pair(tiny).config
    assert (after == before) is dry_run
    if not dry_run:
        assert after.branches == "draft_tree_threshold"
        assert after.replace(**dict(tune.drafting_of(before))) == before


def test_the_pairs_own_shape_is_kept(run: Any, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "GROWN", tune.GROWN[::9])
    monkeypatch.setattr(tune, "CHAINS", tune.CHAINS[::9])
    monkeypatch.setattr(Tuning, "chosen", OWN)
    code, out, _ = run("tune-tree", tiny, *SMALL)
    assert (code, out.splitlines()[-1]) == (
        0,
        "chosen: the pair's own, since no other shape is clearly faster",
    )


def test_whatever_is_chosen_is_said(run: Any, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "GROWN", tune.GROWN[::9])
    monkeypatch.setattr(tune, "CHAINS", tune.CHAINS[::9])
    code, out, _ = run("tune-tree", tiny, *SMALL, "--dry-run")
    assert code == 0
    chosen = out.splitlines()[-1]
    kinds = ("the pair's own", "chain", "static tree", "grown tree")
    assert chosen.startswith(tuple(f"chosen: {kind}" for kind in kinds))
    assert not chosen.endswith(": ")


def test_a_shape_for_the_bare_draft_is_not_saved(run: Any, tiny: str) -> None:
    code, _, err = run("tune-tree", tiny, "--no-adapter")
    assert code == 2
    assert "--no-adapter: a shape for the bare draft is not saved" in err
