"""The HTTP client below the balancer: answers of every framing, broken ones, and connections that are kept."""

import contextlib
import socket
import threading
import time

import pytest
from conftest import PATIENCE, free_ports, no_such_name

from core.http.client import Client
from core.http.failures import Broken, Slow, TooLarge, Unreachable
from core.http.outgoing import plain_wait


class Scripted:
    """A server that answers each request on a connection with the next of these bytes, cut into pieces of `cut`."""

    def __init__(self, *answers, cut=0, then_close=True):
        self.answers, self.cut, self.then_close = list(answers), cut, then_close
        self.requests, self.connections = [], 0
        self.break_after = 0  # how many requests, after which the connection is closed
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self.sock.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while self.answers:
            try:
                connection, _ = self.sock.accept()
            except OSError:
                return
            self.connections += 1
            with connection, contextlib.suppress(OSError):  # the client may leave at any moment
                while self.answers and self._answer(connection):
                    pass
                if not self.then_close:
                    connection.recv(1)

    def _answer(self, connection):
        head = b""
        while b"\r\n\r\n" not in head:
            data = connection.recv(65536)
            if not data:
                return False
            head += data
        self.requests.append(head)
        answer = self.answers.pop(0)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(answer), self.cut or len(answer) or 1):
            connection.sendall(answer[start : start + (self.cut or len(answer))])
        return b"close" not in answer and len(self.requests) != self.break_after

    def close(self):
        self.sock.close()


@pytest.fixture
def server():
    servers = []

    def make(*answers, **how):
        servers.append(Scripted(*answers, **how))
        return servers[-1]

    yield make
    for each in servers:
        each.close()


@pytest.fixture
def client():
    client = Client()
    yield client
    client.close()


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=1\r\nhel\r\n2\r\nlo\r\n0\r\nTrailer: 1\r\n\r\n"


@pytest.mark.parametrize("cut", [0, 1, 7])
@pytest.mark.parametrize(
    "answer, body",
    [
        (OK, b"hello"),
        (CHUNKED, b"hello"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nto the end", b"to the end"),
        (b"HTTP/1.0 200 OK\r\n\r\nold", b"old"),
        (b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, b"hello"),
        (b"HTTP/1.1 200\r\nContent-Length: 2, 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 200\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", b"ok"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 8 + OK, b"hello"),
        (CHUNKED.replace(b"\r\n\r\n", b"\r\nContent-Length: 3\r\n\r\n", 1), b"hello"),  # RFC 9112, 6.3
        (b"HTTP/1.1 200 OK\r\nX: a\tb \xe9\r\nContent-Length: 2\r\n\r\nok", b"ok"),
    ],
)
def test_an_answer_of_every_framing_is_read_whole(server, client, answer, body, cut):
    answer_read = client.open(server(answer, cut=cut).url + "/x")
    assert answer_read.read_and_close() == body


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nTransfer-",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nFolded: a\r\n b\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 999 Odd\r\n\r\n",
        b"220 smtp.example.com ESMTP\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200000,
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000 + b"\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 101 + b"Content-Length: 2\r\n\r\nok",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + OK,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 9 + OK,
        b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\nok",  # a superscript two, which str.isdigit() takes
        b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2,3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2, 02\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding:\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\nSet-Cookie: b\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: \x1b[31m\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX: \x7f\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX Y: 1\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\n: 1\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nX\xe9: 1\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"HTTP/1.1 200 O\nK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 \xb200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 16 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+1\r\na\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\n1\r\na\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;x\n\r\na\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 5000 + b"\r\na\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"T: 1\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nT: " + b"1" * 5000 + b"\r\n\r\n",
    ],
)
def test_a_broken_answer_is_told_from_a_whole_one(server, client, answer):
    with pytest.raises(Broken):
        client.open(server(answer).url + "/x", timeout=PATIENCE).read_and_close()


def test_a_server_that_speaks_something_else_is_found_out_at_once(server, client):
    with pytest.raises(Broken):
        client.open(server(b"SSH-2.0-OpenSSH_9.2\r\n", then_close=False).url + "/x", timeout=PATIENCE)


def test_silence_is_slow_and_nobody_there_is_unreachable(server, client, monkeypatch):
    with pytest.raises(Slow):
        client.open(server(b"HTTP/1.1 200", then_close=False).url + "/x", timeout=0.1)
    with pytest.raises(Unreachable):
        client.open("http://127.0.0.1:%d/x" % free_ports(1))
    monkeypatch.setattr(socket, "getaddrinfo", no_such_name)  # some resolvers take long to say so, or lie
    with pytest.raises(Unreachable):
        client.open("http://no.such.name.invalid:1/x")


