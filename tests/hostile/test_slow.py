"""What takes its time (marker: slow): slow senders, slow readers, floods, and little room for files.

Each runs against a server of its own with short limits, and asserts that others are served meanwhile and that what was
taken is given back.
"""

import contextlib
import json
import socket
import time

import pytest

from hostile.enemy import HOST, Fort, Line, Upstream, answer, get, post, small_generate

pytestmark = pytest.mark.slow
resource = pytest.importorskip("resource")
SECONDS = 30  # in which a good request is answered whatever goes on, on a loaded machine
LIMITS = ("--header-timeout", 3, "--body-timeout", 4, "--idle-timeout", 4, "--write-timeout", 3)


@pytest.fixture
def backend(request):
    arguments = ("--child", "--port", 0, "--threads", 1, "--slots", 4, "--ctx-size", 4096) + LIMITS
    fort = Fort("backend.py", arguments + getattr(request, "param", ()), small_generate, "ready")
    yield fort
    fort.close()


@pytest.fixture
def balancer(request):
    good = Upstream({"": answer(b'{"good": true}')})
    arguments = ("--child", "--port", 0, "--backend", good.url + ",slots=64") + LIMITS
    fort = Fort("balancer.py", arguments + getattr(request, "param", ()), lambda fort: post(fort.port, "/generate", {}),
                "up")
    yield fort
    fort.close()
    good.close()


@pytest.fixture(params=["backend", "balancer"])
def target(request):
    return request.getfixturevalue(request.param)


def lines(port, count, receive_buffer=0):
    made = []
    for _ in range(count):
        line = Line(port, SECONDS)
        if receive_buffer:
            line.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        made.append(line)
    return made


def served(fort):
    """Assert that a good request is answered now."""
    began = time.monotonic()
    fort.check()
    assert time.monotonic() - began < SECONDS


def all_ended(made, within):
    """Assert that the server has ended all of these connections in so many seconds."""
    deadline = time.monotonic() + within
    for line in made:
        line.sock.settimeout(max(0.1, deadline - time.monotonic()))
        while line.more():
            line.buffer = b""


def test_heads_that_drip(target):
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(line) for line in lines(target.port, 150)]
        began = time.monotonic()
        for byte in b"GET /health HTTP/1.1\r\nX-A: aaaaaaaaaaaa":
            for line in made:
                line.send(b"%c" % byte)
            time.sleep(0.02)
            if byte == ord("X"):
                served(target)
        all_ended(made, 20)
        assert time.monotonic() - began < 30
    served(target)


def test_bodies_that_drip(target):
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(line) for line in lines(target.port, 100)]
        for line in made:
            line.send(b"POST /generate HTTP/1.1\r\n" + HOST + b"Content-Length: 1000000\r\n\r\n{")
        for _ in range(20):
            for line in made:
                line.send(b" ")
        served(target)
        all_ended(made, 20)
    served(target)


def test_chunks_of_one_byte_for_ever(target):
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(line) for line in lines(target.port, 4)]
        for line in made:
            line.send(b"POST /generate HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            for line in made:
                line.sock.settimeout(1)
                with contextlib.suppress(OSError):
                    line.sock.send(b"1\r\nx\r\n" * 500)
        served(target)
        all_ended(made, 20)
    served(target)


def test_idle_connections(target):
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(line) for line in lines(target.port, 400)]
        served(target)
        all_ended(made, 20)
    served(target)


def test_clients_that_ask_and_leave(target):
    body = json.dumps({"model_name": "demo.gguf", "prompt": "Once upon a time", "max_tokens": 2000,
                       "ignore_eos": True}).encode()
    head = b"POST /generate HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(body)
    for _ in range(6):
        made = lines(target.port, 40)
        for line in made:
            line.send(head + body)
        for index, line in enumerate(made):
            line.reset() if index % 2 else line.sock.close()
    deadline = time.monotonic() + SECONDS
    while taken(get(target.port, "/status").json):
        assert time.monotonic() < deadline, "slots are held by clients that have gone"
        time.sleep(0.05)
    served(target)


