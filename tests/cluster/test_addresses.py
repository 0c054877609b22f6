"""Two balancers behind one address: keepalived moves it, or haproxy stands before them, as in the README.

keepalived's machines are network namespaces. Nothing is to be lost that had not begun, and what is cut is cut visibly.
"""

import contextlib
import json
import shutil
import signal
import socket
import statistics
import subprocess
import threading
import time

import pytest
from conftest import LASTING_OPTIONS, PATIENCE, RAMBLE, Program, Streaming, call, free_ports, wait_until
from networks import Network, missing, run
from recipes import recipe

pytestmark = pytest.mark.slow
ADDRESS = "10.77.0.100"
ADDRESS_URL = "http://%s:9000" % ADDRESS
MOVES = 4  # of each kind
ENDLESS = {"prompt": "Once", "model_name": "demo.gguf", "max_tokens": 7000, "ignore_eos": True}
SHORT = {"prompt": "Once", "model_name": "demo.gguf", "max_tokens": 4}


def backend_in(place, host="127.0.0.1"):
    """Start a backend with room for long answers; `place` is a context to start it in."""
    with place:
        program = Program(
            "backend.py", "--child", "--port=0", "--host=" + host, "--threads=1", "--slots=8", *LASTING_OPTIONS
        )
    program.url = program.wait_for_event("listening")["url"].replace("127.0.0.1", host)
    program.wait_for_event("ready")
    return program


class Daemon:
    """A program of somebody else's, in the foreground; its log goes to a file."""

    def __init__(self, folder, *command):
        self._log = open(str(folder / "log"), "ab")
        self.process = subprocess.Popen([str(each) for each in command], stdout=self._log, stderr=self._log)

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self._log.close()


class Asker(threading.Thread):
    """A user of the official client, who asks again and again; `place()` is a context to do that in."""

    def __init__(self, url, place=contextlib.nullcontext, **how):
        super().__init__(daemon=True)
        self._url, self._place, self._how = url, place, how
        self._enough = threading.Event()
        self.whole = self.cut = 0
        self.refused = []  # the errors before an answer began
        self.start()

    def run(self):
        openai = pytest.importorskip("openai")
        with self._place():
            with openai.OpenAI(base_url=self._url + "/v1", api_key="none", timeout=PATIENCE, **self._how) as client:
                while not self._enough.is_set():
                    self._ask(client)

    def _ask(self, client):
        said = [{"role": "user", "content": "Once"}]
        try:
            stream = client.chat.completions.create(model="demo.gguf", messages=said, max_tokens=30, stream=True)
        except Exception as error:  # whatever it is, it is counted
            self.refused.append("%s: %r, %r" % (time.strftime("%X"), error, error.__cause__))
            return
        try:
            whole = [chunk.choices[0].finish_reason for chunk in stream if chunk.choices][-1]
        except Exception:
            whole = None
        self.whole += bool(whole)
        self.cut += not whole

    def stop(self):
        """Return the errors of requests that had not begun."""
        self._enough.set()
        self.join(PATIENCE)
        return self.refused


# ------------------------------------------------------------------------------------------------- keepalived


class Pair:
    """Two machines with a balancer and a keepalived each, a client's machine, and a backend that both know."""

    def __init__(self, network, folder):
        self.network = network
        self._folder = folder
        self.backend = backend_in(network.inside("lan"), "10.77.0.1")
        self.balancers = {}
        self._keepers = []
        sysctls = [line for line in recipe("/etc/sysctl.d/60-comeapi.conf").splitlines() if "=" in line]
        for host in ("one", "two"):
            with network.inside(host):
                run("sysctl", "-q", *sysctls)
            self.start(host)
        for host in ("one", "two"):
            self._keepers.append(self._keep(host))

    def start(self, host):
        """Start a machine's balancer."""
        url = "--backend=" + self.backend.url
        with self.network.inside(host):
            balancer = Program("balancer.py", "--host=0.0.0.0", "--port=9000", "--drain-grace=3", url)
        balancer.wait_for_line("in front of")
        self.balancers[host] = balancer
        wait_until(lambda: self.ask(host, "http://127.0.0.1:9000/health") == 200)

    def _keep(self, host):
        folder = self._folder / host
        folder.mkdir()
        configuration = folder / "keepalived.conf"
        configuration.write_text(recipe("/etc/keepalived/keepalived.conf", words={"192.0.2.10": ADDRESS}))
        with self.network.inside(host):
            return Daemon(
                folder, "keepalived", "--dont-fork", "--log-console", "--vrrp", "--no_bfd", "-f", configuration,
                "-p", folder / "pid", "-r", folder / "vrrp.pid",
            )  # fmt: skip

    def ask(self, host, url):
        """Return the status of an answer to a machine; None where there is none."""
        with self.network.inside(host):
            try:
                return call(url, timeout=2).status
            except OSError:
                return None

    def holder(self):
        """Return the machine that has the address, if one has."""
        on = [host for host in self.balancers if ADDRESS + "/24" in self.network.ip(host, "-4", "address")]
        return on[0] if len(on) == 1 else None

    def other(self, host):
        """Return the other machine."""
        return "two" if host == "one" else "one"

    def settled(self):
        """Wait until one machine has the address and the other one could take it; return the first."""
        wait_until(lambda: self.holder() and self.ask("client", ADDRESS_URL + "/health") == 200)
        return self.holder()

    def close(self):
        for each in self._keepers + list(self.balancers.values()) + [self.backend]:
            each.close()


