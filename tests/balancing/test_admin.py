"""The admin API, the backends file and registration: who is there, changed while requests run."""

import itertools
import os
import signal
import socket
import threading
import time
from types import SimpleNamespace

import pytest
from conftest import PATIENCE, call, free_ports, no_such_name, wait_until
from streams import event_stream

from balancer import Balancer, Config
from core.balancing.admin import is_admin_path
from core.balancing.registration import Registrar, checked_balancer, own_url, reachable_url, take_leave
from core.http import server
from core.http.client import Client
from core.http.messages import Stream, json_reply
from core.http.routing import Route
from core.http.server import Service

KEY = {"Authorization": "Bearer boss"}


class Streamer:
    """A backend with eight slots: POST /stream counts until it is told to stop."""

    def __init__(self):
        self.stop = threading.Event()
        self.begun = threading.Semaphore(0)
        self.requests = 0
        routes = [
            Route("GET", "/health", lambda request: json_reply({"slots": 8})),
            Route("POST", "/stream", lambda request: event_stream(self._count())),
            Route("POST", "/x", lambda request: json_reply({"from": self.url})),
        ]
        self.service = Service(server.ServerConfig(), routes).start()
        self.url = self.service.url

    def _count(self):
        self.requests += 1
        for number in range(10**6):
            yield number
            self.begun.release()
            if self.stop.wait(0.01):
                return

    def close(self):
        self.stop.set()
        self.service.drain(0)


@pytest.fixture
def backends():
    made = [Streamer() for _ in range(3)]
    yield made
    for each in made:
        each.close()


@pytest.fixture
def balancer(backends):
    balancer = Balancer(Config(port=0, backend=(backends[0].url,), admin_key=("boss",), api_key=("client",))).start()
    wait_until(lambda: balancer.status()["healthy_backends"] == 1)
    yield balancer
    balancer.stop(0)


def admin(balancer, body=None, method=None, query="", headers=KEY):
    return call(balancer.url + "/admin/backends" + query, body, headers, method)


def ask(balancer):
    return call(balancer.url + "/x", {}, {"X-Api-Key": "client"})


def urls(balancer):
    return [each["url"] for each in balancer.status()["backends"]]


class Reading(threading.Thread):
    """A client that reads a stream of numbers to its end."""

    def __init__(self, balancer_url, headers=None):
        super().__init__(daemon=True)
        self.url, self.headers, self.answer = balancer_url + "/stream", headers, None
        self.start()

    def run(self):
        self.answer = call(self.url, {}, self.headers)

    def whole(self):
        """Whether every number came, in order, to the stream's own end."""
        self.join(PATIENCE)
        return self.answer.events == list(range(len(self.answer.events)))


# -------------------------------------------------------------------------------------------------- its key


def test_without_an_admin_key_there_is_no_admin_api(backends):
    balancer = Balancer(Config(port=0, backend=(backends[0].url,))).start()
    for method in ("GET", "POST", "DELETE"):
        answer = call(balancer.url + "/admin/backends", {"url": "http://x"} if method == "POST" else None, KEY, method)
        assert answer.status == 404 and answer.json["error"]["code"] == "unknown_path"
    balancer.stop(0)


@pytest.mark.parametrize("headers", [{}, {"X-Api-Key": "client"}, {"X-Api-Key": "bosss"}, {"Authorization": "boss"}])
def test_a_clients_key_is_no_admin_key(balancer, headers):
    assert admin(balancer, headers=headers).status == 401
    assert admin(balancer, {"url": "http://x"}, headers=headers).status == 401
    assert admin(balancer, method="DELETE", query="?url=http://x", headers=headers).status == 401
    assert len(urls(balancer)) == 1


def test_the_admin_key_is_no_clients_key(balancer):
    assert call(balancer.url + "/status", headers=KEY).status == 401


# ---------------------------------------------------------------------------------------------- what it does


