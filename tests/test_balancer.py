"""The balancer: its choice, its table of retries row by row, its health thread, and what it relays.

The backends here are stand-ins: real HTTP servers in this process that do as the test says.
"""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import (
    LASTING_OPTIONS,
    PATIENCE,
    RAMBLE,
    ROOT,
    call,
    free_ports,
    prompt_once,
    running,
    seconds_until,
    wait_until,
)
from streams import event_stream

from balancer import Balancer, Config
from core.balancing.request import read_body
from core.balancing.specs import backend_url
from core.errors import APIError
from core.http import access, messages, server
from core.http.client import Client
from core.http.failures import Broken
from core.http.messages import Reply, Stream, json_reply
from core.http.routing import Route
from core.http.server import Service
from core.http.sockets import readable

# ------------------------------------------------------------------------------------------------ stand-ins


class StandIn:
    """A backend that answers as `behave(request)` says, and counts."""

    lists = True  # it has /models
    names = ("m.gguf",)  # what /models lists; the first is loaded

    def __init__(self, behave=None, port=0, health=None):
        self.requests = []
        self.behave = behave or (lambda request: json_reply({"from": self.service.url}))
        self.health = health or (lambda request: json_reply({"status": "ok", "slots": 4, "model": "m.gguf"}))
        routes = [Route("GET", "/health", lambda request: self.health(request))]
        if self.lists:
            models = {"models": [{"name": name, "loaded": name == "m.gguf"} for name in self.names]}
            routes.append(Route("GET", "/models", lambda request: json_reply(models)))
        self.service = Service(server.ServerConfig(port=port), routes, fallback=self._answer).start()
        self.url = self.service.url

    def _answer(self, request):
        self.requests.append(request)
        return self.behave(request)

    def close(self):
        self.service.drain(0)


class Pair(StandIn):
    """A backend that has two models: a name that none of them has is unknown."""

    names = ("m.gguf", "n.gguf")


class RawServer:
    """A server that does with each connection what no well-behaved one does; /health is fine."""

    def __init__(self, misbehave):
        self.misbehave = misbehave
        self.sock = socket.create_server(("127.0.0.1", 0), backlog=50)
        self.url = "http://127.0.0.1:%d" % self.sock.getsockname()[1]
        self.requests = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection, _ = self.sock.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with connection, contextlib.suppress(ConnectionError):  # who called may leave at any moment
            head = b""
            while b"\r\n\r\n" not in head:
                data = connection.recv(65536)
                if not data:
                    return
                head += data
            if head.startswith(b"GET /health"):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
            elif head.startswith((b"GET /props", b"GET /models", b"GET /v1/models")):
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            else:
                self.requests += 1
                self.misbehave(connection)

    def close(self):
        self.sock.close()


@pytest.fixture
def made():
    """Make stand-ins and balancers that end with the test: made(StandIn, …)."""
    things = []

    def make(kind, *arguments, **named):
        things.append(kind(*arguments, **named))
        return things[-1]

    yield make
    for thing in reversed(things):
        thing.stop(0) if isinstance(thing, Balancer) else thing.close()


@pytest.fixture
def front(made):
    """Start a balancer in front of stand-ins, and wait until it has found out which are up."""

    def make(*backends, **settings):
        urls = tuple(backend if isinstance(backend, str) else backend.url for backend in backends)
        settings = dict({"health_interval": 30.0, "recovery_timeout": 0.0}, **settings)
        balancer = made(Balancer, Config(port=0, backend=urls, **settings)).start()
        wait_until(lambda: all(each["last_check"] for each in balancer.status()["backends"]))
        return balancer

    return make


def dead_url():
    return "http://127.0.0.1:%d" % free_ports(1)


