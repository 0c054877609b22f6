"""The loop that drives all dialects, with an engine of the test's own and no socket."""

import json
import threading

import pytest
from conftest import PATIENCE, wait_until

from core.apis.dialect import Dialect
from core.apis.endpoint import Endpoint
from core.apis.host import Host
from core.ask import Ask
from core.engine.outcome import Finished, Piece
from core.errors import APIError, HangUp
from core.http.messages import Request
from core.http.sse import Form
from core.models import ModelFile

MODEL = ModelFile("m.gguf", "/m/m.gguf", 1, "llama")
END = Finished("stop", 10, 4, 5, {})


class Client:
    """The wire of a client that is there until it has left."""

    left = False

    def hung_up(self):
        return self.left


class Engine:
    """Takes what it is asked, and tells what the test wants."""

    def __init__(self, slots=4, room=100):
        self.settings = type("Settings", (), {"slots": slots})
        self.room = room
        self.submitted, self.cancelled = [], []

    def submit(self, generation):
        if len(self.submitted) >= self.room:
            raise APIError(503, "Full.", "queue_full")
        self.submitted.append(generation)

    def cancel(self, generation):
        self.cancelled.append(generation)


class Words(Dialect):
    """A dialect that says each thing in a word."""

    form = Form(render=lambda body: body.encode() + b" ", done=b"done", ping=b"ping")

    def __init__(self, count=1, streams=True):
        super().__init__([Ask(MODEL, "x")] * count, streams)

    def whole(self, results):
        return [result.text for result in results]

    def begin(self, index, start):
        return ["begin%d" % index]

    def delta(self, index, piece):
        return [piece.text] if piece.text else []

    def end(self, index, end):
        return ["end%d" % index]

    def last(self):
        return ["last"]


def asking(client=None):
    """Return a request, and its client."""
    client = client or Client()
    return Request("POST", "/", "HTTP/1.1", {}, client, "127.0.0.1"), client


def answer_of(engine, dialect, request, ping=60.0):
    host = Host(engine, None)
    request.body = b"{}"
    return Endpoint(host, ping).answer(request, lambda call, host: dialect)


def pieces_of(engine, dialect, request, ping=60.0):
    return answer_of(engine, dialect, request, ping).chunks


def test_a_stream_is_begun_told_and_ended_in_the_dialects_words():
    engine, dialect = Engine(), Words(2)
    pieces = pieces_of(engine, dialect, asking()[0])
    events = [(0, Piece("a", [1])), (1, Piece("", [2])), (0, END), (1, END)]
    feeder = threading.Thread(target=feed, args=(engine, events))
    feeder.start()
    assert b"".join(pieces) == b"begin0 a begin1 end0 end1 last done"
    feeder.join()
    assert not engine.cancelled


def feed(engine, events):
    """Tell events, each by its generation's index, as soon as all generations are submitted."""
    wait_until(lambda: len(engine.submitted) > max(index for index, _ in events))
    for index, event in events:
        engine.submitted[index].tell(event)


def test_a_stream_is_pinged_while_nothing_flows():
    pieces = pieces_of(Engine(), Words(), asking()[0], ping=0.05)
    assert [next(pieces) for _ in range(3)] == [b"ping"] * 3


def test_a_model_that_tells_tokens_without_text_is_pinged_for_too():
    engine = Engine()
    pieces = pieces_of(engine, Words(), asking()[0], ping=0.05)
    seen = [next(pieces)]
    while b"ping" not in seen[1:]:
        engine.submitted[0].tell(Piece("", [1]))
        seen.append(next(pieces))
    assert set(seen[1:]) <= {b"ping", b"", b"begin0 "}


def test_a_form_without_pings_stays_silent():
    class Lines(Words):
        form = Form(render=str.encode, done=b"", ping=b"")

    engine = Engine()
    pieces = pieces_of(engine, Lines(), asking()[0], ping=0.01)
    assert [next(pieces) for _ in range(3)] == [b""] * 3


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_leaves_cancels_all_its_generations(streams):
    engine, dialect = Engine(), Words(3, streams)
    request, client = asking()
    client.left = True
    with pytest.raises(HangUp):
        next(answer_of(engine, dialect, request).chunks)
    assert engine.cancelled == engine.submitted and len(engine.cancelled) == 3


def test_a_stream_that_is_closed_cancels_what_still_runs_and_nothing_else():
    engine = Engine()
    pieces = pieces_of(engine, Words(2), asking()[0])
    feeder = threading.Thread(target=feed, args=(engine, [(0, END)]))
    feeder.start()
    assert next(pieces) == b"begin0 end0 "
    feeder.join()
    pieces.close()
    assert engine.cancelled == engine.submitted[1:]


def test_an_error_of_one_generation_ends_all_of_them():
    engine = Engine()
    pieces = pieces_of(engine, Words(2), asking()[0])
    feeder = threading.Thread(target=feed, args=(engine, [(1, APIError(500, "It broke."))]))
    feeder.start()
    with pytest.raises(APIError, match="It broke"):
        next(pieces)
    feeder.join()
    assert engine.cancelled == engine.submitted[:1]


def test_one_request_has_no_more_generations_at_work_than_there_are_slots():
    engine = Engine(slots=2)
    request, _ = asking()
    answers = []
    reader = threading.Thread(target=lambda: answers.append(answer_of(engine, Words(5, False), request)))
    reader.start()
    for number in range(5):
        wait_until(lambda: len(engine.submitted) == min(5, number + 2))
        engine.submitted[number].tell(Piece(str(number), [number]))
        engine.submitted[number].tell(END)
    reader.join(PATIENCE)
    assert json.loads(answers[0].body) == list("01234")


def test_where_the_line_is_full_the_rest_of_a_request_waits_for_its_own_first_ones():
    engine = Engine(room=1)
    pieces = pieces_of(engine, Words(2), asking()[0])
    feeder = threading.Thread(target=feed, args=(engine, [(0, END)]))
    feeder.start()
    assert next(pieces) == b"begin0 end0 "
    feeder.join()
    with pytest.raises(APIError, match="Full"):
        next(pieces)
