"""Draws docs/playground.png and docs/playground-phone.png: a real run of the playground.

Needs the extras ``server`` and ``dev``, and a Chromium that is installed. Of a harmful request only
SSD's refusal is shown, never what the target says to it by itself.
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
from safedraft.server.settings import PLAYGROUND, ServerSettings

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WIDE, PHONE = {"width": 1180, "height": 1050}, {"width": 390, "height": 1050}


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
        wide = ask(*take, WIDE, "An ordinary question", compare=True)
        wide.locator(".said .corrected").last.hover()
        wide.screenshot(path=given.folder / "playground.png")
        narrow = ask(*take, PHONE, "The same, with the answer begun", compare=False)
        narrow.screenshot(path=given.folder / "playground-phone.png")
        browser.close()


@contextmanager
def serving(name: str) -> Iterator[str]:
    app = create_app(safedraft.load_pair(name), ServerSettings(name=name, **PLAYGROUND))
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


def ask(
    browser: Browser,
    url: str,
    scheme: str,
    tokens: int,
    viewport: dict[str, int],
    example: str,
    *,
    compare: bool,
) -> Page:
    """The page after the reply to one of its examples."""
    phone = viewport is PHONE
    page = browser.new_page(
        viewport=viewport,  # type: ignore[arg-type]
        color_scheme=scheme,  # type: ignore[arg-type]
        is_mobile=phone,
        has_touch=phone,
    )
    page.goto(url)
    page.get_by_role("button", name=example).click()
    settings = page.locator("summary", has_text="Settings")
    settings.click()
    page.get_by_label("Let the target answer alone, too").set_checked(compare)
    page.get_by_label("Most new tokens").fill(str(tokens))
    settings.click()
    page.get_by_role("button", name="Send").click()
    page.locator("#status", has_text="Done").wait_for(timeout=600_000)
    page.evaluate("scrollTo(0, 0)")
    return page


if __name__ == "__main__":
    try:
        main()
    except safedraft.SafeDraftError as error:
        sys.exit(f"error: {error}")
