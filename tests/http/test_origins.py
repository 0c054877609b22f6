"""What web pages may do: which names a server goes by, which pages may call it; everybody else never notices."""

import socket

import pytest
from conftest import PATIENCE, call, wait_until

from balancer import Balancer, Config
from core import options
from core.http import server
from core.http.messages import json_reply
from core.http.origins import Hosts, check_name, check_origin
from core.http.routing import Route
from core.http.server import Service

PAGE = "https://chat.example.com"


def routes():
    def answer(request):
        return json_reply({"headers": request.headers})

    return [
        Route("GET", "/", answer),
        Route("GET", "/health", answer, public=True),
        Route("POST", "/public", answer, public=True),
        Route("GET", "/status", answer),
        Route("POST", "/generate", answer),
        Route("DELETE", "/thing", answer),
    ]


@pytest.fixture
def serve():
    running = []

    def start(**config):
        running.append(Service(server.ServerConfig(**config), routes()).start())
        return running[-1]

    yield start
    for each in running:
        each.drain(0)


@pytest.fixture(scope="module")
def plain():
    """A service without any option."""
    running = Service(server.ServerConfig(), routes()).start()
    yield running
    running.drain(0)


def ask(service, path="/generate", method="POST", **headers):
    body = b"{}" if method == "POST" else None
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return call(service.url + path, body, named, method)


def code(answer):
    return answer.status if answer.status < 300 else (answer.status, answer.json["error"]["code"])


HOST = (403, "host_not_allowed")
ORIGIN = (403, "origin_not_allowed")
LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}

# ------------------------------------------------------------------------------------------------- the host


@pytest.mark.parametrize(
    "host, listens_on, allowed, expected",
    [
        ("localhost", "127.0.0.1", (), True),
        ("LocalHost:9000", "127.0.0.1", (), True),
        ("localhost.", "127.0.0.1", (), True),
        ("app.localhost:3000", "127.0.0.1", (), True),
        ("127.0.0.1:9000", "127.0.0.1", (), True),
        ("[::1]:9000", "127.0.0.1", (), True),
        ("192.168.1.20", "127.0.0.1", (), True),
        ("[2001:db8::1]", "0.0.0.0", (), True),
        ("", "127.0.0.1", (), True),
        ("evil.example", "127.0.0.1", (), False),
        ("evil.example:9000", "0.0.0.0", (), False),
        ("localhost.evil.example", "127.0.0.1", (), False),
        ("127.0.0.1.evil.example", "0.0.0.0", (), False),
        ("evillocalhost", "127.0.0.1", (), False),
        ("1.2.3.4.5", "127.0.0.1", (), False),
        ("backend", "127.0.0.1", (), False),
        ("backend", "localhost", (), False),
        ("backend", "::1", (), False),
        ("backend:8080", "0.0.0.0", (), True),
        ("backend", "192.168.1.20", (), True),
        ("my_app", "::", (), True),
        ("llm.default.svc.cluster.local", "0.0.0.0", (), True),
        ("host.docker.internal", "0.0.0.0", (), True),
        ("nas.home.arpa", "", (), True),
        ("nas.local", "127.0.0.1", (), False),
        ("local.example", "0.0.0.0", (), False),
        ("notlocal.evillocal", "0.0.0.0", (), False),
        ("llm.example.com", "llm.example.com", (), True),
        ("llm.example.com", "127.0.0.1", ("llm.example.com",), True),
        ("LLM.example.com:443", "127.0.0.1", ("llm.example.com",), True),
        ("other.example.com", "127.0.0.1", ("llm.example.com",), False),
        ("a.b.example.com", "127.0.0.1", (".example.com",), True),
        ("example.com", "127.0.0.1", (".example.com",), True),
        ("badexample.com", "127.0.0.1", (".example.com",), False),
        ("evil.example", "127.0.0.1", ("*",), True),
    ],
)
def test_a_server_goes_by_names_that_no_foreign_page_can_have(host, listens_on, allowed, expected):
    assert Hosts(listens_on, allowed).allow(host) is expected


