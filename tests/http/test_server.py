"""The HTTP ground floor, spoken to over real sockets: what a client gets, whatever it sends and however it leaves."""
import concurrent.futures
import errno
import json
import logging
import select
import socket
import threading
import time
import urllib.error
import urllib.request

import pytest
from conftest import wait_until

from core.errors import APIError, HangUp
from core.http import connection, messages, server, sockets
from core.http.messages import Reply, Stream, json_reply
from core.http.metrics import Metrics
from core.http.routing import Route
from core.http.server import ServerConfig, Service
from core.http.sse import event_stream

PATIENCE = 20  # seconds until a test gives up; none of them waits this long where the code is right


# ------------------------------------------------------------------------------------------------ helpers


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
        return event_stream(self._values()) if self.sse else Stream(self._values())

    def _values(self):
        deadline = time.monotonic() + PATIENCE
        try:
            yield from self.before
            while not self.go.wait(0.01) and time.monotonic() < deadline:
                yield messages.IDLE
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
        Route("POST", "/json", lambda request: json_reply(request.json())),
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


# ------------------------------------------------------------------------------------------------ routing


def test_an_exact_path_reaches_its_handler(house, connect):
    answer = connect(house).ask("/hello")
    assert (answer.status, answer.json) == (200, {"hello": "wörld"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.version == "HTTP/1.1"


def test_urllib_is_a_client_like_any_other(house):
    with urllib.request.urlopen(house.url + "/hello", timeout=PATIENCE) as answer:
        assert json.load(answer) == {"hello": "wörld"}
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(house.url + "/nowhere", timeout=PATIENCE)
    with caught.value as answer:
        assert answer.code == 404
        assert json.load(answer)["error"]["code"] == "unknown_path"


def test_the_port_really_bound_is_known(house):
    assert house.port > 0
    assert house.url == "http://127.0.0.1:%d" % house.port


def test_a_taken_port_raises_at_start(house):
    with pytest.raises(OSError) as caught:
        Service(ServerConfig(port=house.port), []).start()
    assert caught.value.errno == errno.EADDRINUSE


def test_a_query_does_not_hide_the_path(house, connect):
    answer = connect(house).ask("/query?a=1&b=%C3%BC+x&a=2&c=")
    assert answer.json == {"a": "2", "b": "ü x", "c": ""}


@pytest.mark.parametrize(
    "path, params",
    [
        ("/items/demo.gguf", {"name": "demo.gguf"}),
        ("/items/a%20b%2Fc", {"name": "a b/c"}),
        ("/items/%E6%97%A5", {"name": "日"}),
        ("/items/%FF", {"name": "\ufffd"}),
        ("/a.b/x/y", {"one": "x", "two": "y"}),
    ],
)
def test_a_pattern_gives_its_names_percent_decoded(house, connect, path, params):
    assert connect(house).ask(path).json == params


def test_an_exact_path_wins_over_a_pattern(house, connect):
    assert connect(house).ask("/items/special").json == "exact"


@pytest.mark.parametrize("path", ["/", "/hello/", "/items/", "/items/a/b", "/aXb/x/y", "/HELLO"])
def test_a_path_that_no_route_names_gets_404(house, connect, path):
    answer = connect(house).ask(path)
    assert answer.status == 404
    assert answer.error["type"] == "not_found_error"
    assert answer.error["code"] == "unknown_path"


@pytest.mark.parametrize(
    "method, path, allow",
    [
        ("POST", "/hello", "GET"),
        ("GET", "/echo", "POST, PUT"),
        ("HEAD", "/echo", "POST, PUT"),
        ("PUT", "/items/x", "DELETE, GET"),
        ("BREW", "/hello", "GET"),
    ],
)
def test_a_method_that_a_path_does_not_take_gets_405_and_the_ones_it_does(house, connect, method, path, allow):
    answer = connect(house).ask(path, method)
    assert answer.status == 405
    assert answer.headers["allow"] == allow
    if method != "HEAD":
        assert answer.error["code"] == "method_not_allowed"


def test_two_methods_of_one_pattern_have_their_own_handlers(house, connect):
    client = connect(house)
    assert client.ask("/items/x", "GET").json == {"name": "x"}
    assert client.ask("/items/x", "DELETE").json == {"deleted": "x"}


def test_the_fallback_answers_every_path_that_no_route_names(serve, connect):
    service = serve([Route("GET", "/own", lambda request: Reply(b"own"))], lambda request: Reply(b"fallback"))
    client = connect(service)
    assert client.ask("/own").body == b"own"
    assert client.ask("/other").body == b"fallback"
    assert client.ask("/other", "POST", body=b"x").body == b"fallback"
    assert client.ask("/own", "DELETE").status == 405


def test_head_gets_gets_headers_and_no_body(house, connect):
    client = connect(house)
    length = client.ask("/hello").headers["content-length"]
    head = client.ask("/hello", "HEAD")
    assert (head.status, head.headers["content-length"]) == (200, length)
    assert client.ask("/hello").json == {"hello": "wörld"}  # not one byte of a body came between


def test_options_of_the_whole_server_tells_the_methods(house, connect):
    client = connect(house)
    answer = client.ask("*", "OPTIONS")
    assert (answer.status, answer.headers["allow"]) == (204, "DELETE, GET, OPTIONS, POST, PUT")
    assert client.ask().status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "BREW"])
def test_any_other_method_of_the_whole_server_gets_400(serve, connect, method):
    client = connect(serve(fallback=lambda request: Reply(b"never")))
    assert client.ask("*", method).status == 400
    assert client.ask().status == 200


def test_options_that_is_no_preflight_is_a_method_like_any_other(house, connect):
    assert connect(house).ask("/hello", "OPTIONS").status == 405


# ------------------------------------------------------------------------------------- connections and bytes


def test_one_connection_serves_many_requests(house, connect):
    client = connect(house)
    for i in range(5):
        answer = client.ask("/echo", "POST", body=b"%d" % i)
        assert answer.body == b"%d" % i
        assert answer.headers["connection"] == "keep-alive"


def test_two_requests_in_one_write_are_answered_in_their_order(house, connect):
    client = connect(house)
    client.send(request("/echo", "POST", body=b"first") + request("/echo", "POST", body=b"second"))
    assert [client.answer().body, client.answer().body] == [b"first", b"second"]


def test_a_request_may_come_one_byte_at_a_time(house, connect):
    client = connect(house)
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    for byte in request("/echo", "POST", body=b"slow"):
        client.send(bytes([byte]))
    assert client.answer().body == b"slow"


def test_empty_lines_before_a_request_are_skipped(house, connect):
    client = connect(house)
    client.send(b"\r\n" + request())
    assert client.answer().status == 200


def test_http_1_0_closes_after_its_answer(house, connect):
    client = connect(house)
    client.send(b"GET /hello HTTP/1.0\r\n\r\n")
    answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert client.rest() == b""


def test_http_1_0_with_keep_alive_stays_open(house, connect):
    client = connect(house)
    for _ in range(2):
        client.send(b"GET /hello HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
        answer = client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "keep-alive")


@pytest.mark.parametrize("option", ["close", "Close", "foo, close"])
def test_a_client_that_asks_to_close_is_obeyed(house, connect, option):
    client = connect(house)
    answer = client.ask(headers={"Connection": option})
    assert (answer.status, answer.headers["connection"]) == (200, "close")
    assert client.rest() == b""


