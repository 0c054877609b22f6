"""Whether a backend has died under a request, and what that says of the request (quarantine.py)."""

import time
from typing import Set

from core.balancing.backends import Backend
from core.balancing.counting import Counts
from core.balancing.credentials import Credentials
from core.balancing.errand import Visit
from core.balancing.quarantine import Quarantine, has_died, killed
from core.balancing.roster import Roster
from core.http.client import Client

_MOMENT = 0.2  # seconds
_WITNESSES = 4  # backends that are asked whether they live, when one has died under a request that ran alone


class Deaths:
    """Notes under which requests backends die, and which run to their end. `roster` has all backends."""

    def __init__(
        self,
        client: Client,
        credentials: Credentials,
        quarantine: Quarantine,
        count: Counts,
        roster: Roster,
    ):
        self._client = client
        self._credentials = credentials
        self._quarantine = quarantine
        self._count = count
        self._roster = roster

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
        if not self._has_died(backend, ticket.life):
            return False
        self._count.deaths.inc("alone" if ticket.alone else "beside others")
        lost = self._lost_meanwhile() if ticket.alone else set()
        if self._quarantine.died(errand.fingerprint(self._quarantine), bool(ticket.alone), backend, lost):
            raise killed("It may be what ends them; if so, it would end all others.")
        return True

    def _lost_meanwhile(self) -> Set[Backend]:
        """Return the backends that were lost in this moment.

        Somebody may end all of them, one after the other; and nobody has noticed it yet of one that had no request.
        """
        time.sleep(_MOMENT)
        witnesses = [each for each in self._roster.everyone() if each.vitals.up][:_WITNESSES]
        return self._roster.lost().union(each for each in witnesses if self._has_died(each, each.life))

    def _has_died(self, backend: Backend, life: object) -> bool:
        return has_died(self._client, backend.url, self._credentials.own(backend.spec), life)
