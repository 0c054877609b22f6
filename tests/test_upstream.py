"""The HTTP client below the balancer: answers of every framing, broken ones, and connections that are kept."""

import contextlib
import socket
import threading

import pytest
from conftest import PATIENCE, free_ports, no_such_name

from core.upstream import Broken, Client, Slow, Unreachable, _Dechunker


class Scripted:
    """A server that answers each request on a connection with the next of these bytes, cut into pieces of `cut`."""

    def __init__(self, *answers, cut=0, then_close=True):
        self.answers, self.cut, self.then_close = list(answers), cut, then_close
        self.requests, self.connections = [], 0
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
            with connection, contextlib.suppress(ConnectionError):  # the client may leave at any moment
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
        return b"close" not in answer

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


def test_chunks_are_decoded_however_they_are_cut():
    coded, body = b"", b""
    for size in (1, 2, 3, 200, 70000):
        coded += b"%x\r\n%b\r\n" % (size, b"\r" * size)
        body += b"\r" * size
    coded += b"0\r\n\r\n"
    for cut in (1, 2, 3, 5, 1000, len(coded)):
        chunks, buffer, decoded = _Dechunker(), bytearray(), b""
        for start in range(0, len(coded), cut):
            buffer += coded[start : start + cut]
            decoded += chunks.decode(buffer)
        assert decoded == body and chunks.done and not buffer
