"""Whether a backend has died under a request, and what that says of the request (quarantine.py)."""

import time
from typing import AbstractSet, Callable

from core.balancing.counting import Counts
from core.balancing.credentials import Credentials
from core.balancing.errand import Visit
from core.balancing.quarantine import Quarantine, has_died, killed
from core.http.client import Client

_MOMENT = 0.2  # seconds


class Deaths:
    """Notes under which requests backends die, and which run to their end. `lost()` are those lost a moment ago."""

    def __init__(
        self,
        client: Client,
        credentials: Credentials,
        quarantine: Quarantine,
        count: Counts,
        lost: Callable[[], AbstractSet[object]],
    ):
        self._client = client
        self._credentials = credentials
        self._quarantine = quarantine
        self._count = count
        self._lost = lost

    def passed(self, visit: Visit) -> None:
        """A request has run to its end."""
        if visit.ticket.alone:
            self._quarantine.passed(visit.errand.fingerprint(self._quarantine))

    def died(self, visit: Visit) -> bool:
        """Find out whether the backend of a request that broke off has died. Raises APIError 500 the second time.

        One that had gone on with the answer did not die of the request as such: where a token of it is deadly, the next
        backend dies at once. One that is drained is ended by its owner.
        """
        errand, ticket, backend = visit
        if errand.progressed or backend.draining:
            return False
        if not has_died(self._client, backend.url, self._credentials.own(backend.spec), ticket.life):
            return False
        self._count.deaths.inc("alone" if ticket.alone else "beside others")
        if ticket.alone:
            time.sleep(_MOMENT)  # where somebody ends all backends, the others' loss may be noted after this one's
        if self._quarantine.died(errand.fingerprint(self._quarantine), bool(ticket.alone), backend, self._lost()):
            raise killed("It may be what ends them; if so, it would end all others.")
        return True