def test_a_backend_is_added_used_and_shown(balancer, backends):
    answer = admin(balancer, {"url": backends[1].url, "slots": 3, "weight": 2})
    assert answer.status == 201 and answer.json["url"] == backends[1].url
    wait_until(lambda: balancer.status()["healthy_backends"] == 2)
    assert {ask(balancer).json["from"] for _ in range(6)} == {backends[0].url, backends[1].url}
    shown = admin(balancer).json["backends"]
    assert [(each["url"], each["capacity"], each["weight"]) for each in shown] == [
        (backends[0].url, 8, 1.0),
        (backends[1].url, 3, 2.0),
    ]


def test_weight_and_slots_change_and_what_is_not_named_stays(balancer, backends):
    assert admin(balancer, {"url": backends[0].url, "weight": 5}).status == 200
    answer = admin(balancer, {"url": backends[0].url, "slots": 2})
    assert (answer.json["weight"], answer.json["capacity"]) == (5.0, 2)


def test_a_drained_backend_finishes_its_streams_and_gets_no_others(balancer, backends):
    stream = Reading(balancer.url, {"X-Api-Key": "client"})
    assert backends[0].begun.acquire(timeout=PATIENCE)
    admin(balancer, {"url": backends[1].url})
    wait_until(lambda: balancer.status()["healthy_backends"] == 2)
    assert admin(balancer, {"url": backends[0].url, "drain": True}).json["state"] == "draining"
    assert {ask(balancer).json["from"] for _ in range(6)} == {backends[1].url}
    admin(balancer, {"url": backends[0].url, "drain": False})
    assert {ask(balancer).json["from"] for _ in range(6)} == {backends[0].url, backends[1].url}
    backends[0].stop.set()
    assert stream.whole()


def test_a_removed_backend_loses_no_stream(balancer, backends):
    admin(balancer, {"url": backends[1].url})
    wait_until(lambda: balancer.status()["healthy_backends"] == 2)
    stream = Reading(balancer.url, {"X-Api-Key": "client"})
    wait_until(lambda: backends[0].requests + backends[1].requests)
    busy, other = backends[:2] if backends[0].requests else backends[1::-1]
    answer = admin(balancer, method="DELETE", query="?url=" + busy.url)
    assert answer.status == 202 and not answer.json["removed"]
    assert {ask(balancer).json["from"] for _ in range(4)} == {other.url}
    busy.stop.set()
    assert stream.whole()
    wait_until(lambda: urls(balancer) == [other.url])
    assert admin(balancer, method="DELETE", query="?url=" + busy.url).status == 404


@pytest.mark.parametrize(
    "body, field",
    [
        ({}, "url"),
        ({"url": 7}, "url"),
        ({"url": "file:///etc/passwd"}, "url"),
        ({"url": "gopher://x"}, "url"),
        ({"url": "http://x/path"}, "url"),
        ({"url": "http://user:word@x"}, "url"),
        ({"url": "http://h:x"}, "url"),
        ({"url": "http://:p@h"}, "url"),
        ({"url": "http://h:0"}, "url"),
        ({"url": "http://h:65536"}, "url"),
        ({"url": "http://a b"}, "url"),
        ({"url": "http://a\r\nX: y"}, "url"),
        ({"url": "http://::1:80"}, "url"),
        ({"url": "http://a..b"}, "url"),
        pytest.param({"url": "x" * 3_000_000}, "url", id="3 MB"),
        pytest.param({"url": "http://x", "y" * 3_000_000: 1}, "y" * 200 + "…", id="a field of 3 MB"),
        ({"url": "http://x", "key": 7}, "key"),
        ({"url": "http://x", "key": "sec ret"}, "key"),
        ({"url": "http://x", "key": "boss"}, "key"),
        ({"url": "http://x", "pass_key": 1}, "pass_key"),
        ({"url": "http://x", "slots": 0}, "slots"),
        ({"url": "http://x", "weight": -1}, "weight"),
        ({"url": "http://x", "drain": "yes"}, "drain"),
        ({"url": "http://x", "ttl": 0}, "ttl"),
        ({"url": "http://x", "wieght": 1}, "wieght"),
    ],
)
def test_what_is_wrong_with_a_backend_is_said(balancer, body, field):
    answer = admin(balancer, body)
    assert answer.status == 400 and answer.json["error"]["param"] == field
    assert len(answer.body) < 1000 and b"sec ret" not in answer.body
    assert len(urls(balancer)) == 1


