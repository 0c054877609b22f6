"""Discovery by DNS: real resolver processes on loopback, whose records come and go."""

import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest
from conftest import PATIENCE, ROOT, call, free_ports, in_parallel, wait_until
from streams import event_stream

from balancer import Balancer, Config
from core.balancing import discovery
from core.balancing.discovery import AAAA, CNAME, SRV, A, Discovery, LookupFailed, Target, lookup, parse_target, query
from core.balancing.membership import Membership
from core.balancing.policies import RoundRobin
from core.balancing.pool import Pool
from core.http import server
from core.http.messages import json_reply
from core.http.routing import Route
from core.http.server import Service

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="127.0.0.2 is Linux' own")
NAME = "llm.test"


class Ours:
    """tests/resolver.py: it knows all kinds of records."""

    def __init__(self, folder):
        self.port, self.path = free_ports(1), folder / "records.json"
        self.path.write_text("{}")
        command = [sys.executable, os.path.join(ROOT, "tests", "resolver.py"), str(self.port), str(self.path)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == b"ready\n"

    def set(self, addresses, **names):
        kinds = {
            "A": [each for each in addresses if ":" not in each],
            "AAAA": [each for each in addresses if ":" in each],
        }
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(dict({NAME: kinds}, **names)))
        os.replace(str(fresh), str(self.path))

    def close(self):
        self.process.terminate()
        self.process.wait(10)
        if self.process.stdout:
            self.process.stdout.close()


class Dnsmasq(Ours):
    """dnsmasq, where it is installed: a resolver that others use, with a file of addresses."""

    def __init__(self, folder):
        self.port, self.path = free_ports(1), folder / "hosts"
        self.path.write_text("")
        self.process = subprocess.Popen(
            [
                "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--pid-file=",
                "--port=%d" % self.port, "--listen-address=127.0.0.1", "--bind-interfaces", "--local=/test/", "--user=",
                "--local-ttl=0", "--addn-hosts=%s" % self.path, "--log-facility=%s" % (folder / "dnsmasq.log"),
                "--srv-host=_llm._tcp.test,%s,8081" % NAME,
            ]
        )  # fmt: skip
        wait_until(self._answers)

    def _answers(self):
        try:
            return query(("127.0.0.1", self.port), NAME, A, timeout=0.2) == []
        except LookupFailed:
            return False

    def set(self, addresses, **names):
        self.path.write_text("".join("%s %s\n" % (each, NAME) for each in addresses))
        self.process.send_signal(signal.SIGHUP)


@pytest.fixture(params=[Ours, Dnsmasq])
def resolver(request, tmp_path):
    if request.param is Dnsmasq and not shutil.which("dnsmasq"):
        pytest.skip("dnsmasq is not installed")
    resolver = request.param(tmp_path)
    yield resolver
    resolver.close()


@pytest.fixture
def ours(tmp_path):
    resolver = Ours(tmp_path)
    yield resolver
    resolver.close()


def target(resolver, url="dns://llm.test:8080", more=""):
    return parse_target("%s?resolver=127.0.0.1:%d%s" % (url, resolver.port, more))


# ----------------------------------------------------------------------------------------------- the look-up


def test_every_address_of_a_name_is_a_backend(resolver):
    resolver.set(["127.0.0.2", "127.0.0.3", "fd00::7"])
    urls = ["http://127.0.0.2:8080", "http://127.0.0.3:8080", "http://[fd00::7]:8080"]
    wait_until(lambda: lookup(target(resolver)) == urls)


def test_an_unknown_name_has_no_address(resolver):
    assert lookup(target(resolver, "dns://other.test:8080")) == []


def test_srv_records_tell_the_port(resolver):
    resolver.set(["127.0.0.2"], **{"_llm._tcp.test": {"SRV": [[8081, NAME]]}})
    wait_until(lambda: lookup(target(resolver, "dns+srv://_llm._tcp.test")) == ["http://127.0.0.2:8081"])
    assert query(("127.0.0.1", resolver.port), "_llm._tcp.test", SRV) == [(NAME, 8081)]


def test_a_hundred_addresses_come_by_tcp(resolver):
    resolver.set(["127.0.1.%d" % n for n in range(100)])
    wait_until(lambda: len(lookup(target(resolver, more="&scheme=https"))) == 100)
    assert lookup(target(resolver, more="&scheme=https"))[0] == "https://127.0.1.0:8080"


