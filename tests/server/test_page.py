"""The playground in a browser: what a visitor sees and does. Needs a Chromium that is installed."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from serving import Served, serving
from talking import TalkingPair, answering, scripted_pair, talking

from safedraft.core.config import SSDConfig

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

pytestmark = pytest.mark.page

SAYS = "A table <b>maps</b> keys & values;\nit is a <script>alert(1)</script> of buckets, ${value}."
FLAGS = (
    "--no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-quic"
)
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}


def divided(folder: Path, answer: Callable[[str], str] = lambda prompt: SAYS) -> TalkingPair:
    """The draft proposes something else in every other run of ten tokens."""
    tokenizer = talking(folder, answer).target.tokenizer
    assert tokenizer is not None
    seen: list[str] = []
    says = answering(tokenizer, answer, seen)

    def draft(ids: Any) -> torch.Tensor:
        time.sleep(0.03 if "slowly" in str(tokenizer.decode(list(ids))) else 0.002)
        logits = says(ids)
        return torch.roll(logits, 1) if len(ids) // 10 % 2 else logits

    # A weak draft: what it proposes wrongly is corrected in union too.
    config = SSDConfig(alpha_intersection=0.2, alpha_min=0.2, alpha_union=0.4)
    return scripted_pair(tokenizer, says, draft, config, seen)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(divided(tmp_path_factory.mktemp("pair")), playground=True) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    assert found, "no Chromium is installed: install one, or name it in CHROMIUM"
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=FLAGS.split())
        yield started
        started.close()


@contextmanager
def visit(browser: Browser, served: Served, **settings: Any) -> Iterator[Page]:
    """The page as a visitor opens it; it has to talk to its own server only, and without errors."""
    page = browser.new_page(**({"viewport": DESKTOP} | settings))
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("websocket", lambda socket: asked.append(socket.url))
    page.goto(f"{served.url}/playground/")
    button(page, "Send").wait_for()
    yield page
    page.close()
    assert [url for url in asked if not url.startswith((served.url + "/", "data:"))] == []
    assert asked
    assert errors == []


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    with visit(browser, served) as opened:
        yield opened


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def panel(page: Page, title: str) -> None:
    """Open it: its button's name has an arrow, too."""
    page.get_by_role("button", name=title).click()
    page.wait_for_timeout(500)  # Gradio fills it as it opens


def send(page: Page, prompt: str, prefill: str = "") -> None:
    page.get_by_label("Your message").fill(prompt)
    page.get_by_label("Prefill").fill(prefill)
    button(page, "Send").click()


def finish(page: Page, status: str = "Done") -> str:
    told = page.locator(".status", has_text=status)
    told.wait_for(timeout=20_000)
    return told.inner_text()


def column(page: Page, number: int) -> Locator:
    return page.locator(".reply .said").nth(number)


def until(true: Callable[[], bool], seconds: float = 5) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def said(reply: Locator) -> str:
    return str(reply.evaluate("element => element.textContent"))


def test_both_replies_stream_and_end_in_what_was_said(page: Page) -> None:
    send(page, "slowly: what is a table?")
    seen: list[str] = []
    while page.locator(".status", has_text="Decoding").count() or not seen:
        if (text := said(column(page, 0))) and text not in seen[-1:]:
            seen.append(text)
        page.wait_for_timeout(50)
    assert len(seen) > 3
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))
    assert "times as fast as the target alone" in finish(page)
    assert said(column(page, 0)) == said(column(page, 1)) == SAYS
    costs = page.locator(".figures").all_inner_texts()
    assert len(costs) == 2
    assert all(re.match(r"[\d.]+ tokens/s · \d+ tokens", cost) for cost in costs)
    assert not page.evaluate("Boolean(document.querySelector('.said script, .said b'))")


def test_the_message_is_shown_as_it_was_written(page: Page) -> None:
    written = "<img src=x onerror=alert(1)> & ${value} {{value}} \U0001f600"
    send(page, written, prefill="<i>Sure</i>: ")
    finish(page)
    assert said(page.locator(".asked .question")) == f"You {written}"
    assert page.locator(".reply .begun").first.inner_text() == "<i>Sure</i>: "


def test_every_token_is_of_one_kind(page: Page) -> None:
    send(page, "hi")
    finish(page)
    tokens = page.locator(".reply .said").first.locator(".token")
    kinds = tokens.evaluate_all("all => all.map(one => one.className)")
    assert len(kinds) == len(SAYS) + 1
    known = ("token matched", "token corrected intersection", "token corrected union")
    assert {kind.removesuffix(" break").removesuffix(" empty") for kind in kinds} == set(known)
    style = "(({ backgroundColor, textDecoration }) => [backgroundColor, textDecoration])"
    looks = [
        page.locator(f".reply .said >> css=[class='{kind}']").first.evaluate(
            f"one => {style}(getComputedStyle(one))"
        )
        for kind in known
    ]
    for position in (0, 1):  # they differ in color, and in their underlines as well
        assert len({look[position] for look in looks}) == 3
    alone = column(page, 1).locator(".token").evaluate_all("all => all.map(one => one.className)")
    assert {kind.removesuffix(" break").removesuffix(" empty") for kind in alone} == {"token alone"}


