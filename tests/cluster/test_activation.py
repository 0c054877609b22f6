"""Listening sockets that systemd has bound (sd_listen_fds(3)): a restart refuses nobody."""

import contextlib
import os
import socket
import threading

import pytest
from conftest import PATIENCE, Answer, call, free_ports, wait_until
from manager import listening, port_of, service

from core.http.listening import activated
from core.http.server import ServerConfig

pytestmark = pytest.mark.skipif(os.name != "posix", reason="systemd runs on Linux alone")


@pytest.fixture
def third():
    """A function that makes a socket this process' descriptor 3, as systemd does, until the test has ended."""
    kept = os.dup(3) if _is_open(3) else None

    def place(sock):
        os.dup2(sock.fileno(), 3)

    yield place
    if kept is None:
        with contextlib.suppress(OSError):
            os.close(3)
    else:
        os.dup2(kept, 3)
        os.close(kept)


def _is_open(number):
    try:
        os.fstat(number)
        return True
    except OSError:
        return False


def given(count=1, pid=None):
    return {"LISTEN_FDS": str(count), "LISTEN_PID": str(pid or os.getpid()), "LISTEN_FDNAMES": "http"}


def test_a_program_takes_the_address_of_the_socket_that_it_is_handed(third):
    with listening() as sock:
        third(sock)
        environ = given()
        config = activated(ServerConfig(host="192.0.2.1", port=9000), environ)
        assert config == ServerConfig(host="127.0.0.1", port=port_of(sock), listen_fd=(3,))
        assert not environ  # what this program starts has other descriptors
        assert not os.get_inheritable(3)


@pytest.mark.parametrize(
    "environ",
    [{}, given(pid=1), given(count=0), given(count="x"), {"LISTEN_FDS": "1"}],
    ids=["nothing", "another process", "no sockets", "no number", "no process"],
)
def test_variables_for_another_process_hand_nothing_on(environ):
    assert activated(ServerConfig(port=9000), dict(environ)) == ServerConfig(port=9000)


def test_an_option_wins_over_systemd(third):
    with listening() as sock:
        third(sock)
        assert activated(ServerConfig(listen_fd=(7,)), given()).listen_fd == (7,)


@pytest.mark.parametrize("kind", ["unix", "connected"])
def test_a_socket_that_can_not_be_served_ends_the_program_with_its_reason(third, kind, capsys, tmp_path):
    sock = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET)
    with sock, pytest.raises(SystemExit):
        if kind == "unix":
            sock.bind(str(tmp_path / "s"))
            sock.listen(1)
        third(sock)
        activated(ServerConfig(), given())
    assert {"unix": "no socket of TCP", "connected": "no listening socket"}[kind] in capsys.readouterr().err


def test_a_balancer_serves_every_socket_that_it_is_handed():
    with listening() as first, listening("::1") as second:
        with service([first, second], "balancer.py", "--child", "--backends=0") as balancer:
            balancer.wait_for_event("listening")
            for host, sock in (("127.0.0.1", first), ("[::1]", second)):
                assert call("http://%s:%d/status" % (host, port_of(sock))).status == 200


def ask_again_and_again(url, answers, over):
    while not over.is_set():
        try:
            answers.append(call(url + "/status"))
        except OSError as error:
            answers.append(error)
        over.wait(0.01)


@pytest.mark.parametrize(
    "command",
    [
        ("balancer.py", "--backends=0"),
        ("backend.py", "--threads=1", "--lazy"),
    ],
    ids=["balancer", "backend"],
)
def test_a_restart_refuses_nobody(command):
    with listening() as sock:
        url = "http://127.0.0.1:%d" % port_of(sock)
        answers, over = [], threading.Event()
        client = threading.Thread(target=ask_again_and_again, args=(url, answers, over))
        client.start()  # the first ones wait until there is a program at all
        try:
            for _ in range(3):
                with service([sock], *command, "--child") as program:
                    assert program.wait_for_event("listening")["url"] == url
                    before = len(answers)
                    wait_until(lambda before=before: len(answers) > before + 5)
            with service([sock], *command, "--child"):  # who came between two programs is answered by the next
                over.set()
                client.join(PATIENCE)
        finally:
            over.set()
        assert not [each for each in answers if not isinstance(each, Answer) or each.status != 200]


def test_comeapi_hands_the_socket_on_to_its_balancer():
    with listening() as sock:
        url = "http://127.0.0.1:%d" % port_of(sock)
        options = ["--backends=1", "--threads=1", "--base-port=%d" % free_ports(1)]
        with service([sock], "comeapi.py", *options) as system:
            assert url in system.wait_for_line("🚀")
            assert call(url + "/health").status == 200
