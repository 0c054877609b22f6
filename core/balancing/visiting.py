"""One request at one backend: what is sent there, what comes back, and what it means when nothing does.

    Courier.visit ── Client.open ── a whole Reply
                                 ├─ a Stream, whose end gives the backend back
                                 └─ (a Leg, headers): the beginning of a stream that another backend could go on with
"""

import functools
import json
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Union

from core.balancing.admission import note_slots
from core.balancing.backends import Ticket
from core.balancing.carrying import Leg
from core.balancing.counting import Counts
from core.balancing.credentials import Credentials
from core.balancing.deaths import Deaths
from core.balancing.errand import Errand, Visit
from core.balancing.keepalive import Patience, Pings
from core.balancing.pool import Pool
from core.balancing.relaying import REFUSED, Relay, held, passed_back
from core.balancing.watching import GaveUp, Watch
from core.carriage import CARRY, proof
from core.errors import APIError
from core.http.answers import Answer
from core.http.client import Client
from core.http.failures import Broken, Slow, Unreachable
from core.http.messages import Reply, Stream
from core.http.sse import EVENT_STREAM, error_event
from core.owners import OWNER, is_owned, owner_of
from core.places import BALANCER

Response = Union[Reply, Stream]
Headers = List[Tuple[str, str]]
Started = Tuple[Leg, Headers]  # of a stream that can be carried on


class Died(Exception):
    """A backend has died under a request, before a byte of its answer."""


class Courier:
    """Takes requests to their backends. `config` has the limits (balancing/settings.py).

    `name` is what backends know this balancer by (core/places.py).
    """

    def __init__(
        self,
        config: Any,
        pool: Pool,
        client: Client,
        credentials: Credentials,
        deaths: Deaths,
        count: Counts,
        carry_secret: str,
        name: str,
    ):
        self._config = config
        self._pool = pool
        self._client = client
        self._credentials = credentials
        self._deaths = deaths
        self._count = count
        self._carry_secret = carry_secret
        self._name = name

    def visit(self, visit: Visit) -> Union[Response, Started]:
        """Send the request to one backend and return the reply. Raises Unreachable, Broken, Slow, HangUp, Taken.

        Nothing goes to the client before the first piece of the body is here, or all of it where its length is known.
        """
        errand, ticket, backend = visit
        request = errand.request
        answer: Optional[Answer] = None
        patience = Patience(self._config.timeout)
        body, headers = self._what_is_sent(visit)
        errand.answered = errand.progressed = False
        try:
            answer = self._client.open(
                backend.url + request.target,
                request.method,
                headers,
                body if body or request.method in ("POST", "PUT", "PATCH") else None,
                self._config.timeout,
                Watch(self._pool, visit, patience, functools.partial(self._may_leave_stalled, visit)),
            )
            note_slots(self._pool, backend, answer)
            errand.answered = True
            reply = self._reply(visit, answer, patience)
            seconds = self._pool.clock() - ticket.since
            self._pool.answered(backend, seconds, answer.status)
            self._count.first_byte.observe(seconds)
            return reply
        except BaseException as error:
            if answer:
                answer.close()
            try:
                died = self.has_died(visit, error)
            finally:
                self._pool.release(ticket)  # only now may others come to this backend, or equal ones run alone
            if died:
                raise Died()
            raise

    def _what_is_sent(self, visit: Visit) -> Tuple[bytes, Dict[str, str]]:
        """Return the body and the headers that a backend gets: with the notes of an answer that is to be carried on."""
        errand, ticket, backend = visit
        request = errand.request
        body, headers = request.body, self._credentials.sent_on(request, backend.spec)
        if is_owned(request.path) and not backend.foreign:
            headers[OWNER] = owner_of(request.key)
        if not (backend.foreign or ticket.alone):  # one that must run alone waits there if it has to
            headers[BALANCER] = self._name
        if not (backend.carries and self._carry_secret and errand.wish.works and request.method == "POST"):
            return body, headers
        if errand.begun:
            body, more = errand.notes.before(body)
            headers.update(more)
        headers[CARRY] = proof(self._carry_secret, request.target, request.id, body)
        return body, headers

    def has_died(self, visit: Visit, error: BaseException) -> bool:
        """Note what has failed; return whether the backend has died. Raises APIError 500 the second time."""
        lost = not is_silence(error)
        if isinstance(error, (Unreachable, Broken, Slow)):
            self._pool.failed(visit.backend, str(error), lost)
        died = isinstance(error, Broken) and lost and self._deaths.died(visit)
        if died:
            visit.errand.tried.discard(visit.backend)  # the next process there is another one
        return died

    def _reply(self, visit: Visit, answer: Answer, patience: Patience) -> Union[Response, Started]:
        """Return a whole answer as a Reply; one of unknown or great length as a Stream that gives the backend back.

        Of a stream that can be carried on, returns its beginning.
        """
        headers = passed_back(answer)
        headers.append(("X-ComeAPI-Backend", visit.backend.url))
        headers.append(("X-ComeAPI-Queue-Ms", "%d" % ((visit.ticket.since - visit.errand.started) * 1000)))
        if answer.header(CARRY):
            return self._started(Leg(visit, answer, patience, functools.partial(self._may_leave, visit)), headers)
        whole = held(answer, headers, self._config.timeout)
        if whole is None:
            return self._stream(visit, answer, patience, headers)
        if whole.status not in REFUSED:
            self._deaths.passed(visit)
        self._pool.release(visit.ticket)
        return whole

    def _stream(self, visit: Visit, answer: Answer, patience: Patience, headers: List[Tuple[str, str]]) -> Stream:
        kind = answer.header("content-type")
        of_events = kind.startswith(EVENT_STREAM)
        course = _Course(answer, patience, of_events, lambda: self._deaths.passed(visit))
        relay = Relay(
            course,
            lambda: self.ended(visit.ticket),
            lambda why, lost: self._cut(visit, why, lost and not course.silent),
        )
        self._count.streams(1)
        note_kind(visit.errand, kind)
        if not of_events:
            return Stream(relay, answer.status, kind, headers)
        if not answer.header("x-accel-buffering"):
            headers.append(("X-Accel-Buffering", "no"))
        return Stream(relay, answer.status, kind, headers, error_chunk=course.last_event)

    def ended(self, ticket: Ticket) -> None:
        """A stream has ended, in whatever way: its place is free."""
        self._pool.release(ticket)
        self._count.streams(-1)

    def _started(self, leg: Leg, headers: Headers) -> Union[Reply, Started]:
        """Return the leg of a stream once its first bytes are here; of a whole answer, the Reply."""
        if not leg.whole:
            leg.put_back(leg.next())
            return leg, headers
        reply = Reply(b"".join(iter(leg.next, b"")), leg.status, leg.kind, headers)
        self._deaths.passed(leg.visit)
        self._pool.release(leg.visit.ticket)
        return reply

    def _may_leave(self, visit: Visit) -> bool:
        """Whether another backend could go on with an answer now."""
        return visit.errand.begun and self._has_place_beside(visit)

    def _has_place_beside(self, visit: Visit) -> bool:
        return self._pool.has_place_beside(visit.ticket, str(visit.errand.notes.head.get("fingerprint", "")))

    def _may_leave_stalled(self, visit: Visit) -> bool:
        """Whether a request may leave a backend that stalls: its answer can be carried on, or there is none yet.

        It may not do so again and again: all backends of a machine may be slow.
        """
        errand = visit.errand
        free = errand.begun or not errand.answered
        return free and errand.stalls < self._config.migrations and self._has_place_beside(visit)

    def _cut(self, visit: Visit, why: str, lost: bool) -> None:
        """Note that a stream stopped before its end. Raises APIError 500 where that was the second death."""
        self._pool.failed(visit.backend, why, lost)
        if lost:
            self._deaths.died(visit)


