"""How requests in flight are kept, so that the death of this process cuts none of them.

    Record ── its request, notes, next bytes ──> Journal    memory that outlives this process (journal.py)
       └───── its client's connection ─────────> a parent   that holds a duplicate (core/system/holder.py)

    connect(fd)    the Keeper, and what a process before this one has left
    Keeper         makes the Records; a thread of its own sees to those in flight
    Record         one request's, written by the connection's thread

A request that is answered at once costs next to nothing: it is only remembered here. One that lasts longer is noted,
and its connection handed over, by the keeper's thread; a stream's at once, before its first byte goes out. So if this
process dies, a client has seen nothing yet (its library asks again), or its answer goes on.
"""

import collections
import contextlib
import itertools
import json
import logging
import os
import socket
import sys
import threading
import time
from typing import Deque, Dict, List, Mapping, NamedTuple, Optional, Tuple

from core.balancing.journal import BEGUN, FAILED, LAST, Journal, Slot
from core.balancing.request import Wish
from core.handing import BEGIN, DROP, END, HELLO, HOLD, JOURNAL, MOST, Post
from core.http.messages import Request
from core.loops import Loop

_YOUNG = 0.05  # seconds after which a request is kept, and between two looks at all of them
_REST = 1.0  # seconds between two looks while there is none
_PATIENCE = 5.0  # seconds for the parent's answer to a HELLO

log = logging.getLogger("comeapi.balancer")


class Orphan(NamedTuple):
    """A request that a process before this one has left: where it is noted, and its client's connection."""

    slot: Slot
    sock: socket.socket


def connect(number: int) -> Tuple[Optional["Keeper"], List[Orphan]]:
    """Return the keeper that uses the inherited socket with this number, and what was left by a process before this.

    None where there is no such socket, or the parent does not answer: then nothing is kept.
    """
    if number < 0 or not sys.platform.startswith("linux"):
        return None, []
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=number)
    try:
        sock.set_inheritable(False)
        sock.settimeout(_PATIENCE)
        post = Post(sock)
        held = _ask(post)
        sock.settimeout(None)  # whoever sends does not wait
        memory = held.pop(0)
        try:
            journal = Journal(memory)
        finally:
            os.close(memory)
        keeper = Keeper(post, journal, max([journal.last_serial, *held]) + 1)
        return keeper, keeper.take_over(held)
    except (OSError, ValueError, OverflowError, KeyError) as error:
        log.warning("requests would not survive the balancer's death: %s", error)
        with contextlib.suppress(OSError):
            sock.close()
        return None, []


def _ask(post: Post) -> Dict[int, int]:
    """Return the descriptors that the parent holds, by serial number; the journal has the number 0. Raises OSError."""
    own = int.from_bytes(os.urandom(8), sys.byteorder)
    post.send(HELLO, own)
    held: Dict[int, int] = {}
    begun = False
    while True:
        messages = post.receive()
        if not messages:
            raise OSError("the parent has closed its socket")
        for what, number, fd in messages:  # the answers to others before us come first, where these have not read them
            begun = begun or (what, number) == (BEGIN, own)
            if fd is not None and begun and what in (JOURNAL, HOLD):
                held[number] = fd
            elif fd is not None:
                os.close(fd)
            elif begun and what == END:
                return held


class Keeper:
    """Makes the Records, and sees to those in flight, in a thread of its own. Any thread may use it."""

    def __init__(self, post: Post, journal: Journal, first_serial: int):
        self.post = post
        self.journal = journal
        self._serials = itertools.count(first_serial)
        self._live: Dict[int, Record] = {}
        self._dropped: Deque[int] = collections.deque()
        self._some = threading.Event()  # there is something to look at
        self.loop = Loop("keeper", _REST, self._step, pauses=False, log=log)

    def keep(self, request: Request, wish: Wish) -> "Record":
        """Return the record of a request that begins."""
        return self._remember(Record(self, next(self._serials), request, wish))

    def adopt(self, orphan: Orphan, request: Request, wish: Wish) -> "Record":
        """Return the record of a request that a process before this one has begun."""
        return self._remember(Record(self, orphan.slot.serial, request, wish, orphan.slot))

    def _remember(self, record: "Record") -> "Record":
        self._live[record.serial] = record
        if not self._some.is_set():
            self._some.set()
        return record

    def forget(self, record: "Record") -> None:
        """A request is over, or can't be kept."""
        self._live.pop(record.serial, None)

    def drop(self, serial: int) -> None:
        """Let the parent close its duplicate of a connection, soon."""
        self._dropped.append(serial)
        self._some.set()

    def close(self) -> None:
        """Keep nothing more; what is kept stays so until the parent ends."""
        self.loop.stop()
        self._some.set()
        self.post.close()

    def abandon(self, orphan: Orphan) -> None:
        """Give up a request that a process before this one has begun."""
        self.journal.give_back(orphan.slot)
        self.drop(orphan.slot.serial)

    def take_over(self, held: Mapping[int, int]) -> List[Orphan]:
        """Return what is left: noted and held. What is one without the other is forgotten."""
        socks = {serial: socket.socket(fileno=fd) for serial, fd in held.items()}
        found = []
        for slot in self.journal.left():
            if slot.serial in socks:
                found.append(Orphan(slot, socks.pop(slot.serial)))
            else:
                self.journal.give_back(slot)
        for serial, sock in socks.items():
            sock.close()
            self.drop(serial)
        return found

    def _step(self) -> None:
        """Keep those that have lasted for a moment, and let go of those that are over."""
        if not self._some.wait(_REST) or self.loop.stopped:
            return
        time.sleep(_YOUNG)
        self._some.clear()
        try:
            for record in list(self._live.values()):
                if time.monotonic() - record.since >= _YOUNG:
                    record.secure()
            while self._dropped:
                some = list(itertools.islice(self._dropped, MOST))
                self.post.send(DROP, *some)
                for _ in some:
                    self._dropped.popleft()
        except BlockingIOError:  # the parent is behind: later
            pass
        if self._live or self._dropped:
            self._some.set()