def break_off(connection):
    """Reset the connection without an answer."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


# ------------------------------------------------------------------------------------- the table of retries


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux keeps a process on one core")
@pytest.mark.parametrize("choice", ["auto", "on", "off"])
def test_a_balancer_stays_on_one_core_unless_it_is_told_otherwise(start, choice):
    balancer = start("balancer.py", "--child", "--port", 0, "--one-core", choice)
    balancer.wait_for_event("listening")
    cores = set()
    for thread in os.listdir("/proc/%d/task" % balancer.pid):
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            cores.add(len(os.sched_getaffinity(int(thread))))
    assert cores == {len(os.sched_getaffinity(0)) if choice == "off" else 1}


def test_row_1_an_unreachable_backend_is_passed_over(made, front):
    dead, alive = dead_url(), made(StandIn)
    balancer = front(dead, alive)
    answers = [call(balancer.url + "/generate", {"n": n}) for n in range(4)]
    assert [answer.json["from"] for answer in answers] == [alive.url] * 4


def test_row_1_a_backend_that_dies_between_two_requests_costs_nobody_an_answer(made, front):
    first, second = made(StandIn), made(StandIn)
    balancer = front(first, second)
    first.close()
    assert {call(balancer.url + "/generate", {}).json["from"] for _ in range(4)} == {second.url}
    state = balancer.status()["backends"][0]
    assert not state["healthy"] and state["error_count"] >= 1 and "refused" in state["why"]


def test_row_2_a_stale_connection_is_replaced_without_asking_another_backend(made, front):
    port = free_ports(1)
    first, second = made(StandIn, port=port), made(StandIn)
    balancer = front(first, second)
    assert {call(balancer.url + "/x", {}).json["from"] for _ in range(2)} == {first.url, second.url}
    first.close()  # the balancer still holds a connection to it
    again = made(StandIn, port=port)
    assert [call(balancer.url + "/x", {}).json["from"] for _ in range(2)] == [again.url, second.url]
    assert balancer.status()["healthy_backends"] == 2


@pytest.mark.parametrize("status", [502, 503])
def test_row_3_a_backend_that_is_full_or_broken_passes_the_request_on(made, front, status):
    full = made(StandIn, lambda request: json_reply({"error": "full"}, status))
    free = made(StandIn)
    balancer = front(full, free)
    assert {call(balancer.url + "/generate", {}).json["from"] for _ in range(4)} == {free.url}
    assert full.requests
    assert balancer.status()["healthy_backends"] == 2  # full is not dead


def test_row_3_with_all_of_them_full_the_client_gets_what_the_last_one_said(made, front):
    error = APIError(503, "full", "queue_full", headers=[("Retry-After", "7")])
    backends = [made(StandIn, lambda request: messages.error_reply(error)) for _ in range(2)]
    answer = call(front(*backends).url + "/generate", {})
    assert (answer.status, answer.headers["Retry-After"]) == (503, "7")
    assert answer.json["error"]["code"] == "queue_full"
    assert [len(backend.requests) for backend in backends] == [1, 1]


@pytest.mark.parametrize("status", [400, 401, 404, 413, 429, 500])
def test_a_clients_own_error_is_not_retried(made, front, status):
    first = made(StandIn, lambda request: json_reply({"error": {}}, status))
    second = made(StandIn, lambda request: json_reply({"error": {}}, status))
    assert call(front(first, second).url + "/generate", {}).status == status
    assert len(first.requests) + len(second.requests) == 1


@pytest.mark.parametrize(
    "misbehave",
    [
        break_off,
        lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf an answer"),
        lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-"),
        lambda connection: connection.sendall(b"SSH-2.0-OpenSSH\r\n"),
        lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ],
)
def test_row_4_an_answer_that_breaks_off_before_a_byte_reached_the_client_is_asked_for_again(made, front, misbehave):
    bad, good = made(RawServer, misbehave), made(StandIn)
    balancer = front(bad, good)
    for _ in range(3):
        assert call(balancer.url + "/generate", {}).json["from"] == good.url
    assert bad.requests >= 1


def test_row_4_a_request_that_breaks_every_backend_is_not_passed_on_for_ever(made, front):
    backends = [made(RawServer, break_off) for _ in range(6)]
    answer = call(front(*backends, retries=2).url + "/generate", {})
    assert answer.status == 502 and answer.json["error"]["code"] == "backend_broke"
    assert sum(backend.requests for backend in backends) == 3


def test_row_5_a_backend_that_is_too_slow_gives_504_and_nobody_else_is_asked(made, front):
    released = threading.Event()
    slow = made(StandIn, lambda request: released.wait(PATIENCE) and Reply())
    other = made(StandIn, lambda request: released.wait(PATIENCE) and Reply())
    answer = call(front(slow, other, timeout=0.3).url + "/generate", {})
    released.set()
    assert answer.status == 504 and answer.json["error"]["type"] == "timeout_error"
    assert len(slow.requests) + len(other.requests) == 1


def test_row_4_a_reset_while_the_body_is_awaited_is_a_broken_answer():
    """The reset may be noticed while looking into the buffer, waiting, or reading; each is the same to the client."""

    def reset_after_the_head(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        asked.wait(PATIENCE)
        break_off(connection)

    asked, server, client = threading.Event(), RawServer(lambda connection: reset_after_the_head(connection)), Client()
    try:
        answer = client.open(server.url + "/x")
        asked.set()
        assert readable([answer._connection.sock], PATIENCE)  # the reset is here, before anything looks for it
        with pytest.raises(Broken):
            answer.read_and_close()
    finally:
        server.close()
        client.close()


def test_row_6_a_stream_that_breaks_off_later_ends_with_an_error_event(made, front):
    relayed = threading.Event()

    def broken_stream(connection):
        body = b'data: {"n": 1}\n\n'
        head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
        kind = b"text/event-stream"
        connection.sendall(head % kind + b"%x\r\n%b\r\n" % (len(body), body))
        relayed.wait(PATIENCE)
        break_off(connection)

    bad, good = made(RawServer, broken_stream), made(StandIn)
    client = http.client.HTTPConnection("127.0.0.1", front(bad, good).service.port, timeout=PATIENCE)
    with contextlib.closing(client):
        client.request("POST", "/generate", b"{}")
        answer = client.getresponse()
        first = answer.readline()
        relayed.set()
        body = first + answer.read()
    pieces = [json.loads(part[6:]) for part in body.decode().split("\n\n") if part]
    assert pieces[0] == {"n": 1} and pieces[1]["error"]["code"] == "backend_broke"
    assert not good.requests


@pytest.mark.parametrize("begun", [b'data: {"n"', b"data: 1\n", b": pi", b"event: x\r\n"])
def test_row_6_the_error_event_stands_apart_from_one_that_was_cut_in_the_middle(made, front, begun):
    def cut(connection):
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + b"%x\r\n%b\r\n" % (len(begun), begun))

    answer = call(front(made(RawServer, cut)).url + "/generate", {})
    assert answer.body.startswith(begun)
    event = answer.body[len(begun) :].decode().split("\n\n")
    assert event[0] == event[2] == "" and json.loads(event[1][len("data: ") :])["error"]["code"] == "backend_broke"


def test_row_7_a_request_waits_for_a_backend_that_was_there_before(made, front):
    port = free_ports(1)
    only = made(StandIn, port=port)
    balancer = front(only, recovery_timeout=PATIENCE)
    call(balancer.url + "/x", {})
    only.close()
    answers = []
    client = threading.Thread(target=lambda: answers.append(call(balancer.url + "/generate", {})))
    client.start()
    wait_until(lambda: balancer.status()["healthy_backends"] == 0)
    made(StandIn, port=port)
    client.join(PATIENCE)
    assert answers[0].status == 200


def test_row_7_without_hope_the_client_is_told_at_once_what_is_wrong(front):
    dead = dead_url()
    answer = call(front(dead, recovery_timeout=PATIENCE).url + "/generate", {})
    assert answer.status == 503 and answer.headers["Retry-After"]
    assert dead in answer.json["error"]["message"] and "refused" in answer.json["error"]["message"]


def test_rows_3_and_4_happen_a_stated_number_of_times(made, front):
    full = [made(StandIn, lambda request: json_reply({}, 503)) for _ in range(5)]
    assert call(front(*full, retries=2).url + "/generate", {}).status == 503
    assert sum(len(each.requests) for each in full) == 3


def test_row_3_retries_have_a_budget_so_that_they_do_not_double_an_overload(made, front):
    full = [made(StandIn, lambda request: json_reply({}, 503)) for _ in range(2)]
    balancer = front(*full, retry_budget=0.1)
    assert {call(balancer.url + "/generate", {}).status for _ in range(60)} == {503}
    assert 60 < sum(len(each.requests) for each in full) <= 60 + 10 + 60 * 0.1


def test_row_4_a_backend_that_falls_silent_is_found_out_and_the_request_goes_elsewhere(made, front):
    silent, released = threading.Event(), threading.Event()

    def stuck(request):
        silent.set()
        released.wait(PATIENCE)
        return json_reply({})

    def health(request):
        if silent.is_set():
            released.wait(PATIENCE)
        return json_reply({"slots": 4})

    hanging, good = made(StandIn, stuck, health=health), made(StandIn)
    balancer = front(hanging, good, health_interval=0.2, health_timeout=0.5)
    assert call(balancer.url + "/generate", {}).json["from"] == good.url
    assert silent.is_set() and balancer.status()["backends"][0]["state"] == "down"
    released.set()


def test_row_4_a_backend_that_says_it_is_wedged_loses_those_that_wait_there_and_nobody_calls_that_a_death(made, front):
    wedged, released = threading.Event(), threading.Event()

    def stuck(request):
        wedged.set()
        released.wait(PATIENCE)
        return json_reply({})

    def health(request):
        state = {"slots": 4, "pid": 1}
        if wedged.is_set():
            return json_reply(dict(state, error={"message": "stuck", "code": "wedged"}), 503)
        return json_reply(dict(state, status="ok"))

    stopped, good = made(StandIn, stuck, health=health), made(StandIn)
    balancer = front(stopped, good, health_interval=0.2)
    assert call(balancer.url + "/generate", {}).json["from"] == good.url
    assert len(stopped.requests) == 1
    state = balancer.status()["backends"][0]
    assert (state["state"], state["why"]) == ("down", "stuck")
    assert "comeapi_deaths_total{" not in call(balancer.url + "/metrics").body.decode()
    released.set()


def stream_of(*pieces, pause=0.05, kind=b"text/event-stream"):
    """Return what a RawServer does: it sends these pieces again and again."""

    def send(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % kind)
        try:
            for _ in range(100):
                for piece in pieces:
                    connection.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
                    time.sleep(pause)
        except OSError:
            pass  # the balancer has had enough

    return send


@pytest.mark.parametrize(
    "pieces", [(b": ping\n\n",), (b": pi", b"ng\n", b"\n"), (b'event: ping\ndata: {"type": "ping"}\n\n',)]
)
def test_row_5_a_stream_that_only_says_that_it_is_there_ends_as_too_slow(made, front, pieces):
    answer = call(front(made(RawServer, stream_of(*pieces)), timeout=0.6).url + "/generate", {})
    assert answer.body.startswith(b"".join(pieces))  # they are passed on
    error = json.loads(answer.body.decode().split("\n\n")[-2][len("data: ") :])["error"]
    assert (error["code"], error["type"]) == ("backend_slow", "timeout_error")


@pytest.mark.parametrize(
    "send",
    [
        stream_of(b": ping\n\n", b": ping\n\n", b"data: {}\n\n", pause=0.2),
        stream_of(b"\n", pause=0.2, kind=b"application/x-ndjson"),
    ],
)
def test_row_5_a_stream_with_data_now_and_then_goes_on(made, front, send):
    balancer = front(made(RawServer, send), timeout=1.2)
    with socket.create_connection(("127.0.0.1", balancer.service.port)) as sock:
        sock.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
        sock.settimeout(PATIENCE)
        ends, received = time.monotonic() + 1.6, b""
        while time.monotonic() < ends:
            received += sock.recv(65536)
    assert b"backend_slow" not in received


# ------------------------------------------------------------------------------------------- the queue


class Gate:
    """A backend's behaviour: requests are held until they are let through; counts how many it holds at once."""

    def __init__(self):
        self.held, self.most = 0, 0
        self._opened = 0
        self._changed = threading.Condition()

    def __call__(self, request):
        with self._changed:
            self.held += 1
            self.most = max(self.most, self.held)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._opened > 0, PATIENCE)
            self._opened -= 1
            self.held -= 1
        return json_reply({"body": json.loads(request.body.decode())})

    def open(self, count=10**6):
        with self._changed:
            self._opened += count
            self._changed.notify_all()


