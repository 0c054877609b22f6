"""Requests that end backends: two processes at most, and the innocent ones beside them survive."""

import json
import os
import socket
import subprocess
import sys
import threading

import pytest
from conftest import ROOT, call, free_ports, in_parallel, wait_until

from balancer import Balancer, Config
from core.balancing.quarantine import Quarantine, has_died
from core.errors import APIError
from core.http import routing, server
from core.http.client import Client
from core.http.failures import Broken
from core.http.messages import json_reply

POISON = {"n": 0, "seconds": 0.1, "text": "POISON"}


class Mortal:
    """A backend's process: started again when it has ended, where `lives` are left."""

    def __init__(self, lives=1):
        self.port, self.lives, self.deaths = free_ports(1), lives, 0
        self.url = "http://127.0.0.1:%d" % self.port
        self._closed = False
        self._start()
        threading.Thread(target=self._watch, daemon=True).start()

    def _start(self):
        self.process = subprocess.Popen(
            [sys.executable, os.path.join(ROOT, "tests", "chaos_backend.py"), str(self.port)]
        )

    def _watch(self):
        while self.lives:
            self.process.wait()
            if self._closed:
                return
            self.deaths += 1
            self.lives -= 1
            if self.lives:
                self._start()

    def close(self):
        self._closed = True
        self.process.kill()
        self.process.wait()


@pytest.fixture
def front():
    """Start so many backends with so many lives, and a balancer in front of them that knows them to be up."""
    things = []

    def make(count, lives=1, **settings):
        backends = [Mortal(lives) for _ in range(count)]
        things.extend(backends)
        urls = tuple(each.url for each in backends)
        balancer = Balancer(Config(port=0, backend=urls, **dict({"health_interval": 0.2}, **settings))).start()
        things.append(balancer)
        wait_until(lambda: balancer.status()["healthy_backends"] == count)
        return balancer, backends

    yield make
    for thing in reversed(things):
        thing.stop(0) if isinstance(thing, Balancer) else thing.close()


def deaths(backends):
    return sum(each.deaths for each in backends)


def sent(balancer):
    return sum(each["requests"] for each in balancer.status()["backends"])


def busy(balancer):
    """Return the indices of the backends that have a request."""
    return [index for index, each in enumerate(balancer.status()["backends"]) if each["in_flight"]]


def killed(answer):
    return answer.status == 500 and answer.json["error"]["code"] == "backend_killed"


# ------------------------------------------------------------------------------------------ poison, for real


@pytest.mark.parametrize("policy", ["round-robin", "prefix"])
def test_poison_ends_two_processes_at_most_and_the_innocent_get_their_answers(front, policy):
    balancer, backends = front(3, policy=policy)
    bodies = [{"n": n, "seconds": 0.3} for n in range(1, 7)]
    bodies.insert(3, POISON)
    answers = in_parallel(lambda body: call(balancer.url + "/plain", body), bodies)
    guilty = answers.pop(3)
    assert killed(guilty) and "Two backends died" in guilty.json["error"]["message"]
    assert [answer.status for answer in answers] == [200] * 6
    assert [answer.json["echo"] for answer in answers] == list(range(1, 7))
    wait_until(lambda: deaths(backends) == 2)
    before = sent(balancer)
    assert killed(call(balancer.url + "/plain", POISON)) and sent(balancer) == before
    assert call(balancer.url + "/plain", {"n": 9}).status == 200 and deaths(backends) == 2


def test_a_single_backend_that_comes_back_meets_poison_twice_and_answers_the_others(front):
    balancer, (backend,) = front(1, lives=9)
    bodies = [POISON, {"n": 1, "seconds": 0.3}, {"n": 2, "seconds": 0.3}]
    answers = in_parallel(lambda body: call(balancer.url + "/plain", body), bodies)
    assert killed(answers[0]) and [answer.status for answer in answers[1:]] == [200, 200]
    assert backend.deaths == 2


