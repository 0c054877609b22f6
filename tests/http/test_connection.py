"""One connection, spoken to over a real socket: its bytes, and how a client closes it or is too slow."""

import select
import socket
import threading
import time

import pytest
import serving
from serving import PATIENCE, Gate, Pieces, chunked, eventually, request
from streams import event_stream

from core.http import connection, sockets
from core.http.listening import BACKLOG
from core.http.messages import Reply, Stream, json_reply
from core.http.routing import Route

house, serve, connect = serving.house, serving.serve, serving.connect  # fixtures


# ------------------------------------------------------------------------------------------------ connections and bytes

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


# ------------------------------------------------------------------------------------------ clients that close half-way

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
    assert BACKLOG >= 512
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


# --------------------------------------------------------------------------------------------------------- slow clients

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
    headers = client.ask().headers
    assert headers["connection"] == "keep-alive" and headers["keep-alive"] == "timeout=1"
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
