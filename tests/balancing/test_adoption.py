"""A balancer that is killed (kill -9) is followed by another one, which goes on with its answers: nothing is lost.

The test is the parent: it has the Holder and the listening socket, and starts and kills balancers of their own.
"""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading

import pytest
from conftest import PATIENCE, ROOT, call, wait_until
from test_carrying import FAILURE, SECRET, WHOLE, WORDS, Teller

from core.balancing.keeping import connect
from core.balancing.request import Wish
from core.carriage import frame
from core.handing import HOLD
from core.http.messages import Request
from core.http.sockets import Wire
from core.http.written import bytes_written
from core.system.holder import Holder

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can do it")


class Parent:
    """What comeapi.py does for its balancer. `kill()` kills it, and starts the next one."""

    def __init__(self, *tellers, **settings):
        self.tellers = tellers
        self.holder = Holder().start()
        self.listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = "http://127.0.0.1:%d" % self.listening.getsockname()[1]
        self.settings = dict({"recovery_timeout": 0, "health_interval": 1}, **settings)
        self.balancer, self.clients = None, []
        self.start()
        wait_until(lambda: self.status()["healthy_backends"] == len(tellers))

    def start(self):
        fds = (self.listening.fileno(), self.holder.theirs.fileno())
        command = [sys.executable, os.path.join(ROOT, "balancer.py"), "--child"]
        command += ["--listen-fd=%d" % fds[0], "--holder-fd=%d" % fds[1]]
        command += ["--backend=%s" % teller.url for teller in self.tellers]
        command += ["--%s=%s" % (name.replace("_", "-"), value) for name, value in self.settings.items()]
        surroundings = dict(os.environ, COMEAPI_CARRY_SECRET=SECRET, PYTHONIOENCODING="utf-8")
        self.balancer = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=fds, env=surroundings
        )

    def die(self):
        self.balancer.kill()
        self.balancer.wait()
        self.balancer.stdin.close()

    def kill(self):
        self.die()
        self.start()

    def status(self):
        return call(self.url + "/status").json

    def adopted(self):
        """What became of the answers that were left, as /metrics counts them."""
        lines = call(self.url + "/metrics").body.decode().splitlines()
        found = [line.split('"') for line in lines if line.startswith("comeapi_adopted_answers_total{")]
        return {how: int(count) for _, how, count in found for count in [count.strip("} ")]}

    def held(self):
        return len(self.holder._held)

    def close(self):
        self.die()
        self.listening.close()
        self.holder.close()
        for client in self.clients:
            client.close()
        for teller in self.tellers:
            teller.close()


@pytest.fixture
def parent():
    with contextlib.ExitStack() as stack:

        def make(*tellers, **settings):
            made = Parent(*tellers, **settings)
            stack.callback(made.close)
            return made

        yield make


class Pausing(Teller):
    """Waits before the tokens at these places, at each for the first request that comes there."""

    def __init__(self, *places, **how):
        self.places = list(places)
        super().__init__(**how)
        self.pauses = []

    def frames(self, request, begun, whole):
        told = super().frames(request, begun, whole)
        for word in range(begun, WORDS + 1):
            if word in self.places:
                self.places.remove(word)
                gone_on = threading.Event()
                self.pauses.append(gone_on)
                while not gone_on.wait(0.02) and not request.hung_up():
                    pass
            yield next(told)

    def wait_for_pause(self, number):
        wait_until(lambda: len(self.pauses) >= number)


class Client:
    """A request, on a connection of its own or on one that is kept; its answer is read in a thread."""

    def __init__(self, parent, connection=None, **body):
        self.connection = connection or http.client.HTTPConnection(parent.url[len("http://") :], timeout=PATIENCE)
        parent.clients.append(self)
        body = json.dumps(dict({"prompt": "Count", "stream": True}, **body))
        self.connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
        self._thread = threading.Thread(target=self._read, daemon=True)
        self.answer, self.seen, self.error = None, b"", None
        self._thread.start()

    def _read(self):
        try:
            self.answer = self.connection.getresponse()
            for piece in iter(lambda: self.answer.read1(65536), b""):
                self.seen += piece
        except Exception as error:
            self.error = error

    def close(self):
        self._thread.join(PATIENCE)
        if self.answer:
            self.answer.close()
        self.connection.close()

    def wait_for(self, text):
        wait_until(lambda: text in self.seen)

    def end(self):
        self._thread.join(PATIENCE)
        if self.error:
            raise self.error
        return self.seen.replace(b": ping\n\n", b"")