def test_a_client_that_has_closed_its_sending_side_still_gets_its_answer(house, connect):
    client = connect(house)
    client.send(request())
    client.sock.shutdown(socket.SHUT_WR)
    assert client.answer().status == 200
    assert client.rest() == b""


# ------------------------------------------------------------------------------- clients that close half-way


@pytest.fixture
def hold(monkeypatch):
    """Begin to serve connections only when the event that this gives is set."""
    held, handle = threading.Event(), connection.Connection.handle
    monkeypatch.setattr(connection.Connection, "handle", lambda connection: held.wait(PATIENCE) and handle(connection))
    return held


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
def test_a_client_whose_end_comes_with_its_request_gets_its_answer_however_long_it_takes(serve, connect, hold, version):
    gate = Gate()
    client = connect(serve([Route("POST", "/", gate)]))
    client.send(request("/", "POST", body=b"x", version=version))
    client.sock.shutdown(socket.SHUT_WR)
    hold.set()
    assert gate.arrived.wait(PATIENCE) and not gate.left.wait(0.1)
    gate.go.set()
    assert client.answer().json == {"done": True}
    assert client.rest() == b""


def test_a_client_that_leaves_as_soon_as_it_has_sent_its_request_is_noticed(serve, connect, hold):
    gate = Gate()
    client = connect(serve([Route("POST", "/", gate)]))
    client.send(request("/", "POST", body=b"x"))
    client.close()
    hold.set()
    assert gate.left.wait(PATIENCE)


def test_a_client_that_closes_its_sending_side_later_is_asked_and_gets_its_answer(serve, connect):
    """Whether its end comes before or after the request is begun is a matter of microseconds (`printf … | nc -N`)."""
    gate = Gate()
    client = connect(serve([Route("POST", "/", gate)]))
    client.send(request("/", "POST", body=b"x"))
    assert gate.arrived.wait(PATIENCE)
    client.sock.shutdown(socket.SHUT_WR)
    assert client.answer().status == 100
    assert not gate.left.wait(0.1)
    gate.go.set()
    assert client.answer().json == {"done": True}
    assert client.rest() == b""


def test_a_stream_goes_on_to_a_client_that_closes_its_sending_side(serve, connect):
    pieces = Pieces(before=["one"], after=["two"])
    client = connect(serve([Route("GET", "/", pieces)]))
    client.send(request("/"))
    assert client.head()[1] == 200
    assert client.chunk() == b'data: "one"\n\n'
    client.sock.shutdown(socket.SHUT_WR)
    assert client.chunk() == b": ping\n\n"
    assert not pieces.closed.wait(0.1)
    pieces.go.set()
    assert b"".join(iter(client.chunk, b"")) == b'data: "two"\n\ndata: [DONE]\n\n'
    assert client.rest() == b""


def test_a_client_that_closes_half_way_and_then_leaves_is_noticed_at_the_next_ping(serve, connect):
    pieces = Pieces(before=["one"])
    client = connect(serve([Route("GET", "/", pieces)], ping_interval=0.05))
    client.send(request("/"))
    assert client.head()[1] == 200
    client.sock.shutdown(socket.SHUT_WR)
    assert not pieces.closed.wait(0.2)
    client.close()
    assert pieces.closed.wait(PATIENCE)


def test_a_half_closed_client_does_not_hold_up_a_drain(serve, connect):
    gate = Gate()
    service = serve([Route("POST", "/", gate)])
    client = connect(service)
    client.send(request("/", "POST", body=b"x"))
    assert gate.arrived.wait(PATIENCE)
    client.sock.shutdown(socket.SHUT_WR)
    assert client.answer().status == 100
    assert service.drain(0) == 1
    assert gate.left.wait(PATIENCE)


class Recorder:
    """A real socket that remembers what was written to it."""

    def __init__(self, sock):
        self.sock, self.writes = sock, []

    def send(self, data):
        self.writes.append(bytes(data))
        return self.sock.send(data)

    def __getattr__(self, name):
        return getattr(self.sock, name)


def test_a_reply_leaves_in_one_write_and_a_streams_head_with_its_first_piece(serve, connect):
    recorders = []

    def recorded(reply):
        def handler(request):
            recorders.append(Recorder(request.wire.sock))
            request.wire.sock = recorders[-1]
            return reply()

        return handler

    service = serve(
        [
            Route("GET", "/reply", recorded(lambda: json_reply({"a": "b" * 5000}))),
            Route("GET", "/stream", recorded(lambda: event_stream(value for value in ["first", "second"]))),
        ]
    )
    assert connect(service).ask("/reply").json == {"a": "b" * 5000}
    assert connect(service).ask("/stream").status == 200
    reply, stream = recorders
    assert len(reply.writes) == 1
    assert stream.writes[0].startswith(b"HTTP/1.1 200 ") and stream.writes[0].endswith(b'data: "first"\n\n\r\n')
    assert len(stream.writes) == 4  # two values, [DONE], the last chunk


def test_small_packets_leave_at_once(serve, connect):
    seen = []

    def handler(request):
        seen.append(request.wire.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        return Reply()

    connect(serve([Route("GET", "/", handler)])).ask("/")
    assert seen and seen[0]


def test_a_burst_of_200_connections_waits_in_the_backlog_and_is_answered(serve, connect, monkeypatch):
    service = serve()
    server = service._server
    assert server.request_queue_size >= 512
    held, process = threading.Event(), server.process_request

    def hold(*arguments):
        held.wait(PATIENCE)
        process(*arguments)

    monkeypatch.setattr(server, "process_request", hold)  # nothing is accepted until all are connected
    clients = [connect(service) for _ in range(200)]
    held.set()
    for client in clients:
        client.send(request())
    assert [client.answer().status for client in clients] == [200] * 200


# ------------------------------------------------------------------------------------ too many connections


def test_more_connections_than_allowed_get_503_until_one_leaves(serve, connect):
    gate = Gate()
    service = serve([Route("GET", "/", gate)] + routes(), max_connections=2)
    busy = [connect(service) for _ in range(2)]
    for client in busy:
        gate.arrived.clear()
        client.send(request("/"))
        assert gate.arrived.wait(PATIENCE)
    third = connect(service)
    answer = third.answer()
    assert answer.status == 503
    assert answer.headers["retry-after"].isdigit()
    assert answer.headers["connection"] == "close"
    assert answer.error["code"] == "too_many_connections"
    assert third.rest() == b""
    busy[0].close()
    eventually(lambda: service.connections_open() == 1)
    assert connect(service).ask().status == 200
    gate.go.set()
    assert busy[1].answer().status == 200


def test_for_a_new_connection_the_one_that_has_idled_longest_is_closed(serve, connect):
    gate = Gate()
    service = serve([Route("GET", "/", gate)] + routes(), max_connections=3)
    busy, first, second = connect(service), connect(service), connect(service)
    busy.send(request("/"))
    assert gate.arrived.wait(PATIENCE)

    def ask(client):
        """Ask, and wait until the connection idles: its client has the answer a moment before."""
        status = client.ask().status
        wait_until(lambda: service.requests_active() == 1)
        return status

    assert [ask(first), ask(second), ask(first)] == [200] * 3
    third = connect(service)
    assert ask(third) == 200
    assert second.rest() == b""
    assert ask(first) == 200
    silent = connect(service)
    assert third.rest() == b""
    assert ask(connect(service)) == 200
    assert first.rest() == b""
    assert ask(connect(service)) == 200
    assert silent.rest() == b""  # that has not sent a request yet idles, too
    gate.go.set()
    assert busy.answer().status == 200


def test_a_lack_of_descriptors_costs_no_time_and_passes(serve, connect, monkeypatch, caplog):
    """The listener stays ready while accept() fails: a loop that just tries again would take a core."""
    service = serve()
    failed, whole = [], threading.Event()
    accept = server.ThreadingHTTPServer.get_request

    def fail(server):
        if whole.is_set():
            return accept(server)
        failed.append(1)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(server.ThreadingHTTPServer, "get_request", fail)
    client = connect(service)
    client.send(request())
    eventually(lambda: failed)
    began = time.monotonic()
    whole.wait(0.6)
    assert len(failed) <= 3 + (time.monotonic() - began) / 0.1
    whole.set()
    assert client.answer().status == 200
    assert len([record for record in caplog.records if "Too many open files" in record.getMessage()]) == 1


def test_a_lack_of_descriptors_closes_idle_connections(serve, connect, monkeypatch):
    service = serve()
    idle = connect(service)
    assert idle.ask().status == 200
    accept = server.ThreadingHTTPServer.get_request

    def fail_while_full(server):
        if service.connections_open():
            raise OSError(errno.EMFILE, "Too many open files")
        return accept(server)

    monkeypatch.setattr(server.ThreadingHTTPServer, "get_request", fail_while_full)
    assert connect(service).ask().status == 200
    assert idle.rest() == b""


def test_a_lack_of_threads_is_told_and_passes(serve, connect, monkeypatch):
    service = serve()
    begin = server.ThreadingHTTPServer.process_request

    def fail(*arguments):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(server.ThreadingHTTPServer, "process_request", fail)
    client = connect(service)
    answer = client.answer()
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert client.rest() == b""
    monkeypatch.setattr(server.ThreadingHTTPServer, "process_request", begin)
    assert connect(service).ask().status == 200
    eventually(lambda: service.connections_open() == 1)


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), OSError(errno.EMFILE, "Too many open files")]
)
def test_a_request_that_finds_no_thread_or_descriptor_is_asked_to_come_again(serve, connect, error):
    def fail(request):
        raise error

    answer = connect(serve([Route("GET", "/", fail)])).ask("/")
    assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "short", "1")


