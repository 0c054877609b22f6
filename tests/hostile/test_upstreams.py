"""What a hostile backend may answer, and what the client of the balancer must get.

A row is (name, what the backend sends, what the client gets): a status, or "cut" for an answer that is seen to be
unfinished. The balancer stays the same process, goes on relaying to the good backend, and its memory stays bounded.
What reaches a client is read strictly (enemy.Line): a bare newline or a control character in its head fails the case.
"""

import contextlib
import json
import time

import pytest

from hostile import test_http
from hostile.enemy import FINE, Fort, Hung, Line, Upstream, answer, get, pieces, post, talk, unharmed

ADMIN = b"Authorization: Bearer adm\r\n"
GOOD = {"GET /models": answer(b'{"models": [{"name": "good.gguf", "loaded": true}]}')}
EVIL = answer(b'{"models": [{"name": "evil.gguf", "loaded": true}]}')
ASK = {"model": "evil.gguf", "prompt": "x"}
ENOUGH = 100  # MiB that the balancer's memory may grow in one case
SECONDS = 15


def is_well(fort):
    assert get(fort.port, "/status").status == 200
    return post(fort.port, "/generate", {"model": "good.gguf"})


class Front:
    """A balancer with one good backend; hostile ones come and go."""

    def __init__(self):
        self.good = Upstream(dict(GOOD, **{"": answer(b'{"good": true}')}))
        arguments = ("--child", "--port", 0, "--backend", self.good.url, "--admin-key", "adm", "--timeout", 1,
                     "--health-timeout", 0.5, "--health-interval", 1, "--recovery-timeout", 0.1, "--retries",
                     0)  # fmt: skip
        self.fort = Fort("balancer.py", arguments, is_well, "up")

    @contextlib.contextmanager
    def facing(self, upstream, up=True):
        """Let the balancer know a hostile backend, for a while."""
        url = json.dumps({"url": upstream.url, "slots": 4})
        assert post(self.fort.port, "/admin/backends", url.encode(), ADMIN).status == 201
        try:
            deadline = time.monotonic() + SECONDS
            while up and state_of(self.fort, upstream.url) != "up":
                assert time.monotonic() < deadline, "the backend did not come up"
                time.sleep(0.005)
            yield
        finally:
            upstream.close()
            get(self.fort.port, "/admin/backends?url=" + upstream.url, ADMIN, method=b"DELETE")

    def close(self):
        self.fort.close()
        self.good.close()


def state_of(fort, url):
    backends = get(fort.port, "/admin/backends", ADMIN).json["backends"]
    return next((each["state"] for each in backends if each["url"] == url), None)


@pytest.fixture(scope="module")
def front():
    front = Front()
    yield front
    front.close()