def test_a_connection_is_kept_and_used_again_and_not_after_an_unfinished_answer(server, client):
    keeping = server(OK, CHUNKED, OK, OK)
    for _ in range(2):
        client.open(keeping.url + "/x").read_and_close()
    assert keeping.connections == 1
    client.open(keeping.url + "/x").close()  # the rest is not read
    assert client.open(keeping.url + "/x").read_and_close() == b"hello"
    assert keeping.connections == 2


@pytest.mark.parametrize(
    "told, connections", [(b"", 2), (b"timeout=9", 1), (b"max=5, timeout=9", 1), (b"timeout=0", 2)]
)
def test_an_idle_connection_is_kept_for_as_long_as_its_server_says(server, client, monkeypatch, told, connections):
    monkeypatch.setattr("core.http.outgoing.IDLE_SECONDS", 0.0)  # where it does not say
    answer = OK.replace(b"\r\n\r\n", b"\r\nKeep-Alive: " + told + b"\r\n\r\n")
    telling = server(answer, answer)
    for _ in range(2):
        client.open(telling.url + "/x").read_and_close()
    assert telling.connections == connections


def test_a_request_goes_out_in_one_piece_with_what_it_was_given(server, client):
    receiving = server(OK)
    client.open(receiving.url + "/a?b=c", "PUT", {"x-mine": "ü"}, b"").read_and_close()
    host = receiving.url[len("http://") :].encode()
    assert receiving.requests == [
        b"PUT /a?b=c HTTP/1.1\r\nHost: " + host + b"\r\nx-mine: \xfc\r\nContent-Length: 0\r\n\r\n"
    ]


def test_an_answer_to_head_has_no_body(server, client):
    answer = client.open(server(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").url + "/x", "HEAD")
    assert answer.read_and_close() == b"" and answer.header("content-length") == "5"


# ------------------------------------------------------------------------------------- servers that mean no good


class Endless:
    """A server that sends `first`, and then `more` for ever, `pause` seconds apart; counts what it could send."""

    def __init__(self, first, more, pause=0.0):
        self.sent, self.first, self.more, self.pause = 0, first, more, pause
        self.gone = threading.Event()
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self.sock.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            connection, _ = self.sock.accept()
            with connection:
                connection.settimeout(PATIENCE)
                connection.recv(65536)
                connection.sendall(self.first)
                while not self.gone.wait(self.pause):
                    connection.sendall(self.more)
                    self.sent += len(self.more)
        self.gone.set()

    def close(self):
        self.gone.set()
        self.sock.close()


@pytest.fixture
def endless():
    servers = []

    def make(*arguments, **how):
        servers.append(Endless(*arguments, **how))
        return servers[-1]

    yield make
    for each in servers:
        each.close()


CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "first, more",
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"X: 1\r\n"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x" * 1000),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536),
        (b"HTTP/1.1 503 No\r\n\r\n", b"x" * 65536),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", b"x" * 65536),
        (CHUNKS, b"1\r\nx\r\n" * 5000),
        (CHUNKS, b"x" * 1000),
        (CHUNKS + b"5;", b"x" * 1000),
        (CHUNKS + b"0\r\n", b"Trailer: 1\r\n"),
        (CHUNKS + b"0\r\nTrailer: ", b"x" * 1000),
    ],
)
def test_an_answer_without_an_end_is_given_up_after_what_its_reader_wants(endless, client, first, more):
    server = endless(first, more)
    with pytest.raises(Broken):
        client.open(server.url + "/health", timeout=PATIENCE, within=PATIENCE).read_and_close(most=1 << 18)
    assert server.gone.wait(PATIENCE) and server.sent < 16 << 20  # what sockets hold, beside what it wants


@pytest.mark.parametrize(
    "first, more",
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", b"x"),
        (CHUNKS, b"1\r\nx\r\n"),
        (CHUNKS + b"0\r\nTrailer: ", b"x"),
    ],
)
def test_an_answer_that_drips_ends_in_time_though_there_is_always_a_byte(endless, client, first, more):
    begun = time.monotonic()
    with pytest.raises(Slow):
        client.open(endless(first, more, pause=0.05).url + "/health", timeout=PATIENCE, within=0.15).read_and_close()
    assert time.monotonic() - begun < PATIENCE / 2


def test_a_head_that_drips_ends_in_time_where_its_body_may_take_any(endless, client, monkeypatch):
    monkeypatch.setattr("core.http.answers._HEAD_SECONDS", 0.2)
    with pytest.raises(Slow):
        client.open(endless(b"HTTP/1.1 200 OK\r\nX: ", b"x", pause=0.05).url + "/x", timeout=PATIENCE)