@pytest.mark.parametrize("at", [1, 7, WORDS - 1, WORDS])
def test_a_stream_goes_on_when_its_balancer_is_killed(parent, at):
    teller = Pausing(at)
    made = parent(teller)
    client = Client(made)
    client.wait_for(b"data: %d\n" % (at - 1))
    made.kill()
    assert client.end() == WHOLE
    assert made.adopted() == {"carried on": 1} and made.status()["adopted"] == 1
    assert [len(notes.tokens.get(0, ())) for notes in teller.notes] == [0, at]


def test_a_stream_goes_on_when_its_balancers_are_killed_one_after_another(parent):
    teller = Pausing(2, 4, 6, 8)
    made = parent(teller)
    client = Client(made)
    for number, at in enumerate((2, 4, 6, 8)):
        teller.wait_for_pause(number + 1)
        client.wait_for(b"data: %d\n" % (at - 1))
        made.kill()
    assert client.end() == WHOLE


@pytest.mark.parametrize("at, seen", [(0, b'{"error"'), (5, b"".join(b"data: %d\n\n" % word for word in range(5)))])
def test_an_answer_that_does_not_grow_is_given_up_after_three_deaths_of_balancers(parent, at, seen):
    teller = Pausing(at, at, at)
    made = parent(teller)
    client = Client(made)
    for number in range(3):
        teller.wait_for_pause(number + 1)
        wait_until(made.held)
        made.kill()
    told = client.end()
    assert told.startswith(seen) and len(teller.notes) == 3
    assert (b"3 balancers have died" in told) if not at else told.endswith(FAILURE.encode())
    assert client.answer.status == (200 if at else 500)
    assert made.adopted() == {"given up": 1}


def test_a_balancer_that_is_killed_before_it_has_gone_on_costs_nothing_either(parent):
    teller = Pausing(3)
    made = parent(teller)
    client = Client(made)
    client.wait_for(b"data: 2\n")
    made.kill()
    made.kill()
    assert client.end() == WHOLE


def test_a_request_that_has_no_answer_yet_is_asked_again(parent):
    teller = Pausing(0)
    made = parent(teller)
    client = Client(made)
    teller.wait_for_pause(1)
    wait_until(made.held)
    made.kill()
    assert client.end() == WHOLE and client.answer.status == 200
    assert made.adopted() == {"asked again": 1}


def test_a_plain_answer_goes_on_too(parent):
    teller = Pausing(7)
    made = parent(teller)
    client = Client(made, stream=False)
    teller.wait_for_pause(1)
    wait_until(made.held)
    made.kill()
    assert json.loads(client.end().decode()) == {"words": WORDS} and client.answer.status == 200
    assert [len(notes.tokens.get(0, ())) for notes in teller.notes] == [0, 7]


def test_a_later_request_of_a_kept_connection_goes_on_too(parent):
    teller = Pausing()
    made = parent(teller)
    first = Client(made)
    assert first.end() == WHOLE
    teller.places = [5]
    second = Client(made, first.connection)
    second.wait_for(b"data: 4\n")
    made.kill()
    assert second.end() == WHOLE
    assert first.connection.sock.recv(1) == b""  # it ends with its answer, in an orderly way


