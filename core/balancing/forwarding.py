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
   11  it has no free slot, since others have them        → another backend at once, or the queue; it does not count

The other backend is never one that this request was sent to before, unless it has come up again since (7, 8). Rows 3, 4
and 8 happen `retries` times at most, together. Any other answer of a backend goes to the client as it is. keepalive.py
says what counts as "in time" for a stream.
"""

import logging
from typing import Any, Callable, Optional, Union

from core.balancing.admission import Admission, Taken
from core.balancing.carrying import Carried, Leg, Why
from core.balancing.catalogue import no_backend
from core.balancing.counting import Counts
from core.balancing.credentials import Credentials
from core.balancing.deaths import Deaths
from core.balancing.elsewhere import may_be_elsewhere, neighbours
from core.balancing.errand import Errand, Visit
from core.balancing.keeping import Keeper
from core.balancing.pool import Pool
from core.balancing.quarantine import Quarantine
from core.balancing.relaying import REFUSED, RetryBudget
from core.balancing.request import Wish
from core.balancing.visiting import Courier, Died, Headers, Response, Started, is_silence, note_kind
from core.balancing.watching import Leaving
from core.errors import APIError
from core.http.client import Client
from core.http.failures import Broken, Slow, Unreachable
from core.http.messages import Reply, Request, Stream, error_reply
from core.http.sse import EVENT_STREAM, PING, error_event

_BROKE, _DIED = "broken", "died"
_NOT_CARRIED = (400, 403, 404, 409, 413)  # of a backend that does not go on with another one's answer

log = logging.getLogger("comeapi.balancer")


class Forwarder:
    """Sends requests to a pool's backends. `config` has the limits (balancing/settings.py, and `child`).

    `draining` tells whether the service is stopping; then no request waits for a backend to come up. `name` is what
    backends know this balancer by.
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
        name: str = "",
    ):
        self._config = config
        self._pool = pool
        self._count = count
        self._keeper = keeper
        self._budget = RetryBudget(config.retry_budget)
        self._quarantine = Quarantine()
        self._deaths = Deaths(client, credentials, self._quarantine, count, pool)
        self._courier = Courier(config, pool, client, credentials, self._deaths, count, carry_secret, name)
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
            reply = self._courier.visit(visit)  # 3, 9 where it refuses
            if isinstance(reply, Reply) and may_be_elsewhere(visit.errand.request.path, reply):  # 10
                visit.errand.failure = reply
                visit.errand.tried.update(neighbours(visit.backend, self._pool.everyone()))
                return None
            return reply
        except Unreachable:  # 1
            return None
        except Taken:  # 11
            visit.errand.tried.discard(visit.backend)
            return None
        except Leaving as error:  # 9
            visit.errand.leave(visit.backend, error.reason == "stalled")
            self._count.migrations.inc(error.reason)
            return None
        except Broken:  # 4
            return _BROKE
        except Died:  # 8
            return _DIED
        except Slow as error:  # 5
            raise APIError(504, "The backend %s is too slow: %s." % (visit.backend.url, error), "backend_slow")

    def _may_go_on(self, errand: Errand, why: str) -> bool:
        """Whether a request that has failed may be sent again; takes it from the budget where it was refused."""
        return errand.failures <= self._config.retries and (why in (_BROKE, _DIED) or self._budget.spend())

    # ---- answers that are carried on

    def _carried(self, leg: Leg, headers: Headers) -> Stream:
        """Return a stream that goes on when its backend does not."""
        errand, of_events = leg.visit.errand, leg.kind.startswith(EVENT_STREAM)
        if of_events and "x-accel-buffering" not in {name.lower() for name, _ in headers}:
            headers.append(("X-Accel-Buffering", "no"))
        self._count.streams(1)
        note_kind(errand, leg.kind)
        chunks = Carried(leg, self._go_on, self._carried_to_its_end)

        def error_chunk(error: APIError) -> bytes:
            return errand.notes.failure or error_event(error)

        return Stream(chunks, 200, leg.kind, headers, error_chunk=error_chunk, alive=PING if of_events else b"")

    def _carried_to_its_end(self, leg: Leg) -> None:
        if leg.status:
            self._deaths.passed(leg.visit)
        self._courier.ended(leg.visit.ticket)

    def _go_on(self, leg: Leg, error: Why) -> Leg:
        """Let another backend go on with an answer. Raises APIError where none can, and HangUp."""
        errand, ticket, backend = leg.visit
        leg.close()
        try:
            if isinstance(error, Leaving):
                errand.leave(backend, error.reason == "stalled")
            else:
                errand.moves += 1
                self._courier.has_died(leg.visit, error)
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


def _reason(why: Why) -> str:
    """Return why an answer is carried on, in a word."""
    if isinstance(why, Leaving):
        return why.reason
    return "silent" if is_silence(why) else "broken"


def _is_refusal(errand: Errand, reply: Reply) -> bool:
    """Whether a backend has refused a request, or to go on with another one's answer."""
    return reply.status in REFUSED or (errand.begun and reply.status in _NOT_CARRIED)


def _broke(backends: int) -> APIError:
    return APIError(502, "%d backends broke off while answering." % backends, "backend_broke")
