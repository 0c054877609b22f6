"""GET /events: what the web page is told once a second."""

import contextlib
import json
import queue
import threading
import urllib.request

import pytest
from conftest import PATIENCE, call
from pools import Clock, pool_of, take, well

from balancer import Balancer, Config
from core.balancing import feed as feeds
from core.balancing.backends import Report
from core.balancing.counting import Counts
from core.balancing.facts import Figures, figures_of
from core.balancing.feed import Feed
from core.errors import APIError
from core.http.metrics import Metrics


@pytest.fixture
def balancer():
    """Start balancers that end with the test."""
    started = []

    def start(**options):
        started.append(Balancer(Config(port=0, backends=0, **options)).start())
        return started[-1]

    yield start
    for each in started:
        each.stop(0)


class Watcher:
    """Reads a feed's events."""

    def __init__(self, url, headers=None):
        request = urllib.request.Request(url + "/events", headers=headers or {})
        self.answer = urllib.request.urlopen(request, timeout=PATIENCE)

    def next(self):
        """Return the next event's name and data; None at the end."""
        name = self.answer.readline().decode().strip()
        if not name:
            return None
        data = self.answer.readline().decode()
        assert self.answer.readline() == b"\n"
        return name[len("event: ") :], json.loads(data[len("data: ") :])


def test_a_watcher_gets_the_history_and_then_each_second(balancer):
    with contextlib.closing(Watcher(balancer().url).answer) as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
    watcher = Watcher(balancer().url)
    with watcher.answer:
        name, data = watcher.next()
        assert name == "history" and data["seconds"] == 600 and data["policy"] == "round-robin"
        moments = []
        for _ in range(2):
            name, data = watcher.next()
            assert name == "now" and data["backends"] == [] and data["sample"]["queued"] == 0
            moments.append(data["sample"]["t"])
        assert moments[1] > moments[0]


def test_the_feed_takes_a_key_but_no_place_among_the_keys_requests(balancer):
    url = balancer(api_key=("k",), key_requests=1).url
    assert call(url + "/events").status == 401
    key = {"Authorization": "Bearer k"}
    watcher = Watcher(url, key)
    with watcher.answer:
        assert watcher.next()[0] == "history"
        assert call(url + "/status", headers=key).status == 200


def test_a_stopping_balancer_ends_its_feeds_at_once(balancer):
    started = balancer()
    watcher = Watcher(started.url)
    with watcher.answer:
        watcher.next()
        assert started.stop(PATIENCE) == 0
        while watcher.next():
            pass


def test_the_feed_is_a_loop_that_health_tells_of(balancer):
    assert "feed" in call(balancer().url + "/health").json["loops"]


# ---- without sockets


def feed_of(pool):
    return Feed(pool, pool.probing, Counts(Metrics(), pool), {}, Clock())


def started(feed):
    """Return a feed's stream whose first event is taken."""
    stream = feed.events(None).chunks
    assert next(stream).startswith(b"event: history")
    return stream


def test_all_watchers_are_sent_the_same_bytes():
    feed = feed_of(pool_of(2))
    streams = [started(feed) for _ in range(3)]
    feed.step()
    told = [next(stream) for stream in streams]
    assert told[0] is told[1] is told[2] and told[0].startswith(b"event: now")
    feed.step()
    feed.step()  # who was not asked meanwhile gets the newest alone
    assert next(streams[0]) == next(streams[1]) != told[0]


def test_the_history_is_written_once_for_all_who_come_within_a_second():
    feed = feed_of(pool_of(1))
    feed.step()
    assert next(feed.events(None).chunks) is next(feed.events(None).chunks)


def test_there_is_a_bound_to_how_many_may_watch(monkeypatch):
    monkeypatch.setattr(feeds, "MOST_WATCHERS", 2)
    feed = feed_of(pool_of(1))
    streams = [started(feed) for _ in range(2)]
    with pytest.raises(APIError) as caught:
        next(feed.events(None).chunks)
    assert caught.value.status == 503
    streams[0].close()
    started(feed)


def test_a_watcher_that_waits_is_woken_by_the_end():
    feed = feed_of(pool_of(1))
    stream, ended = started(feed), queue.SimpleQueue()
    threading.Thread(target=lambda: ended.put(list(stream)), daemon=True).start()
    feed.stop()
    ended.get(timeout=PATIENCE)


# ---- figures


def test_figures_are_taken_from_a_health_answer_where_they_are_numbers():
    told = {"prompt_tokens": 3, "cached_tokens": 1, "generated_tokens": 9, "memory_mb": 71.5, "load_progress": 0.5}
    assert figures_of(told) == Figures(3, 1, 9, 71.5, 0.5)
    for strange in (True, -1, "9", None, float("inf"), float("nan"), 1 << 60, [1], 1.5):
        assert figures_of({"generated_tokens": strange}) == Figures()


def test_while_somebody_watches_all_prompt_backends_are_looked_at_every_second():
    clock = Clock()
    pool = pool_of(2, clock=clock)
    first, second = pool.everyone()
    pool.probing.probed(first, well(prompt=True), 30)
    assert pool.probing.looks_due() == []
    pool.probing.watch(3)
    assert pool.probing.looks_due() == [first]  # not the one that may take its time
    pool.probing.probed(first, Report(True, figures=Figures(generated_tokens=7), quick=True), 30)
    assert first.describe()["generated_tokens"] == 7
    assert pool.probing.looks_due() == []
    clock.now += 1
    assert pool.probing.looks_due() == [first]
    pool.probing.unprobed(first, quick=True)
    clock.now += 3
    assert pool.probing.looks_due() == []


def test_a_look_at_a_backend_that_nobody_doubts_decides_nothing():
    clock = Clock()
    pool = pool_of(1, clock=clock)
    (backend,) = pool.everyone()
    pool.probing.probed(backend, well(prompt=True), 30)
    for _ in range(5):
        pool.probing.watch(3)
        assert pool.probing.looks_due() == [backend]
        pool.probing.probed(backend, Report(False, "no byte for 1 s", timed_out=True, quick=True), 30)
        clock.now += 1
    assert backend.vitals.up
    assert pool.probing.due(0) == [backend]  # a whole probe finds out


def test_a_backend_that_comes_back_as_another_process_was_restarted():
    pool = pool_of(1)
    (backend,) = pool.everyone()
    for life, restarts in ((7, 0), (7, 0), (None, 0), (8, 1), (8, 1), (9, 2)):
        pool.probing.probed(backend, well(life=life), 30)
        assert backend.describe()["restarts"] == restarts
    assert take(pool).life == 9