@pytest.mark.parametrize(
    "path",
    ["/admin", "/admin/", "/admin/backends/", "//admin/backends", "/admin//backends", "/admin%2Fbackends", "/%61dmin",
     "/%2561dmin/x", "/Admin/backends", "/ADMIN", "/admin/../admin/backends", "/admin/x", "/./admin", "/v1/../admin/x",
     "/v1/..%2fadmin", "/v1/%2e%2e/admin", "/v1/%252e%252e/admin", "/..;/admin", "/v1/..;a=b/admin", "/admin;a=b/x",
     "/\\admin", "/%5cadmin", "/x\\..\\admin", "/administration", "/admin?x=1", "/admin%3fx", "/admin%00", "/%20admin",
     "/%09admin", "/x%2f..%2f..%2fadmin", "/admin/../v1", "/../../admin", "/%" + "25" * 20 + "61dmin", "*/../admin"],
)  # fmt: skip
def test_no_spelling_of_admin_reaches_a_backend(path):
    assert is_admin_path(path)


@pytest.mark.parametrize(
    "path", ["/", "/x", "/v1/admin", "/v1/chat/completions", "/x?/admin", "/x?y=/../admin", "/x/../y", "/ad/min",
             "/v1/%61", "/api/show%20", "/models/admin/../..", "*"]
)  # fmt: skip
def test_other_paths_are_the_backends(path):
    assert not is_admin_path(path)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "BREW"])
def test_the_admin_key_is_shown_to_no_backend_whatever_the_path_looks_like(backends, method):
    seen = []
    routes = [Route("GET", "/health", lambda request: json_reply({"slots": 8}))]
    nosy = Service(server.ServerConfig(), routes, lambda request: seen.append(request.target) or json_reply({}))
    balancer = Balancer(Config(port=0, backend=(nosy.start().url + ",pass-key",), admin_key=("boss",))).start()
    wait_until(lambda: balancer.status()["healthy_backends"] == 1)
    del seen[:]
    try:
        for path in ("/admin", "/admin/backends/", "//admin/backends", "/v1/../admin/x", "/Admin%2fbackends"):
            with socket.create_connection(("127.0.0.1", balancer.service.port)) as sock:
                head = "%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer boss\r\nContent-Length: 0\r\n\r\n"
                sock.sendall((head % (method, path)).encode())
                assert sock.recv(65536).startswith(b"HTTP/1.1 404 ")
    finally:
        balancer.stop(0)
        nosy.drain(0)
    assert not [path for path in seen if "dmin" in path]


def test_a_backends_key_is_taken_as_it_stands_used_and_told_to_nobody(balancer):
    keys = []
    locked = Service(server.ServerConfig(api_key=("@its-own",)), [
        Route("GET", "/health", lambda request: keys.append(request.headers.get("authorization")) or json_reply({}),
              public=True),
        Route("POST", "/x", lambda request: json_reply({"from": "locked"})),
    ]).start()  # fmt: skip
    try:
        answer = admin(balancer, {"url": locked.url, "key": "@its-own"})
        assert answer.status == 201 and b"its-own" not in answer.body + admin(balancer).body
        wait_until(lambda: balancer.status()["healthy_backends"] == 2)
        assert "locked" in {ask(balancer).json["from"] for _ in range(4)} and set(keys) == {"Bearer @its-own"}
    finally:
        locked.drain(0)


# ---------------------------------------------------------------------------------------------- registration


def test_a_backend_that_asks_for_a_key_registers_with_it(balancer, backends):
    registrar = Registrar(balancer.url, backends[1].url, "boss", 0.1, own_key="its-own").start()
    wait_until(lambda: len(urls(balancer)) == 2)
    assert balancer.pool.find(backends[1].url).spec.key == "its-own"
    registrar.stop()


def test_a_backend_registers_itself_and_takes_itself_away(balancer, backends):
    registrar = Registrar(balancer.url, backends[1].url, "boss", 0.1).start()
    wait_until(lambda: balancer.status()["healthy_backends"] == 2)
    assert balancer.status()["backends"][1]["source"] == "registration"
    registrar.stop()
    wait_until(lambda: urls(balancer) == [backends[0].url])


