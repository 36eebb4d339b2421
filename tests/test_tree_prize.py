"""What trees would gain: the dynamic program, simulated blocks, the whole probe on tiny models."""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from helpers.decoding import decode_one, request_of
from helpers.models import RandomModel

import safedraft
from safedraft.core.config import DraftingConfig
from safedraft.core.decide import propose
from safedraft.core.rows import rank

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SHARES = {
    "even": (0.25, 0.25, 0.25, 0.25),
    "steep": (0.8, 0.1, 0.05, 0.01),
    "first only": (0.9, 0.0, 0.0, 0.0),
    "odd": (0.1, 0.5, 0.02, 0.3),
}


@pytest.fixture
def trees(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("draft_trees")


def all_shapes(nodes: int, levels: int, branches: int) -> Iterator[Any]:
    """Every tree of exactly so many nodes, in at most so many levels."""

    def forests(nodes: int, levels: int, branches: int) -> Iterator[Any]:
        if not nodes:
            yield ()
        elif branches and levels:
            for first in range(1, nodes + 1):
                for child in all_shapes(first, levels, most):
                    for others in forests(nodes - first, levels, branches - 1):
                        yield (child, *others)

    most = branches
    yield from forests(nodes - 1, levels - 1, branches)


def test_there_are_as_many_trees_as_catalan_numbers() -> None:
    counts = [len(list(all_shapes(nodes, nodes, nodes))) for nodes in range(1, 7)]
    assert counts == [1, 1, 2, 5, 14, 42]


@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_the_dynamic_program_is_as_good_as_every_tree(trees: Any, shares: tuple[float]) -> None:
    found = trees.best_trees(shares, nodes=9, levels=5)
    for nodes, levels in product(range(1, 10), range(1, 6)):
        every = list(all_shapes(nodes, levels, 4))
        if levels > nodes:
            continue
        if not every:
            assert (nodes, levels) not in found
            continue
        shape = found[nodes, levels]
        assert shape in every
        best = max(trees.find_value(other, shares) for other in every)
        assert trees.find_value(shape, shares) == pytest.approx(best, abs=1e-12)


def test_a_tree_is_chosen_where_rows_are_free_and_a_chain_where_they_are_not(trees: Any) -> None:
    shares = SHARES["steep"]
    shapes = [*trees.best_trees(shares, 12, 8).values(), *map(trees.chain, range(12))]
    free = trees.Machine([1.0] * 12, [0.2] * 12)
    dear = trees.Machine([0.2 * rows for rows in range(1, 13)], [0.01] * 12)
    wide = trees.choose_shape(shapes, shares, free, carries=True)
    narrow = trees.choose_shape(shapes, shares, dear, carries=True)
    assert len(wide) > 1
    assert narrow == trees.chain(len(trees.count_levels(narrow)) - 1)

    def time_of(shape: Any, machine: Any) -> float:
        block = trees.expect(shape, shares)
        return machine.cost(block, True) / block.tokens

    for machine, chosen in ((free, wide), (dear, narrow)):
        assert time_of(chosen, machine) == min(time_of(shape, machine) for shape in shapes)


def test_what_a_block_costs(trees: Any) -> None:
    machine = trees.Machine(target=[10.0, 11.0, 12.0], draft=[1.0, 1.5], token=0.25)
    block = trees.Block(rows=4, widths=(1, 2, 3), leaf=1.0, tokens=4)
    # Four rows are a pass of three and one of one; three rows of the draft are two and one.
    passes = (12.0 + 10.0) + (1.0 + 1.5 + (1.5 + 1.0))
    assert machine.cost(block, carries=False) == pytest.approx(passes + 4 * 0.25)
    assert machine.cost(block, carries=True) == pytest.approx(passes + 1.0 + 4 * 0.25)


def position(
    trees: Any, proposal: int, *chances: float, ends: bool = False, scheme: str | None = None
) -> Any:
    """A position at which that proposal was the decided token; ``ends`` is of the first one."""
    children = [trees.Child(chance, ends and not at) for at, chance in enumerate(chances)]
    return trees.Position(scheme, proposal, proposal, max(chances), 1.0, tuple(children))


def test_a_static_tree_gains_what_it_is_worth_where_positions_do_not_depend(trees: Any) -> None:
    shares = SHARES["steep"]
    shape = trees.best_trees(shares, 8, 4)[8, 4]
    rng = random.Random(0)
    blocks, positions = [], []
    for _ in range(40):
        outcomes = rng.choices(range(1, 6), [*shares, 1 - sum(shares)], k=500)
        reply = [position(trees, outcome, 0.5) for outcome in outcomes]
        blocks += trees.simulate(reply, trees.StaticTree(shape))[:-4]  # the last ones are cut
        positions += reply
    expected = trees.expect(shape, shares)
    mean = sum(block.tokens for block in blocks) / len(blocks)
    assert mean == pytest.approx(expected.tokens, rel=0.02)
    leaves = sum(block.leaf for block in blocks) / len(blocks)
    assert leaves == pytest.approx(expected.leaf, abs=0.02)
    assert {(block.rows, block.widths) for block in blocks} == {(expected.rows, expected.widths)}
    proposals = [one.proposal for one in positions]
    assert trees.share_of_ranks(proposals, 4) == pytest.approx(shares, abs=0.01)


def grown_tree(trees: Any, threshold: float, rows: int, stop: float) -> Any:
    return trees.Drafting(
        DraftingConfig(draft_tokens=rows - 1, draft_tree_threshold=threshold, draft_tree_stop=stop)
    )


def test_a_grown_tree_by_hand(trees: Any) -> None:
    reply = [
        position(trees, 2, 0.6, 0.3),  # the second child, of score 0.3
        position(trees, 1, 0.9, 0.1),  # below it 0.27; below the first 0.54 and 0.06
        position(trees, 3, 0.5, 0.5),
        position(trees, 1, 1.0),
    ]
    grown = grown_tree(trees, threshold=0.05, rows=5, stop=0.5)
    # The root, two children, and the two best of the four below them, of scores 0.54 and 0.27.
    first, second = trees.simulate(reply, grown)
    assert first == trees.Block(rows=5, widths=(1, 2), leaf=1.0, tokens=3)
    assert second == trees.Block(rows=2, widths=(1,), leaf=0.0, tokens=1)
    # With room for a sixth, 0.06 is kept too, and no more room is left.
    longer = [*reply, position(trees, 1, 1.0)]
    assert trees.simulate(longer, grown_tree(trees, 0.05, 6, 0.5))[0].rows == 6
    # A tree has no more nodes than tokens are left.
    assert trees.simulate(reply, grown_tree(trees, 0.05, 6, 0.5))[0].rows == 5
    cautious = grown_tree(trees, threshold=0.05, rows=5, stop=0.95)
    assert trees.simulate(reply, cautious)[0] == trees.Block(3, (1,), 1.0, 2)
    # Only the first children reach 0.5; the third is kept all the same, and not expanded.
    narrow = grown_tree(trees, threshold=0.5, rows=5, stop=0.5)
    assert trees.simulate(reply, narrow)[0] == trees.Block(4, (1, 1, 1), 0.0, 1)


def test_no_shape_drafts_after_the_end(trees: Any) -> None:
    reply = [position(trees, 1, 0.9), position(trees, 1, 0.9, ends=True)]
    policies = [
        trees.Drafting(DraftingConfig(draft_tokens=5)),
        grown_tree(trees, 0.1, 8, 0.1),
        trees.StaticTree(trees.chain(5)),
    ]
    for policy in policies:
        assert trees.simulate(reply, policy) == [trees.Block(3, (1, 1), 0.0, 2)]


def test_constants_are_chosen_on_the_other_half(trees: Any) -> None:
    costs = {"a": [1.0, 9.0, 1.0, 9.0], "b": [5.0, 5.0, 5.0, 5.0]}
    assert trees.cross_fit(costs, [0, 1, 0, 1]) == [5.0, 9.0, 5.0, 9.0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("confidence", "growth"), [(0.0, 0.0), (0.5, 2.0)])
def test_a_chain_decides_the_blocks_of_the_decoding_loop(
    trees: Any, temperature: float, confidence: float, growth: float
) -> None:
    constants = {"draft_tokens": 5, "draft_confidence": confidence, "draft_growth": growth}
    target = RandomModel(1, 12, shared=0.8)
    draft = RandomModel(2, 12, shared=0.8)
    for seed in range(5):
        request = request_of(
            None,
            constants,
            ((seed,), (seed,)),
            end=(11,),
            max_new_tokens=60,
            temperature=temperature,
            seed=seed,
        )
        steps = decode_one(target, draft, request)
        reply = []
        for at, step in enumerate(steps):
            ids = [seed, *(other.token for other in steps[:at])]
            (first,) = propose(rank(draft(ids)[None], [temperature]), [request], [at])
            proposal = 1 if first.token == step.token else 2
            ends = first.token in request.end_tokens
            child = trees.Child(first.probability, ends)
            reply.append(trees.Position(step.scheme, 1, proposal, 1.0, 1.0, (child,)))
        blocks = trees.simulate(reply, trees.Drafting(DraftingConfig(**constants)))
        decoded = Counter(step.block for step in steps)
        assert [block.tokens for block in blocks] == [decoded[at] for at in sorted(decoded)]


@pytest.mark.slow
def test_the_probe_on_tiny_models(
    trees: Any,
    tiny_pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "config" / "pairs"
    folder.mkdir(parents=True)
    target, draft = (json.dumps(str(path)) for path in tiny_pair)
    (folder / "tiny.toml").write_text(
        f"[tiny]\ntarget = {target}\ndraft = {draft}\nbare_draft = true\n"
        "[tiny.config]\ndraft_tokens = 4\n",
        encoding="utf-8",
    )
    script = importlib.import_module("tree_prize")
    monkeypatch.setattr(script, "GROWN", script.GROWN[::9])
    monkeypatch.setattr(script, "CHAINS", script.CHAINS[::9])
    output = tmp_path / "out" / "prize.json"
    arguments = {"pair": "tiny", "engine": "transformers", "limit": 2, "tokens": 12, "rounds": 1}
    given = [f"--{name}={value}" for name, value in {**arguments, "output": output}.items()]
    monkeypatch.setattr(sys, "argv", ["tree_prize", *given])
    script.main()
    outcome = json.loads(output.read_text(encoding="utf-8"))
    assert [(way["rule"], way["temperature"]) for way in outcome["ways"]] == [
        ("ssd", 0.0),
        ("ssd", 1.0),
        ("speculative", 0.0),
        ("speculative", 1.0),
    ]
    assert len(outcome["times_ms"]["target"]) == 24
    assert len(outcome["times_ms"]["draft"]) == 8
    for way in outcome["ways"]:
        check = way["check"]
        assert check["proposals_that_agree"] == 1
        assert check["tokens_per_target_pass"] == check["decoded_tokens_per_target_pass"]
        assert {row["kind"] for row in way["acceptance"]} >= {"sums", "prose", "code", "chat"}
        for row in way["acceptance"]:
            assert 0 < sum(row["shares"]) <= 1 + 1e-9
        assert list(way["machines"]) == ["measured", "c = 0.05", "c = 0.15", "c = 0.3"]
    logged = [position for reply in outcome["replies"] for position in reply["positions"]]
    assert len(logged) == sum(way["tokens"] for way in outcome["ways"])
    assert "content" not in output.read_text(encoding="utf-8")
    assert "Gain over the pair's chain" in capsys.readouterr().out


def test_shapes_are_measured_beside_each_other(
    trees: Any, tiny_pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    script = importlib.import_module("tree_speed")
    models = map(str, tiny_pair)
    pair = safedraft.load_pair(*models, use_adapter=False, engine="transformers", dtype="float32")
    totals = script.measure(pair, ["hi", "why?"], tokens=9)
    assert {name: total.equal for name, total in totals.items()} == dict.fromkeys(script.SHAPES, 2)
    assert len({total.tokens for total in totals.values()}) == 1
    script.show(script.Console(width=140), totals, 2)
    assert capsys.readouterr().out.count("2 of 2") == 3


def test_one_prompt_cannot_be_halved(trees: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    script = importlib.import_module("tree_prize")
    monkeypatch.setattr(sys, "argv", ["tree_prize", "--limit", "1"])
    with pytest.raises(SystemExit):
        script.main()
