"""An answer that its backend does not end is carried on by another one, and the client sees one answer."""

import json
import socket
import threading
import time

import pytest
from conftest import PATIENCE, call, wait_until

from balancer import Balancer, Config
from core.carriage import CARRY, RESUME, Notes, frame, parted, proof
from core.errors import APIError
from core.http.messages import Stream, json_reply
from core.http.routing import Route
from core.http.server import ServerConfig, Service

SECRET = "theirs"
WORDS = 12
FAILURE = 'data: {"error": "nobody goes on"}\n\n'
WHOLE = b"".join(b"data: %d\n\n" % word for word in range(WORDS)) + b"data: [DONE]\n\n"


def cut_off(teller, request):
    """Reset the connection."""
    request.wire.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    request.wire.sock.close()
    raise OSError("cut")


def ends_early(teller, request):
    return b"", True


def garbles(teller, request):
    return b"data: of another kind\n\n", False


def cuts_a_frame(teller, request):
    return frame({"i": 0, "t": [99]}, b"data: half of an event\n\n")[:-9], True


def lies(teller, request):
    return frame({"i": 0, "t": ["x"]}, b"data: lies\n\n"), False


class Teller:
    """A backend that tells WORDS tokens, one a frame. Before the token number `at`, it does `mishap`."""

    def __init__(self, at=None, mishap=None, carries=True, secret=SECRET, fingerprint="f"):
        self.at, self.mishap, self.secret, self.fingerprint = at, mishap, secret, fingerprint
        self.go_on = threading.Event()
        self.requests, self.notes = [], []
        self.state = {"status": "ok", "slots": 4, "carries": carries, "pid": id(self)}
        self.service = Service(
            ServerConfig(port=0), [Route("GET", "/health", lambda request: json_reply(self.state))], self.answer
        ).start()
        self.url = self.service.url

    def close(self):
        self.go_on.set()
        self.service.drain(0)

    def answer(self, request):
        if request.method != "POST":
            return json_reply({}, 404)
        self.requests.append(request)
        if request.headers.get(CARRY) != proof(self.secret, request.target, request.id, request.body):
            return Stream(iter_closing([WHOLE]), 200, "text/event-stream")
        notes, body = Notes(), request.body
        if RESUME in request.headers:
            notes, body = parted(request.body, request.headers[RESUME])
            if notes.head["fingerprint"] != self.fingerprint:
                raise APIError(409, "Another model.", "other_model")
        self.notes.append(notes)
        whole = not json.loads(body.decode()).get("stream")
        kind = "application/json" if whole else "text/event-stream"
        headers = ((CARRY, "whole" if whole else "stream"),)
        return Stream(self.frames(request, len(notes.tokens.get(0, ())), whole), 200, kind, headers)

    def frames(self, request, begun, whole):
        head = {"fingerprint": self.fingerprint, "nonce": "n", "created": 1, "seeds": [5], "failure": FAILURE}
        note = {"head": head, "begun": [begun]}
        for word in range(begun, WORDS):
            if word == self.at and self.mishap:
                data, ends = self.mishap(self, request)
                yield data
                if ends:
                    return
            yield frame(dict(note, i=0, t=[word]), b"" if whole else b"data: %d\n\n" % word)
            note = {}
        yield frame(dict(note, status=200), b'{"words": %d}' % WORDS if whole else b"data: [DONE]\n\n")


def iter_closing(pieces):
    yield from pieces


@pytest.fixture
def tell():
    """Start tellers and balancers that end with the test."""
    things = []

    def make(*tellers, **settings):
        things.extend(tellers)
        urls = tuple(teller.url for teller in tellers)
        settings = dict({"health_interval": 30.0, "recovery_timeout": 0.0, "carry_secret": SECRET}, **settings)
        things.append(Balancer(Config(port=0, backend=urls, **settings)).start())
        wait_until(lambda: all(each["last_check"] for each in things[-1].status()["backends"]))
        return things[-1]

    yield make
    for thing in reversed(things):
        thing.stop(0) if isinstance(thing, Balancer) else thing.close()


