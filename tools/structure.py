"""Report the structure of a source tree: modules, packages, layers, cycles, upward dependencies.

The tree is parsed, never imported. Every import in a file counts, those inside functions and those
under ``if TYPE_CHECKING:`` too. A package is a directory of the root with all that lies in it. A
module that lies directly in the root is a package of its own, except ``__init__`` and ``__main__``,
which are the package that carries the root's name.

The exit code is 1 if modules form a cycle, if a package imports upwards, or if ``ORDER`` does not
place a package; with ``--choosers`` if ``CHOOSERS`` has other modules than those that are found.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

# The intended order, from the bottom: a package imports from the rows below its own.
ORDER: tuple[tuple[str, ...], ...] = (
    ("core",),
    ("text",),
    ("kernels", "models", "rules"),
    ("engines",),
    ("prompts",),
    ("pair",),
    ("defenses",),
    ("evaluation", "training"),
    ("server",),
    ("cli",),
    ("safedraft",),
)
LONG = 350  # lines
LONG_MARK = "# Long because: "
SAMPLING = "safedraft.core.sampling"
DRAWING = {"accept", "choose_by_rounds", "correct", "draw", "draw_others", "*"}
"""The functions of ``SAMPLING`` that take a token from a distribution."""
CHOOSERS: dict[str, dict[str, str]] = {
    "draws from a distribution": {"core/decide.py": "the token that is decided"},
    "takes the largest of several values": {
        "core/decide.py": "the token that is decided",
        "core/rows.py": "ranks tokens, and finds where an id stands",
        "core/sampling.py": "the distribution of a temperature of 0",
        "engines/cpu/pack.py": "the largest weight of a group",
        "engines/vllm/reading.py": "finds where an id stands",
        "evaluation/attacks/high_match.py": "what an attacker begins a reply with",
        "text/grammar.py": "whether a reply would begin with a refusal without its form",
        "training/checks.py": "counts labels that are the draft's likeliest token",
    },
    "lets one model generate": {
        "evaluation/benchmark.py": "the decoding of Transformers that SSD is compared with",
        "evaluation/judges/classifier.py": "the verdict of a judge",
        "prompts/drawn.py": "many replies of one model at once, for training and evaluation",
    },
}
"""The modules that could choose a token, by how they could, and what each chooses."""
START, END = "<!-- structure -->", "<!-- /structure -->"

Graph = Mapping[str, Iterable[str]]


@dataclass(frozen=True, order=True)
class Import:
    """One import of a module of the tree; ``module`` is the full name of what is imported."""

    importer: str
    line: int
    module: str


@dataclass
class Module:
    """What is known of one file."""

    name: str
    package: str
    path: str
    lines: int
    statements: int
    summary: str
    """First line of the docstring."""
    why_long: str
    """What a line ``# Long because: …`` right after the docstring says."""
    imports: list[Import] = field(default_factory=list)


@dataclass(frozen=True, order=True)
class Dependency:
    """One package imports from another, at the places ``imports``."""

    importer: str
    imported: str
    imports: tuple[Import, ...] = field(compare=False)


def is_string(node: ast.stmt) -> bool:
    """Whether the statement is a docstring."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def count_statements(tree: ast.Module) -> int:
    """Number of statements, docstrings of modules, classes, functions and attributes left out."""
    return sum(isinstance(node, ast.stmt) and not is_string(node) for node in ast.walk(tree))


def read_why_long(text: str, tree: ast.Module) -> str:
    """Read the comment ``# Long because: …`` after the module docstring; empty without one."""
    if not tree.body or not is_string(tree.body[0]):
        return ""
    for line in text.splitlines()[tree.body[0].end_lineno or 0 :]:
        if line.startswith(LONG_MARK):
            return line.removeprefix(LONG_MARK)
        if line.strip() and not line.startswith("#"):
            break
    return ""