def test_equal_poison_sent_at_once_is_found_out_by_the_first_that_dies_alone(front):
    balancer, backends = front(2, lives=9)
    answers = in_parallel(lambda body: call(balancer.url + "/plain", body), [POISON] * 6)
    assert all(killed(answer) for answer in answers)
    assert deaths(backends) <= 3  # two that ran side by side, and one alone


def test_a_stream_that_ends_its_backend_runs_alone_when_it_is_asked_for_again_and_then_never_more(front):
    balancer, backends = front(3)
    codes = []
    for _ in range(2):
        last = call(balancer.url + "/stream", POISON).body.decode().split("\n\n")[-2]
        codes.append(json.loads(last[len("data: ") :])["error"]["code"])
    assert codes == ["backend_broke", "backend_killed"]
    before = sent(balancer)
    assert killed(call(balancer.url + "/stream", POISON)) and sent(balancer) == before
    wait_until(lambda: deaths(backends) == 2)


def test_a_suspect_survives_it_when_all_backends_are_ended_at_once_though_the_others_are_idle(front):
    balancer, backends = front(3, lives=9)
    answers = []
    asking = threading.Thread(target=lambda: answers.append(call(balancer.url + "/plain", {"n": 7, "seconds": 1.5})))
    asking.start()
    wait_until(lambda: busy(balancer))
    first = busy(balancer)
    backends[first[0]].process.kill()
    wait_until(lambda: busy(balancer) not in ([], first))
    for backend in backends:
        backend.process.kill()
    asking.join()
    assert (answers[0].status, answers[0].json["echo"]) == (200, 7)


def test_deaths_and_refusals_are_counted(front):
    balancer, _ = front(2)
    call(balancer.url + "/plain", POISON)
    lines = call(balancer.url + "/metrics").body.decode().splitlines()
    assert 'comeapi_deaths_total{how="beside others"} 1' in lines
    assert 'comeapi_deaths_total{how="alone"} 1' in lines
    assert 'comeapi_retries_total{why="died"} 1' in lines