# ------------------------------------------------------------------------------------------------- bodies


def chunked(data, target="/echo"):
    return b"POST %b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" % target.encode() + data


@pytest.mark.parametrize("size", [0, 1, 1000])
def test_a_body_is_read_by_its_content_length(house, connect, size):
    body = b"x" * size
    assert connect(house).ask("/echo", "POST", body=body).body == body


@pytest.mark.parametrize(
    "data, body",
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"5\r\nhello\r\n00006\r\n world\r\n0\r\n\r\n", b"hello world"),
        (b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", b"0123456789" * 2),
        (b'5;name=value;other="x"\r\nhello\r\n0;last\r\n\r\n', b"hello"),
        (b"5\r\nhello\r\n0\r\nX-Checksum: 1\r\nX-Other: 2\r\n\r\n", b"hello"),
        (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
    ],
)
def test_a_chunked_body_is_put_together_and_the_connection_goes_on(house, connect, data, body):
    client = connect(house)
    client.send(chunked(data) + request())
    assert client.answer().body == body
    assert client.answer().json == {"hello": "wörld"}


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"g\r\n",
        b"0x5\r\nhello\r\n0\r\n\r\n",
        b"+5\r\nhello\r\n0\r\n\r\n",
        b"-1\r\n",
        b"5_0\r\n",
        b"5\nhello\r\n0\r\n\r\n",
        b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        b"5\n\r\nhello\r\n0\r\n\r\n",
        b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        b"5\r\nhello!\r\n0\r\n\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"00000000000000000\r\n\r\n",
        b"5;" + b"x" * 500,
        b"5;" + b"x" * 500 + b"\r\nhello\r\n0\r\n\r\n",
        b"0\r\n" + b"X: y\r\n" * 200,
    ],
)
def test_a_malformed_chunk_gets_400_and_ends_the_connection(house, connect, data):
    client = connect(house)
    client.send(chunked(data) + request())
    answer = client.answer()
    assert (answer.status, answer.error["code"]) == (400, "bad_chunk")
    assert answer.headers["connection"] == "close"
    assert client.rest() == b""


BIG = 4 << 20


@pytest.mark.parametrize(
    "head",
    [
        request("/echo", "POST")[:-4].replace(b"Content-Length: 0", b"Content-Length: %d" % BIG) + b"\r\n\r\n",
        chunked(b"%x\r\n" % BIG),
        chunked(b"3e8\r\n" + b"x" * 1000 + b"\r\n%x\r\n" % BIG),
        chunked(b"ffffffffffffffff\r\n"),
    ],
)
def test_a_body_larger_than_the_limit_gets_413_which_a_client_still_sending_can_read(house, connect, head):
    client = connect(house)
    client.send(head)
    client.send(b"x" * BIG)  # a server that just closed would break this
    answer = client.answer()
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    assert answer.headers["connection"] == "close"
    assert client.rest() == b""


def test_bodies_of_four_megabytes_are_taken_by_default(serve, connect):
    client = connect(serve())
    assert client.ask("/echo", "POST", body=b"x" * (4 << 20)).status == 200
    assert client.ask("/echo", "POST", body=b"x" * ((4 << 20) + 1)).status == 413


def whole(body):
    return request("/", "POST", body=body)


def in_chunks(body):
    return chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body), "/")


@pytest.mark.parametrize("written", [whole, in_chunks])
def test_bodies_may_take_so_much_all_together_and_what_ends_gives_it_back(serve, connect, written):
    gate = Gate()
    service = serve([Route("POST", "/", gate)], max_body=1000, max_bodies=2500)
    held = [connect(service) for _ in range(2)]
    for client in held:
        gate.arrived.clear()
        client.send(written(b"x" * 1000))
        assert gate.arrived.wait(PATIENCE)
    client = connect(service)
    client.send(written(b"x" * 501))
    refused = client.answer()
    assert (refused.status, refused.error["code"]) == (503, "too_many_bodies")
    assert refused.headers["retry-after"].isdigit() and refused.headers["connection"] == "close"
    client.close()
    held[0].close()  # one leaves, the other is answered
    gate.go.set()
    assert held[1].answer().status == 200
    eventually(lambda: service.requests_active() == 0)
    assert connect(service).ask("/", "POST", body=b"x" * 1000).status == 200
    eventually(lambda: service.bodies._left == 2500)


def test_who_only_announces_a_body_or_is_slow_or_leaves_takes_nothing_from_others(serve, connect):
    service = serve(max_body=1000, max_bodies=1000)
    slow = [connect(service) for _ in range(5)]
    for client in slow:
        client.send(request("/echo", "POST", body=b"x" * 900)[:-899])
    eventually(lambda: service.requests_active() == 5)
    assert connect(service).ask("/echo", "POST", body=b"x" * 900).status == 200
    for client in slow:
        client.close()
    eventually(lambda: service.bodies._left == 1000)


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_a_body_without_a_length_gets_411(house, connect, method):
    client = connect(house)
    client.send(b"%b /echo HTTP/1.1\r\nHost: localhost\r\n\r\n" % method.encode())
    answer = client.answer()
    assert (answer.status, answer.error["code"]) == (411, "length_required")
    assert client.ask().status == 200


EXPECTING = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"


def test_a_client_that_waits_for_100_continue_gets_it(house, connect):
    client = connect(house)
    client.send(EXPECTING % 5)
    assert client.head()[1] == 100
    client.send(b"hello")
    assert client.answer().body == b"hello"


