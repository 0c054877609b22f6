"""Backends at the end of a long line: 50 ms for a round trip, one packet in a hundred lost, and then none at all.

Real backends in a network namespace of their own. What is measured is printed (python -m pytest -m slow -s).
"""

import http.client
import json
import os
import statistics
import threading
import time

import pytest
from certificates import MISSING, Authority
from conftest import LASTING_OPTIONS, PATIENCE, RAMBLE, Program, Streaming, call, seconds_until, wait_until
from networks import Line, Network, missing

pytestmark = pytest.mark.slow
ROUND_TRIP = 0.05
SECONDS = float(os.environ.get("COMEAPI_SOAK_SECONDS", "60"))
FAR, NEAR = "10.78.0.2", "127.0.0.1"


@pytest.fixture(scope="module")
def line():
    """A line between the machines "near" and "far"."""
    why = missing()
    if why:
        pytest.skip(why)
    with Network("near", "far") as network:
        made = Line(network, "near", "far", ROUND_TRIP / 2)
        made.network = network
        yield made
        made.close()


@pytest.fixture(scope="module")
def start_in(line):
    """Start programs on a machine; they end with this file's tests."""
    programs = []

    def start(machine, *arguments):
        with line.network.inside(machine):
            programs.append(Program(*arguments))
        return programs[-1]

    yield start
    for program in reversed(programs):
        program.close()


def backend_at(start_in, machine, host, *options):
    arguments = ("--child", "--port=0", "--host=" + host, "--threads=1", "--slots=4") + options
    program = start_in(machine, "backend.py", *arguments, *LASTING_OPTIONS)
    program.url = program.wait_for_event("listening")["url"]
    program.wait_for_event("ready")
    return program


@pytest.fixture(scope="module")
def far(start_in):
    """A backend at the line's other end."""
    return backend_at(start_in, "far", FAR)


@pytest.fixture(scope="module")
def near(start_in):
    """A backend beside the balancer."""
    return backend_at(start_in, "near", NEAR)


@pytest.fixture
def balance(line, start_in):
    """Start a balancer in front of these backends, all found up; this thread then stands beside it."""
    inside = []

    def start(urls, *options):
        balancer = start_in("near", "balancer.py", "--port=0", *["--backend=" + url for url in urls], *options)
        balancer.url = "http://" + balancer.wait_for_line("in front of").split("http://")[1].split()[0]
        inside.append(line.network.inside("near"))
        inside[-1].__enter__()
        wait_until(lambda: call(balancer.url + "/status").json["healthy_backends"] == len(urls))
        started.append(balancer)
        return balancer

    started = []
    yield start
    for place in reversed(inside):
        place.__exit__(None, None, None)
    for balancer in started:
        balancer.close()
    line.loss = 0.01


class User:
    """A client with one kept connection."""

    def __init__(self, url):
        self._connection = http.client.HTTPConnection(url.split("//")[1], timeout=PATIENCE)
        self._connection.connect()

    def ask(self, tokens=1):
        """Return the seconds that a request for so many tokens took."""
        began = time.monotonic()
        body = {"prompt": "Once", "model_name": "demo.gguf", "max_tokens": tokens, "ignore_eos": True}
        self._connection.request("POST", "/generate", json.dumps(body))
        answer = self._connection.getresponse()
        said = answer.read()
        assert answer.status == 200, said
        return time.monotonic() - began

    def close(self):
        self._connection.close()


def median_of(url, count=40):
    """Return the median of the seconds that requests take, one after another."""
    user = User(url)
    user.ask()
    took = [user.ask() for _ in range(count)]
    user.close()
    return statistics.median(took)


def test_a_request_takes_one_round_trip_more_than_to_a_near_backend(balance, line, near, far):
    """No connection is made for it, and nothing waits for an acknowledgement (Nagle's 40 ms)."""
    beside = median_of(balance([near.url]).url)
    balancer = balance([far.url])
    median_of(balancer.url, 1)
    line.connections.clear()
    took = median_of(balancer.url)
    print("one token: near %.1f ms, far %.1f ms; %d connections" % (1e3 * beside, 1e3 * took, len(line.connections)))
    assert took - beside < ROUND_TRIP + 0.025
    assert len(line.connections) <= 2  # probes may want one beside it


def test_after_a_pause_no_connection_has_to_be_made(balance, line, far):
    user = User(balance([far.url]).url)
    user.ask()
    line.connections.clear()
    took = []
    for _ in range(3):
        time.sleep(6)
        took.append(user.ask())
    user.close()
    print("after 6 s without a request: %s ms" % ["%.0f" % (1e3 * each) for each in took])
    assert not line.connections