def without_pings(answer):
    return answer.body.replace(b": ping\n\n", b"")


def states(balancer):
    return {each["url"]: each["state"] for each in balancer.status()["backends"]}


def ask(balancer, **body):
    return call(balancer.url + "/generate", dict({"prompt": "Count", "stream": True}, **body))


@pytest.mark.parametrize("at", [0, 1, 7, WORDS - 1])
@pytest.mark.parametrize("mishap", [cut_off, ends_early, garbles, cuts_a_frame, lies])
def test_whatever_ends_a_stream_another_backend_goes_on_with_it(tell, mishap, at):
    broken, good = Teller(at, mishap), Teller()
    answer = ask(tell(broken, good))
    assert (answer.status, answer.body) == (200, WHOLE)
    begun = [len(notes.tokens.get(0, ())) for notes in broken.notes + good.notes]
    assert begun[-1] in (0, at) and len(begun) <= 3  # the good one may be asked first; a kept connection may be stale


def test_a_plain_answer_is_carried_on_too(tell):
    broken, good = Teller(7, cut_off), Teller()
    answer = ask(tell(broken, good), stream=False)
    assert (answer.status, answer.json) == (200, {"words": WORDS})
    assert answer.headers["content-type"] == "application/json" and "content-length" in answer.headers
    assert [notes.tokens for notes in good.notes] == [{0: list(range(7))}]
    assert good.notes[0].head["seeds"] == [5]


def test_clients_see_no_notes_and_can_not_ask_for_any(tell):
    teller = Teller()
    balancer = tell(teller)
    headers = {CARRY: proof(SECRET, "/generate", "r", b"{}"), RESUME: "0", "X-Request-Id": "r"}
    answer = call(balancer.url + "/generate", b'{"stream": true}', headers)
    assert answer.body == WHOLE and not [name for name in answer.headers if name in (CARRY, RESUME)]
    assert RESUME not in teller.requests[-1].headers and teller.requests[-1].headers[CARRY] != headers[CARRY]


def test_an_answer_is_carried_on_as_often_as_it_may_be(tell):
    tellers = [Teller(at, cut_off) for at in (2, 4, 6)] + [Teller()]
    assert ask(tell(*tellers, migrations=3)).body == WHOLE
    more = [Teller(at, cut_off) for at in (2, 4, 6)] + [Teller()]
    answer = ask(tell(*more, migrations=2))
    assert answer.body.endswith(FAILURE.encode()) and b"[DONE]" not in answer.body


def test_no_other_model_goes_on_and_the_client_is_told_in_its_apis_own_form(tell):
    broken, other = Teller(7, cut_off), Teller(fingerprint="g")
    answer = ask(tell(broken, other))
    assert answer.body == b"".join(b"data: %d\n\n" % word for word in range(7)) + FAILURE.encode()
    assert not other.notes


def test_no_backend_is_handed_notes_that_does_not_know_them(tell):
    broken, foreign = Teller(7, cut_off), Teller(carries=False)
    answer = ask(tell(broken, foreign))
    assert answer.body.endswith(FAILURE.encode())
    assert not foreign.requests


def test_a_backend_with_another_secret_is_an_ordinary_one(tell):
    answer = ask(tell(Teller(secret="others")))
    assert answer.body == WHOLE


def test_keep_alives_are_no_progress_and_a_backend_that_sends_nothing_else_is_left(tell):
    def pings(teller, request):
        deadline = time.monotonic() + PATIENCE
        while not teller.go_on.wait(0.05) and time.monotonic() < deadline:
            if request.hung_up():
                break
            request.wire.write(b"%x\r\n%s\r\n" % (len(frame({}, b": ping\n\n")), frame({}, b": ping\n\n")))
        return b"", True

    silent, good = Teller(5, pings), Teller()
    answer = ask(tell(silent, good, timeout=0.5))
    assert without_pings(answer) == WHOLE


