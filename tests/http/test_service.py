"""What a service makes of a request: its route, its key, and what a client is told that goes wrong."""

import errno
import json
import os
import socket
import urllib.error
import urllib.request

import pytest
import serving
from serving import EXPECTING, PATIENCE, routes

from core.errors import APIError
from core.http import messages
from core.http.messages import Reply
from core.http.routing import Route
from core.http.server import ServerConfig, Service

house, serve, connect = serving.house, serving.serve, serving.connect  # fixtures


# -------------------------------------------------------------------------------------------------------------- routing

def test_an_exact_path_reaches_its_handler(house, connect):
    answer = connect(house).ask("/hello")
    assert (answer.status, answer.json) == (200, {"hello": "wörld"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.version == "HTTP/1.1"


def test_urllib_is_a_client_like_any_other(house):
    with urllib.request.urlopen(house.url + "/hello", timeout=PATIENCE) as answer:
        assert json.load(answer) == {"hello": "wörld"}
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(house.url + "/nowhere", timeout=PATIENCE)
    with caught.value as answer:
        assert answer.code == 404
        assert json.load(answer)["error"]["code"] == "unknown_path"


def test_the_port_really_bound_is_known(house):
    assert house.port > 0
    assert house.url == "http://127.0.0.1:%d" % house.port


def test_a_taken_port_raises_at_start(house):
    with pytest.raises(OSError) as caught:
        Service(ServerConfig(port=house.port), []).start()
    assert caught.value.errno == errno.EADDRINUSE


def test_a_socket_that_listens_can_be_handed_on(house, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(8)
        port = taken.getsockname()[1]
        for _ in range(2):  # the second finds it as the first did
            service = Service(ServerConfig(port=1, listen_fd=(os.dup(taken.fileno()),)), [])
            with socket.create_connection(("127.0.0.1", port)) as early:  # it waits
                service.start()
                assert service.port == port
                early.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert early.recv(12) == b"HTTP/1.1 404"
            service.drain(1)
    with open(tmp_path / "file", "wb") as file, pytest.raises(OSError):
        Service(ServerConfig(listen_fd=(file.fileno(),)), []).start()
    with socket.socket() as other, pytest.raises(OSError, match="no listening socket"):
        Service(ServerConfig(listen_fd=(other.fileno(),)), []).start()


def test_a_query_does_not_hide_the_path(house, connect):
    answer = connect(house).ask("/query?a=1&b=%C3%BC+x&a=2&c=")
    assert answer.json == {"a": "2", "b": "ü x", "c": ""}


@pytest.mark.parametrize(
    "path, params",
    [
        ("/items/demo.gguf", {"name": "demo.gguf"}),
        ("/items/a%20b%2Fc", {"name": "a b/c"}),
        ("/items/%E6%97%A5", {"name": "日"}),
        ("/items/%FF", {"name": "\ufffd"}),
        ("/a.b/x/y", {"one": "x", "two": "y"}),
    ],
)
def test_a_pattern_gives_its_names_percent_decoded(house, connect, path, params):
    assert connect(house).ask(path).json == params


def test_an_exact_path_wins_over_a_pattern(house, connect):
    assert connect(house).ask("/items/special").json == "exact"


@pytest.mark.parametrize("path", ["/", "/hello/", "/items/", "/items/a/b", "/aXb/x/y", "/HELLO"])
def test_a_path_that_no_route_names_gets_404(house, connect, path):
    answer = connect(house).ask(path)
    assert answer.status == 404
    assert answer.error["type"] == "not_found_error"
    assert answer.error["code"] == "unknown_path"


@pytest.mark.parametrize(
    "method, path, allow",
    [
        ("POST", "/hello", "GET"),
        ("GET", "/echo", "POST, PUT"),
        ("HEAD", "/echo", "POST, PUT"),
        ("PUT", "/items/x", "DELETE, GET"),
        ("BREW", "/hello", "GET"),
    ],
)
def test_a_method_that_a_path_does_not_take_gets_405_and_the_ones_it_does(house, connect, method, path, allow):
    answer = connect(house).ask(path, method)
    assert answer.status == 405
    assert answer.headers["allow"] == allow
    if method != "HEAD":
        assert answer.error["code"] == "method_not_allowed"


def test_two_methods_of_one_pattern_have_their_own_handlers(house, connect):
    client = connect(house)
    assert client.ask("/items/x", "GET").json == {"name": "x"}
    assert client.ask("/items/x", "DELETE").json == {"deleted": "x"}


def test_the_fallback_answers_every_path_that_no_route_names(serve, connect):
    service = serve([Route("GET", "/own", lambda request: Reply(b"own"))], lambda request: Reply(b"fallback"))
    client = connect(service)
    assert client.ask("/own").body == b"own"
    assert client.ask("/other").body == b"fallback"
    assert client.ask("/other", "POST", body=b"x").body == b"fallback"
    assert client.ask("/own", "DELETE").status == 405


def test_head_gets_gets_headers_and_no_body(house, connect):
    client = connect(house)
    length = client.ask("/hello").headers["content-length"]
    head = client.ask("/hello", "HEAD")
    assert (head.status, head.headers["content-length"]) == (200, length)
    assert client.ask("/hello").json == {"hello": "wörld"}  # not one byte of a body came between


def test_options_of_the_whole_server_tells_the_methods(house, connect):
    client = connect(house)
    answer = client.ask("*", "OPTIONS")
    assert (answer.status, answer.headers["allow"]) == (204, "DELETE, GET, OPTIONS, POST, PUT")
    assert client.ask().status == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "BREW"])
def test_any_other_method_of_the_whole_server_gets_400(serve, connect, method):
    client = connect(serve(fallback=lambda request: Reply(b"never")))
    assert client.ask("*", method).status == 400
    assert client.ask().status == 200


def test_options_that_is_no_preflight_is_a_method_like_any_other(house, connect):
    assert connect(house).ask("/hello", "OPTIONS").status == 405


# ------------------------------------------------------------------------------------------------------------- API keys

@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer first"},
        {"Authorization": "bearer second"},
        {"Authorization": "Bearer  first "},
        {"X-Api-Key": "second"},
        {"Authorization": "Basic eDp5", "X-Api-Key": "first"},
    ],
)
def test_any_of_the_keys_opens_the_door(serve, connect, headers):
    client = connect(serve(api_key=("first", "second")))
    assert client.ask("/items/x", headers=headers).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer firs"},
        {"Authorization": "Bearer firstt"},
        {"Authorization": "Bearer FIRST"},
        {"Authorization": "Bearer"},
        {"Authorization": "first"},
        {"Authorization": "Basic first"},
        {"X-Api-Key": ""},
        {"X-Api-Key": "first, second"},
        {"Authorization": "Bearer \xff\xfe\xc3\x28"},
        {"X-Api-Key": "\xf0\x9f\x99"},
    ],
)
@pytest.mark.parametrize("path, method", [("/items/x", "GET"), ("/nowhere", "GET"), ("/items/x", "POST")])
def test_a_missing_or_wrong_key_gets_401_whatever_the_path(serve_locked, connect, headers, path, method):
    client = connect(serve_locked)
    answer = client.ask(path, method, headers)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.error["type"] == "authentication_error"
    assert answer.error["code"] == "invalid_api_key"
    assert client.ask("/hello").status == 200  # the public one, on the same connection