def test_a_resolver_that_fails_tells_nothing(ours):
    ours.set([], **{"broken.test": "SERVFAIL"})
    with pytest.raises(LookupFailed):
        lookup(target(ours, "dns://broken.test:1"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
        deaf.bind(("127.0.0.1", 0))
        with pytest.raises(LookupFailed):
            query(deaf.getsockname(), NAME, A, timeout=0.1)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0" * 12,
        b"\x81\x80\0\1\0\1\0\0\0\0" + b"\xc0\x0c" * 8,  # a name that points to itself
        b"\x81\x80\0\1\0\1\0\0\0\0\3ab",
        b"\x81\x80" + b"\xff" * 40,
    ],
)
def test_a_malformed_answer_tells_nothing(answer):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))

        def lie(_):
            for _ in range(2):
                asked, peer = sock.recvfrom(4096)
                sock.sendto(asked[:2] + answer, peer)

        def ask(_):
            with pytest.raises(LookupFailed):
                query(sock.getsockname(), NAME, A, timeout=0.1)

        assert in_parallel(lambda each: each(0), [lie, ask]) == [None, None]


class Liar:
    """A resolver that answers each question as `lies(question)` says: a list of messages."""

    def __init__(self, lies):
        self.asked, self.ports = [], []
        self._lies = lies
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.address = self.sock.getsockname()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                asked, peer = self.sock.recvfrom(4096)
                if asked == b"end":
                    return
                self.asked.append(asked)
                self.ports.append(peer[1])
                for lie in self._lies(asked):
                    self.sock.sendto(lie, peer)

    def close(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"end", self.address)
        self.sock.close()


@pytest.fixture
def liar():
    liars = []

    def make(lies):
        liars.append(Liar(lies))
        return liars[-1]

    yield make
    for each in liars:
        each.close()


def name_of(text):
    return b"".join(bytes([len(label)]) + label.encode() for label in text.split(".") if label) + b"\0"


def message(asked, records=(), question=None, flags=b"\x81\x80"):
    """Return an answer to a question: records are (name, kind, value)."""
    question = asked[12:-11] if question is None else question  # EDNS stands at its end
    body = b"".join(
        name_of(name) + struct.pack(">HHIH", kind, 1, 0, len(value)) + value for name, kind, value in records
    )
    return asked[:2] + flags + struct.pack(">HHHH", 1, len(records), 0, 0) + question + body


HERE = bytes([127, 0, 0, 2])


def test_only_the_answer_to_the_question_counts(liar):
    """Whoever guesses the port must guess the number, too, and the question; what does not fit is passed over."""
    evil = [(NAME, A, bytes([6, 6, 6, 6]))]

    def lies(asked):
        wrong = bytes([asked[0] ^ 1]) + asked[1:]
        other_kind = asked[12:-15] + struct.pack(">HH", AAAA, 1)
        yield from (b"", b"x", message(wrong, evil), message(asked, evil, name_of("evil.test") + b"\0\1\0\1"))
        yield from (message(asked, evil, other_kind), message(asked, evil, flags=b"\1\0"), asked)
        yield message(asked, [(NAME, A, HERE)], asked[12:-11].upper().replace(b"\3LLM", b"\3lLm"))

    assert query(liar(lies).address, NAME, A) == [("127.0.0.2", 0)]


def test_strays_do_not_make_a_question_last_longer(liar):
    resolver = liar(lambda asked: [message(b"xx" + asked[2:])] * 20)
    begun = time.monotonic()
    with pytest.raises(LookupFailed):
        query(resolver.address, NAME, A, timeout=0.2)
    assert time.monotonic() - begun < PATIENCE / 2


def test_numbers_and_ports_can_not_be_guessed(liar):
    resolver = liar(lambda asked: [message(asked)])
    for _ in range(20):
        assert query(resolver.address, NAME, A) == []
    numbers = [struct.unpack(">H", each[:2])[0] for each in resolver.asked]
    for drawn in (numbers, resolver.ports):
        assert len(set(drawn)) > 10
        assert len({b - a for a, b in zip(drawn, drawn[1:])}) > 5  # they do not rise step by step


def test_records_of_other_names_are_ignored_and_aliases_followed(liar):
    records = [
        ("evil.test", A, bytes([6, 6, 6, 6])),
        (NAME, CNAME, name_of("a.test")),
        ("b.test", A, HERE),
        ("a.test", CNAME, name_of("B.test")),
        ("c.test", A, bytes([6, 6, 6, 6])),
    ]
    assert query(liar(lambda asked: [message(asked, records)]).address, NAME, A) == [("127.0.0.2", 0)]


@pytest.mark.parametrize(
    "rest",
    [b"", b"\xc0\x0c", b"\xc0\xff", b"\xc0\x1e" * 9, b"\x40ab\0", b"\0\0\1\0\1\0\0\0\0\0\3abc",
     b"\0\0\1\0\1\0\0\0\0\xff\xff"],
)  # fmt: skip
def test_a_malformed_answer_to_the_right_question_tells_nothing(liar, rest):
    resolver = liar(lambda asked: [asked[:2] + b"\x81\x80\0\1\0\3\0\0\0\0" + asked[12:-11] + rest])
    with pytest.raises(LookupFailed):
        query(resolver.address, NAME, A)