def test_a_suspect_waits_for_an_idle_backend_no_longer_than_the_queue_lets_it(front):
    balancer, _ = front(2, queue_timeout=0.5)
    with socket.create_connection(("127.0.0.1", balancer.service.port)) as sock:
        body = b'{"n": 1, "seconds": 30}'
        sock.sendall(b"POST /plain HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: sum(each["in_flight"] for each in balancer.status()["backends"]) == 1)
        answer = call(balancer.url + "/plain", POISON)
        assert answer.status == 503 and answer.json["error"]["code"] == "queue_timeout"
        assert [each["healthy"] for each in balancer.status()["backends"]].count(True) == 1
        assert call(balancer.url + "/plain", {"n": 2}).status == 200  # nothing is kept for it any more


# ------------------------------------------------------------------------------------ what counts as a death


class Kept:
    """A server that answers its first request, and closes everything at the second."""

    def __init__(self):
        self.sock = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self.sock.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        connection, _ = self.sock.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            connection.recv(65536)
            self.sock.close()


@pytest.fixture
def client():
    client = Client()
    yield client
    client.close()


def test_a_server_that_ends_at_a_request_on_a_kept_connection_has_seen_that_request(client):
    server = Kept()
    assert client.open(server.url + "/x").read_and_close() == b"{}"
    with pytest.raises(Broken):
        client.open(server.url + "/x")
    assert has_died(client, server.url, {}, None)


@pytest.mark.parametrize(
    "health, life, died",
    [
        ({"pid": 1}, 1, False),
        ({"pid": 1}, 2, True),
        ({"pid": 1}, None, False),
        ({}, 1, False),
        ({}, None, False),
    ],
)
def test_a_server_that_answers_has_died_only_where_it_is_another_process(client, health, life, died):
    route = routing.Route("GET", "/health", lambda request: json_reply(health, 503))
    service = server.Service(server.ServerConfig(), [route])
    try:
        assert has_died(client, service.start().url, {}, life) is died
    finally:
        service.drain(0)


def test_a_server_that_is_too_slow_to_tell_has_not_died(client, monkeypatch):
    monkeypatch.setattr("core.balancing.quarantine._PROBE_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not has_died(client, "http://127.0.0.1:%d" % silent.getsockname()[1], {}, 1)


def test_a_port_that_goes_on_breaking_off_belongs_to_nobody(client, monkeypatch):
    """As a forwarded port looks whose process is gone."""
    monkeypatch.setattr("core.balancing.quarantine.CERTAIN_AFTER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as forwarder:

        def accept():
            while True:
                try:
                    forwarder.accept()[0].close()
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        assert has_died(client, "http://127.0.0.1:%d" % forwarder.getsockname()[1], {}, 1)


# --------------------------------------------------------------------------------------------- what is known


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_death_beside_others_makes_a_suspect_and_one_alone_a_guilty_one():
    quarantine = Quarantine()
    mark = quarantine.fingerprint("POST", "/x", b"{}")
    assert quarantine.empty and not quarantine.check(mark)
    assert not quarantine.died(mark, False, "a") and quarantine.check(mark)
    assert not quarantine.died(mark, False, "b") and quarantine.check(mark)
    assert quarantine.died(mark, True, "c")
    with pytest.raises(APIError) as caught:
        quarantine.check(mark)
    assert (caught.value.status, caught.value.code) == (500, "backend_killed")
    quarantine.passed(mark)  # an equal one that was under way
    with pytest.raises(APIError):
        quarantine.check(mark)


def test_one_that_dies_alone_while_others_die_elsewhere_is_excused_twice():
    quarantine = Quarantine()
    mark = quarantine.fingerprint("POST", "/x", b"{}")
    assert not quarantine.died(mark, False, "a", {"a", "b", "c"})
    assert not quarantine.died(mark, True, "b", {"a", "b", "c"})
    assert not quarantine.died(mark, True, "a", {"a", "c"}) and quarantine.check(mark)
    assert quarantine.died(mark, True, "b", {"a", "b", "c"})


def test_what_died_under_equal_requests_excuses_none_of_them():
    quarantine = Quarantine()
    mark = quarantine.fingerprint("POST", "/x", b"{}")
    assert not quarantine.died(mark, False, "a") and not quarantine.died(mark, False, "b")
    assert quarantine.died(mark, True, "c", {"a", "b", "c"})


def test_what_died_under_it_long_ago_is_no_reason_why_it_died_now():
    clock = Clock()
    quarantine = Quarantine(clock=clock)
    mark = quarantine.fingerprint("POST", "/x", b"{}")
    assert not quarantine.died(mark, False, "a")
    clock.now = 3.0
    assert not quarantine.died(mark, True, "b", {"a", "b"})


def test_a_suspect_that_runs_to_its_end_is_none_any_more():
    quarantine = Quarantine()
    mark = quarantine.fingerprint("POST", "/x", b"{}")
    quarantine.died(mark, False, "a")
    quarantine.passed(mark)
    assert quarantine.empty and not quarantine.check(mark)


def test_what_is_known_is_forgotten_after_a_while_and_is_never_much():
    clock = Clock()
    quarantine = Quarantine(size=3, seconds=600, clock=clock)
    marks = [quarantine.fingerprint("POST", "/x", b"%d" % n) for n in range(5)]
    for mark in marks:
        quarantine.died(mark, False, "a")
    assert [quarantine.check(mark) for mark in marks] == [False, False, True, True, True]
    clock.now = 600.0
    assert not any(quarantine.check(mark) for mark in marks) and quarantine.empty


def test_only_equal_requests_have_the_same_fingerprint_and_only_here():
    quarantine = Quarantine()
    asked = [("POST", "/x", b"{}"), ("POST", "/y", b"{}"), ("PUT", "/x", b"{}"), ("POST", "/x", b"{} ")]
    assert len({quarantine.fingerprint(*each) for each in asked}) == 4
    assert quarantine.fingerprint(*asked[0]) == quarantine.fingerprint(*asked[0])
    assert quarantine.fingerprint(*asked[0]) != Quarantine().fingerprint(*asked[0])
