"""The admin API under every spelling, keys of every kind, and where they may not go.

Sources: RFC 6750 (Bearer), OWASP's lists of path confusion and of request forgery by servers.
"""

import json
from urllib.parse import quote

import pytest

from hostile.enemy import Fort, Upstream, get, post, talk, unharmed

CLIENT, ADMIN = "client-key-4711", "admin-key-0815"
AS_CLIENT = b"Authorization: Bearer %b\r\n" % CLIENT.encode()
AS_ADMIN = b"Authorization: Bearer %b\r\n" % ADMIN.encode()


class Guarded:
    """A balancer with a client's key and an admin's, in front of a backend that keeps all that it is sent."""

    def __init__(self):
        self.backend = Upstream({})
        arguments = ("--child", "--port", 0, "--backend", self.backend.url, "--api-key", CLIENT, "--admin-key", ADMIN)
        self.fort = Fort("balancer.py", arguments, lambda fort: post(fort.port, "/generate", {}, AS_CLIENT), "up")

    def backends(self):
        return get(self.fort.port, "/admin/backends", AS_ADMIN).json["backends"]

    def close(self):
        self.fort.close()
        self.backend.close()


@pytest.fixture(scope="module")
def started():
    guarded = Guarded()
    yield guarded
    guarded.close()


@pytest.fixture
def guarded(started):
    """The same for all; what a case has added is taken away again, so that it fails alone."""
    yield started
    for each in started.backends():
        if each["url"] != started.backend.url:
            get(started.fort.port, "/admin/backends?url=" + quote(each["url"]), AS_ADMIN, method=b"DELETE")


SPELLINGS = [
    "/admin/backends", "/admin/backends/", "/admin/backends//", "//admin/backends", "///admin/backends",
    "/admin//backends",
    "/admin/./backends", "/./admin/backends", "/admin/../admin/backends", "/x/../admin/backends", "/admin/backends/.",
    "/admin/backends/..", "/admin/backends/../backends", "/admin/backends?", "/admin/backends?x=1", "/admin/backends#x",
    "/admin/backends;x", "/admin;x/backends", "/admin/backends.json", "/admin/backends%20", "/admin/backends%00",
    "/admin/backends%0a", "/admin/backends%2f", "/admin%2fbackends", "/admin%2Fbackends", "/admin%5cbackends",
    "/%61dmin/backends", "/%41dmin/backends", "/admin/%62ackends", "/%2561dmin/backends", "/ADMIN/BACKENDS",
    "/Admin/backends",
    "/admin\\backends", "\\admin\\backends", "/admin", "/admin/", "/admin/x", "/admin/backends/x",
    "/%2e/admin/backends",
    "/x/%2e%2e/admin/backends", "/x/..%2fadmin/backends", "/v1/../admin/backends", "/health/../admin/backends",
    "/admin/backends\\", "/.//admin/backends", "/admin/backends*", "/admin/backend%73", "/admin/backends/%2e%2e",
    "http://127.0.0.1/admin/backends", "http://127.0.0.1/admin/backends/", "http://127.0.0.1//admin/backends",
    "HTTP://127.0.0.1/ADMIN/backends", "/admin/backends%e2%80%8b", "/adm%69n/b%61ckends/", "/admin\u00adbackends",
]  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT", "HEAD", "OPTIONS"])
def test_no_spelling_of_the_admin_api_reaches_a_backend_or_opens_without_the_key(guarded, spelling, method):
    port = guarded.fort.port
    guarded.backend.heads.clear()
    body = b'{"url": "http://127.0.0.1:1"}'
    with unharmed(guarded.fort):
        for key in (b"", AS_CLIENT, AS_ADMIN):
            data = ("%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\n" % (method, spelling)).encode("latin-1") + key
            if method in ("POST", "PUT", "PATCH"):
                data += b"Content-Length: %d\r\n\r\n" % len(body) + body
            else:
                data += b"\r\n"
            replies, _ = talk(port, data, head=method == "HEAD" and spelling[0] in "/hH" and spelling.isascii())
            assert replies and replies[0].status < 500, replies
            if key != AS_ADMIN:
                assert replies[0].status >= 400 or method == "OPTIONS", (key, replies[0].status)
            if replies[0].status in (200, 201) and method == "POST":  # the key's owner added one
                get(port, "/admin/backends?url=http://127.0.0.1:1", AS_ADMIN, method=b"DELETE")
        sent = [head for head in guarded.backend.heads if b"dmin" in head.lower() or ADMIN.encode() in head]
        assert not sent, sent
        assert [each["url"] for each in guarded.backends()] == [guarded.backend.url]


