"""One request on its way through the balancer: what has been tried for it, and what is known of its answer."""

from typing import NamedTuple, Optional, Set

from core.balancing.backends import Backend, Ticket
from core.balancing.keeping import Record
from core.balancing.quarantine import Quarantine
from core.balancing.request import Wish
from core.carriage import Notes
from core.http.messages import Reply, Request


class Errand:
    """One request's state. `started` is on the pool's clock."""

    def __init__(self, request: Request, wish: Wish, started: float, record: Optional[Record] = None):
        self.request = request
        self.wish = wish
        self.started = started
        self.record = request.wire.record = record  # what outlives this process of it
        self.tried: Set[Backend] = set()
        self.sent = 0  # how often it was sent to a backend
        self.failures = 0  # since its answer was carried on last
        self.failure: Optional[Reply] = None  # what the client gets if no backend is left
        self.notes = Notes()  # what backends have told of its answer, so that another one can go on with it
        self.answered = False  # the backend that has it has begun to answer
        self.progressed = False  # the backend that has it has told something new of its answer
        self.moves = 0  # how often its answer was carried on, after the client had seen a part of it
        self.stalls = 0  # how often it has left a backend whose engine did not go on
        self._fingerprint = b""

    @property
    def begun(self) -> bool:
        """Whether a backend has begun an answer that another one can go on with."""
        return bool(self.notes.head) and self.notes.whole

    def leave(self, backend: Backend, stalled: bool) -> None:
        """Its answer leaves a backend, for any other one: it has failed at none of them."""
        self.stalls += stalled
        self.tried.clear()
        self.tried.add(backend)

    def fingerprint(self, quarantine: Quarantine) -> bytes:
        """Return what equal requests have in common; computed once, when it is first asked for."""
        if not self._fingerprint:
            request = self.request
            self._fingerprint = quarantine.fingerprint(request.method, request.path, request.body)
        return self._fingerprint


class Visit(NamedTuple):
    """One request at one backend."""

    errand: Errand
    ticket: Ticket
    backend: Backend  # the ticket's, also when that was given back
