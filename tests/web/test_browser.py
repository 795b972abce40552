"""The page in a real browser: upload, ask, look at the layers, change the method, make mistakes."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foveate import reference

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SIZE = {"width": 1280, "height": 900}
WAIT = 60_000  # milliseconds
ASKED = ("what colour is the topmost thing ?", "what size is the purple thing ?")
# Where to put the screenshot of the documentation; none is kept otherwise.
SCREENSHOT = os.environ.get("FOVEATE_SCREENSHOT")


@pytest.fixture
def visit(serve: Any) -> Iterator[Any]:
    """Opens a page; what it asks of other hosts, and every error in it, fails the test."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if importlib.util.find_spec("playwright") is None or program is None:
        pytest.skip("needs the extra 'browser' and a Chromium (apt install chromium)")
    from playwright.sync_api import sync_playwright

    elsewhere: list[str] = []
    errors: list[str] = []
    with sync_playwright() as driver:
        # Chromium's own sandbox wants a user that is not root; the page is ours.
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])

        def opened(url: str) -> Any:
            page = browser.new_page(viewport=SIZE)  # type: ignore[arg-type]
            page.set_default_timeout(WAIT)
            page.on(
                "request",
                lambda r: (
                    elsewhere.append(r.url)
                    if not r.url.startswith((url, "data:", "blob:"))
                    else None
                ),
            )
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(url)
            return page

        yield opened
        browser.close()
    assert elsewhere == []
    assert errors == []


def ask(page: Any, question: str, turn: int) -> tuple[str, str]:
    """(compressed model's answer, full model's) to the `turn`-th question."""
    page.fill("#question textarea, #question input", question)
    press(page, "Ask")
    row = page.locator("#log .fv-turn").nth(turn - 1)
    row.locator(".fv-facts").nth(1).get_by_text("tokens reused").wait_for()
    assert row.locator(".fv-asked").inner_text() == question
    short, full = row.locator(".fv-text").all_inner_texts()
    return short, full


def press(page: Any, button: str) -> None:
    page.get_by_role("button", name=button, exact=True).click()


def drawn(page: Any) -> str:
    """The address of the overlay, which changes with what it shows."""
    return str(page.locator("#kept img").get_attribute("src"))