def test_a_backend_that_comes_back_at_another_port_takes_its_old_place(balancer, backends):
    before, after = ({"url": each.url, "ttl": 15, "name": "node1"} for each in backends[1:])
    assert [admin(balancer, before).status for _ in range(2)] == [201, 200]
    assert admin(balancer, dict(after, name="node2", ttl=1)).status == 201  # another name is another backend
    assert admin(balancer, after).status == 200
    wait_until(lambda: urls(balancer) == [backends[0].url, after["url"]])
    assert admin(balancer).json["backends"][1]["name"] == "node1"
    old = admin(balancer, before)  # it had not died, it was only slow
    error = old.json["error"]
    assert old.status == 409 and error["code"] == "name_taken" and after["url"] in error["message"]
    admin(balancer, method="DELETE", query="?url=" + after["url"])
    assert admin(balancer, before).status == 201


def test_a_backend_registers_by_its_name(balancer, backends):
    registrar = Registrar(balancer.url, backends[1].url, "boss", 0.1, name="node1").start()
    wait_until(lambda: len(urls(balancer)) == 2)
    assert balancer.status()["backends"][1]["name"] == "node1"
    registrar.stop()


@pytest.mark.parametrize("name", [7, "a\nb", "x" * 1025])
def test_a_name_that_can_not_be_shown_is_refused(balancer, name):
    answer = admin(balancer, {"url": "http://x", "name": name})
    assert answer.status == 400 and answer.json["error"]["param"] == "name"


def test_a_request_that_comes_before_the_first_registration_waits_for_it(backends):
    """A balancer that is started again knows nobody until the next heartbeats."""
    balancer = Balancer(Config(port=0, backends=0, admin_key=("boss",), recovery_timeout=20)).start()
    try:
        answers = []
        early = threading.Thread(target=lambda: answers.append(ask(balancer)))
        early.start()
        wait_until(lambda: balancer.pool.queued() == 1)
        registrar = Registrar(balancer.url, backends[0].url, "boss", 0.1).start()
        early.join(PATIENCE)
        assert answers[0].status == 200
        registrar.stop()
        balancer.pool.expecting = 0.0  # long after the start
        wait_until(lambda: not urls(balancer))
        assert ask(balancer).status == 503
    finally:
        balancer.stop(0)


def test_a_backend_that_ends_waits_only_for_a_moment_for_a_balancer_that_does_not_answer():
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(8)
        url = "http://127.0.0.1:%d" % deaf.getsockname()[1]
        registrars = [Registrar(url, "http://127.0.0.1:%d" % port, "boss").start() for port in (1, 2)]
        began = time.monotonic()
        take_leave(registrars)
        assert time.monotonic() - began < 5


def test_a_backend_whose_address_the_balancer_can_not_reach_does_not_start():
    config = SimpleNamespace(host="127.0.0.1", tls_cert="")
    assert own_url("http://localhost:9000", config, 8080) in ("http://127.0.0.1:8080", "http://[::1]:8080")
    with pytest.raises(ValueError, match="add --host 0.0.0.0"):
        own_url("http://192.0.2.1:9000", config, 8080)
    config.host, config.tls_cert = "0.0.0.0", "cert.pem"
    assert own_url("http://127.0.0.1:9000", config, 8080) == "https://127.0.0.1:8080"
    for text in ("balancer:9000", "ftp://balancer", "http://"):
        with pytest.raises(ValueError):
            checked_balancer(text)


def test_a_backend_whose_heart_stops_is_forgotten(balancer, backends):
    assert admin(balancer, {"url": backends[1].url, "ttl": 1}).status == 201
    wait_until(lambda: urls(balancer) == [backends[0].url])


def test_a_registrar_finds_a_balancer_that_comes_later(backends):
    port = free_ports(1)
    registrar = Registrar("http://127.0.0.1:%d" % port, backends[0].url, "boss", 0.05).start()
    balancer = Balancer(Config(port=port, backends=0, admin_key=("boss",))).start()
    wait_until(lambda: balancer.status()["healthy_backends"] == 1)
    balancer.stop(0)
    registrar.stop()


