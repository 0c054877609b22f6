"""Whose web page, whose host name: what a browser on a foreign page can make it do is nothing.

A row is (name, method and path, header fields, what comes). Where it says "403", the handler must not have run.
Sources: the Fetch standard, CVE-2024-28224 (DNS rebinding of Ollama), RFC 9110 section 7.2.
"""

import pytest

from hostile.enemy import Line, get, post, unharmed

BODY = b'{"model_name": "demo.gguf", "prompt": "Hi", "max_tokens": 1}'
NOT_HERE = "400/403/421"

HOSTS = [
    ("by address", b"127.0.0.1", "200"),
    ("by address and port", b"127.0.0.1:%d", "200"),
    ("by name", b"localhost", "200"),
    ("by name and port", b"localhost:%d", "200"),
    ("in capitals", b"LOCALHOST:%d", "200"),
    ("by IPv6 address", b"[::1]:%d", "200"),
    ("through a tunnel's port", b"localhost:8000", "200"),
    ("foreign", b"evil.example", NOT_HERE),
    ("foreign with a port", b"evil.example:%d", NOT_HERE),
    ("foreign that begins like ours", b"127.0.0.1.evil.example", NOT_HERE),
    ("foreign that begins with localhost", b"localhost.evil.example:%d", NOT_HERE),
    ("foreign that ends like ours", b"evil-localhost", NOT_HERE),
    ("a foreign address", b"10.1.2.3:%d", "200/400/403/421"),
    ("two", b"127.0.0.1, evil.example", NOT_HERE),
    ("two with a space", b"127.0.0.1 evil.example", NOT_HERE),
    ("with an account", b"evil.example@127.0.0.1", NOT_HERE),
    ("with a path", b"127.0.0.1/evil", NOT_HERE),
    ("with a query", b"127.0.0.1?evil", NOT_HERE),
    ("with a scheme", b"http://127.0.0.1", NOT_HERE),
    ("with a backslash", b"127.0.0.1\\evil", NOT_HERE),
    ("an escape", b"127.0.0.1%00", NOT_HERE),
    ("a port too large", b"127.0.0.1:99999", "200/400/403/421"),
    ("a port that is none", b"127.0.0.1:x", NOT_HERE),
    ("a negative port", b"127.0.0.1:-1", NOT_HERE),
    ("two ports", b"127.0.0.1:80:80", NOT_HERE),
    ("half a bracket", b"[::1", NOT_HERE),
    ("the other half", b"::1]", NOT_HERE),
    ("nothing in brackets", b"[]", NOT_HERE),
    ("something behind brackets", b"[::1]evil", NOT_HERE),
    ("nothing, which no browser sends", b"", "200/400/403/421"),
    ("a dot", b".", NOT_HERE),
    ("a star", b"*", NOT_HERE),
    ("UTF-8", "lócalhost".encode(), NOT_HERE),
    ("a control character", b"local\x01host", NOT_HERE),
    ("5,000 letters", b"a" * 5000, NOT_HERE),
    ("markup", b"<script>alert(1)</script>", NOT_HERE),
]


@pytest.mark.parametrize("row", HOSTS, ids=[row[0].replace(" ", "-") for row in HOSTS])
@pytest.mark.parametrize("what", ["GET", "POST"])
def test_a_host_name(target, row, what):
    place, survivors = target
    host = row[1].replace(b"%d", b"%d" % place.port)
    field = b"Host: " + host + b"\r\n"
    with unharmed(*survivors):
        reply = get(place.port, "/status", field) if what == "GET" else post(place.port, "/generate", BODY, field)
        assert reply.status in {int(each) for each in row[2].split("/")}, (reply.status, reply.body[:200])
        assert len(reply.body) < 4096 and b"<script>" not in reply.body
        if reply.status != 200:
            assert reply.error["message"]


EVIL = b"Origin: http://evil.example\r\n"
FETCHED = b"Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: no-cors\r\n"
PLAIN = b"Content-Type: text/plain\r\n"