def test_a_stream_waits_with_keep_alives_for_the_one_backend_to_come_back(tell):
    teller = Teller(5, cut_off)
    balancer = tell(teller, recovery_timeout=PATIENCE, ping_interval=0.05, health_interval=0.2)
    healthy = teller.state

    def dies(teller, request):
        teller.state = {"status": "error"}
        teller.at = None
        cut_off(teller, request)

    teller.mishap = dies
    answers = []
    client = threading.Thread(target=lambda: answers.append(ask(balancer)))
    client.start()
    wait_until(lambda: teller.at is None)
    threading.Event().wait(0.5)  # what the client sees meanwhile are keep-alives
    teller.state = healthy
    client.join(PATIENCE)
    assert b": ping\n\n" in answers[0].body and without_pings(answers[0]) == WHOLE


def test_a_client_that_leaves_while_its_answer_waits_for_a_backend_is_forgotten(tell):
    teller = Teller(5, cut_off)
    balancer = tell(teller, recovery_timeout=PATIENCE)

    def dies(teller, request):
        teller.state = {"status": "error"}
        cut_off(teller, request)

    teller.mishap = dies
    with socket.create_connection(("127.0.0.1", balancer.service.port)) as client:
        head = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16\r\n\r\n"
        client.sendall(head + b'{"stream": true}')
        wait_until(lambda: balancer.pool.queued() == 1)
    wait_until(lambda: balancer.pool.queued() == 0 and not balancer.service.requests_active())


def test_a_full_queue_keeps_no_answer_from_going_on(tell):
    busy = threading.Event()

    def holds(teller, request):
        busy.set()
        teller.go_on.wait(PATIENCE)
        return b"", False

    def breaks_when_the_other_is_full(teller, request):
        busy.wait(PATIENCE)
        return cut_off(teller, request)

    broken, full = Teller(5, breaks_when_the_other_is_full), Teller(1, holds)
    full.state = dict(full.state, slots=1)
    balancer = tell(broken, full, queue_size=0)
    broken.state = dict(broken.state, slots=1)
    answers = {}

    def client(name):
        answers[name] = ask(balancer)

    clients = [threading.Thread(target=client, args=(name,)) for name in range(2)]
    for each in clients:
        each.start()
    assert busy.wait(PATIENCE)
    wait_until(lambda: len(broken.requests) and balancer.pool.queued() == 1)
    full.go_on.set()
    for each in clients:
        each.join(PATIENCE)
    assert [answers[name].body for name in range(2)] == [WHOLE, WHOLE]
    metrics = call(balancer.url + "/metrics").body.decode()
    assert 'comeapi_migrations_total{why="broken"} 1' in metrics


def held(teller, request):
    """Wait until the test lets go."""
    teller.go_on.wait(PATIENCE)
    return b"", False


def begun_answer(tell, at, **body):
    """Let a teller wait before token `at`. Returns the balancer, it, the other one, the client and its answers."""
    tellers = Teller(at, held), Teller(at, held)
    balancer = tell(*tellers)
    answers = []
    client = threading.Thread(target=lambda: answers.append(ask(balancer, **body)))
    client.start()
    wait_until(lambda: tellers[0].notes or tellers[1].notes)
    old, new = sorted(tellers, key=lambda teller: not teller.notes)
    return balancer, old, new, client, answers