def test_aliases_in_a_circle_have_no_address(liar):
    records = [(NAME, CNAME, name_of("a.test")), ("a.test", CNAME, name_of(NAME))]
    assert query(liar(lambda asked: [message(asked, records)]).address, NAME, A) == []


def test_a_service_that_is_not_there_has_no_backends(liar):
    """RFC 2782: a target of "." means that there is no such service."""
    resolver = liar(lambda asked: [message(asked, [("_llm._tcp.test", SRV, struct.pack(">HHH", 0, 0, 0) + b"\0")])])
    target = parse_target("dns+srv://_llm._tcp.test?resolver=127.0.0.1:%d" % resolver.address[1])
    assert lookup(target) == []


@pytest.mark.parametrize("label", [b"\xff", b"x" * 63, b"a b", b"a.b", b"\0"])
def test_a_service_at_a_name_that_can_not_be_fails_or_has_no_address(liar, label):
    name = (bytes([len(label)]) + label) * (4 if len(label) == 63 else 1) + b"\0"
    value = struct.pack(">HHH", 0, 0, 80) + name
    resolver = liar(lambda asked: [message(asked, [("_llm._tcp.test", SRV, value)])])
    target = parse_target("dns+srv://_llm._tcp.test?resolver=127.0.0.1:%d" % resolver.address[1])
    with contextlib.suppress(LookupFailed):
        assert lookup(target) == []


def test_a_service_with_too_many_targets_fails(liar):
    records = [("_llm._tcp.test", SRV, struct.pack(">HHH", 0, 0, 80) + name_of("a.b"))] * 300
    resolver = liar(lambda asked: [message(asked, records)])
    with pytest.raises(LookupFailed):
        lookup(parse_target("dns+srv://_llm._tcp.test?resolver=127.0.0.1:%d" % resolver.address[1]))


def liar_with_tcp(liar, lies):
    """Return a liar and a TCP socket on its port. What is free by UDP may be taken by TCP: then another is tried."""
    for _ in range(50):
        resolver = liar(lies)
        try:
            return resolver, socket.create_server(resolver.address)
        except OSError:
            continue
    raise AssertionError("no port is free by UDP and TCP")


@pytest.mark.parametrize("answer", [b"", b"\xff\xffabc", b"\0\5short", b"\0\0", b"\0\x20" + b"\xff" * 32])
def test_an_answer_by_tcp_that_is_none_or_does_not_come_fails_in_time(liar, answer):
    resolver, by_tcp = liar_with_tcp(liar, lambda asked: [message(asked, flags=b"\x83\x80")])  # cut off
    held = []

    def serve():
        for _ in range(2):
            held.append(by_tcp.accept()[0])
            held[-1].sendall(answer)

    with by_tcp:
        serving = threading.Thread(target=serve)
        serving.start()
        begun = time.monotonic()
        with pytest.raises(LookupFailed):
            query(resolver.address, NAME, A, timeout=0.2)
        assert time.monotonic() - begun < PATIENCE / 2
        serving.join(PATIENCE)
    for each in held:
        each.close()


@pytest.mark.parametrize("name", ["\ud800.test", "a\0b", "a..b", "x" * 300])
def test_a_name_that_can_not_be_written_fails_or_has_no_address(name):
    for resolver in (None, ("127.0.0.1", free_ports(1))):
        with contextlib.suppress(LookupFailed):
            assert lookup(Target("t", name, 80, resolver=resolver), timeout=0.2) == []


def test_the_thread_goes_on_whatever_a_look_up_raises(monkeypatch, caplog):
    good, bad = parse_target("dns://good.test:1"), parse_target("dns://bad.test:1")
    rounds = []

    def look_up(target):
        if target is bad:
            rounds.append(1)
            raise RuntimeError("can't start new thread")
        return ["http://127.0.0.2:1"]

    monkeypatch.setattr(discovery, "lookup", look_up)
    pool = Pool(RoundRobin())
    thread = Discovery(pool, Membership(pool), [bad, good], 0.01)
    thread.start()
    try:
        wait_until(lambda: len(rounds) > 5)
        assert [each["url"] for each in pool.describe()] == ["http://127.0.0.2:1"]  # the other one has its turn
    finally:
        thread.stop()
    assert len([record for record in caplog.records if "can't start new thread" in record.getMessage()]) == 1


