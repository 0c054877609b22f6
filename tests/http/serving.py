"""What the tests of the server share: raw clients, handlers that wait, and services as fixtures.

A file of tests takes the fixtures that it needs by name: `serve, connect = serving.serve, serving.connect`.
"""

import concurrent.futures
import json
import socket
import threading
import time

import pytest
from streams import event_stream

from core.errors import APIError, HangUp
from core.http.messages import Reply, Stream, json_reply
from core.http.routing import Route
from core.http.server import ServerConfig, Service
from core.jsonbody import read_json

PATIENCE = 20  # seconds until a test gives up; none of them waits this long where the code is right
EXPECTING = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"


class Answer:
    """One reply as it came over the wire."""

    def __init__(self, version, status, headers, body):
        self.version, self.status, self.headers, self.body = version, status, headers, body

    @property
    def json(self):
        return json.loads(self.body.decode("utf-8"))

    @property
    def error(self):
        """The error object, after a check that the reply is exactly an error envelope."""
        assert self.headers["content-type"] == "application/json"
        assert set(self.json) == {"error"}
        error = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert isinstance(error["message"], str) and error["message"]
        assert isinstance(error["type"], str) and error["type"]
        assert error["param"] is None or isinstance(error["param"], str)
        assert error["code"] is None or isinstance(error["code"], str)
        return error


class Client:
    """A raw socket that can read replies."""

    def __init__(self, port, receive_buffer=None):
        self.sock = socket.socket()
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(("127.0.0.1", port))
        self._file = self.sock.makefile("rb")

    def close(self):
        self._file.close()
        self.sock.close()

    def send(self, data):
        self.sock.sendall(data)

    def ask(self, target="/hello", method="GET", headers=(), body=b"", version="HTTP/1.1"):
        """Send a request in one write and return its answer."""
        self.send(request(target, method, headers, body, version))
        return self.answer(without_body=method == "HEAD")

    def answer(self, without_body=False):
        """Read one reply, framed by length, by chunks or by the connection's end."""
        version, status, headers = self.head()
        if without_body or status in (100, 204):
            body = b""
        elif headers.get("transfer-encoding") == "chunked":
            body = b"".join(iter(self.chunk, b""))
        elif "content-length" in headers:
            body = self._file.read(int(headers["content-length"]))
            assert len(body) == int(headers["content-length"])
        else:
            body = self._file.read()
        return Answer(version, status, headers, body)

    def head(self):
        """Read a reply's head: version, status and headers."""
        line = self._file.readline().decode("latin-1")
        assert line, "the server closed the connection without an answer"
        version, status = line.split(" ")[:2]
        headers = {}
        for raw in iter(self._file.readline, b"\r\n"):
            assert raw.endswith(b"\r\n")
            name, _, value = raw.decode("latin-1").partition(":")
            assert name.lower() not in headers, "%s came twice" % name
            headers[name.lower()] = value.strip()
        return version, int(status), headers

    def chunk(self):
        """Read one chunk of a chunked body; an empty one is the end."""
        size = int(self._file.readline(), 16)
        data = self._file.read(size)
        assert self._file.read(2) == b"\r\n"
        return data

    def rest(self):
        """Read until the server closes the connection."""
        return self._file.read()


def request(target="/hello", method="GET", headers=(), body=b"", version="HTTP/1.1"):
    """A request's bytes; Host and Content-Length are added."""
    lines = ["%s %s %s" % (method, target, version), "Host: localhost"]
    lines += ["%s: %s" % pair for pair in dict(headers).items()]
    if body or method == "POST":
        lines.append("Content-Length: %d" % len(body))
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


def chunked(data, target="/echo"):
    """A request's bytes whose body comes in chunks: `data`, in the coding."""
    return b"POST %b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" % target.encode() + data


def eventually(true):
    """Wait until `true()` is, or fail."""
    deadline = time.monotonic() + PATIENCE
    tick = threading.Event()
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        tick.wait(0.005)


class Gate:
    """A handler that says when a request has arrived, and answers when it is let go, unless its client leaves first."""

    def __init__(self):
        self.arrived, self.go, self.left = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, request):
        self.arrived.set()
        deadline = time.monotonic() + PATIENCE
        while not self.go.wait(0.01) and time.monotonic() < deadline:
            if request.hung_up():
                self.left.set()
                raise HangUp()
        return json_reply({"done": True})


class Pieces:
    """A stream that gives `before`, then stays idle until it is let go, then gives `after` or raises it."""

    def __init__(self, before=(), after=(), sse=True):
        self.before, self.after, self.sse = before, after, sse
        self.go, self.closed = threading.Event(), threading.Event()

    def __call__(self, request):
        return event_stream(self._values(request)) if self.sse else Stream(self._values(request))

    def _values(self, request):
        try:
            yield from self.before
            request.wait(self.go.wait, PATIENCE)
            if isinstance(self.after, Exception):
                raise self.after
            yield from self.after
        finally:
            self.closed.set()


def routes():
    def fail(request):
        raise RuntimeError("secret-internal-detail")

    def teapot(request):
        raise APIError(418, "No coffee.", "teapot", "pot", "brewing_error", headers=[("X-Pot", "short")])

    def drip(request):
        return event_stream(value for value in [{"n": 1}, {"n": 2}])

    return [
        Route("GET", "/hello", lambda request: json_reply({"hello": "wörld"}), public=True),
        Route("GET", "/query", lambda request: json_reply(request.query)),
        Route("POST", "/echo", lambda request: Reply(request.body, content_type="text/plain")),
        Route("PUT", "/echo", lambda request: Reply(b"put")),
        Route("POST", "/json", lambda request: json_reply(read_json(request.body))),
        Route("GET", "/items/{name}", lambda request: json_reply(request.params)),
        Route("DELETE", "/items/{name}", lambda request: json_reply({"deleted": request.params["name"]})),
        Route("GET", "/items/special", lambda request: json_reply("exact")),
        Route("GET", "/a.b/{one}/{two}", lambda request: json_reply(request.params)),
        Route("GET", "/fail", fail),
        Route("GET", "/teapot", teapot),
        Route("GET", "/stream", drip),
    ]


@pytest.fixture(scope="module")
def house():
    """A service that the tests which change nothing about it share."""
    service = Service(ServerConfig(max_body=1000), routes()).start()
    yield service
    service.drain(0)


@pytest.fixture
def serve():
    """Start services of a test's own: serve(routes, fallback=None, **config)."""
    running = []

    def start(table=None, fallback=None, **config):
        running.append(Service(ServerConfig(**config), routes() if table is None else table, fallback).start())
        return running[-1]

    yield start
    for service in running:
        service.drain(0)


@pytest.fixture
def connect():
    """Open connections that are closed when the test ends."""
    clients = []

    def open_one(service, **how):
        clients.append(Client(service.port, **how))
        return clients[-1]

    yield open_one
    for client in clients:
        client.close()


@pytest.fixture
def background():
    """Run a function in a thread of its own: background(f, *arguments).result(PATIENCE)."""
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        yield pool.submit