@pytest.mark.parametrize("head, status", [(EXPECTING % BIG, 413), (EXPECTING.replace(b"echo", b"no") % 5, 404)])
def test_a_request_that_will_be_refused_gets_no_100_continue(house, connect, head, status):
    client = connect(house)
    client.send(head)
    answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == (status, "close")


def test_http_1_0_never_gets_100_continue(house, connect):
    """RFC 9110, section 10.1.1: the expectation must be ignored, since such a client knows no interim replies."""
    client = connect(house)
    client.send((EXPECTING % 5).replace(b"HTTP/1.1", b"HTTP/1.0") + b"hello")
    assert client.answer().status == 200


def test_an_incomplete_body_reaches_no_handler(serve, connect):
    called = []
    service = serve([Route("POST", "/", lambda request: called.append(1) or Reply())])
    whole = request("/", "POST", body=b"0123456789")
    for cut in (whole[:-7], chunked(b"5\r\nhe", "/"), chunked(b"5\r\nhello\r\n", "/")):
        client = connect(service)
        client.send(cut)
        client.sock.shutdown(socket.SHUT_WR)
        assert client.rest() == b""
    assert not called
    eventually(lambda: service.requests_active() == 0)
    assert connect(service).ask("/", "POST").status == 200


# -------------------------------------------------------------------------------------------- slow clients


def drip(client, data):
    """Send one byte after another, never pausing for long, until the server says something."""
    deadline = time.monotonic() + PATIENCE
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    for byte in data:
        client.send(bytes([byte]))
        if select.select([client.sock], [], [], 0.02)[0]:
            return
        assert time.monotonic() < deadline, "every byte won the client more time"
    raise AssertionError("all was sent before the deadline came")


def test_half_a_head_is_cut_off_with_408(serve, connect):
    client = connect(serve(header_timeout=0.3))
    client.send(b"GET /hello HTTP/1.1\r\nHost:")
    answer = client.answer()
    assert (answer.status, answer.error["code"]) == (408, "request_timeout")
    assert answer.headers["connection"] == "close"
    assert client.rest() == b""