def find_names(node: ast.AST, module: str, is_package: bool) -> Iterator[tuple[str, ...]]:
    """Full names that one import statement can mean, the most specific first."""
    if isinstance(node, ast.Import):
        yield from ((alias.name,) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = module.split(".")
            kept = parts[: len(parts) - node.level + is_package]
            base = ".".join([*kept, *([base] if base else [])])
        yield from ((f"{base}.{alias.name}", base) for alias in node.names)


def find_imports(tree: ast.Module, module: str, path: Path, root: Path) -> Iterator[Import]:
    """Every import of a module of the tree, with its line.

    The root's ``__init__`` names the modules of its lazy exports as strings; they count as imports.
    """

    def exists(name: str) -> bool:
        file = root.parent.joinpath(*name.split("."))
        within = name == root.name or name.startswith(f"{root.name}.")
        return within and (file.with_suffix(".py").is_file() or (file / "__init__.py").is_file())

    lazy = path == root / "__init__.py"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for names in find_names(node, module, path.name == "__init__.py"):
                name = next((name for name in names if exists(name)), None)
                if name and name != module:
                    yield Import(module, node.lineno, name)
        elif lazy and isinstance(node, ast.Constant):
            name = str(node.value)
            if name != module and exists(name):
                yield Import(module, node.lineno, name)


def draws(node: ast.AST, module: str, is_package: bool) -> bool:
    """Whether an import gives access to a function that takes a token from a distribution."""
    meant = (names[0] for names in find_names(node, module, is_package))
    return any(name in {SAMPLING, *(f"{SAMPLING}.{one}" for one in DRAWING)} for name in meant)


def takes_largest(node: ast.AST) -> bool:
    """Whether an expression says where the largest of several values stands, or draws by torch."""
    match node:
        case (
            ast.Attribute(attr="argmax" | "multinomial") | ast.alias(name="argmax" | "multinomial")
        ):
            return True
        case (
            ast.Attribute(value=ast.Call(func=ast.Attribute(attr="max")), attr="indices")
            | ast.Subscript(
                value=ast.Call(func=ast.Attribute(attr="max")), slice=ast.Constant(value=1)
            )
            | ast.Assign(targets=[ast.Tuple()], value=ast.Call(func=ast.Attribute(attr="max")))
        ):
            return True
        case ast.Call(func=ast.Attribute(attr="topk"), args=given, keywords=named):
            counts = [*given, *(keyword.value for keyword in named if keyword.arg == "k")]
            return any(isinstance(one, ast.Constant) and one.value == 1 for one in counts)
    return False


def generates(node: ast.AST) -> bool:
    """Whether ``generate`` of anything but a pair is called: a model decodes without SSD."""
    match node:
        case ast.Call(func=ast.Attribute(value=ast.Name(id="pair"), attr="generate")):
            return False
        case ast.Call(func=ast.Attribute(attr="generate")):
            return True
    return False


def find_choosers(root: Path) -> dict[str, dict[str, list[int]]]:
    """The modules that could choose a token: the lines of each, by the ways of ``CHOOSERS``."""
    found: dict[str, dict[str, list[int]]] = {way: {} for way in CHOOSERS}
    for path in sorted(root.rglob("*.py")):
        file = path.relative_to(root)
        name = ".".join([root.name, *file.with_suffix("").parts]).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            ways = (
                draws(node, name, path.name == "__init__.py"),
                takes_largest(node),
                generates(node),
            )
            for way in (way for way, holds in zip(CHOOSERS, ways, strict=True) if holds):
                found[way].setdefault(file.as_posix(), []).append(getattr(node, "lineno", 0))
    return found


def report_choosers(found: Mapping[str, Mapping[str, Sequence[int]]]) -> Iterator[str]:
    """What could choose a token, where, and why it is allowed to."""
    for way, reasons in CHOOSERS.items():
        yield f"{way}:"
        for module in sorted(found[way].keys() | reasons.keys()):
            lines = ", ".join(map(str, sorted(set(found[way].get(module, ())))))
            place = f"{module}:{lines}" if lines else f"{module} (no longer)"
            yield wrap(f"    {place}: {reasons.get(module, '(no reason given)')}", "        ")


def read_module(path: Path, root: Path) -> Module:
    """Parse one file of the tree."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text, str(path))
    parts = path.relative_to(root).with_suffix("").parts
    alone = len(parts) == 1 and parts[0] in ("__init__", "__main__")
    name = ".".join([root.name, *(parts[:-1] if parts[-1] == "__init__" else parts)])
    return Module(
        name=name,
        package=root.name if alone else parts[0],
        path=path.relative_to(root.parent).as_posix(),
        lines=text.count("\n"),
        statements=count_statements(tree),
        summary=(ast.get_docstring(tree) or "").split("\n")[0],
        why_long=read_why_long(text, tree),
        imports=sorted(set(find_imports(tree, name, path, root))),
    )


def find_components(graph: Graph) -> list[tuple[str, ...]]:
    """Strongly connected components, each sorted, what is imported before its importers."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[tuple[str, ...]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            start = stack.index(node)
            components.append(tuple(sorted(stack[start:])))
            del stack[start:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return components


def find_row(package: str) -> int | None:
    """Row of a package in ``ORDER``, counted from the bottom; None if it has none."""
    rows = {name: row for row, names in enumerate(ORDER) for name in names}
    return rows.get(package)


class Structure:
    """A source tree and what follows from its imports."""

    def __init__(self, root: Path) -> None:
        root = root.resolve()
        self.modules = [read_module(path, root) for path in sorted(root.rglob("*.py"))]
        self.package_of = {module.name: module.package for module in self.modules}

    @cached_property
    def packages(self) -> dict[str, list[Module]]:
        """The modules of each package."""
        packages = defaultdict(list)
        for module in self.modules:
            packages[module.package].append(module)
        return dict(sorted(packages.items()))

    @cached_property
    def dependencies(self) -> list[Dependency]:
        """Which package imports from which, sorted."""
        places = defaultdict(list)
        for module in self.modules:
            for place in module.imports:
                pair = module.package, self.package_of[place.module]
                if pair[0] != pair[1]:
                    places[pair].append(place)
        return sorted(Dependency(*pair, tuple(imports)) for pair, imports in places.items())

    @cached_property
    def imports_of(self) -> dict[str, set[str]]:
        """The packages that each package imports from."""
        graph: dict[str, set[str]] = {package: set() for package in self.packages}
        for dependency in self.dependencies:
            graph[dependency.importer].add(dependency.imported)
        return graph

    @cached_property
    def components(self) -> list[tuple[str, ...]]:
        """The condensation's nodes: packages, those of a cycle together; leaves first."""
        return find_components(self.imports_of)

    @cached_property
    def chains(self) -> dict[tuple[str, ...], list[tuple[str, ...]]]:
        """The longest chain of imports below each node of the condensation, itself included."""
        home = {package: component for component in self.components for package in component}
        chains: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for component in self.components:
            below = {home[other] for package in component for other in self.imports_of[package]}
            longest = max((chains[c] for c in sorted(below - {component})), key=len, default=[])
            chains[component] = [component, *longest]
        return chains

    @property
    def chain(self) -> list[tuple[str, ...]]:
        """The longest chain of packages, from the top; packages of a cycle are one link."""
        return max((self.chains[component] for component in self.components), key=len, default=[])

    @cached_property
    def layer(self) -> dict[str, int]:
        """Layer of each package: the length of its longest path to a leaf, which has 0."""
        return {
            package: len(chain) - 1 for links, chain in self.chains.items() for package in links
        }

    @cached_property
    def module_cycles(self) -> list[tuple[str, ...]]:
        """Modules that import each other, directly or not."""
        graph = {m.name: {place.module for place in m.imports} for m in self.modules}
        return [component for component in find_components(graph) if len(component) > 1]

    @property
    def package_cycles(self) -> list[tuple[str, ...]]:
        """Packages that import each other, directly or not."""
        return [component for component in self.components if len(component) > 1]

    @cached_property
    def upward(self) -> list[Dependency]:
        """Dependencies on a package that is not below the importer."""
        return [dependency for dependency in self.dependencies if is_upward(dependency)]

    @property
    def unplaced(self) -> list[str]:
        """Packages without a row in ``ORDER``; none of their dependencies counts as upward."""
        return [package for package in self.packages if find_row(package) is None]

    @property
    def long_modules(self) -> list[Module]:
        """Modules of more than ``LONG`` lines, the longest first."""
        return sorted((m for m in self.modules if m.lines > LONG), key=lambda m: -m.lines)

    @property
    def figures(self) -> dict[str, int]:
        """The numbers that two trees are compared by."""
        return {
            "modules": len(self.modules),
            "packages": len(self.packages),
            "dependencies between packages": len(self.dependencies),
            "layers in the longest chain": len(self.chain),
            "cycles of modules": len(self.module_cycles),
            "modules in cycles": sum(len(cycle) for cycle in self.module_cycles),
            "cycles of packages": len(self.package_cycles),
            "packages in cycles": sum(len(cycle) for cycle in self.package_cycles),
            "upward dependencies": len(self.upward),
            "packages without a row": len(self.unplaced),
            "lines": sum(module.lines for module in self.modules),
            "statements": sum(module.statements for module in self.modules),
            f"files over {LONG} lines": len(self.long_modules),
            "of these without a reason": sum(not m.why_long for m in self.long_modules),
        }

    @property
    def is_sound(self) -> bool:
        """Whether no modules form a cycle, nothing imports upwards and every package has a row."""
        return not (self.module_cycles or self.upward or self.unplaced)

    def count(self, package: str) -> tuple[int, int, int]:
        """Modules, lines and statements of a package; zeros if the tree lacks it."""
        modules = self.packages.get(package, [])
        return len(modules), sum(m.lines for m in modules), sum(m.statements for m in modules)

    def summary(self, package: str) -> str:
        """First line of the package's docstring."""
        modules = self.packages[package]
        initial = next((m for m in modules if m.path.endswith("__init__.py")), modules[0])
        return initial.summary


def is_upward(dependency: Dependency) -> bool:
    """Whether ``ORDER`` forbids a dependency."""
    importer, imported = find_row(dependency.importer), find_row(dependency.imported)
    if importer is None or imported is None:
        return False
    return importer <= imported


def to_json(structure: Structure) -> dict[str, Any]:
    """Everything the tool knows of a tree, as plain data."""
    return {
        "figures": structure.figures,
        "packages": {
            package: {
                **dict(
                    zip(("modules", "lines", "statements"), structure.count(package), strict=True)
                ),
                "layer": structure.layer[package],
                "row": find_row(package),
                "imports": sorted(structure.imports_of[package]),
            }
            for package in structure.packages
        },
        "longest_chain": structure.chain,
        "module_cycles": structure.module_cycles,
        "package_cycles": structure.package_cycles,
        "upward": [asdict(dependency) for dependency in structure.upward],
        "packages_without_a_row": structure.unplaced,
        "long_files": [
            {"path": m.path, "lines": m.lines, "summary": m.summary, "why": m.why_long}
            for m in structure.long_modules
        ],
        "modules": [asdict(module) for module in structure.modules],
    }


def wrap(text: str, indent: str = "    ") -> str:
    """Break a text into lines of at most 80 columns; ``indent`` is for all lines but the first."""
    return textwrap.fill(
        text, 80, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def format_links(links: Iterable[Iterable[str]]) -> str:
    """A chain of packages as text."""
    return " → ".join(" + ".join(link) for link in links)


def find_cycle_imports(structure: Structure, cycle: tuple[str, ...]) -> list[str]:
    """The imports that hold a cycle of modules together, one line each."""
    return [
        f"    {module.path}:{place.line} imports {place.module}"
        for module in structure.modules
        if module.name in cycle
        for place in module.imports
        if place.module in cycle
    ]


def report(structure: Structure) -> Iterator[str]:
    """The report of one tree, line by line."""
    paths = {module.name: module.path for module in structure.modules}
    yield from (f"{number:>7,}  {name}" for name, number in structure.figures.items())
    yield f"\n{'package':<26}{'layer':>7}{'modules':>9}{'lines':>9}{'statements':>12}"
    for package in sorted(structure.packages, key=lambda p: (-structure.layer[p], p)):
        modules, lines, statements = structure.count(package)
        layer = structure.layer[package]
        yield f"{package:<26}{layer:>7}{modules:>9}{lines:>9,}{statements:>12,}"
    yield "\n" + wrap(f"Longest chain: {format_links(structure.chain)}")
    for cycle in structure.module_cycles:
        yield "\n" + wrap(f"Cycle of modules: {', '.join(cycle)}")
        yield from find_cycle_imports(structure, cycle)
    for cycle in structure.package_cycles:
        yield "\n" + wrap(f"Cycle of packages: {', '.join(cycle)}")
    for dependency in structure.upward:
        yield f"\nUpward: {dependency.importer} → {dependency.imported}"
        for place in dependency.imports:
            yield f"    {paths[place.importer]}:{place.line} imports {place.module}"
    if structure.unplaced:
        yield "\n" + wrap(f"Without a row in ORDER: {', '.join(structure.unplaced)}")
    if structure.long_modules:
        yield f"\nFiles over {LONG} lines:"
    for module in structure.long_modules:
        yield f"    {module.path}, {module.lines} lines"
        yield wrap(f"        {module.summary}", "        ")
        yield wrap(f"        Long because: {module.why_long or '(no reason given)'}", "        ")


def compare(before: Structure, after: Structure) -> Iterator[str]:
    """The figures of two trees side by side, in at most 80 columns."""
    yield f"{'':<32}{'before':>12} | {'after':>12}"
    figures = before.figures
    for name, number in after.figures.items():
        yield f"{name:<32}{figures[name]:>12,} | {number:>12,}"
    heading = f"{'modules':>8}{'lines':>8}{'stmts':>7}"
    yield f"\n{'package':<26}{heading} | {heading}"
    for package in sorted({*before.packages, *after.packages}):
        columns = [
            "{:>8}{:>8,}{:>7,}".format(*tree.count(package))
            if package in tree.packages
            else f"{'–':>8}{'–':>8}{'–':>7}"
            for tree in (before, after)
        ]
        yield f"{package:<26}{' | '.join(columns)}"


def to_markdown(structure: Structure) -> str:
    """The part of the architecture page between the markers. It changes only with the imports."""
    rows = [", ".join(f"`{name}`" for name in names) for names in ORDER]
    figures = structure.figures
    lines = [
        "![Packages by layer, with an arrow from each to what it imports](structure.svg)",
        "",
        f"{figures['packages']} packages, {figures['dependencies between packages']} dependencies "
        f"between them, {figures['layers in the longest chain']} layers in the longest chain: "
        f"{format_links(structure.chain)}.",
        "",
        f"The order, from the bottom: {'; '.join(rows)}.",
        "",
        "| Layer | Package | What it holds | Imports from |",
        "| ---: | --- | --- | --- |",
    ]
    for package in sorted(structure.packages, key=lambda p: (-structure.layer[p], p)):
        summary = structure.summary(package).replace("|", "\\|")
        imports = ", ".join(f"`{other}`" for other in sorted(structure.imports_of[package]))
        lines.append(f"| {structure.layer[package]} | `{package}` | {summary} | {imports or '–'} |")
    if structure.long_modules:
        lines += ["", f"Files over {LONG} lines, and why:", ""]
    for module in sorted(structure.long_modules, key=lambda m: m.path):
        lines.append(f"- `{module.path}`: {module.summary} {module.why_long}".rstrip())
    return "\n".join([START, *lines, END])


def fill_markdown(page: Path, section: str) -> None:
    """Replace what lies between the markers of a page.

    Raises:
        SystemExit: the page lacks a marker.
    """
    text = page.read_text(encoding="utf-8")
    if START not in text or END not in text:
        raise SystemExit(f"{page} has no {START} … {END}")
    before, after = text.split(START)[0], text.split(END)[1]
    page.write_text(before + section + after, encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--source", type=Path, default=Path("src/safedraft"))
    parser.add_argument("--compare", type=Path, help="a tree that is shown before --source")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--svg", type=Path, help="draw the packages into this file")
    parser.add_argument(
        "--markdown",
        nargs="?",
        const="-",
        help="print the section of the architecture page, or fill it in this page",
    )
    parser.add_argument(
        "--choosers",
        action="store_true",
        help="print the modules that could choose a token, and why",
    )
    arguments = parser.parse_args()
    for tree in filter(None, (arguments.source, arguments.compare)):
        if not tree.is_dir():
            parser.error(f"{tree} is not a directory")
    return arguments


def main() -> int:
    """Run the tool; returns its exit code."""
    arguments = parse_arguments()
    if arguments.choosers:
        found = find_choosers(arguments.source)
        print("\n".join(report_choosers(found)))
        return 0 if all(found[way].keys() == CHOOSERS[way].keys() for way in CHOOSERS) else 1
    structure = Structure(arguments.source)
    if arguments.svg:
        from structure_picture import draw

        offending = {(d.importer, d.imported) for d in structure.upward}
        arguments.svg.write_text(draw(structure.imports_of, structure.layer, offending), "utf-8")
    if arguments.markdown == "-":
        print(to_markdown(structure))
    elif arguments.markdown:
        fill_markdown(Path(arguments.markdown), to_markdown(structure))
    if arguments.json:
        print(json.dumps(to_json(structure), indent=2))
    elif arguments.compare:
        print("\n".join(compare(Structure(arguments.compare), structure)))
    elif arguments.markdown != "-":
        print("\n".join(report(structure)))
    return 0 if structure.is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
