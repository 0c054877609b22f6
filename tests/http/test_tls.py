"""TLS on both sides: a balancer that serves https, in front of backends that do."""

import contextlib
import http.client
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest
from conftest import PATIENCE, wait_until
from streams import event_stream

from balancer import Balancer, Config
from core.http import server
from core.http.client import Client
from core.http.failures import Untrusted
from core.http.messages import json_reply
from core.http.routing import Route
from core.http.server import Service
from core.http.tls import ClientTLS

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificates")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Return the files of a certificate for 127.0.0.1, signed by itself, and of its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    more = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert]
    subprocess.run(command.split() + more, check=True, stderr=subprocess.DEVNULL)
    return cert, key


@pytest.fixture
def backend(certificate):
    """A backend that serves https: it echoes, or streams numbers."""
    gone = threading.Event()

    def numbers():
        try:
            for number in range(10**6):
                yield number
                if number > 3:
                    threading.Event().wait(0.01)
        finally:
            gone.set()

    routes = [
        Route("GET", "/health", lambda request: json_reply({"slots": 4})),
        Route("POST", "/stream", lambda request: event_stream(numbers())),
        Route("POST", "/size", lambda request: json_reply({"size": len(request.body), "headers": request.headers})),
        Route("POST", "/large", lambda request: json_reply({"text": "x" * (5 << 20)})),
    ]
    config = server.ServerConfig(tls_cert=certificate[0], tls_key=certificate[1])
    backend = Service(config, routes).start()
    backend.gone = gone
    yield backend
    backend.drain(0)


@pytest.fixture
def balancer(backend, certificate):
    cert, key = certificate
    balancer = Balancer(Config(port=0, backend=(backend.url,), backend_ca=cert, tls_cert=cert, tls_key=key)).start()
    wait_until(lambda: balancer.status()["healthy_backends"] == 1)
    yield balancer
    balancer.stop(0)


@pytest.fixture
def client(balancer, certificate):
    context = ssl.create_default_context(cafile=certificate[0])
    client = http.client.HTTPSConnection("127.0.0.1", balancer.service.port, context=context, timeout=PATIENCE)
    yield client
    client.close()


def ask(client, path, body):
    client.request("POST", path, body)
    answer = client.getresponse()
    assert answer.status == 200
    return answer.read()


def test_requests_pass_through_https_on_both_sides_on_kept_connections(backend, balancer, client):
    assert backend.url.startswith("https://") and balancer.url.startswith("https://")
    for size in (0, 10, 70000, 3 << 20):
        answer = json.loads(ask(client, "/size", b"x" * size).decode())
        assert answer["size"] == size and answer["headers"]["x-forwarded-proto"] == "https"
    assert len(ask(client, "/large", b"")) > 5 << 20


def test_a_stream_flows_and_its_client_is_missed_when_it_goes(backend, balancer, client):
    client.request("POST", "/stream", b"{}")
    answer = client.getresponse()
    lines = [answer.readline() for _ in range(40)]
    assert [line for line in lines if line.strip()] == [b"data: %d\n" % number for number in range(20)]
    client.close()
    answer.close()
    assert backend.gone.wait(PATIENCE)


def test_a_certificate_that_nobody_vouches_for_is_not_accepted(backend, certificate):
    with pytest.raises(Untrusted, match="not signed by a CA that is trusted here"):
        Client().open(backend.url + "/health")
    balancer = Balancer(Config(port=0, backend=(backend.url,))).start()
    wait_until(lambda: "certificate" in balancer.status()["backends"][0]["why"])
    balancer.stop(0)


def test_a_certificate_for_another_name_is_not_accepted(backend, certificate):
    with pytest.raises(Untrusted, match="is for another name: .*localhost"):
        Client(tls=ClientTLS(certificate[0])).open("https://localhost:%d/health" % backend.port)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x16\x03\x01", b""])
def test_a_client_that_does_not_speak_tls_costs_nobody_anything(balancer, client, data, caplog):
    with socket.create_connection(("127.0.0.1", balancer.service.port)) as sock:
        sock.sendall(data)
        if data.startswith(b"GET"):
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(4096):
                    pass
        assert json.loads(ask(client, "/size", b"ab").decode())["size"] == 2
    wait_until(lambda: balancer.service.connections_open() == 1)
    assert not caplog.records


def test_connections_that_never_shake_hands_are_closed_for_new_ones(certificate):
    """The oldest first, and no accept loop waits for any of them."""
    config = server.ServerConfig(tls_cert=certificate[0], tls_key=certificate[1], max_connections=3)
    served = Service(config, [Route("GET", "/health", lambda request: json_reply({}))]).start()
    silent = [socket.create_connection(("127.0.0.1", served.port), PATIENCE) for _ in range(5)]
    client = Client(tls=ClientTLS(certificate[0]))
    answer = client.open(served.url + "/health", timeout=PATIENCE)
    assert answer.status == 200
    for sock in silent[:3]:
        while sock.recv(100):  # an alert, and the end
            pass
    for sock in silent:
        sock.close()
    answer.read_and_close()
    client.close()
    served.drain(0)


def test_a_handshake_that_drips_wins_no_time(certificate):
    config = server.ServerConfig(tls_cert=certificate[0], tls_key=certificate[1], header_timeout=0.3)
    served = Service(config, []).start()
    with socket.create_connection(("127.0.0.1", served.port), PATIENCE) as sock:
        sock.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        began = time.monotonic()
        while served.connections_open():
            assert time.monotonic() - began < PATIENCE / 4
            with contextlib.suppress(OSError):
                sock.sendall(b"x")
            threading.Event().wait(0.05)
    served.drain(0)


def test_an_https_service_drains_without_losing_a_stream(balancer, backend, client):
    client.request("POST", "/stream", b"{}")
    answer = client.getresponse()
    answer.readline()
    stopper = threading.Thread(target=balancer.stop, args=(0.2,))
    stopper.start()
    stopper.join(PATIENCE)
    assert not stopper.is_alive()


def test_a_certificate_that_is_missing_or_no_good_is_one_clear_line(start, certificate, tmp_path):
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    for cert, status in (("/nowhere.pem", 2), (nonsense, 1)):
        balancer = start("balancer.py", "--port", 0, "--tls-cert", cert)
        assert balancer.end() == status and len(balancer.errors) == 1 and str(cert) in balancer.errors[0]
