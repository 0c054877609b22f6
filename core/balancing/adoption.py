"""Answers that go on when the balancer that was telling them does not: it was killed, and this is the next one.

    Orphan ── what is noted ──────────────────┐
       │                                      ├─> Left ──> Resumer ──> client
       └───── how much its client was sent ───┘     └── Forwarder ──> a backend, which goes on from the notes

What is to be done, by what is found:

    1  its connection has ended, or carried what is not noted     → it is closed
    2  MOST balancers have died under it since it grew last       → it ends with an error
    3  nothing of its answer was sent                             → it is asked again, or goes on from the notes
    4  a part was sent                                            → the missing rest of what was being sent,
                                                                    then what follows, by a backend's next leg
    5  all was sent, or only the missing rest is left             → that rest; the stream's end where it needs one

The kernel knows how many bytes were sent (http/written.py), and the notes say where in the answer that is: so what the
client gets is the answer, without a gap and with nothing twice.
"""

import contextlib
import json
import logging
import threading
from typing import Any, Callable, Dict, Generator, List, NamedTuple, Optional

from core.balancing.counting import Counts
from core.balancing.errand import Errand
from core.balancing.forwarding import Forwarder, Response
from core.balancing.journal import BEGUN, FAILED, LAST, Entry
from core.balancing.keeping import Keeper, Orphan, Record
from core.balancing.pool import Pool
from core.balancing.request import Wish
from core.carriage import Notes, read_note
from core.errors import APIError
from core.http.messages import Request, Stream
from core.http.resuming import Resumer
from core.http.sockets import Wire, cut
from core.http.sse import EVENT_STREAM, PING, error_event
from core.http.written import bytes_written

MOST = 2  # deaths of balancers that a request is adopted after, unless its answer has grown in between

log = logging.getLogger("comeapi.balancer")


class Remains(NamedTuple):
    """What the notes tell of an answer."""

    notes: Notes
    kind: str  # its content type, of a stream
    complete: bool  # nothing is missing but the stream's end


def remains(entry: Entry) -> Remains:
    """Return what the notes in a journal's entry tell. Raises BadFrame."""
    notes, kind, complete = Notes(), "", bool(entry.flags & FAILED)
    for line in entry.notes.splitlines():
        note = read_note(line)
        notes.take(note)
        kind = note.get("kind", kind)
        complete = complete or "status" in note
    return Remains(notes, kind, complete)


class Adoption:
    """Lets a balancer go on with what the one before it has left."""

    def __init__(self, keeper: Keeper, forwarder: Forwarder, pool: Pool, count: Counts, resumer: Resumer):
        self.keeper = keeper
        self.forwarder = forwarder
        self.pool = pool
        self._count = count
        self._resumer = resumer

    def start(self, orphans: List[Orphan], ready: Callable[[], Any]) -> None:
        """Adopt all of these, in a thread of its own, once ready() has returned: something is known of the backends."""
        if orphans:
            threading.Thread(target=self._run, args=(orphans, ready), name="adoption", daemon=True).start()

    def _run(self, orphans: List[Orphan], ready: Callable[[], Any]) -> None:
        ready()
        adopted = sum([self._adopt(orphan) for orphan in orphans])
        log.info("⏩ the last balancer's answers go on: %d of %d", adopted, len(orphans))

    def _adopt(self, orphan: Orphan) -> bool:
        """Go on with one answer; False where that can't be done: its connection is closed."""
        try:
            orphan.slot.adopt()
            left = Left(self, orphan)
            self._count.adopted.inc(left.how)
            self._resumer.resume(orphan.sock, orphan.sock.getpeername(), left)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:  # 1
            log.warning("an answer of the last balancer is cut off: %s", error)
            self._count.adopted.inc("cut off")
            cut(orphan.sock)
            orphan.sock.close()
            self.keeper.abandon(orphan)
            return False
        return True


class Left:
    """One answer that the last balancer has left; an `Unfinished` of core.http.resuming.

    Raises OSError, ValueError and others where its client has left, or what is noted makes no sense.
    """

    def __init__(self, adoption: Adoption, orphan: Orphan):
        self._adoption = adoption
        self._orphan = orphan
        self._entry = entry = orphan.slot.read()
        self._found = remains(entry)
        about, _, self._body = entry.request.partition(b"\n")
        self._about: Dict[str, Any] = json.loads(about.decode("ascii"))
        self._wish = Wish(self._about["who"], self._about["model"])
        self.written = bytes_written(orphan.sock)
        self.begun = bool(entry.flags & BEGUN)
        missing = entry.end - self.written
        if not 0 <= missing <= len(entry.next_bytes):
            raise ValueError("%d bytes are missing, and %d are known" % (missing, len(entry.next_bytes)))
        self.rest = entry.next_bytes[len(entry.next_bytes) - missing :]

    @property
    def how(self) -> str:
        """What is done with it, in a word or two."""
        if self._entry.flags & LAST or self._found.complete:
            return "finished"
        if self._entry.adoptions > MOST:
            return "given up"
        return "carried on" if self.begun else "asked again"

    def request(self, wire: Wire) -> Request:
        """Return the request, as it came."""
        about = self._about
        made = Request(about["method"], about["target"], about["version"], about["headers"], wire, about["peer"])
        made.id, made.key, made.body = about["id"], about["key"], self._body
        return made

    def record(self, request: Request) -> Record:
        """Return what goes on to be kept of it."""
        return self._adoption.keeper.adopt(self._orphan, request, self._wish)

    def answer(self, request: Request, record: Record) -> Optional[Response]:
        """Return what follows; None where nothing does. Raises APIError, and HangUp when the client leaves."""
        if self._entry.flags & LAST:  # 5
            return None
        errand = Errand(request, self._wish, self._adoption.pool.clock(), record)
        errand.notes = self._found.notes
        errand.sent = 1  # it comes first in its client's line
        if self.begun:
            return self._stream(errand)
        self._check()
        return self._adoption.forwarder.answer(errand)  # 3

    def _stream(self, errand: Errand) -> Stream:
        of_events, failure = self._found.kind.startswith(EVENT_STREAM), errand.notes.failure

        def error_chunk(error: APIError) -> bytes:
            return failure or b"\n\n" + error_event(error)  # of a server of another make, half an event may be there

        told = error_chunk if failure or of_events else None
        ping = PING if of_events else b""
        return Stream(self._pieces(errand), 200, self._found.kind, ping=ping, error_chunk=told, alive=ping)

    def _pieces(self, errand: Errand) -> Generator[bytes, None, None]:
        """Yield what follows of a stream."""
        if self._found.complete:  # 5
            return
        self._check()
        if not errand.begun:
            raise APIError(502, "The balancer was killed, and nobody can go on with this answer.", "not_carried")
        stream = self._adoption.forwarder.rest(errand)  # 4
        with contextlib.closing(stream.chunks):
            yield from stream.chunks

    def _check(self) -> None:
        """Raise APIError where balancers die under this request again and again."""
        if self._entry.adoptions > MOST:  # 2
            raise APIError(500, "%d balancers have died under this request." % (MOST + 1), "balancer_killed")
