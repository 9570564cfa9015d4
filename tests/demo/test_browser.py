"""The demo in a headless Chromium: what a person does on each tab. Screenshots go to $SFVLM_SCREENSHOTS."""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
pytest.importorskip("playwright.sync_api")

from live_demo import served
from playwright.sync_api import Browser, Page, expect, sync_playwright

from sfvlm.look.sides import open_sides
from sfvlm.photos.scenes import render_scene

pytestmark = pytest.mark.browser
QUESTION = "What color is the biggest object?"
SLOW = 60_000  # ms
A_TOKEN = re.compile(r"token \d+ of \d+")  # said once a click has been answered; before it, that one may choose a token


@pytest.fixture(scope="module")
def url(swapped_folder: Path) -> Iterator[str]:
    with served(open_sides(swapped_folder, device="cpu")) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = os.environ.get("CHROMIUM") or shutil.which("chromium")
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    render_scene(0, 1, 448).image.save(path)
    return str(path)


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The page, opened anew; nothing outside of this computer may be asked for, and nothing may fail in its scripts."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    opened = context.new_page()
    outside: list[str] = []
    failed: list[str] = []
    opened.on(
        "request", lambda each: None if each.url.startswith((url, "data:", "blob:")) else outside.append(each.url)
    )
    opened.on("pageerror", lambda error: failed.append(str(error)))
    opened.goto(url, wait_until="domcontentloaded")
    expect(opened.get_by_role("tab", name="Chat")).to_be_visible(timeout=SLOW)
    yield opened
    context.close()
    assert not outside and not failed


