"""Backends that mean no good, or are broken, seen from the balancer's client: whatever they send, it gets an answer
that is sound, in time, and the balancer's own pages go on."""

import contextlib
import http.client
import json
import socket
import threading
import time

import pytest
from conftest import PATIENCE, call, wait_until

import core.balancing.health
from balancer import Balancer, Config
from core.balancing import relaying
from core.http.messages import Reply, json_reply
from core.http.routing import Route
from core.http.server import ServerConfig, Service
from core.loops import Loop


class Raw:
    """A server that answers by path: each answer is pieces of bytes, sent once, or again and again with pauses."""

    def __init__(self, **answers):
        self.answers = dict({"health": ok(b'{"slots": 64}')}, **answers)
        self.sent = self.requests = 0
        self.closing = threading.Event()
        self.sock = socket.create_server(("127.0.0.1", 0), backlog=50)
        self.url = "http://127.0.0.1:%d" % self.sock.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self.sock.accept()[0],), daemon=True).start()

    def _serve(self, connection):
        with connection, contextlib.suppress(OSError):
            connection.settimeout(PATIENCE)
            head = b""
            while b"\r\n\r\n" not in head:
                data = connection.recv(65536)
                if not data:
                    return
                head += data
            path = head.split(b" ")[1].decode()[1:].replace("/", "_")
            self.requests += path.startswith("x")
            for piece, pause in self.answers.get(path, ok(b"", b"404 Not Found")):
                connection.sendall(piece)
                self.sent += len(piece)
                while pause is not None and not self.closing.wait(pause):
                    connection.sendall(piece)
                    self.sent += len(piece)

    def close(self):
        self.closing.set()
        self.sock.close()


