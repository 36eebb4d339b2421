"""Draws docs/playground.png and docs/playground-phone.png: a real run of the playground.

Needs the extras ``playground`` and ``dev``, and a Chromium that is installed. Of a harmful request
only SSD's refusal is shown, never what the target says to it by itself.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn

import safedraft
from safedraft.models.registry import DEFAULT_PAIR
from safedraft.server.app import create_app
from safedraft.server.run import Server
from safedraft.server.settings import ServerSettings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pair", default=DEFAULT_PAIR, help="a registered pair")
    options.add_argument("--max-new-tokens", type=int, default=60)
    options.add_argument("--folder", type=Path, default=Path("docs"))
    options.add_argument("--scheme", choices=("light", "dark"), default="light")
    given = options.parse_args()
    chromium = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if not chromium:
        sys.exit("error: no Chromium is installed: install one, or name it in CHROMIUM")

    from playwright.sync_api import sync_playwright

    with serving(given.pair) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        take = (browser, url, given.scheme, given.max_new_tokens)
        wide = picture(*take, 1180, "An ordinary question", compare=True)
        wide.locator(".said .corrected").last.hover()
        wide.screenshot(path=given.folder / "playground.png", full_page=True)
        narrow = picture(*take, 390, "The same, with the answer begun", compare=False)
        narrow.screenshot(path=given.folder / "playground-phone.png", full_page=True)
        browser.close()


@contextmanager
def serving(name: str) -> Iterator[str]:
    app = create_app(safedraft.load_pair(name), ServerSettings(name=name, playground=True))
    listening = socket.create_server(("127.0.0.1", 0))
    server = Server(uvicorn.Config(app, log_level="warning"), app, grace_seconds=0)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.1)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/playground/"
    finally:
        server.should_exit = True
        thread.join()


def picture(
    browser: Browser, url: str, scheme: str, tokens: int, width: int, example: str, *, compare: bool
) -> Page:
    page = browser.new_page(
        viewport={"width": width, "height": 800},
        color_scheme=scheme,  # type: ignore[arg-type]
        is_mobile=width < 640,
        has_touch=width < 640,
    )
    page.goto(url)
    page.get_by_label("Let the target answer alone, too").set_checked(compare)
    sampling = page.get_by_role("button", name="Sampling")
    sampling.click()
    page.wait_for_timeout(1000)
    page.get_by_label("number input for Most new tokens").fill(str(tokens))
    page.keyboard.press("Tab")
    page.wait_for_timeout(500)
    sampling.click()
    page.get_by_role("button", name=example).click()
    page.wait_for_timeout(500)
    page.get_by_role("button", name="Send").click()
    page.locator(".status", has_text="Done").wait_for(timeout=300_000)
    page.wait_for_timeout(500)
    return page


if __name__ == "__main__":
    try:
        main()
    except safedraft.SafeDraftError as error:
        sys.exit(f"error: {error}")