def one_slot(request):
    return json_reply({"status": "ok", "slots": 1})


def post_in_background(url, body, headers=None):
    answers = []
    thread = threading.Thread(target=lambda: answers.append(call(url, body, headers)), daemon=True)
    thread.start()
    return thread, answers


def test_a_backends_slots_are_never_exceeded_and_all_are_served(made, front):
    gate = Gate()
    balancer = front(made(StandIn, gate))  # four slots, as its /health says
    waiting = [post_in_background(balancer.url + "/generate", {"n": n}) for n in range(20)]
    wait_until(lambda: gate.held == 4 and balancer.status()["queued"] == 16)
    gate.open()
    for thread, _ in waiting:
        thread.join(PATIENCE)
    assert gate.most == 4
    assert sorted(answers[0].json["body"]["n"] for _, answers in waiting) == list(range(20))
    assert balancer.status()["backends"][0]["in_flight"] == 0


@pytest.mark.parametrize(
    "health, props, option, slots",
    [
        ({"slots": 6}, {}, "", 6),
        ({"status": "ok"}, {"total_slots": 3}, "", 3),
        ({"status": "ok"}, {}, "", 1),
        ({"slots": 6}, {}, ",slots=2", 2),
    ],
)
def test_slots_come_from_the_option_or_health_or_llama_servers_props_or_are_one(
    made, front, health, props, option, slots
):
    def behave(request):
        return json_reply(props) if request.path == "/props" else json_reply({}, 404)

    stand_in = made(StandIn, behave, health=lambda request: json_reply(health))
    assert front(stand_in.url + option).status()["backends"][0]["capacity"] == slots


def test_a_full_queue_is_429_and_says_when_to_come_back(made, front):
    gate = Gate()
    balancer = front(made(StandIn, gate, health=one_slot), queue_size=1)
    waiting = [post_in_background(balancer.url + "/generate", {"n": n}) for n in range(2)]
    wait_until(lambda: balancer.status()["queued"] == 1)
    answer = call(balancer.url + "/generate", {})
    assert answer.status == 429 and int(answer.headers["Retry-After"]) >= 1
    assert answer.json["error"]["code"] == "queue_full"
    gate.open()
    for thread, answers in waiting:
        thread.join(PATIENCE)
        assert answers[0].status == 200


def test_a_deadline_that_passes_in_the_queue_is_503(made, front):
    gate = Gate()
    balancer = front(made(StandIn, gate, health=one_slot), queue_timeout=0.3)
    thread, _ = post_in_background(balancer.url + "/generate", {})
    wait_until(lambda: gate.held == 1)
    answer = call(balancer.url + "/generate", {})
    assert answer.status == 503 and answer.json["error"]["code"] == "queue_timeout" and answer.headers["Retry-After"]
    assert balancer.status()["queued"] == 0
    gate.open()
    thread.join(PATIENCE)


def test_a_client_that_leaves_is_dropped_from_the_queue_at_once(made, front):
    gate = Gate()
    stand_in = made(StandIn, gate, health=one_slot)
    balancer = front(stand_in)
    thread, _ = post_in_background(balancer.url + "/generate", {})
    wait_until(lambda: gate.held == 1)

    def come_and_go():
        sock = socket.create_connection(("127.0.0.1", balancer.service.port))
        sock.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
        wait_until(lambda: balancer.status()["queued"] == 1)
        sock.close()
        return seconds_until(lambda: balancer.status()["queued"] == 0)

    prompt_once(come_and_go, 0.5)
    gate.open()
    thread.join(PATIENCE)
    assert len([each for each in stand_in.requests if each.method == "POST"]) == 1


