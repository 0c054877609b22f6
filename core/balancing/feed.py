"""The web page's feed: GET /events tells once a second, as server-sent events, how the balancer is.

    event: history   first: {"history": columns of the last ten minutes, "changes": […], "policy", "seconds"};
                     again when earlier seconds are known better, before the "now" of its last second
    event: now       then each second: {"sample": its figures, "backends": […], "changes": the new ones}

One thread takes the sample and writes its event; all who watch are sent the same bytes. One who reads too slowly misses
events, and gets the newest. While somebody watches, the backends are looked at every second (Probing.watch).
"""

import logging
import threading
import time
from typing import Any, Callable, Dict, Generator, Iterator

from core.balancing.counting import Counts
from core.balancing.history import SECONDS, History
from core.balancing.pool import Pool
from core.balancing.probing import Probing
from core.errors import APIError
from core.http.messages import Request, Stream
from core.http.sse import EVENT_STREAM, PING, error_event, event
from core.loops import Loop

log = logging.getLogger("comeapi.balancer")

MOST_WATCHERS = 256  # each takes a connection and its thread
_INTERVAL = 1.0  # seconds between two samples
_WATCH_SECONDS = 3.0  # that the backends are looked at for, after each sample that is watched
_SILENCE_SECONDS = 10.0  # after which a watcher gets a ping, should there be no sample


class Feed:
    """Samples a balancer every second and tells all who watch. `facts` are what a page must know at first."""

    def __init__(
        self,
        pool: Pool,
        probing: Probing,
        counts: Counts,
        facts: Dict[str, Any],
        clock: Callable[[], float] = time.time,
    ):
        self.loop = Loop("feed", _INTERVAL, self.step, log=log)
        self._pool = pool
        self._probing = probing
        self._counts = counts
        self._facts = dict(facts, seconds=SECONDS)
        self._clock = clock
        self._told = threading.Condition()  # guards all below; notified of each sample, and of the end
        self._history = History()
        self._number = 0  # of the newest sample
        self._newest = b""
        self._beginning = (-1, b"")  # the history's event, and the number of its newest sample
        self._watchers = 0

    def start(self) -> None:
        """Start sampling."""
        self.loop.start()

    def stop(self) -> None:
        """Sample no more, and end all streams."""
        self.loop.stop()
        with self._told:
            self._told.notify_all()

    def events(self, request: Request) -> Stream:
        """GET /events: the feed."""
        headers = (("Cache-Control", "no-store"), ("X-Accel-Buffering", "no"))
        return Stream(self._stream(), 200, EVENT_STREAM, headers, PING, error_event)

    def step(self) -> None:
        """Take a sample and tell it."""
        backends, totals, queued = self._pool.describe(), self._counts.totals(), self._pool.queued()
        with self._told:
            news = self._history.add(self._clock(), totals, queued, backends)
            self._number += 1
            self._newest = (self._all() if self._history.corrected else b"") + event(news, "now")
            self._told.notify_all()
            watched = self._watchers > 0
        if watched:
            self._probing.watch(_WATCH_SECONDS)

    def _stream(self) -> Generator[bytes, None, None]:
        """Yield one watcher's events. Raises APIError 503 where there are too many."""
        with self._told:
            if self._watchers >= MOST_WATCHERS:
                message = "%d pages watch already." % MOST_WATCHERS
                raise APIError(503, message, "too_many_watchers", headers=[("Retry-After", "5")])
            self._watchers += 1
        try:
            yield from self._told_events()
        finally:
            with self._told:
                self._watchers -= 1

    def _told_events(self) -> Iterator[bytes]:
        with self._told:
            seen, told = self._number, self._all()
        self._probing.watch(_WATCH_SECONDS)
        yield told
        while True:
            with self._told:
                self._told.wait_for(lambda: self._number > seen or self.loop.stopped, _SILENCE_SECONDS)
                if self.loop.stopped:
                    return
                told = self._newest if self._number > seen else PING
                seen = self._number
            yield told

    def _all(self) -> bytes:
        """Return the first event, which is written once for all who come within a second."""
        number, told = self._beginning
        if number != self._number:
            told = event(dict(self._history.all(), **self._facts), "history")
            self._beginning = self._number, told
        return told