@pytest.mark.parametrize("stream", [True, False])
def test_a_drain_moves_answers_on_instead_of_waiting_for_their_end(tell, stream):
    balancer, old, new, client, answers = begun_answer(tell, 5, stream=stream)
    balancer._membership.drain(old.url)
    new.mishap = None
    old.go_on.set()
    client.join(PATIENCE)
    assert answers[0].json == {"words": WORDS} if not stream else answers[0].body == WHOLE
    assert len(new.notes) == 1 and 0 < len(new.notes[0].tokens[0]) < WORDS
    metrics = call(balancer.url + "/metrics").body.decode()
    assert 'comeapi_migrations_total{why="drained"} 1' in metrics


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_leaves_a_backend_whose_engine_stalls(tell, stream):
    balancer, old, new, client, answers = begun_answer(tell, 5, stream=stream)
    new.mishap = None
    old.state["stalled"] = True
    client.join(PATIENCE)
    assert answers[0].json == {"words": WORDS} if not stream else without_pings(answers[0]) == WHOLE
    assert len(new.notes) == 1 and len(new.notes[0].tokens[0]) == 5
    assert states(balancer) == {old.url: "stalled", new.url: "up"}
    assert 'comeapi_migrations_total{why="stalled"} 1' in call(balancer.url + "/metrics").body.decode()
    assert [ask(balancer).status for _ in range(3)] == [200] * 3 and len(old.notes) == 1
    old.state["stalled"] = False
    wait_until(lambda: states(balancer)[old.url] == "up")


def test_a_request_whose_answer_has_not_begun_leaves_such_a_backend_too(tell):
    balancer, old, new, client, answers = begun_answer(tell, 0)
    new.mishap = None
    old.state["stalled"] = True
    client.join(PATIENCE)
    assert without_pings(answers[0]) == WHOLE and not new.notes[0].tokens


def test_an_answer_stays_where_it_is_when_all_backends_stall(tell):
    first, second = Teller(5, held), Teller(5, held)
    balancer = tell(first, second, health_interval=0.2)
    for each in (first, second):
        each.state["stalled"] = True
    wait_until(lambda: list(states(balancer).values()) == ["stalled"] * 2)
    answers = []
    client = threading.Thread(target=lambda: answers.append(ask(balancer)))
    client.start()
    wait_until(lambda: first.notes or second.notes)
    seen = [each["last_check"] for each in balancer.status()["backends"]]
    wait_until(lambda: all(old < each["last_check"] for old, each in zip(seen, balancer.status()["backends"])))
    for each in (first, second):
        each.go_on.set()
    client.join(PATIENCE)
    assert without_pings(answers[0]) == WHOLE and len(first.notes + second.notes) == 1


def test_a_drain_waits_for_an_answer_that_no_other_backend_can_take(tell):
    first, full = Teller(5, held), Teller()
    full.state = dict(full.state, carries=False)
    balancer = tell(first, full)
    answers = []
    client = threading.Thread(target=lambda: answers.append([ask(balancer) for _ in range(2)]))
    client.start()
    wait_until(lambda: first.notes)
    balancer._membership.drain(first.url)
    first.go_on.set()
    client.join(PATIENCE)
    assert [answer.body for answer in answers[0]] == [WHOLE, WHOLE]
    assert not any(notes.tokens for notes in full.notes)


class Slow(Teller):
    """Tells how it is only when it is let."""

    def __init__(self):
        self.let = threading.Event()
        super().__init__()

    @property
    def state(self):
        self.let.wait(PATIENCE)
        return self._state

    @state.setter
    def state(self, value):
        self._state = value


def test_a_request_that_comes_before_anything_is_known_of_a_backend_waits_for_it_and_is_carried(tell):
    teller = Slow()
    threading.Timer(0.2, teller.let.set).start()
    balancer = Balancer(Config(port=0, backend=(teller.url,), carry_secret=SECRET)).start()
    try:
        assert ask(balancer).body == WHOLE
    finally:
        balancer.stop(0)
        teller.close()
    assert teller.notes and CARRY in teller.requests[0].headers


def test_a_backend_that_does_not_tell_how_it_is_holds_no_request_up_for_long(tell):
    teller = Slow()
    balancer = Balancer(Config(port=0, backend=(teller.url,), carry_secret=SECRET)).start()
    try:
        assert ask(balancer).body == WHOLE
    finally:
        teller.let.set()
        balancer.stop(0)
        teller.close()
