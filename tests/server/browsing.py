"""The playground in a browser: how a visitor opens it, sends, and waits for the end."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from serving import Served
from talking import END, TURN, VOCABULARY, TalkingPair, scripted_pair, talking

from safedraft.core.config import SSDConfig

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

SAYS = "A table <b>maps</b> keys & values;\nit is a <script>alert(1)</script> of buckets, ${value}."
REFUSES = "I'm sorry, but I can't help with that."
FLAGS = (
    "--no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-quic"
)
PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 800}
TOUCH = {"has_touch": True, "is_mobile": True}
PATIENCE = 60_000
"""Milliseconds that a busy machine may take for anything."""


def divided(
    folder: Path,
    answer: Callable[[str], str] = lambda prompt: SAYS,
    differs: Callable[[int], bool] = lambda length: length // 10 % 2 == 1,
) -> TalkingPair:
    """The draft proposes something else after the lengths that ``differs`` says.

    A prompt that contains ``slowly`` is answered slowly, and one with ``forever`` at length too. To
    one that contains ``phishing`` the draft refuses, in which the target follows it.
    """
    tokenizer = talking(folder, answer).target.tokenizer
    assert tokenizer is not None
    seen: list[str] = []

    def say(text: str, said: str) -> torch.Tensor:
        begun = max(count for count in range(len(text) + 1) if said.endswith(text[:count]))
        logits = torch.zeros(VOCABULARY)
        logits[tokenizer.encode(text[begun:])[0] if text[begun:] else END] = 9.0
        return logits

    def read(ids: Any) -> tuple[str, str, str]:
        prompt, _, said = str(tokenizer.decode(list(ids))).rpartition(TURN)
        if prompt not in seen:
            seen.append(prompt)
        return prompt, said, answer(prompt) * (8 if "forever" in prompt else 1)

    def target(ids: Any) -> torch.Tensor:
        prompt, said, text = read(ids)
        if "phishing" not in prompt:
            return say(text, said)
        if any(said.endswith(REFUSES[:count]) for count in range(1, len(REFUSES) + 1)):
            return say(REFUSES, said)
        return say(text, said) * 5 / 9  # the draft's token is more likely in union

    def draft(ids: Any) -> torch.Tensor:
        prompt, said, text = read(ids)
        time.sleep(0.05 if "slowly" in prompt or "forever" in prompt else 0.002)
        if "phishing" in prompt:
            return 2 * say(REFUSES, said)
        logits = say(text, said)
        return torch.roll(logits, 1) if differs(len(ids)) else logits

    # A weak draft: what it proposes wrongly is corrected in union too.
    config = SSDConfig(alpha_intersection=0.2, alpha_min=0.2, alpha_union=0.4)
    return scripted_pair(tokenizer, target, draft, config, seen)


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
    """The page as a visitor opens it: it talks to its own server only, and without errors."""
    page = browser.new_page(**({"viewport": DESKTOP} | settings))
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if _violates(message) else None)
    page.on("websocket", lambda socket: asked.append(socket.url))
    page.set_default_timeout(PATIENCE)
    page.goto(f"{served.url}/playground/")
    page.locator("#status:has-text('Ready'), #key-form:visible").wait_for()
    yield page
    page.close()
    assert [url for url in asked if not url.startswith(served.url + "/")] == []
    assert asked
    assert errors == []


def _violates(message: Any) -> bool:
    return "Content Security Policy" in message.text


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def unfold(page: Page, title: str) -> None:
    page.locator("summary", has_text=title).last.click()


def send(page: Page, prompt: str, prefill: str = "") -> None:
    page.get_by_label("Your message").fill(prompt)
    if prefill:
        unfold(page, "Prefill")
        page.locator("#prefill").fill(prefill)
    button(page, "Send").click()


def finish(page: Page, status: str = "Done") -> str:
    shown = page.locator("#status", has_text=status)
    shown.wait_for()
    return shown.inner_text()


def problem(page: Page, words: str) -> str:
    shown = page.get_by_role("alert").filter(has_text=words)
    shown.wait_for()
    return shown.inner_text()


def card(page: Page, number: int) -> Locator:
    """A card of the last turn: SSD's is 0, and the target's 1."""
    return page.locator(".turn").last.locator(".card").nth(number)


def said(element: Locator) -> str:
    return str(element.evaluate("element => element.textContent"))


def reply(page: Page, number: int) -> str:
    return said(card(page, number).locator(".said"))


def is_in_view(page: Page, selector: str) -> bool:
    """Whether the whole element is in the window and nothing covers its middle."""
    return bool(
        page.locator(selector).evaluate(
            """element => {
                const { left, right, top, bottom } = element.getBoundingClientRect();
                const beside = left < 0 || right > innerWidth || right <= left;
                const outside = beside || top < 0 || bottom > innerHeight;
                const at = document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
                return !outside && (at.contains(element) || element.contains(at));
            }"""
        )
    )


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