@pytest.fixture
def pair(tmp_path):
    why = missing("keepalived", "curl", "sysctl")
    if why:
        pytest.skip(why)
    with Network("one", "two", "client") as network:
        made = Pair(network, tmp_path)
        try:
            made.settled()
            yield made
        finally:
            made.close()


def stop(balancer, number):
    balancer.process.send_signal(number)
    return time.monotonic()


def moved(pair, host, since):
    """Wait until the address answers on the other machine; return the seconds since a moment."""
    wait_until(lambda: pair.holder() == pair.other(host) and pair.ask("client", ADDRESS_URL + "/health") == 200)
    return time.monotonic() - since


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_the_address_moves_within_two_seconds_and_no_request_is_lost_that_had_not_begun(pair, number):
    pytest.importorskip("openai")
    askers = [Asker(ADDRESS_URL, lambda: pair.network.inside("client")) for _ in range(3)]
    took = []
    for _ in range(MOVES):
        host = pair.settled()
        wait_until(lambda: all(asker.whole for asker in askers))
        took.append(moved(pair, host, stop(pair.balancers[host], number)))
        pair.balancers[host].close()
        pair.start(host)
        time.sleep(3)  # keepalived looks twice at a balancer that has come back
    refused = [error for asker in askers for error in asker.stop()]
    whole, cut = sum(asker.whole for asker in askers), sum(asker.cut for asker in askers)
    print("%s: moved after %s s; %d answers whole, %d cut, %d refused" % (
        number.name, ["%.2f" % each for each in took], whole, cut, len(refused)))  # fmt: skip
    assert not refused
    assert max(took) < 2, took
    assert statistics.median(took) < 1.5


def begin(pair):
    with pair.network.inside("client"):
        return Streaming(ADDRESS_URL + "/generate", ENDLESS)


def test_streams_of_a_balancer_that_is_killed_end_at_once(pair):
    stream = begin(pair)
    since = stop(pair.balancers[pair.holder()], signal.SIGKILL)
    with pytest.raises(Exception) as caught:  # an end before the last chunk, or a reset
        stream.end()
    took = time.monotonic() - since
    print("killed: its client saw %r after %.2f s" % (caught.value, took))
    assert took < 1


def test_streams_of_a_balancer_that_is_stopped_are_reset_when_the_address_moves(pair):
    """Their clients only read: it is the new machine that resets them, since what the old one sends still comes."""
    host, stream = pair.holder(), begin(pair)
    since = stop(pair.balancers[host], signal.SIGTERM)
    with pytest.raises(ConnectionResetError):
        stream.end()
    took = time.monotonic() - since
    print("stopped: its client saw a reset after %.2f s" % took)
    assert took < 3


def test_a_client_whose_machine_has_lost_its_balancer_finds_out_by_keepalives_of_tcp(pair):
    """A machine without power says nothing. Whoever sends, if only a keepalive, is reset by the new machine."""
    host = pair.holder()
    with pair.network.inside("client"):
        stream = socket.create_connection((ADDRESS, 9000), PATIENCE)
        for option, value in (("SO_KEEPALIVE", 1), ("TCP_KEEPIDLE", 2), ("TCP_KEEPINTVL", 1)):
            level = socket.SOL_SOCKET if option.startswith("SO_") else socket.IPPROTO_TCP
            stream.setsockopt(level, getattr(socket, option), value)
    body = b'{"prompt": "Once", "model_name": "demo.gguf", "max_tokens": 7000, "ignore_eos": true, "stream": true}'
    head = "POST /generate HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n\r\n" % (ADDRESS, len(body))
    with stream:
        stream.sendall(head.encode() + body)
        assert stream.recv(100)
        pair.network.plug(host, False)
        since = time.monotonic()
        wait_until(lambda: pair.ask("client", ADDRESS_URL + "/health") == 200)
        took = time.monotonic() - since
        with pytest.raises(ConnectionResetError):
            while stream.recv(65536):
                pass
        print("unplugged: served again after %.2f s; its client saw a reset after %.2f s" % (
            took, time.monotonic() - since))  # fmt: skip
        assert took < 2
    pair.network.plug(host, True)


# ---------------------------------------------------------------------------------------------------- haproxy


