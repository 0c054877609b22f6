"""The web page's files: who gets them, with which headers, and what is in them. No browser is needed."""

import gzip
import os
import re

import pytest
from conftest import ROOT, call

from balancer import Balancer, Config
from core.page.files import FILES

FOLDER = os.path.join(ROOT, "core", "page")
BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.fixture(scope="module")
def locked():
    """A balancer that asks for a key."""
    balancer = Balancer(Config(port=0, backends=0, api_key=("k",))).start()
    yield balancer
    balancer.stop(0)


def source(name):
    with open(os.path.join(FOLDER, name), encoding="utf-8") as file:
        return file.read()


def test_a_browser_gets_the_page_and_all_others_json(locked):
    page = call(locked.url + "/", headers=dict(BROWSER, Authorization="Bearer k"))
    assert page.headers["Content-Type"] == "text/html; charset=utf-8" and b"<!doctype html>" in page.body
    for accept in ("*/*", "application/json", ""):
        answer = call(locked.url + "/", headers={"Accept": accept, "Authorization": "Bearer k"})
        assert answer.json["message"] == "ComeAPI Load Balancer" and answer.headers["Vary"] == "Accept"


def test_the_page_needs_no_key_and_what_it_shows_does(locked):
    assert call(locked.url + "/", headers=BROWSER).status == 200
    assert [call(locked.url + "/page/" + name).status for name in FILES] == [200] * len(FILES)
    for path in ("/", "/events", "/status", "/page/files.py", "/page/__init__.py", "/page/../balancer.py"):
        assert call(locked.url + path).status == 401, path


def test_another_site_can_neither_frame_the_page_nor_load_it(locked):
    frame = dict(BROWSER, **{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"})
    assert call(locked.url + "/", headers=frame).status == 403
    assert call(locked.url + "/", headers=dict(frame, **{"Sec-Fetch-Dest": "document"})).status == 200  # a link
    for path in ["/"] + ["/page/" + name for name in FILES]:
        headers = call(locked.url + path, headers=BROWSER).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"


def test_every_file_is_served_as_what_it_is(locked):
    kinds = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    for name in FILES:
        answer = call(locked.url + "/page/" + name)
        assert answer.headers["Content-Type"] == kinds[name.rpartition(".")[2]] + "; charset=utf-8"
        assert answer.body.decode() == source(name)
    assert {name for name in os.listdir(FOLDER) if name.endswith((".js", ".css", ".svg"))} == set(FILES)


FOREIGN = r"""(src|href)=["']?(https?:)?//|url\(["']?(https?:)?//|@import|from ["']http"""
MARKUP = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"


def test_nothing_in_the_files_comes_from_elsewhere_or_makes_markup_of_text():
    for name in list(FILES) + ["page.html"]:
        text = source(name).replace("http://www.w3.org/2000/svg", "").replace("http://gpu1:8080", "")
        assert not re.search(FOREIGN, text), name
        assert not re.search(MARKUP, text), name


@pytest.mark.parametrize("other", ["english.js", "japanese.js"])
def test_what_a_browser_loads_is_less_than_80_kb(other):
    loaded = {*FILES, "page.html"} - {other}
    assert sum(os.path.getsize(os.path.join(FOLDER, name)) for name in loaded) < 80000


def test_all_files_together_are_small_on_the_wire(locked):
    packed = dict(BROWSER, **{"Accept-Encoding": "gzip, deflate, br"})
    size = 0
    for path in ["/"] + ["/page/" + name for name in FILES]:
        answer = call(locked.url + path, headers=packed)
        assert answer.headers["Content-Encoding"] == "gzip" and "Accept-Encoding" in answer.headers["Vary"]
        assert gzip.decompress(answer.body).decode() == source(path.rpartition("/")[2] or "page.html")
        size += len(answer.body)
    assert size < 40000


def test_both_languages_have_the_same_words_and_all_that_are_used():
    names = [re.findall(r"^\t{1,2}(\w+):", source(name), re.M) for name in ("english.js", "japanese.js")]
    assert len(names[0]) > 100 and sorted(names[0]) == sorted(names[1])
    used = set(re.findall(r"""data-t(?:-\w+)?="(\w+)\"""", source("page.html")))
    for name in FILES:
        used |= set(re.findall(r"""\bt\("(\w+)\"""", source(name))) if name.endswith(".js") else set()
    assert len(used) > 80 and not used - set(names[0])