def test_the_queue_is_fair_between_keys(made, front):
    served = []

    def behave(request):
        gate(request)
        served.append(access.presented_key(request.headers))
        return json_reply({})

    gate = Gate()
    stand_in = made(StandIn, behave, health=one_slot)
    balancer = front(stand_in.url + ",pass-key", api_key=("greedy", "modest"))
    first = post_in_background(balancer.url + "/x", {}, {"X-Api-Key": "greedy"})
    wait_until(lambda: gate.held == 1)
    waiting = [post_in_background(balancer.url + "/x", {}, {"X-Api-Key": "greedy"}) for _ in range(5)]
    wait_until(lambda: balancer.pool.queued() == 5)
    waiting.append(post_in_background(balancer.url + "/x", {}, {"X-Api-Key": "modest"}))
    wait_until(lambda: balancer.pool.queued() == 6)
    gate.open()
    for thread, answers in waiting + [first]:
        thread.join(PATIENCE)
        assert answers[0].status == 200
    assert served.index("modest") == 2  # after one that was running, and one turn of the other's


def test_look_ups_do_not_wait_behind_work(made, front):
    gate = Gate()

    def behave(request):
        return json_reply({"up": True}) if request.method == "GET" else gate(request)

    balancer = front(made(StandIn, behave, health=one_slot))
    thread, _ = post_in_background(balancer.url + "/generate", {})
    wait_until(lambda: gate.held == 1)
    assert call(balancer.url + "/props").json == {"up": True}
    gate.open()
    thread.join(PATIENCE)


def test_a_queued_request_is_told_how_long_it_waited(made, front):
    gate = Gate()
    balancer = front(made(StandIn, gate, health=one_slot))
    first, _ = post_in_background(balancer.url + "/generate", {})
    wait_until(lambda: gate.held == 1)
    second, answers = post_in_background(balancer.url + "/generate", {})
    wait_until(lambda: balancer.status()["queued"] == 1)
    threading.Event().wait(0.005)  # so that there are milliseconds to tell of
    gate.open()
    first.join(PATIENCE)
    second.join(PATIENCE)
    assert int(answers[0].headers["X-ComeAPI-Queue-Ms"]) > 0
    assert "comeapi_queue_wait_seconds_count 1" in call(balancer.url + "/metrics").body.decode()


# ---------------------------------------------------------------------------------------------- models


def has(*models, loaded=None, openai=False):
    """Return a backend's behaviour: it lists these models, and answers with its own list."""

    def behave(request):
        if openai and request.path == "/v1/models":
            return json_reply({"object": "list", "data": [{"id": name, "object": "model"} for name in models]})
        if not openai and request.path == "/models":
            return json_reply({"models": [{"name": name, "loaded": name == loaded} for name in models]})
        if request.method != "POST":
            return json_reply({}, 404)
        return json_reply({"mine": list(models), "asked": json.loads(request.body.decode())})

    return behave


class Server(StandIn):
    """A stand-in without a /models of its own."""

    lists = False


@pytest.mark.parametrize("field", ["model", "model_name"])
@pytest.mark.parametrize("openai", [False, True])
def test_a_request_goes_to_the_backend_that_has_its_model(made, front, field, openai):
    balancer = front(made(Server, has("a.gguf", openai=openai)), made(Server, has("b.gguf", openai=openai)))
    for name in ("b.gguf", "b", "b.gguf"):
        answer = call(balancer.url + "/v1/chat/completions", {field: name}).json
        assert answer["mine"] == ["b.gguf"] and answer["asked"][field] == name


def test_an_unknown_model_is_404_and_says_what_there_is(made, front):
    balancer = front(made(Server, has("a.gguf")), made(Server, has("b.gguf")))
    answer = call(balancer.url + "/generate", {"model_name": "c"})
    assert answer.status == 404 and answer.json["error"]["code"] == "model_not_found"
    assert "a.gguf, b.gguf" in answer.json["error"]["message"]


def test_a_model_that_has_just_come_is_found(made, front):
    names = ["a.gguf"]
    balancer = front(made(Server, lambda request: has(*names)(request)))
    names.append("new.gguf")
    wait_until(lambda: call(balancer.url + "/generate", {"model_name": "new"}).status == 200, timeout=20)


@pytest.mark.parametrize("spelling", ["gpt-4o", "GPT-4o", "gpt-4o:latest"])
def test_an_alias_stands_for_a_model(made, front, spelling):
    balancer = front(made(Server, has("a.gguf")), made(Server, has("b.gguf")), alias=("gpt-4o=b.gguf",))
    answer = call(balancer.url + "/v1/chat/completions", {"model": spelling, "messages": [{"content": "é"}]})
    assert answer.json["asked"] == {"model": "b.gguf", "messages": [{"content": "é"}]}
    listed = {each["name"]: each for each in call(balancer.url + "/models").json["models"]}
    assert set(listed) == {"a.gguf", "b.gguf", "gpt-4o"} and listed["gpt-4o"]["alias_of"] == "b.gguf"


def test_the_models_are_listed_in_openais_form_too(made, front):
    balancer = front(made(Server, has("a.gguf", loaded="a.gguf")), made(Server, has("b", openai=True)))
    answer = call(balancer.url + "/v1/models").json
    assert answer["object"] == "list" and [each["id"] for each in answer["data"]] == ["a.gguf", "b"]
    assert all(each["object"] == "model" and isinstance(each["created"], int) for each in answer["data"])
    assert call(balancer.url + "/v1/models/a").json["id"] == "a.gguf"
    assert call(balancer.url + "/v1/models/zzz").status == 404


def tells_ollama(*models):
    """Return the behaviour of a backend that has these models, and has loaded the first."""

    def behave(request):
        listed = [{"name": name, "model": name, "size": 10, "digest": "d"} for name in models]
        if request.path == "/api/tags":
            return json_reply({"models": listed})
        if request.path == "/api/ps":
            return json_reply({"models": [dict(listed[0], size=100, size_vram=7)]})
        return has(*models)(request)

    return behave


def test_ollamas_lists_are_those_of_all_backends(made, front):
    ollama = pytest.importorskip("ollama")
    balancer = front(
        made(Server, tells_ollama("a.gguf", "b.gguf")), made(Server, tells_ollama("a.gguf", "c.gguf")),
        made(Server, has("not-ollamas.gguf")), alias=("gpt-4o=c.gguf",),
    )  # fmt: skip
    client = ollama.Client(host=balancer.url)
    assert sorted(each.model for each in client.list().models) == ["a.gguf", "b.gguf", "c.gguf", "gpt-4o"]
    [loaded] = client.ps().models
    assert (loaded.name, loaded.size, loaded.size_vram) == ("a.gguf", 200, 14)
    client._client.close()


