"""The fixtures of the web page's tests: a browser, pages, balancers. Without playwright or Chromium, they skip."""

import pytest
from conftest import PATIENCE

from balancer import Balancer, Config
from page.browsing import Talker, playwright, system_browser


@pytest.fixture(scope="module")
def browser():
    if playwright is None:
        pytest.skip("playwright is not installed")
    with playwright.sync_playwright() as running:
        try:
            chromium = running.chromium.launch(executable_path=system_browser(), args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip("no Chromium can be started: %s" % str(error).splitlines()[0])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser):
    """Open pages: visit(url, view, …). At the end, none may have complained or called anybody else."""
    contexts, complaints, calls = [], [], []

    def open_page(url, view="now", width=1280, locale="en-US", scheme="light", context=None):
        context = context or browser.new_context(
            viewport={"width": width, "height": 800}, locale=locale, color_scheme=scheme, accept_downloads=True
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE * 1000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: calls.append((request.url, url)))
        page.goto("%s/#%s" % (url, view))
        return page

    open_page.complaints = complaints
    yield open_page
    for context in contexts:
        context.close()
    assert not [complaint for complaint in complaints if "Failed to load resource" not in complaint]
    assert not [called for called, ours in calls if not called.startswith((ours, "blob:"))]


@pytest.fixture
def talker():
    made = Talker()
    yield made
    made.service.drain(0)


@pytest.fixture
def front(talker):
    """Start balancers before the talker."""
    started = []

    def start(*backends, **options):
        urls = tuple(each.url for each in backends or [talker])
        started.append(Balancer(Config(backend=urls, **dict({"port": 0}, **options))).start())
        return started[-1]

    yield start
    for each in started:
        each.stop(0)