KEYS = [
    ("none", b"", "401"), ("an empty one", b"Authorization: Bearer \r\n", "401"),
    ("only the scheme", b"Authorization: Bearer\r\n", "401"),
    ("another scheme", b"Authorization: Basic %b\r\n" % CLIENT.encode(), "401"),
    ("no scheme", b"Authorization: %b\r\n" % CLIENT.encode(), "401"),
    ("the beginning", b"Authorization: Bearer client\r\n", "401"),
    ("one letter more", AS_CLIENT.replace(b"4711", b"47110"), "401"),
    ("in capitals", AS_CLIENT.replace(b"client-key", b"CLIENT-KEY"), "401"),
    ("two in one", AS_CLIENT.replace(b"\r\n", b", x\r\n"), "401"),
    ("quoted", b'Authorization: Bearer "%b"\r\n' % CLIENT.encode(), "401"),
    ("of 20 KB", b"Authorization: Bearer " + b"a" * 20000 + b"\r\n", "401"),
    ("bytes over 127", b"Authorization: Bearer \xff\xfe\r\n", "401"), ("the admin's", AS_ADMIN, "401"),
    ("in a query", b"X-Nothing: 1\r\n", "401"), ("in a cookie", b"Cookie: api_key=%b\r\n" % CLIENT.encode(), "401"),
    ("right, and wrong beside it", AS_CLIENT + b"X-Api-Key: wrong\r\n", "200/401"),
    ("wrong, and right beside it", b"Authorization: Bearer x\r\nX-Api-Key: %b\r\n" % CLIENT.encode(), "200/401"),
    ("twice", AS_CLIENT + AS_CLIENT, "400/401"),
    ("the other field twice", b"X-Api-Key: x\r\nX-Api-Key: %b\r\n" % CLIENT.encode(), "400/401"),
    ("small letters", AS_CLIENT.replace(b"Bearer", b"bearer"), "200"),
    ("the other field", b"X-Api-Key: %b\r\n" % CLIENT.encode(), "200"),
    ("right", AS_CLIENT, "200"), ("right, two spaces", AS_CLIENT.replace(b"Bearer ", b"Bearer  "), "200/401"),
]  # fmt: skip


@pytest.mark.parametrize("row", KEYS, ids=[row[0].replace(" ", "-") for row in KEYS])
def test_a_client_key(guarded, row):
    with unharmed(guarded.fort):
        for path in ("/generate", "/v1/chat/completions", "/nothing", "/generate?api_key=" + CLIENT):
            reply = post(guarded.fort.port, path, {}, row[1])
            assert str(reply.status) in row[2].split("/"), (path, reply.status)
        for path in ("/status", "/models", "/metrics"):
            assert str(get(guarded.fort.port, path, row[1]).status) in row[2].split("/"), path


@pytest.mark.parametrize("row", [row for row in KEYS if row[0] != "the admin's"],
                         ids=lambda row: row[0].replace(" ", "-"))
def test_a_key_that_is_not_the_admins(guarded, row):
    with unharmed(guarded.fort):
        for method in (b"GET", b"DELETE"):
            assert get(guarded.fort.port, "/admin/backends?url=" + guarded.backend.url, row[1],
                       method=method).status in (400, 401)
        assert post(guarded.fort.port, "/admin/backends", {"url": "http://127.0.0.1:1"}, row[1]).status in (400, 401)
        assert len(guarded.backends()) == 1


def test_a_backend_is_sent_nobodys_key(guarded):
    with unharmed(guarded.fort):
        guarded.backend.heads.clear()
        fields = [AS_CLIENT, b"X-Api-Key: %b\r\n" % CLIENT.encode(), AS_CLIENT + b"X-API-KEY: %b\r\n" % CLIENT.encode()]
        for field in fields:
            assert post(guarded.fort.port, "/generate", {}, field).status == 200
            assert get(guarded.fort.port, "/props", field).status == 200
        heads = guarded.backend.heads
        assert len([head for head in heads if head.startswith((b"POST /generate", b"GET /props"))]) >= 6
        assert not [head for head in heads if CLIENT.encode() in head or ADMIN.encode() in head]