def test_a_body_that_is_larger_than_wanted_has_a_name_of_its_own(server, client):
    with pytest.raises(TooLarge):
        client.open(server(OK).url + "/x").read_and_close(most=4)
    assert client.open(server(OK).url + "/x").read_and_close(most=5) == b"hello"


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://127.0.0.1:x", "http://" + "x" * 300, "http://日本:1"])
def test_an_address_that_can_not_be_is_unreachable(client, url, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", no_such_name)
    with pytest.raises(Unreachable):
        client.open(url + "/x")


def test_a_header_that_can_not_be_written_reaches_nobody(server, client):
    with pytest.raises(Unreachable):
        client.open(server(OK).url + "/x", headers={"Authorization": "Bearer 鍵"})


# ------------------------------------------------------------------------------------------ sending large bodies

BODY = b"x" * (32 << 20)  # far more than sockets hold


class Refusing:
    """A server that reads a request's head, or nothing, says `answer`, and then closes or waits."""

    def __init__(self, answer, then_close=True):
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self.sock.getsockname()[1]
        self.done = threading.Event()
        threading.Thread(target=self._serve, args=(answer, then_close), daemon=True).start()

    def _serve(self, answer, then_close):
        with contextlib.suppress(OSError):
            connection, _ = self.sock.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)
                if not then_close:
                    self.done.wait(PATIENCE)

    def close(self):
        self.done.set()
        self.sock.close()


TOO_LARGE = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nmuch"


@pytest.mark.parametrize("then_close", [True, False])
@pytest.mark.parametrize("before", [b"", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_an_early_refusal_of_a_large_body_is_the_answer(client, then_close, before):
    server = Refusing(before + TOO_LARGE, then_close)
    try:
        answer = client.open(server.url + "/x", "POST", {}, BODY, timeout=PATIENCE)
        assert answer.status == 413 and answer.read_and_close() == b"much"
    finally:
        server.close()


def test_a_server_that_takes_nothing_of_a_large_body_is_slow(client):
    server = Refusing(b"", then_close=False)
    try:
        with pytest.raises(Slow):
            client.open(server.url + "/x", "POST", {}, BODY, timeout=0.3)
    finally:
        server.close()


def test_sending_watches_what_waiting_watches(client):
    class Left(Exception):
        pass

    def wait(sock, timeout, sending=False):
        if sending:
            raise Left()
        return plain_wait(sock, timeout)

    server = Refusing(b"", then_close=False)
    try:
        with pytest.raises(Left):
            client.open(server.url + "/x", "POST", {}, BODY, timeout=PATIENCE, wait=wait)
    finally:
        server.close()


# ------------------------------------------------------------------------------------------- stale connections


def test_a_request_that_is_given_up_on_a_kept_connection_is_not_sent_again(server, client):
    """Whoever waits may find out that the server is down: that says nothing about the connection."""

    waited = []

    def give_up(sock, timeout, sending=False):
        waited.append(sock)
        raise Broken("it does not answer its probes any more")

    keeping = server(OK, OK, then_close=False)
    client.open(keeping.url + "/x").read_and_close()
    with pytest.raises(Broken, match="probes"):
        client.open(keeping.url + "/x", "POST", {}, b"once", wait=give_up)
    assert len(waited) == 1  # for the answer of one connection


@pytest.mark.parametrize("answer", [b"HTTP/1.1 2", b"HTTP/1.1 100 Continue\r\n\r\n", b"nonsense"])
def test_a_kept_connection_that_breaks_after_a_byte_is_not_stale(server, client, answer):
    keeping = server(OK, answer, OK)
    keeping.break_after = 2
    client.open(keeping.url + "/x").read_and_close()
    with pytest.raises(Broken):
        client.open(keeping.url + "/x", "POST", {}, b"once")
    assert len(keeping.requests) == 2


def test_a_kept_connection_that_closes_late_is_not_stale(server, client, monkeypatch):
    monkeypatch.setattr("core.http.outgoing._STALE_SECONDS", 0.0)
    keeping = server(OK, b"", OK)
    keeping.break_after = 2
    client.open(keeping.url + "/x").read_and_close()
    with pytest.raises(Broken):
        client.open(keeping.url + "/x", "POST", {}, b"once")
    assert len(keeping.requests) == 2


def test_a_kept_connection_that_closes_at_once_is_stale(server, client):
    keeping = server(OK, b"", OK)
    keeping.break_after = 2
    client.open(keeping.url + "/x").read_and_close()
    assert client.open(keeping.url + "/x", "POST", {}, b"again").read_and_close() == b"hello"
    assert keeping.connections == 2
