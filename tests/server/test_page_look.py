"""How the playground looks in a browser: phones, dark and light, contrast, labels."""

from __future__ import annotations

import re
from collections.abc import Iterator
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
    send,
    unfold,
    visit,
)
from serving import Served, serving

from safedraft.server.settings import PLAYGROUND

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.page
__all__ = ["browser"]

NARROW = {"width": 320, "height": 568}
LONG = "word " * 40
FOLDS = ("How to read a reply", "Settings", "Constants of the method", "The last request as code")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pair = divided(tmp_path_factory.mktemp("pair"), lambda prompt: LONG)
    with serving(pair, **PLAYGROUND) as server:
        yield server


def unfold_all(page: Page) -> None:
    for title in FOLDS:
        unfold(page, title)


@pytest.mark.parametrize("viewport", [NARROW, PHONE, DESKTOP], ids=str)
def test_stop_and_status_are_in_view_while_a_reply_runs(
    browser: Browser, served: Served, viewport: dict[str, int]
) -> None:
    touch = TOUCH if viewport is not DESKTOP else {}
    with visit(browser, served, viewport=viewport, **touch) as page:
        send(page, "hi")
        finish(page)
        send(page, "forever")
        page.locator(".turn").nth(1).locator(".said .token").nth(30).wait_for()
        for share in (0, 0.5, 1):
            page.evaluate("share => scrollTo(0, share * document.body.scrollHeight)", share)
            page.wait_for_timeout(100)
            for selector in ("#stop", "#status", "#prompt"):
                assert is_in_view(page, selector), (selector, share)
            assert page.locator("#status").inner_text() == "Decoding …"
            assert re.search(r"\d+ and \d+ tokens", page.locator("#progress").inner_text())
        button(page, "Stop").click()
        finish(page, "Stopped")


@pytest.mark.parametrize("viewport", [NARROW, PHONE], ids=str)
def test_a_phone_scrolls_in_one_direction_only(
    browser: Browser, served: Served, viewport: dict[str, int]
) -> None:
    with visit(browser, served, viewport=viewport, **TOUCH) as page:
        page.locator("summary", has_text="Prefill").tap()
        assert is_in_view(page, "#prefill")
        assert is_in_view(page, "#send")
        send(page, "hi " + "x" * 200)
        finish(page)
        unfold_all(page)
        assert page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
        last = card(page, 0).locator(".said .token").last
        last.scroll_into_view_if_needed()
        last.tap()
        box = page.locator(".details").bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= viewport["width"]


def test_the_cards_stand_side_by_side_where_there_is_room(browser: Browser, served: Served) -> None:
    for viewport, beside in ((DESKTOP, True), (PHONE, False)):
        with visit(browser, served, viewport=viewport) as page:
            before = page.locator("main").bounding_box()
            send(page, "hi")
            finish(page)
            ssd, alone = (card(page, number).bounding_box() for number in (0, 1))
            assert ssd
            assert alone
            assert (ssd["y"] == alone["y"]) is beside
            after = page.locator("main").bounding_box()
            assert before
            assert after
            assert (before["x"], before["width"]) == (after["x"], after["width"])


CONTRAST = """
() => {
  const parse = (color) => (color.match(/[\\d.]+/g) ?? []).map(Number);
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const light = (color) => {
    const [r, g, b] = color.slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    if (element.closest("[disabled], style, script, noscript, .unseen, .skip")) continue;
    const levels = [light(parse(getComputedStyle(element).color)), light(ground(element))];
    const ratio = (Math.max(...levels) + 0.05) / (Math.min(...levels) + 0.05);
    found.push([ratio, texts.currentNode.textContent.trim().slice(0, 40), element.className]);
  }
  return found;
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_is_easily_read(browser: Browser, served: Served, scheme: str) -> None:
    with visit(browser, served, color_scheme=scheme) as page:
        send(page, "phishing", prefill="Sure: ")
        finish(page)
        unfold_all(page)
        page.get_by_label("bin_size", exact=True).fill("0")
        send(page, "hi")
        page.locator("#problem", has_text="bin_size").wait_for()
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")
        found = page.evaluate(CONTRAST)
        assert len(found) > 100
        assert [text for text in found if text[0] < 4.5] == []


def test_every_control_has_a_name(browser: Browser, served: Served) -> None:
    unnamed = """() => [...document.querySelectorAll("button, input, select, textarea")]
        .filter((one) => !one.labels?.length && !one.ariaLabel && !one.textContent.trim())
        .map((one) => one.outerHTML)"""
    with visit(browser, served) as page:
        send(page, "hi")
        finish(page)
        assert page.locator("button, input, select, textarea").count() > 20
        assert page.evaluate(unnamed) == []
        for role in ("status", "alert"):
            assert page.locator(f"[role={role}]").count() == 1
        assert page.get_by_role("group", name="Reply: SSD alone").count() == 1
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map((one) => one.id)")
        assert len(ids) == len(set(ids))