def test_a_server_goes_by_its_machines_name(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "Gpu1.lab.example")
    hosts = Hosts("127.0.0.1", ())
    assert [hosts.allow(name) for name in ("gpu1.lab.example", "gpu1", "gpu2", "lab.example")] == [
        True, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "path, method", [("/generate", "POST"), ("/health", "GET"), ("/nowhere", "GET"), ("/", "OPTIONS")]
)
def test_a_page_that_has_rebound_its_name_to_us_gets_nothing(plain, path, method):
    answer = ask(plain, path, method, Host="evil.example:9000", Origin="http://evil.example:9000")
    assert code(answer) == HOST
    assert "--allowed-host evil.example" in answer.json["error"]["message"]


def test_the_authority_of_an_absolute_target_is_what_counts(plain):
    """RFC 9112, section 3.2.2."""
    cases = ("http://evil.example/", "localhost", 403), ("http://localhost/", "evil.example", 200)
    for target, host, status in cases:
        with socket.create_connection(("127.0.0.1", plain.port), PATIENCE) as sock:
            sock.sendall(("GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % (target, host)).encode())
            assert sock.makefile("rb").readline().split()[1] == b"%d" % status


def test_who_has_a_key_may_call_by_any_name(serve):
    locked = serve(api_key=("key",))
    assert code(ask(locked, Host="llm.example.com", Authorization="Bearer key")) == 200
    assert code(ask(locked, Host="llm.example.com", Authorization="Bearer wrong")) == HOST
    assert code(ask(locked, Host="llm.example.com")) == HOST
    assert code(ask(locked, Host="localhost"))[0] == 401


def test_an_allowed_host_is_let_in(serve):
    assert code(ask(serve(allowed_host=("llm.example.com",)), Host="llm.example.com")) == 200


@pytest.mark.parametrize("text", ["", ".", "a b", "http://a", "a:80", "a/b", "user@a", "**"])
def test_what_is_no_name_is_no_allowed_host(text):
    with pytest.raises(ValueError):
        check_name(text)


# ------------------------------------------------------------------------------------------------ the origin


@pytest.mark.parametrize(
    "path, method, headers, expected",
    [
        # what is no browser
        ("/generate", "POST", {}, 200),
        ("/generate", "POST", {"Content-Type": "text/plain"}, 200),
        ("/generate", "POST", {"User-Agent": "curl/8"}, 200),
        # a foreign page
        ("/generate", "POST", {"Origin": PAGE}, ORIGIN),
        ("/generate", "POST", {"Origin": PAGE, "Content-Type": "text/plain"}, ORIGIN),
        ("/generate", "POST", {"Origin": "null"}, ORIGIN),
        ("/generate", "POST", {"Origin": "http://localhost"}, ORIGIN),
        ("/generate", "POST", {"Origin": "http://localhost.evil.example:{port}"}, ORIGIN),
        ("/generate", "POST", {"Origin": "http://127.0.0.1:{port}"}, ORIGIN),
        ("/generate", "POST", {"Origin": "file://"}, ORIGIN),
        ("/generate", "POST", {"Origin": "chrome-extension://localhost:{port}"}, ORIGIN),
        ("/status", "GET", {"Origin": PAGE}, ORIGIN),
        ("/nowhere", "GET", {"Origin": PAGE}, ORIGIN),
        ("/thing", "DELETE", {"Origin": PAGE}, ORIGIN),
        ("/public", "POST", {"Origin": PAGE}, ORIGIN),
        ("/health", "GET", {"Origin": PAGE}, 200),
        ("/generate", "OPTIONS", {"Origin": PAGE, "Access-Control-Request-Method": "POST"}, 200),
        # our own page
        ("/generate", "POST", {"Origin": "http://localhost:{port}"}, 200),
        ("/generate", "POST", {"Origin": "https://localhost:{port}"}, 200),
        ("/generate", "POST", {"Origin": "https://127.0.0.1", "Host": "127.0.0.1"}, 200),
        ("/generate", "POST", {"Origin": "http://[::1]:80", "Host": "[::1]"}, 200),
        ("/generate", "POST", {"Origin": "http://127.0.0.1:81", "Host": "127.0.0.1"}, ORIGIN),
        ("/generate", "POST", {"Origin": "http://localhost:{port}", "Sec-Fetch-Site": "same-origin"}, 200),
        # browsers that send no Origin
        ("/status", "GET", {"Sec-Fetch-Site": "same-origin"}, 200),
        ("/status", "GET", {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 200),
        ("/status", "GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, ORIGIN),
        ("/status", "GET", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, ORIGIN),
        ("/generate", "POST", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, ORIGIN),
        ("/health", "GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 200),
        # a link to us, and a frame around us
        ("/", "GET", dict(LINK, **{"Sec-Fetch-Dest": "document"}), 200),
        ("/status", "GET", dict(LINK, **{"Sec-Fetch-Dest": "document"}), ORIGIN),
        ("/", "POST", dict(LINK, **{"Sec-Fetch-Dest": "document"}), ORIGIN),
        ("/", "GET", dict(LINK, **{"Sec-Fetch-Dest": "iframe"}), ORIGIN),
        ("/", "GET", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, ORIGIN),
    ],
)  # fmt: skip
def test_foreign_pages_may_only_read_what_is_public(plain, path, method, headers, expected):
    sent = {name: value.replace("{port}", str(plain.port)) for name, value in headers.items()}
    sent.setdefault("Host", "localhost:%d" % plain.port)
    answer = call(plain.url + path, b"{}" if method == "POST" else None, sent, method)
    assert code(answer) == expected
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}


@pytest.mark.parametrize("origin", [PAGE, "app://obsidian.md"])
def test_an_origin_that_is_named_may_call_and_read(serve, origin):
    service = serve(cors_origin=(PAGE, "app://obsidian.md"), api_key=("key",))
    preflight = call(service.url + "/generate", None, dict(PREFLIGHT, Origin=origin), "OPTIONS")
    assert (preflight.status, preflight.body) == (200, b"")
    assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
    assert preflight.headers["Access-Control-Allow-Headers"] == "content-type"
    answer = ask(service, Origin=origin, Authorization="Bearer key")
    for each in (preflight, answer, ask(service, Origin=origin), ask(service, "/nowhere", Origin=origin)):
        assert each.headers["Access-Control-Allow-Origin"] == origin
        assert each.headers["Access-Control-Expose-Headers"] == "X-Request-Id"
        assert each.headers["Vary"] == "Origin"
    assert answer.status == 200


@pytest.mark.parametrize("asked, allowed", [
    ("authorization, content-type,x-stainless-lang", "authorization, content-type,x-stainless-lang"),
    (None, "*"), ("a b", "*"), ("a:b", "*"), (",", "*"), ("x" * 5000, "*"),
])  # fmt: skip
def test_a_page_may_send_the_headers_that_its_browser_asks_for(serve, asked, allowed):
    service = serve(cors_origin=(PAGE,))
    sent = {"Access-Control-Request-Method": "POST", "Origin": PAGE}
    sent.update({"Access-Control-Request-Headers": asked} if asked else {})
    preflight = call(service.url + "/generate", None, sent, "OPTIONS")
    # "*" would not mean Authorization: a page could not send its key
    assert preflight.headers["Access-Control-Allow-Headers"] == allowed


def test_an_origin_that_is_not_named_may_not(serve):
    service = serve(cors_origin=(PAGE,))
    preflight = call(service.url + "/generate", None, dict(PREFLIGHT, Origin="https://other.example"), "OPTIONS")
    answer = ask(service, Origin="https://other.example")
    assert (preflight.status, code(answer)) == (200, ORIGIN)  # the browser stops a page that a preflight does not allow
    for each in (preflight, answer):
        assert "Access-Control-Allow-Origin" not in each.headers and each.headers["Vary"] == "Origin"
    assert "Access-Control-Allow-Methods" not in preflight.headers
    assert ask(service).headers["Vary"] == "Origin"  # or a cache could give this answer to the page


def test_with_a_star_every_page_may_call(serve):
    service = serve(cors_origin=("*",))
    for headers in ({"Origin": PAGE}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}, {}):
        answer = ask(service, **headers)
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, headers.get("Origin"))
        assert answer.headers["Vary"] == "Origin"  # or a cache could give one page's answer to another
    assert code(ask(service, Origin=PAGE, Host="evil.example")) == HOST


@pytest.mark.parametrize(
    "origin, expected",
    [
        ("http://localhost", 200), ("http://localhost:3000", 200), ("https://127.0.0.1:8443", 200),
        ("http://[::1]:3000", 200), ("http://localhost.evil.com", ORIGIN), ("http://notlocalhost", ORIGIN),
        ("http://127.0.0.1.evil.com", ORIGIN), ("http://localhost:evil", ORIGIN), ("null", ORIGIN), (PAGE, ORIGIN),
    ],
)  # fmt: skip
def test_with_localhost_the_pages_of_this_machine_may_call(serve, origin, expected):
    service = serve(cors_origin=("localhost",))
    answer = ask(service, Origin=origin)
    preflight = call(service.url + "/generate", None, dict(PREFLIGHT, Origin=origin), "OPTIONS")
    assert code(answer) == expected and preflight.status == 200
    for each in (answer, preflight):
        assert each.headers["Access-Control-Allow-Origin"] == (origin if expected == 200 else None)


@pytest.mark.parametrize(
    "text, origin",
    [
        ("https://Chat.Example.com/", PAGE), (PAGE + ":443", PAGE), ("http://a:8080", "http://a:8080"), ("*", "*"),
        ("LocalHost", "localhost"),
    ],
)  # fmt: skip
def test_an_origin_is_read_as_browsers_write_it(text, origin):
    assert check_origin(text) == origin


@pytest.mark.parametrize("text", ["", "null", "chat.example.com", "https://a/b", "https://", "https://a b"])
def test_what_is_no_origin_is_refused(text):
    with pytest.raises(ValueError):
        check_origin(text)


# ---------------------------------------------------------------------------------- behind the balancer


@pytest.fixture
def pair():
    """A balancer in front of one backend; both check."""
    backend = Service(server.ServerConfig(), routes()).start()
    balancer = Balancer(Config(port=0, backend=(backend.url + ",slots=4",), admin_key=("admin",))).start()
    wait_until(lambda: balancer.status()["healthy_backends"] == 1)
    yield balancer
    balancer.stop(0)
    backend.drain(0)


def test_our_own_page_reaches_a_backend_through_the_balancer(pair):
    """The backend goes by another name than the balancer, whose page it is."""
    origin = {"Origin": pair.url, "Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
    answer = call(pair.url + "/generate", {}, origin)
    assert answer.status == 200
    assert not [name for name in answer.json["headers"] if name == "origin" or name.startswith("sec-")]


def test_a_foreign_page_reaches_no_backend(pair):
    assert code(call(pair.url + "/generate", {}, {"Origin": PAGE})) == ORIGIN
    assert code(call(pair.url + "/generate", {}, {"Host": "evil.example"})) == HOST


def test_the_admin_key_lets_a_backend_register_by_any_name(pair):
    headers = {"Host": "llm.example.com", "Authorization": "Bearer admin"}
    assert call(pair.url + "/admin/backends", None, headers).status == 200


def test_a_backend_that_does_not_go_by_the_name_it_is_called_by_is_down_and_says_what_to_do(monkeypatch):
    backend = Service(server.ServerConfig(), routes()).start()
    monkeypatch.setattr(backend._hosts, "allow", lambda host: False)
    balancer = Balancer(Config(port=0, backend=(backend.url,))).start()
    try:
        wait_until(lambda: "--allowed-host" in balancer.status()["backends"][0]["why"])
        assert balancer.status()["healthy_backends"] == 0
    finally:
        balancer.stop(0)
        backend.drain(0)


def test_the_options_are_read_and_repeatable():
    arguments = "--allowed-host LLM.example.com --allowed-host .lab --cors-origin https://A --cors-origins http://b:1,*"
    config = options.parse(Config, "", (), arguments.split(), {"COMEAPI_CORS_ORIGIN": ""})
    assert config.allowed_host == ("llm.example.com", ".lab")
    assert config.cors_origin == ("https://a", "http://b:1", "*")