def test_streams_of_http_1_0_go_on_too(parent):
    made = parent(Pausing(5))
    with socket.create_connection(made.listening.getsockname(), PATIENCE) as sock:
        body = b'{"prompt": "Count", "stream": true}'
        sock.sendall(b"POST /generate HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        seen = b""
        while b"data: 4\n" not in seen:
            seen += sock.recv(4096)
        made.kill()
        for piece in iter(lambda: sock.recv(4096), b""):
            seen += piece
    assert seen.partition(b"\r\n\r\n")[2] == WHOLE


class Stout(Pausing):
    """Its fifth event is so large that it does not fit into a connection whose client does not read."""

    EVENT = b"data: %s\n\n" % (b"5" * 800000)

    def frames(self, request, begun, whole):
        for data in super().frames(request, begun, whole):
            head, colon, rest = data.partition(b'"n":')
            yield data if b"data: 4\n" not in data else frame({"i": 0, "t": [4]}, b"data: 4\n\n" + self.EVENT)


def test_what_was_written_by_half_is_completed(parent):
    made = parent(Stout())
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(PATIENCE)
        sock.connect(made.listening.getsockname())
        sock.sendall(b"POST /generate HTTP/1.0\r\nContent-Length: 16\r\n\r\n" + b'{"stream": true}')
        (held,) = wait_until(lambda: list(made.holder._held.values()))
        with socket.socket(fileno=os.dup(held)) as theirs:
            wait_until(lambda: bytes_written(theirs) > 2000)
            before = -1
            while before != bytes_written(theirs):
                before = bytes_written(theirs)
                threading.Event().wait(0.2)
        assert before < len(Stout.EVENT)
        made.kill()
        seen = b"".join(iter(lambda: sock.recv(65536), b""))
    assert seen.partition(b"\r\n\r\n")[2] == WHOLE.replace(b"data: 5\n", Stout.EVENT + b"data: 5\n")


def test_a_stream_that_nobody_can_go_on_with_ends_with_an_error_event(parent):
    class Foreign(Teller):
        def frames(self, request, begun, whole):
            yield b"data: 1\n\ndata: 2"
            self.go_on.wait(PATIENCE)

        def answer(self, request):
            reply = super().answer(request)
            reply.headers = ()
            return reply

    made = parent(Foreign())
    client = Client(made)
    client.wait_for(b"data: 2")
    made.kill()
    seen = client.end()
    assert seen.startswith(b"data: 1\n\ndata: 2\n\ndata: {") and b"balancer was killed" in seen
    assert b"[DONE]" not in seen


def test_a_client_that_leaves_while_no_balancer_is_there_is_let_go(parent):
    teller = Pausing(3)
    made = parent(teller)
    client = Client(made)
    client.wait_for(b"data: 2\n")
    made.die()
    client.connection.sock.shutdown(socket.SHUT_RDWR)
    client.connection.close()
    made.start()
    wait_until(lambda: made.status()["healthy_backends"] == 1)
    wait_until(lambda: not made.held())


def test_connections_of_answers_that_have_ended_are_not_held(parent):
    made = parent(Pausing(3))
    client = Client(made)
    client.wait_for(b"data: 2\n")
    wait_until(made.held)
    list(made.tellers[0].pauses)[0].set()
    assert client.end() == WHOLE
    wait_until(lambda: not made.held())


def test_a_balancer_without_such_a_parent_keeps_nothing():
    assert connect(-1) == (None, [])
    ours, theirs = socket.socketpair()
    ours.shutdown(socket.SHUT_WR)
    ours.close()
    assert connect(theirs.detach()) == (None, [])


def test_serial_numbers_are_none_of_those_whose_connections_are_still_held():
    holder = Holder().start()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        first, _ = connect(os.dup(holder.theirs.fileno()))
        first.post.send(HOLD, 50, fd=ours.fileno())  # its request is over, and its place in the journal is another's
        first.close()
        second, orphans = connect(os.dup(holder.theirs.fileno()))
        assert not orphans
        request = Request("POST", "/generate", "HTTP/1.1", {}, Wire(ours, 60), "127.0.0.1")
        assert second.keep(request, Wish()).serial > 50
        second.close()
    holder.close()


# ------------------------------------------------------------------- what a balancer may leave at any other moment


class Dead:
    """A balancer that has died while it wrote: what it noted, and what of it went out."""

    def __init__(self, parent, before=b""):
        self.parent = parent
        self.keeper, orphans = connect(os.dup(parent.holder.theirs.fileno()))
        assert not orphans
        listening = socket.create_server(("127.0.0.1", 0))
        self.client = socket.create_connection(listening.getsockname(), PATIENCE)
        self.sock = listening.accept()[0]
        listening.close()
        self.wire = Wire(self.sock, 60)
        self.wire.write(before)
        body = b'{"prompt": "Count", "stream": true}'
        self.request = Request("POST", "/generate", "HTTP/1.1", {"host": "x"}, self.wire, "127.0.0.1")
        self.request.body = body
        self.record = self.keeper.keep(self.request, Wish("me"))

    def note(self, **note):
        self.record.note(json.dumps(dict(note, n=0)).encode())

    def write(self, data, sent=None, last=False):
        """Note bytes that go out; only `sent` of them do."""
        self.record.writes(data, self.wire.written + len(data), last)
        sent = len(data) if sent is None else sent
        self.sock.send(data[:sent])
        self.wire.written += sent

    def followed(self):
        """Return all that its client gets, once the next balancer is there."""
        self.sock.close()
        self.keeper.close()
        self.parent.start()
        with self.client:
            return b"".join(iter(lambda: self.client.recv(65536), b""))


@pytest.fixture
def dead(parent):
    """A parent whose balancer is dead; with a Dead that has just begun a stream."""
    made = parent(Teller())
    made.die()

    def make(before=b""):
        left = Dead(made, before)
        left.record.begins()
        left.note(head={"fingerprint": "f", "failure": FAILURE}, begun=[0])
        left.note(kind="text/event-stream")
        return left

    yield make


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


def chunks(data):
    """Return what chunks hold, which must come to their end."""
    found = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        found += data[: int(size, 16)]
        data = data[int(size, 16) :]
        assert data.startswith(b"\r\n")
        data = data[2:]
    assert size == b"0"
    return found


@pytest.mark.parametrize("sent", [0, 1, 5, 13, 14])
@pytest.mark.parametrize("before", [b"", b"an earlier answer"])
def test_wherever_a_write_was_cut_its_rest_comes_and_then_what_follows(dead, sent, before):
    left = dead(before)
    left.write(b"HEAD" + chunk(b"data: 0\n\n")[: 14 - 4], 4)
    left.note(i=0, t=[0])
    left.write(chunk(b"data: 0\n\n"), sent)
    seen = left.followed()
    assert seen.startswith(before + b"HEAD")
    assert chunks(seen[len(before) + 4 :]) == WHOLE


def test_of_an_answer_that_was_told_to_its_end_only_the_streams_end_is_missing(dead):
    left = dead()
    left.note(i=0, t=list(range(WORDS)))
    left.note(status=200)
    left.write(chunk(WHOLE))
    assert chunks(left.followed()) == WHOLE
    assert left.parent.adopted() == {"finished": 1} and not left.parent.tellers[0].notes


@pytest.mark.parametrize("sent", [0, 3, None])
def test_the_last_bytes_of_an_answer_are_completed_and_nothing_follows(dead, sent):
    left = dead()
    left.write(b"everything", sent, last=True)
    assert left.followed() == b"everything"
    assert not left.parent.tellers[0].notes


def test_after_an_error_event_nothing_follows_but_the_streams_end(dead):
    left = dead()
    left.record.fails()
    left.write(chunk(FAILURE.encode()), 4)
    assert chunks(left.followed()) == FAILURE.encode()


def test_a_connection_that_has_carried_what_is_not_noted_is_cut(dead):
    left = dead()
    left.write(chunk(b"data: 0\n\n"))
    left.sock.send(b"who knows")
    assert left.followed() == chunk(b"data: 0\n\n") + b"who knows"
    assert left.parent.adopted() == {"cut off": 1}


def test_notes_of_which_the_bytes_are_not_noted_do_not_count(dead):
    left = dead()
    left.note(i=0, t=[0])
    left.write(b"HEAD" + chunk(b"data: 0\n\n"))
    left.note(i=0, t=[1])
    assert chunks(left.followed()[4:]) == WHOLE
    assert [notes.tokens for notes in left.parent.tellers[0].notes] == [{0: [0]}]


def test_a_young_plain_request_is_not_noted_at_all(dead):
    left = dead()
    taken = len(left.keeper.journal._free)
    young = left.keeper.keep(left.request, Wish("me"))
    young.writes(b"answer", 6, True)
    young.secure()
    assert len(left.keeper.journal._free) == taken
    left.client.close()
    left.sock.close()
    left.keeper.close()
