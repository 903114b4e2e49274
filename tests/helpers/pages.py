"""Fixtures and functions for tests that look at the page in Chromium; a plugin of `conftest.py`."""

import shutil

import pytest

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")


@pytest.fixture(scope="module")
def browser():
    """A Chromium without a window."""
    path = next(filter(None, map(shutil.which, CHROMIUMS)), None)
    if path is None:
        pytest.skip(f"no Chromium is installed; looked for {', '.join(CHROMIUMS)}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def visit(browser):
    """`visit(service, key=None, scheme="light", width=1280) -> page`; in the end no page may have failed.

    A page fails when a script does, or the policy blocks something, or anything is loaded from elsewhere.
    """
    opened, faults = [], []

    def note(message):
        if message.type == "error" and "Failed to load resource" not in message.text:  # a refusal, which is shown
            faults.append(message.text)

    from playwright.sync_api import expect

    def start(service, key=None, scheme="light", width=1280):
        viewport = {"width": width, "height": 900}
        opened.append(browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce"))
        page = opened[-1].new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", note)
        page.on("request", lambda asked: asked.url.startswith((service.url, "data:")) or faults.append(asked.url))
        page.goto(f"{service.url}/ui")
        if key:
            enter(page, key)
            expect(page.locator("#text:focus, #image:focus")).to_have_count(1)
        return page

    yield start
    for context in opened:
        context.close()
    assert faults == []


def enter(page, key):
    page.get_by_label("Key", exact=True).fill(key)
    page.get_by_role("button", name="Use this key").click()


def violations(page):
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{rule['id']}: {node['html']}" for rule in found for node in rule["nodes"]]


def too_wide(page):
    return page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