def test_ollamas_lists_survive_what_a_backend_may_say(made, front):
    def odd(request):
        if request.path.startswith("/api/"):
            return json_reply({"models": [7, {"name": ""}, {"name": "x.gguf", "size": "large"}, {"model": "y"}]})
        return has("x.gguf")(request)

    balancer = front(made(Server, odd))
    assert call(balancer.url + "/api/tags").json["models"][0]["name"] == "x.gguf"
    assert call(balancer.url + "/api/ps").json["models"] == [{"name": "x.gguf", "size": 0, "size_vram": 0}]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"{}" * 600000, b'{"model": 7}'])
def test_a_body_that_names_no_model_goes_to_any_backend_as_it_is(made, front, body):
    def echo(request):
        return json_reply({"size": len(request.body)}) if request.method == "POST" else json_reply({}, 404)

    assert call(front(made(StandIn, echo)).url + "/x", body).json == {"size": len(body)}


@pytest.mark.parametrize(
    "alias, body, status",
    [
        (False, '{"prompt": %s}' % ("[" * 900 + "]" * 900), 200),
        (False, '{"messages": [{"role": %s}]}' % ("[" * 900 + "]" * 900), 200),
        (False, '{"tools": %s1%s}' % ('{"a":' * 900, "}" * 900), 200),
        (False, '{"prompt": 1e999}', 200),
        (False, '{"prompt": %s}' % ("1" * 5000), 200),
        (True, '{"prompt": 1e999, "model": "alias"}', 200),
        (True, '{"prompt": "\\ud800", "model": "alias"}', 200),
    ],
)
def test_a_strange_body_is_the_backends_to_refuse(made, front, alias, body, status):
    balancer = front(made(StandIn), policy="prefix", alias=("alias=m.gguf",) if alias else ())
    answer = call(balancer.url + "/generate", body.encode())
    assert answer.status == status


@pytest.fixture
def parsed(monkeypatch):
    """Return the bodies that a balancer parses, as a list that grows."""
    bodies = []
    monkeypatch.setattr("balancer.read_body", lambda body: bodies.append(body) or read_body(body))
    return bodies


@pytest.mark.parametrize("policy", ["round-robin", "least-busy"])
@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "m.gguf", "prompt": "x"}',
        b'{"messages": [{"content": "My \\"model\\": \\"none\\""}],\n  "model_name" : "M:latest"}',
        b'{"tools": [{"properties": {"model": {"type": "string"}}}], "model": "m"}',
        b'{"prompt": "x", "a": "\\u00e9"}',
        b"nonsense",
        b'{"model": "m", ',
    ],
)
def test_a_body_that_makes_no_difference_goes_through_unparsed(made, front, parsed, body, policy):
    backends = [made(StandIn), made(StandIn)]
    balancer = front(*backends, policy=policy, alias=("other=m.gguf",))
    for _ in range(2):
        assert call(balancer.url + "/v1/chat/completions", body).status == 200
    assert [[request.body for request in backend.requests] for backend in backends] == [[body], [body]]
    assert parsed == []


@pytest.mark.parametrize(
    "settings, body, status",
    [
        ({}, b'{"model": "unknown"}', 404),
        ({}, b'{"model": "m", "model": "unknown"}', 404),
        ({}, b'{"tools": [{"model": "m"}], "model": "unknown"}', 404),
        ({}, b'{"\\u006Dodel": "unknown"}', 404),
        ({}, b'{"model\\u005fname": "unknown"}', 404),
        ({}, b'{"model": "\\u0075nknown"}', 404),
        ({}, b'{"tools": [{"model": "unknown"}]}', 200),
        ({}, b'{"model": "unknown", ', 200),
        ({"alias": ("other=m.gguf",)}, b'{"model": "other"}', 200),
        ({"policy": "prefix"}, b'{"model": "m"}', 200),
    ],
)
def test_a_body_that_may_make_a_difference_is_parsed(made, front, parsed, settings, body, status):
    balancer = front(made(Pair), **settings)
    assert call(balancer.url + "/v1/chat/completions", body).status == status
    assert parsed == [body]


def test_where_there_is_one_model_any_name_means_it(made, front):
    backends = [made(StandIn, lambda request: json_reply(json.loads(request.body.decode()))) for _ in range(2)]
    balancer = front(*backends)
    answer = call(balancer.url + "/v1/chat/completions", {"model": "gpt-4o", "n": 1}).json
    assert answer == {"model": "m.gguf", "n": 1}


def test_a_model_that_is_down_for_the_moment_is_not_mistaken_for_the_one_that_is_left(made, front):
    other = made(Server, has("other.gguf", loaded="other.gguf"), health=lambda request: json_reply({"slots": 1}))
    balancer = front(made(StandIn), other)
    wait_until(lambda: len(call(balancer.url + "/models").json["models"]) == 2)
    other.close()
    assert call(balancer.url + "/generate", {"model": "unknown"}).status == 404


def test_with_an_alias_of_a_star_any_other_name_means_its_model(made, front):
    backend = made(Pair, lambda request: json_reply(json.loads(request.body.decode())))
    balancer = front(backend, alias=("*=n.gguf",))
    named = [call(balancer.url + "/generate", {"model": name}).json["model"] for name in ("gpt-4o", "m", "n.gguf")]
    assert named == ["n.gguf", "m", "n.gguf"]
    assert [each["name"] for each in call(balancer.url + "/models").json["models"]] == ["m.gguf", "n.gguf"]


def test_health_is_there_by_openais_path_too(made, front):
    assert call(front(made(StandIn)).url + "/v1/health").json["status"] == "ok"


def test_a_body_is_parsed_where_a_backend_would_have_to_load_its_model(made, front, parsed):
    both = made(Server, has("a.gguf", "b.gguf", loaded="a.gguf"), health=lambda request: json_reply({"slots": 4}))
    one = made(Server, has("b.gguf", loaded="b.gguf"), health=lambda request: json_reply({"slots": 4}))
    balancer = front(both, one)
    assert call(balancer.url + "/generate", {"model": "b"}).json["mine"] == ["b.gguf"]
    assert len(parsed) == 1


def test_a_models_name_of_3_mb_is_not_told_back(made, front):
    answer = call(front(made(Pair)).url + "/generate", {"model": "x" * 3_000_000})
    assert answer.status == 404 and len(answer.body) < 1000


