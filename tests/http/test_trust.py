"""TLS between a balancer and its backends with a private CA: who is trusted, who is not, and what is said of it."""

import logging
import socket
import ssl
import threading
import time

import pytest
from certificates import MISSING, Authority
from conftest import PATIENCE, call, wait_until

from balancer import Balancer, Config
from core.http import server, tls
from core.http.client import Client
from core.http.failures import Unreachable, Untrusted
from core.http.messages import json_reply
from core.http.routing import Route
from core.http.tls import ClientTLS

pytestmark = pytest.mark.skipif(bool(MISSING), reason=str(MISSING))
HERE = "IP:127.0.0.1"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("trust"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("stranger"), "stranger")


@pytest.fixture(scope="module")
def certificates(authority):
    """The files of a good server's certificate and of a good client's."""
    return authority.certificate("server", HERE), authority.certificate("client", "DNS:balancer")


@pytest.fixture
def serve():
    """Start backends that serve https with these files."""
    served = []

    def start(cert, client_ca=""):
        routes = [
            Route("GET", "/health", lambda request: json_reply({"slots": 4}), public=True),
            Route("POST", "/size", lambda request: json_reply({"size": len(request.body)})),
        ]
        served.append(server.Service(server.ServerConfig(tls_cert=cert, client_ca=client_ca), routes).start())
        return served[-1]

    yield start
    for each in served:
        each.drain(0)


@pytest.fixture
def balance():
    """Start balancers in front of one backend."""
    balancers = []

    def start(url, **settings):
        balancers.append(Balancer(Config(port=0, backend=(url,), **settings)).start())
        return balancers[-1]

    yield start
    for each in balancers:
        each.stop(0)


def told(balancer):
    return balancer.status()["backends"][0]


def test_balancer_and_backend_show_each_other_certificates_of_a_private_ca(serve, balance, authority, certificates):
    backend = serve(certificates[0], client_ca=authority.file)
    balancer = balance(backend.url, backend_ca=authority.file, backend_cert=certificates[1])
    wait_until(lambda: told(balancer)["healthy"])
    assert call(balancer.url + "/size", b"x" * 70000).json == {"size": 70000}


def test_a_balancer_without_a_certificate_is_told_that_the_backend_asks_for_one(
    serve, balance, authority, certificates, caplog
):
    backend = serve(certificates[0], client_ca=authority.file)
    balancer = balance(backend.url, backend_ca=authority.file)
    wait_until(lambda: told(balancer)["state"] == "down")
    assert told(balancer)["why"] == "it asks for a client certificate, and none is shown"
    assert told(balancer)["why"] in caplog.text and backend.url in caplog.text


def test_a_request_to_a_backend_that_asks_for_a_certificate_was_never_begun(serve, authority, certificates):
    """It may go to another backend, whatever it would do there; nobody has died under it."""
    backend = serve(certificates[0], client_ca=authority.file)
    client = Client(tls=ClientTLS(authority.file))
    for body in (b"x", b"x" * (3 << 20)):
        with pytest.raises(Untrusted):
            client.open(backend.url + "/size", "POST", body=body)
    client.close()


def test_with_tls_1_2_too(serve, authority, certificates):
    backend = serve(certificates[0], client_ca=authority.file)
    context = ssl.create_default_context(cafile=authority.file)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", backend.port), PATIENCE) as sock:
        with pytest.raises(ssl.SSLError) as caught:
            context.wrap_socket(sock, server_hostname="127.0.0.1")
    assert "client certificate" in tls.refusal(caught.value)


@pytest.mark.parametrize(
    "maker, alternative, days, why",
    [
        ("authority", HERE, -1, "its certificate has expired"),
        ("authority", "IP:127.0.0.9", 2, "its certificate is for another name: .*127.0.0.1"),
        ("authority", "DNS:elsewhere", 2, "its certificate is for another name: .*127.0.0.1"),
        ("stranger", HERE, 2, "its certificate is not signed by a CA that is trusted here: .*"),
    ],
)
def test_a_backend_that_is_not_trusted_is_down_and_says_why(
    serve, balance, authority, request, caplog, maker, alternative, days, why
):
    backend = serve(request.getfixturevalue(maker).certificate("doubtful", alternative, days))
    balancer = balance(backend.url, backend_ca=authority.file)
    wait_until(lambda: told(balancer)["state"] == "down")
    with pytest.raises(Untrusted, match="^" + why):
        Client(tls=ClientTLS(authority.file)).open(backend.url + "/health")
    assert told(balancer)["why"] in caplog.text and backend.url in caplog.text