def taken(state):
    """Return how many requests run or wait, as a server's status tells it."""
    if "backends" in state:
        return state["queued"] + sum(each["in_flight"] for each in state["backends"])
    return state["queued"] + state["busy_slots"]


@pytest.mark.parametrize("path", ["/health", "/metrics", "/nothing"])
def test_a_client_that_asks_ten_thousand_times_and_reads_nothing(target, path):
    before = target.memory()
    with Line(target.port, SECONDS) as line:
        line.sock.setblocking(False)
        data = (b"GET " + path.encode() + b" HTTP/1.1\r\n" + HOST + b"\r\n") * 10000
        deadline = time.monotonic() + 8
        while data and time.monotonic() < deadline:
            try:
                data = data[line.sock.send(data) :]
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:
                break
        served(target)
        assert target.memory() - before < 150
    served(target)


def test_readers_of_a_byte_now_and_then_hold_no_slot(backend):
    body = {"model_name": "demo.gguf", "prompt": "Once upon a time", "max_tokens": 3500, "stream": True, "n_probs": 50,
            "ignore_eos": True}
    data = json.dumps(body).encode()
    head = b"POST /generate HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n\r\n" % len(data)
    before = backend.memory()
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(line) for line in lines(backend.port, 8, 2048)]
        for line in made:
            line.send(head + data)
        deadline = time.monotonic() + 60
        while True:  # until all eight have had their turn, or were cut off
            for line in made:
                line.sock.settimeout(0.2)
                with contextlib.suppress(OSError):
                    line.sock.recv(1)
            state = get(backend.port, "/status", patience=SECONDS).json
            if not state["busy_slots"] and not state["queued"]:
                break
            assert time.monotonic() < deadline, "slots are held by readers that take nothing: %s" % state
            time.sleep(0.5)
        assert backend.memory() - before < 300
    served(backend)


def test_bodies_in_flight_are_bounded_in_sum(target):
    before = target.memory()
    part = b" " * (3 << 20)
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(line) for line in lines(target.port, 120)]
        for line in made:
            line.sock.settimeout(0.2)
            with contextlib.suppress(OSError):
                line.sock.sendall(b"POST /generate HTTP/1.1\r\n" + HOST + b"Content-Length: 4000000\r\n\r\n" + part)
        assert target.memory() - before < 340, "120 bodies of 3 MB each are held"
    deadline = time.monotonic() + SECONDS
    while True:
        with contextlib.suppress(AssertionError):
            served(target)
            break
        assert time.monotonic() < deadline
    assert target.memory() - before < 340


@contextlib.contextmanager
def few_files(count):
    """Let programs that are started in this block have so many files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_balancer_with_few_files_goes_on():
    with contextlib.closing(Upstream({"": answer(b"{}")})) as good:
        with few_files(256):
            arguments = ("--child", "--port", 0, "--backend", good.url + ",slots=8")
            fort = Fort("balancer.py", arguments, lambda fort: post(fort.port, "/generate", {}), "up")
        with contextlib.closing(fort), contextlib.ExitStack() as stack:
            for _ in range(3):
                for line in lines(fort.port, 150):
                    stack.enter_context(line)
                served(fort)
            began, used = time.monotonic(), processor_seconds(fort)
            time.sleep(1)
            assert (processor_seconds(fort) - used) / (time.monotonic() - began) < 0.5, "it spins"
            served(fort)


def processor_seconds(fort):
    with open("/proc/%d/stat" % fort.pid) as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def test_a_hundred_hostile_requests_at_once(target):
    from hostile import test_http

    rows = [row[1] for row in test_http.REQUEST_LINES + test_http.FIELDS + test_http.LENGTHS + test_http.CODINGS]
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(line) for line in lines(target.port, len(rows))]
        for line, data in zip(made, rows):
            line.send(data)
        for line in made:
            line.half_close()
        all_ended(made, 30)
    served(target)
