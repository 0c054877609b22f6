"""What each API key may ask for: so many requests at once, so many a minute; and what a process may: open files."""

import os
import socket
import threading

import pytest
from conftest import PATIENCE, ROOT, call, in_parallel, wait_until

from core.errors import APIError, HangUp
from core.http.access import KeyLimits
from core.http.messages import json_reply
from core.http.routing import Route
from core.http.server import ServerConfig, Service


@pytest.fixture
def limited():
    """Start services with limits for each key."""
    services = []

    def make(handler, **limits):
        routes = [Route("GET", "/x", handler), Route("GET", "/health", handler, public=True)]
        services.append(Service(ServerConfig(api_key=("one", "two"), **limits), routes).start())
        return services[-1]

    yield make
    for each in services:
        each.drain(0)


def with_key(service, key, path="/x"):
    return call(service.url + path, headers={"X-Api-Key": key})


def test_a_key_may_have_so_many_requests_at_once_and_another_is_not_held_up(limited):
    begun, release = threading.Semaphore(0), threading.Event()

    def hold(request):
        begun.release()
        release.wait(PATIENCE)
        return json_reply({})

    service = limited(hold, key_requests=2)
    running = [threading.Thread(target=with_key, args=(service, "one")) for _ in range(2)]
    for each in running:
        each.start()
        assert begun.acquire(timeout=PATIENCE)
    refused = with_key(service, "one")
    assert (
        refused.status == 429 and refused.headers["Retry-After"] == "1" and refused.json["error"]["code"] == "key_limit"
    )
    release.set()
    assert with_key(service, "two").status == 200
    for each in running:
        each.join(PATIENCE)
    wait_until(lambda: not service.requests_active())  # their answers have come; now their places are given back
    assert with_key(service, "one").status == 200


def test_a_key_may_make_so_many_requests_a_minute(limited):
    service = limited(lambda request: json_reply({}), key_rate=3)
    assert [with_key(service, "one").status for _ in range(4)] == [200, 200, 200, 429]
    assert 1 <= int(with_key(service, "one").headers["Retry-After"]) <= 20
    assert with_key(service, "two").status == 200
    assert {with_key(service, "", "/health").status for _ in range(9)} == {200}


def test_a_minutes_requests_come_back_one_by_one():
    limits = KeyLimits(0, 60)
    for _ in range(60):
        limits.enter("key", 100.0)
    with pytest.raises(APIError):
        limits.enter("key", 100.5)
    limits.enter("key", 101.0)
    with pytest.raises(APIError):
        limits.enter("key", 101.5)
    for _ in range(60):
        limits.enter("key", 1000.0)  # no more than a minute's are saved up
    with pytest.raises(APIError):
        limits.enter("key", 1000.0)


def test_a_request_that_fails_or_is_left_gives_its_place_back(limited):
    begun = threading.Event()

    def fail(request):
        begun.set()
        if request.query.get("stay"):
            wait_until(request.hung_up)
            raise HangUp("gone")
        raise APIError(400, "no")

    service = limited(fail, key_requests=1)

    def free():  # a place is given back once the answer has been sent: the client may have it before
        return not service.requests_active()

    for _ in range(3):
        assert with_key(service, "one").status == 400
        wait_until(free)
    begun.clear()
    sock = socket.create_connection(("127.0.0.1", service.port))
    sock.sendall(b"GET /x?stay=1 HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: one\r\n\r\n")
    assert begun.wait(PATIENCE)
    sock.close()
    wait_until(lambda: with_key(service, "one").status == 400)


# --------------------------------------------------------------------------------------------- open files

LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (%d, %d))
sys.path.insert(0, %r)
sys.argv = [%r] + sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def cpu_seconds(pid):
    with open("/proc/%d/stat" % pid) as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads the processor time from /proc")
@pytest.mark.parametrize("soft, hard, idle", [(128, 128, 140), (64, 200, 210)])
def test_more_idle_connections_than_open_files_stop_nothing_and_cost_nothing(start, tmp_path, soft, hard, idle):
    """The balancer raises its soft limit to the hard one; each request needs two descriptors there."""
    script = tmp_path / "limited.py"
    script.write_text(LIMITED % (soft, hard, ROOT, os.path.join(ROOT, "balancer.py")))
    echo = Service(ServerConfig(), [Route("GET", "/health", lambda request: json_reply({"slots": 8}), public=True)],
                   lambda request: json_reply({"size": len(request.body)})).start()  # fmt: skip
    balancer = start(str(script), "--child", "--port", 0, "--backend", echo.url)
    url = balancer.wait_for_event("listening")["url"]
    balancer.wait_for_event("up")
    held = []
    try:
        for _ in range(idle):
            held.append(socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), PATIENCE))
        for _ in range(3):
            assert call(url + "/health").status == 200
            answers = in_parallel(lambda number: call(url + "/generate", {"n": number}), range(20))
            assert [answer.status for answer in answers] == [200] * 20
        assert len(os.listdir("/proc/%d/fd" % balancer.pid)) < hard
        before = cpu_seconds(balancer.pid)
        threading.Event().wait(1.5)
        assert cpu_seconds(balancer.pid) - before < 0.5
    finally:
        for sock in held:
            sock.close()
        echo.drain(0)
