"""Answers in pieces: framing, pings, errors, and clients that leave."""

import json
import threading

import pytest
import serving
from serving import PATIENCE, Gate, Pieces, eventually, request
from streams import event_stream

from core.errors import APIError
from core.http.messages import Reply, Stream
from core.http.routing import Route

house, serve, connect = serving.house, serving.serve, serving.connect  # fixtures


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
