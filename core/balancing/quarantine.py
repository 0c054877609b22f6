"""Requests that end backends: it is remembered under which requests a backend has died.

    died beside others ──> suspect: it runs alone from now on ── died alone ──> guilty: it gets 500, without being sent
                              └─ ran to its end alone ──> forgotten

So a request that ends every process it reaches ends two of them. One that dies alone in the same moment as a backend
that did not have it then gets another chance, EXCUSES times: somebody ends them all. The requests that shared the
first one with it are suspects, too: they run alone, and survive. Fingerprints are remembered, so that an equal request
is recognized. A stream of which the client has seen a part is not sent again; it is a suspect when the client asks
again.

    Quarantine    suspects and guilty requests, for a while      has_died    whether a backend's process has ended

A fingerprint is a keyed hash (BLAKE2b, RFC 7693) of method, path and body: nobody can find another body with the same.
"""

import errno
import hashlib
import secrets
import socket
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import AbstractSet, Any, Callable, Dict

from core.balancing.facts import life_of, read_facts
from core.balancing.roster import MOMENT
from core.errors import APIError
from core.http.client import Client
from core.http.failures import Broken, Slow, TooLarge, Unreachable

REMEMBERED = 256
SECONDS = 600.0
EXCUSES = 2
CERTAIN_AFTER = 1.5  # seconds; a port that takes connections and breaks them off for longer belongs to no process
_PROBE_SECONDS = 1.0
_PAUSE = 0.05
_MOST_READ = 1 << 16
_OUR_OWN_FAULT = (errno.EMFILE, errno.ENFILE)


@dataclass
class _Known:
    """What is known of equal requests."""

    guilty: bool = False
    until: float = 0.0  # when it is forgotten
    excuses: int = 0  # that it has had
    places: Dict[object, float] = field(default_factory=dict)  # backends that have died under it, and when


class Quarantine:
    """The fingerprints of the last `size` requests that backends died under, each for `seconds`."""

    def __init__(
        self, size: int = REMEMBERED, seconds: float = SECONDS, clock: Callable[[], float] = time.monotonic
    ):
        self._size = size
        self._seconds = seconds
        self._clock = clock
        self._secret = secrets.token_bytes(32)
        self._known: "OrderedDict[bytes, _Known]" = OrderedDict()
        self._lock = threading.Lock()  # guards _known

    @property
    def empty(self) -> bool:
        """Whether nothing is remembered: then no fingerprint is needed."""
        return not self._known

    def fingerprint(self, method: str, path: str, body: bytes) -> bytes:
        """Return what equal requests have in common. Each Quarantine has other fingerprints."""
        mark = hashlib.blake2b(("%s %s\n" % (method, path)).encode("latin-1", "replace"), key=self._secret)
        mark.update(body)
        return mark.digest()

    def check(self, fingerprint: bytes) -> bool:
        """Whether a request must run alone. Raises APIError 500 where it is guilty."""
        with self._lock:
            known = self._known.get(fingerprint)
            if known is None or self._clock() >= known.until:
                self._known.pop(fingerprint, None)
                return False
        if known.guilty:
            raise killed("It is not sent again for up to %d minutes." % (self._seconds // 60))
        return True

    def died(self, fingerprint: bytes, alone: bool, place: object, lost: AbstractSet[object] = frozenset()) -> bool:
        """A backend, `place`, has died under a request. Returns whether the request is guilty now: it ran alone.

        `lost` are the backends that were lost in the same moment.
        """
        with self._lock:
            known = self._known.setdefault(fingerprint, _Known())
            now = self._clock()
            known.places[place] = now
            under_it = {each for each, moment in known.places.items() if now - moment < MOMENT}
            excused = alone and known.excuses < EXCUSES and not lost <= under_it
            known.excuses += excused
            known.guilty = known.guilty or (alone and not excused)
            known.until = now + self._seconds
            self._known.move_to_end(fingerprint)
            while len(self._known) > self._size:
                self._known.popitem(last=False)
            return known.guilty

    def passed(self, fingerprint: bytes) -> None:
        """A request has run to its end alone: it is no suspect any more."""
        with self._lock:
            known = self._known.get(fingerprint)
            if known and not known.guilty:
                del self._known[fingerprint]


def killed(what_follows: str) -> APIError:
    """Return the error of a request that two backends have died under."""
    message = "Two backends died while they ran this request, the second one with nothing else to do. " + what_follows
    return APIError(500, message, "backend_killed")


def has_died(client: Client, url: str, headers: Dict[str, str], life: Any) -> bool:
    """Whether the process behind a connection that broke off has ended: its port refuses, or another process answers.

    `life` is the `pid` that its /health has told, None where it does not tell. Takes CERTAIN_AFTER and a probe's time
    at most. A server that is too slow to answer counts as alive, and so does one that this process could not ask.
    """
    deadline = time.monotonic() + CERTAIN_AFTER
    while True:
        try:
            pid = _pid(client, url, headers)
        except (Slow, TooLarge):
            return False
        except Unreachable as error:
            cause = error.__context__
            late = isinstance(cause, (socket.timeout, TimeoutError))
            return not late and getattr(cause, "errno", None) not in _OUR_OWN_FAULT
        except Broken:  # a process that is ending looks so, and a forwarded port whose process is gone
            if time.monotonic() >= deadline:
                return True
            time.sleep(_PAUSE)
        else:
            return None not in (pid, life) and pid != life


def _pid(client: Client, url: str, headers: Dict[str, str]) -> Any:
    """Return the `pid` in a server's /health, or None. Raises Unreachable, Broken, Slow."""
    answer = client.open(url + "/health", headers=headers, timeout=_PROBE_SECONDS, within=_PROBE_SECONDS)
    return life_of(read_facts(answer.read_and_close(_MOST_READ)).get("pid"))
