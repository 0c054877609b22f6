"""A request's head and body: what is read, and what is refused."""

import json
import socket

import pytest
import serving
from serving import EXPECTING, PATIENCE, Gate, chunked, eventually, request

from core.http.messages import Reply, json_reply
from core.http.routing import Route

house, serve, connect = serving.house, serving.serve, serving.connect  # fixtures


# --------------------------------------------------------------------------------------------------------------- bodies

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


# --------------------------------------------------------------------------------------------------------- bad requests

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
    types = {501: "not_supported_error", 505: "server_error"}
    assert answer.error["type"] == types.get(status, "invalid_request_error")
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


# ----------------------------------------------------------------------------------------------------------------- JSON

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
