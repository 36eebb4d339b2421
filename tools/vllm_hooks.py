"""Compare the code of a vLLM with that of the versions that SafeDraft's engine knows.

Nothing of vLLM is imported, so that any wheel can be looked at:

    pip download --no-deps vllm==0.33.0
    python tools/vllm_hooks.py vllm-0.33.0-*.whl [--diff vllm-0.32.0-*.whl]

A vLLM whose hooks are all those of one known version is supported as it stands; comments, layout,
docstrings and the annotations in functions may differ. Otherwise the differences are read, its
tests are run (make test-vllm), and its fingerprints, which this prints, go into
``engines/vllm/hooks.py``. The exit code is 1 if the plug-in would refuse it, which it also does
where each hook is known and no version has all of them.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from collections.abc import Callable, Mapping
from difflib import unified_diff
from pathlib import Path

from safedraft.engines.vllm.hooks import HOMES, HOOKS, RUN, find_nearest, fingerprint, read_hook

Read = Callable[[str], str | None]
"""Gives the code of a hook; None if there is none of this name."""


def open_tree(place: Path) -> Read:
    """A reader of the hooks in a wheel, or in a folder that has the package vllm."""

    def read_module(module: str) -> str:
        file = module.replace(".", "/") + ".py"
        if place.is_dir():
            return (place / file).read_text("utf-8")
        with zipfile.ZipFile(place) as wheel:
            return wheel.read(file).decode()

    texts = {module: read_module(module) for module in {*HOMES.values()}}
    return lambda name: read_hook(name, texts[HOMES[name.partition(".")[0]]])


def _fingerprint(code: str | None) -> str:
    return fingerprint(code) if code else "missing"


def judge(found: Mapping[str, str]) -> tuple[bool, str]:
    """Whether the plug-in takes a vLLM with these fingerprints, and the reason."""
    nearest, differing = find_nearest(found)
    if differing:
        return False, f"refused: {', '.join(differing)} differ from {nearest}"
    if nearest not in RUN:
        return True, f"supported with a warning: as {nearest}, whose code was read and never run"
    return True, f"supported: as {nearest}"


def main() -> int:
    """Print a line for each hook, what differs, and the result; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("place", type=Path, help="a wheel, or a folder with the package vllm")
    parser.add_argument("--diff", type=Path, help="another one, to show the differences from")
    given = parser.parse_args()
    read = open_tree(given.place)
    other = open_tree(given.diff) if given.diff else None
    found: dict[str, str] = {}
    for name in next(iter(HOOKS.values())):
        code = read(name)
        found[name] = _fingerprint(code)
        same = [version for version, hooks in HOOKS.items() if hooks[name] == found[name]]
        print(f'"{name}": "{found[name]}",  # {f"as in {same[-1]}" if same else "differs"}')
        if other and found[name] != _fingerprint(before := other(name)):
            lines = unified_diff(
                (before or "").splitlines(),
                (code or "").splitlines(),
                "before",
                "after",
                "",
                "",
                2,
                "",
            )
            print("\n".join(lines))
    supported, reason = judge(found)
    print(f"# {reason}")
    return int(not supported)


if __name__ == "__main__":
    sys.exit(main())