def redrawn(page: Any, before: str) -> str:
    page.wait_for_function(
        "before => document.querySelector('#kept img')?.src !== before", arg=before
    )
    return drawn(page)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_visit(serve: Any, visit: Any, tmp_path: Path) -> None:
    sample = next(reference.samples("test", 1, start=48))
    path = tmp_path / "uploaded.png"
    sample.image.save(path)
    (tmp_path / "words.png").write_text("no picture")
    url, _ = serve("-m", "visionzip", "-k", "64")
    page = visit(url)

    # A picture is there already, and its questions; another one is uploaded.
    page.locator("#kept img").wait_for()
    assert page.locator(".fv-suggested").count() == 3
    untouched = drawn(page)
    upload(page, path)
    untouched = redrawn(page, untouched)
    assert "after the first answer" in page.inner_text("#caption")

    # Two questions: both models answer, beside each other, with their numbers.
    question = sample.turns[0][0]
    short, full = ask(page, question, 1)
    assert short and full
    overlay = redrawn(page, untouched)
    assert "64 of 256 tokens" in page.inner_text("#caption")
    cards = page.locator("#log .fv-said").all_inner_texts()
    assert "64 of 256" in cards[0] and "256 of 256" in cards[1]
    short, full = ask(page, sample.turns[1][0], 2)
    assert short and full
    second = page.locator("#log .fv-said").nth(2).inner_text()
    assert re.search(r"tokens reused\s+(?!0 )\d+ of \d+", second)
    if SCREENSHOT:
        page.mouse.move(640, 880)
        page.wait_for_timeout(500)
        page.screenshot(path=SCREENSHOT)
    assert inside(page)

    # A method between layers: a new conversation, and the slider shows what each layer kept.
    choose(page, "pyramiddrop", "50%")
    assert page.locator("#log .fv-turn").count() == 0
    ask(page, question, 1)
    last = redrawn(page, overlay)
    fewer = int(page.inner_text("#caption b").split(":")[1].split()[0])
    slide(page, 0)
    redrawn(page, last)
    assert "Layer 0: 256 of 256" in page.inner_text("#caption") and fewer < 256

    # What is wrong is said on the page, and the conversation goes on.
    page.fill("#keep textarea, #keep input", "many")
    page.keyboard.press("Tab")
    page.locator("#notice").get_by_text("A budget is a count like 64").wait_for()
    assert page.locator("#log .fv-turn").count() == 1
    page.fill("#keep textarea, #keep input", "50%")
    page.keyboard.press("Tab")
    page.locator("#notice .fv-notice").wait_for(state="detached")
    ask(page, sample.turns[1][0], 2)
    press(page, "Ask")
    page.locator("#notice").get_by_text("A question is needed").wait_for()
    upload(page, tmp_path / "words.png")
    page.locator("#notice").get_by_text("is no image that can be read").wait_for()
    page.fill("#question textarea, #question input", question)
    press(page, "Ask")
    page.locator("#notice").get_by_text("Choose or upload a picture first").wait_for()

    # One of the drawn scenes, and a question that it suggests.
    page.locator("#choices .thumbnail-item").nth(1).click()
    page.locator("#notice .fv-notice").wait_for(state="detached")
    page.locator(".fv-suggested").first.click()
    page.locator("#log .fv-facts").nth(1).get_by_text("tokens reused").wait_for()
    press(page, "New")
    page.locator("#log .fv-turn").wait_for(state="detached")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_answer_can_be_stopped(serve: Any, visit: Any, long_winded: Path) -> None:
    url, _ = serve("scene:1", "-m", "divprune", "-k", "5", "--model", str(long_winded),
                   "--max-new-tokens", "4000")  # fmt: skip
    page = visit(url)
    page.locator("#kept img").wait_for()
    page.fill("#question textarea, #question input", "what colour is the thing ?")
    press(page, "Ask")
    page.wait_for_function("document.querySelector('#log .fv-text')?.innerText.length > 20")
    first = page.inner_text("#log .fv-short .fv-text")
    page.wait_for_function(  # it grows
        "n => document.querySelector('#log .fv-short .fv-text').innerText.length > n",
        arg=len(first),
    )
    press(page, "Stop")
    page.locator("#log .fv-turn").wait_for(state="detached")
    # The model is free again: also for a second visitor, while the first one has left half-way.
    page.fill("#question textarea, #question input", "what colour is the thing ?")
    press(page, "Ask")
    page.wait_for_function("document.querySelector('#log .fv-text')?.innerText.length > 20")
    page.close()
    other = visit(url)
    other.locator("#kept img").wait_for()
    other.fill("#question textarea, #question input", "what colour is the thing ?")
    press(other, "Ask")
    other.wait_for_function("document.querySelector('#log .fv-text')?.innerText.length > 20")
    press(other, "Stop")
    other.locator("#log .fv-turn").wait_for(state="detached")


@pytest.fixture
def long_winded(tmp_path: Path) -> Path:
    """A checkpoint whose answers do not end by themselves."""
    import json

    from tests.families import checkpoints

    folder = checkpoints.save("llava", tmp_path / "llava")
    settings = folder / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "eos_token_id": None}))
    return folder


def upload(page: Any, path: Path) -> None:
    """Another picture than the one that is shown."""
    remove = page.locator("#picture button[aria-label='Clear'], #picture button[title='Clear']")
    if remove.count():
        remove.first.click()
    page.set_input_files("#picture input[type=file]", path)


def choose(page: Any, method: str, keep: str) -> None:
    page.fill("#method input", method)
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.fill("#keep textarea, #keep input", keep)
    page.keyboard.press("Tab")
    page.locator("#log .fv-turn").first.wait_for(state="detached")


def slide(page: Any, layer: int) -> None:
    page.fill("#layer input[type=number]", str(layer))
    page.keyboard.press("Tab")


def inside(page: Any) -> bool:
    """Whether everything fits the window's width, and no text overflows its card."""
    return bool(
        page.evaluate(
            """() => document.documentElement.scrollWidth <= window.innerWidth
            && [...document.querySelectorAll('.fv-said, .fv-facts div, #caption')]
               .every(each => each.scrollWidth <= each.clientWidth + 1)"""
        )
    )