class Record:
    """What is kept of one request; core.http.sockets.Record says what the connection tells it."""

    def __init__(self, keeper: Keeper, serial: int, request: Request, wish: Wish, slot: Optional[Slot] = None):
        self.serial = serial
        self.since = time.monotonic()
        self._keeper = keeper
        self._request = request
        self._wish = wish
        self._lock = threading.Lock()  # guards all below: the keeper's thread secures, the connection's does the rest
        self._slot = slot
        self._held = slot is not None  # the parent has a duplicate of the connection
        self._over = False
        self._fresh = bytearray()  # notes that are not in the journal
        self._flags = slot.read().flags if slot else 0
        self._suspect = slot is not None  # a process has died under it, and it has not grown since
        self._grows = False  # the fresh notes let it grow

    # ---- of the answer

    def note(self, line: bytes, grows: bool = False) -> None:
        """Note what is known of the answer, a line of JSON. It counts when the bytes that follow from it are noted.

        `grows` says that the answer does.
        """
        with self._lock:
            self._fresh += line + b"\n"
            self._grows = self._grows or grows

    def settle(self) -> None:
        """Let what was noted count now: no bytes follow from it."""
        with self._lock:
            self._commit(b"", self._request.wire.written)

    def begins(self) -> None:
        """The answer's first bytes are sent next, of a stream."""
        with self._lock:
            self._flags |= BEGUN
            self._secure()

    def writes(self, data: bytes, end: int, last: bool) -> None:
        """These bytes are sent next; the connection will have carried `end` bytes then. They may be the `last` ones."""
        with self._lock:
            self._flags |= LAST if last else 0
            self._commit(data, end)

    def fails(self) -> None:
        """The bytes that are sent next tell the client that the answer broke off."""
        self._flags |= FAILED

    def ends(self) -> None:
        """The request is over: its last byte was sent, or its connection is closed next."""
        with self._lock:
            self._let_go()

    # ---- the keeper

    def secure(self) -> None:
        """Note the request and hand its connection over, unless that was done. Raises BlockingIOError, OSError."""
        with self._lock:
            self._secure()

    def _secure(self) -> None:
        wire = self._request.wire
        if self._over or self._held or self._flags & LAST:
            return
        if not self._slot:
            described = describe(self._request, self._wish)
            self._slot = self._keeper.journal.take(self.serial, described, bytes(self._fresh), wire.written)
            self._fresh.clear()
        if not self._slot:
            return self._let_go()
        try:
            self._keeper.post.send(HOLD, self.serial, fd=wire.sock.fileno())
            self._held = True
        except OSError:
            if not self._flags & BEGUN:
                raise

    def _commit(self, data: bytes, end: int) -> None:
        if not self._slot:
            return
        if not self._slot.commit(bytes(self._fresh), data, end, self._flags):
            return self._let_go()
        self._fresh.clear()
        if self._suspect and self._grows:
            self._slot.acquit()
            self._suspect = False

    def _let_go(self) -> None:
        self._over = True
        self._keeper.forget(self)
        slot, self._slot = self._slot, None
        if slot:
            self._keeper.journal.give_back(slot)
        if self._held:
            self._held = False
            self._keeper.drop(self.serial)


def describe(request: Request, wish: Wish) -> bytes:
    """Return a request as bytes, as its way to a backend needs it."""
    about = {
        "method": request.method,
        "target": request.target,
        "version": request.version,
        "headers": request.headers,
        "peer": request.peer,
        "id": request.id,
        "key": request.key,
        "who": wish.who,
        "model": wish.model,
    }
    return json.dumps(about).encode("ascii") + b"\n" + request.body