def test_headers_dripping_byte_by_byte_win_no_time(serve, connect):
    client = connect(serve(header_timeout=0.3))
    drip(client, b"GET /hello HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"x" * 5000)
    assert client.answer().status == 408


@pytest.mark.parametrize(
    "start",
    [
        b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n",
        chunked(b"1388\r\n"),
        chunked(b"5;"),
    ],
)
def test_a_body_dripping_byte_by_byte_is_cut_off_with_408(serve, connect, start):
    client = connect(serve(body_timeout=0.3))
    client.send(start)
    drip(client, b"x" * (200 if start.endswith(b";") else 5000))
    assert client.answer().status == 408
    assert client.rest() == b""


def test_a_kept_alive_connection_that_idles_is_closed_without_a_word(serve, connect):
    service = serve(idle_timeout=1.0)  # time enough to connect twice and to ask
    client, silent = connect(service), connect(service)
    assert client.ask().headers["connection"] == "keep-alive"
    assert client.rest() == b""
    assert silent.rest() == b""
    eventually(lambda: service.connections_open() == 0)


def test_a_client_that_stops_reading_is_cut_off(serve, connect):
    closed = threading.Event()

    def endless(request):
        def pieces():
            try:
                while True:
                    yield b"x" * 65536
            finally:
                closed.set()

        return Stream(pieces())

    client = connect(serve([Route("GET", "/", endless)], write_timeout=0.3), receive_buffer=4096)
    client.send(request("/"))
    assert closed.wait(PATIENCE)


def narrow(reply):
    """A handler whose answer the kernel does not take much of, so that a slow client is felt at once."""

    def handler(request):
        request.wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return reply()

    return handler


def read_slowly(client, rate):
    """Read so many bytes a second until the end; return how many came, and how long it took."""
    began, count = time.monotonic(), 0
    while True:
        try:
            data = client.sock.recv(max(1, int((time.monotonic() - began) * rate) - count))
        except ConnectionError:
            data = b""
        count += len(data)
        if not data:
            return count, time.monotonic() - began
        assert time.monotonic() - began < PATIENCE, "every byte won the client more time"
        threading.Event().wait(0.02)


def endless():
    while True:
        yield "x" * 200


@pytest.mark.parametrize("reply", [lambda: event_stream(endless()), lambda: Reply(b"x" * (1 << 20))])
def test_a_client_that_takes_a_little_now_and_then_is_cut_off(serve, connect, monkeypatch, reply):
    monkeypatch.setattr(sockets, "SLOWEST", 1 << 20)
    client = connect(serve([Route("GET", "/", narrow(reply))], write_timeout=0.3), receive_buffer=4096)
    client.send(request("/"))
    count, seconds = read_slowly(client, 100_000)
    assert count < 1 << 19 and seconds < 6


def test_a_client_that_is_slow_but_not_too_slow_gets_all_of_a_large_answer(serve, connect, monkeypatch):
    monkeypatch.setattr(sockets, "SLOWEST", 1 << 18)
    service = serve([Route("GET", "/", narrow(lambda: Reply(b"x" * (1 << 20))))], write_timeout=0.3)
    client = connect(service, receive_buffer=65536)
    client.send(request("/", headers={"Connection": "close"}))
    count, seconds = read_slowly(client, 1 << 20)
    assert count > 1 << 20 and seconds > 0.6  # twice the write timeout


# ---------------------------------------------------------------------------------------------- bad requests

HELLO = b"GET /hello HTTP/1.1\r\n"
HOST = b"Host: localhost\r\n"
POST = b"POST /echo HTTP/1.1\r\n" + HOST


@pytest.mark.parametrize(
    "data, status",
    [
        (POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", 400),
        (POST + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
        (POST + b"Content-Length: 5, 5\r\n\r\nhello", 400),
        (POST + b"Content-Length: +5\r\n\r\nhello", 400),
        (POST + b"Content-Length: -1\r\n\r\n", 400),
        (POST + b"Content-Length: 0x5\r\n\r\nhello", 400),
        (POST + b"Content-Length: 5 \t5\r\n\r\nhello", 400),
        (POST + b"Content-Length: 1_0\r\n\r\nhello", 400),
        (POST + b"Content-Length: \xb2\r\n\r\nhello", 400),
        (POST + b"Content-Length:\r\n\r\nhello", 400),
        (POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\nhello", 400),
        (POST + b"Transfer-Encoding: gzip\r\n\r\n0\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        (POST.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (HELLO + HOST + b"X-Folded: a\r\n b\r\n\r\n", 400),
        (HELLO + b" Host: localhost\r\n\r\n", 400),
        (HELLO + b"Host : test\r\n\r\n", 400),
        (HELLO + HOST + b": nameless\r\n\r\n", 400),
        (HELLO + HOST + b"no colon\r\n\r\n", 400),
        (HELLO + HOST + b"X-(Odd): a\r\n\r\n", 400),
        (HELLO + HOST + b"X-Nul: a\x00b\r\n\r\n", 400),
        (HELLO + HOST + b"X-Cr: a\rb\r\n\r\n", 400),
        (HELLO + HOST + b"X-Lf: a\nY: b\r\n\r\n", 400),
        (HELLO + HOST + b"X-Bell: a\x07b\r\n\r\n", 400),
        (HELLO + HOST + b"X-Escape: \x1b[31m\r\n\r\n", 400),
        (HELLO + HOST + b"X-Delete: \x7f\r\n\r\n", 400),
        (HELLO + HOST + b"X-Vertical-Tab: \x0b\r\n\r\n", 400),
        (HELLO + HOST + b"X-\x00: a\r\n\r\n", 400),
        (HELLO + HOST + b"X-\xe9: a\r\n\r\n", 400),
        (HELLO + HOST + b"\tX-Folded: a\r\n\r\n", 400),
        (HELLO + b"Host: two words\r\n\r\n", 400),
        (HELLO + b"Host: a, b\r\n\r\n", 400),
        (HELLO + b"Host: a,b\r\n\r\n", 400),
        (HELLO + b"Host: user@localhost\r\n\r\n", 400),
        (HELLO + b"Host: user:word@localhost\r\n\r\n", 400),
        (HELLO + b"Host: localhost:\r\n\r\n", 400),
        (HELLO + b"Host: localhost:0x50\r\n\r\n", 400),
        (HELLO + b"Host: localhost:65536\r\n\r\n", 400),
        (HELLO + b"Host: localhost:80:80\r\n\r\n", 400),
        (HELLO + b"Host: :80\r\n\r\n", 400),
        (HELLO + b"Host: http://localhost\r\n\r\n", 400),
        (HELLO + b"Host: localhost/path\r\n\r\n", 400),
        (HELLO + b"Host: local\xe9\r\n\r\n", 400),
        (HELLO + b"Host: [::1\r\n\r\n", 400),
        (HELLO + b"Host: [1:2]\r\n\r\n", 400),
        (HELLO + b"Host: ::1\r\n\r\n", 400),
        (HELLO + b"Host: [fe80::1%25eth0]\r\n\r\n", 400),
        (HELLO + b"Host: <script>\r\n\r\n", 400),
        (b"GET http:///hello HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET http://user@localhost/hello HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET http://localhost:x/hello HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET ftp://localhost/hello HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET http://localhost/hello HTTP/1.1\r\n\r\n", 400),
        (HELLO + b"Host: localhost\n\r\n", 400),
        (HELLO + b"Host: localhost\r\n\n", 400),
        (HELLO.replace(b"\r", b"") + b"Host: localhost\n\n", 400),
        (HELLO + b"\r\n", 400),
        (HELLO + HOST + HOST + b"\r\n", 400),
        (b"GET /hello HTTP/2.0\r\n" + HOST + b"\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\n", 505),
        (b"GET /hello HTTP/1.2\r\n" + HOST + b"\r\n", 505),
        (b"GET /hello HTTP/1.1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /hello http/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /hello\r\n\r\n", 400),
        (b"GET  /hello HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /hello world HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET hello HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /h\xc3\xa9llo HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /hel\x00lo HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"G(T /hello HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET http://[::1/hello HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (bytes(range(256)) + b"\r\n\r\n", 400),
        (b"\r\n\r\n\r\n", 400),
        (HELLO + HOST + b"X-Long: " + b"x" * 40000 + b"\r\n\r\n", 431),
        (b"x" * 40000, 431),
        (HELLO + HOST + b"".join(b"X-%d: y\r\n" % i for i in range(150)) + b"\r\n", 431),
    ],
)
def test_a_request_that_two_servers_could_read_differently_is_refused(house, connect, data, status):
    client = connect(house)
    client.send(data + request("/echo", "POST", body=b"smuggled"))
    answer = client.answer()
    assert answer.status == status
    assert answer.error["type"] == ("server_error" if status > 500 else "invalid_request_error")
    assert answer.headers["connection"] == "close"
    assert answer.headers["x-request-id"]
    assert client.rest() == b""  # what followed it was not taken for a request
    assert connect(house).ask().status == 200


def test_a_target_in_absolute_form_is_a_path_like_any_other(house, connect):
    client = connect(house)
    assert client.ask("http://localhost/hello").json == {"hello": "wörld"}
    assert client.ask("http://localhost/query?a=b").json == {"a": "b"}
    assert client.ask("http://localhost").status == 404


def test_header_names_are_told_apart_without_their_case(house, connect):
    client = connect(house)
    client.send(b"POST /echo HTTP/1.1\r\nhOST: localhost\r\ncontent-LENGTH:5\r\n\r\nhello")
    assert client.answer().body == b"hello"


def test_a_header_sent_twice_is_a_list(serve, connect):
    client = connect(serve([Route("GET", "/", lambda request: json_reply(request.headers["x-two"]))]))
    client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Two: 1\r\nX-Two:\t2 \r\n\r\n")
    assert client.answer().json == "1, 2"


# --------------------------------------------------------------------------------------------------- JSON


@pytest.mark.parametrize("value", [{}, {"a": [1, 2.5, None, True, "ü 日本 🙂"]}, {"pair": "\U0001f642"}])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_a_json_object_arrives_as_it_was_sent(house, connect, value, ascii_only):
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8")
    assert connect(house).ask("/json", "POST", body=body).json == value


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"hello",
        b"{'a': 1}",
        b'{"a": 1} x',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b"[1, 2]",
        b'"text"',
        b"1",
        b"null",
        b"true",
        b'{"a": "\\ud800"}',
        b'{"a": "\\udc00\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        b'{"a": "\xc0\xaf"}',
        b'\xff\xfe{\x00"\x00',
        b'{"a": "line\nbreak"}',
    ],
)
def test_a_body_that_is_no_json_object_gets_400(house, connect, body):
    client = connect(house)
    answer = client.ask("/json", "POST", body=body)
    assert (answer.status, answer.error["code"]) == (400, "invalid_json")
    assert client.ask().status == 200  # on the same connection


@pytest.mark.parametrize("body", [b"[" * 100000, b'{"a":' * 100000, b'{"\\u0061":' + b"[" * 100000])
def test_deep_nesting_gets_400_and_harms_nobody(serve, connect, body):
    client = connect(serve())
    answer = client.ask("/json", "POST", body=body)
    assert (answer.status, answer.error["code"]) == (400, "invalid_json")
    assert client.ask().status == 200


# ------------------------------------------------------------------------------------------------ API keys


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer first"},
        {"Authorization": "bearer second"},
        {"Authorization": "Bearer  first "},
        {"X-Api-Key": "second"},
        {"Authorization": "Basic eDp5", "X-Api-Key": "first"},
    ],
)
def test_any_of_the_keys_opens_the_door(serve, connect, headers):
    client = connect(serve(api_key=("first", "second")))
    assert client.ask("/items/x", headers=headers).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer firs"},
        {"Authorization": "Bearer firstt"},
        {"Authorization": "Bearer FIRST"},
        {"Authorization": "Bearer"},
        {"Authorization": "first"},
        {"Authorization": "Basic first"},
        {"X-Api-Key": ""},
        {"X-Api-Key": "first, second"},
        {"Authorization": "Bearer \xff\xfe\xc3\x28"},
        {"X-Api-Key": "\xf0\x9f\x99"},
    ],
)
@pytest.mark.parametrize("path, method", [("/items/x", "GET"), ("/nowhere", "GET"), ("/items/x", "POST")])
def test_a_missing_or_wrong_key_gets_401_whatever_the_path(serve_locked, connect, headers, path, method):
    client = connect(serve_locked)
    answer = client.ask(path, method, headers)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.error["type"] == "authentication_error"
    assert answer.error["code"] == "invalid_api_key"
    assert client.ask("/hello").status == 200  # the public one, on the same connection


@pytest.fixture(scope="module")
def serve_locked():
    service = Service(ServerConfig(api_key=("first", "second")), routes()).start()
    yield service
    service.drain(0)


def test_a_key_beyond_ascii_is_compared_as_utf_8(serve, connect):
    client = connect(serve(api_key=("schlüssel",)))
    client.send("GET /items/x HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: schlüssel\r\n\r\n".encode("utf-8"))
    assert client.answer().status == 200


def test_without_the_key_no_body_is_read(serve, connect):
    client = connect(serve(api_key=("first",)))
    client.send(EXPECTING % 5)
    answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == (401, "close")


# -------------------------------------------------------------------------------------- errors and headers


def test_an_api_error_becomes_its_envelope_with_its_status_and_headers(house, connect):
    answer = connect(house).ask("/teapot")
    assert answer.status == 418
    assert answer.headers["x-pot"] == "short"
    assert answer.json == {
        "error": {"message": "No coffee.", "type": "brewing_error", "param": "pot", "code": "teapot"}
    }


@pytest.mark.parametrize(
    "status, kind",
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (502, "upstream_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_an_errors_type_follows_from_its_status(status, kind):
    error = {"message": "why", "type": kind, "param": None, "code": None}
    assert APIError(status, "why").envelope() == {"error": error}


def test_an_error_never_gives_back_much_of_what_was_sent(house, connect):
    client = connect(house)
    for answer in (client.ask("/" + "x" * 30000), client.ask("/hello", "B" * 30000)):
        assert answer.status in (404, 405) and len(answer.body) < 500
    long = APIError(404, "There is no model '%s' here." % ("x" * (5 << 20)), param="y" * 9000)
    assert len(messages.error_body(long)) < 3000


def test_an_error_never_gives_back_control_characters():
    error = APIError(400, "bell \x07, escape \x1b[31m, C1 \x9b, tab \t,\nline", param="\x00")
    assert error.message == "bell \ufffd, escape \ufffd[31m, C1 \ufffd, tab \ufffd,\nline" and error.param == "\ufffd"


def test_an_errors_message_may_hold_anything():
    body = messages.error_body(APIError(400, 'half a pair: \ud800, "quotes", ü'))
    assert json.loads(body.decode("utf-8"))["error"]["message"] == 'half a pair: ?, "quotes", ü'


def test_a_defect_in_a_handler_gets_500_tells_nothing_and_is_logged(house, connect, caplog):
    client = connect(house)
    answer = client.ask("/fail", headers={"X-Request-Id": "find-me"})
    assert answer.status == 500
    assert answer.error["type"] == "server_error"
    for secret in (b"secret-internal-detail", b"RuntimeError", b"Traceback", b".py"):
        assert secret not in answer.body
    assert answer.headers["connection"] == "keep-alive"
    assert client.ask().status == 200
    assert "secret-internal-detail" in caplog.text and "find-me" in caplog.text


def test_a_requests_id_comes_back(house, connect):
    client = connect(house)
    for path in ("/hello", "/nowhere", "/fail", "/stream"):
        assert client.ask(path, headers={"X-Request-Id": "trace-%s" % path}).headers["x-request-id"] == "trace-" + path


def test_a_request_without_an_id_gets_one_of_its_own(house, connect):
    client = connect(house)
    ids = [client.ask(path).headers["x-request-id"] for path in ("/hello", "/hello", "/nowhere")]
    assert all(ids) and len(set(ids)) == 3


@pytest.mark.parametrize("given", ["", "two words", "tab\there", "\xff", "x" * 129])
def test_an_unfit_request_id_is_replaced(house, connect, given):
    answer = connect(house).ask(headers={"X-Request-Id": given})
    assert answer.status == 200
    assert answer.headers["x-request-id"].startswith("req-")


# ------------------------------------------------------------------------------------------------- streams


def test_a_stream_is_chunked_and_ends_with_done(house, connect):
    client = connect(house)
    answer = client.ask("/stream")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in answer.headers
    assert answer.body == b'data: {"n": 1}\n\ndata: {"n": 2}\n\ndata: [DONE]\n\n'
    assert client.ask().status == 200  # the connection goes on


def test_a_stream_to_http_1_0_is_unframed_and_ends_with_the_connection(house, connect):
    client = connect(house)
    client.send(b"GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    answer = client.answer()
    assert "transfer-encoding" not in answer.headers and "content-length" not in answer.headers
    assert answer.headers["connection"] == "close"
    assert answer.body == b'data: {"n": 1}\n\ndata: {"n": 2}\n\ndata: [DONE]\n\n'


def test_head_of_a_stream_has_no_body_and_closes_it(serve, connect):
    pieces = Pieces(before=["never shown"])
    client = connect(serve([Route("GET", "/", pieces), Route("GET", "/hello", lambda request: Reply(b"hi"))]))
    answer = client.ask("/", "HEAD")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert client.ask("/hello").body == b"hi"


def test_each_piece_leaves_at_once(serve, connect):
    pieces = Pieces(before=["early"], after=["late"])
    client = connect(serve([Route("GET", "/", pieces)]))
    client.send(request("/"))
    assert client.head()[1] == 200
    assert client.chunk() == b'data: "early"\n\n'
    assert not pieces.go.is_set()
    pieces.go.set()
    assert client.chunk() == b'data: "late"\n\n'


def test_a_stream_is_pinged_while_nothing_flows(serve, connect):
    pieces = Pieces(after=["late"])
    client = connect(serve([Route("GET", "/", pieces)], ping_interval=0.05))
    client.send(request("/"))
    assert client.head()[1] == 200
    assert [client.chunk() for _ in range(3)] == [b": ping\n\n"] * 3
    pieces.go.set()
    assert b"".join(iter(client.chunk, b"")).replace(b": ping\n\n", b"") == b'data: "late"\n\ndata: [DONE]\n\n'


def test_a_stream_that_is_not_of_events_is_never_pinged(serve, connect):
    pieces = Pieces(after=[b"late"], sse=False)
    idle = threading.Event()
    original = pieces._values

    def counted():
        times = 0
        for value in original():
            times += value is messages.IDLE
            if times > 20:
                idle.set()
            yield value

    pieces._values = counted
    client = connect(serve([Route("GET", "/", pieces)], ping_interval=0.05))
    client.send(request("/"))
    assert idle.wait(PATIENCE)  # it has been idle for at least 0.2 seconds
    pieces.go.set()
    assert client.answer().body == b"late"


def test_empty_pieces_do_not_end_a_chunked_stream(serve, connect):
    client = connect(serve([Route("GET", "/", lambda request: Stream(each for each in [b"a", b"", b"b"]))]))
    assert client.ask("/").body == b"ab"


def test_a_stream_of_nothing_is_a_whole_answer(serve, connect):
    client = connect(serve([Route("GET", "/", lambda request: Stream(each for each in []))]))
    assert (client.ask("/").body, client.ask("/").status) == (b"", 200)


@pytest.mark.parametrize("sse", [True, False])
def test_an_error_before_the_first_piece_gets_its_own_status(serve, connect, sse):
    pieces = Pieces(after=APIError(503, "Full.", "full", headers=[("Retry-After", "7")]), sse=sse)
    pieces.go.set()
    client = connect(serve([Route("GET", "/", pieces)]))
    for _ in range(2):  # on one connection
        answer = client.ask("/")
        assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "full", "7")


def test_an_error_after_the_first_piece_becomes_an_event(serve, connect):
    error = APIError(502, "It broke.", "broke")
    pieces = Pieces(before=["one"], after=error)
    pieces.go.set()
    client = connect(serve([Route("GET", "/", pieces)]))
    answer = client.ask("/")
    assert answer.status == 200
    first, last, nothing = answer.body.split(b"\n\n")
    assert first == b'data: "one"'
    assert json.loads(last[len(b"data: ") :].decode()) == error.envelope()
    assert nothing == b""  # and no [DONE] after it


@pytest.mark.parametrize("before", [[], ["one"]])
def test_a_defect_in_a_stream_tells_nothing(serve, connect, caplog, before):
    pieces = Pieces(before=before, after=RuntimeError("secret-internal-detail"))
    pieces.go.set()
    answer = connect(serve([Route("GET", "/", pieces)])).ask("/")
    assert answer.status == (200 if before else 500)
    assert b"internal_error" in answer.body and b"secret" not in answer.body
    assert "secret-internal-detail" in caplog.text


def test_a_failure_in_a_stream_without_error_events_cuts_the_connection(serve, connect):
    pieces = Pieces(before=[b"half"], after=APIError(502, "It broke."), sse=False)
    pieces.go.set()
    client = connect(serve([Route("GET", "/", pieces)]))
    client.send(request("/"))
    assert client.head()[1] == 200
    assert client.rest() == b"4\r\nhalf\r\n"  # without the last chunk, nobody takes it for a whole answer


def test_a_client_that_leaves_while_its_answer_is_made_is_noticed(serve, connect):
    gate = Gate()
    service = serve([Route("POST", "/", gate)])
    client = connect(service)
    client.send(request("/", "POST", body=b"x"))
    assert gate.arrived.wait(PATIENCE)
    client.close()
    assert gate.left.wait(PATIENCE)
    eventually(lambda: service.connections_open() == 0 and service.requests_active() == 0)


@pytest.mark.parametrize("before", [[], ["one"]])
def test_a_client_that_leaves_while_a_stream_is_idle_closes_it(serve, connect, before):
    pieces = Pieces(before=before)
    service = serve([Route("GET", "/", pieces)])
    client = connect(service)
    client.send(request("/"))
    if before:
        assert client.head()[1] == 200
    client.close()
    assert pieces.closed.wait(PATIENCE)
    eventually(lambda: service.connections_open() == 0)


def test_a_client_that_leaves_while_a_stream_flows_closes_it(serve, connect):
    closed = threading.Event()

    def endless(request):
        def values():
            try:
                while True:
                    yield "x" * 1000
            finally:
                closed.set()

        return event_stream(values())

    client = connect(serve([Route("GET", "/", endless)]))
    client.send(request("/"))
    assert client.head()[1] == 200
    client.close()
    assert closed.wait(PATIENCE)


def test_a_request_sent_ahead_is_not_a_hang_up(serve, connect):
    gate = Gate()
    client = connect(serve([Route("GET", "/", gate)]))
    client.send(request("/"))
    assert gate.arrived.wait(PATIENCE)
    client.send(request("/") * 2)
    gate.go.set()
    assert [client.answer().status for _ in range(3)] == [200] * 3
    assert not gate.left.is_set()


# --------------------------------------------------------------------------------------------------- drain


def refuses(port):
    try:
        socket.create_connection(("127.0.0.1", port), PATIENCE).close()
    except ConnectionError:
        return True
    return False


def test_draining_lets_the_running_request_finish_and_takes_no_new_connection(serve, connect, background):
    gate = Gate()
    service = serve([Route("GET", "/", gate)])
    client = connect(service)
    client.send(request("/"))
    assert gate.arrived.wait(PATIENCE)
    assert not service.draining
    drained = background(service.drain, PATIENCE)
    eventually(lambda: refuses(service.port))
    assert service.draining and not drained.done()
    gate.go.set()
    answer = client.answer()
    assert (answer.status, answer.json) == (200, {"done": True})
    assert answer.headers["connection"] == "close"
    assert client.rest() == b""
    assert drained.result(PATIENCE) == 0


def test_draining_lets_a_running_stream_finish(serve, connect, background):
    pieces = Pieces(before=["one"], after=["two"])
    service = serve([Route("GET", "/", pieces)])
    client = connect(service)
    client.send(request("/"))
    assert client.head()[1] == 200
    drained = background(service.drain, PATIENCE)
    eventually(lambda: refuses(service.port))
    pieces.go.set()
    assert b"".join(iter(client.chunk, b"")) == b'data: "one"\n\ndata: "two"\n\ndata: [DONE]\n\n'
    assert client.rest() == b""
    assert drained.result(PATIENCE) == 0


def test_draining_closes_idle_connections_at_once(serve, connect, background):
    gate = Gate()
    service = serve([Route("GET", "/", gate), Route("GET", "/hello", lambda request: Reply())])
    idle, busy = connect(service), connect(service)
    assert idle.ask().headers["connection"] == "keep-alive"
    busy.send(request("/"))
    assert gate.arrived.wait(PATIENCE)
    drained = background(service.drain, PATIENCE)
    assert idle.rest() == b""
    assert not drained.done()  # it didn't have to wait for the busy one
    gate.go.set()
    assert busy.answer().status == 200
    assert drained.result(PATIENCE) == 0


def test_a_request_that_does_not_finish_in_time_is_cut_off_and_counted(serve, connect):
    gate = Gate()
    service = serve([Route("GET", "/", gate)])
    clients = [connect(service), connect(service)]
    for client in clients:
        gate.arrived.clear()
        client.send(request("/"))
        assert gate.arrived.wait(PATIENCE)
    assert service.drain(0.1) == 2
    assert [client.rest() for client in clients] == [b"", b""]
    assert gate.left.wait(PATIENCE)


def test_draining_an_idle_service_does_not_wait(serve, connect, background):
    service = serve()
    connect(service).ask()
    assert background(service.drain, 3600).result(PATIENCE) == 0
    assert refuses(service.port)


def test_draining_twice_or_before_the_start_does_no_harm(serve):
    service = serve()
    assert [service.drain(0), service.drain(0)] == [0, 0]
    assert Service(ServerConfig(), []).drain(0) == 0


def test_a_connection_taken_before_the_drain_gets_its_answer(serve, connect, background, monkeypatch):
    """What waits in the backlog has been accepted as far as its client knows; closing the listener would reset it."""
    service = serve()
    server = service._server
    held, holding, process = threading.Event(), threading.Event(), server.process_request

    def hold(*arguments):
        holding.set()
        held.wait(PATIENCE)
        process(*arguments)

    monkeypatch.setattr(server, "process_request", hold)
    first, second = connect(service), connect(service)
    first.send(request())
    second.send(request())
    assert holding.wait(PATIENCE)
    drained = background(service.drain, PATIENCE)
    eventually(lambda: service.draining)
    held.set()
    assert [first.answer().status, second.answer().status] == [200, 200]
    assert drained.result(PATIENCE) == 0


def test_a_drain_waits_for_a_connection_whose_thread_has_yet_to_start(serve, connect, background, monkeypatch):
    done = []
    service = serve([Route("GET", "/", lambda request: done.append(drained.done()) or Reply())])
    server = service._server
    held, holding, finish = threading.Event(), threading.Event(), server.finish_request

    def hold(*arguments):
        holding.set()
        held.wait(PATIENCE)
        finish(*arguments)

    monkeypatch.setattr(server, "finish_request", hold)
    client = connect(service)
    client.send(request("/"))
    assert holding.wait(PATIENCE)
    drained = background(service.drain, PATIENCE)
    eventually(lambda: refuses(service.port))
    held.set()
    assert client.answer().status == 200
    assert done == [False]
    assert drained.result(PATIENCE) == 0


def test_a_request_that_has_just_arrived_is_still_answered_by_a_drain(serve, connect, background, monkeypatch):
    service = serve()
    held, holding, handle = threading.Event(), threading.Event(), connection.Connection.handle

    def hold(connection):
        holding.set()
        held.wait(PATIENCE)
        handle(connection)

    monkeypatch.setattr(connection.Connection, "handle", hold)
    client = connect(service)
    client.send(request())
    assert holding.wait(PATIENCE)
    drained = background(service.drain, PATIENCE)
    eventually(lambda: refuses(service.port))
    held.set()
    assert client.answer().status == 200
    assert drained.result(PATIENCE) == 0


# ----------------------------------------------------------------------------------------- metrics and logs


def test_metrics_are_written_in_prometheus_text_format():
    metrics = Metrics()
    asked = metrics.counter("asked_total", "Questions.", "who", "how")
    plain = metrics.counter("plain_total", "Without labels.")
    heat = metrics.gauge("heat", "Degrees.")
    metrics.gauge("silent", "Labelled, and never set.", "who")
    took = metrics.histogram("took_seconds", "Time.", "who", buckets=(0.5, 2))
    asked.inc("me", "softly")
    asked.inc("me", "softly", by=2)
    asked.inc("a", "b")
    heat.set(36.5)
    for value in (0.25, 0.5, 1, 8):
        took.observe(value, "me")
    assert metrics.render() == (
        "# HELP asked_total Questions.\n"
        "# TYPE asked_total counter\n"
        'asked_total{who="a",how="b"} 1\n'
        'asked_total{who="me",how="softly"} 3\n'
        "# HELP plain_total Without labels.\n"
        "# TYPE plain_total counter\n"
        "plain_total 0\n"
        "# HELP heat Degrees.\n"
        "# TYPE heat gauge\n"
        "heat 36.5\n"
        "# HELP silent Labelled, and never set.\n"
        "# TYPE silent gauge\n"
        "# HELP took_seconds Time.\n"
        "# TYPE took_seconds histogram\n"
        'took_seconds_bucket{who="me",le="0.5"} 2\n'
        'took_seconds_bucket{who="me",le="2"} 3\n'
        'took_seconds_bucket{who="me",le="+Inf"} 4\n'
        'took_seconds_sum{who="me"} 9.75\n'
        'took_seconds_count{who="me"} 4\n'
    )
    plain.inc()
    assert "\nplain_total 1\n" in metrics.render()


def test_label_values_are_escaped():
    metrics = Metrics()
    metrics.counter("x_total", "X.", "path").inc('C:\\models\\"a"\nb')
    assert 'x_total{path="C:\\\\models\\\\\\"a\\"\\nb"} 1\n' in metrics.render()


def test_hooks_set_gauges_before_each_rendering():
    metrics = Metrics()
    level = metrics.gauge("level", "Level.")
    levels = iter([1, 2])
    metrics.collect(lambda: level.set(next(levels)))
    assert "\nlevel 1\n" in metrics.render()
    assert "\nlevel 2\n" in metrics.render()


def test_counting_from_many_threads_loses_nothing(background):
    metrics = Metrics()
    counter = metrics.counter("n_total", "N.", "k")
    jobs = [background(lambda: [counter.inc("x") for _ in range(2000)]) for _ in range(4)]
    for job in jobs:
        job.result(PATIENCE)
    assert 'n_total{k="x"} 8000\n' in metrics.render()


def samples(service, name):
    """The samples of one family, as {line without its value: value}."""
    lines = [line for line in service.metrics.render().splitlines() if line.startswith(name)]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_requests_are_counted_by_method_route_and_status(serve, connect):
    service = serve(max_body=1000)
    client = connect(service)
    for path in ("/hello", "/hello", "/items/a", "/items/b", "/fail"):
        client.ask(path)
    client.ask("/echo", "POST", body=b"x")
    client.ask()  # once this is answered, those before it have been counted
    count = samples(service, "comeapi_http_requests_total")
    assert count['comeapi_http_requests_total{method="GET",route="/items/{name}",status="200"}'] == 2
    assert count['comeapi_http_requests_total{method="GET",route="/fail",status="500"}'] == 1
    assert count['comeapi_http_requests_total{method="POST",route="/echo",status="200"}'] == 1
    assert count['comeapi_http_requests_total{method="GET",route="/hello",status="200"}'] >= 2
    took = samples(service, "comeapi_http_request_duration_seconds_count")
    assert took['comeapi_http_request_duration_seconds_count{route="/items/{name}"}'] == 2
    assert samples(service, "comeapi_http_connections") == {"comeapi_http_connections": 1}


def test_the_metrics_prefix_is_the_services_name():
    assert "\nbalancer_http_requests_active 0\n" in Service(ServerConfig(), [], name="balancer").metrics.render()


def test_unknown_methods_and_paths_add_no_series(serve, connect):
    service = serve()
    client = connect(service)
    for i in range(5):
        client.ask("/nowhere/%d" % i)
        client.ask("/nowhere/%d" % i, "BREW%d" % i)
    client.ask()
    assert {name for name in samples(service, "comeapi_http_requests_total") if "other" in name} == {
        'comeapi_http_requests_total{method="GET",route="other",status="404"}',
        'comeapi_http_requests_total{method="other",route="other",status="404"}',
    }


def test_a_client_that_left_is_counted_as_499(serve, connect):
    pieces = Pieces(before=["one"])
    service = serve([Route("GET", "/", pieces)])
    client = connect(service)
    client.send(request("/"))
    assert client.head()[1] == 200
    client.close()
    wanted = 'comeapi_http_requests_total{method="GET",route="/",status="499"}'
    eventually(lambda: samples(service, "comeapi_http_requests_total") == {wanted: 1})


def test_a_client_that_left_before_its_answer_began_is_counted_as_499_too(serve, connect):
    gate = Gate()
    service = serve([Route("GET", "/", gate)])
    client = connect(service)
    client.send(request("/"))
    assert gate.arrived.wait(PATIENCE)
    client.close()
    eventually(lambda: service.connections_open() == 0)
    wanted = 'comeapi_http_requests_total{method="GET",route="/",status="499"}'
    assert samples(service, "comeapi_http_requests_total") == {wanted: 1}


def test_the_access_log_has_one_line_a_request(serve, connect, caplog):
    caplog.set_level(logging.INFO, "comeapi.access")
    client = connect(serve(access_log=True))
    client.ask("/items/x?y=z", headers={"X-Request-Id": "id-1"})
    client.ask("/nowhere", headers={"X-Request-Id": "id-2"})
    client.ask()  # once this is answered, those before it have been logged
    lines = [record.getMessage() for record in caplog.records if record.name == "comeapi.access"]
    assert len([line for line in lines if "id-1" in line]) == 1
    assert '127.0.0.1 id-1 "GET /items/x?y=z" 200 ' in lines[0]
    assert 'id-2 "GET /nowhere" 404 ' in lines[1]


def test_the_access_log_is_off_by_default(serve, connect, caplog):
    caplog.set_level(logging.INFO, "comeapi.access")
    client = connect(serve())
    assert [client.ask("/hello?quietly").status, client.ask("/hello?quietly").status] == [200, 200]
    assert "quietly" not in caplog.text
