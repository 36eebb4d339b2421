"""The states of the playground on a phone and a desktop, in light and dark.

Each is kept as a picture where the environment variable ``SAFEDRAFT_PICTURES`` names a folder.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing import (
    DESKTOP,
    PHONE,
    TOUCH,
    browser,
    button,
    card,
    divided,
    finish,
    is_in_view,
    problem,
    send,
    unfold,
    visit,
)
from PIL import Image
from serving import Served, serving

from safedraft.server.settings import PLAYGROUND

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.page
__all__ = ["browser"]

FOLDER = os.environ.get("SAFEDRAFT_PICTURES")
DEVICES = {"phone": {"viewport": PHONE, **TOUCH}, "desktop": {"viewport": DESKTOP}}
HASH_TABLE = (
    "A hash table computes a slot from each key, so that a value is found without a search:\n\n"
    'ages = {"Ada": 36}'
)
STORY = "Once upon a time there was a story that had no end. "
LEFT_OUT = " Hello [what the target says by itself is left out of this picture]"
CALLS = itertools.cycle(range(80))
"""Calls of the models in the reply that fails: the last one of each round raises."""


def answer(prompt: str) -> str:
    if "fails" in prompt and next(CALLS) == 79:
        raise RuntimeError
    if "phishing" in prompt:
        return LEFT_OUT
    return STORY if "story" in prompt else HASH_TABLE


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pair = divided(tmp_path_factory.mktemp("pair"), answer, lambda length: length % 12 == 0)
    with serving(pair, **PLAYGROUND) as server:
        yield server


def run(page: Page) -> None:
    send(page, "Tell me a story that lasts forever.")
    card(page, 1).locator(".said .token").nth(25).wait_for()
    assert page.locator("#status").inner_text() == "Decoding …"
    assert button(page, "Stop").is_enabled()
    assert is_in_view(page, "#stop")
    assert is_in_view(page, "#status")


def refuse(page: Page) -> None:
    button(page, "The same, with the answer begun").click()
    button(page, "Send").click()
    assert finish(page) == "Done. SSD alone: refused. The target alone: answered."
    assert is_in_view(page, "#status")


def reply(page: Page) -> None:
    button(page, "An ordinary question").click()
    button(page, "Send").click()
    assert finish(page) == "Done. SSD alone: answered. The target alone: answered."
    assert is_in_view(page, "#status")


def fail(page: Page) -> None:
    unfold(page, "Settings")
    page.get_by_label("Let the target answer alone, too").uncheck()
    unfold(page, "Settings")
    send(page, "Tell me a story of a model that fails.")
    problem(page, "log says where")
    assert card(page, 0).locator(".verdict").inner_text() == "Broken off"
    assert is_in_view(page, "#problem")


STATES = {"running": run, "refused": refuse, "answered": reply, "error": fail}


def keep(page: Page, path: Path) -> None:
    """Keep the window as a picture of few colors, which is small."""
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        picture.convert("RGB").quantize(256).save(path, optimize=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("state", STATES)
def test_a_state_is_reported_in_view(
    browser: Browser, served: Served, state: str, device: str, scheme: str
) -> None:
    show: Callable[[Page], None] = STATES[state]
    with visit(browser, served, color_scheme=scheme, **DEVICES[device]) as page:
        show(page)
        assert is_in_view(page, ".turn .verdict >> nth=0")
        if FOLDER:
            keep(page, Path(FOLDER) / f"playground-{state}-{device}-{scheme}.png")