URLS = [
    1, True, [], {}, ["http://h:1"], "", " ", "//h:1", "http://", "http:///", "http://:1", "http://:p@h:1",
    "http://u:p@h:1", "http://u@h:1",
    "http://h:x", "http://h:", "http://h:-1", "http://h:99999", "http://h:1:2", "http://h:١", "http://h:1 ",
    " http://h:1", "http://h h:1",
    "http://h\t:1", "http://h\n:1", "http://h:1\r\nX: y", "http://h\0:1", "http://h:1/\0", "http://[::1", "http://::1",
    "http://[h]:1", "http://h]:1",
    "ftp://h:1", "file:///etc/passwd", "file://h/etc", "gopher://h:1", "javascript:alert(1)", "unix:///tmp/x",
    "httpx://h:1", "http:h:1",
    "http://h:1?x=1", "http://h:1#x", "http://h:1/?", "http://h:1/../x y", "http://" + "a" * 100000, "http://\ufe56:1",
    "http://h,slots=2:1", "http://%00:1", "http://h%0a:1", "http://h\\evil:1", "http://<script>:1", "http://a..b:1",
    "http://" + "a" * 64 + ".b:1", "http://*:1", "http://h:1,weight=nan", "http://h:1,slots=0",
    "http://h:1,slots=99999999999999999999",
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(URLS)))
def test_a_url_that_is_none(guarded, number):
    with unharmed(guarded.fort):
        reply = post(guarded.fort.port, "/admin/backends", {"url": URLS[number]}, AS_ADMIN)
        assert reply.status == 400 and reply.error["param"] == "url" and len(reply.body) < 4096, (URLS[number],
                                                                                                  reply.body[:200])
        assert len(guarded.backends()) == 1


FIELDS = [
    {"slots": 0}, {"slots": -1}, {"slots": 1.5}, {"slots": "4"}, {"slots": True}, {"slots": []}, {"slots": 1 << 70},
    {"weight": 0},
    {"weight": -1}, {"weight": "1"}, {"weight": 1e9}, {"weight": []}, {"weight": True}, {"ttl": 0}, {"ttl": -5},
    {"ttl": "5"}, {"ttl": 1e9},
    {"ttl": []}, {"drain": 1}, {"drain": "true"}, {"drain": []}, {"unknown": 1}, {"": 1}, {"url ": 1},
    {"x" * 100000: 1}, {"URL": "x"},
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(FIELDS)))
def test_a_field_that_is_wrong(guarded, number):
    with unharmed(guarded.fort):
        body = dict({"url": "http://127.0.0.1:1"}, **FIELDS[number])
        reply = post(guarded.fort.port, "/admin/backends", body, AS_ADMIN)
        assert reply.status == 400 and reply.error["message"] and len(reply.body) < 4096, reply.body[:200]
        assert len(guarded.backends()) == 1


EXTREMES = ["1e999", "-1e999", "NaN", "Infinity", "1" + "0" * 5000, "1e-400"]


@pytest.mark.parametrize("extreme", EXTREMES, ids=lambda text: text[:12])
def test_a_number_at_the_ends_of_the_world(guarded, extreme):
    with unharmed(guarded.fort):
        for name in ("slots", "weight", "ttl"):
            body = '{"url": "http://127.0.0.1:1", "%s": %s}' % (name, extreme)
            assert post(guarded.fort.port, "/admin/backends", body.encode(), AS_ADMIN).status == 400
        assert len(guarded.backends()) == 1


BODIES = [b"", b"null", b"[]", b"1", b'"x"', b"{", b"\xff", b'{"url": "\\ud800"}', b"[" * 100000, b'{"url":' * 50000]


@pytest.mark.parametrize("number", range(len(BODIES)))
def test_a_body_that_is_none(guarded, number):
    with unharmed(guarded.fort):
        for method in ("POST", "DELETE"):
            data = "%s /admin/backends HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n" % (method,
                                                                                                 len(BODIES[number]))
            replies, _ = talk(guarded.fort.port, data.encode() + AS_ADMIN + b"\r\n" + BODIES[number])
            assert replies[0].status == 400, replies[0].body[:200]
        assert len(guarded.backends()) == 1


REMOVALS = ["", "?url=", "?url=x", "?url=http://h:x", "?url=http://127.0.0.1:1", "?url=%ff", "?url=%00", "?url=a&url=b",
            "?" + "url=a&" * 5000,
            "?url=" + "a" * 20000, "?url=http://%0d%0aX:1"]  # fmt: skip


@pytest.mark.parametrize("number", range(len(REMOVALS)))
def test_a_removal_of_nothing(guarded, number):
    with unharmed(guarded.fort):
        reply = get(guarded.fort.port, "/admin/backends" + REMOVALS[number], AS_ADMIN, method=b"DELETE")
        assert reply.status in (400, 404, 414) and len(reply.body) < 4096, reply.body[:200]
        assert len(guarded.backends()) == 1


def test_a_backend_that_is_the_balancer_itself_is_no_endless_loop(guarded):
    """A request must not go round and round until all threads are taken."""
    own = "http://127.0.0.1:%d" % guarded.fort.port
    with unharmed(guarded.fort):
        post(guarded.fort.port, "/admin/backends", json.dumps({"url": own}).encode(), AS_ADMIN)
        try:
            for _ in range(6):
                assert post(guarded.fort.port, "/generate", {}, AS_CLIENT, patience=20).status in (200, 401, 404, 502,
                                                                                                   503, 508)
        finally:
            get(guarded.fort.port, "/admin/backends?url=" + own, AS_ADMIN, method=b"DELETE")