PAGES = [
    ("a foreign page's text", "POST /generate", EVIL + PLAIN + FETCHED, "403"),
    ("a foreign page's JSON", "POST /generate", EVIL, "403"),
    ("a foreign page's chat", "POST /v1/chat/completions", EVIL + PLAIN, "403"),
    ("a foreign page's form", "POST /completion", EVIL + b"Content-Type: application/x-www-form-urlencoded\r\n", "403"),
    ("a foreign page's tokens", "POST /tokenize", EVIL + PLAIN, "403"),
    ("a foreign page's unknown path", "POST /nothing", EVIL, "403/404"),
    ("a foreign page's change of backends", "POST /admin/backends", EVIL, "403/404"),
    ("a foreign page's look at the state", "GET /status", EVIL, "403"),
    ("a foreign page's look at the models", "GET /models", EVIL, "403"),
    ("a foreign page's look at the slots", "GET /slots", EVIL, "403"),
    ("a foreign page's look at the metrics", "GET /metrics", EVIL, "403"),
    ("a page in a frame", "POST /generate", b"Origin: null\r\n", "403"),
    ("a local file's page", "POST /generate", b"Origin: file://\r\n", "403"),
    ("an extension", "POST /generate", b"Origin: chrome-extension://abcdefgh\r\n", "403"),
    ("a name that begins like ours", "POST /generate", b"Origin: http://127.0.0.1.evil.example\r\n", "403"),
    ("a name that ends like ours", "POST /generate", b"Origin: http://evil-localhost\r\n", "403"),
    ("an account like ours", "POST /generate", b"Origin: http://127.0.0.1@evil.example\r\n", "403"),
    ("nonsense", "POST /generate", b"Origin: \xff http://[::1\r\n", "400/403"),
    ("an empty origin", "POST /generate", b"Origin:\r\n", "200/400/403"),
    ("two origins", "POST /generate", b"Origin: http://127.0.0.1:%(port)d\r\n" + EVIL, "400/403"),
    ("two in one line", "POST /generate", b"Origin: http://127.0.0.1:%(port)d http://evil.example\r\n", "400/403"),
    ("a deletion", "DELETE /admin/backends?url=http://a", EVIL, "403/404/405"),
    ("its own page", "POST /generate", b"Origin: http://127.0.0.1:%(port)d\r\n", "200"),
    ("curl", "POST /generate", b"Content-Type: application/x-www-form-urlencoded\r\n", "200"),
    ("a client without a type", "POST /generate", b"", "200"),
    ("a client with a strange agent", "POST /generate", b"User-Agent: \x80\xff;(\r\n", "200"),
]  # fmt: skip


def ask(place, what, fields):
    method, path = what.split()
    fields = b"Host: 127.0.0.1:%d\r\n" % place.port + fields.replace(b"%(port)d", b"%d" % place.port)
    if method == "POST":
        return post(place.port, path, BODY, fields)
    return get(place.port, path, fields, method=method.encode())


@pytest.mark.parametrize("row", PAGES, ids=[row[0].replace(" ", "-") for row in PAGES])
def test_a_web_page(target, row):
    place, survivors = target
    with unharmed(*survivors):
        reply = ask(place, row[1], row[2])
        assert reply.status in {int(each) for each in row[3].split("/")}, (reply.status, reply.body[:200])
        assert reply.header("access-control-allow-origin") in ("", "http://127.0.0.1:%d" % place.port)


@pytest.mark.parametrize("asked", [b"POST", b"GET", b"DELETE", b"\xff", b"X" * 5000])
@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/admin/backends", "/nothing", "*"])
def test_a_foreign_page_that_asks_first_is_not_encouraged(target, asked, path):
    place, survivors = target
    fields = b"Access-Control-Request-Method: " + asked + b"\r\nAccess-Control-Request-Headers: authorization\r\n"
    with unharmed(*survivors):
        reply = get(place.port, path, fields + EVIL, method=b"OPTIONS")
        assert reply.status < 500
        assert not reply.header("access-control-allow-origin")


def test_a_foreign_page_that_may_read_nothing_can_also_start_nothing(target):
    place, survivors = target
    with unharmed(*survivors):
        before = generated(place)
        for _ in range(5):
            assert ask(place, "POST /generate", EVIL + PLAIN).status == 403
        assert generated(place) == before


def generated(place):
    """Return the tokens that the backend has generated; 0 at the balancer, which does not count them."""
    page = get(place.port, "/metrics").body.decode()
    lines = [line for line in page.splitlines() if line.startswith("comeapi_backend_generated_tokens_total ")]
    return float(lines[0].split()[1]) if lines else 0


def test_what_a_slow_foreign_page_sends_is_not_read_to_its_end(target):
    place, survivors = target
    with unharmed(*survivors), Line(place.port) as line:
        line.send(b"POST /generate HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 1000000\r\n\r\n{")
        assert line.reply().status in (400, 403, 421)
