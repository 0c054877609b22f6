"""All connections of a service: too many of them, and a drain."""

import errno
import socket
import threading
import time

import pytest
import serving
from conftest import wait_until
from serving import PATIENCE, Gate, Pieces, eventually, request, routes

from core.http import connection, server
from core.http.messages import Reply
from core.http.routing import Route
from core.http.server import ServerConfig, Service

serve, connect, background = serving.serve, serving.connect, serving.background  # fixtures


# ------------------------------------------------------------------------------------------------- too many connections

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


# ---------------------------------------------------------------------------------------------------------------- drain

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


@pytest.mark.parametrize("when", ["before the drain", "in it"])
def test_a_client_that_has_connected_may_send_its_first_request_a_moment_later(
    serve, connect, background, monkeypatch, when
):
    monkeypatch.setattr(connection, "_NEXT_REQUEST", 0.0)
    service = serve()
    end_idle, accept_the_rest = service.connections.end_idle, service._server.accept_the_rest
    ended, clients = threading.Event(), []

    def come_and_be_accepted():
        if not clients:
            clients.append(connect(service))
        accept_the_rest()

    def end(**options):
        end_idle(**options)
        ended.set()

    monkeypatch.setattr(service._server, "accept_the_rest", come_and_be_accepted)
    monkeypatch.setattr(service.connections, "end_idle", end)
    if when == "before the drain":
        clients.append(connect(service))
        eventually(lambda: service.connections_open() == 1)
    drained = background(service.drain, PATIENCE)
    assert ended.wait(PATIENCE)
    clients[0].send(request())
    assert clients[0].answer().status == 200
    assert drained.result(PATIENCE) == 0


def test_a_client_that_never_sends_its_first_request_does_not_hold_up_a_drain(serve, connect, background):
    service = serve()
    client = connect(service)
    eventually(lambda: service.connections_open() == 1)
    drained = background(service.drain, 3600)
    assert client.rest() == b"" and drained.result(PATIENCE) == 0


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