def test_streams_flow(balance, far):
    """A packet that is lost holds those behind it back for some round trips, and no longer."""
    url = balance([far.url]).url
    connection = http.client.HTTPConnection(url.split("//")[1], timeout=PATIENCE)
    body = dict(RAMBLE, prompt="Once", model_name="demo.gguf", stream=True, max_tokens=1500)
    began = time.monotonic()
    connection.request("POST", "/generate", json.dumps(body))
    answer = connection.getresponse()
    moments = [time.monotonic()]
    while answer.read1(65536):
        moments.append(time.monotonic())
    connection.close()
    gaps = sorted(after - before for before, after in zip(moments, moments[1:]))
    print("first byte after %.0f ms; gaps: median %.1f ms, p99 %.0f ms, longest %.0f ms" % (
        1e3 * (moments[0] - began), 1e3 * statistics.median(gaps), 1e3 * gaps[int(len(gaps) * 0.99)], 1e3 * gaps[-1],
    ))  # fmt: skip
    assert len(gaps) > 500 and statistics.median(gaps) < ROUND_TRIP and gaps[-1] < 3


def crowd(line, url, seconds, users=8):
    """Let users ask for 16 tokens again and again; return the requests a second."""
    asked, enough = [], threading.Event()

    def go_on():
        with line.network.inside("near"):
            user = User(url)
            while not enough.is_set():
                asked.append(user.ask(16))
            user.close()

    threads = [threading.Thread(target=go_on, daemon=True) for _ in range(users)]
    for thread in threads:
        thread.start()
    enough.wait(seconds)
    enough.set()
    for thread in threads:
        thread.join(PATIENCE)
    return len(asked) / seconds


def test_probes_do_not_flap_and_no_request_fails(balance, line, far):
    """Also not with a probe a second, a page that watches, and a crowd that keeps the line busy."""
    balancer = balance([far.url], "--health-interval=1")
    states, enough = set(), threading.Event()

    def watch():
        with line.network.inside("near"):
            page = http.client.HTTPConnection(balancer.url.split("//")[1], timeout=PATIENCE)
            page.request("GET", "/events")
            events = page.getresponse()
            while not enough.is_set() and events.readline():
                told = call(balancer.url + "/status").json["backends"][0]
                states.add((told["state"], told["why"]))
            page.close()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    line.connections.clear()
    line.passed = line.lost = 0
    rate = crowd(line, balancer.url, SECONDS, users=5)
    enough.set()
    watcher.join(PATIENCE)
    print("%.0f s: %.0f requests/s of 5 users, %d packets of %d lost, %d connections; states %s" % (
        SECONDS, rate, line.lost, line.lost + line.passed, len(line.connections), states))  # fmt: skip
    assert {state for state, _ in states} == {"up"}
    assert not [text for text in balancer.errors if "🔴" in text]
    assert len(line.connections) <= 10 + SECONDS / 20


def test_a_line_that_goes_dead_is_found_out_and_its_answers_go_on_elsewhere(balance, line, near, far):
    balancer = balance([far.url, near.url])
    bodies = dict(RAMBLE, prompt="Once", model_name="demo.gguf", max_tokens=2000)

    def told():
        return {each["url"]: each for each in call(balancer.url + "/status").json["backends"]}

    streams = [Streaming(balancer.url + "/generate", bodies) for _ in range(2)]
    line.loss = 1.0
    took = seconds_until(lambda: told()[far.url]["state"] == "down")
    print("after %.1f s: %s" % (took, told()[far.url]["why"]))
    assert took < 15
    assert median_of(balancer.url, 5) < 1  # nobody waits for the dead one
    wait_until(lambda: told()[far.url]["in_flight"] == 0)
    for stream in streams:
        assert stream.end().events[-1]["done"] is True
    line.loss = 0.01
    wait_until(lambda: call(balancer.url + "/status").json["healthy_backends"] == 2)


@pytest.mark.skipif(bool(MISSING), reason=str(MISSING))
def test_with_certificates_on_both_sides_a_request_takes_as_long(balance, line, start_in, tmp_path, far):
    authority = Authority(tmp_path)
    cert, own = authority.certificate("far", "IP:" + FAR), authority.certificate("balancer", "DNS:balancer")
    secret = backend_at(start_in, "far", FAR, "--tls-cert=" + cert, "--client-ca=" + authority.file)
    balancer = balance([secret.url], "--backend-ca=" + authority.file, "--backend-cert=" + own)
    plain, took = median_of(balance([far.url]).url, 20), median_of(balancer.url, 20)
    print("one token: plain %.1f ms, with certificates %.1f ms" % (1e3 * plain, 1e3 * took))
    assert took - plain < ROUND_TRIP / 2