def test_conversations_stay_with_the_backend_that_holds_their_cache(made, front):
    backends = [made(StandIn) for _ in range(4)]
    balancer = front(*backends, policy="prefix")
    homes = set()
    for conversation in range(8):
        messages, seen = [], set()
        for turn in range(4):
            messages.append({"role": "user", "content": "%d %s" % (conversation, "Tell me more of this. " * 20)})
            seen.add(call(balancer.url + "/v1/chat/completions", {"messages": messages}).json["from"])
        assert len(seen) == 1
        homes |= seen
    assert homes == {backend.url for backend in backends}
    assert "comeapi_affinity_hits_total 24" in call(balancer.url + "/metrics").body.decode()


# ------------------------------------------------------------------------------------------------ relaying


def test_the_request_and_the_answer_pass_through_unchanged(made, front):
    def echo(request):
        seen = {"method": request.method, "target": request.target, "body": request.body.decode()}
        return json_reply(dict(seen, headers=request.headers), 201, [("X-Special", "ü"), ("Connection", "close")])

    balancer = front(made(StandIn, echo))
    answer = call(
        balancer.url + "/v1/some/path?q=%20x&q=2", b"\xe3\x81\x82{", {"Authorization": "Bearer k", "X-Mine": "1"}, "PUT"
    )
    assert answer.status == 201 and answer.headers["X-Special"] == "ü"
    seen = answer.json
    assert (seen["method"], seen["target"], seen["body"]) == ("PUT", "/v1/some/path?q=%20x&q=2", "あ{")
    assert "authorization" not in seen["headers"] and seen["headers"]["x-mine"] == "1"
    assert seen["headers"]["x-forwarded-for"] == "127.0.0.1"
    assert seen["headers"]["x-request-id"] == answer.headers["X-Request-Id"]
    assert answer.headers["X-ComeAPI-Backend"]


def test_a_stream_is_relayed_piece_by_piece_as_it_comes(made, front):
    sent = threading.Event()

    def pieces():
        yield {"n": 1}
        assert sent.wait(PATIENCE)
        yield {"n": 2}

    balancer = front(made(StandIn, lambda request: event_stream(pieces())))
    with socket.create_connection(("127.0.0.1", balancer.service.port)) as sock:
        sock.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
        received = b""
        while b'{"n": 1}' not in received:
            received += sock.recv(65536)
        assert b"text/event-stream" in received and b"X-Accel-Buffering: no" in received
        sent.set()  # the second piece was not needed to get the first
        while not received.endswith(b"0\r\n\r\n"):
            received += sock.recv(65536)
    assert b'{"n": 2}' in received and b"[DONE]" in received


@pytest.mark.parametrize("streaming", [False, True])
def test_a_client_that_hangs_up_is_noticed_by_the_backend(made, front, streaming):
    begun, noticed = threading.Event(), threading.Event()

    def endless(request):
        try:
            yield b"first"
            begun.set()
            request.wait(threading.Event().wait, PATIENCE)
        finally:
            noticed.set()

    def whole(request):
        begun.set()
        wait_until(request.hung_up)
        noticed.set()
        return Reply()

    balancer = front(made(StandIn, lambda request: Stream(endless(request)) if streaming else whole(request)))
    sock = socket.create_connection(("127.0.0.1", balancer.service.port))
    sock.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
    assert begun.wait(PATIENCE)
    sock.close()
    assert noticed.wait(PATIENCE)
    wait_until(lambda: balancer.status()["backends"][0]["in_flight"] == 0)


def test_every_answer_gives_its_backend_back(made, front):
    kinds = {
        "/json": (200, lambda request: json_reply({})),
        "/stream": (200, lambda request: event_stream(iter([{"n": 1}]))),
        "/empty": (204, lambda request: Reply(status=204)),
        "/error": (400, lambda request: json_reply({}, 400)),
        "/full": (503, lambda request: Stream((piece for piece in [b"full"]), 503)),
    }
    balancer = front(made(StandIn, lambda request: kinds[request.path][1](request)))
    for path, (status, _) in kinds.items():
        for method in ("POST", "HEAD"):
            assert call(balancer.url + path, b"" if method == "POST" else None, method=method).status == status
    wait_until(lambda: balancer.status()["backends"][0]["in_flight"] == 0)


def test_connections_to_a_backend_are_kept_alive(made, front):
    ports = set()

    def note(request):
        ports.add(request.wire.sock.getpeername()[1])
        return json_reply({})

    balancer = front(made(StandIn, note))
    for _ in range(20):
        call(balancer.url + "/x", {})
    assert len(ports) == 1


# ---------------------------------------------------------------------------------------- its own answers


def test_status_counts_the_backends(made, front):
    balancer = front(made(StandIn), dead_url())
    status = call(balancer.url + "/status").json
    assert (status["total_backends"], status["healthy_backends"]) == (2, 1)
    fields = {"url", "healthy", "error_count", "avg_response_time", "last_check"}
    assert all(fields <= set(each) for each in status["backends"])
    assert status["backends"][0]["capacity"] == 4 and status["backends"][0]["model"] == "m.gguf"
    root = call(balancer.url + "/").json
    assert root["message"] == "ComeAPI Load Balancer" and root["status"]["total_backends"] == 2


def test_the_models_are_the_union_over_the_backends(made, front):
    first, second = made(StandIn), made(StandIn)
    (model,) = call(front(first, second, dead_url()).url + "/models").json["models"]
    assert model == {"name": "m.gguf", "loaded": True, "backends": [first.url, second.url]}


def test_health_is_503_while_no_backend_is_up(made, front):
    assert call(front(dead_url()).url + "/health").status == 503
    assert call(front(made(StandIn)).url + "/health").status == 200


def test_a_backend_that_says_503_at_health_gets_no_requests(made, front):
    loading = made(StandIn, health=lambda request: json_reply({"status": "loading"}, 503))
    ready = made(StandIn)
    balancer = front(loading, ready)
    assert {call(balancer.url + "/x", {}).json["from"] for _ in range(4)} == {ready.url}
    loading.health = ready.health
    wait_until(lambda: balancer.status()["healthy_backends"] == 2)


def test_a_server_without_a_health_page_counts_as_up(made, front):
    other = made(StandIn, health=lambda request: json_reply({}, 404))
    assert front(other).status()["healthy_backends"] == 1


def test_a_probe_that_hangs_does_not_delay_the_others(made, front):
    hanging = socket.create_server(("127.0.0.1", 0))
    try:
        urls = ("http://127.0.0.1:%d" % hanging.getsockname()[1], made(StandIn).url)
        balancer = made(Balancer, Config(port=0, backend=urls, health_timeout=2.0 * PATIENCE)).start()
        wait_until(lambda: balancer.status()["healthy_backends"] == 1)
    finally:
        hanging.close()