class Proxied:
    """Two balancers behind haproxy, with two backends that both know; all on this machine."""

    def __init__(self, folder):
        ports = free_ports(3)
        self.url = "http://127.0.0.1:%d" % ports
        self._socket = str(folder / "admin.sock")
        self._ports = {"one": ports + 1, "two": ports + 2}
        self.backends = [backend_in(contextlib.nullcontext()) for _ in range(2)]
        self.balancers = {}
        for name in self._ports:
            self.start(name)
        words = {"192.0.2.10:80": "127.0.0.1:%d" % ports, "/run/haproxy/admin.sock": self._socket}
        words.update({"192.0.2.11:9000": "127.0.0.1:%d" % (ports + 1), "192.0.2.12:9000": "127.0.0.1:%d" % (ports + 2)})
        configuration = folder / "haproxy.cfg"
        configuration.write_text(recipe("/etc/haproxy/haproxy.cfg", words=words))
        self._haproxy = Daemon(folder, "haproxy", "-db", "-f", configuration)
        wait_until(self.ready)

    def start(self, name):
        """Start a balancer, on the port that haproxy knows."""
        options = ["--backend=" + backend.url for backend in self.backends]
        balancer = Program("balancer.py", "--port=%d" % self._ports[name], "--drain-grace=6", *options)
        balancer.wait_for_line("in front of")
        balancer.url = "http://127.0.0.1:%d" % self._ports[name]
        wait_until(lambda: call(balancer.url + "/status").json["healthy_backends"] == 2)
        self.balancers[name] = balancer

    def states(self):
        """Return what haproxy thinks of each balancer: UP, DOWN, or on the way."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
            sock.connect(self._socket)
            sock.sendall(b"show stat\n")
            with sock.makefile() as lines:
                rows = [line.split(",") for line in lines]
            return {row[1]: row[17] for row in rows if row[0] == "balancers" and row[1] in self._ports}
        return {}

    def ready(self):
        """Whether haproxy has found both up."""
        return self.states() == {"one": "UP", "two": "UP"}

    def close(self):
        haproxy = [self._haproxy] if hasattr(self, "_haproxy") else []
        for each in haproxy + list(self.balancers.values()) + self.backends:
            each.close()


@pytest.fixture
def proxied(tmp_path):
    if not shutil.which("haproxy"):
        pytest.skip("haproxy is not installed")
    made = Proxied(tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_balancers_behind_haproxy_are_restarted_one_by_one_and_nothing_is_lost(proxied):
    """Nobody asks twice, and streams that run go on: also long ones."""
    pytest.importorskip("openai")
    askers = [Asker(proxied.url, max_retries=0) for _ in range(6)]
    for name in ("one", "two"):
        wait_until(lambda: all(asker.whole for asker in askers))
        stop(proxied.balancers[name], signal.SIGTERM)
        wait_until(lambda: proxied.states()[name].startswith("DOWN"))
        assert proxied.balancers[name].process.poll() is None  # it waits until haproxy has seen it
        assert proxied.balancers[name].end() == 0
        proxied.balancers[name].close()
        proxied.start(name)
        wait_until(proxied.ready)
    refused = [error for asker in askers for error in asker.stop()]
    print("restarted: %d answers whole, %d cut" % (sum(a.whole for a in askers), sum(a.cut for a in askers)))
    assert not refused
    assert not sum(asker.cut for asker in askers)


def test_of_a_balancer_behind_haproxy_that_is_killed_only_what_had_begun_is_cut(proxied):
    """haproxy sends again what was refused or got no answer, but says 502 after a reset; then the client asks again."""
    pytest.importorskip("openai")
    askers = [Asker(proxied.url) for _ in range(6)]
    for name in ("one", "two", "one"):
        seen = sum(asker.whole for asker in askers) + 30
        wait_until(lambda: sum(asker.whole for asker in askers) >= seen)
        stop(proxied.balancers[name], signal.SIGKILL)
        proxied.balancers[name].close()
        seen = sum(asker.whole for asker in askers) + 30
        wait_until(lambda: sum(asker.whole for asker in askers) >= seen)
        proxied.start(name)
        wait_until(proxied.ready)
    refused = [error for asker in askers for error in asker.stop()]
    print("killed: %d answers whole, %d cut" % (sum(a.whole for a in askers), sum(a.cut for a in askers)))
    assert not refused
    assert sum(asker.cut for asker in askers) <= 18  # what ran there: six askers, three times


def test_haproxy_holds_no_event_back(proxied):
    """Most events come alone, through it as without it."""
    for url in (proxied.balancers["one"].url, proxied.url):
        gaps = gaps_of(url)
        print("gaps of %s: median %.1f ms, longest %.0f ms" % (url, 1e3 * statistics.median(gaps), 1e3 * max(gaps)))
        assert len(gaps) > 150


def gaps_of(url):
    """Return the seconds between what is read of a stream of 300 tokens, which nobody could guess."""
    host, _, port = url.split("//")[1].partition(":")
    body = json.dumps(dict(RAMBLE, prompt="Once", model_name="demo.gguf", stream=True)).encode("ascii")
    head = "POST /generate HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (host, len(body))
    moments, said = [], b""
    with socket.create_connection((host, int(port)), PATIENCE) as sock:
        sock.sendall(head.encode() + body)
        for data in iter(lambda: sock.recv(65536), b""):
            moments.append(time.monotonic())
            said += data
    assert b"[DONE]" in said, said
    return [after - before for before, after in zip(moments, moments[1:])]
