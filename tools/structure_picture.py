"""Draw packages as boxes in rows by layer, with an arrow from each to what it imports.

An arrow is drawn where no longer path implies it. The layout is Sugiyama's: a line that crosses a
row has a place of its own there, a row is ordered by the mean position of each place's neighbors,
and the places are moved by least squares under minimum distances.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from statistics import fmean

WIDTH = 1000
MARGIN = 70  # left of the boxes, for the numbers of the layers
BOX, GAP = 32, 64  # height of a box, and distance between two rows
CHARACTER = 7.9  # width of a character of a name
SPACE, LANE = 22, 16  # least distance between two boxes, and beside a passing line
SWEEPS = 24

# The tones of lines and captions are readable on white and on black; boxes have a background.
STYLE = """
  text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace }
  .box { fill: #e8f0fb; stroke: #5b84b8 }
  .name { fill: #12233a; text-anchor: middle }
  .caption { fill: #7b8694; font-size: 12px }
  .line { fill: none; stroke: #7b8694; stroke-width: 1.3 }
  .head { fill: #7b8694 }
  .wrong { stroke: #d9534f; stroke-dasharray: 5 3 }
"""

ARROWHEAD = (
    '<marker id="head" viewBox="0 0 8 8" refX="3" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path class="head" d="M0 0L8 4L0 8z"/></marker>'
)

Edge = tuple[str, str]


@dataclass(eq=False)
class Spot:
    """A place in a row: a box, or where a line passes."""

    name: str
    layer: int
    x: float = 0.0
    above: list[Spot] = field(default_factory=list)
    below: list[Spot] = field(default_factory=list)

    @property
    def width(self) -> float:
        """Width of the box; a line has none."""
        return len(self.name) * CHARACTER + 20 if self.name else 0.0


Rows = dict[int, list[Spot]]


def find_direct(imports_of: Mapping[str, Collection[str]], layer: Mapping[str, int]) -> list[Edge]:
    """The dependencies that no longer path implies. Packages in one layer form a cycle."""

    def reach(package: str, seen: set[str]) -> set[str]:
        for other in imports_of[package]:
            if other not in seen:
                seen.add(other)
                reach(other, seen)
        return seen

    reached = {package: reach(package, set()) for package in imports_of}
    direct = []
    for package, imported in imports_of.items():
        for other in sorted(imported):
            between = (
                middle
                for middle in imported
                if layer[package] > layer[middle] > layer[other] and other in reached[middle]
            )
            if layer[package] == layer[other] or not any(between):
                direct.append((package, other))
    return direct


def make_spots(edges: Sequence[Edge], layer: Mapping[str, int]) -> tuple[dict[str, Spot], Rows]:
    """Boxes and the places of passing lines, joined, and the same by row."""
    boxes = {package: Spot(package, layer[package]) for package in sorted(layer)}
    rows: Rows = defaultdict(list)
    for box in boxes.values():
        rows[box.layer].append(box)
    for importer, imported in edges:
        spot = boxes[importer]
        for height in range(layer[importer] - 1, layer[imported] - 1, -1):
            if height == layer[imported]:
                passing = boxes[imported]
            else:
                passing = Spot("", height)
                rows[height].append(passing)
            spot.below.append(passing)
            passing.above.append(spot)
            spot = passing
    return boxes, rows


def place(row: Sequence[Spot], wanted: Sequence[float]) -> None:
    """Place a row, in its order, as near as possible to the wanted positions.

    Least squares with minimum distances are a monotone regression of the wanted positions less the
    offset of each from the first: neighbors in the wrong order are pooled at their mean.
    """
    offsets = [0.0]
    for left, right in pairwise(row):
        space = SPACE if left.name and right.name else LANE
        offsets.append(offsets[-1] + (left.width + right.width) / 2 + space)
    pools: list[list[float]] = []
    for value, offset in zip(wanted, offsets, strict=True):
        pools.append([value - offset])
        while len(pools) > 1 and fmean(pools[-2]) > fmean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    least = MARGIN + row[0].width / 2
    most = WIDTH - 10 - row[-1].width / 2 - offsets[-1]
    values = [fmean(pool) for pool in pools for _ in pool]
    for spot, value, offset in zip(row, values, offsets, strict=True):
        spot.x = max(least, min(most, value)) + offset


def count_crossings(rows: Rows) -> int:
    """Number of pairs of lines that cross between two rows."""
    crossings = 0
    for row in rows.values():
        lines = [(spot.x, other.x) for spot in row for other in spot.below]
        crossings += sum(
            (a - c) * (b - d) < 0
            for index, (a, b) in enumerate(lines)
            for c, d in lines[index + 1 :]
        )
    return crossings


def arrange(rows: Rows) -> None:
    """Order the rows for few crossings and place them."""
    heights = sorted(rows)
    for height in heights:
        place(
            rows[height],
            [WIDTH * (i + 1) / (len(rows[height]) + 1) for i in range(len(rows[height]))],
        )
    best, order = count_crossings(rows), {height: [*rows[height]] for height in heights}
    for sweep in range(SWEEPS):
        for height in heights if sweep % 2 else reversed(heights):
            means = {
                id(spot): fmean(o.x for o in near) if near else spot.x
                for spot in rows[height]
                for near in [spot.below if sweep % 2 else spot.above]
            }
            rows[height].sort(key=lambda spot: means[id(spot)])
            place(rows[height], [means[id(spot)] for spot in rows[height]])
        if (crossings := count_crossings(rows)) < best:
            best, order = crossings, {height: [*rows[height]] for height in heights}
    rows.update(order)
    for sweep in range(SWEEPS):
        for height in heights if sweep % 2 else reversed(heights):
            near = [[*spot.below, *spot.above] for spot in rows[height]]
            wanted = [
                fmean(o.x for o in n) if n else s.x for s, n in zip(rows[height], near, strict=True)
            ]
            place(rows[height], wanted)


def center(rows: Rows) -> None:
    """Move everything so that the room left over is the same on both sides."""
    spots = [spot for row in rows.values() for spot in row]
    left = min(spot.x - spot.width / 2 for spot in spots)
    right = max(spot.x + spot.width / 2 for spot in spots)
    for spot in spots:
        spot.x += (MARGIN + WIDTH - 10 - left - right) / 2


def spread(spot: Spot, others: Sequence[Spot], other: Spot) -> float:
    """Where the line to one of the neighbors leaves a box, so that lines leave it side by side."""
    ordered = sorted(others, key=lambda neighbor: neighbor.x)
    step = min(14.0, (spot.width - 16) / len(ordered)) if spot.name else 0.0
    return spot.x + step * (ordered.index(other) - (len(ordered) - 1) / 2)


def draw_arrow(path: str, wrong: bool) -> str:
    """One line with an arrowhead at its end."""
    return f'<path class="line{" wrong" * wrong}" d="{path}" marker-end="url(#head)"/>'


def trace(start: Spot, first: Spot, top: Mapping[int, float]) -> tuple[str, Spot]:
    """The path of a line from a box downwards, and the box in which it ends."""
    x = spread(start, start.below, first)
    path = f"M{x:.1f} {top[start.layer] + BOX}"
    spot, previous = first, start
    while True:
        y, end = top[previous.layer] + BOX, top[spot.layer]
        target = spread(spot, spot.above, previous)
        tip = end - 5 * bool(spot.name)
        path += f"C{x:.1f} {y + GAP / 2:.0f} {target:.1f} {end - GAP / 2:.0f} {target:.1f} {tip}"
        if spot.name:
            return path, spot
        path += f"V{end + BOX}"
        x, previous, spot = target, spot, spot.below[0]


def draw_level(importer: Spot, imported: Spot, top: float, wrong: bool) -> str:
    """The arrow between two boxes of one layer: an arc under the row."""
    bottom = top + BOX
    side = 1 if imported.x > importer.x else -1
    start, end = importer.x + side * importer.width / 4, imported.x - side * imported.width / 4
    depth = bottom + (22 if side > 0 else 34)
    path = f"M{start:.1f} {bottom}C{start:.1f} {depth} {end:.1f} {depth} {end:.1f} {bottom + 5}"
    return draw_arrow(path, wrong)


def draw(
    imports_of: Mapping[str, Collection[str]], layer: Mapping[str, int], wrong: Collection[Edge]
) -> str:
    """The picture as SVG. The dependencies ``wrong`` are drawn in red and never left out."""
    edges = find_direct(imports_of, layer)
    edges += [edge for edge in sorted(wrong) if edge not in edges]
    level = [edge for edge in edges if layer[edge[0]] == layer[edge[1]]]
    boxes, rows = make_spots([edge for edge in edges if edge not in level], layer)
    arrange(rows)
    center(rows)
    highest = max(rows)
    top = {height: 10 + (highest - height) * (BOX + GAP) for height in rows}
    parts = [
        f'<text class="caption" x="8" y="{top[height] + 20}">layer {height}</text>'
        for height in sorted(rows, reverse=True)
    ]
    for box in boxes.values():
        for first in box.below:
            path, end = trace(box, first, top)
            parts.append(draw_arrow(path, (box.name, end.name) in wrong))
    parts += [draw_level(boxes[a], boxes[b], top[layer[a]], (a, b) in wrong) for a, b in level]
    for box in boxes.values():
        x, y = box.x - box.width / 2, top[box.layer]
        parts.append(
            f'<rect class="box" x="{x:.1f}" y="{y}" width="{box.width:.1f}" height="{BOX}" rx="5"/>'
            f'<text class="name" x="{box.x:.1f}" y="{y + 21}">{escape(box.name)}</text>'
        )
    total = sum(len(imported) for imported in imports_of.values())
    caption = f"{len(edges)} of {total} dependencies; a longer path implies each of the others."
    if wrong:
        caption += f" Red: {len(wrong)} upward."
    height = top[0] + BOX + 60
    parts.append(f'<text class="caption" x="{MARGIN}" y="{height - 12}">{caption}</text>')
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img" aria-label="Packages by layer">',
            f"<style>{STYLE}</style>",
            f"<defs>{ARROWHEAD}</defs>",
            *parts,
            "</svg>\n",
        ]
    )