def ok(body, status=b"200 OK"):
    return [(b"HTTP/1.1 %b\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body), None)]


def once(data):
    return [(data, None)]


def then(data, more, pause=0.0):
    """Return what is sent once, and what is sent for ever after, so many seconds apart."""
    return [(data, None), (more, pause)]


@pytest.fixture
def front():
    """Start a balancer in front of raw servers; both end with the test."""
    things = []

    def make(*servers, **settings):
        things.extend(servers)
        settings = dict({"health_timeout": 0.3, "recovery_timeout": 0.0, "health_interval": 30.0}, **settings)
        balancer = Balancer(Config(port=0, backend=tuple(each.url for each in servers), **settings)).start()
        things.insert(0, balancer)
        wait_until(lambda: all(each["last_check"] for each in balancer.status()["backends"]))
        return balancer

    yield make
    for thing in things:
        thing.stop(0) if isinstance(thing, Balancer) else thing.close()


def code(answer):
    return answer.status, answer.json["error"]["code"]


# --------------------------------------------------------------------------------------------------- answers

H = b"HTTP/1.1 200 OK\r\n"


NO_ANSWERS = [
    once(H + b"Content-Length: \xb2\r\n\r\nok"),
    once(H + b"Content-Length: " + b"1" * 5000 + b"\r\n\r\nok"),
    once(H + b"Content-Length: -2\r\n\r\nok"),
    once(H + b"Content-Length: +2\r\n\r\nok"),
    once(H + b"Content-Length: 2,3\r\n\r\nok"),
    once(H + b"X: a\nSet-Cookie: stolen\r\nContent-Length: 2\r\n\r\nok"),
    once(H + b"X: a\rb\r\nContent-Length: 2\r\n\r\nok"),
    once(H + b"X: \x1b]0;x\x07\r\nContent-Length: 2\r\n\r\nok"),
    once(H + b"X: a\0b\r\nContent-Length: 2\r\n\r\nok"),
    once(H + b"X: 1\r\n" * 1000 + b"Content-Length: 2\r\n\r\nok"),
    once(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"),
    once(b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
    once(H + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
    then(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    then(H, b"X: 1\r\n"),
    then(H + b"X: ", b"x" * 1000),
    then(H + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 1000),
]


def test_an_answer_that_is_none_is_502(front):
    raw = Raw(**{"x%d" % number: answer for number, answer in enumerate(NO_ANSWERS)})
    balancer = front(raw, retries=0)
    for number, answer in enumerate(NO_ANSWERS):
        assert code(call(balancer.url + "/x%d" % number, {})) == (502, "backend_broke"), answer[0][0][:100]
    assert raw.requests == len(NO_ANSWERS) and raw.sent < 64 << 20  # what sockets hold, of those without an end


@pytest.mark.parametrize(
    "answer",
    [
        then(b"", b"H", 0.05),
        then(H + b"X: ", b"x", 0.05),
        then(H + b"Content-Length: 1000000\r\n\r\n", b"x", 0.05),
    ],
)
def test_an_answer_that_drips_is_504_in_time(front, answer, monkeypatch):
    monkeypatch.setattr("core.http.answers._HEAD_SECONDS", 0.3)
    monkeypatch.setattr(relaying, "_HELD_RATE", 1 << 30)
    begun = time.monotonic()
    answer = call(front(Raw(x=answer), timeout=0.5).url + "/x", {})
    assert answer.status in (502, 504) and time.monotonic() - begun < PATIENCE / 2


@pytest.mark.parametrize("more, pause", [(b"x" * 65536, 0.0), (b"x", 0.05)])
@pytest.mark.parametrize("status", [502, 503])
def test_a_refusal_without_an_end_is_a_short_one_of_ours(front, monkeypatch, status, more, pause):
    monkeypatch.setattr(relaying, "_REFUSAL_SECONDS", 0.3)
    head = b"HTTP/1.1 %d No\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\n\r\n" % status
    raw = Raw(x=then(head, more, pause))
    balancer = front(raw)
    answer = call(balancer.url + "/x", {})
    assert code(answer) == (status, "backend_refused") and len(answer.body) < 1000
    assert answer.headers["Content-Type"] == "application/json" and not answer.headers["Content-Encoding"]
    assert raw.sent < 16 << 20
    wait_until(lambda: balancer.status()["backends"][0]["in_flight"] == 0)


def test_only_what_is_meant_for_the_client_reaches_it(front):
    head = (
        H + b"Connection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nX-ComeAPI-Backend: http://evil\r\n"
        b"x-comeapi-queue-ms: 99999999\r\nX-COMEAPI-Anything: 1\r\nAccess-Control-Allow-Origin: http://evil\r\n"
        b"Server: evil\r\nX-Mine: \xfc\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 2\r\n\r\nok"
    )
    raw = Raw(x=once(head))
    answer = call(front(raw).url + "/x", {})
    headers = [(name.lower(), value) for name, value in answer.headers.items()]
    names = [name for name, _ in headers]
    assert answer.body == b"ok" and answer.headers["X-Mine"] == "ü"
    assert answer.headers.get_all("X-ComeAPI-Backend") == [raw.url] and names.count("set-cookie") == 2
    assert len(answer.headers.get_all("X-ComeAPI-Queue-Ms")) == 1 and answer.headers["Server"] == "ComeAPI"
    assert not {"x-hop", "keep-alive", "x-comeapi-anything", "access-control-allow-origin"} & set(names)


def test_an_early_refusal_of_a_large_body_reaches_the_client(front):
    """A Raw reads a request's head and no more; what the kernel holds of the body is reset."""
    raw = Raw(x=ok(b"much", b"413 Content Too Large"))
    balancer = front(raw, max_body=16 << 20)
    answer = call(balancer.url + "/x", b"x" * (12 << 20))
    assert (answer.status, answer.body, raw.requests) == (413, b"much", 1)
    assert balancer.status()["healthy_backends"] == 1


def test_a_client_that_leaves_while_its_body_is_sent_on_is_noticed(front):
    """The backend takes nothing; the client leaves; its slot is free again, long before --timeout."""
    raw = Raw(x=then(b"", b"", 0.05))
    balancer = front(raw, max_body=16 << 20)
    body = b"x" * (12 << 20)
    client = http.client.HTTPConnection("127.0.0.1", balancer.service.port, timeout=PATIENCE)
    client.request("POST", "/x", body)
    wait_until(lambda: raw.requests and balancer.status()["backends"][0]["in_flight"] == 1)
    client.close()
    wait_until(lambda: balancer.status()["backends"][0]["in_flight"] == 0, timeout=10)


# ---------------------------------------------------------------------------------------------------- probes


def pages(balancer):
    """Return the balancer's own pages; all of them must be there, and hold JSON that any parser takes."""
    found = {}
    for path in ("/status", "/models", "/v1/models", "/", "/health"):
        answer = call(balancer.url + path)
        assert answer.status in (200, 503), (path, answer.body)
        found[path] = json.loads(answer.body.decode("utf-8"), parse_constant=pytest.fail)
    metrics = call(balancer.url + "/metrics")
    assert metrics.status == 200 and metrics.body.decode("utf-8").isascii()
    return found


def deep(depth):
    return b'{"a":' * depth + b"1" + b"}" * depth


HEALTH = [
    (b'{"model": "\\ud800", "slots": 4}', 4),
    (b'{"model": "' + b"m" * 1000000 + b'", "slots": 4}', 4),
    (b'{"model": "a\\u0000\\u001b[31m\\n", "slots": 4}', 4),
    (b'{"model": {"a": []}, "slots": 4, "pid": {"a": 1}}', 4),
    (b'{"slots": 1e999}', 1),
    (b'{"slots": -1}', 1),
    (b'{"slots": true}', 1),
    (b'{"slots": 1' + b"0" * 30 + b"}", 1),
    (b'{"slots": 1' + b"0" * 5000 + b"}", 1),
    (b'{"slots": NaN, "pid": Infinity}', 1),
    (b'{"slots": 4, "pid": ' + deep(900) + b"}", 4),
    (deep(100000), 1),
    (b"[" * 100000, 1),
    (b"\xff\xfe", 1),
    (b"[]", 1),
    (b"null", 1),
    (b"", 1),
]


def test_whatever_a_probe_is_told_the_balancers_pages_can_be_written(front):
    balancer = front(*[Raw(health=ok(health), x=ok(b"fine")) for health, _ in HEALTH])
    for (health, slots), backend in zip(HEALTH, pages(balancer)["/status"]["backends"]):
        assert backend["healthy"] and backend["capacity"] == slots and not backend["model"], health[:100]
    assert {call(balancer.url + "/x", {}).body for _ in HEALTH} == {b"fine"}


MODELS = [
    b'{"models": [{"name": "\\ud800"}, {"name": "m"}]}',
    b'{"models": [{"name": "' + b"m" * 900000 + b'"}, {"name": "m"}]}',
    b'{"models": [{"name": "m", "size": 1e999, "x": "\\udfff", "\\ud801": ' + deep(900) + b"}]}",
    b'{"models": [{"name": 7}, 7, null, [], {"name": "m", "loaded": {}}]}',
    b'{"data": [{"id": "m", "object": "x", "created": 1e999}]}',
    b'{"models": ' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"models": {"a": 1}}',
    b'{"models": "text"}',
]


def test_whatever_models_a_backend_lists_the_balancers_pages_can_be_written(front):
    raws = [Raw(models=ok(models.replace(b'"m"', b'"m%d"' % n))) for n, models in enumerate(MODELS)]
    listed = [each["name"] for each in pages(front(*raws))["/models"]["models"]]
    assert listed == sorted("m%d" % n for n, models in enumerate(MODELS) if b'"m"' in models)


def test_a_reason_of_any_kind_can_be_written(front):
    error = b'{"error": {"message": "\\ud800\\u001b' + b"x" * 100000 + b'"}}'
    balancer = front(Raw(health=ok(error, b"500 Oops")))
    (backend,) = pages(balancer)["/status"]["backends"]
    assert not backend["healthy"] and len(backend["why"]) < 300


ENDLESS = [
    then(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    then(H + b"X: ", b"x" * 1000),
    then(H + b"\r\n{", b" " * 65536),
    then(H + b"Content-Length: 99999999999\r\n\r\n", b" " * 65536),
    then(H + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"T: 1\r\n"),
    then(b"HTTP/1.1 503 No\r\n\r\n", b" " * 65536),
    then(H, b"X: 1\r\n", 0.05),
    then(H + b"\r\n{", b" ", 0.05),
    then(b"HTTP/1.1 503 No\r\n\r\n", b" ", 0.05),
]


def test_a_health_page_without_an_end_is_a_failed_probe(front):
    raws = [Raw(health=health) for health in ENDLESS]
    balancer = front(Raw(x=ok(b"fine")), *raws)
    first, *others = balancer.status()["backends"]
    assert first["healthy"] and not any(each["healthy"] for each in others)
    assert call(balancer.url + "/x", {}).body == b"fine"
    assert all(raw.sent < 24 << 20 for raw in raws)  # a megabyte, and what sockets hold, for each probe so far


def test_a_list_of_models_without_an_end_leaves_the_backend_up(front):
    raw = Raw(models=then(H + b'\r\n{"models": [', b'{"name": "m"}, '), v1_models=then(H + b"\r\n", b" ", 0.05))
    assert front(raw).status()["healthy_backends"] == 1


# ----------------------------------------------------------------------------------------------------- loops


def test_health_says_when_each_loop_has_run(front):
    found = pages(front(Raw()))["/health"]
    assert found["status"] == "ok" and found["loops"]["health"]["late"] is False
    assert found["loops"]["health"]["age"] < PATIENCE


def test_probes_go_on_after_a_time_without_threads(front, monkeypatch, caplog):
    refused = []

    class NoThread(threading.Thread):
        def start(self):
            refused.append(1)
            raise RuntimeError("can't start new thread")

    balancer = front(Raw(), health_interval=0.05)
    monkeypatch.setattr(core.balancing.health.threading, "Thread", NoThread)
    monkeypatch.setattr(core.balancing.health, "_PATIENCE", 0.01)
    monkeypatch.setattr(balancer._health.loop, "interval", 0.01)
    monkeypatch.setattr("core.balancing.probing.LOOK_SECONDS", 0.05)
    wait_until(lambda: len(refused) > 3)
    monkeypatch.undo()
    checked = balancer.status()["backends"][0]["last_check"]
    wait_until(lambda: balancer.status()["backends"][0]["last_check"] > checked)
    told = [record for record in caplog.records if "can't start new thread" in record.getMessage()]
    assert len(told) == 1


def test_a_probe_that_fails_in_an_unforeseen_way_is_made_again(front, monkeypatch, caplog):
    front(Raw(), health_interval=0.05)
    asked, original = [], core.balancing.health.Health.ask

    def ask(self, url, headers):
        asked.append(1)
        if len(asked) < 3:
            raise MemoryError()
        return original(self, url, headers)

    monkeypatch.setattr(core.balancing.health.Health, "ask", ask)
    monkeypatch.setattr("core.balancing.probing.LOOK_SECONDS", 0.05)
    wait_until(lambda: len(asked) > 4)
    assert len([record for record in caplog.records if "MemoryError" in record.getMessage()]) == 1


def test_a_balancer_whose_health_thread_is_dead_says_503(front, monkeypatch):
    balancer = front(Raw())
    assert [call(balancer.url + path).status for path in ("/health", "/live")] == [200, 200]
    monkeypatch.setattr(Loop, "age", lambda loop: 1000.0)
    assert code(call(balancer.url + "/live")) == (503, "health_late")
    answer = call(balancer.url + "/health")
    assert code(answer) == (503, "health_late") and answer.json["loops"]["health"]["late"] is True


def test_a_server_of_ours_is_known_to_answer_at_once():
    routes = [Route("GET", "/health", lambda request: json_reply({"slots": 4, "pid": 7}))]
    other = [Route("GET", "/health", lambda request: Reply(b"{}"))]
    for kind, wanted in ((routes, True), (other, False)):
        service = Service(ServerConfig(), kind).start()
        balancer = Balancer(Config(port=0, backend=(service.url,))).start()
        try:
            wait_until(lambda: balancer.status()["healthy_backends"])
            assert balancer.pool.everyone()[0].prompt is wanted
        finally:
            balancer.stop(0)
            service.drain(0)
