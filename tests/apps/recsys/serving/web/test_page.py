"""The page in a real browser: by the keyboard alone, and with names for all controls; it asks its own server only."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from apps.recsys.serving.web.application import PAGE
from tests.apps.recsys.conftest import Trained
from tests.apps.recsys.running import serving
from tests.apps.recsys.serving.web.browser import CHROMIUM, Page, browsing

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")


@pytest.fixture
def page(trained: Trained, tmp_path: Path) -> Iterator[Page]:
    """The page of a running server."""
    with serving(trained.model) as (_, address), browsing(tmp_path / "profile") as page:
        page.call("Page.navigate", url=address)
        page.wait("document.querySelectorAll('#found li').length && document.querySelectorAll('#terms tr').length")
        yield page


@needs_browser
def test_items_are_chosen_and_recommended_by_the_keyboard(page: Page, tmp_path: Path) -> None:
    page.evaluate("document.getElementById('search').focus()")
    page.type("8")
    page.wait("document.querySelector('#found li')?.dataset.id === '8'")
    page.press("Tab", 9)
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Add ")
    page.press("Enter", 13)
    title = page.wait("document.querySelector('#chosen li div')?.textContent")
    assert page.evaluate("document.getElementById('status').textContent") == f"{title} is chosen."
    page.evaluate("document.getElementById('where').focus()")
    page.type("year < 1970")
    page.press("Enter", 13)
    page.wait("document.querySelectorAll('#list li').length === 10")
    assert "because of" in page.evaluate("document.getElementById('list').innerText")
    page.evaluate("document.querySelector('#list button').focus()")
    page.press("Enter", 13)
    page.wait("document.getElementById('list-title').textContent.startsWith('Similar to ')")
    assert page.evaluate("document.activeElement.id") == "list-title"
    held = page.evaluate("parseFloat(document.getElementById('held').style.width)")
    assert 10 < held <= 100
    assert not page.errors
    if folder := os.environ.get("PEAKLINE_SCREENSHOTS"):
        page.screenshot(Path(folder) / "page.png")


@needs_browser
def test_a_wrong_filter_and_a_user_are_said(page: Page) -> None:
    ask = "document.getElementById('ask-form').requestSubmit()"
    page.evaluate(f"document.getElementById('where').value = 'year >'; {ask}")
    page.wait("/character 7/.test(document.getElementById('status').textContent)")
    page.evaluate("document.getElementById('where').value = ''; document.getElementById('user').value = 'u00003'")
    page.evaluate(ask)
    page.wait("document.querySelectorAll('#list li').length === 10")


@needs_browser
def test_every_control_has_a_name_and_contrast_is_the_systems(page: Page) -> None:
    unnamed = page.evaluate(
        "[...document.querySelectorAll('input, button')].filter((one) => !(one.labels?.length || one.textContent.trim()"
        " || one.getAttribute('aria-label'))).map((one) => one.outerHTML)"
    )
    assert unnamed == []
    assert page.evaluate("document.documentElement.lang") == "en"
    assert page.evaluate(
        "[...document.querySelectorAll('section')].every((one) => one.getAttribute('aria-labelledby'))"
    )


@needs_browser
def test_a_token_is_asked_for(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef")
    with (
        serving(trained.model, "--token-file", tmp_path / "token") as (_, address),
        browsing(tmp_path / "profile") as page,
    ):
        page.call("Page.navigate", url=address)
        page.wait("document.getElementById('token-form')?.hidden === false && document.activeElement.id === 'token'")
        page.type("0123456789abcdef")
        page.press("Enter", 13)
        page.wait("document.querySelectorAll('#found li').length")


def test_the_page_is_served_and_asks_nobody_else(trained: Trained) -> None:
    with serving(trained.model) as (_, address):
        for path, kind in (("/", "text/html"), ("/page.js", "text/javascript")):
            answer = httpx.get(address + path)
            assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
        assert "default-src 'self'" in httpx.get(address).headers["content-security-policy"]
    for name in ("page.html", "page.js"):
        assert not re.search(r"(https?:)?//\w", (PAGE / name).read_text().replace("// ", "")), name
