"""An answer that goes on when its backend does not: told by one backend after another, as one answer to the client.

    backend A ── frames ──> Leg ──> Carried ──> client         a frame's note stays here, in the Errand's Notes
              ✗ broke off, stopped, garbled                    (core/carriage.py)
    backend B ── frames ──> Leg ──┘                            B is handed the notes, and tells only what follows

Leg        what one backend tells of an answer
Carried    all of it, as a messages.Stream's chunks

A frame goes to the client when it is here as a whole. So the client never sees half an event, and what it has seen is
just what the notes tell.
"""

import time
from typing import Callable, Iterator, Union

from core.balancing.errand import Visit
from core.balancing.keepalive import Patience
from core.balancing.watching import Leaving
from core.carriage import CARRY, BadFrame, Frames, Note
from core.http.answers import Answer
from core.http.failures import Broken, Slow

_LOOK_SECONDS = 0.2  # between two looks whether there is a place at another backend


Why = Union[Broken, Slow, Leaving]


class Leg:
    """What one backend tells of an answer. `whole`: the bytes come all at the end. `status` is 0 before its end.

    `may_leave()` says whether another backend could go on; it is asked while this one is being drained.
    """

    def __init__(self, visit: Visit, answer: Answer, patience: Patience, may_leave: Callable[[], bool]):
        self.visit = visit
        self.kind = answer.header("content-type")
        self.whole = answer.header(CARRY) == "whole"
        self.status = 0
        self.close = answer.close
        self._answer = answer
        self._patience = patience
        patience.every_byte = False
        self._pieces = self._payloads()
        self._first = b""
        self._may_leave = may_leave
        self._look_at = 0.0  # when it is asked again

    def put_back(self, data: bytes) -> None:
        """Let the next bytes be some that were taken already."""
        self._first = data

    def next(self) -> bytes:
        """Return the next bytes for the client; none at the end.

        Raises Broken, Slow, Leaving, and what waiting raises.
        """
        first, self._first = self._first, b""
        return first or next((payload for payload in self._pieces if payload), b"")

    def _payloads(self) -> Iterator[bytes]:
        frames, record = Frames(), self.visit.errand.record
        try:
            for piece in self._answer.pieces():
                for note, payload in frames.feed(piece):
                    self._take(note)
                    if record and len(note) > 1:  # more than a size
                        record.note(frames.line, grows="i" in note)
                        if not payload:
                            record.settle()
                    yield payload
        except BadFrame as error:
            raise Broken("its answer is garbled: %s" % error)
        if not self.status:
            raise Broken("its answer ended in the middle")

    def _take(self, note: Note) -> None:
        if self.visit.backend.draining and not self.status:
            self._look_for_another()
        self.visit.errand.notes.take(note)
        if "i" in note:
            self.visit.errand.progressed = True
            self._patience.renew()
        elif not self._patience.left:
            raise Slow("nothing but keep-alives for %g s" % self._patience.seconds)
        status = note.get("status", 0)
        self.status = status if isinstance(status, int) and 200 <= status < 600 else self.status

    def _look_for_another(self) -> None:
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            if self._may_leave():
                raise Leaving("the backend is being drained", "drained")


class Carried:
    """An answer's bytes, from one leg after another: `go_on(leg, why)` returns the next one, or raises APIError.

    `ended(leg)` is called once, when it is over in whatever way.
    """

    def __init__(
        self,
        leg: Leg,
        go_on: Callable[[Leg, Why], Leg],
        ended: Callable[[Leg], None],
    ):
        self._leg = leg
        self._go_on = go_on
        self._ended = ended

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while True:
            try:
                data = self._leg.next()
            except (Broken, Slow, Leaving) as error:
                self._leg = self._go_on(self._leg, error)
                continue
            if not data:
                raise StopIteration
            return data

    def close(self) -> None:
        """Give the backend back; where its answer is not at its end, it sees the connection close and stops."""
        ended, self._ended = self._ended, _nothing
        self._leg.close()
        ended(self._leg)


def _nothing(leg: Leg) -> None:
    pass