def ask(port, patience=SECONDS):
    """Ask the hostile backend; return the answer, or the word "cut" where it is unfinished."""
    body = json.dumps(ASK).encode()
    with Line(port, patience) as line:
        line.send(b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n")
        line.send(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        try:
            reply = line.reply()
        except Hung:
            raise
        except AssertionError as error:
            if "are missing" in str(error) or "in the middle of chunks" in str(error):
                return "cut"
            raise
    return reply or "cut"


OK = b"HTTP/1.1 200 OK\r\n"
BODY = b'{"a": 1}'
LENGTH = b"Content-Length: 8\r\n"


def headed(*lines):
    """A good answer with these header lines."""
    return OK + b"".join(line + b"\r\n" for line in lines) + LENGTH + b"\r\n" + BODY


def chunks(data, head=b""):
    return OK + head + b"Transfer-Encoding: chunked\r\n\r\n" + data


MB = b"x" * (1 << 20)
ANSWERS = [
    ("a good one", headed(), "200"),
    ("nothing", b"", "502"),
    ("half a status line", b"HTTP/1.1 20", "502"),
    ("another protocol", b"SSH-2.0-OpenSSH_9.2\r\n", "502"),
    ("HTTP/2", b"\0\0\0\4\0\0\0\0\0", "502"),
    ("TLS", b"\x15\x03\x01\x00\x02\x02\x28", "502"),
    ("zeros", b"\0" * 100000, "502"),
    ("HTTP/0.9", b"<html>hello</html>", "502"),
    ("a version that is none", b"HTTP/9.9 200 OK\r\n" + LENGTH + b"\r\n" + BODY, "502"),
    ("no status", b"HTTP/1.1 OK\r\n" + LENGTH + b"\r\n" + BODY, "502"),
    ("a status of two digits", b"HTTP/1.1 20 OK\r\n" + LENGTH + b"\r\n" + BODY, "502"),
    ("a status of four digits", b"HTTP/1.1 2000 OK\r\n" + LENGTH + b"\r\n" + BODY, "502"),
    ("status 000", b"HTTP/1.1 000 OK\r\n" + LENGTH + b"\r\n" + BODY, "502"),
    ("status 600", b"HTTP/1.1 600 OK\r\n" + LENGTH + b"\r\n" + BODY, "502"),
    ("status 999", b"HTTP/1.1 999 OK\r\n" + LENGTH + b"\r\n" + BODY, "502"),
    ("a negative status", b"HTTP/1.1 -20 OK\r\n" + LENGTH + b"\r\n" + BODY, "502"),
    ("a control character in the reason", b"HTTP/1.1 200 O\x1b[31mK\r\n" + LENGTH + b"\r\n" + BODY, "200/502"),
    ("a newline in the reason", b"HTTP/1.1 200 OK\nX-Evil: 1\r\n" + LENGTH + b"\r\n" + BODY, "502"),
    ("a reason of 1 MB", b"HTTP/1.1 200 " + MB + b"\r\n" + LENGTH + b"\r\n" + BODY, "502"),
    ("newlines only", headed().replace(b"\r\n", b"\n"), "502"),
    ("a switch of protocols", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", "502/504"),
    ("early hints", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + headed(), "200"),
    ("100 early hints", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100 + headed(), "200/502"),
    ("early hints for ever", pieces(b"HTTP/1.1 103 Early Hints\r\nX: " + b"x" * 1000 + b"\r\n\r\n", 1000000),
     "502/504"),
    ("go on, for ever", pieces(b"HTTP/1.1 100 Continue\r\n\r\n", 100000, 0.01), "502/504"),
    ("a field without a colon", headed(b"nonsense"), "502"),
    ("a field without a name", headed(b": x"), "502"),
    ("a space before the colon", headed(b"X-A : 1"), "502"),
    ("a space in a name", headed(b"X A: 1"), "200/502"),
    ("a folded field", headed(b"X-A: 1", b" 2"), "502"),
    ("NUL in a value", headed(b"X-A: a\0b"), "200/502"),
    ("a bare newline in a value", headed(b"X-A: a\nSet-Cookie: evil=1"), "200/502"),
    ("a bare return in a value", headed(b"X-A: a\rSet-Cookie: evil=1"), "200/502"),
    ("a newline and an empty line in a value", headed(b"X-A: a\n\nHTTP/1.1 200 OK"), "200/502"),
    ("an escape character in a value", headed(b"X-A: \x1b]0;evil\x07"), "200/502"),
    ("DEL in a value", headed(b"X-A: \x7f"), "200/502"),
    ("NUL in a name", headed(b"X\0A: 1"), "200/502"),
    ("a name of control characters", headed(b"X\x01\x02: 1"), "200/502"),
    ("a name of UTF-8", headed("Ü: 1".encode()), "200/502"),
    ("bytes over 127 in a value", headed(b"X-A: \xff\x80"), "200"),
    ("10,000 fields", headed(*[b"X-%d: 1" % n for n in range(10000)]), "502"),
    ("a field of 1 MB", headed(b"X-A: " + MB), "502"),
    ("a head for ever", pieces(b"HTTP/1.1 200 OK\r\n" + b"X-A: 1\r\n" * 8000, 100000), "502"),
    ("a dripping head", pieces(b"X", 100000, 0.05), "502/504"),
    ("a dripping good head", lambda: (b"%c" % byte for byte in headed() if not time.sleep(0.001)), "200"),
    ("forged fields of ours",
     headed(b"X-ComeAPI-Backend: http://evil", b"x-comeapi-queue-ms: 99", b"X-ComeAPI-Evil: 1"), "200"),
    ("a forged id", headed(b"X-Request-Id: evil"), "200"),
    ("fields for one hop",
     headed(b"Connection: keep-alive, X-Hop", b"X-Hop: evil", b"Keep-Alive: timeout=5", b"Upgrade: x",
            b"Proxy-Authenticate: Basic", b"Trailer: X"), "200"),
    ("leave for every page", headed(b"Access-Control-Allow-Origin: *", b"Access-Control-Allow-Credentials: true"),
     "200"),
    ("a length of a superscript", OK + b"Content-Length: \xb2\r\n\r\n" + BODY, "502"),
    ("a length of another script", OK + "Content-Length: ٨\r\n\r\n".encode() + BODY, "502"),
    ("a length of 5,000 digits", OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n" + BODY, "502"),
    ("a negative length", OK + b"Content-Length: -8\r\n\r\n" + BODY, "502"),
    ("a length with a plus", OK + b"Content-Length: +8\r\n\r\n" + BODY, "502"),
    ("a length with an underscore", OK + b"Content-Length: 0_8\r\n\r\n" + BODY, "502"),
    ("no number for a length", OK + b"Content-Length: x\r\n\r\n" + BODY, "502"),
    ("two lengths", OK + LENGTH + b"Content-Length: 4\r\n\r\n" + BODY, "502"),
    ("two lengths in one line", OK + b"Content-Length: 8, 4\r\n\r\n" + BODY, "502"),
    ("the same length twice", OK + LENGTH + LENGTH + b"\r\n" + BODY, "200/502"),
    ("too much", OK + LENGTH + b"\r\n" + BODY + headed(b"X-Evil: 1"), "200"),
    ("too little", OK + b"Content-Length: 100\r\n\r\n" + BODY, "502"),
    ("much too little", OK + b"Content-Length: 10000000\r\n\r\n" + MB, "502/cut"),
    ("a terabyte that does not come", OK + b"Content-Length: 1000000000000\r\n\r\n" + BODY, "502/cut"),
    ("a length and chunks", OK + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n8\r\n" + BODY + b"\r\n0\r\n\r\n",
     "200/502"),
    ("a wrong length and chunks",
     OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n" + BODY + b"\r\n0\r\n\r\n", "200/502"),
    ("no length", OK + b"\r\n" + BODY, "200"),
    ("gzip as its coding", OK + b"Transfer-Encoding: gzip\r\n\r\n" + BODY, "502"),
    ("two codings", OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + BODY, "502"),
    ("chunked twice",
     OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n" + BODY + b"\r\n0\r\n\r\n",
     "200/502"),
    ("chunks", chunks(b"8\r\n" + BODY + b"\r\n0\r\n\r\n"), "200"),
    ("chunks with extensions", chunks(b'8;a="b"\r\n' + BODY + b"\r\n0;x\r\n\r\n"), "200/502"),
    ("chunks with trailers", chunks(b"8\r\n" + BODY + b"\r\n0\r\nX-Evil: 1\r\n\r\n"), "200/502/cut"),
    ("trailers for ever", pieces(chunks(b"8\r\n" + BODY + b"\r\n0\r\n") + b"X: 1\r\n" * 10000, 10000), "502/504/cut"),
    ("one trailer for ever", lambda: (each for each in [chunks(b"8\r\n" + BODY + b"\r\n0\r\nX: ")] + [MB] * 2000),
     "502/504/cut"),
    ("an extension for ever", lambda: (each for each in [chunks(b"8;")] + [MB] * 2000), "502/504/cut"),
    ("a chunk's size for ever", lambda: (each for each in [chunks(b"")] + [b"0" * (1 << 20)] * 2000), "502/504/cut"),
    ("a chunk that is too long", chunks(b"4\r\n" + BODY + b"\r\n0\r\n\r\n"), "502/cut"),
    ("a chunk of no number", chunks(b"zz\r\n" + BODY + b"\r\n0\r\n\r\n"), "502/cut"),
    ("a chunk of a negative number", chunks(b"-8\r\n" + BODY + b"\r\n0\r\n\r\n"), "502/cut"),
    ("a chunk of a prefixed number", chunks(b"0x8\r\n" + BODY + b"\r\n0\r\n\r\n"), "502/cut"),
    ("a chunk of 17 digits", chunks(b"fffffffffffffffff\r\n" + BODY), "502/cut"),
    ("a chunk of 15 digits", chunks(b"fffffffffffffff\r\n" + BODY), "502/cut"),
    ("a chunk ended by a newline", chunks(b"8\n" + BODY + b"\n0\n\n"), "502/cut"),
    ("no last chunk", chunks(b"8\r\n" + BODY + b"\r\n"), "502/cut"),
    ("a body for no status with one", b"HTTP/1.1 204 No Content\r\n" + LENGTH + b"\r\n" + BODY, "204/502"),
    ("a body for not modified", b"HTTP/1.1 304 Not Modified\r\n" + LENGTH + b"\r\n" + BODY, "304/502"),
    ("a redirection to a file", b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n" + LENGTH + b"\r\n" + BODY,
     "302"),
    ("a redirection to itself", b"HTTP/1.1 307 T\r\nLocation: /generate\r\n" + LENGTH + b"\r\n" + BODY, "307"),
    ("a demand for a password", b"HTTP/1.1 401 U\r\nWWW-Authenticate: Basic\r\n" + LENGTH + b"\r\n" + BODY, "401"),
    ("a demand of a proxy", b"HTTP/1.1 407 P\r\nProxy-Authenticate: Basic\r\n" + LENGTH + b"\r\n" + BODY, "407/502"),
    ("Retry-After of nonsense", b"HTTP/1.1 503 S\r\nRetry-After: \xff -1e9\r\n" + LENGTH + b"\r\n" + BODY, "503"),
    ("an error of 500", b"HTTP/1.1 500 E\r\n" + LENGTH + b"\r\n" + BODY, "500"),
    ("a busy server's body for ever", lambda: (each for each in [b"HTTP/1.1 503 S\r\n\r\n"] + [MB] * 2000),
     "502/503/504"),
    ("a busy server's dripping body",
     lambda: (each for each in [b"HTTP/1.1 503 S\r\n\r\n"] + [b"x"] * 2000 if not time.sleep(0.05)), "502/503/504"),
    ("a bad gateway's chunks for ever",
     lambda: (each for each in [chunks(b"").replace(b"200 OK", b"502 B")] + [b"100000\r\n" + MB + b"\r\n"] * 2000),
     "502/503/504"),
    ("a busy server's gigabyte",
     lambda: (each for each in [b"HTTP/1.1 503 S\r\nContent-Length: 1073741824\r\n\r\n"] + [MB] * 1024), "502/503/504"),
    ("events that break off", chunks(b"9\r\ndata: 1\n\n\r\n", b"Content-Type: text/event-stream\r\n"), "200/cut"),
    ("silence", None, "504"),
    ("silence after the head", lambda: (each for each in [OK + LENGTH + b"\r\n", b""] if not (each or time.sleep(4))),
     "504/502"),
    ("a type of nonsense", headed(b"Content-Type: \xff\xfe;;=\x80"), "200/502"),
    ("a type of 60 KB", headed(b"Content-Type: " + b"x" * 60000), "200/502"),
    ("two types", headed(b"Content-Type: a/b", b"Content-Type: c/d"), "200/502"),
]  # fmt: skip


@pytest.mark.parametrize("row", ANSWERS, ids=[row[0].replace(" ", "-") for row in ANSWERS])
def test_an_answer(front, row):
    name, sent, wanted = row
    upstream = Upstream({"GET /models": EVIL, "": sent})
    with unharmed(front.fort), front.facing(upstream):
        before = front.fort.memory()
        reply = ask(front.fort.port)
        assert front.fort.memory() - before < ENOUGH
        got = reply if reply == "cut" else str(reply.status)
        assert got in wanted.split("/"), (got, getattr(reply, "body", b"")[:300])
        if got != "cut":
            check_fields(reply, upstream.url)


def check_fields(reply, url):
    """What no client may ever see of a backend's answer."""
    names = [name.lower() for name, _ in reply.headers]
    assert not {"set-cookie", "x-evil", "x-hop", "keep-alive", "upgrade",
                "access-control-allow-credentials"} & set(names)
    assert "x-comeapi-evil" not in names and reply.header("x-comeapi-backend") in ("", url)
    assert reply.header("x-comeapi-queue-ms") in ("", "0", "1", "2",
                                                  "3") or int(reply.header("x-comeapi-queue-ms")) < 90
    assert reply.header("x-request-id") != "evil"
    if reply.status >= 500 and b'"error"' in reply.body:
        assert len(reply.body) < 4096 and reply.error["message"].isprintable()


def test_an_early_refusal_of_a_large_upload_is_told(front):
    refusal = b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Type: application/json\r\n"
    refusal += b"Content-Length: 27\r\n\r\n" + b'{"error": {"message": "x"}}'
    upstream = Upstream({"GET /models": EVIL, "": refusal}, linger=1.0, read_body=False)
    with unharmed(front.fort), front.facing(upstream):
        body = json.dumps(dict(ASK, prompt="x" * 3000000)).encode()
        assert post(front.fort.port, "/generate", body).status == 413


# -------------------------------------------------------------------------------------------------- probes

DEEP = b"[" * 100000 + b"]" * 100000


def named(name):
    return answer(json.dumps({"models": [{"name": name, "loaded": True}]}).encode())


def well(**facts):
    return answer(json.dumps(dict({"status": "ok", "slots": 4}, **facts)).encode())


PROBES = [
    ("health for ever", {"GET /health": lambda: (each for each in [OK + b"\r\n"] + [MB] * 3000)}),
    ("health in chunks for ever",
     {"GET /health": lambda: (each for each in [chunks(b"")] + [b"100000\r\n" + MB + b"\r\n"] * 3000)}),
    ("dripping health",
     {"GET /health": lambda: (each for each in [OK + b"\r\n"] + [b" "] * 400 if not time.sleep(0.02))}),
    ("health of a gigabyte",
     {"GET /health": lambda: (each for each in [OK + b"Content-Length: 1073741824\r\n\r\n"] + [MB] * 1024)}),
    ("a head for ever", {"GET /health": pieces(OK + b"X: " + b"x" * 60000 + b"\r\n", 50000)}),
    ("silent health", {"GET /health": None}),
    ("health that breaks off", {"GET /health": OK + b"Content-Length: 50\r\n\r\n{}"}),
    ("health of nonsense", {"GET /health": answer(b"\xff\xfe{")}),
    ("health of 100,000 levels", {"GET /health": answer(b'{"status": "ok", "x": ' + DEEP + b"}")}),
    ("health that is an array", {"GET /health": answer(b"[]")}),
    ("an unknown length", {"GET /health": OK + b"Content-Length: \xb2\r\n\r\n{}"}),
    ("negative slots", {"GET /health": well(slots=-5)}),
    ("slots of 10^30", {"GET /health": well(slots=10**30)}),
    ("slots of 1e999", {"GET /health": answer(b'{"status": "ok", "slots": 1e999}')}),
    ("slots of NaN", {"GET /health": answer(b'{"status": "ok", "slots": NaN}')}),
    ("slots of a text", {"GET /health": well(slots="4")}),
    ("slots of true", {"GET /health": well(slots=True)}),
    ("slots of a list", {"GET /health": well(slots=[4])}),
    ("a pid that is a list", {"GET /health": well(pid=[1, [2]])}),
    ("a pid that is an object", {"GET /health": well(pid={"a": 1})}),
    ("a pid of 1e999", {"GET /health": answer(b'{"status": "ok", "pid": 1e999}')}),
    ("a model that is a list", {"GET /health": well(model=["m"])}),
    ("a model that is half a pair", {"GET /health": well(model="\ud800"), "GET /models": named("\ud800")}),
    ("a model with a newline", {"GET /health": well(model="a\nb"), "GET /models": named("a\nb\r\nX: 1")}),
    ("a model with quotes", {"GET /health": well(model='a"}\\'), "GET /models": named('"} 1\ncomeapi_evil 1\n\\')}),
    ("a model of 1 MB", {"GET /models": named("x" * (1 << 20))}),
    ("an empty name", {"GET /models": named("")}),
    ("100,000 models",
     {"GET /models": answer(json.dumps({"models": [{"name": str(n)} for n in range(100000)]}).encode())}),
    ("the same model 1,000 times",
     {"GET /models": answer(json.dumps({"models": [{"name": "evil.gguf"}] * 1000}).encode())}),
    ("models of other types",
     {"GET /models": answer(b'{"models": [1, null, "x", [], {}, {"name": 1}, {"name": null}]}')}),
    ("models that are no list", {"GET /models": answer(b'{"models": {"name": "x"}, "data": 1}')}),
    ("models with odd facts",
     {"GET /models": answer(b'{"models": [{"name": "a", "loaded": "x", "backends": 1, "id": [], "size_mb": 1e999}]}')}),
    ("models with half a pair in their facts",
     {"GET /models": answer(b'{"models": [{"name": "a", "path": "\\ud800", "\\udfff": 1}]}')}),
    ("models of 100,000 levels", {"GET /models": answer(b'{"models": [{"name": "a", "x": ' + DEEP + b"}]}")}),
    ("models of 90 levels",
     {"GET /models": answer(b'{"models": [{"name": "a", "x": ' + b"[" * 90 + b"]" * 90 + b"}]}")}),
    ("models for ever", {"GET /models": lambda: (each for each in [OK + b"\r\n"] + [MB] * 3000)}),
    ("models like ours",
     {"GET /models": answer(b'{"models": [{"name": "good.gguf"}]}'), "": answer(b'{"evil": true}')}),
    ("a reason of 1 MB", {"GET /health": answer(b'{"error": {"message": "' + MB + b'"}}', b"HTTP/1.1 503 X\r\n")}),
    ("a reason of half a pair", {"GET /health": answer(b'{"error": {"message": "\\ud800"}}', b"HTTP/1.1 503 X\r\n")}),
    ("a reason of control characters",
     {"GET /health": answer(b'{"error": {"message": "\\u001b[31m\\nforged"}}', b"HTTP/1.1 503 X\r\n")}),
    ("a reason that is a list",
     {"GET /health": answer(b'{"error": {"message": [1]}, "status": {}}', b"HTTP/1.1 503 X\r\n")}),
    ("an error that is a text", {"GET /health": answer(b'{"error": "x", "status": ["x"]}', b"HTTP/1.1 500 X\r\n")}),
    ("status 299", {"GET /health": answer(FINE, b"HTTP/1.1 299 X\r\n")}),
    ("a redirection", {"GET /health": answer(b"", b"HTTP/1.1 302 X\r\nLocation: http://127.0.0.1:1/\r\n")}),
    ("props of nonsense", {"GET /health": answer(b"{}"), "GET /props": answer(b'{"total_slots": 1e999}')}),
    ("props for ever",
     {"GET /health": answer(b"{}"), "GET /props": lambda: (each for each in [OK + b"\r\n"] + [MB] * 3000)}),
    ("a comment instead of JSON", {"GET /health": answer(b"// ok"), "GET /models": answer(b"<html>")}),
]  # fmt: skip


@pytest.mark.parametrize("row", PROBES, ids=[row[0].replace(" ", "-") for row in PROBES])
def test_a_probe(front, row):
    upstream = Upstream(dict({"GET /models": EVIL}, **row[1]))
    with unharmed(front.fort), front.facing(upstream, up=False):
        before = front.fort.memory()
        deadline = time.monotonic() + SECONDS
        while state_of(front.fort, upstream.url) == "new":  # until the first probe has ended
            assert time.monotonic() < deadline, "the probe does not end"
            time.sleep(0.005)
        for path in ("/status", "/", "/models", "/v1/models", "/metrics", "/health"):
            reply = get(front.fort.port, path)
            assert reply.status == 200 and len(reply.body) < 2 << 20, path
            reply.body.decode("utf-8")
        page = get(front.fort.port, "/metrics").body
        assert not [line for line in page.split(b"\n") if line.startswith(b"comeapi_evil")]
        assert front.fort.memory() - before < ENOUGH


# --------------------------------------------------------------------------------- what a backend gets to see

SMUGGLED = [row[:3] for row in test_http.LENGTHS + test_http.CODINGS if b"POST" in row[1]] + [
    (row[0], test_http.CHUNKED + row[1], row[2]) for row in test_http.CHUNKS
]


@pytest.mark.parametrize("row", SMUGGLED, ids=[row[0].replace(" ", "-") for row in SMUGGLED])
def test_nothing_is_smuggled_past_the_balancer(front, row):
    """What the backend sees is one well-formed request for each answer of 200, with the body that was meant."""
    front.good.heads.clear()
    front.good.bodies.clear()
    with unharmed():
        replies, _ = talk(front.fort.port, row[1] + test_http.head(b"GET /marker HTTP/1.1"), 2)
    seen = [head for head in front.good.heads if not head.startswith((b"GET /health", b"GET /models", b"GET /props",
                                                                      b"GET /v1/"))]
    assert len(seen) <= len(replies)
    for head, body in zip(front.good.heads, front.good.bodies):
        names = [line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]]
        assert names.count(b"host") == 1 and names.count(b"content-length") <= 1 and b"transfer-encoding" not in names
        assert b"\n" not in head.replace(b"\r\n", b"") and b"\r" not in head.replace(b"\r\n", b"")
        assert body in (b"", test_http.EMPTY)
        assert not head.startswith(b"GET /admin")


FORWARDED = [
    (b"X-Forwarded-For: 1.2.3.4", b"x-forwarded-for"), (b"X-Forwarded-Host: evil.example", b"x-forwarded-host"),
    (b"X-Forwarded-Proto: https", b"x-forwarded-proto"), (b"X-Request-Id: a\tb", b"x-request-id"),
]  # fmt: skip


@pytest.mark.parametrize("field, name", FORWARDED)
def test_what_is_said_of_the_client_is_written_by_the_balancer(front, field, name):
    front.good.heads.clear()
    with unharmed(front.fort):
        talk(front.fort.port, test_http.head(b"GET /who HTTP/1.1", field))
    head = next(head for head in front.good.heads if head.startswith(b"GET /who"))
    values = [line.partition(b": ")[2] for line in head.split(b"\r\n") if line.lower().startswith(name + b":")]
    assert len(values) == 1
    if name == b"x-forwarded-for":
        assert values[0].endswith(b"127.0.0.1")
    elif name == b"x-forwarded-host":
        assert values[0] == b"127.0.0.1"
    elif name == b"x-forwarded-proto":
        assert values[0] == b"http"
    else:
        assert b"\t" not in values[0]


def test_a_request_for_another_host_goes_to_nobody_but_our_backends(front):
    """It is no open proxy: an absolute target's host is never called."""
    with contextlib.closing(Upstream({})) as other, unharmed(front.fort):
        target = b"GET http://127.0.0.1:%d/secret HTTP/1.1" % other.port
        for host in (b"127.0.0.1", b"127.0.0.1:%d" % other.port):
            talk(front.fort.port, target + b"\r\nHost: " + host + b"\r\n\r\n")
        talk(front.fort.port, b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % other.port)
        assert not other.heads


FORGED = "\r\n\x1b[2J\x85\u2028forged: all is well"
SAYINGS = [
    ("a reason", {"GET /health": answer(json.dumps({"error": {"message": FORGED}}).encode(), b"HTTP/1.1 500 X\r\n")}),
    ("a head", {"GET /health": FORGED.encode()}),
    ("a length", {"GET /health": OK + b"Content-Length: \rforged: all is well\r\n\r\n"}),
]


@pytest.mark.slow
@pytest.mark.parametrize("row", SAYINGS, ids=[row[0].replace(" ", "-") for row in SAYINGS])
def test_nothing_that_a_backend_says_writes_a_line_of_its_own_into_the_log(front, row):
    upstream = Upstream({"GET /models": EVIL})
    program = front.fort.program
    with unharmed(front.fort), front.facing(upstream):
        said = len(program.errors)
        upstream.script.update(row[1])
        upstream.script[""] = FORGED.encode()
        ask(front.fort.port)
        deadline = time.monotonic() + SECONDS
        while state_of(front.fort, upstream.url) == "up":
            assert time.monotonic() < deadline, "the backend stays up"
            time.sleep(0.02)
        deadline = time.monotonic() + SECONDS
        while len(program.errors) == said:
            assert time.monotonic() < deadline, "the log says nothing"
            time.sleep(0.02)
        for line in program.errors[said:]:
            assert not line.startswith("forged") and line.isprintable(), line
        reason = get(front.fort.port, "/status").json["backends"][-1]["why"]
        assert reason.isprintable() and len(reason) < 1000, reason