@pytest.fixture(scope="module")
def serve_locked():
    service = Service(ServerConfig(api_key=("first", "second")), routes()).start()
    yield service
    service.drain(0)


def test_a_key_beyond_ascii_is_compared_as_utf_8(serve, connect):
    client = connect(serve(api_key=("schlüssel",)))
    client.send("GET /items/x HTTP/1.1\r\nHost: localhost\r\nX-Api-Key: schlüssel\r\n\r\n".encode("utf-8"))
    assert client.answer().status == 200


def test_without_the_key_no_body_is_read(serve, connect):
    client = connect(serve(api_key=("first",)))
    client.send(EXPECTING % 5)
    answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == (401, "close")


# --------------------------------------------------------------------------------------------------- errors and headers

def test_an_api_error_becomes_its_envelope_with_its_status_and_headers(house, connect):
    answer = connect(house).ask("/teapot")
    assert answer.status == 418
    assert answer.headers["x-pot"] == "short"
    assert answer.json == {
        "error": {"message": "No coffee.", "type": "brewing_error", "param": "pot", "code": "teapot"}
    }


@pytest.mark.parametrize(
    "status, kind",
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "server_error"),
        (502, "upstream_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
    ],
)
def test_an_errors_type_follows_from_its_status(status, kind):
    error = {"message": "why", "type": kind, "param": None, "code": None}
    assert APIError(status, "why").envelope() == {"error": error}