def test_metrics_tell_of_backends_and_retries(made, front):
    full = made(StandIn, lambda request: json_reply({}, 503))
    balancer = front(full, made(StandIn), dead_url())
    for _ in range(3):
        call(balancer.url + "/x", {})
    lines = call(balancer.url + "/metrics").body.decode().splitlines()
    assert 'comeapi_retries_total{why="503"}' in " ".join(lines)
    assert 'comeapi_backend_up{backend="%s"} 1' % full.url in lines
    assert any(line.startswith("comeapi_http_requests_total") for line in lines)


def test_keys_guard_everything_but_health(made, front):
    balancer = front(made(StandIn), api_key=("secret",))
    assert [call(balancer.url + path).status for path in ("/", "/status", "/models", "/x", "/health")] == [401] * 4 + [
        200
    ]
    assert call(balancer.url + "/x", headers={"X-Api-Key": "secret"}).status == 200


@pytest.mark.parametrize(
    "options, settings, seen, probed",
    [
        ("", {}, {}, ""),
        ("", {"backend_key": "ours"}, {"authorization": "Bearer ours"}, "Bearer ours"),
        (",key=its", {"backend_key": "ours"}, {"authorization": "Bearer its"}, "Bearer its"),
        (",pass-key", {}, {"authorization": "Bearer client", "x-api-key": "client", "api-key": "client"}, ""),
        (",pass-key,key=its", {}, {"authorization": "Bearer client", "x-api-key": "client", "api-key": "client"},
         "Bearer its"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("checked", [False, True])
def test_a_backend_is_shown_the_key_that_it_is_meant_to_see_and_no_other(
    made, front, options, settings, seen, probed, checked
):
    shown, probes = [], []

    def behave(request):
        shown.append({name: text for name, text in request.headers.items() if "key" in name or "auth" in name})
        return json_reply({})

    def health(request):
        probes.append(request.headers.get("authorization", ""))
        return json_reply({"slots": 4})

    stand_in = made(StandIn, behave, health=health)
    balancer = front(stand_in.url + options, api_key=("client",) if checked else (), **settings)
    client = {"Authorization": "Bearer client", "X-Api-Key": "client", "api-key": "client", "Proxy-Authorization": "x"}
    assert call(balancer.url + "/x", {}, client).status == 200
    assert shown[-1] == seen and set(probes) == {probed}
    told = json.dumps(balancer.status()) + repr(balancer.pool.everyone()[0].spec)
    assert "ours" not in told and "its" not in told


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key": ("a", "same"), "admin_key": ("same",)},
        {"admin_key": ("same",), "backend_key": "same"},
        {"admin_key": ("same",), "backend": ("http://x,key=same",)},
        {"backend_key": "日本"},
    ],
)
def test_one_key_opens_one_door(start, settings):
    with pytest.raises(ValueError):
        Balancer(Config(**settings))
    arguments = []
    for name, value in settings.items():
        for text in (value,) if isinstance(value, str) else value:
            arguments += ["--" + name.replace("_", "-"), os.fsdecode(text.encode("utf-8"))]
    balancer = start("balancer.py", "--port", 0, *arguments)
    assert balancer.end() == 2 and len(balancer.errors) == 1 and "same" not in balancer.errors[0]


def test_the_backends_key_may_stand_in_a_file_and_is_never_shown(start, made, tmp_path):
    keys = []
    stand_in = made(StandIn, health=lambda request: keys.append(request.headers.get("authorization")) or json_reply({}))
    (tmp_path / "key").write_text("hidden-key\n")
    balancer = start("balancer.py", "--child", "--port", 0, "--backend", stand_in.url,
                     COMEAPI_BACKEND_KEY="@%s" % (tmp_path / "key"), COMEAPI_ADMIN_KEY="boss")  # fmt: skip
    url = balancer.wait_for_event("listening")["url"]
    balancer.wait_for_event("up")
    assert keys[0] == "Bearer hidden-key"
    pages = [call(url + path, headers={"X-Api-Key": "boss"}).body.decode() for path in ("/", "/status", "/metrics")]
    pages.append(call(url + "/admin/backends", headers={"X-Api-Key": "boss"}).body.decode())
    assert not [page for page in pages if "hidden-key" in page] and stand_in.url in pages[-1]


# ------------------------------------------------------------------------------------------- cancellation


def gauge(url, name):
    """Return a gauge's value, as the metrics page says."""
    for line in call(url + "/metrics").body.decode().splitlines():
        if line.partition(" ")[0] == name:
            return float(line.partition(" ")[2])
    raise AssertionError("no gauge " + name)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_client_that_leaves_is_seen_in_the_backends_gauges_within_half_a_second(made, front, streaming):
    """Before the first byte, in a plain answer or a stream's prompt; and in the middle of a stream."""

    def pieces():
        while True:
            yield {"n": 1}
            threading.Event().wait(0.02)

    def behave(request):
        if streaming and request.method == "POST":
            return event_stream(pieces())
        if request.method == "POST":
            wait_until(request.hung_up)
        return stand_in.service.metrics_page(request) if request.path == "/metrics" else json_reply({}, 404)

    stand_in = made(StandIn, behave)
    balancer = front(stand_in)

    def come_and_go():
        sock = socket.create_connection(("127.0.0.1", balancer.service.port))
        sock.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
        wait_until(lambda: gauge(stand_in.url, "comeapi_http_requests_active") == 2)  # the other is who asks
        if streaming:
            assert sock.recv(65536)
        sock.close()
        took = seconds_until(lambda: gauge(stand_in.url, "comeapi_http_requests_active") == 1)
        return took + seconds_until(lambda: balancer.status()["backends"][0]["in_flight"] == 0)

    prompt_once(come_and_go, 0.5)


def test_a_client_that_leaves_a_stream_frees_a_real_backends_slot_within_half_a_second(start, front):
    backend = start("backend.py", "--child", "--port", 0, "--threads", 1, *LASTING_OPTIONS)
    url = backend.wait_for_event("listening")["url"]
    backend.wait_for_event("ready")
    balancer = front(url)
    fields = {"prompt": "Once upon a time", "model_name": "demo.gguf", "stream": True, "max_tokens": 8000}
    body = json.dumps(dict(RAMBLE, **fields)).encode()

    def come_and_go():
        sock = socket.create_connection(("127.0.0.1", balancer.service.port))
        sock.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: gauge(url, "comeapi_backend_busy_slots") == 1)
        sock.close()
        return seconds_until(lambda: gauge(url, "comeapi_backend_busy_slots") == 0)

    prompt_once(come_and_go, 0.5)


# ------------------------------------------------------------------------------------- embedding, and by hand