@pytest.fixture
def keep(page: Page, tmp_path: Path) -> Callable[[str], None]:
    """Takes a screenshot of the whole page."""
    folder = Path(os.environ.get("SFVLM_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)

    def take(name: str) -> None:
        page.wait_for_timeout(400)
        page.screenshot(path=folder / f"{name}.png", full_page=True)

    return take


def show(page: Page, tab: str) -> None:
    page.get_by_role("tab", name=tab, exact=True).click()


def upload(page: Page, where: str, photo: str) -> None:
    page.locator(f"{where} input[type=file]").set_input_files(photo)


def text_of(page: Page, where: str) -> Any:
    return page.locator(f"{where} textarea")


def test_a_photo_is_talked_about(page: Page, photo: str, keep: Callable[[str], None]) -> None:
    keep("chat-empty")
    upload(page, "#chat-box", photo)
    text_of(page, "#chat-box").fill(QUESTION)
    expect(page.locator("#chat-box img")).to_be_visible(timeout=SLOW)
    page.locator("#chat-box button.submit-button").click()
    expect(page.locator("#chat-cost")).to_contain_text("49 tokens a photo", timeout=SLOW)
    assert page.locator("#chat [data-testid='bot']").inner_text().strip()
    keep("chat")
    page.get_by_label("Retry").first.click()
    page.wait_for_timeout(500)
    expect(page.locator("#chat-cost")).to_contain_text("49 tokens a photo", timeout=SLOW)
    page.get_by_label("Undo").first.click()
    expect(page.locator("#chat [data-testid='bot']")).to_have_count(0, timeout=SLOW)
    page.locator("#chat-side").get_by_text("Dense").click()
    page.locator("#chat-box button.submit-button").click()
    expect(page.locator("#chat-cost")).to_contain_text("16 tokens a photo", timeout=SLOW)
    page.get_by_label("Clear").first.click()
    expect(page.locator("#chat [data-testid='bot']")).to_have_count(0, timeout=SLOW)


def test_an_empty_prompt_and_a_broken_photo_leave_a_page_that_works(page: Page, photo: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(photo).read_bytes()[:500])
    upload(page, "#chat-box", str(broken))
    text_of(page, "#chat-box").fill(QUESTION)
    page.wait_for_timeout(1000)
    page.locator("#chat-box button.submit-button").click()
    expect(page.locator("#chat [data-testid='bot']").last).to_contain_text("cannot be opened", timeout=SLOW)
    page.get_by_label("Clear").first.click()
    text_of(page, "#chat-box").fill("hello")
    page.locator("#chat-box button.submit-button").click()
    expect(page.locator("#chat-cost")).to_contain_text("of cache", timeout=SLOW)


def test_both_sides_are_compared(page: Page, photo: str, keep: Callable[[str], None]) -> None:
    show(page, "Compare")
    upload(page, "#compare-photo", photo)
    text_of(page, "#compare-question").fill(QUESTION)
    page.locator("#compare-ask").click()
    expect(page.locator("#compare-verdict")).to_contain_text("49 instead of 16", timeout=SLOW)
    expect(page.locator("#compare-dense-cost")).to_contain_text("16 tokens a photo")
    expect(page.locator("#compare-sparse-cost")).to_contain_text("49 tokens a photo")
    keep("compare")


def test_looks_are_shown_by_step_token_word_and_budget(page: Page, photo: str, keep: Callable[[str], None]) -> None:
    show(page, "Look")
    upload(page, "#look-photo", photo)
    text_of(page, "#look-question").fill(QUESTION)
    page.locator("#look-ask").click()
    caption = page.locator("#look-caption")
    expect(caption).to_contain_text("Step 2 of 2: 49 boxes", timeout=SLOW)
    keep("look")
    set_slider(page, "#look-step", "1")
    expect(caption).to_contain_text("Step 1 of 2", timeout=SLOW)
    page.locator("#look-picture img").click(position={"x": 120, "y": 120})
    expect(caption).to_contain_text(A_TOKEN, timeout=SLOW)
    keep("look-token")
    page.locator("#look-all").click()
    page.locator("#look-show").get_by_text("What the answer attended to").click()
    expect(caption).to_contain_text("of all attention went to", timeout=SLOW)
    keep("look-attention")
    page.locator("#look-picture img").click(position={"x": 120, "y": 120})
    expect(caption).to_contain_text(A_TOKEN, timeout=SLOW)
    page.get_by_label("Word of the answer").click()
    page.get_by_role("option").nth(2).click()
    expect(caption).to_contain_text("the more “", timeout=SLOW)
    page.locator("#look-show").get_by_text("Boxes").click()
    expect(caption).to_contain_text("49 boxes", timeout=SLOW)
    page.locator("#look-picture img").click(position={"x": 120, "y": 120})
    expect(caption).to_contain_text(A_TOKEN, timeout=SLOW)
    page.locator("#look-show").get_by_text("What the answer attended to").click()
    expect(caption).to_contain_text("of all attention went to", timeout=SLOW)
    set_slider(page, "#look-budget", "25")
    expect(caption).to_contain_text("25 boxes", timeout=SLOW)
    expect(page.get_by_label("Boxes", exact=True)).to_be_checked()


def set_slider(page: Page, where: str, value: str) -> None:
    number = page.locator(f"{where} input[type=number]")
    number.fill(value)
    number.press("Enter")
    number.blur()


def test_a_rectangle_is_drawn_and_asked_about(page: Page, photo: str, keep: Callable[[str], None]) -> None:
    show(page, "Focus")
    upload(page, "#focus-photo", photo)
    picture = page.locator("#focus-picture img")
    expect(picture).to_be_visible(timeout=SLOW)
    area = picture.bounding_box()
    assert area is not None
    page.mouse.move(area["x"] + 0.25 * area["width"], area["y"] + 0.5 * area["height"])
    page.mouse.down()
    page.mouse.move(area["x"] + 0.4 * area["width"], area["y"] + 0.7 * area["height"])
    page.mouse.move(area["x"] + 0.75 * area["width"], area["y"] + 0.9 * area["height"])
    page.mouse.up()
    expect(text_of(page, "#focus-rectangle")).to_have_value("25, 50, 75, 90", timeout=SLOW)
    text_of(page, "#focus-question").fill(QUESTION)
    page.locator("#focus-ask").click()
    expect(page.locator("#focus-verdict")).to_contain_text("was read at", timeout=SLOW)
    expect(page.locator("#focus-boxes img")).to_be_visible(timeout=SLOW)
    expect(text_of(page, "#focus-answer")).not_to_be_empty(timeout=SLOW)
    keep("focus")
    page.locator("#focus-another").click()
    expect(picture).not_to_be_visible(timeout=SLOW)
    upload(page, "#focus-photo", photo)
    expect(picture).to_be_visible(timeout=SLOW)
    expect(text_of(page, "#focus-rectangle")).to_have_value("30, 30, 70, 70", timeout=SLOW)
    expect(page.locator("#focus-picture .mark")).not_to_be_visible()


def test_classes_are_ranked(page: Page, photo: str, keep: Callable[[str], None]) -> None:
    show(page, "Zero-shot")
    upload(page, "#rank-photo", photo)
    expect(page.locator("#rank-verdict")).to_contain_text("say", timeout=SLOW)
    keep("zeroshot")


def test_a_click_on_an_example_asks(page: Page, keep: Callable[[str], None]) -> None:
    page.locator("#chat button.example").first.click()
    expect(page.locator("#chat-cost")).to_contain_text("49 tokens a photo", timeout=SLOW)
    expect(page.locator("#chat")).to_contain_text("Describe the photo.")
    keep("chat-example")
    show(page, "Compare")
    page.locator("#compare-examples img").nth(1).click()
    expect(page.locator("#compare-verdict")).to_contain_text("49 instead of 16", timeout=SLOW)
    expect(text_of(page, "#compare-question")).to_have_value("Is there a dog in the photo?")
    keep("compare-example")
    show(page, "Look")
    page.locator("#look-examples img").nth(2).click()
    expect(page.locator("#look-caption")).to_contain_text("49 boxes", timeout=SLOW)
    show(page, "Focus")
    for number, rectangle in enumerate(("70, 20, 100, 90", "36, 36, 56, 56")):  # the second replaces the first
        page.locator("#focus-examples img").nth(number).click()
        expect(text_of(page, "#focus-rectangle")).to_have_value(rectangle, timeout=SLOW)
        expect(page.locator("#focus-verdict")).to_contain_text(("640 x 427", "896 x 896")[number], timeout=SLOW)
    expect(page.locator("#focus-picture img")).to_be_visible(timeout=SLOW)
    show(page, "Zero-shot")
    page.locator("#rank-examples img").first.click()
    expect(page.locator("#rank-verdict")).to_contain_text("say", timeout=SLOW)


def test_a_narrow_page_scrolls_in_one_direction_only(page: Page, keep: Callable[[str], None]) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(500)
    keep("chat-narrow")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
