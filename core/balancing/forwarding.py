"""A request's way to a backend and its answer's way back, with everything that may go wrong.

    Forwarder.forward ── Pool.request ── Client.open ── Relay ──> client
          ▲                  │ one lock, no I/O under it; all full: the queue
          └─ another one <── unreachable; broken off, or 502/503, before a byte went to the client

Retries. The client does not see them; it gets its answer later, or the last failure:

    1  no connection                      → another backend; this one is suspect
    2  a kept-alive connection was stale  → the same backend on a new connection, once (core/http/client.py)
    3  502 or 503                         → another backend, while the budget lasts; this one is full, not dead
    4  broken off, or down, before a byte went on to the client → another backend; this one is suspect
    5  no byte in time                    → 504; the backend may still be at work, so no other one is asked
    6  broken off after a byte was sent   → the stream ends with an error event; other answers are cut off
    7  no backend left, but one was up before, is loading, or has a parent → wait for it, `recovery_timeout` at most
    8  its backend died under it, before a byte went on → once more, on a backend that runs nothing else meanwhile;
       if that one dies too → 500; equal requests get the same for ten minutes, without being sent (quarantine.py)
    9  one of 4 to 6, of a backend that tells of its answer in frames → another backend goes on where that one was, as
       the same answer, `migrations` times at most after a byte was sent (carrying.py)
   10  it has not the stored answer that is asked for   → a backend of another machine, once each (elsewhere.py)

The other backend is never one that this request was sent to before, unless it has come up again since (7, 8). Rows 3, 4
and 8 happen `retries` times at most, together. Any other answer of a backend goes to the client as it is. keepalive.py
says what counts as "in time" for a stream.
"""

import functools
import json
import logging
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Union

from core.balancing.admission import Admission
from core.balancing.backends import Ticket
from core.balancing.carrying import Carried, Leg, Why
from core.balancing.catalogue import no_backend
from core.balancing.counting import Counts
from core.balancing.credentials import Credentials
from core.balancing.deaths import Deaths
from core.balancing.elsewhere import may_be_elsewhere, neighbours
from core.balancing.errand import Errand, Visit
from core.balancing.keepalive import Patience, Pings
from core.balancing.keeping import Keeper
from core.balancing.pool import Pool
from core.balancing.quarantine import Quarantine
from core.balancing.relaying import REFUSED, Relay, RetryBudget, held, passed_back
from core.balancing.request import Wish
from core.balancing.watching import GaveUp, Leaving, Watch
from core.carriage import CARRY, proof
from core.errors import APIError
from core.http.answers import Answer
from core.http.client import Client
from core.http.failures import Broken, Slow, Unreachable
from core.http.messages import Reply, Request, Stream, error_reply
from core.http.sse import EVENT_STREAM, PING, error_event
from core.owners import OWNER, is_owned, owner_of

_BROKE, _DIED = "broken", "died"
_NOT_CARRIED = (400, 403, 404, 409, 413)  # of a backend that does not go on with another one's answer
Response = Union[Reply, Stream]
Headers = List[Tuple[str, str]]
Started = Tuple[Leg, Headers]  # of a stream that can be carried on

log = logging.getLogger("comeapi.balancer")


class _Died(Exception):
    """A backend has died under a request, before a byte of its answer."""


