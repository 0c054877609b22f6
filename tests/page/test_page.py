"""The web page in a real browser: what it shows of the balancer, keys, languages, small screens, accessibility."""

import ast
import subprocess
import sys

import pytest
from conftest import PATIENCE, prompt_once, wait_until

from page.browsing import TABS, USAGE, Talker, answers, ask, playwright, see


def test_it_shows_the_backends_and_the_charts_at_once(front, talker, visit):
    page = visit(front().url)
    see(page.locator("#headline"), "The backend is up.")
    see(page.locator("#subline"), "4 requests can run at once")
    tile = page.locator(".tile")
    for text in (talker.url[len("http://") :], "up", "m.gguf", "25%", "1.2 GB"):
        see(tile, text)
    assert page.locator(".chart").count() == 4
    see(page.locator("#pill"), "1 of 1 up")
    assert page.title() == "Now · ComeAPI"


def test_tokens_per_second_are_live_while_somebody_watches(front, talker, visit):
    page = visit(front().url)
    see(page.locator(".tile"), "m.gguf")

    def counts():
        talker.state["generated_tokens"] += 100
        return page.locator(".chart .value").first.inner_text() not in ("0", "–")

    wait_until(counts)


def test_a_dead_backend_is_told_with_its_reason_and_one_that_leaves_is_gone(front, talker, visit):
    balancer = front(talker, Talker())
    page = visit(balancer.url)
    see(page.locator("#headline"), "Both backends are up.")
    talker.state["status"], url = "ok", talker.url
    talker.service.drain(0)
    see(page.locator("#headline"), "1 of 2 backends is up.")
    see(page.locator(".tile").first, "refused")
    see(page.locator("#happened"), "%s is down" % url[len("http://") :])
    balancer._membership.drain(url, remove=True)
    see(page.locator("#happened"), "has left")
    playwright.expect(page.locator(".tile")).to_have_count(1)


def test_it_says_when_the_balancer_is_gone_and_finds_it_again(front, visit):
    balancer = front()
    page = visit(balancer.url)
    see(page.locator("#headline"), "is up")
    port = balancer.service.port
    balancer.stop(0)
    see(page.locator("#headline"), "can't be reached")
    front(port=port)
    see(page.locator("#headline"), "is up")


def test_the_first_paint_comes_within_a_second(front, visit):
    url = front().url
    script = "performance.getEntriesByName('first-contentful-paint').map((entry) => entry.startTime)"

    def paint():
        page = visit(url)
        (seconds,) = wait_until(lambda: page.evaluate(script))
        return seconds / 1000

    prompt_once(paint, 1.0)


def test_a_chart_is_read_by_keyboard(front, visit):
    page = visit(front().url)
    see(page.locator("#headline"), "is up")
    chart = page.locator(".picture").first
    chart.focus()
    page.keyboard.press("ArrowLeft")
    assert chart.get_attribute("aria-valuenow") == "-5"
    page.keyboard.press("End")
    assert "at most" in chart.get_attribute("aria-valuetext")


# ---- keys


def test_it_asks_once_for_the_key_and_keeps_it_for_the_tab(front, talker, visit):
    page = visit(front(api_key=("sesame",)).url)
    see(page.locator("dialog"), "asks for a key")
    for key in ("wrong", "sesame"):
        page.fill("#key", key)
        page.keyboard.press("Enter")
        if key == "wrong":
            see(page.locator("dialog"), "not accepted")
    see(page.locator("#headline"), "is up")
    page.reload()
    see(page.locator("#headline"), "is up")
    assert page.locator("dialog").count() == 0
    page.click("nav a >> nth=1")
    ask(page, "hello")
    talker.say("with the key", None)
    see(answers(page), "with the key")
    assert "sesame" not in page.evaluate("JSON.stringify(localStorage) + document.cookie + document.body.innerHTML")
    other = visit(page.url.partition("/#")[0], context=page.context)
    see(other.locator("dialog"), "asks for a key")  # another tab


def test_who_has_no_key_is_asked_again_only_when_he_wants(front, visit):
    page = visit(front(api_key=("sesame",)).url)
    see(page.locator("dialog"), "asks for a key")
    page.keyboard.press("Escape")
    see(page.locator("#headline"), "A key is needed.")
    for _ in range(2):  # the feed has tried again meanwhile
        with page.expect_response(lambda answer: answer.url.endswith("/events") and answer.status == 401):
            assert page.locator("dialog").count() == 0
    page.click("#subline button")
    see(page.locator("dialog"), "asks for a key")
    page.fill("#key", "sesame")
    page.keyboard.press("Enter")
    see(page.locator("#headline"), "is up")


def test_what_a_backend_calls_itself_is_text(front, talker, visit):
    talker.state["model"] = "<img src=x onerror=window.pwned=1>"
    page = visit(front().url)
    see(page.locator(".tile"), talker.state["model"])
    assert page.locator(".tile img").count() == 0 and page.evaluate("window.pwned") is None