def test_an_error_never_gives_back_much_of_what_was_sent(house, connect):
    client = connect(house)
    for answer in (client.ask("/" + "x" * 30000), client.ask("/hello", "B" * 30000)):
        assert answer.status in (404, 405) and len(answer.body) < 500
    long = APIError(404, "There is no model '%s' here." % ("x" * (5 << 20)), param="y" * 9000)
    assert len(messages.error_body(long)) < 3000


def test_an_error_never_gives_back_control_characters():
    error = APIError(400, "bell \x07, escape \x1b[31m, C1 \x9b, tab \t,\nline", param="\x00")
    assert error.message == "bell \ufffd, escape \ufffd[31m, C1 \ufffd, tab \ufffd,\nline" and error.param == "\ufffd"


def test_an_errors_message_may_hold_anything():
    body = messages.error_body(APIError(400, 'half a pair: \ud800, "quotes", ü'))
    assert json.loads(body.decode("utf-8"))["error"]["message"] == 'half a pair: ?, "quotes", ü'


def test_a_defect_in_a_handler_gets_500_tells_nothing_and_is_logged(house, connect, caplog):
    client = connect(house)
    answer = client.ask("/fail", headers={"X-Request-Id": "find-me"})
    assert answer.status == 500
    assert answer.error["type"] == "server_error"
    for secret in (b"secret-internal-detail", b"RuntimeError", b"Traceback", b".py"):
        assert secret not in answer.body
    assert answer.headers["connection"] == "keep-alive"
    assert client.ask().status == 200
    assert "secret-internal-detail" in caplog.text and "find-me" in caplog.text


def test_a_requests_id_comes_back(house, connect):
    client = connect(house)
    for path in ("/hello", "/nowhere", "/fail", "/stream"):
        assert client.ask(path, headers={"X-Request-Id": "trace-%s" % path}).headers["x-request-id"] == "trace-" + path


def test_a_request_without_an_id_gets_one_of_its_own(house, connect):
    client = connect(house)
    ids = [client.ask(path).headers["x-request-id"] for path in ("/hello", "/hello", "/nowhere")]
    assert all(ids) and len(set(ids)) == 3


@pytest.mark.parametrize("given", ["", "two words", "tab\there", "\xff", "x" * 129])
def test_an_unfit_request_id_is_replaced(house, connect, given):
    answer = connect(house).ask(headers={"X-Request-Id": given})
    assert answer.status == 200
    assert answer.headers["x-request-id"].startswith("req-")


@pytest.mark.skipif(not socket.has_ipv6, reason="there is no IPv6 here")
def test_it_listens_on_several_addresses_at_one_port():
    service = Service(ServerConfig(host="127.0.0.1, ::1"), routes())
    try:
        service.start()
    except OSError as error:
        pytest.skip("there is no IPv6 loopback here: %s" % error)
    try:
        for host in ("127.0.0.1", "[::1]"):
            url = "http://%s:%d/hello" % (host, service.port)
            with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
                assert answer.status == 200
        assert service.url == "http://127.0.0.1:%d" % service.port
    finally:
        service.drain(0)
    with pytest.raises(OSError):
        socket.create_connection(("::1", service.port), PATIENCE)


def test_where_one_of_several_addresses_is_not_ours_none_is_taken():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(OSError):
        Service(ServerConfig(host="127.0.0.1,192.0.2.1", port=port), routes()).start()
    Service(ServerConfig(host="127.0.0.1", port=port), routes()).start().drain(0)