def test_pointing_at_a_token_tells_its_probabilities(page: Page) -> None:
    send(page, "hi")
    finish(page)
    details = page.locator(".details")
    page.locator(".said .token.corrected.union").first.hover()
    told = details.inner_text().split("\n")
    assert told[0] == "corrected in union"
    assert [line.split()[0] for line in told[1:]] == ["draft", "target", "weight", "block"]
    column(page, 1).locator(".token").first.hover()
    assert details.inner_text().startswith("the target’s own")
    page.locator("h1").hover()
    assert details.is_hidden()


def test_the_keyboard_goes_through_a_reply(page: Page) -> None:
    page.get_by_label("Your message").fill("hi")
    page.keyboard.press("Enter")
    finish(page)
    column(page, 0).focus()
    details = page.locator(".details")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert said(page.locator(".token.pointed")) == SAYS[2]
    page.keyboard.press("ArrowLeft")
    assert said(page.locator(".token.pointed")) == SAYS[1]
    assert details.is_visible()
    page.keyboard.press("Escape")
    assert details.is_hidden()


def test_the_chart_has_a_bar_for_each_bin(page: Page) -> None:
    send(page, "hi")
    finish(page)
    bins = -(-(len(SAYS) + 1) // 7)
    chart = page.locator(".chart svg")
    assert chart.locator(".bin").count() == bins
    assert chart.locator(".bin .threshold").count() == bins
    assert chart.locator(".bin.union").count() >= 1
    assert chart.locator(".bin.intersection").count() >= 1
    assert "Match ratio of each bin of 7 tokens: " in str(chart.get_attribute("aria-label"))
    assert "threshold" in page.locator(".chart .sentence").inner_text()
    chart.locator(".bin").first.hover()
    assert page.locator(".details").inner_text().startswith("bin 1: ")


def test_ssd_answers_alone_where_that_is_wanted(page: Page) -> None:
    page.get_by_label("Let the target answer alone, too").uncheck()
    send(page, "hi")
    finish(page)
    assert column(page, 0).is_visible()
    assert not page.get_by_role("heading", name="The target alone").is_visible()


def test_a_conversation_goes_on_begins_again_and_is_repeated(page: Page, served: Served) -> None:
    seen = served.service.pair.prompts_seen  # type: ignore[attr-defined]
    send(page, "first question")
    finish(page)
    send(page, "second question")
    page.locator(".past .question", has_text="first question").wait_for()
    finish(page)
    assert "first question" in seen[-1]
    assert SAYS in seen[-1]
    assert said(page.locator(".past .said")) == SAYS
    button(page, "Again").click()
    page.locator(".status", has_text="Decoding").wait_for()
    finish(page)
    assert page.locator(".past .question").count() == 1
    assert said(page.locator(".asked .question")) == "You second question"
    button(page, "New conversation").click()
    page.locator(".past .question").wait_for(state="detached")
    assert not column(page, 0).is_visible()
    send(page, "third question")
    finish(page)
    assert "first question" not in seen[-1]


@pytest.mark.parametrize("title", ["An ordinary question", "A harmful request"])
def test_an_example_fills_in_a_message(page: Page, title: str) -> None:
    button(page, title).click()
    until(lambda: bool(page.get_by_label("Your message").input_value()))
    assert page.get_by_label("Prefill").input_value() == ""
    button(page, "The same, with the answer begun").click()
    until(lambda: "phishing" in page.get_by_label("Prefill").input_value())
    button(page, "A harmless one, begun alike").click()
    until(lambda: "lunch" in page.get_by_label("Prefill").input_value())


def test_what_is_set_is_decoded_with_and_stands_in_the_code(page: Page) -> None:
    panel(page, "Sampling")
    page.get_by_label("number input for Most new tokens").fill("11")
    panel(page, "The method’s constants")
    page.get_by_label("number input for Tokens in a bin").fill("4")
    page.keyboard.press("Tab")
    page.wait_for_timeout(300)  # Gradio notes it when the focus has left
    send(page, "hi")
    finish(page)
    assert said(column(page, 0)) == SAYS[:11]
    assert page.locator(".chart .bin").count() == 3
    panel(page, "This request as Python")
    code = page.locator(".code pre").inner_text()
    compile(code, "code", "exec")
    assert "bin_size=4," in code
    assert "max_new_tokens=11," in code
    assert "'content': 'hi'" in code
    button(page, "Copy").click()
    button(page, "Copied").wait_for()


def test_a_prompt_that_is_too_long_is_told(page: Page) -> None:
    send(page, "x" * 5000)
    page.locator(".problem").wait_for()
    assert "context" in page.get_by_role("alert").inner_text()
    assert page.get_by_label("Your message").input_value() == "x" * 5000  # to be shortened
    send(page, "hi")
    finish(page)


def test_nothing_to_answer_is_told(page: Page) -> None:
    button(page, "Send").click()
    page.locator(".problem", has_text="the prompt is empty").wait_for()


def test_stop_stops_both_and_keeps_what_was_said(page: Page, served: Served) -> None:
    send(page, "slowly")
    page.locator(".reply .token").nth(5).wait_for()
    assert button(page, "New conversation").is_disabled()  # or what goes on would come back
    button(page, "Stop").click()
    until(lambda: served.service.scheduler.active == 0, 2)
    finish(page, "Stopped")
    assert 5 < len(said(column(page, 0))) < len(SAYS)
    button(page, "New conversation").click()
    send(page, "hi")
    finish(page)


def test_leaving_stops_the_decoding(browser: Browser, served: Served) -> None:
    with visit(browser, served) as page:
        send(page, "slowly")
        page.locator(".reply .token").nth(5).wait_for()
        assert served.service.scheduler.active
    until(lambda: served.service.scheduler.active == 0, 2)


def test_a_server_with_no_room_says_so(browser: Browser, tmp_path: Path) -> None:
    limits = {"active": 1, "waiting": 0, "request_seconds": 1.5}
    with (
        serving(divided(tmp_path), limits=limits, playground=True) as served,
        visit(browser, served) as page,
    ):
        send(page, "hi")
        page.locator(".problem", has_text="at most 1 replies").wait_for()
        page.get_by_label("Let the target answer alone, too").uncheck()
        send(page, "slowly")
        page.locator(".problem", has_text="not finished within 1.5 s").wait_for()
        assert 1 < len(said(column(page, 0))) < len(SAYS)
        page.wait_for_timeout(300)
        assert button(page, "Send").is_enabled()


def test_a_server_that_stops_says_so_and_does_not_wait_for_the_page(
    browser: Browser, tmp_path: Path
) -> None:
    pair, limits = divided(tmp_path), {"grace_seconds": 0.2}
    with ExitStack() as pages:
        with serving(pair, limits=limits, playground=True) as served:
            page = pages.enter_context(visit(browser, served))
            send(page, "slowly")
            page.locator(".reply .token").nth(5).wait_for()
            begun = time.monotonic()
            served.stop()
            page.locator(".problem", has_text="the server is stopping").wait_for()
        assert time.monotonic() - begun < 4


def test_a_failure_is_told_without_its_inside(browser: Browser, tmp_path: Path) -> None:
    def broken(prompt: str) -> str:
        raise RuntimeError("secret inside")

    with (
        serving(divided(tmp_path, broken), playground=True) as served,
        visit(browser, served) as page,
    ):
        send(page, "hi")
        page.locator(".problem", has_text="its log says where").or_(
            page.locator(".problem", has_text="decoding failed")
        ).wait_for()
        assert "secret" not in page.content()


def test_the_key_is_the_password(browser: Browser, tmp_path: Path) -> None:
    with serving(divided(tmp_path), api_key="key", playground=True) as served:
        known = {"username": "anybody", "password": "key"}
        with visit(browser, served, http_credentials=known) as page:
            send(page, "hi")
            finish(page)
            assert said(column(page, 0)) == SAYS


def test_a_phone_scrolls_in_one_direction_only(browser: Browser, served: Served) -> None:
    with visit(browser, served, viewport=PHONE, has_touch=True, is_mobile=True) as page:
        send(page, "hi " + "x" * 200)
        finish(page)
        for title in ("Sampling", "The method’s constants", "This request as Python"):
            panel(page, title)
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        last = column(page, 0).locator(".token").last
        last.tap()
        box = page.locator(".details").bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE["width"]


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
  const texts = document.createTreeWalker(document.querySelector(".contain"), NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    if (element.closest("[disabled], style, script, .min_value, .max_value")) continue;
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
        send(page, "hi", prefill="Sure: ")
        finish(page)
        for title in ("Sampling", "The method’s constants", "This request as Python"):
            panel(page, title)
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")
        found = page.evaluate(CONTRAST)
        assert len(found) > 100
        assert [text for text in found if text[0] < 4.5] == []