def test_admin_actions_take_the_admin_key(front, talker, visit):
    second = Talker()
    page = visit(front(admin_key=("boss",)).url)
    see(page.locator(".tile"), "m.gguf")
    assert not page.locator(".tile .actions").is_visible()
    page.click("#admin summary")
    for key, text in (("wrong", "not accepted"), ("boss", "")):
        page.fill("#admin-key", key)
        page.keyboard.press("Enter")
        see(page.locator("#admin"), text)
    page.get_by_role("button", name="Drain").click()
    see(page.locator(".tile"), "draining")
    page.get_by_role("button", name="Take back").click()
    see(page.locator(".badge"), "up")
    page.fill("#admin-url", second.url)
    page.get_by_role("button", name="Add").click()
    see(page.locator("#headline"), "Both backends are up.")
    page.get_by_role("button", name="Remove").last.click()
    page.locator("dialog .main").click()
    playwright.expect(page.locator(".tile")).to_have_count(1)
    page.get_by_role("button", name="Restart all backends").click()
    page.locator("dialog .main").click()
    see(page.locator("#admin"), "was not started by comeapi.py")
    page.get_by_role("button", name="Lock").click()
    assert not page.locator(".tile .actions").first.is_visible()
    second.service.drain(0)


def test_without_an_admin_key_it_says_how_to_have_one(front, visit):
    page = visit(front().url)
    page.click("#admin summary")
    page.fill("#admin-key", "any")
    page.keyboard.press("Enter")
    see(page.locator("#admin"), "--admin-key")


# ---- languages, sizes, accessibility


@pytest.mark.parametrize("locale, words", [("en-GB", "is up."), ("ja-JP", "稼働中"), ("fr-FR", "is up.")])
def test_it_speaks_the_browsers_language(front, visit, locale, words):
    page = visit(front().url, locale=locale)
    see(page.locator("#headline"), words)
    assert page.get_attribute("html", "lang") == ("ja" if locale.startswith("ja") else "en")
    assert "undefined" not in page.inner_text("body")


WIDE_TEXT = "# A heading\n\n%s\n\n```\n%s\n```\n\n```\ncode\n```\n\n|%s\n|%s\n\n- a\n  - b\n" % (
    "long" * 100, "code " * 100, "cell|" * 20, "-|" * 20
)  # fmt: skip


@pytest.mark.parametrize("locale", ["en-US", "ja-JP"])
def test_it_fits_360_pixels(front, talker, visit, locale):
    page = visit(front().url, width=360, locale=locale)
    for view in TABS:
        page.click("nav a[href='#%s']" % view)
        if view == "chat":
            ask(page, "long" * 100)
            talker.say(WIDE_TEXT, USAGE, None)
            see(answers(page), "12.5")
        assert page.evaluate("document.documentElement.scrollWidth") == 360, view


@pytest.fixture
def axe():
    reason = "axe-playwright-python is not installed"
    return pytest.importorskip("axe_playwright_python.sync_playwright", reason=reason).Axe()


@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 360)])
def test_axe_finds_no_violation(front, talker, visit, axe, scheme, width):
    page = visit(front(admin_key=("boss",)).url, width=width, scheme=scheme)
    see(page.locator("#happened"), "is up")
    for view in TABS:
        page.click("nav a[href='#%s']" % view)
        if view == "now":
            page.click("#admin summary")
        if view == "chat":
            ask(page, "hello")
            talker.say({"choices": [{"delta": {"reasoning_content": "hm"}}]}, WIDE_TEXT, "[a](http://a.b)", USAGE, None)
            see(answers(page), "12.5")
            page.get_by_role("button", name="Settings").click()
        found = axe.run(page).response["violations"]
        assert not [(each["id"], [node["html"] for node in each["nodes"]]) for each in found], view


def test_axe_finds_no_violation_in_the_question_for_the_key(front, visit, axe):
    page = visit(front(api_key=("sesame",)).url)
    see(page.locator("dialog"), "asks for a key")
    assert [each["id"] for each in axe.run(page).response["violations"]] == []


# ---- try it


def test_the_lines_to_try_work_as_they_are_pasted(front, talker, visit, tmp_path):
    page = visit(front().url, "chat")
    see(page.locator("#pill"), "1 of 1 up")
    page.get_by_role("button", name="Settings").click()
    system = "You're a \"robot\" \\ $HOME.\nBe kind. 日本"
    page.fill("#system", system)
    page.fill("#set-temperature", "0.5")
    page.fill("#set-top_k", "7")
    page.click("nav a[href='#try']")
    page.fill("#try-prompt", "It's time")
    curl, python, openai, base = page.locator("#try-inside pre").all_inner_texts()
    for command in (["bash", "-c", curl], [sys.executable, "-c", python]):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=PATIENCE, check=True)
        assert b"a whole answer" in done.stdout
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "It's time"}]
    expected = {"model": "m.gguf", "messages": messages, "temperature": 0.5, "top_k": 7}
    assert talker.asked[0] == talker.asked[1] == expected
    ast.parse(openai)
    assert "extra_body" in openai and base == page.url.partition("/#")[0] + "/v1"
    pytest.importorskip("openai", reason="the openai package is not installed")
    talker.say("streamed", None)
    done = subprocess.run([sys.executable, "-c", openai], stdout=subprocess.PIPE, timeout=PATIENCE, check=True)
    assert done.stdout == b"streamed\n"
    assert talker.asked[2] == dict(talker.asked[0], stream=True)


def test_the_lines_to_try_do_not_show_the_key(front, visit):
    page = visit(front(api_key=("sesame",)).url, "try")
    page.fill("#key", "sesame")
    page.keyboard.press("Enter")
    see(page.locator("#try-inside"), "$COMEAPI_KEY")
    assert "sesame" not in page.content()
