"""A program that is to stop: those that check /health are told first, and everybody else is served meanwhile."""

import contextlib
import http.client
import signal
import threading

import pytest
from conftest import PATIENCE, call, wait_until
from streams import event_stream

from balancer import Balancer, Config
from core.http import server
from core.http.messages import json_reply
from core.http.routing import Route

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows ends programs in other ways")


@pytest.fixture
def backend():
    """A backend whose streams end when the test says so."""
    enough = threading.Event()

    def words():
        yield "begun"
        enough.wait(PATIENCE)
        yield "ended"

    routes = [
        Route("GET", "/health", lambda request: json_reply({"slots": 4})),
        Route("POST", "/size", lambda request: json_reply({"size": len(request.body)})),
        Route("POST", "/stream", lambda request: event_stream(words())),
    ]
    made = server.Service(server.ServerConfig(), routes).start()
    made.enough = enough
    yield made
    enough.set()
    made.drain(0)


@pytest.fixture
def program(backend, start):
    """Start a balancer that is up, with these options."""

    def begin(*options):
        made = start("balancer.py", "--port=0", "--backend=" + backend.url, *options)
        made.url = "http://" + made.wait_for_line("in front of").split("http://")[1].split()[0]
        wait_until(lambda: call(made.url + "/status").json["healthy_backends"] == 1)
        return made

    return begin


def connect(url):
    return contextlib.closing(http.client.HTTPConnection(url.split("//")[1], timeout=PATIENCE))


def test_health_says_503_first_and_connections_end_last(program, backend):
    made = program("--drain-grace=3600")
    assert call(made.url + "/health").status == 200
    with connect(made.url) as streaming, connect(made.url) as idle, connect(made.url) as fresh:
        streaming.request("POST", "/stream", b"{}")
        stream = streaming.getresponse()
        assert stream.readline() == b'data: "begun"\n'
        idle.request("GET", "/health")
        idle.getresponse().read()
        made.process.send_signal(signal.SIGTERM)
        made.wait_for_line("/health says 503 for 3600 s")
        assert idle.sock.recv(1) == b""
        refused = call(made.url + "/health")
        assert refused.status == 503 and refused.json["error"]["code"] == "draining"
        fresh.request("POST", "/size", b"abc")
        answer = fresh.getresponse()
        assert answer.status == 200 and answer.headers["Connection"] == "close"
        assert answer.read() == b'{"size": 3}'
        backend.enough.set()
        assert b"ended" in stream.read()


def test_after_the_grace_running_requests_end_and_new_ones_are_refused(backend):
    balancer = Balancer(Config(port=0, backend=(backend.url,))).start()
    wait_until(lambda: balancer.status()["healthy_backends"] == 1)
    with connect(balancer.url) as streaming:
        streaming.request("POST", "/stream", b"{}")
        stream = streaming.getresponse()
        stream.readline()
        stopper = threading.Thread(target=balancer.stop, args=(PATIENCE, 0.2))
        stopper.start()
        wait_until(lambda: call(balancer.url + "/health").status == 503)
        wait_until(lambda: balancer.service.draining)
        wait_until(lambda: refuses(balancer.url))
        backend.enough.set()
        assert b"ended" in stream.read()
        stopper.join(PATIENCE)
        assert not stopper.is_alive()


def refuses(url):
    try:
        call(url + "/health")
    except OSError:
        return True
    return False


def test_where_nobody_has_checked_its_health_it_stops_at_once(program):
    made = program("--drain-grace=3600")
    made.process.send_signal(signal.SIGTERM)
    assert "503" not in made.wait_for_line("stopping")
    assert made.end() == 0


def test_who_presses_ctrl_c_does_not_wait(program):
    made = program("--drain-grace=3600")
    assert call(made.url + "/health").status == 200
    made.process.send_signal(signal.SIGINT)
    assert made.end() == 0


# ---- a backend: the same, where it is asked for


@pytest.fixture
def model_server(start):
    """Start a backend.py that is ready, with these options."""

    def begin(*options):
        made = start("backend.py", "--port=0", "--threads=1", *options)
        made.url = made.wait_for_line("🟢").split()[1]
        assert call(made.url + "/health").status == 200
        return made

    return begin


def test_a_backend_is_not_ready_any_more_before_it_takes_no_requests(model_server):
    made = model_server("--drain-grace=3600")
    made.process.send_signal(signal.SIGTERM)
    made.wait_for_line("/health says 503 for 3600 s")
    wait_until(lambda: call(made.url + "/health").status == 503)
    refused = call(made.url + "/health")
    assert refused.json["error"]["code"] == "draining" and refused.headers["Retry-After"]
    assert call(made.url + "/live").status == 200  # nobody is to kill it for that
    answer = call(made.url + "/generate", {"model_name": "demo", "prompt": "Once", "max_tokens": 3})
    assert answer.status == 200 and answer.headers["Connection"] == "close"


def test_a_backend_stops_at_once_where_nothing_else_is_said(model_server):
    made = model_server()
    made.process.send_signal(signal.SIGTERM)
    assert "503" not in made.wait_for_line("stopping")
    assert made.end() == 0


def test_what_a_parent_has_started_gives_no_grace(start):
    made = start("balancer.py", "--child", "--port=0", "--backends=0", "--drain-grace=3600")
    assert call(made.wait_for_event("listening")["url"] + "/health").status == 503
    made.process.send_signal(signal.SIGTERM)
    made.wait_for_event("stopping")
    assert made.end() == 0