class _Course:
    """An answer on its way, as a Relay reads it: notes signs of life, and whether it came to its end.

    `silent` says whether it was given up without a break.
    """

    def __init__(self, answer: Answer, patience: Patience, of_events: bool, whole: Callable[[], None]):
        self.close = answer.close
        self.silent = False
        self._answer = answer
        self._patience = patience
        self._pings = Pings() if of_events else None
        self._whole = whole
        patience.every_byte = not of_events

    def pieces(self) -> Iterator[bytes]:
        """Yield the body's bytes as they come. Raises Broken, Slow, and what waiting raises."""
        try:
            for piece in self._answer.pieces():
                self._listen(piece)
                yield piece
        except GaveUp:
            self.silent = True
            raise
        self._whole()

    def last_event(self, error: APIError) -> bytes:
        """Return the event that tells of an error, after the end of one that was cut in the middle."""
        return (b"" if not self._pings or self._pings.between else b"\n\n") + error_event(error)

    def _listen(self, piece: bytes) -> None:
        if not self._pings or self._pings.life_in(piece):
            self._patience.renew()
        elif not self._patience.left:
            raise Slow("nothing but keep-alives for %g s" % self._patience.seconds)


def note_kind(errand: Errand, kind: str) -> None:
    """Note what kind of stream an answer is, for whoever goes on with it."""
    if errand.record:
        errand.record.note(json.dumps({"kind": kind, "n": 0}).encode("ascii"))


def is_silence(error: BaseException) -> bool:
    """Whether a backend was given up though its connection had not ended."""
    return isinstance(error, (Slow, GaveUp))