class Forwarder:
    """Sends requests to a pool's backends. `config` has the limits (balancing/settings.py, and `child`).

    `draining` tells whether the service is stopping; then no request waits for a backend to come up.
    """

    def __init__(
        self,
        config: Any,
        pool: Pool,
        client: Client,
        credentials: Credentials,
        count: Counts,
        draining: Callable[[], bool],
        carry_secret: str = "",
        keeper: Optional[Keeper] = None,
    ):
        self._config = config
        self._pool = pool
        self._client = client
        self._credentials = credentials
        self._count = count
        self._carry_secret = carry_secret
        self._keeper = keeper
        self._budget = RetryBudget(config.retry_budget)
        self._quarantine = Quarantine()
        self._deaths = Deaths(client, credentials, self._quarantine, count, pool.lost)
        self._admission = Admission(config, pool, self._quarantine, count, draining)

    def forward(self, request: Request, wish: Wish) -> Response:
        """Send a request to a backend and return the Reply or Stream; the module's docstring has the table of retries.

        Raises APIError, and HangUp when the client leaves.
        """
        record = self._keeper.keep(request, wish) if self._keeper and wish.works else None
        errand = Errand(request, wish, self._pool.clock(), record)
        self._budget.earn()
        if wish.works:
            self._count.requests.inc()
        reply = self.answer(errand)
        if wish.works and not isinstance(reply, Reply):
            self._count.first_piece.observe(self._pool.clock() - errand.started)
        return reply

    def answer(self, errand: Errand) -> Response:
        """Return the Reply or Stream of an errand. Raises APIError, and HangUp when the client leaves."""
        reply = self._send(errand)
        return self._carried(*reply) if isinstance(reply, tuple) else reply

    def rest(self, errand: Errand) -> Stream:
        """Return what follows of an answer that was begun. Raises APIError where nobody can go on, and HangUp."""
        return self._carried(*self._next(errand))

    def _send(self, errand: Errand) -> Union[Response, Started]:
        """Send a request until a backend answers it, or, where another one has begun the answer, goes on with it."""
        while True:
            visit = self._admission.admit(errand)
            if visit is None:
                return errand.failure or error_reply(no_backend(self._pool))
            errand.tried.add(visit.backend)
            errand.sent += 1
            outcome = self._outcome(visit)
            if outcome is None:
                continue
            if isinstance(outcome, str):
                why = outcome
            elif isinstance(outcome, Reply) and _is_refusal(errand, outcome):
                errand.failure, why = outcome, str(outcome.status)
            else:
                return outcome
            errand.failures += 1
            if not self._may_go_on(errand, why):
                refusal = errand.failure if why not in (_BROKE, _DIED) else None
                return refusal or error_reply(_broke(errand.failures))
            self._count.retries.inc(why)

    def _outcome(self, visit: Visit) -> Union[Response, Started, str, None]:
        """Send a request to one backend. Returns what it answers, or why it did not; None where that does not count.

        Raises APIError 504 where the backend is too slow.
        """
        try:
            reply = self._attempt(visit)  # 3, 9 where it refuses
            if isinstance(reply, Reply) and may_be_elsewhere(visit.errand.request.path, reply):  # 10
                visit.errand.failure = reply
                visit.errand.tried.update(neighbours(visit.backend, self._pool.everyone()))
                return None
            return reply
        except Unreachable:  # 1
            return None
        except Leaving as error:  # 9
            visit.errand.leave(visit.backend, error.reason == "stalled")
            self._count.migrations.inc(error.reason)
            return None
        except Broken:  # 4
            return _BROKE
        except _Died:  # 8
            return _DIED
        except Slow as error:  # 5
            raise APIError(504, "The backend %s is too slow: %s." % (visit.backend.url, error), "backend_slow")

    def _may_go_on(self, errand: Errand, why: str) -> bool:
        """Whether a request that has failed may be sent again; takes it from the budget where it was refused."""
        return errand.failures <= self._config.retries and (why in (_BROKE, _DIED) or self._budget.spend())

    # ---- one backend

    def _attempt(self, visit: Visit) -> Union[Response, Started]:
        """Send the request to one backend and return the reply. Raises Unreachable, Broken, Slow, HangUp.

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
                died = self._has_died(visit, error)
            finally:
                self._pool.release(ticket)  # only now may others come to this backend, or equal ones run alone
            if died:
                raise _Died()
            raise

    def _what_is_sent(self, visit: Visit) -> Tuple[bytes, Dict[str, str]]:
        """Return the body and the headers that a backend gets: with the notes of an answer that is to be carried on."""
        errand, _, backend = visit
        request = errand.request
        body, headers = request.body, self._credentials.sent_on(request, backend.spec)
        if is_owned(request.path) and not backend.foreign:
            headers[OWNER] = owner_of(request.key)
        if not (backend.carries and self._carry_secret and errand.wish.works and request.method == "POST"):
            return body, headers
        if errand.begun:
            body, more = errand.notes.before(body)
            headers.update(more)
        headers[CARRY] = proof(self._carry_secret, request.target, request.id, body)
        return body, headers

    def _has_died(self, visit: Visit, error: BaseException) -> bool:
        """Note what has failed; return whether the backend has died. Raises APIError 500 the second time."""
        lost = not _is_silence(error)
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
            lambda: self._ended(visit.ticket),
            lambda why, lost: self._cut(visit, why, lost and not course.silent),
        )
        self._count.streams(1)
        _note_kind(visit.errand, kind)
        if not of_events:
            return Stream(relay, answer.status, kind, headers)
        if not answer.header("x-accel-buffering"):
            headers.append(("X-Accel-Buffering", "no"))
        return Stream(relay, answer.status, kind, headers, error_chunk=course.last_event)

    def _ended(self, ticket: Ticket) -> None:
        self._pool.release(ticket)
        self._count.streams(-1)

    # ---- answers that are carried on

    def _started(self, leg: Leg, headers: Headers) -> Union[Reply, Started]:
        """Return the leg of a stream once its first bytes are here; of a whole answer, the Reply."""
        if not leg.whole:
            leg.put_back(leg.next())
            return leg, headers
        reply = Reply(b"".join(iter(leg.next, b"")), leg.status, leg.kind, headers)
        self._deaths.passed(leg.visit)
        self._pool.release(leg.visit.ticket)
        return reply

    def _carried(self, leg: Leg, headers: Headers) -> Stream:
        """Return a stream that goes on when its backend does not."""
        errand, of_events = leg.visit.errand, leg.kind.startswith(EVENT_STREAM)
        if of_events and "x-accel-buffering" not in {name.lower() for name, _ in headers}:
            headers.append(("X-Accel-Buffering", "no"))
        self._count.streams(1)
        _note_kind(errand, leg.kind)
        chunks = Carried(leg, self._go_on, self._carried_to_its_end)

        def error_chunk(error: APIError) -> bytes:
            return errand.notes.failure or error_event(error)

        return Stream(chunks, 200, leg.kind, headers, error_chunk=error_chunk, alive=PING if of_events else b"")

    def _carried_to_its_end(self, leg: Leg) -> None:
        if leg.status:
            self._deaths.passed(leg.visit)
        self._ended(leg.visit.ticket)

    def _go_on(self, leg: Leg, error: Why) -> Leg:
        """Let another backend go on with an answer. Raises APIError where none can, and HangUp."""
        errand, ticket, backend = leg.visit
        leg.close()
        try:
            if isinstance(error, Leaving):
                errand.leave(backend, error.reason == "stalled")
            else:
                errand.moves += 1
                self._has_died(leg.visit, error)
        finally:
            self._pool.release(ticket)
        if errand.moves > self._config.migrations or not errand.begun:
            raise APIError(502, "The backend broke off in the middle of its answer: %s." % error, "backend_broke")
        log.info("⏩ an answer of %s is carried on: %s", backend.url, error)
        errand.failures, errand.failure = 0, None
        errand.request.begin_silence()
        next_leg, _ = self._next(errand)
        self._count.migrations.inc(_reason(error))
        return next_leg

    def _next(self, errand: Errand) -> Started:
        """Let a backend go on with an answer that was begun. Raises APIError where none can, and HangUp."""
        reply = self._send(errand)
        if isinstance(reply, tuple):
            return reply
        raise APIError(502, "No other backend could go on with the answer (status %d)." % reply.status, "not_carried")

    def _may_leave(self, visit: Visit) -> bool:
        """Whether another backend could go on with an answer now."""
        return visit.errand.begun and self._pool.has_place_beside(visit.ticket)

    def _may_leave_stalled(self, visit: Visit) -> bool:
        """Whether a request may leave a backend that stalls: its answer can be carried on, or there is none yet.

        It may not do so again and again: all backends of a machine may be slow.
        """
        errand = visit.errand
        free = errand.begun or not errand.answered
        return free and errand.stalls < self._config.migrations and self._pool.has_place_beside(visit.ticket)

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


def _note_kind(errand: Errand, kind: str) -> None:
    """Note what kind of stream an answer is, for whoever goes on with it."""
    if errand.record:
        errand.record.note(json.dumps({"kind": kind, "n": 0}).encode("ascii"))


def _reason(why: Why) -> str:
    """Return why an answer is carried on, in a word."""
    if isinstance(why, Leaving):
        return why.reason
    return "silent" if _is_silence(why) else "broken"


def _is_silence(error: BaseException) -> bool:
    """Whether a backend was given up though its connection had not ended."""
    return isinstance(error, (Slow, GaveUp))


def _is_refusal(errand: Errand, reply: Reply) -> bool:
    """Whether a backend has refused a request, or to go on with another one's answer."""
    return reply.status in REFUSED or (errand.begun and reply.status in _NOT_CARRIED)


def _broke(backends: int) -> APIError:
    return APIError(502, "%d backends broke off while answering." % backends, "backend_broke")