def test_two_balancers_live_in_one_program_and_stop_without_a_trace(made):
    stand_in = made(StandIn)
    before = {thread.name for thread in threading.enumerate()}
    handlers = [signal.getsignal(number) for number in signal.valid_signals()]
    balancers = [Balancer(Config(port=0, backend=(stand_in.url,))).start() for _ in range(2)]
    assert all(call(balancer.url + "/x", {}).status == 200 for balancer in balancers)
    for balancer in balancers:
        assert balancer.stop() == 0
    assert [signal.getsignal(number) for number in signal.valid_signals()] == handlers
    wait_until(lambda: not {t.name for t in threading.enumerate()} - before - {"probe"})


def test_balancers_in_one_program_know_nothing_of_each_other(made, front):
    first, second = made(StandIn), made(StandIn)
    balancers = [front(first, policy="prefix"), front(second, policy="least-busy", api_key=("k",))]
    with_key = {"X-Api-Key": "k"}
    assert call(balancers[0].url + "/x", {}).json["from"] == first.url
    assert call(balancers[1].url + "/x", {}, with_key).json["from"] == second.url
    assert call(balancers[1].url + "/x", {}).status == 401
    policies = [balancers[0].status()["policy"], balancers[1].status()["policy"]]
    assert policies == ["prefix", "least-busy"]
    balancers[0].stop()
    assert call(balancers[1].url + "/x", {}, with_key).status == 200


def test_one_file_holds_the_whole_balancer(tmp_path, made):
    """As the README says: copy balancer.py and core/ into a folder, and let zipapp make one file of it."""
    app = tmp_path / "app"
    shutil.copytree(os.path.join(ROOT, "core"), str(app / "core"), ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(os.path.join(ROOT, "balancer.py"), str(app))
    archive = str(tmp_path / "balancer.pyz")
    subprocess.run([sys.executable, "-m", "zipapp", str(app), "-m", "balancer:main", "-o", archive], check=True)
    shutil.rmtree(str(app))
    program = [sys.executable, archive, "--child", "--port", "0", "--backend", made(StandIn).url]
    with subprocess.Popen(program, cwd=str(tmp_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        said = (json.loads(line.decode()) for line in process.stdout)
        url = next(each["url"] for each in said if each["event"] == "listening")
        assert next(each for each in said if each["event"] == "up")
        assert call(url + "/generate", {}).status == 200
        assert b"page.js" in call(url + "/", headers={"Accept": "text/html"}).body
        assert call(url + "/page/page.js").status == 200
        process.stdin.close()
        assert process.wait(PATIENCE) == 0


def test_a_stopping_balancer_lets_a_running_request_finish(made, front):
    begun, release = threading.Event(), threading.Event()

    def slow(request):
        begun.set()
        release.wait(PATIENCE)
        return json_reply({"late": True})

    balancer = front(made(StandIn, slow))
    answers = []
    client = threading.Thread(target=lambda: answers.append(call(balancer.url + "/x", {})))
    client.start()
    begun.wait(PATIENCE)
    stopper = threading.Thread(target=balancer.stop)
    stopper.start()
    wait_until(lambda: balancer.service.draining)
    release.set()
    client.join(PATIENCE)
    stopper.join(PATIENCE)
    assert answers[0].json == {"late": True}


def test_the_positional_form_of_the_original_works(start, made):
    port, own = free_ports(1), free_ports(1)
    made(StandIn, port=port)
    balancer = start("balancer.py", "127.0.0.1", port, 1, "127.0.0.1", own)
    balancer.wait_for_line("http://127.0.0.1:%d" % own)
    wait_until(lambda: call("http://127.0.0.1:%d/status" % own).json["healthy_backends"] == 1)
    balancer.process.send_signal(signal.SIGINT)
    assert balancer.end() == 0


def test_backends_that_come_after_the_balancer_are_found(start, made):
    port = free_ports(1)
    balancer = start("balancer.py", "--child", "--port", 0, "--backend", "127.0.0.1:%d" % port)
    url = balancer.wait_for_event("listening")["url"]
    assert call(url + "/status").json["healthy_backends"] == 0
    made(StandIn, port=port)
    wait_until(lambda: call(url + "/status").json["healthy_backends"] == 1)


def test_a_balancer_with_a_parent_waits_for_backends_that_it_has_never_seen(start, made):
    port = free_ports(1)
    balancer = start("balancer.py", "--child", "--port", 0, "--backend", "127.0.0.1:%d" % port)
    url = balancer.wait_for_event("listening")["url"]
    answers = []
    client = threading.Thread(target=lambda: answers.append(call(url + "/generate", {})))
    client.start()
    wait_until(lambda: "comeapi_http_requests_active 2" in call(url + "/metrics").body.decode())
    made(StandIn, port=port)
    client.join(PATIENCE)
    assert answers[0].status == 200


def test_a_deeply_nested_body_does_not_bring_the_program_down(start, made):
    balancer = start("balancer.py", "--child", "--port", 0, "--backend", made(StandIn).url)
    url = balancer.wait_for_event("listening")["url"]
    balancer.wait_for_event("up")
    for body in (b'{"a":' * 200000, b'{"a":' * 5000 + b"1" + b"}" * 5000, b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"):
        assert call(url + "/generate", body).status == 200


SLOW_START = """
import sys, time
sys.path.insert(0, %r)
import balancer

start = balancer.Balancer.start

def start_slowly(self):
    start(self)
    while not self.pool.any_up():
        time.sleep(0.01)
    time.sleep(0.2)

balancer.Balancer.start = start_slowly
balancer.main()
"""


def test_where_it_listens_is_told_before_any_backend_is_up(start, made, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_START % ROOT)
    balancer = start(str(tmp_path / "slow.py"), "--child", "--port", 0, "--backend", made(StandIn).url)
    balancer.wait_for_event("listening")
    balancer.wait_for_event("up")


def test_a_balancer_ends_with_its_parent(start):
    balancer = start("balancer.py", "--child", "--port", 0)
    balancer.wait_for_event("listening")
    balancer.process.stdin.close()
    assert balancer.end() == 0 and not running(balancer.pid)


def test_the_default_backends_are_the_originals():
    assert [spec.url for spec in Config().specs()] == ["http://127.0.0.1:%d" % port for port in range(8080, 8085)]
    assert Config().port == 9000


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x/path", "http://x?y", "://"])
def test_a_backend_that_is_no_url_is_refused(start, url):
    with pytest.raises(ValueError):
        backend_url(url)
    balancer = start("balancer.py", "--backend", url)
    assert balancer.end() == 2 and len(balancer.errors) == 1


def test_a_port_in_use_is_one_clear_line(start, made):
    taken = made(StandIn)
    balancer = start("balancer.py", "--port", taken.service.port)
    assert balancer.end() == 1
    assert balancer.errors == [
        "balancer.py: error: can't listen on 127.0.0.1 port %d: Address already in use" % taken.service.port
    ]
