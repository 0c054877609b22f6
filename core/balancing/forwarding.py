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

The other backend is never one that this request was sent to before, unless it has come up again since (7, 8). Rows 3, 4
and 8 happen `retries` times at most, together. Any other answer of a backend goes to the client as it is. keepalive.py
says what counts as "in time" for a stream.
"""

from typing import Any, Callable, Iterator, List, NamedTuple, Optional, Set, Tuple, Union

from core.balancing.backends import Backend, Ticket
from core.balancing.catalogue import no_backend
from core.balancing.counting import Counts
from core.balancing.credentials import Credentials
from core.balancing.keepalive import Patience, Pings
from core.balancing.pool import Pool
from core.balancing.quarantine import Quarantine, has_died, killed
from core.balancing.queueing import Full
from core.balancing.relaying import REFUSED, Relay, RetryBudget, held, passed_back
from core.balancing.request import Wish
from core.balancing.watching import GaveUp, Watch
from core.errors import APIError, HangUp
from core.http.answers import Answer
from core.http.client import Client
from core.http.failures import Broken, Slow, Unreachable
from core.http.messages import Reply, Request, Stream, error_reply
from core.http.sse import EVENT_STREAM, error_event

_TICK = 0.25  # seconds between two looks whether a request still has a reason to wait
_BROKE, _DIED = "broken", "died"
Response = Union[Reply, Stream]


class _Died(Exception):
    """A backend has died under a request, before a byte of its answer."""


class _Otherwise(Exception):
    """What is known of a waiting request has changed: it must run alone now, or need not any more."""


class _Errand:
    """One request's state while a backend is looked for that answers it."""

    def __init__(self, request: Request, wish: Wish, started: float):
        self.request = request
        self.wish = wish
        self.started = started
        self.tried: Set[Backend] = set()
        self.sent = 0  # how often it was sent to a backend
        self.failures = 0
        self.failure: Optional[Response] = None  # what the client gets if no backend is left
        self._fingerprint = b""

    def fingerprint(self, quarantine: Quarantine) -> bytes:
        """Return what equal requests have in common; computed once, when it is first asked for."""
        if not self._fingerprint:
            request = self.request
            self._fingerprint = quarantine.fingerprint(request.method, request.path, request.body)
        return self._fingerprint


