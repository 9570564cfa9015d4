"""The page in a headless Chromium, light and dark, wide and narrow. Screenshots go to $SFVLM_SCREENSHOTS."""

import os
import shutil
from pathlib import Path
from typing import Literal

import pytest

pytest.importorskip("playwright.sync_api")

from playwright.sync_api import sync_playwright

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 820, 390])
def test_the_page_opens_fits_and_asks_for_nothing(
    scheme: Literal["light", "dark"], width: int, made: Path, tmp_path: Path
) -> None:
    asked: list[str] = []
    with sync_playwright() as playwright:
        found = os.environ.get("CHROMIUM") or shutil.which("chromium")
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        page.on("request", lambda each: asked.append(each.url))
        page.on("pageerror", lambda error: asked.append(str(error)))
        page.goto(f"file://{made / 'report.html'}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("[...document.images].every(image => image.naturalWidth === 384)")
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 26)"
        folder = Path(os.environ.get("SFVLM_SCREENSHOTS") or tmp_path)
        page.screenshot(path=folder / f"report-{scheme}-{width}.png", full_page=True)
        browser.close()
    assert dark == (scheme == "dark")
    assert [each for each in asked if not each.startswith(("data:", "file:"))] == []