def test_a_backend_knows_where_the_balancer_finds_it(monkeypatch):
    assert reachable_url("http://127.0.0.1:9000", 8080) == "http://127.0.0.1:8080"
    assert reachable_url("http://localhost", 8080, "https") in ("https://127.0.0.1:8080", "https://[::1]:8080")
    monkeypatch.setattr(socket, "getaddrinfo", no_such_name)  # some resolvers take long to say so, or lie
    with pytest.raises(OSError):
        reachable_url("http://no.such.name.invalid:9000", 8080)


def test_a_registrar_with_a_wrong_key_says_so(balancer, backends, caplog):
    caplog.set_level("INFO")
    registrar = Registrar(balancer.url, backends[1].url, "wrong", 0.05).start()
    wait_until(lambda: "refuses: 401" in caplog.text)
    registrar.stop()
    assert len(urls(balancer)) == 1 and caplog.text.count("refuses: 401") == 1  # said once, not at every beat


def test_a_registrar_outlives_a_balancer_that_never_ends_its_answer(balancer, backends, caplog, monkeypatch):
    """And whatever else its beat runs into; it stops in time, too."""
    asked, original = [], Client.open

    def open_(client, url, *rest, **how):
        asked.extend([url] if "/admin" in url else [])
        if "/admin" in url and len(asked) == 2:
            raise MemoryError()
        return original(client, endless.url if "/admin" in url and len(asked) == 1 else url, *rest, **how)

    def flood(request):
        return Stream(b"x" * 65536 for _ in itertools.repeat(0))

    endless = Service(server.ServerConfig(), [], flood).start()
    monkeypatch.setattr(Client, "open", open_)
    registrar = Registrar(balancer.url, backends[1].url, "boss", 0.05).start()
    wait_until(lambda: balancer.status()["healthy_backends"] == 2)
    assert not registrar.loop.late() and caplog.text.count("goes on: MemoryError()") == 1
    registrar.stop()
    endless.drain(0)
    wait_until(lambda: urls(balancer) == [backends[0].url])


# ------------------------------------------------------------------------------------ the file, as a program


@pytest.fixture
def program(tmp_path, backends, start):
    path = tmp_path / "backends.txt"
    path.write_text("# ours\n%s,weight=2\n\n" % backends[0].url)
    program = start("balancer.py", "--child", "--port", 0, "--backends-file", path, "--drain-timeout", 30)
    program.path = path
    program.url = program.wait_for_event("listening")["url"]
    program.wait_for_event("up")
    return program


def known(program):
    return [each["url"] for each in call(program.url + "/status").json["backends"]]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_sighup_reads_the_backends_file_again_and_loses_no_stream(program, backends):
    stream = Reading(program.url)
    assert backends[0].begun.acquire(timeout=PATIENCE)
    program.path.write_text("%s\n%s  # new\n" % (backends[1].url, backends[2].url))
    os.kill(program.pid, signal.SIGHUP)
    wait_until(lambda: set(known(program)) == {each.url for each in backends})  # the old one drains
    assert call(program.url + "/x", {}).json["from"] != backends[0].url
    assert call(program.url + "/health").json["loops"]["reload"]["late"] is False
    backends[0].stop.set()
    assert stream.whole()
    wait_until(lambda: known(program) == [backends[1].url, backends[2].url])


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_backends_file_with_an_error_changes_nothing(program, backends):
    program.path.write_text("%s\nhttp://x,slots=many\n" % backends[1].url)
    os.kill(program.pid, signal.SIGHUP)
    wait_until(lambda: any("line 2" in line for line in program.errors))
    assert known(program) == [backends[0].url]


def test_a_backends_file_that_is_missing_is_one_clear_line(start):
    balancer = start("balancer.py", "--backends-file", "/nowhere/backends")
    assert balancer.end() == 2 and "/nowhere/backends" in balancer.errors[0] and len(balancer.errors) == 1


def test_sigterm_lets_streams_finish(program, backends):
    stream = Reading(program.url)
    assert backends[0].begun.acquire(timeout=PATIENCE)
    program.process.send_signal(signal.SIGTERM)
    program.wait_for_event("stopping")
    backends[0].stop.set()
    assert stream.whole()
    assert program.end() == 0