def test_the_systems_own_look_up_is_the_default():
    assert "http://127.0.0.1:8080" in lookup(parse_target("dns://localhost:8080"))
    assert lookup(parse_target("dns://127.0.0.9:1")) == ["http://127.0.0.9:1"]


@pytest.mark.parametrize(
    "text",
    ["http://x:1", "dns://x", "dns://:8080", "dns://x:1/path", "dns://x:1?resolver=", "dns://x:1?resolver=name",
     "dns://x:1?scheme=ftp", "dns://x:1?what=1", "dns+srv://x", "dns+srv://x:1?resolver=127.0.0.1", "dns://a..b:1",
     "dns://%s:1" % ("a" * 64)],
)  # fmt: skip
def test_a_target_that_is_none_is_refused(text):
    with pytest.raises(ValueError):
        parse_target(text)


# ----------------------------------------------------------------------------------------------- keeping up


class Cluster:
    """Backends on 127.0.0.2, 127.0.0.3, …, all on one port."""

    def __init__(self, count):
        self.port = free_ports(1)
        self.hosts = ["127.0.0.%d" % (n + 2) for n in range(count)]
        routes = [Route("GET", "/health", lambda request: json_reply({"slots": 4}))]
        routes.append(Route("POST", "/stream", lambda request: event_stream(self._numbers())))
        self.end = threading.Event()
        self.services = [
            Service(server.ServerConfig(host=host, port=self.port), routes, lambda request: json_reply({})).start()
            for host in self.hosts
        ]

    def _numbers(self):
        number = 0
        while not self.end.wait(0.01):
            yield number
            number += 1

    def url(self, host):
        return "http://%s:%d" % (host, self.port)

    def close(self):
        for each in self.services:
            each.drain(0)


@pytest.fixture
def cluster():
    cluster = Cluster(4)
    yield cluster
    cluster.close()


def up(balancer):
    return {each["url"] for each in balancer.status()["backends"] if each["healthy"]}


def test_backends_come_and_go_with_their_records(resolver, cluster):
    resolver.set(cluster.hosts[:2])
    wait_until(lambda: lookup(target(resolver)))
    text = target(resolver, "dns://llm.test:%d" % cluster.port).text
    balancer = Balancer(Config(port=0, discover=(text,), discover_interval=0.1)).start()
    try:
        for wanted in (cluster.hosts[:2], cluster.hosts, cluster.hosts[2:], cluster.hosts[1:2]):
            resolver.set(wanted)
            wait_until(lambda: up(balancer) == {cluster.url(host) for host in wanted})
            served = {call(balancer.url + "/x", {}).headers["X-ComeAPI-Backend"] for _ in range(8)}
            assert served == {cluster.url(host) for host in wanted}
    finally:
        balancer.stop(0)


def test_a_stream_outlives_its_backends_record(ours, cluster):
    ours.set(cluster.hosts[:2])
    text = target(ours, "dns://llm.test:%d" % cluster.port).text
    balancer = Balancer(Config(port=0, discover=(text,), discover_interval=0.05)).start()
    try:
        wait_until(lambda: len(up(balancer)) == 2)
        answers = []
        reading = threading.Thread(target=lambda: answers.append(call(balancer.url + "/stream", {})))
        reading.start()
        (busy,) = wait_until(lambda: [each["url"] for each in balancer.status()["backends"] if each["in_flight"]])
        ours.set([host for host in cluster.hosts[:2] if cluster.url(host) != busy])
        draining = {"url": busy, "state": "draining"}
        wait_until(lambda: any(draining.items() <= each.items() for each in balancer.status()["backends"]))
        cluster.end.set()
        reading.join(PATIENCE)
        assert answers[0].events == list(range(len(answers[0].events)))
        wait_until(lambda: busy not in up(balancer))
    finally:
        cluster.end.set()
        balancer.stop(0)


def test_a_resolver_that_dies_or_forgets_takes_nobody_away(ours, cluster, monkeypatch):
    ours.set(cluster.hosts[:2])
    text = target(ours, "dns://llm.test:%d" % cluster.port).text
    balancer = Balancer(Config(port=0, discover=(text,), discover_interval=0.05)).start()
    looked, original = [], discovery.lookup
    monkeypatch.setattr(discovery, "lookup", lambda *arguments: looked.append(1) or original(*arguments))
    try:
        wait_until(lambda: len(up(balancer)) == 2)
        ours.set([])
        del looked[:]
        wait_until(lambda: len(looked) > 3)
        assert len(up(balancer)) == 2  # they answer their probes
        ours.close()
        del looked[:]
        wait_until(lambda: len(looked) > 1)
        assert len(up(balancer)) == 2
    finally:
        balancer.stop(0)