class _Visit(NamedTuple):
    """One request at one backend."""

    errand: _Errand
    ticket: Ticket
    backend: Backend  # the ticket's, also when that was given back


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
    ):
        self._config = config
        self._pool = pool
        self._client = client
        self._credentials = credentials
        self._count = count
        self._draining = draining
        self._budget = RetryBudget(config.retry_budget)
        self._quarantine = Quarantine()

    def forward(self, request: Request, wish: Wish) -> Response:
        """Send a request to a backend and return the Reply or Stream; the module's docstring has the table of retries.

        Raises APIError, and HangUp when the client leaves.
        """
        errand = _Errand(request, wish, self._pool.clock())
        self._budget.earn()
        while True:
            visit = self._admit(errand)
            if visit is None:
                return errand.failure or error_reply(no_backend(self._pool))
            errand.tried.add(visit.backend)
            errand.sent += 1
            try:
                reply = self._attempt(visit)
            except Unreachable:  # 1
                continue
            except Broken:  # 4
                why = _BROKE
            except _Died:  # 8
                why = _DIED
            except Slow as error:  # 5
                raise APIError(504, "The backend %s is too slow: %s." % (visit.backend.url, error), "backend_slow")
            else:
                if reply.status not in REFUSED:
                    return reply
                errand.failure, why = reply, str(reply.status)  # 3
            errand.failures += 1
            if not self._may_go_on(errand, why):
                refusal = errand.failure if why not in (_BROKE, _DIED) else None
                return refusal or error_reply(_broke(errand.failures))
            self._count.retries.inc(why)

    def _may_go_on(self, errand: _Errand, why: str) -> bool:
        """Whether a request that has failed may be sent again; takes it from the budget where it was refused."""
        return errand.failures <= self._config.retries and (why in (_BROKE, _DIED) or self._budget.spend())

    # ---- a place at a backend

    def _admit(self, errand: _Errand) -> Optional[_Visit]:
        """Return a place at a backend, after waiting for one where that may help, or None.

        Raises APIError 429 where too many wait already, 503 when it takes too long, 500 for a request that ends
        backends, HangUp when the client leaves.
        """
        pool = self._pool
        while True:
            hope = errand.failure is None and not self._draining() and (self._config.child or pool.hopeful())
            alone = errand.fingerprint(self._quarantine) if self._is_suspect(errand) else b""
            try:
                ticket = pool.request(errand.wish, errand.tried, hope, again=errand.sent > 0, alone=alone)
            except Full:
                raise self._queue_full()
            try:
                self._wait(ticket, errand)
                self._check(ticket, errand)
            except _Otherwise:
                continue
            except BaseException:
                pool.release(ticket)  # it may have been given a backend at the last moment
                raise
            return _Visit(errand, ticket, ticket.backend) if ticket.backend else None

    def _wait(self, ticket: Ticket, errand: _Errand) -> None:
        """Wait in the queue until the ticket has a backend, or is nowhere. Raises as _admit does, and _Otherwise."""
        if not ticket.decided:
            return
        asked = self._pool.clock()
        # A request that ran for long before its backend died still gets its time to wait for another.
        started = asked if ticket.alone else errand.started
        try:
            while not errand.request.wait(ticket.decided.wait, _TICK):
                self._look_round(ticket, errand, started)
        except HangUp:
            self._pool.leave(ticket)
            raise
        finally:
            self._count.queue_wait.observe(self._pool.clock() - errand.started)
        if ticket.displaced:
            raise self._queue_full()

    def _look_round(self, ticket: Ticket, errand: _Errand, started: float) -> None:
        """Leave the queue where there is a reason to; the reason is raised, unless the backend has come meanwhile."""
        try:
            self._check(ticket, errand)
            error = self._overdue(ticket, started)
            if error:
                raise error
        except (APIError, _Otherwise):
            if self._pool.leave(ticket):
                raise

    def _check(self, ticket: Ticket, errand: _Errand) -> None:
        """Raise APIError 500 where a request has been found guilty, _Otherwise where it must run alone, or no more."""
        if self._is_suspect(errand) != bool(ticket.alone):
            self._pool.release(ticket)
            raise _Otherwise()

    def _overdue(self, ticket: Ticket, started: float) -> Optional[APIError]:
        """Return the error of a request that has waited too long, or None."""
        waited = self._pool.clock() - started
        stranded = min(waited, self._pool.stranded(ticket))
        if stranded and (stranded >= self._config.recovery_timeout or self._draining()):
            return no_backend(self._pool)
        if waited >= self._config.queue_timeout and not stranded:
            return self._too_busy(503, "No slot has become free in %g s." % self._config.queue_timeout, "queue_timeout")
        return None

    def _queue_full(self) -> APIError:
        return self._too_busy(429, "%d requests wait for a slot already." % self._pool.queued(), "queue_full")

    def _too_busy(self, status: int, message: str, code: str) -> APIError:
        after = self._pool.retry_after()
        return APIError(status, message, code, type="overloaded_error", headers=[("Retry-After", str(after))])

    # ---- one backend

    def _attempt(self, visit: _Visit) -> Response:
        """Send the request to one backend and return the reply. Raises Unreachable, Broken, Slow, HangUp.

        Nothing goes to the client before the first piece of the body is here, or all of it where its length is known.
        """
        errand, ticket, backend = visit
        request = errand.request
        answer: Optional[Answer] = None
        patience = Patience(self._config.timeout)
        try:
            answer = self._client.open(
                backend.url + request.target,
                request.method,
                self._credentials.sent_on(request, backend.spec),
                request.body if request.body or request.method in ("POST", "PUT", "PATCH") else None,
                self._config.timeout,
                Watch(self._pool, backend, request, patience),
            )
            reply = self._reply(visit, answer, patience)
            seconds = self._pool.clock() - ticket.since
            self._pool.answered(backend, seconds, answer.status)
            self._count.first_byte.observe(seconds)
            return reply
        except BaseException as error:
            if answer:
                answer.close()
            try:
                self._note(visit, error)
            finally:
                self._pool.release(ticket)  # only now may others come to this backend, or equal ones run alone
            raise

    def _note(self, visit: _Visit, error: BaseException) -> None:
        """Note what has failed before a byte. Raises _Died where a backend has died, APIError 500 the second time."""
        given_up = isinstance(error, (Slow, GaveUp))
        if isinstance(error, (Unreachable, Broken, Slow)):
            self._pool.failed(visit.backend, str(error), lost=not given_up)
        if isinstance(error, Broken) and not given_up and self._died(visit):
            visit.errand.tried.discard(visit.backend)  # the next process there is another one
            raise _Died()

    def _reply(self, visit: _Visit, answer: Answer, patience: Patience) -> Response:
        """Return a whole answer as a Reply; one of unknown or great length as a Stream that gives the backend back."""
        headers = passed_back(answer)
        headers.append(("X-ComeAPI-Backend", visit.backend.url))
        headers.append(("X-ComeAPI-Queue-Ms", "%d" % ((visit.ticket.since - visit.errand.started) * 1000)))
        whole = held(answer, headers, self._config.timeout)
        if whole is None:
            return self._stream(visit, answer, patience, headers)
        if whole.status not in REFUSED:
            self._passed(visit)
        self._pool.release(visit.ticket)
        return whole

    def _stream(self, visit: _Visit, answer: Answer, patience: Patience, headers: List[Tuple[str, str]]) -> Stream:
        kind = answer.header("content-type")
        of_events = kind.startswith(EVENT_STREAM)
        course = _Course(answer, patience, of_events, lambda: self._passed(visit))
        relay = Relay(
            course,
            lambda: self._ended(visit.ticket),
            lambda why, lost: self._cut(visit, why, lost and not course.silent),
        )
        self._count.streams(1)
        if not of_events:
            return Stream(relay, answer.status, kind, headers)
        if not answer.header("x-accel-buffering"):
            headers.append(("X-Accel-Buffering", "no"))
        return Stream(relay, answer.status, kind, headers, error_chunk=course.last_event)

    def _ended(self, ticket: Ticket) -> None:
        self._pool.release(ticket)
        self._count.streams(-1)

    # ---- requests that end backends

    def _is_suspect(self, errand: _Errand) -> bool:
        """Whether a request must run alone. Raises APIError 500 where it, or an equal one, has ended two backends."""
        if self._quarantine.empty:
            return False
        return self._quarantine.check(errand.fingerprint(self._quarantine))

    def _passed(self, visit: _Visit) -> None:
        """A request has run to its end."""
        if visit.ticket.alone:
            self._quarantine.passed(visit.errand.fingerprint(self._quarantine))

    def _cut(self, visit: _Visit, why: str, lost: bool) -> None:
        """Note that a stream stopped before its end. Raises APIError 500 where that was the second death."""
        self._pool.failed(visit.backend, why, lost)
        if lost:
            self._died(visit)

    def _died(self, visit: _Visit) -> bool:
        """Find out whether the backend of a request that broke off has died. Raises APIError 500 the second time."""
        errand, ticket, backend = visit
        if not has_died(self._client, backend.url, self._credentials.own(backend.spec), ticket.life):
            return False
        self._count.deaths.inc("alone" if ticket.alone else "beside others")
        if self._quarantine.died(errand.fingerprint(self._quarantine), bool(ticket.alone)):
            raise killed("It may be what ends them; if so, it would end all others.")
        return True


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


def _broke(backends: int) -> APIError:
    return APIError(502, "%d backends broke off while answering." % backends, "backend_broke")