@pytest.mark.parametrize(
    "maker, days, why",
    [
        ("authority", -1, "the client certificate that it is shown has expired"),
        ("stranger", 2, "it does not know the CA of the client certificate that it is shown"),
    ],
)
def test_a_balancer_that_is_not_trusted_hears_why(
    serve, balance, authority, certificates, request, maker, days, why
):
    own = request.getfixturevalue(maker).certificate("doubtful-client", "DNS:balancer", days)
    backend = serve(certificates[0], client_ca=authority.file)
    balancer = balance(backend.url, backend_ca=authority.file, backend_cert=own)
    wait_until(lambda: told(balancer)["state"] == "down")
    assert told(balancer)["why"] == why


def test_backends_that_are_found_by_address_may_all_have_one_name(serve, balance, authority):
    backend = serve(authority.certificate("named", "DNS:llm.example.com"))
    balancer = balance(backend.url, backend_ca=authority.file, backend_cert_name="llm.example.com")
    wait_until(lambda: told(balancer)["healthy"])


def test_a_backend_that_does_not_speak_tls_is_told(authority):
    with socket.create_server(("127.0.0.1", 0)) as plain:

        def answer():
            with plain.accept()[0] as sock:
                sock.recv(4096)
                sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        with pytest.raises(Untrusted, match="it does not speak TLS"):
            Client(tls=ClientTLS(authority.file)).open("https://127.0.0.1:%d/health" % plain.getsockname()[1])
        thread.join(PATIENCE)


def test_a_server_that_does_not_shake_hands_is_out_of_reach_in_time(authority):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(Unreachable, match="handshake timed out"):
            Client(0.2, ClientTLS(authority.file)).open("https://127.0.0.1:%d/health" % silent.getsockname()[1])
        assert time.monotonic() - began < PATIENCE / 4


def test_renewed_certificates_are_shown_without_a_restart(serve, balance, authority, monkeypatch, caplog):
    """On both sides. One that is no good changes nothing."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(tls, "RENEW_SECONDS", 0.0)
    shown, own = authority.certificate("renewed", HERE, -1), authority.certificate("renewed-client", "DNS:b", -1)
    backend = serve(shown, client_ca=authority.file)
    balancer = balance(backend.url, backend_ca=authority.file, backend_cert=own)
    wait_until(lambda: told(balancer)["why"] == "its certificate has expired")
    authority.certificate("renewed", HERE)
    wait_until(lambda: told(balancer)["why"] == "the client certificate that it is shown has expired")
    authority.certificate("renewed-client", "DNS:b")
    wait_until(lambda: told(balancer)["healthy"])
    with open(shown, "w") as file:
        file.write("half of it")
    client = Client(tls=ClientTLS(authority.file, own))
    answer = client.open(backend.url + "/health")
    answer.read_and_close()
    client.close()
    assert answer.status == 200
    assert "the certificates were read again: %s, %s" % (shown, authority.file) in caplog.text
    assert "the old certificates stay: the certificate in %s" % shown in caplog.text


def test_files_that_are_no_good_are_told_at_the_start(start, tmp_path):
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    for option in ("--backend-ca", "--backend-cert"):
        for file in ("/nowhere.pem", nonsense):
            balancer = start("balancer.py", "--port", 0, option, file)
            assert balancer.end() == 2 and len(balancer.errors) == 1 and str(file) in balancer.errors[0]


def test_clients_are_never_asked_for_certificates_over_plain_http_in_silence(start, authority, tmp_path):
    balancer = start("balancer.py", "--port", 0, "--client-ca", authority.file)
    assert balancer.end() == 1 and "--client-ca needs --tls-cert" in balancer.errors[0]
    key = tmp_path / "key.pem"
    key.write_text("nonsense")
    balancer = start("balancer.py", "--port", 0, "--backend-cert-key", key)
    assert balancer.end() == 2 and "needs its certificate" in balancer.errors[0]
